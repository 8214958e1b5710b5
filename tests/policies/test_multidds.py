"""MultiDDS, and what it shares with the other paid actors: worked updates, rewards of any sign."""

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import POLICIES, make_policy
from hbo.policies.actor import Actor, reinforce_step
from hbo.policies.multidds import FIT
from hbo.policies.paid import PaidActor, whole
from tests.policies.signal_cases import signals_of

EVEN = np.array([[2, 6], [6, 2]])
SIZES = np.array([[6, 6], [3, 3], [2, 2]])
PRIOR = SIZES.sum(axis=1) / SIZES.sum()
NAN = np.nan


def after(policy, *cosines, sizes=SIZES):
    state = policy.init(sizes)
    for each in cosines:
        state = policy.update(state, signals_of(sizes, whole={"heldout_cosine": each}))
    return state


def subsets(policy, state):
    return policy.probabilities(state).sum(axis=1)


def logits(state):
    return np.array(state["actor"]["logits"])


# --- worked updates ----------------------------------------------------------------------------


def test_the_worked_numbers_of_one_update_and_of_forty():
    policy = make_policy("multidds")
    assert policy.needs == {"heldout_cosine"}
    once = after(policy, [0.4, 0.1], sizes=EVEN)
    assert subsets(policy, once) == pytest.approx([0.50993, 0.49007], abs=5e-6)
    forty = after(policy, *[[0.4, 0.1]] * 40, sizes=EVEN)
    assert subsets(policy, forty) == pytest.approx([0.77347, 0.22653], abs=5e-6)


def test_groups_keep_their_share_of_the_subset():
    policy = make_policy("multidds")
    law = policy.probabilities(after(policy, [0.4, 0.1], sizes=EVEN))
    assert law / law.sum(axis=1, keepdims=True) == pytest.approx(EVEN / 8)


def test_it_starts_at_the_prior_to_the_bit_and_ends_at_the_normalised_cosines():
    policy = make_policy("multidds", actor_learning_rate=0.01, inner_steps=4000)
    prop = make_policy("prop")
    start = policy.probabilities(policy.init(SIZES))
    assert (start == prop.probabilities(prop.init(SIZES))).all()
    state = after(policy, [0.4, 0.1, 0.3])
    assert subsets(policy, state) == pytest.approx([0.5, 0.125, 0.375], abs=1e-3)


def test_weights_and_temperature_set_the_start():
    policy = make_policy("multidds", prior_temperature=float("inf"))
    assert subsets(policy, policy.init(SIZES)) == pytest.approx(np.ones(3) / 3)
    given = make_policy("multidds").init(SIZES, np.array([0.5, 0.1, 0.4]))
    assert subsets(policy, given) == pytest.approx([0.5, 0.1, 0.4])


# --- cosines below 0 ---------------------------------------------------------------------------


def test_a_negative_cosine_is_paid_as_it_is():
    policy = make_policy("multidds")
    cosines = np.array([0.5, 0.4, -0.2])
    state = after(policy, cosines)
    by_hand = reinforce_step(Actor.start(PRIOR), cosines)
    assert subsets(policy, state) == pytest.approx(by_hand.probabilities(), abs=1e-12)
    said = policy.explain(state)
    assert said["global"]["paid"] == cosines.tolist()
    assert said["notes"] == [["negative-reward", "1 global reward: negative, paid as such"]]


def test_a_subset_with_a_negative_cosine_goes_down_without_end_at_adams_pace():
    policy = make_policy("multidds")
    states = [after(policy, *[[0.5, 0.4, -0.2]] * count) for count in (0, 20, 60)]
    shares = [subsets(policy, state)[2] for state in states]
    assert shares[0] > shares[1] > shares[2] > 0
    fall = logits(states[0])[2] - logits(states[2])[2]
    assert 60 * 0.019 < fall < 60 * 0.0201


@pytest.mark.parametrize("cosines", [[0.1, -0.2, 0.0], [-0.3, -0.3, -0.3], [0.2, -0.2, 0.0]])
def test_cosines_that_sum_to_nothing_leave_the_actor_where_it_is(cosines):
    policy = make_policy("multidds")
    state = after(policy, cosines)
    assert subsets(policy, state) == pytest.approx(PRIOR, abs=1e-15)
    assert [note[0] for note in policy.explain(state)["notes"]] == [
        "negative-reward",
        "zero-reward",
    ]
    moved = policy.update(state, signals_of(SIZES, whole={"heldout_cosine": [0.1, 0.1, 0.3]}))
    assert subsets(policy, moved)[2] > PRIOR[2]


# --- rewards that are not known ----------------------------------------------------------------


def test_an_unknown_cosine_counts_as_the_mean_and_later_as_the_last_one():
    policy = make_policy("multidds")
    state = after(policy, [0.2, NAN, 0.4])
    said = policy.explain(state)
    assert said["global"] == {
        "rewards": [0.2, None, 0.4],
        "errors": [None, None, None],
        "paid": [0.2, pytest.approx(0.3), 0.4],
    }
    text = "1 of 3 global rewards never measured; the mean stands in"
    assert said["notes"] == [["unknown-reward", text]]
    later = policy.update(state, signals_of(SIZES, whole={"heldout_cosine": [NAN, 0.1, NAN]}))
    assert policy.explain(later)["global"]["paid"] == [0.2, 0.1, 0.4]
    assert policy.explain(later)["notes"] == []


def test_one_known_cosine_is_not_enough_to_move():
    policy = make_policy("multidds")
    assert subsets(policy, after(policy, [0.9, NAN, NAN])) == pytest.approx(PRIOR, abs=1e-15)


def test_wild_rewards_of_either_sign_are_cut_and_noted():
    actor = PaidActor(learning_rate=1e-4, inner_steps=200)
    prior = np.array([0.2, 0.2, 0.2, 0.4, 0.0])
    rewards = np.array([1e40, -1e40, np.inf, 1.0, 7.0])
    state = actor.pay(actor.start(prior), whole(rewards))
    assert state["last"]["global"]["paid"][:2] == [1e30, -1e30]
    assert state["last"]["global"]["rewards"][2:] == [None, 1.0, None]
    codes = {code for code, _ in state["last"]["notes"]}
    assert codes == {"infinite-reward", "huge-reward", "negative-reward", "unknown-reward"}
    assert state["shares"][4] == 0.0


# --- the source's fit to the prior -------------------------------------------------------------


def test_the_fit_of_the_source_ends_beside_the_prior_of_small_subsets():
    sizes = np.geomspace(1000, 1, 8).round().astype(int)[:, None]
    policy = make_policy("multidds", prior_fit=True)
    state = policy.init(sizes)
    start, prior = subsets(policy, state), sizes[:, 0] / sizes.sum()
    assert ((start - prior) ** 2).mean() < FIT.tolerance
    assert 3 < start[7] / prior[7] < 5


def test_the_fit_of_the_source_makes_the_first_updates_larger():
    policy = make_policy("multidds", prior_fit=True)
    state, moves = policy.init(SIZES), []
    for _ in range(3):
        before = logits(state)
        state = policy.update(state, signals_of(SIZES, whole={"heldout_cosine": [0.3] * 3}))
        moves.append(np.abs(logits(state) - before).max())
    assert 0.08 > moves[0] > 2 * 0.02 > moves[1] > moves[2] > 0.02


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multidds", "multiuat", "mos", "mos-plus"])
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("actor_learning_rate", 0, "a number above 0"),
        ("inner_steps", 0, "a whole number from 1"),
        ("prior_fit", 1, "true, false"),
        ("prior_temperature", -1, "a number above 0, infinity too"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(name, field, value, allowed):
    with pytest.raises(ConfigError, match=f"policy {name}: {field} is .*{allowed}"):
        make_policy(name, {field: value})


def test_the_defaults_are_those_of_the_sources():
    for name in ("multidds", "multiuat", "mos", "mos-plus"):
        fields = POLICIES[name].fields
        assert (fields["actor_learning_rate"], fields["inner_steps"]) == (1e-4, 200)
        assert fields["prior_temperature"] == 1
