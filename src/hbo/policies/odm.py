"""Online Data Mixing: Exp3, paid the loss over the probability of drawing it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, to_plain
from hbo.rewards.reward import subset_values
from hbo.signals import LOSS, Signals


@dataclass(frozen=True)
class ODM:
    """Exp3 over subsets, with a moving average of importance-weighted losses.

    With K subsets, L_i the loss of subset i since the last update (nats per response token), pi_i
    its share then, alpha ``alpha``, T ``update_interval`` and t the optimiser step::

        R_i   <- a_i R_i + (1 - a_i) L_i / pi_i,  a_i = (1 - (1 - alpha) pi_i)^T
                                                           (R_i starts at 0)
        eps_t  = min(1/K, sqrt(ln K / (K t)))                (eps_0 = 1/K)
        pi_i   = (1 - K eps_t) exp(eps_(t-1) R_i) / sum_j exp(eps_(t-1) R_j) + eps_t

    eps_t is a floor for every subset; it is 1/K, which makes pi uniform, until t = K ln K.

    Source: arXiv 2312.02406 (Algorithm 1) and its public code: alpha = 0.9; pi is decided anew at
    every training step; before that a warm-up with the prior (2,000 of 100,000 steps there).

    Changed: an update comes once per ``update_interval``, with the mean loss of the interval; t
    still counts optimiser steps, as there, so exploration fades with training and not with the
    number of updates. The source pays the subset that a step drew, R_i <- alpha R_i + (1 - alpha)
    L_i / pi_i; what T such steps leave of R_i is a_i on average. With alpha in place of a_i the
    first payment of a small subset, divided by its small share, would stand for thousands of steps.
    A subset whose loss was not seen keeps its R_i. During ``warmup_steps`` R_i is gathered and the
    shares stay at the prior. After it the prior is forgotten; the exponent becomes small, so that
    pi ends near uniform, and that is the rule's doing.

    Example:
        >>> policy = ODM(update_interval=50)
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior before the first update and during the warm-up."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    alpha: float = 0.9
    """Weight of the old in the running reward, when a subset has been drawn once."""
    warmup_steps: int = 0
    """Optimiser steps during which the shares stay at the prior."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.number("alpha", self.alpha, 0.0, 1.0)
        fields.whole_number("warmup_steps", self.warmup_steps, 0)

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
        """Shares at the prior, running rewards at 0."""
        state = shares.start(sizes, weights, self.prior_temperature)
        return {**state, "rewards": [0.0] * len(sizes)}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) shares of the last update, examples of a subset alike."""
        return shares.law(state)

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """Pay the subsets whose loss is known; after the warm-up, move."""
        now, errors = subset_values(signals.table(LOSS), signals.sizes)
        real = shares.arms(state)
        paid = np.isfinite(now) & (real > 0)
        drawn = np.maximum(from_plain(state["shares"]), shares.SMALLEST)
        old = from_plain(state["rewards"])
        weighted = np.where(paid, now, 0.0) / drawn
        kept = (1.0 - (1.0 - self.alpha) * drawn) ** self.update_interval
        rewards = np.where(paid, kept * old + (1.0 - kept) * weighted, old)
        state = {**state, "rewards": to_plain(rewards)}
        state["last"] = shares.explained(now, errors, what="loss")
        if signals.step <= self.warmup_steps:
            return state
        count = int(real.sum())
        floor = exploration(count, signals.step)
        # The floor times their number is the part that is spread evenly.
        scores = exploration(count, signals.step - 1) * rewards
        return {**state, "shares": shares.tilted(real, scores, count * floor).tolist()}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global`` rewards: the loss of each subset, before it is divided by its share."""
        return dict(state["last"])


def exploration(count: int, step: int) -> float:
    """eps_t = min(1/K, sqrt(ln K / (K t))), and 1/K where t is 0.

    Args:
        count: K, the number of subsets.
        step: t.

    Example:
        >>> exploration(4, 1), round(exploration(4, 100), 4)
        (0.25, 0.0589)
    """
    if step < 1:
        return 1.0 / count
    return min(1.0 / count, math.sqrt(math.log(count) / (count * step)))
