"""Signal tables against plain statistics; exact sums whatever the order."""

import statistics

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hbo.observations import loss_signals
from hbo.signals import RESOLUTION, SignalTable, add_values

VALUES = st.lists(
    st.tuples(st.integers(0, 5), st.floats(-50, 50, allow_nan=False)), min_size=0, max_size=60
)


def table_of(rows: list[tuple[int, float]]) -> SignalTable:
    cells = np.array([cell for cell, _ in rows], dtype=np.int64)
    values = np.array([value for _, value in rows], dtype=np.float64)
    return SignalTable.empty(2, 3).with_values(cells, values)


@given(VALUES)
def test_mean_and_standard_error_are_the_textbook_ones(rows: list[tuple[int, float]]) -> None:
    table = table_of(rows)
    for cell in range(6):
        values = [round(v * RESOLUTION) / RESOLUTION for c, v in rows if c == cell]
        mean, error = table.mean.ravel()[cell], table.standard_error.ravel()[cell]
        assert np.isnan(mean) if not values else np.isclose(mean, statistics.fmean(values))
        if len(values) < 2:
            assert np.isnan(error)
        else:
            expected = statistics.stdev(values) / len(values) ** 0.5
            assert np.isclose(error, expected, atol=1e-4)


@settings(max_examples=50)
@given(VALUES, st.randoms(use_true_random=False), st.integers(1, 4))
def test_order_and_cut_do_not_change_a_bit(rows, random, ranks) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(rows)
    random.shuffle(shuffled)
    total = SignalTable.empty(2, 3)
    for rank in range(ranks):
        total = total + table_of(shuffled[rank::ranks])
    assert np.array_equal(total.to_array(), table_of(rows).to_array())


def test_not_finite_is_left_out() -> None:
    table = table_of([(0, 1 / 3), (0, float("nan")), (1, float("inf")), (5, 7.25)])
    assert table.counts.ravel().tolist() == [1, 0, 0, 0, 0, 1]


def test_huge_values_leave_finite_tables() -> None:
    """A table that is not finite could be saved in a checkpoint, and not be read again."""
    table = table_of([(0, 1e300), (0, 1.0), (1, -1e308), (2, 1.0), (2, 2.0)] * 50)
    assert np.isfinite(table.to_array()).all()
    assert np.isfinite(table.standard_error[0]).all()
    assert np.allclose(table.mean[0], [5e99, -1e100, 1.5], rtol=1e-12)


def test_subset_mean_weights_examples_not_groups() -> None:
    table = table_of([(0, 1.0), (0, 1.0), (0, 1.0), (2, 5.0)])
    assert table.subset_mean[0] == 2.0
    assert np.isclose(table.subset_standard_error[0], 1.0)


def test_a_loss_that_is_not_finite_is_unknown_in_every_signal():
    values = loss_signals(np.array([np.inf, np.nan, 1.0]), np.ones(3))
    for name in ("loss", "perplexity", "perplexity_ratio"):
        assert np.isnan(values[name][:2]).all() and np.isfinite(values[name][2])


def test_adding_in_place_is_adding():
    generator = np.random.default_rng(3)
    cells, values = generator.integers(0, 6, size=50), generator.normal(size=50)
    values[::7] = np.nan
    table = np.zeros((3, 3, 2))
    add_values(table, cells, values)
    for row, expected in enumerate((values, values**2, np.ones(50))):
        known = np.isfinite(values)
        sums = np.bincount(cells[known], weights=expected[known], minlength=6)
        assert np.allclose(table[row].ravel(), sums)
