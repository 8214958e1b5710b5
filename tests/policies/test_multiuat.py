"""MultiUAT: each measure reads its own signal, and more uncertainty is paid more."""

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import make_policy
from hbo.policies.multiuat import MEASURES
from hbo.signals import UNCERTAINTIES
from tests.policies.signal_cases import signals_of

SIZES = np.array([[5, 5], [5, 5]])

SIGNALS = {
    "entropy": "heldout_entropy",
    "end-entropy": "heldout_end_entropy",
    "predicted": "heldout_predicted",
    "expected": "heldout_expected",
    "variance": "heldout_variance",
    "variation": "heldout_variation",
}


def after(policy, *states):
    state = policy.init(SIZES)
    for whole in states:
        state = policy.update(state, signals_of(SIZES, whole=whole))
    return policy.probabilities(state).sum(axis=1)


@pytest.mark.parametrize("measure", SIGNALS)
def test_a_measure_is_paid_by_its_own_signal_to_the_worked_numbers(measure):
    policy = make_policy("multiuat", measure=measure)
    assert policy.needs == policy.needs_at(200) == {SIGNALS[measure]}
    others = {name: [0.1, 0.9] for name in UNCERTAINTIES - policy.needs}
    law = after(policy, others | {SIGNALS[measure]: [0.8, 0.2]})
    assert law == pytest.approx([0.50993, 0.49007], abs=5e-6)


def test_every_measure_has_a_signal_of_its_own():
    assert set(MEASURES) == set(SIGNALS)
    assert set(MEASURES.values()) == UNCERTAINTIES


def test_the_default_is_the_mean_entropy():
    assert make_policy("multiuat") == make_policy("multiuat", measure="entropy")


def test_more_uncertainty_is_more_share_and_as_much_as_its_part_of_the_sum():
    policy = make_policy("multiuat", actor_learning_rate=0.01, inner_steps=4000)
    assert after(policy, {"heldout_entropy": [0.5, 1.5]}) == pytest.approx([0.25, 0.75], abs=1e-3)


def test_equal_uncertainty_ends_at_equal_shares_from_any_prior():
    policy = make_policy("multiuat", actor_learning_rate=0.01, inner_steps=4000)
    sizes = np.array([[9], [1]])
    seen = signals_of(sizes, whole={"heldout_entropy": [0.7, 0.7]})
    law = policy.probabilities(policy.update(policy.init(sizes), seen))
    assert law == pytest.approx(np.full((2, 1), 0.5), abs=1e-3)


def test_passes_that_do_not_differ_say_nothing():
    policy = make_policy("multiuat", measure="variance")
    assert after(policy, {"heldout_variance": [0.0, 0.0]}) == pytest.approx([0.5, 0.5], abs=0)


def test_a_measure_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"measure is 'end_entropy'; nearest: end-entropy; allow"):
        make_policy("multiuat", measure="end_entropy")
