"""MultiDDS-S: more of the subsets whose gradients agree with those of held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hbo.mixture import FloatArray, IntArray
from hbo.policies import paid, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import two_level_prior
from hbo.signals import HELDOUT_COSINE, Signals

FIT = paid.Fit(learning_rate=1e-3, tolerance=1e-6)
"""The source's fit to the prior; Adam goes on from it with ``actor_learning_rate``."""


@dataclass(frozen=True)
class MultiDDS:
    """An actor over subsets, paid the agreement of their gradients with held-out ones.

    With g_i the gradient of a training batch of subset i, h_k that of a held-out batch of subset k
    and N subsets::

        R_i = (1/N) sum_k cos(h_k, g_i)

    and p moves towards R / sum R (``paid.py``, also on cosines below 0).

    Source: arXiv 2004.06748 and its code, MultiDDS-S with the utility "ave"; the equation is Eq. 13
    of arXiv 2109.02284. There: T = 1, logits start at 0 and are fitted to the prior with step size
    1e-3 until the mean squared error is 1e-6, then 200 Adam steps of 1e-4 per update; an update
    every 1000 steps; batches of 8. (Plain MultiDDS takes one cosine per subset, after a small step
    along g_i.) HBO's paper compares with "MultiDDS", T = 1, and says no more; its code has none.

    Changed: one training batch per subset and update, compared with all held-out batches (the code
    draws another for each of them: N^2 backward passes, here 2N). ``update_interval`` is the key
    that all policies share. The actor starts exactly at the prior: see ``prior_fit``. Where the
    cosines do not sum to more than 0 it stays.

    Example:
        >>> import numpy as np
        >>> policy = MultiDDS(update_interval=50)
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(6).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior that the actor starts from: 1 proportional, infinity uniform."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    actor_learning_rate: float = 1e-4
    """Step size of Adam on the logits."""
    inner_steps: int = 200
    """Adam steps of an update, with the same rewards."""
    prior_fit: bool = False
    """Start from the source's fit to the prior. Off: of eight subsets from 1000 to 1 in size, the
    smallest starts at four times its prior after it; what a fit leaves in Adam also makes the first
    updates larger, and it takes about a second."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        paid.check_actor(self.actor_learning_rate, self.inner_steps, self.prior_fit)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The held-out cosine."""
        return frozenset({HELDOUT_COSINE})

    def needs_at(self, step: int) -> frozenset[str]:
        """The same at every update."""
        return self.needs

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The actor at the prior."""
        subsets, groups = two_level_prior(sizes, weights, self.prior_temperature)
        return {**self._actor.start(subsets), "groups": groups.tolist()}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) shares of the last update, examples of a subset alike."""
        return shares.law(state)

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """Pay the cosines to the actor."""
        return self._actor.pay(state, paid.whole(signals.whole_values(HELDOUT_COSINE)))

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global``: ``rewards`` as measured; ``paid``, with what stood in for the unknown."""
        return dict(state["last"])

    @property
    def _actor(self) -> paid.PaidActor:
        fit = FIT if self.prior_fit else None
        return paid.PaidActor(self.actor_learning_rate, self.inner_steps, fit)
