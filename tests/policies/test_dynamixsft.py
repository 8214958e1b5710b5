"""The bandit over look-ahead gains."""

import math

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import DynamixSFT
from tests.policies.signal_cases import signals_of

SIZES = np.array([[30, 30], [10, 10], [5, 15]])
PRIOR = np.array([0.6, 0.2, 0.2])


def gains(*values, loss=(1.0, 1.0, 1.0)):
    table = np.repeat(np.array(loss, dtype=float)[:, None], 2, axis=1)
    return signals_of(SIZES, whole={"lookahead_gain": np.array(values, dtype=float)}, loss=table)


def shares(policy, state):
    return policy.probabilities(state).sum(axis=1)


def test_rewards_are_scaled_averaged_and_tilt_the_prior():
    policy = DynamixSFT(alpha=0.5, beta=4, gamma=0.3)
    state = policy.update(policy.init(SIZES), gains(0.1, 0.2, 0.3))
    assert state["rewards"] == pytest.approx([0.0, 0.25, 0.5])
    powers = PRIOR * np.exp([0.0, 1.0, 2.0])
    assert shares(policy, state) == pytest.approx(0.7 * powers / powers.sum() + 0.1)
    state = policy.update(state, gains(0.3, 0.1, 0.1))
    assert state["rewards"] == pytest.approx([0.5, 0.125, 0.25])
    powers = PRIOR * np.exp([2.0, 0.5, 1.0])  # of the prior again, not of the last shares
    assert shares(policy, state) == pytest.approx(0.7 * powers / powers.sum() + 0.1)


def test_a_gain_counts_as_a_part_of_the_loss():
    policy = DynamixSFT(alpha=0.0)
    state = policy.update(policy.init(SIZES), gains(0.2, 0.2, 0.2, loss=(4.0, 2.0, 1.0)))
    assert policy.explain(state)["global"]["rewards"] == pytest.approx([0.05, 0.1, 0.2])
    assert state["rewards"] == pytest.approx([0.0, 1 / 3, 1.0])


def test_equal_gains_leave_the_prior_but_for_exploration():
    policy = DynamixSFT(gamma=0.0)
    state = policy.update(policy.init(SIZES), gains(0.1, 0.1, 0.1))
    assert shares(policy, state) == pytest.approx(PRIOR)
    explored = DynamixSFT(gamma=0.3)
    state = explored.update(explored.init(SIZES), gains(0.1, 0.1, 0.1))
    assert shares(explored, state) == pytest.approx(0.7 * PRIOR + 0.1)


def test_the_source_needs_many_updates_to_move():
    policy = DynamixSFT()
    state = policy.init(SIZES)
    for _ in range(14):
        state = policy.update(state, gains(0.0, 0.1, 0.2))
    assert state["rewards"][2] == pytest.approx(1 - 0.95**14)  # 0.51


def test_an_unknown_gain_or_loss_leaves_the_running_reward_alone():
    policy = DynamixSFT(alpha=0.5)
    state = policy.update(policy.init(SIZES), gains(0.1, 0.2, 0.3))
    state = policy.update(state, gains(math.nan, 0.2, 0.4))
    assert state["rewards"] == pytest.approx([0.0, 0.125, 0.75])
    state = policy.update(state, gains(0.1, 0.2, 0.4, loss=(math.nan, 1.0, 1.0)))
    assert state["rewards"][0] == 0.0
    before = shares(policy, state)
    assert (shares(policy, policy.update(state, gains(*[math.nan] * 3))) == before).all()


@pytest.mark.parametrize(("field", "value"), [("alpha", 2), ("beta", -1), ("gamma", 1.5)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} is .*; allowed: a number from 0"):
        DynamixSFT(**{field: value})
