"""Rewards against their definitions, on examples small enough to work out."""

import numpy as np
import pytest

from hbo.rewards import GLOBAL_REWARDS, LOCAL_REWARDS
from hbo.rewards.reward import subset_values
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
    assert errors[0, 0] == pytest.approx(np.std(ratios[:2], ddof=1) / np.sqrt(2), rel=1e-6)


def test_a_cell_with_one_value_borrows_the_spread_of_its_subset():
    values, errors = LOCAL_REWARDS["loss"].compute(
        signals(loss=measured([0, 0, 0, 1, 4], [1, 2, 3, 9, 7]))
    )
    assert values[0].tolist() == [2.0, 9.0]
    assert errors[0] == pytest.approx([1 / np.sqrt(3), 1.0])
    assert np.isnan(errors[2]).all()


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
    cell_errors = table.standard_error[0]
    assert errors[0] == pytest.approx(np.hypot(0.75 * cell_errors[0], 0.25 * cell_errors[1]))


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
