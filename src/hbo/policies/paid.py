"""One actor that is paid: what MultiDDS, MultiUAT, MoS and MoS+ have in common.

They differ in their reward and in what an arm is (a subset, a cell). With R the rewards, z the
actor's logits and p = softmax(z), each update repeats ``inner_steps`` times::

    z <- Adam step with ``learning_rate`` on -sum_i R_i log p_i       (actor.reinforce_step)

For positive rewards p moves towards R / sum R. With steady rewards an update moves a logit by
``inner_steps`` times ``learning_rate`` at most, 0.02 by default, whatever the rewards' scale.

Negative rewards, which cosines can be, are paid as they are, as in the sources: such an arm goes
down at every update, without a bound but at that pace. Where the rewards do not sum to more than 0
the sources move on, away from R / sum R and towards a single arm; here the actor stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.mixture import FloatArray
from hbo.policies import fields
from hbo.policies.actor import Actor, BoolArray, fit_to_prior, reinforce_step
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, to_plain
from hbo.policies.treatment import Note, mean_of_known, smooth, usable
from hbo.rewards.reward import Measured


@dataclass(frozen=True)
class Fit:
    """How an actor reaches its prior by gradient descent: see ``actor.fit_to_prior``."""

    learning_rate: float
    tolerance: float


@dataclass(frozen=True)
class PaidActor:
    """How one actor starts at a prior and is moved by rewards; its state is a plain dict.

    Args:
        learning_rate: Step size of Adam.
        inner_steps: Adam steps per update, with the same rewards.
        fit: Reach the prior in this way, Adam's moments kept; ``None``: start exactly there.
        ema_alpha: Weight of the new reward in the running one; ``None``: no smoothing.
        ema_start: Running reward before the first one; ``None``: the first one itself.
        level: ``global`` for rewards (K,) of subsets, ``local`` for rewards (K, G) of cells.

    Example:
        >>> actor = PaidActor(learning_rate=1e-4, inner_steps=200)
        >>> rewards = np.array([4.0, 1.0])
        >>> state = actor.pay(actor.start(np.array([0.5, 0.5])), (rewards, 0.1 * rewards))
        >>> from_plain(state["shares"]).round(5).tolist()
        [0.50993, 0.49007]
    """

    learning_rate: float
    inner_steps: int
    fit: Fit | None = None
    ema_alpha: float | None = None
    ema_start: float | None = None
    level: str = "global"

    def start(self, prior: FloatArray) -> PolicyState:
        """The state before any reward.

        Args:
            prior: (K,) or (K, G) probabilities, summing to 1; arms at 0 take no part.

        Returns:
            ``prior``, ``shares`` (the probabilities to draw by), ``running`` rewards and ``last``
            (what ``explain`` gives), each in the shape of the prior, and ``actor``.
        """
        flat, shares = prior.ravel(), prior
        actor = Actor.start(flat)
        if self.fit is not None:
            actor = fit_to_prior(
                flat, learning_rate=self.fit.learning_rate, tolerance=self.fit.tolerance
            )
            shares = actor.probabilities(flat > 0).reshape(prior.shape)
        return {
            "prior": prior.tolist(),
            "shares": shares.tolist(),
            "actor": actor.to_json(),
            "running": to_plain(np.full(prior.shape, np.nan)),
            "last": {},
        }

    def pay(self, state: PolicyState, measured: Measured) -> PolicyState:
        """The next state: the actor moved by what was measured.

        An unknown reward leaves the running one as it is; an arm never measured is paid the mean of
        the others. Where fewer than two arms are known, or the sum is not positive, nothing moves.

        Args:
            state: From ``start`` or ``pay``, other keys are kept.
            measured: Rewards and standard errors in the shape of the prior; NaN where unknown.
        """
        prior = from_plain(state["prior"])
        arms = prior > 0
        rewards, notes = _finite(measured[0], arms, self.level)
        running = self._running(rewards, from_plain(state["running"]))
        known = np.isfinite(running)
        paid = np.where(arms & ~known, mean_of_known(running.ravel()), running)
        active, more = _can_move(paid, known, arms, self.level)
        errors = np.where(np.isfinite(rewards), measured[1], np.nan)
        entry = {"rewards": rewards, "errors": errors, "paid": paid}
        said: dict[str, Any] = {key: to_plain(values) for key, values in entry.items()}
        last = {self.level: said, "notes": notes + more}
        state = {**state, "running": to_plain(running), "last": last}
        if not active:
            return state
        actor = reinforce_step(
            Actor.from_json(state["actor"]),
            np.where(arms, paid, 0.0).ravel(),
            learning_rate=self.learning_rate,
            inner_steps=self.inner_steps,
            allowed=arms.ravel(),
        )
        shares = actor.probabilities(arms.ravel()).reshape(prior.shape)
        return {**state, "actor": actor.to_json(), "shares": shares.tolist()}

    def _running(self, new: FloatArray, old: FloatArray) -> FloatArray:
        alpha = 1.0 if self.ema_alpha is None else self.ema_alpha
        if self.ema_alpha is not None and self.ema_start is not None:
            first = np.isnan(old) & np.isfinite(new)
            old = np.where(first, self.ema_start, old)
        return smooth(new, old, alpha)


def check_actor(learning_rate: Any, inner_steps: Any, prior_fit: Any) -> None:
    """Check the fields of a policy that has a paid actor; ``ConfigError`` where one is wrong."""
    fields.number("actor_learning_rate", learning_rate, 0.0, above=True)
    fields.whole_number("inner_steps", inner_steps, 1)
    fields.flag("prior_fit", prior_fit)


def check_smoothing(ema_alpha: Any, ema_start: Any) -> None:
    """Check the two fields of a running reward; ``ConfigError`` where one is wrong."""
    fields.number("ema_alpha", ema_alpha, 0.0, 1.0, above=True, optional=True)
    fields.number("ema_start", ema_start, 0.0, optional=True)


def whole(values: FloatArray) -> Measured:
    """Rewards that were measured whole, and so have no standard error."""
    return values, np.full(np.shape(values), np.nan)


def _finite(values: FloatArray, arms: BoolArray, level: str) -> tuple[FloatArray, list[Note]]:
    """Rewards of either sign, NaN where they cannot be used, and notes on those."""
    sizes, notes = usable(np.abs(values), arms, level)
    rewards = np.copysign(sizes, values)
    negative = int((rewards < 0).sum())
    if negative:
        text = f"{negative} {level} reward{'s' if negative > 1 else ''}: negative, paid as such"
        notes.append(["negative-reward", text])
    return rewards, notes


def _can_move(
    paid: FloatArray, known: BoolArray, arms: BoolArray, level: str
) -> tuple[bool, list[Note]]:
    """Whether there is a direction to move in, and notes on why not."""
    seen, notes = int(known.sum()), []
    if missing := int((arms & ~known).sum()):
        text = f"{missing} of {int(arms.sum())} {level} rewards never measured"
        notes.append(["unknown-reward", text + "; the mean stands in"])
    positive = float(np.where(arms & np.isfinite(paid), paid, 0.0).sum()) > 0
    if seen > 1 and not positive:
        text = f"the {level} rewards do not sum to more than 0; the actor stays"
        notes.append(["zero-reward", text])
    return seen > 1 and positive, notes
