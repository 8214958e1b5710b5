"""Rewards against their definitions, on examples small enough to work out."""

import numpy as np
import pytest

from hbo.rewards import GLOBAL_REWARDS, LOCAL_REWARDS
from hbo.rewards.reward import cell_errors, subset_values
from hbo.signals import EXAMPLE_SIGNALS, WHOLE_SIGNALS, Signals, SignalTable

SIZES = np.array([[30, 10], [4, 0], [5, 5]])
TABLES = [
    *(("global", name) for name in GLOBAL_REWARDS),
    *(("local", name) for name in LOCAL_REWARDS),
]


def reward(level, name):
    return {"global": GLOBAL_REWARDS, "local": LOCAL_REWARDS}[level][name]


def measured(cells, values):
    return SignalTable.empty(3, 2).with_values(np.array(cells), np.array(values, dtype=float))


def signals(*, whole=None, before=None, **now):
    return Signals(
        now=now,
        before=before or {},
        whole={name: np.array(values, dtype=float) for name, values in (whole or {}).items()},
        step=10,
        sizes=SIZES,
        draws=np.zeros_like(SIZES),
    )


@pytest.mark.parametrize(("level", "name"), TABLES)
def test_entries_carry_their_key_and_need_known_signals(level, name):
    entry = reward(level, name)
    assert entry.name == name
    assert entry.needs
    assert entry.needs <= EXAMPLE_SIGNALS | WHOLE_SIGNALS


@pytest.mark.parametrize(("level", "name"), TABLES)
def test_where_nothing_was_measured_everything_is_unknown(level, name):
    values, errors = reward(level, name).compute(signals())
    shape = (3,) if level == "global" else (3, 2)
    assert values.shape == errors.shape == shape
    assert np.isnan(values).all()
    assert np.isnan(errors).all()


def test_equation_8_is_the_mean_of_the_ratios_of_perplexities():
    now, first = np.array([1.0, 2.0, 0.5, 3.0]), np.array([1.5, 2.0, 1.5, 2.0])
    cells = [0, 0, 1, 5]
    ratios = np.exp(now) / np.exp(first)
    values, errors = LOCAL_REWARDS["relative-perplexity"].compute(
        signals(perplexity_ratio=measured(cells, ratios))
    )
    by_hand = [[(np.exp(-0.5) + 1) / 2, np.exp(-1.0)], [np.nan, np.nan], [np.nan, np.exp(1.0)]]
    assert values == pytest.approx(np.array(by_hand), nan_ok=True, rel=1e-8)
    assert (errors > 0).tolist() == np.isfinite(values).tolist()


def test_variances_of_a_few_values_borrow_from_each_other():
    values, errors = LOCAL_REWARDS["loss"].compute(
        signals(loss=measured([0, 0, 0, 1, 4], [1, 2, 3, 9, 7]))
    )
    assert values[0].tolist() == [2.0, 9.0]
    # Inside cell 0 the sum of squares is 2 on 2 degrees of freedom; the subset's mean is 15 / 4.
    relative = (2 / 3.75**2) / 2
    subset = (2 + 4 * relative * 3.75**2) / (2 + 4)
    assert errors[0, 0] == pytest.approx(np.sqrt((2 + 4 * subset) / (2 + 4) / 3))
    assert errors[0, 1] == pytest.approx(np.sqrt(subset))
    assert errors[2, 0] == pytest.approx(np.sqrt(relative) * 7)  # nothing of its own at all
    assert np.isnan(errors[[1, 1, 2], [0, 1, 1]]).all()


def test_two_equal_values_are_not_certain():
    _, errors = LOCAL_REWARDS["loss"].compute(
        signals(loss=measured([0, 0, 1, 1, 2, 2], [3, 3, 1, 5, 2, 4]))
    )
    assert errors[0, 0] > 0.5


def test_with_one_value_a_cell_the_spread_of_the_subset_stands_in():
    table = measured([0, 1, 2, 4, 5], [1, 3, 2, 4, 8])
    _, errors = LOCAL_REWARDS["loss"].compute(signals(loss=table))
    assert np.isfinite(errors).tolist() == (table.counts > 0).tolist()
    values, subset_errors = subset_values(table, SIZES)
    assert np.isfinite(values).all() and (subset_errors > 0).all()


def test_errors_of_many_values_are_their_own():
    generator = np.random.default_rng(1)
    cells = np.repeat(np.arange(6), 400)
    spread = np.array([0.1, 1.0, 0.5, 2.0, 0.2, 0.3])
    table = measured(cells, 5 + spread[cells] * generator.normal(size=len(cells)))
    _, errors = LOCAL_REWARDS["loss"].compute(signals(loss=table))
    # Four degrees of freedom beside 399: only a cell ten times calmer than its neighbour notices.
    assert errors.ravel()[1:] == pytest.approx(table.standard_error.ravel()[1:], rel=0.06)
    assert 1 < errors[0, 0] / table.standard_error[0, 0] < 1.4


def test_equation_7_is_handed_through_as_measured():
    given = signals(whole={"batch_gradient_norm": [3.0, np.nan, 0.5]})
    values, errors = GLOBAL_REWARDS["batch-gradient-norm"].compute(given)
    assert values == pytest.approx([3.0, np.nan, 0.5], nan_ok=True)
    assert np.isnan(errors).all()


def test_cosines_may_be_negative():
    values, _ = GLOBAL_REWARDS["cosine"].compute(signals(whole={"gradient_cosine": [-0.2, 0, 1]}))
    assert values.tolist() == [-0.2, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("gradient-norm", "gradient_norm"),
        ("loss", "loss"),
        ("perplexity", "perplexity"),
        ("relative-perplexity", "perplexity_ratio"),
    ],
)
def test_subset_means_weight_groups_by_size_not_by_what_was_drawn(name, signal):
    table = measured([0, 0, 1, 1, 1, 1, 2], [1, 3, 5, 5, 7, 7, 4])
    values, errors = GLOBAL_REWARDS[name].compute(signals(**{signal: table}))
    assert values == pytest.approx([0.75 * 2 + 0.25 * 6, 4.0, np.nan], nan_ok=True)
    inside = cell_errors(table)[0]
    assert errors[0] == pytest.approx(np.hypot(0.75 * inside[0], 0.25 * inside[1]))


def test_the_stratified_mean_does_not_follow_the_law_that_drew_it():
    generator = np.random.default_rng(0)
    truth = np.array([1.0, 3.0])
    for share in (0.1, 0.9):
        cells = (generator.random(4000) > share).astype(int)
        table = measured(cells, truth[cells] + 0.1 * generator.normal(size=4000))
        mean, error = subset_values(table, SIZES)
        assert mean[0] == pytest.approx(0.75 * 1.0 + 0.25 * 3.0, abs=4 * error[0])
        assert error[0] < 0.01


def test_progress_compares_cells_seen_in_both_intervals():
    before = {"loss": measured([0, 0, 1, 1, 4], [3, 3, 9, 9, 2])}
    now = measured([0, 0, 2, 4], [2.0, 2.5, 1.0, 2.5])
    values, _ = GLOBAL_REWARDS["progress"].compute(signals(before=before, loss=now))
    assert values == pytest.approx([0.75, np.nan, -0.5], nan_ok=True)


@pytest.mark.parametrize(("level", "name"), TABLES)
def test_overflowing_tables_are_unknown_and_raise_nothing(level, name):
    huge = SignalTable(np.full((3, 2), np.inf), np.full((3, 2), np.inf), np.full((3, 2), 4.0))
    now = dict.fromkeys(EXAMPLE_SIGNALS, huge)
    values, _ = reward(level, name).compute(signals(before=now, **now))
    assert not np.isfinite(values).any()
