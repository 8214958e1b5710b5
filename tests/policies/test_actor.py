"""The actor against worked numbers and its own definitions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.policies.actor import Actor, closed_form_step, fit_to_prior, reinforce_step

REWARDS = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=6).map(np.array)


def uniform(arms):
    return Actor.start(np.full(arms, 1.0 / arms))


def updated(rewards, updates=1, **settings):
    actor = uniform(len(rewards))
    for _ in range(updates):
        actor = reinforce_step(actor, np.asarray(rewards, dtype=float), **settings)
    return actor.probabilities()


@pytest.mark.parametrize(
    ("rewards", "updates", "expected"),
    [
        ([4, 1], 1, [0.50993, 0.49007]),
        ([4, 1], 40, [0.77347, 0.22653]),
        ([4, 1, 1, 1], 1, [0.25754, 0.24749, 0.24749, 0.24749]),
    ],
)
def test_released_style_updates_end_at_the_worked_numbers(rewards, updates, expected):
    assert updated(rewards, updates) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_path_of_adam_does_not_depend_on_the_scale_of_rewards(scale):
    for updates in (1, 5):
        plain = updated([4.0, 1.0], updates)
        assert updated([4.0 * scale, 1.0 * scale], updates) == pytest.approx(plain, abs=1e-6)


def test_one_update_moves_a_logit_by_at_most_two_hundredths():
    moved = reinforce_step(uniform(3), np.array([9.0, 1.0, 1.0]))
    assert 0.019 < np.abs(moved.logits - uniform(3).logits).max() <= 0.0201


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_the_fixed_point_is_the_normalised_reward(optimiser):
    rewards = np.array([4.0, 1.0, 3.0])
    end = reinforce_step(
        uniform(3), rewards, learning_rate=0.01, inner_steps=4000, optimiser=optimiser
    )
    assert end.probabilities() == pytest.approx(rewards / rewards.sum(), abs=1e-3)


@given(rewards=REWARDS)
def test_at_the_fixed_point_the_gradient_step_stays(rewards):
    there = Actor.start(rewards / rewards.sum())
    moved = reinforce_step(there, rewards, learning_rate=1e-4, inner_steps=1, optimiser="sgd")
    assert moved.probabilities() == pytest.approx(there.probabilities(), abs=1e-12)


def test_a_single_gradient_step_is_the_equation():
    start = Actor.start(np.array([0.7, 0.2, 0.1]))
    rewards = np.array([1.0, 2.0, 4.0])
    by_hand = start.logits.copy()
    for arm in range(3):  # sum_i R_i grad log p_i, arm by arm: grad log p_i = onehot_i - p
        by_hand += 0.05 * rewards[arm] * (np.eye(3)[arm] - start.probabilities())
    moved = reinforce_step(start, rewards, learning_rate=0.05, inner_steps=1, optimiser="sgd")
    assert moved.logits == pytest.approx(by_hand, abs=1e-14)


def test_equal_rewards_flatten_any_prior():
    start = Actor.start(np.array([0.9, 0.06, 0.04]))
    by_adam = reinforce_step(start, np.full(3, 2.5), learning_rate=0.01, inner_steps=2000)
    by_form = start
    for _ in range(60):
        by_form = closed_form_step(by_form, np.full(3, 2.5), rate=0.5)
    assert by_adam.probabilities() == pytest.approx(np.full(3, 1 / 3), abs=1e-3)
    assert by_form.probabilities() == pytest.approx(np.full(3, 1 / 3), abs=1e-12)


@given(rewards=REWARDS, rate=st.floats(0.0, 1.0), scale=st.sampled_from([1e-300, 1.0, 1e300]))
def test_the_closed_form_moves_the_given_fraction_of_the_way(rewards, rate, scale):
    start = uniform(len(rewards))
    target = rewards / rewards.sum()
    moved = closed_form_step(start, rewards * scale, rate=rate).probabilities()
    assert moved == pytest.approx((1 - rate) / len(rewards) + rate * target, abs=1e-9)


def test_the_closed_form_minimises_cross_entropy_with_a_price_on_moving():
    old, target, rate = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.4, 0.5]), 0.3

    def loss(p):
        return -(1 - rate) * (old * np.log(p)).sum() - rate * (target * np.log(p)).sum()

    best = closed_form_step(Actor.start(old), 7 * target, rate=rate).probabilities()
    generator = np.random.default_rng(0)
    others = np.abs(best + 0.02 * generator.normal(size=(500, 3)))
    others /= others.sum(axis=1, keepdims=True)
    assert all(loss(best) < loss(other) for other in others)


def test_prior_pull_puts_the_fixed_point_between_reward_and_prior():
    prior, rewards = np.array([0.8, 0.2]), np.array([1.0, 1.0])
    actor = Actor.start(np.array([0.5, 0.5]))
    for _ in range(80):
        actor = closed_form_step(actor, rewards, rate=0.5, prior=prior, prior_pull=0.25)
    assert actor.probabilities() == pytest.approx([0.75 * 0.5 + 0.25 * 0.8, 0.425], abs=1e-12)


def test_a_reward_of_zero_leaves_a_finite_logit():
    actor = closed_form_step(uniform(2), np.array([1.0, 0.0]), rate=1.0)
    assert np.isfinite(actor.logits).all()
    assert actor.probabilities() == pytest.approx([1.0, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    "step",
    [
        lambda actor, rewards, **more: reinforce_step(actor, rewards, **more),
        lambda actor, rewards, **more: closed_form_step(actor, rewards, rate=0.5, **more),
    ],
)
def test_a_stack_moves_as_its_actors_would_alone(step):
    prior = np.array([[0.5, 0.3, 0.2], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    rewards = np.array([[1.0, 2.0, 3.0], [5.0, 1.0, 9.0], [2.0, 7.0, 7.0]])
    stack = step(Actor.start(prior), rewards, allowed=prior > 0)
    for row in range(3):
        arms = prior[row] > 0
        alone = step(Actor.start(prior[row][arms]), rewards[row][arms]).probabilities()
        together = stack.probabilities(prior > 0)[row]
        assert together[arms] == pytest.approx(alone, abs=1e-14)
        assert (together[~arms] == 0).all()


def test_actors_that_are_not_active_keep_their_whole_state():
    actor = reinforce_step(Actor.start(np.full((2, 2), 0.5)), np.array([[2.0, 1.0], [1.0, 2.0]]))
    moved = reinforce_step(
        actor, np.array([[2.0, 1.0], [1.0, 2.0]]), active=np.array([True, False])
    )
    assert moved.steps.tolist() == [400, 200]
    for name in ("logits", "first", "second"):
        assert (getattr(moved, name)[1] == getattr(actor, name)[1]).all()
        assert (getattr(moved, name)[0] != getattr(actor, name)[0]).any()


def test_state_survives_json_exactly():
    actor = reinforce_step(Actor.start(np.array([0.7, 0.3])), np.array([1.0, 3.0]))
    again = Actor.from_json(json.loads(json.dumps(actor.to_json())))
    for name in ("logits", "first", "second", "steps"):
        assert (getattr(again, name) == getattr(actor, name)).all()
    one, other = (reinforce_step(x, np.array([1.0, 3.0])).logits for x in (actor, again))
    assert (one == other).all()


def test_the_fit_reaches_the_multilingual_prior_and_leaves_its_moments():
    sizes = np.array([273, 102, 49, 15, 12, 6, 1, 0.578])
    prior = sizes / sizes.sum()
    actor = fit_to_prior(prior)
    assert int(actor.steps) == pytest.approx(47_700, abs=100)
    assert ((actor.probabilities() - prior) ** 2).mean() < 1e-10
    moves = []
    for _ in range(3):  # released: 0.074, 0.040, 0.032 instead of 0.02
        moved = reinforce_step(actor, np.ones(8))
        moves.append(np.abs(moved.logits - actor.logits).max())
        actor = moved
    assert moves == pytest.approx([0.074, 0.040, 0.032], abs=5e-4)


def test_the_fit_leaves_out_arms_of_prior_zero_and_stops_where_told():
    prior = np.array([0.75, 0.0, 0.25])
    actor = fit_to_prior(prior)
    assert actor.probabilities(prior > 0) == pytest.approx(prior, abs=3e-5)
    assert int(fit_to_prior(prior, max_steps=10).steps) == 10
