"""Policies that read training losses: loss, doremi and odm."""

import math

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import ODM, DoReMi, Loss, make_policy
from hbo.policies.odm import exploration
from hbo.policies.shares import tilted
from tests.policies.signal_cases import signals_of

SIZES = np.array([[30, 30], [10, 10], [5, 15]])
NAN = np.nan


def flat(values):
    """The same value in both groups of each subset."""
    return np.repeat(np.array(values, dtype=float)[:, None], 2, axis=1)


def loss_signals(losses, first=None, step=200):
    tables = {"loss": flat(losses)} | ({} if first is None else {"first_loss": flat(first)})
    return signals_of(SIZES, step, **tables)


def shares(policy, state):
    return policy.probabilities(state).sum(axis=1)


def after(policy, *updates):
    state = policy.init(SIZES)
    for signals in updates:
        state = policy.update(state, signals)
    return state


@pytest.mark.parametrize("name", ["loss", "doremi", "odm", "dynamixsft", "dynamic-loading", "msft"])
def test_groups_stay_at_their_sizes_and_the_start_is_the_prior(name):
    policy = make_policy(name, prior_temperature=math.inf)
    state = policy.init(SIZES)
    assert shares(policy, state) == pytest.approx(np.full(3, 1 / 3))
    assert shares(policy, policy.init(SIZES, np.array([0.5, 0.3, 0.2]))) == pytest.approx(
        np.full(3, 1 / 3)
    )
    tables = {"loss": flat([1, 2, 3]), "first_loss": flat([2, 2, 2])}
    whole = {"heldout_loss": np.array([1.0, 2.0, 3.0]), "lookahead_gain": np.array([0.1, 0.2, 0.3])}
    state = policy.update(state, signals_of(SIZES, 200, whole=whole, **tables))
    law = policy.probabilities(state)
    inside = law / law.sum(axis=1, keepdims=True)
    assert inside == pytest.approx(SIZES / SIZES.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("name", ["loss", "doremi", "odm", "dynamixsft", "dynamic-loading", "msft"])
def test_given_weights_take_the_place_of_sizes_and_a_weight_of_0_stays_0(name):
    policy = make_policy(name)
    state = policy.init(SIZES, np.array([0.75, 0.25, 0.0]))
    assert shares(policy, state) == pytest.approx([0.75, 0.25, 0.0])
    tables = {"loss": flat([1, 2, 3]), "first_loss": flat([2, 2, 2])}
    whole = {"heldout_loss": np.array([1.0, 2.0, 3.0]), "lookahead_gain": np.array([0.1, 0.2, 0.3])}
    for step in (200, 400, 600):
        state = policy.update(state, signals_of(SIZES, step, whole=whole, **tables))
    assert shares(policy, state)[2] == 0.0


def test_a_tilt_is_computed_in_logarithms_and_spreads_what_it_is_told_to():
    base = np.array([0.5, 0.25, 0.25])
    assert tilted(base, np.log([1.0, 2.0, 4.0])) == pytest.approx([0.25, 0.25, 0.5])
    assert tilted(base, np.array([1e150, 0.0, 0.0]), 0.3) == pytest.approx([0.8, 0.1, 0.1])
    assert tilted(np.array([1.0, 0.0]), np.array([-1e9, 5.0]), 0.5).tolist() == [1.0, 0.0]


# --- loss --------------------------------------------------------------------------------------


def test_loss_is_a_softmax_whatever_the_sizes():
    losses = np.log([1.0, 2.0, 5.0])
    assert shares(Loss(), after(Loss(), loss_signals(losses))) == pytest.approx(
        [0.125, 0.25, 0.625]
    )
    sharp = Loss(temperature=0.5)
    assert shares(sharp, after(sharp, loss_signals(losses))) == pytest.approx(
        np.array([1, 4, 25]) / 30
    )
    mixed = Loss(smoothing=0.3)
    assert shares(mixed, after(mixed, loss_signals(losses))) == pytest.approx(
        [0.1875, 0.275, 0.5375]
    )


def test_an_infinite_temperature_is_uniform():
    policy = Loss(temperature=math.inf)
    assert shares(policy, after(policy, loss_signals([1, 2, 9]))) == pytest.approx([1 / 3] * 3)


def test_the_smallest_temperature_draws_the_highest_loss_only():
    policy = Loss(temperature=1e-320)
    assert shares(policy, after(policy, loss_signals([1, 2, 9]))).tolist() == [0, 0, 1]


def test_an_unknown_loss_is_the_last_known_or_else_the_mean():
    policy = Loss()
    state = after(policy, loss_signals(np.log([1.0, 4.0, NAN])))
    assert shares(policy, state) == pytest.approx(np.array([1, 4, 2]) / 7)
    assert "1 of 3 subsets: loss not measured" in policy.explain(state)["notes"][0][1]
    state = policy.update(state, loss_signals(np.log([NAN, NAN, 5.0])))
    assert shares(policy, state) == pytest.approx([0.1, 0.4, 0.5])


def test_without_any_loss_nothing_moves():
    policy = Loss()
    state = after(policy, loss_signals([NAN] * 3))
    assert (policy.probabilities(state) == policy.probabilities(policy.init(SIZES))).all()
    assert policy.explain(state)["notes"][0][0] == "unknown-reward"


def test_groups_count_by_size_not_by_how_often_they_were_drawn():
    signals = signals_of(SIZES, loss=np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]]))
    policy = Loss()
    rewards = policy.explain(policy.update(policy.init(SIZES), signals))["global"]["rewards"]
    assert rewards == pytest.approx([2.0, 2.0, 3.0])


# --- doremi ------------------------------------------------------------------------------------


def test_doremi_multiplies_by_the_exponential_of_the_excess_and_mixes():
    policy = DoReMi(prior_temperature=math.inf)
    state = after(policy, loss_signals(np.log([2.0, 1.0, 1.0]), first=np.log([2.0, 2.0, 4.0])))
    # Excess ln 1, ln 1/2, ln 1/4: 4 : 2 : 1.
    expected = (1 - 1e-3) * np.array([4, 2, 1]) / 7 + 1e-3 / 3
    assert shares(policy, state) == pytest.approx(expected)
    state = policy.update(state, loss_signals([1, 1, 1], first=[1, 1, 1]))
    assert shares(policy, state) == pytest.approx((1 - 1e-3) * expected + 1e-3 / 3)


def test_clipped_as_in_the_source_only_losses_above_the_first_count():
    signals = loss_signals([1.0, 2.0, 2.0 + math.log(3.0)], first=[2.0, 2.0, 2.0])
    policy = DoReMi(clip=True, smoothing=0.0, prior_temperature=math.inf)
    assert shares(policy, after(policy, signals)) == pytest.approx([0.2, 0.2, 0.6])
    free = DoReMi(smoothing=0.0, prior_temperature=math.inf)
    assert shares(free, after(free, signals))[0] < 0.2


def test_eta_is_the_power_of_the_step():
    signals = loss_signals(np.log([1.0, 2.0, 2.0]), first=np.log([2.0, 2.0, 2.0]))
    policy = DoReMi(eta=2.0, smoothing=0.0, prior_temperature=math.inf)
    assert shares(policy, after(policy, signals)) == pytest.approx(np.array([1, 4, 4]) / 9)


def test_doremi_needs_both_losses_of_a_cell():
    policy = DoReMi()
    state = after(policy, loss_signals([1, 2, 3]))
    assert (policy.probabilities(state) == policy.probabilities(policy.init(SIZES))).all()
    assert policy.explain(state)["notes"][0][1].startswith("3 of 3 subsets: excess loss")


def test_smoothing_keeps_every_subset_alive():
    policy, signals = DoReMi(), loss_signals([0.0, 3.0, 3.0], first=[9.0, 3.0, 3.0])
    state = after(policy, *[signals] * 50)
    assert shares(policy, state)[0] == pytest.approx(1e-3 / 3, rel=1e-2)


# --- odm ---------------------------------------------------------------------------------------


def test_exploration_is_uniform_first_and_fades_with_steps():
    assert exploration(3, 0) == 1 / 3
    assert exploration(3, 3) == 1 / 3  # until t = K ln K = 3.3
    assert exploration(3, 4) == pytest.approx(math.sqrt(math.log(3) / 12))
    assert exploration(3, 10_000) == pytest.approx(math.sqrt(math.log(3) / 30_000))
    assert exploration(1, 5) == 0.0


START = np.array([0.6, 0.2, 0.2])
KEPT = (1 - 0.1 * START) ** 200
"""What 200 steps, each of which draws one subset, leave of an old reward on average."""


def test_odm_pays_the_loss_over_the_share_and_explores():
    policy = ODM()
    state = after(policy, loss_signals([1.0, 2.0, 3.0]))
    rewards = (1 - KEPT) * np.array([1.0, 2.0, 3.0]) / START
    assert state["rewards"] == pytest.approx(rewards)
    now, before = exploration(3, 200), exploration(3, 199)
    powers = np.exp(before * rewards)
    expected = (1 - 3 * now) * powers / powers.sum() + now
    assert shares(policy, state) == pytest.approx(expected)
    state = policy.update(state, loss_signals([1.0, 1.0, 1.0], step=400))
    kept = (1 - 0.1 * expected) ** 200
    assert state["rewards"] == pytest.approx(kept * rewards + (1 - kept) / expected)


def test_odm_pays_a_small_subset_at_the_pace_of_its_draws():
    """Once a step, as the source does it, or once in 20 steps: the same on average."""
    generator = np.random.default_rng(0)
    losses, alpha = np.array([1.0, 2.0, 3.0]), 0.9
    running = np.zeros((20_000, 3))
    for _ in range(20):
        drawn = generator.choice(3, p=START, size=len(running))
        rows = np.arange(len(running))
        paid = alpha * running[rows, drawn] + (1 - alpha) * (losses / START)[drawn]
        running[rows, drawn] = paid
    state = after(ODM(update_interval=20), loss_signals(losses, step=20))
    assert state["rewards"] == pytest.approx(running.mean(axis=0), rel=0.01)


def test_during_the_warm_up_rewards_are_gathered_and_shares_wait():
    policy = ODM(warmup_steps=400)
    state = after(policy, loss_signals([1, 2, 3]), loss_signals([1, 2, 3], step=400))
    assert shares(policy, state) == pytest.approx([0.6, 0.2, 0.2])
    assert state["rewards"] == pytest.approx((1 - KEPT**2) * np.array([1, 2, 3]) / START)
    state = policy.update(state, loss_signals([1, 2, 3], step=600))
    assert shares(policy, state)[2] > 0.3


def test_a_subset_that_was_not_drawn_keeps_its_reward():
    policy = ODM()
    state = after(policy, loss_signals([1, 2, 3]), loss_signals([NAN, 2, 3], step=400))
    assert state["rewards"][0] == pytest.approx((1 - KEPT[0]) / 0.6)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("loss", "temperature", 0),
        ("loss", "smoothing", 1.5),
        ("doremi", "eta", -1),
        ("doremi", "clip", "yes"),
        ("doremi", "smoothing", None),
        ("odm", "alpha", 1.1),
        ("odm", "warmup_steps", -1),
        ("odm", "prior_temperature", 0),
    ],
)
def test_settings_out_of_range_are_refused(name, field, value):
    with pytest.raises(ConfigError, match=f"policy {name}: {field} is .*; allowed: "):
        make_policy(name, {field: value})
