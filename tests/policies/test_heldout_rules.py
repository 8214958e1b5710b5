"""Policies that are guided by held-out losses: dynamic-loading and msft."""

import math

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import MSFT, DynamicLoading, make_policy
from tests.policies.signal_cases import signals_of

SIZES = np.array([[30, 30], [10, 10], [5, 15]])
NAN = np.nan


def heldout(*losses, step=200):
    return signals_of(SIZES, step, whole={"heldout_loss": np.array(losses, dtype=float)})


def shares(policy, state):
    return policy.probabilities(state).sum(axis=1)


def after(policy, *updates):
    state = policy.init(SIZES)
    for signals in updates:
        state = policy.update(state, signals)
    return state


# --- dynamic-loading ---------------------------------------------------------------------------


def test_dynamic_loading_multiplies_by_the_exponential_of_what_is_above_target():
    policy = DynamicLoading(
        target_losses=[1.0, 1.0, 1.0], smoothing=0.0, prior_temperature=math.inf
    )
    state = after(policy, heldout(0.3, 1.0 + math.log(2), 1.0 + math.log(5)))
    assert shares(policy, state) == pytest.approx([0.125, 0.25, 0.625])
    state = policy.update(state, heldout(1.0, 1.0, 1.0 + math.log(2)))
    assert shares(policy, state) == pytest.approx(np.array([1, 2, 10]) / 13)


def test_reaching_every_target_keeps_the_shares_but_for_the_smoothing():
    policy = DynamicLoading(target_losses=(2, 2, 2), smoothing=0.3)
    state = after(policy, heldout(1.0, 1.5, 0.5))
    assert shares(policy, state) == pytest.approx([0.52, 0.24, 0.24])


def test_targets_are_a_fraction_of_the_losses_before_the_first_step():
    policy = DynamicLoading(smoothing=0.0)
    assert policy.update_at_start
    state = after(policy, heldout(2.0, 4.0, 3.0, step=0))
    assert state["targets"] == [1.0, 2.0, 1.5]
    assert shares(policy, state) == pytest.approx([0.6, 0.2, 0.2])  # step 0 only measures
    state = policy.update(state, heldout(1.0, 2.0 + math.log(3), 1.0))
    assert state["targets"] == [1.0, 2.0, 1.5]
    assert shares(policy, state) == pytest.approx([0.6 / 1.4, 0.6 / 1.4, 0.2 / 1.4])


def test_given_targets_need_no_measurement_at_the_start():
    assert not DynamicLoading(target_losses=[1, 2]).update_at_start


def test_a_subset_that_was_not_measured_counts_with_its_last_loss():
    policy = DynamicLoading(target_losses=(1, 1, 1), smoothing=0.0, prior_temperature=math.inf)
    state = after(policy, heldout(1, 1, 1 + math.log(2)), heldout(1, NAN, NAN))
    assert shares(policy, state) == pytest.approx(np.array([1, 1, 4]) / 6)
    assert "2 of 3 subsets: held-out loss" in policy.explain(state)["notes"][0][1]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("1,2", "target_losses is '1,2'"),
        ([], "target_losses is"),
        ([1, -1, 1], "an entry of target_losses is -1"),
        ([1, "2", 1], "an entry of target_losses is '2'"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(ConfigError, match=message):
        DynamicLoading(target_losses=targets)


def test_targets_must_be_as_many_as_subsets():
    with pytest.raises(ConfigError, match="target_losses has 2 entries for 3 subsets"):
        DynamicLoading(target_losses=[1, 2]).init(SIZES)


# --- msft --------------------------------------------------------------------------------------


def test_a_subset_stops_when_its_loss_rose_often_enough_and_never_returns():
    policy = MSFT(patience=2, min_rise=0.1)
    state = after(policy, heldout(1, 1, 1), heldout(0.9, 1.2, 1.05))
    assert shares(policy, state) == pytest.approx([0.6, 0.2, 0.2])
    state = policy.update(state, heldout(0.8, 1.2, 1.3))
    assert shares(policy, state) == pytest.approx([0.75, 0.0, 0.25])
    assert policy.explain(state)["notes"] == [
        ["subset-stopped", "1 of 3 subsets stopped: held-out loss rose; still drawn: 2"]
    ]
    state = policy.update(state, heldout(0.8, 0.1, 0.9))  # its count of one rise is broken off
    assert shares(policy, state) == pytest.approx([0.75, 0.0, 0.25])
    assert policy.explain(state)["notes"] == []


def test_rises_must_follow_one_another_and_a_missing_measurement_breaks_nothing():
    policy = MSFT(patience=2, min_rise=0.0)
    state = after(policy, heldout(1, 1, 1), heldout(1, 1.1, 1.1), heldout(1, 1, NAN))
    assert shares(policy, state) == pytest.approx([0.6, 0.2, 0.2])
    state = policy.update(state, heldout(1, 1.1, 1.1))
    assert shares(policy, state) == pytest.approx([0.75, 0.25, 0.0])


def test_the_last_subset_is_never_stopped():
    policy = MSFT(patience=1)
    state = after(policy, heldout(1, 1, 1), heldout(3, 2, 4))
    assert shares(policy, state) == pytest.approx([0.0, 1.0, 0.0])  # it rose least
    codes = [code for code, _ in policy.explain(state)["notes"]]
    assert codes == ["last-subset", "subset-stopped"]
    state = policy.update(state, heldout(3, 9, 4))
    assert shares(policy, state) == pytest.approx([0.0, 1.0, 0.0])


def test_a_fall_is_measured_from_the_lowest_loss():
    policy = MSFT(patience=1, min_rise=0.05)
    state = after(policy, heldout(1, 1, 1), heldout(1, 0.5, 1), heldout(1, 0.54, 1))
    assert shares(policy, state)[1] == 0.0


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("msft", "patience", 0),
        ("msft", "min_rise", -0.1),
        ("dynamic-loading", "target_fraction", -1),
        ("dynamic-loading", "smoothing", 2),
    ],
)
def test_settings_out_of_range_are_refused(name, field, value):
    with pytest.raises(ConfigError, match=f"policy {name}: {field} is .*; allowed: "):
        make_policy(name, {field: value})
