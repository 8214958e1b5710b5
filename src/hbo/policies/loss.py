"""The users' own: subsets in proportion to exp(loss)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import to_plain
from hbo.rewards.reward import subset_values
from hbo.signals import LOSS, Signals


@dataclass(frozen=True)
class Loss:
    """Softmax of the training loss: what is learnt worst is drawn most.

    With L_i the mean loss of subset i since the last update (nats per response token), T
    ``temperature``, c ``smoothing`` and K subsets::

        p_i = (1 - c) exp(L_i / T) / sum_j exp(L_j / T) + c / K

    Sizes count before the first update only. A high loss may mean much to learn or nothing to be
    learnt (noise): this rule cannot tell.

    Source: modelscope/ms-swift, pull request 9142, "dynamic data mixing based on per-domain loss":
    T and the steps between updates are its settings, and a subset without a loss gets the mean of
    the others. Changed: the loss last known stands in before that mean does; ``smoothing`` is ours,
    off as there; no warm-up, since the first update comes after an interval anyway.

    Example:
        >>> policy = Loss(temperature=0.5)
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior before the first update: 1 proportional, infinity uniform."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    temperature: float = 1.0
    """T of the softmax, nats: small favours the highest loss only, infinity is uniform."""
    smoothing: float = 0.0
    """c: share that is spread evenly over the subsets."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.number("temperature", self.temperature, 0.0, above=True, finite=False)
        fields.number("smoothing", self.smoothing, 0.0, 1.0)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The loss."""
        return frozenset({LOSS})

    def needs_at(self, step: int) -> frozenset[str]:
        """The same at every update."""
        return self.needs

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """Shares at the prior."""
        return shares.start(sizes, weights, self.prior_temperature)

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) shares of the last update, examples of a subset alike."""
        return shares.law(state)

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The softmax of what is known of the losses; nothing moves where nothing is."""
        now, errors = subset_values(signals.table(LOSS), signals.sizes)
        losses = shares.latest(now, state.get("losses"))
        state = {**state, "losses": to_plain(losses)}
        state["last"] = shares.explained(now, errors, what="loss")
        if not np.isfinite(losses).any():
            return state
        filled = shares.or_mean(losses)
        with np.errstate(over="ignore"):  # of a tiny T: minus infinity, a share of 0
            scores = (filled - filled.max()) / self.temperature
        moved = shares.tilted(shares.arms(state), scores, self.smoothing)
        return {**state, "shares": moved.tolist()}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global`` rewards: the loss of each subset, with its standard error."""
        return dict(state["last"])
