"""MoS+: the rule of MoS over all difficulty groups of all subsets, in one flat actor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, paid, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, joint, two_level_prior
from hbo.rewards import LOCAL_REWARDS
from hbo.rewards.reward import Measured, Reward
from hbo.signals import CELL_HIDDEN_COSINE, Signals

FIT = paid.Fit(learning_rate=1e-4, tolerance=1e-10)
"""The fit of MoS to its prior."""


def hidden_cosine(signals: Signals) -> Measured:
    """R_c = (1/C) sum_d cos(z_c, z_d), z_c the mean last hidden state of cell c of C."""
    return paid.whole(signals.whole_values(CELL_HIDDEN_COSINE))


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {
        "hidden-cosine": Reward("hidden-cosine", frozenset({CELL_HIDDEN_COSINE}), hidden_cosine),
        "relative-perplexity": LOCAL_REWARDS["relative-perplexity"],
    }
)
"""The rewards of MoS, per cell."""


@dataclass(frozen=True)
class MoSPlus:
    """One actor over all cells, without a hierarchy, paid as MoS is for subsets.

    With c = (i, j) the cells, C of them, z_c the mean over examples of cell c of their mean last
    hidden state, theta_0 the untouched model, and beta ``ema_alpha``, one of::

        R_c = (1/C) sum_d cos(z_c, z_d)                   hidden-cosine, d = c included
        R_c = mean_x PPL(x; theta) / PPL(x; theta_0)      relative-perplexity

        R_c <- beta R_c + (1 - beta) R_c of the update before, which is ``ema_start`` at first

    and p, a softmax over the C cells, moves towards R / sum R (``paid.py``).

    Source: the baseline "MoS+" of arXiv 2505.12300, with 32 or 16 cells and T = 1; it gives neither
    reward, interval nor beta, and its code does not have it. So all else is that of MoS, as in
    ``mos.py``; with T = 1 every example is equally likely at the start. For other T the prior over
    subsets is tempered and groups keep their share of it, as in every other policy.

    Example:
        >>> import numpy as np
        >>> policy = MoSPlus()
        >>> policy.probabilities(policy.init(np.array([[3, 3], [1, 1]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior over subsets that the actor starts from: 1 proportional, infinity uniform."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    reward: str = "hidden-cosine"
    """Name in ``REWARDS``."""
    ema_alpha: float | None = 0.9
    """beta: weight of the new reward in the running one; ``None``: no smoothing."""
    ema_start: float | None = 1.0
    """Running reward before the first one; ``None``: the first one itself."""
    actor_learning_rate: float = 1e-4
    """Step size of Adam on the logits."""
    inner_steps: int = 200
    """Adam steps of an update, with the same rewards."""
    prior_fit: bool = False
    """Start from the fit of MoS to its prior. Off: with many cells it takes many seconds, and what
    it leaves in Adam makes the first updates larger."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.choice("reward", self.reward, REWARDS)
        paid.check_smoothing(self.ema_alpha, self.ema_start)
        paid.check_actor(self.actor_learning_rate, self.inner_steps, self.prior_fit)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The signal of the reward."""
        return REWARDS[self.reward].needs

    def needs_at(self, step: int) -> frozenset[str]:
        """The same at every update."""
        return self.needs

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The actor at the prior over cells."""
        return self._actor.start(joint(*two_level_prior(sizes, weights, self.prior_temperature)))

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) the actor's own."""
        return from_plain(state["shares"])

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """Pay the running rewards to the actor."""
        return self._actor.pay(state, REWARDS[self.reward].compute(signals))

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``local``: ``rewards`` and ``errors`` as measured, and ``paid``, the running ones."""
        return dict(state["last"])

    @property
    def _actor(self) -> paid.PaidActor:
        return paid.PaidActor(
            self.actor_learning_rate,
            self.inner_steps,
            FIT if self.prior_fit else None,
            self.ema_alpha,
            self.ema_start,
            level="local",
        )
