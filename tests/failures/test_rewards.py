"""Every policy, paid with everything that rewards should not be: through the balancer, no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hbo.balancer import Balancer, Update
from hbo.mixture import Mixture
from hbo.policies import POLICIES, make_policy
from hbo.signals import CELL_SIGNALS, EXAMPLE_SIGNALS, WHOLE_SIGNALS

NAMES = ("big", "small", "tiny")
SIZES = np.array([[12, 12, 11], [12, 12, 0], [7, 7, 7]])
REQUIRED: dict[str, dict[str, Any]] = {
    "static": {"weights": [3.0, 2.0, 1.0]},
    "schedule": {"points": [{"step": 0, "weights": [3, 2, 1]}, {"step": 3, "weights": [1, 1, 1]}]},
}
NEEDS_MORE = {"replay"}
"""Policies that read a file: they see no reward at all."""
SHUTS_OUT = {"msft", "curriculum", "loss"}
"""May leave a cell out: by their rule, or where exp(loss) leaves nothing to the others."""
Values = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Subsets of the examples of a step, and ordinary rewards of them -> what is measured."""
REWARDS: dict[str, Values] = {
    "ordinary": lambda subsets, rewards: rewards,
    "equal": lambda subsets, rewards: np.ones(len(rewards)),
    "zero": lambda subsets, rewards: np.zeros(len(rewards)),
    "nan": lambda subsets, rewards: np.full(len(rewards), np.nan),
    "infinite": lambda subsets, rewards: np.full(len(rewards), np.inf),
    "huge": lambda subsets, rewards: np.full(len(rewards), 1e300),
    "one subset huge": lambda subsets, rewards: np.where(subsets == 0, 1e300, rewards),
    "one example huge": lambda subsets, rewards: np.append(1e300, rewards[1:]),
    "negative": lambda subsets, rewards: -rewards,
    "one subset negative": lambda subsets, rewards: np.where(subsets == 1, -5.0, rewards),
    "one subset unknown": lambda subsets, rewards: np.where(subsets == 2, np.nan, rewards),
    "smallest": lambda subsets, rewards: np.full(len(rewards), 5e-324),
}


def balancer_of(policy: str, **fields: Any) -> Balancer:
    return Balancer(
        Mixture(NAMES, SIZES, "data"),
        make_policy(policy, update_interval=2, **REQUIRED.get(policy, {}), **fields),
        seed=3,
        draws_per_step=64,
    )


def steps(balancer: Balancer, values: Values, number: int) -> list[Update]:
    """Steps of a training that measures these values, and the updates that they led to."""
    draw = np.random.default_rng(balancer.step)
    updates = []
    for _ in range(number):
        ids = balancer.advance()
        subsets = balancer.mixture.subset_of(ids)
        measured = values(subsets, draw.random(len(ids)))
        balancer.observe(ids, dict.fromkeys(EXAMPLE_SIGNALS, measured))
        first = [measured[subsets == k][:1] for k in range(len(NAMES))]
        whole = np.array([value[0] if len(value) else np.nan for value in first])
        for name in WHOLE_SIGNALS:
            balancer.observe_whole(name, whole)
        for name in CELL_SIGNALS:
            balancer.observe_whole(name, np.where(SIZES > 0, whole[:, None], np.nan))
        if balancer.due:
            updates.append(balancer.update())
    return updates


def expect_a_law(update: Update, policy: str) -> None:
    for law in (update.after, *update.proposed):
        assert np.isfinite(law).all()
        assert (law >= 0).all()
        assert law.sum() == pytest.approx(1.0, abs=1e-9)
        assert (law[SIZES == 0] == 0).all()
        # Nothing pulls the paper's and the code's actors back: far down, not to 0.
        assert policy in SHUTS_OUT or (law[SIZES > 0] > 0).all(), policy
    json.dumps(update.explanation, allow_nan=False)


@pytest.mark.parametrize("rewards", REWARDS)
@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in NEEDS_MORE])
def test_probabilities_stay_a_distribution_and_the_state_resumes(policy: str, rewards: str):
    balancer = balancer_of(policy)
    updates = steps(balancer, REWARDS[rewards], 6)
    assert len(updates) == 6 // balancer.policy.interval
    # A checkpoint in the middle of such a time can be read again, and goes on as the run did.
    steps(balancer, REWARDS[rewards], 1)
    balancer.observations.gather()
    again = balancer_of(policy)
    saved = balancer.state_dict()
    json.dumps({**saved, "identity": None}, allow_nan=False)  # a temperature may be infinite
    again.load_state_dict(json.loads(json.dumps(saved)))
    ordinary = REWARDS["ordinary"]
    later = steps(balancer, ordinary, 5)
    for update in updates + later:
        expect_a_law(update, policy)
    for one, other in zip(later, steps(again, ordinary, 5), strict=True):
        assert (one.after == other.after).all()


def notes(updates: list[Update]) -> set[str]:
    return {code for update in updates for code, _ in update.explanation.get("notes", ())}


@pytest.mark.parametrize(
    ("rewards", "code"),
    [
        ("zero", "zero-reward"),
        ("nan", "unknown-reward"),
        ("infinite", "unknown-reward"),
        ("huge", "huge-reward"),
        ("negative", "negative-reward"),
        ("one subset unknown", "unknown-reward"),
    ],
)
def test_what_is_not_paid_as_measured_is_noted(rewards: str, code: str):
    assert code in notes(steps(balancer_of("hbo"), REWARDS[rewards], 2))


@pytest.mark.parametrize("rewards", ["zero", "nan", "infinite"])
def test_rewards_that_say_nothing_do_not_move_the_subsets_from_their_prior(rewards: str):
    """What the actor is told is that all arms are alike: no subset is favoured by chance."""
    update = steps(balancer_of("hbo"), REWARDS[rewards], 2)[-1]
    assert update.after == pytest.approx(update.before, abs=1e-12)


def test_an_unknown_subset_is_paid_the_mean_of_the_known():
    update = steps(balancer_of("hbo", repeat_scale=None), REWARDS["one subset unknown"], 2)[-1]
    paid = update.explanation["global"]["paid"]
    assert update.explanation["global"]["rewards"][2] is None
    assert paid[2] == pytest.approx((paid[0] + paid[1]) / 2)
