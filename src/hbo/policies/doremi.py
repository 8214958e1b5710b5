"""DoReMi as an online rule: more of what has not fallen below the untouched model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, to_plain
from hbo.rewards.reward import cell_errors, weighted_mean
from hbo.signals import FIRST_LOSS, LOSS, Signals


@dataclass(frozen=True)
class DoReMi:
    """Exponentiated gradient on the excess loss: Group DRO over subsets.

    With L_i the loss of subset i now and L0_i that of the same examples under the reference model
    (nats per response token), eta ``eta``, c ``smoothing`` and K subsets, at each update::

        d_i = L_i - L0_i                       (the source: max(d_i, 0), see ``clip``)
        p_i <- p_i exp(eta d_i), normalised
        p_i <- (1 - c) p_i + c / K

    Source: arXiv 2305.10429, Algorithm 1; eta = 1, c = 1e-3, weights start uniform.

    Changed, for fine-tuning in one run:

    - The reference is the model before training, not a second one trained on uniform shares. Then
      d_i is the negative of what was learnt, mostly below 0, and the source's clip at 0 would leave
      nothing: ``clip`` is off. Subsets that learn least win, also where there is nothing to learn.
    - The source trains a small model only to average its p over all steps, and uses the average for
      the model that counts. Here the model that counts follows p itself. The average of a run, held
      fixed, is ``replay`` with ``mode: average``.
    - Shares are drawn from; the source weights losses. p starts at the prior.
    - An update is one step of the rule, once per ``update_interval``; there it is every training
      step. p is a product of all steps and near one-hot after many: c keeps the others alive.
    - A subset without a measurement keeps its last d_i (as in the source's code), or gets the mean.

    Example:
        >>> policy = DoReMi(eta=0.5)
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior that the shares start from: 1 proportional, infinity uniform (the source)."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    eta: float = 1.0
    """Step size, per nat of excess loss."""
    smoothing: float = 1e-3
    """c: share that is spread evenly over the subsets at each update."""
    clip: bool = False
    """Cut the excess loss at 0 from below, as the source does."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.number("eta", self.eta, 0.0, 1e6)
        fields.number("smoothing", self.smoothing, 0.0, 1.0)
        fields.flag("clip", self.clip)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The loss, and that of the same examples under the untouched model."""
        return frozenset({LOSS, FIRST_LOSS})

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
        """One step of the rule; nothing moves where no excess loss is known."""
        loss, first = signals.table(LOSS), signals.table(FIRST_LOSS)
        with np.errstate(over="ignore", invalid="ignore"):  # of values too large: unknown
            excess, errors = loss.mean - first.mean, cell_errors(loss)
        now, errors = weighted_mean(excess, errors, signals.sizes)
        known = shares.latest(now, state.get("excess"))
        state = {**state, "excess": to_plain(known)}
        state["last"] = shares.explained(now, errors, what="excess loss")
        if not np.isfinite(known).any():
            return state
        scores = shares.or_mean(known)
        scores = self.eta * (np.maximum(scores, 0.0) if self.clip else scores)
        moved = shares.tilted(from_plain(state["shares"]), scores, self.smoothing)
        return {**state, "shares": moved.tolist()}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global`` rewards: the excess loss of each subset, with the error of its loss."""
        return dict(state["last"])
