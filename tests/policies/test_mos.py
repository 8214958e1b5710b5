"""MoS and MoS+: running rewards by hand, and one actor over subsets against one over cells."""

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import make_policy
from hbo.policies.actor import Actor, reinforce_step
from tests.policies.signal_cases import signals_of

SIZES = np.array([[5, 5], [5, 5]])
NAN = np.nan
BOTH = pytest.mark.parametrize(
    ("name", "signal"), [("mos", "hidden_cosine"), ("mos-plus", "cell_hidden_cosine")]
)


def after(policy, *states, sizes=SIZES, **signals):
    state = policy.init(sizes)
    for whole in states or [{}]:
        state = policy.update(state, signals_of(sizes, whole=whole, **signals))
    return state


def spread(name, values):
    """Rewards of subsets, given to each of their cells for MoS+."""
    return np.outer(values, [1, 1]) if name == "mos-plus" else values


def paid(policy, state):
    """What was paid to each subset; for MoS+ to its first cell."""
    rows = next(policy.explain(state)[level] for level in policy.explain(state) if level != "notes")
    return [row[0] if isinstance(row, list) else row for row in rows["paid"]]


# --- running rewards ---------------------------------------------------------------------------


@BOTH
def test_running_rewards_start_at_one_and_follow_by_nine_tenths(name, signal):
    policy = make_policy(name)
    first, second = ({signal: spread(name, values)} for values in ([0.5, 1.0], [0.8, 0.2]))
    assert paid(policy, after(policy, first)) == pytest.approx([0.55, 1.0])
    assert paid(policy, after(policy, first, second)) == pytest.approx([0.775, 0.28])


@BOTH
def test_a_subset_measured_late_starts_at_one_then(name, signal):
    policy = make_policy(name)
    state = after(policy, {signal: spread(name, [0.5, NAN])})
    assert paid(policy, state) == pytest.approx([0.55, 0.55])  # the mean of the known stands in
    both = signals_of(SIZES, whole={signal: spread(name, [NAN, 0.5])})
    assert paid(policy, policy.update(state, both)) == pytest.approx([0.55, 0.55])
    more = signals_of(SIZES, whole={signal: spread(name, [NAN, 0.2])})
    assert paid(policy, policy.update(state, more)) == pytest.approx([0.55, 0.28])


@BOTH
def test_smoothing_can_start_at_the_first_reward_or_be_off(name, signal):
    states = [{signal: spread(name, values)} for values in ([0.5, 1.0], [0.8, 0.2])]
    at_first = make_policy(name, ema_start=None)
    assert paid(at_first, after(at_first, *states)) == pytest.approx([0.77, 0.28])
    off = make_policy(name, ema_alpha=None)
    assert paid(off, after(off, *states)) == pytest.approx([0.8, 0.2])


def test_the_running_reward_is_what_moves_the_actor():
    policy = make_policy("mos")
    state = after(policy, {"hidden_cosine": [0.5, 1.0]})
    by_hand = reinforce_step(Actor.start(np.array([0.5, 0.5])), np.array([0.55, 1.0]))
    law = policy.probabilities(state).sum(axis=1)
    assert law == pytest.approx(by_hand.probabilities(), abs=1e-12)


# --- rewards -----------------------------------------------------------------------------------


def test_each_reward_needs_its_signal():
    assert make_policy("mos").needs == {"hidden_cosine"}
    assert make_policy("mos-plus").needs == {"cell_hidden_cosine"}
    for name in ("mos", "mos-plus"):
        assert make_policy(name, reward="relative-perplexity").needs == {"perplexity_ratio"}


def test_one_update_of_mos_ends_at_the_worked_numbers():
    policy = make_policy("mos", ema_alpha=None)
    law = policy.probabilities(after(policy, {"hidden_cosine": [0.8, 0.2]}))
    assert law.sum(axis=1) == pytest.approx([0.50993, 0.49007], abs=5e-6)
    assert law / law.sum(axis=1, keepdims=True) == pytest.approx(np.full((2, 2), 0.5))


def test_relative_perplexity_is_that_of_a_subset_or_of_each_cell():
    sizes = np.array([[3, 1], [1, 1]])
    ratios = np.array([[0.9, 0.5], [0.4, 0.2]])
    settings = {"reward": "relative-perplexity", "ema_alpha": None}
    mos, plus = make_policy("mos", settings), make_policy("mos-plus", settings)
    said = mos.explain(after(mos, sizes=sizes, perplexity_ratio=ratios))
    assert said["global"]["rewards"] == pytest.approx([0.8, 0.3])
    assert all(error > 0 for error in said["global"]["errors"])
    said = plus.explain(after(plus, sizes=sizes, perplexity_ratio=ratios))
    assert set(said) == {"local", "notes"}
    assert np.array(said["local"]["rewards"]) == pytest.approx(ratios)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("reward", "hidden_cosine", "nearest: hidden-cosine; allowed: hidden-cosine, relative"),
        ("ema_alpha", 0, "a number above 0 to 1, or nothing"),
        ("ema_start", -1, "a number from 0, or nothing"),
    ],
)
@pytest.mark.parametrize("name", ["mos", "mos-plus"])
def test_bad_settings_are_refused_with_what_is_allowed(name, field, value, allowed):
    with pytest.raises(ConfigError, match=f"policy {name}: {field} is .*{allowed}"):
        make_policy(name, {field: value})


# --- one actor over all cells ------------------------------------------------------------------


def test_one_update_of_mos_plus_ends_at_the_worked_numbers():
    policy = make_policy("mos-plus", ema_alpha=None)
    cosines = np.array([[0.8, 0.2], [0.2, 0.2]])
    law = policy.probabilities(after(policy, {"cell_hidden_cosine": cosines}))
    assert law == pytest.approx(np.array([[0.25754, 0.24749], [0.24749, 0.24749]]), abs=5e-6)


def test_an_empty_cell_is_no_arm():
    sizes = np.array([[4, 4], [4, 0]])
    policy = make_policy("mos-plus", ema_alpha=None)
    state = after(policy, {"cell_hidden_cosine": [[0.9, 0.3], [0.5, 0.7]]}, sizes=sizes)
    three = reinforce_step(Actor.start(np.ones(3) / 3), np.array([0.9, 0.3, 0.5])).probabilities()
    expected = np.array([three[:2], [three[2], 0.0]])
    assert policy.probabilities(state) == pytest.approx(expected, abs=1e-12)


def test_cells_of_one_subset_can_part_while_the_subset_stays():
    policy = make_policy("mos-plus", actor_learning_rate=0.01, inner_steps=4000)
    cosines = np.array([[0.9, 0.1], [0.5, 0.5]])
    law = policy.probabilities(after(policy, *[{"cell_hidden_cosine": cosines}] * 3))
    assert law == pytest.approx(np.array([[0.45, 0.05], [0.25, 0.25]]), abs=2e-3)


def test_equal_rewards_lead_to_equal_cells_in_the_one_and_equal_subsets_in_the_other():
    sizes = np.array([[4, 4], [4, 0]])
    fast = {"actor_learning_rate": 0.01, "inner_steps": 4000}
    mos, plus = make_policy("mos", fast), make_policy("mos-plus", fast)
    flat = plus.probabilities(after(plus, {"cell_hidden_cosine": np.ones((2, 2))}, sizes=sizes))
    assert flat == pytest.approx(np.array([[1, 1], [1, 0]]) / 3, abs=1e-3)
    law = mos.probabilities(after(mos, {"hidden_cosine": [1.0, 1.0]}, sizes=sizes))
    assert law == pytest.approx(np.array([[1, 1], [2, 0]]) / 4, abs=1e-3)


def test_mos_plus_starts_where_the_other_policies_start():
    sizes = np.array([[6, 6], [3, 0]])
    plus = make_policy("mos-plus")
    assert plus.probabilities(plus.init(sizes)) == pytest.approx(sizes / 15)
    flat = make_policy("mos-plus", prior_temperature=float("inf"))
    assert flat.probabilities(flat.init(sizes)) == pytest.approx(np.array([[1, 1], [2, 0]]) / 4)
    given = plus.probabilities(plus.init(sizes, np.array([0.2, 0.8])))
    assert given == pytest.approx(np.array([[0.1, 0.1], [0.8, 0.0]]))


def test_the_fit_of_the_source_ends_near_the_prior_and_leaves_its_steps():
    for name in ("mos", "mos-plus"):
        policy = make_policy(name, prior_fit=True)
        sizes = np.array([[6, 6], [5, 5]])
        state = policy.init(sizes)
        assert policy.probabilities(state) == pytest.approx(sizes / 22, abs=3e-5)
        assert state["actor"]["steps"] > 500
