"""The actor: a softmax over free logits, and the steps that move it towards its rewards.

Every function works on the last axis: one actor is (A,), a stack of independent actors (R, A). Arms
with a prior of 0 (empty cells) are not ``allowed``: their probability is 0 and their logits stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbo.mixture import FloatArray, IntArray

BoolArray = NDArray[np.bool_]

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
SMALLEST_PROBABILITY = 1e-12
"""Closed-form steps keep an allowed arm at least here, so that its logit stays finite."""


@dataclass(frozen=True, eq=False)
class Actor:
    """State of one actor or of a stack of them; never changed in place.

    Args:
        logits: (..., A) parameters; probabilities are their softmax over the allowed arms.
        first: (..., A) Adam's running mean of gradients.
        second: (..., A) Adam's running mean of squared gradients.
        steps: (...) Adam steps taken so far.

    Example:
        >>> Actor.start(np.array([0.75, 0.25])).probabilities().round(6).tolist()
        [0.75, 0.25]
    """

    logits: FloatArray
    first: FloatArray
    second: FloatArray
    steps: IntArray

    @classmethod
    def start(cls, probabilities: FloatArray) -> Actor:
        """An actor with these probabilities and no history; arms at 0 get logit 0."""
        given = np.asarray(probabilities, dtype=np.float64)
        logits = np.log(np.where(given > 0, given, 1.0))
        zeros = np.zeros_like(given)
        return cls(logits, zeros, zeros, np.zeros(given.shape[:-1], dtype=np.int64))

    def probabilities(self, allowed: BoolArray | None = None) -> FloatArray:
        """(..., A) softmax over the allowed arms; 0 elsewhere."""
        return _softmax(self.logits, _all_arms(self, allowed))

    def to_json(self) -> dict[str, Any]:
        """Nested lists of numbers; floats survive JSON exactly."""
        return {
            "logits": self.logits.tolist(),
            "first": self.first.tolist(),
            "second": self.second.tolist(),
            "steps": self.steps.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Actor:
        """The inverse of ``to_json``."""
        logits, first, second = (
            np.asarray(value[key], dtype=np.float64) for key in ("logits", "first", "second")
        )
        return cls(logits, first, second, np.asarray(value["steps"], dtype=np.int64))


def reinforce_step(
    actor: Actor,
    rewards: FloatArray,
    *,
    learning_rate: float = 1e-4,
    inner_steps: int = 200,
    optimiser: str = "adam",
    allowed: BoolArray | None = None,
    active: BoolArray | None = None,
) -> Actor:
    """Ascend sum_i R_i log p_i: the paper's update of an actor.

    psi <- psi + gamma * sum_i R(i) grad log p_psi(i), with psi ``actor.logits``, R ``rewards``,
    gamma ``learning_rate``. The sum runs over *all* arms and is not weighted by p, so this is
    cross-entropy to the normalised reward: the gradient of -sum_i R_i log p_i is
    p_j sum(R) - R_j, and the fixed point is p* = R / sum R. ``adam`` repeats the step
    ``inner_steps`` times with Adam (betas 0.9, 0.999, epsilon 1e-8), whose moments live on in the
    state; its path does not depend on the scale of the rewards. ``sgd`` repeats the plain step.

    Eq. 6 and Algorithm 1 of arXiv 2505.12300; Adam and 200 inner steps from its released code.

    Args:
        actor: (..., A).
        rewards: (..., A) finite; 0 in arms that are not allowed.
        learning_rate: Step size of the actor, not of the model.
        inner_steps: Gradient steps with the same rewards.
        optimiser: ``adam`` or ``sgd``.
        allowed: (..., A) arms that can be drawn; all by default.
        active: (...) actors to move; the others keep their whole state. All by default.

    Returns:
        The next state.

    Example:
        >>> actor = Actor.start(np.array([0.5, 0.5]))
        >>> reinforce_step(actor, np.array([4.0, 1.0])).probabilities().round(5).tolist()
        [0.50993, 0.49007]
    """
    arms = _all_arms(actor, allowed)
    paid = np.where(arms, rewards, 0.0)
    total = paid.sum(axis=-1, keepdims=True)
    logits, first, second, steps = actor.logits, actor.first, actor.second, actor.steps
    for _ in range(inner_steps):
        gradient = _softmax(logits, arms) * total - paid
        if optimiser == "adam":
            steps = steps + 1
            direction, first, second = _adam(gradient, first, second, steps)
        else:
            direction = gradient
        logits = logits - learning_rate * direction
    return _only(active, actor, Actor(logits, first, second, steps))


def closed_form_step(
    actor: Actor,
    rewards: FloatArray,
    *,
    rate: float,
    prior: FloatArray | None = None,
    prior_pull: float = 0.0,
    allowed: BoolArray | None = None,
    active: BoolArray | None = None,
) -> Actor:
    """Move p the fraction ``rate`` of the way to R / sum R, in one step and without an optimiser.

    p <- (1 - rate) p + rate [(1 - prior_pull) R / sum R + prior_pull q], with R ``rewards`` and q
    ``prior``. It is the exact minimiser of (1 - rate) CE(p_old, p) + rate CE(target, p), CE being
    cross-entropy: the loss that ``reinforce_step`` descends, with KL(p_old || p) as the price of
    moving. Fixed point: (1 - prior_pull) R / sum R + prior_pull q. Adam's state is left as it is.

    Ours; the paper has only the gradient step.

    Args:
        actor: (..., A).
        rewards: (..., A) finite, >= 0. A row whose sum is 0 keeps its probabilities.
        rate: 0 (stay) to 1 (jump).
        prior: (..., A) probabilities pulled to; needed where ``prior_pull`` > 0.
        prior_pull: 0 (rewards alone) to 1 (prior alone).
        allowed: (..., A) arms that can be drawn; all by default.
        active: (...) actors to move. All by default.

    Returns:
        The next state.

    Example:
        >>> actor = Actor.start(np.array([0.5, 0.5]))
        >>> moved = closed_form_step(actor, np.array([4.0, 1.0]), rate=0.5)
        >>> moved.probabilities().round(6).tolist()
        [0.65, 0.35]
    """
    arms = _all_arms(actor, allowed)
    paid = np.where(arms, rewards, 0.0)
    largest = paid.max(axis=-1, keepdims=True)
    paid = paid / np.where(largest > 0, largest, 1.0)  # huge rewards must not overflow in the sum
    total = paid.sum(axis=-1, keepdims=True)
    target = paid / np.where(total > 0, total, 1.0)
    if prior is not None:
        target = (1.0 - prior_pull) * target + prior_pull * prior
    moved = (1.0 - rate) * _softmax(actor.logits, arms) + rate * target
    logits = np.where(arms, np.log(np.maximum(moved, SMALLEST_PROBABILITY)), actor.logits)
    movable = (largest[..., 0] > 0) & (rate > 0)
    next_actor = Actor(logits, actor.first, actor.second, actor.steps)
    return _only(movable if active is None else movable & active, actor, next_actor)


def fit_to_prior(
    prior: FloatArray,
    *,
    learning_rate: float = 1e-4,
    tolerance: float = 1e-10,
    max_steps: int = 200_000,
) -> Actor:
    """Descend the mean squared error between softmax(logits) and ``prior`` with Adam.

    What the released code does before training, from equal logits until the error is below
    ``tolerance``. It ends near log(prior), but Adam's second moment is tiny by then, so the first
    updates afterwards move logits up to 0.074, 0.040, 0.032, ... instead of 0.02.

    Args:
        prior: (A,) probabilities; arms at 0 take no part.
        learning_rate: Step size of Adam.
        tolerance: Mean squared error at which to stop.
        max_steps: Steps after which to stop in any case (ours: with hundreds of arms the fit would
            take millions); the actor then starts where it got to.

    Returns:
        The fitted state, with Adam's moments and step count as the fit left them.
    """
    wanted = prior[prior > 0]
    logits, first, second = (np.zeros_like(wanted) for _ in range(3))
    limit, factor = tolerance * len(wanted), 2.0 / len(wanted)
    beta1, beta2 = ADAM_BETAS
    step, power1, power2 = 0, 1.0, 1.0
    while True:
        # Some 50,000 steps on a short vector: written out in place, because speed decides here.
        # Logits start equal and differ by log-ratios of the prior at most: exp cannot overflow.
        chosen = np.exp(logits)
        chosen /= chosen.sum()
        difference = chosen - wanted
        if difference @ difference < limit or step == max_steps:
            break
        step += 1
        power1 *= beta1
        power2 *= beta2
        gradient = chosen * (difference - chosen @ difference)
        gradient *= factor
        first *= beta1
        first += (1.0 - beta1) * gradient
        second *= beta2
        second += (1.0 - beta2) * (gradient * gradient)
        root = np.sqrt(second / (1.0 - power2))
        root += ADAM_EPSILON
        logits -= (learning_rate / (1.0 - power1)) * first / root
    whole = [_scatter(part, prior > 0) for part in (logits, first, second)]
    return Actor(whole[0], whole[1], whole[2], np.asarray(step, dtype=np.int64))


def _scatter(values: FloatArray, places: BoolArray) -> FloatArray:
    whole = np.zeros(places.shape)
    whole[places] = values
    return whole


def _all_arms(actor: Actor, allowed: BoolArray | None) -> BoolArray:
    return np.ones(actor.logits.shape, dtype=np.bool_) if allowed is None else allowed


def _softmax(logits: FloatArray, allowed: BoolArray) -> FloatArray:
    top = np.max(logits, axis=-1, keepdims=True, initial=-np.inf, where=allowed)
    weights = np.where(allowed, np.exp(np.where(allowed, logits - top, 0.0)), 0.0)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float64)


def _adam(
    gradient: FloatArray, first: FloatArray, second: FloatArray, steps: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    beta1, beta2 = ADAM_BETAS
    first = beta1 * first + (1.0 - beta1) * gradient
    second = beta2 * second + (1.0 - beta2) * gradient**2
    count = np.asarray(steps, dtype=np.float64)[..., None]
    root = np.sqrt(second / (1.0 - beta2**count)) + ADAM_EPSILON
    return first / (1.0 - beta1**count) / root, first, second


def _only(active: BoolArray | None, old: Actor, new: Actor) -> Actor:
    """The new state of active actors, the old state of the others."""
    if active is None:
        return new
    arms = np.asarray(active)[..., None]
    return Actor(
        np.where(arms, new.logits, old.logits),
        np.where(arms, new.first, old.first),
        np.where(arms, new.second, old.second),
        np.where(active, new.steps, old.steps).astype(np.int64),
    )
