"""HBO: worked updates, presets, ablations, intervals, and rewards that misbehave."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import HBO, POLICIES, make_policy
from hbo.policies.actor import Actor, reinforce_step
from tests.policies.signal_cases import WILD, every_signal, random_signals, signals_of

SIZES = np.array([[6, 6], [3, 3], [2, 2]])
NAN = np.nan
PLAIN = {
    "global_reward": "gradient-norm",
    "reward_power": 1.0,
    "reward_clip": None,
    "ema_alpha": None,
    "shrinkage": 0.0,
    "prior_pull": 0.0,
    "repeat_scale": None,
    "floor": 0.0,
    "max_ratio": None,
}
"""The closed-form step and nothing else."""


def subsets(law):
    return law.sum(axis=1)


def groups(law):
    return law / law.sum(axis=1, keepdims=True)


def after(policy, *signals, sizes=SIZES):
    state = policy.init(sizes)
    for each in signals:
        state = policy.update(state, each)
    return state


def norms(values, step=200, **more):
    return signals_of(SIZES, step, gradient_norm=np.array(values)[:, None] * np.ones(2), **more)


# --- worked updates ----------------------------------------------------------------------------


def test_the_closed_form_update_by_hand():
    policy = HBO(**PLAIN, rate=0.5)
    ratios = [[0.9, 0.3], [0.5, 0.5], [0.2, 0.6]]
    law = policy.probabilities(after(policy, norms([1, 2, 5], perplexity_ratio=ratios)))
    prior = SIZES.sum(axis=1) / SIZES.sum()
    assert subsets(law) == pytest.approx(0.5 * prior + 0.5 * np.array([1, 2, 5]) / 8)
    expected = [[0.625, 0.375], [0.5, 0.5], [0.375, 0.625]]
    assert groups(law) == pytest.approx(np.array(expected))


def test_prior_pull_ends_between_reward_and_prior():
    policy = HBO(**{**PLAIN, "prior_pull": 0.25}, local_actor=False)
    state = after(policy, *[norms([1, 1, 2])] * 60)
    prior = SIZES.sum(axis=1) / SIZES.sum()
    expected = 0.75 * np.array([0.25, 0.25, 0.5]) + 0.25 * prior
    assert subsets(policy.probabilities(state)) == pytest.approx(expected, abs=1e-9)


def test_the_default_pays_the_square_root_of_the_heldout_loss():
    policy = HBO(local_actor=False)
    assert policy.needs == {"loss", "unseen_loss"}
    seen = signals_of(SIZES, 0, whole={"unseen_loss": [0.25, 1.0, 4.0]}, loss=np.ones((3, 2)))
    law = policy.probabilities(after(policy, seen))
    assert subsets(law) == pytest.approx([0.5 / 3.5, 1 / 3.5, 2 / 3.5])  # at once, and at step 0


@pytest.mark.parametrize("reward", ["heldout-loss", "loss"])
def test_training_loss_is_paid_where_nothing_is_held_out(reward):
    policy = HBO(local_actor=False, shrinkage=0.0, global_reward=reward)
    loss = np.array([0.25, 1.0, 4.0])[:, None] * np.ones(2)
    law = policy.probabilities(after(policy, signals_of(SIZES, 0, loss=loss)))
    assert subsets(law) == pytest.approx([0.5 / 3.5, 1 / 3.5, 2 / 3.5])


def test_a_draw_of_a_repeated_subset_is_worth_less():
    policy = HBO(local_actor=False, repeat_scale=4.0, floor=0.0)
    seen = signals_of(SIZES, 200, whole={"unseen_loss": [1.0, 1.0, 1.0]})
    seen = replace(seen, draws=np.array([[12, 12], [3, 3], [40, 8]]))  # 2, 1 and 12 passes
    law = policy.probabilities(after(policy, seen))
    worth = np.exp([-0.5, -0.25, -3.0])
    assert subsets(law) == pytest.approx(worth / worth.sum())
    plain = HBO(local_actor=False, repeat_scale=None)
    assert subsets(plain.probabilities(after(plain, seen))) == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_a_subset_that_is_never_drawn_is_not_the_least_repeated():
    policy = HBO(local_actor=False, floor=0.0)
    seen = signals_of(SIZES, 200, whole={"unseen_loss": [1.0, 1.0, 1.0]})
    seen = replace(seen, draws=np.array([[10**6, 10**6], [10**6, 10**6], [0, 0]]) * SIZES)
    state = policy.update(policy.init(SIZES, np.array([2.0, 1.0, 0.0])), seen)
    assert subsets(policy.probabilities(state)) == pytest.approx([0.5, 0.5, 0.0])


def test_a_subset_repeated_beyond_all_measure_falls_to_its_floor():
    policy = HBO(local_actor=False)
    seen = signals_of(SIZES, 200, whole={"unseen_loss": [1.0, 1.0, 1.0]})
    seen = replace(seen, draws=np.array([[1, 1], [1, 1], [10**9, 10**9]]))
    law = subsets(policy.probabilities(after(policy, seen)))
    assert law[2] == pytest.approx(0.2 * 4 / 22)
    assert law[0] == pytest.approx(law[1], rel=0.1)


def test_hbo_paper_pays_equation_7_and_8_to_adam():
    policy = make_policy("hbo-paper")
    assert policy.needs == {"batch_gradient_norm", "perplexity_ratio"}
    ratios = np.array([[4.0, 1.0], [1.0, 1.0], [1.0, 4.0]])
    seen = signals_of(SIZES, whole={"batch_gradient_norm": [3, 2, 1]}, perplexity_ratio=ratios)
    law = policy.probabilities(after(policy, seen))
    by_hand = reinforce_step(Actor.start(SIZES.sum(axis=1) / 22), np.array([3.0, 2.0, 1.0]))
    assert subsets(law) == pytest.approx(by_hand.probabilities())
    expected = [[0.50993, 0.49007], [0.5, 0.5], [0.49007, 0.50993]]
    assert groups(law) == pytest.approx(np.array(expected), abs=5e-6)


def test_hbo_paper_follows_rewards_through_forty_updates():
    policy = make_policy("hbo-paper", global_actor=False)
    ratios = np.array([[4.0, 1.0]] * 3)
    state = after(policy, *[signals_of(SIZES, perplexity_ratio=ratios)] * 40)
    expected = np.array([[0.77347, 0.22653]] * 3)
    assert groups(policy.probabilities(state)) == pytest.approx(expected, abs=5e-6)


def test_hbo_released_starts_from_a_fit_and_pays_example_norms():
    policy = make_policy("hbo-released")
    assert policy.needs == {"gradient_norm", "perplexity_ratio"}
    state = policy.init(SIZES)
    prior = SIZES.sum(axis=1) / SIZES.sum()
    assert subsets(policy.probabilities(state)) == pytest.approx(prior, abs=5e-5)
    assert state["actors"]["global"]["steps"] > 1000
    assert subsets(policy.probabilities(state)).tolist() != prior.tolist()


def test_four_local_updates_are_four():
    ratios = np.array([[4.0, 1.0]] * 3)
    seen = signals_of(SIZES, perplexity_ratio=ratios)
    once = make_policy("hbo-paper", global_actor=False)
    four = make_policy("hbo-paper", global_actor=False, local_updates_per_interval=4)
    assert four.probabilities(after(four, seen)) == pytest.approx(
        once.probabilities(after(once, *[seen] * 4))
    )


# --- switching parts off -----------------------------------------------------------------------


def test_rate_zero_is_the_prior_to_the_bit():
    still, prop = make_policy("hbo", rate=0.0), make_policy("prop")
    state = still.init(SIZES)
    for step in range(1, 5):
        state = still.update(state, random_signals(SIZES, step, step=200 * step))
        law = still.probabilities(state)
        assert (law == prop.probabilities(prop.init(SIZES))).all()


@pytest.mark.parametrize("name", ["hbo", "hbo-paper", "hbo-released"])
def test_an_actor_that_is_off_stays_at_its_prior_and_needs_nothing(name):
    prior = SIZES.sum(axis=1) / SIZES.sum()
    local_only = make_policy(name, global_actor=False)
    law = local_only.probabilities(after(local_only, random_signals(SIZES, 1)))
    assert subsets(law) == pytest.approx(prior, abs=1e-15)
    assert np.abs(groups(law) - 0.5).max() > 1e-4
    assert local_only.needs == {"perplexity_ratio"}
    global_only = make_policy(name, local_actor=False)
    law = global_only.probabilities(after(global_only, random_signals(SIZES, 1)))
    assert groups(law) == pytest.approx(np.full((3, 2), 0.5), abs=1e-15)
    assert np.abs(subsets(law) - prior).max() > 1e-4
    assert "perplexity_ratio" not in global_only.needs
    assert make_policy(name, global_actor=False, local_actor=False).needs == set()


def test_the_prior_temperature_and_weights_set_the_start():
    policy = HBO(prior_temperature=float("inf"))
    assert subsets(policy.probabilities(policy.init(SIZES))) == pytest.approx(np.ones(3) / 3)
    weights = np.array([0.5, 0.1, 0.4])
    law = HBO().probabilities(HBO().init(SIZES, weights))
    assert subsets(law) == pytest.approx(weights)


# --- when --------------------------------------------------------------------------------------


def test_levels_have_their_own_intervals():
    policy = HBO(global_interval=100, local_interval=40)
    assert policy.interval == 20
    state = policy.init(SIZES)
    changed = {"global": [], "local": []}
    for step in range(20, 220, 20):
        before = state["actors"]
        state = policy.update(state, random_signals(SIZES, step, step=step))
        for level, steps in changed.items():
            if state["actors"][level] != before[level]:
                steps.append(step)
    assert changed == {"global": [100, 200], "local": [40, 80, 120, 160, 200]}


def test_rewards_seen_between_updates_are_not_lost():
    policy = HBO(**{**PLAIN, "ema_alpha": 0.5}, global_interval=40, local_interval=20, rate=1.0)
    state = after(policy, norms([1, 1, 1], step=20), norms([1, 1, 3], step=40))
    assert subsets(policy.probabilities(state)) == pytest.approx([0.25, 0.25, 0.5])


def test_an_update_before_the_first_step_counts_only_where_asked_for():
    start = random_signals(SIZES, 0, step=0)
    waits = HBO(update_at_start=False)
    assert after(waits, start) == waits.init(SIZES)
    eager = HBO()
    moved = after(eager, start)
    assert moved["actors"] != eager.init(SIZES)["actors"]
    assert moved["updates"] == 0


# --- rewards that misbehave --------------------------------------------------------------------


def test_an_unknown_reward_keeps_the_last_known_one():
    policy = HBO(**PLAIN, rate=1.0, local_actor=False)
    state = after(policy, norms([1, 1, 2]), norms([2, 1, NAN]))
    assert subsets(policy.probabilities(state)) == pytest.approx([0.4, 0.2, 0.4])


def test_a_reward_never_known_is_paid_the_mean_and_noted():
    policy = HBO(**PLAIN, rate=1.0, local_actor=False)
    state = after(policy, norms([1, NAN, 3]))
    assert subsets(policy.probabilities(state)) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    said = policy.explain(state)
    assert said["global"] == {
        "rewards": [1.0, None, 3.0],
        "errors": [pytest.approx(0.0387, abs=1e-4), None, pytest.approx(0.0565, abs=1e-4)],
        "paid": [1.0, 2.0, 3.0],
    }
    text = "1 of 3 global rewards never measured; the mean stands in"
    assert said["notes"] == [["unknown-reward", text]]
    assert "local" not in said


@pytest.mark.parametrize(
    ("wild", "code"),
    [
        ("none", "unknown-reward"),
        ("zero", "zero-reward"),
        ("negative", "negative-reward"),
        ("infinite", "infinite-reward"),
        ("some huge", "huge-reward"),
    ],
)
def test_rewards_that_cannot_be_used_are_noted(wild, code):
    policy = make_policy("hbo-paper", reward_clip=None)
    with np.errstate(all="ignore"):
        state = after(policy, every_signal(SIZES, WILD[wild](SIZES)))
    assert code in {note[0] for note in policy.explain(state)["notes"]}


@pytest.mark.parametrize("wild", ["none", "zero", "negative", "infinite"])
@pytest.mark.parametrize("name", ["hbo", "hbo-paper"])
def test_without_a_usable_reward_nothing_moves(name, wild):
    policy = make_policy(name)
    start = policy.probabilities(policy.init(SIZES))
    with np.errstate(all="ignore"):
        state = after(policy, every_signal(SIZES, WILD[wild](SIZES)))
    assert (policy.probabilities(state) == start).all()


def test_an_actor_that_knows_one_arm_of_many_stays():
    policy = HBO(**PLAIN, rate=1.0, local_actor=False)
    state = after(policy, norms([7, NAN, NAN]))
    assert (policy.probabilities(state) == policy.probabilities(policy.init(SIZES))).all()


def test_one_wild_ratio_cannot_carry_a_group_away():
    ratios = [[0.5, 400.0], [0.5, 0.5], [0.5, 0.5]]
    seen = norms([1, 1, 1], perplexity_ratio=ratios)
    safe, paper = HBO(shrinkage=0.0), HBO(**PLAIN, rate=1.0)
    # Clipped to a quarter of the median at least, then its root: 20 : sqrt(200.25 / 4).
    assert groups(safe.probabilities(after(safe, seen)))[0, 1] == pytest.approx(0.73867, abs=1e-5)
    assert groups(paper.probabilities(after(paper, seen)))[0, 1] > 0.99


def test_smoothing_as_the_released_option_starts_from_one():
    policy = HBO(**{**PLAIN, "ema_alpha": 0.9}, ema_level="global", ema_start=1.0)
    state = after(policy, norms([2, 4, 6], perplexity_ratio=np.full((3, 2), 0.5)))
    assert state["memory"]["global"]["rewards"] == pytest.approx([1.9, 3.7, 5.5])
    assert state["memory"]["local"]["rewards"] == [[0.5, 0.5]] * 3


def test_local_rewards_are_normalised_where_asked_for():
    ratios = np.array([[0.9, 0.3], [0.5, 0.5], [0.2, 0.6]])
    policy = make_policy("hbo-released", global_actor=False)
    state = after(policy, signals_of(SIZES, perplexity_ratio=ratios))
    expected = ratios / ratios.mean(axis=1, keepdims=True)
    assert np.array(state["memory"]["local"]["rewards"]) == pytest.approx(expected)
    assert policy.explain(state)["local"]["rewards"] == ratios.tolist()


# --- bounds ------------------------------------------------------------------------------------


def test_floors_and_caps_hold_against_any_reward():
    sizes = np.array([[500, 500], [2, 2], [100, 100]])
    prior = sizes.sum(axis=1) / sizes.sum()
    policy = HBO(floor=0.4, max_ratio=5.0, rate=1.0, prior_pull=0.0, reward_clip=None)
    for high in range(3):
        values = np.full((3, 2), 1e-6)
        values[high] = 1e6
        state = after(policy, every_signal(sizes, values), sizes=sizes)
        law = subsets(policy.probabilities(state))
        assert law.sum() == pytest.approx(1.0, abs=1e-12)
        assert (law >= 0.4 * prior - 1e-9).all()
        assert (law <= np.minimum(5 * prior, 1.0) + 1e-9).all()


def test_a_uniform_floor_lifts_tiny_subsets_above_their_cap():
    sizes = np.array([[500, 500], [2, 2]])
    policy = HBO(floor=0.5, floor_reference="uniform", max_ratio=2.0, rate=1.0, prior_pull=0.0)
    state = after(policy, every_signal(sizes, [[1.0, 1.0], [1e-3, 1e-3]]), sizes=sizes)
    assert subsets(policy.probabilities(state)) == pytest.approx([0.75, 0.25], abs=1e-9)


def test_empty_cells_stay_empty_under_every_rule():
    sizes = np.array([[4, 4, 3], [1, 0, 0], [1, 1, 0]])
    for rule in ("closed-form", "adam", "sgd"):
        policy = HBO(step_rule=rule)
        law = policy.probabilities(after(policy, *[random_signals(sizes, 2)] * 3, sizes=sizes))
        assert (law[sizes == 0] == 0).all()
        assert (law[sizes > 0] > 0).all()


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("rate", 2, "a number from 0 to 1"),
        ("rate", "0.5", r"it is text: remove the quotes.*a number from 0 to 1"),
        ("prior_pull", -0.1, "a number from 0 to 1"),
        ("shrinkage", float("nan"), "a number from 0 to 1"),
        ("reward_clip", 0.5, "a number from 1, or nothing"),
        ("ema_alpha", 0, "a number above 0 to 1, or nothing"),
        ("repeat_scale", 0, "a number above 0, or nothing"),
        ("max_ratio", 0.9, "a number from 1, or nothing"),
        ("global_interval", 0, "a whole number from 1, or nothing"),
        ("inner_steps", 1.5, "a whole number from 0"),
        ("global_actor", 1, "true, false"),
        ("step_rule", "adamm", "nearest: adam; allowed: closed-form, adam, sgd"),
        ("global_reward", "gradient_norm", "nearest: gradient-norm; allowed: batch-gradient-norm"),
        ("local_reward", "cosine", "allowed: relative-perplexity, perplexity, loss"),
        ("floor_reference", "none", "allowed: prior, uniform"),
        ("actor_learning_rate", float("inf"), "a number from 0"),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(field, value, allowed):
    with pytest.raises(ConfigError, match=f"policy hbo: {field} is .*{allowed}"):
        make_policy("hbo", {field: value})


def test_every_field_has_a_default_under_every_preset():
    names = {field.name for field in fields(HBO)}
    for preset in ("hbo", "hbo-paper", "hbo-released"):
        assert set(POLICIES[preset].fields) == names
    assert POLICIES["hbo"]() == HBO()


def test_the_state_of_a_thousand_subsets_is_plain():
    sizes = np.full((1000, 4), 25)
    state = after(HBO(), random_signals(sizes, 0), sizes=sizes)
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_an_update_needs_only_what_its_actors_are_paid():
    policy = HBO(global_interval=6, local_interval=4)
    assert policy.interval == 2
    assert policy.needs_at(0) == policy.needs_at(12) == policy.needs
    assert policy.needs_at(2) == frozenset()
    assert policy.needs_at(4) == {"perplexity_ratio"}
    assert policy.needs_at(6) == {"loss", "unseen_loss"}
