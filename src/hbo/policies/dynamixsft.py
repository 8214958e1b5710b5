"""DynamixSFT: a bandit over subsets, paid what one gradient step gains, anchored to the prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain
from hbo.rewards.reward import subset_values
from hbo.signals import LOOKAHEAD_GAIN, LOSS, Signals


@dataclass(frozen=True)
class DynamixSFT:
    """Prior-scaled Boltzmann exploration over 1-step look-ahead rewards.

    With q_i the prior, B_i a batch of subset i, L and L' its loss before and after one gradient
    step on it that is then undone, alpha ``alpha``, beta ``beta``, gamma ``gamma``, K subsets::

        r_i  = (L - L') / L, then scaled over the subsets to [0, 1] by their least and greatest
        Q_i <- alpha Q_i + (1 - alpha) r_i                                    (Q_i starts at 0)
        p_i  = (1 - gamma) q_i exp(beta Q_i) / sum_j q_j exp(beta Q_j) + gamma / K

    Source: arXiv 2508.12116, Eq. 2 to 5; alpha = 0.95, gamma = 0.3, beta = 4 (1B) or 5 (8B), an
    update every 50 steps of 128 examples. Learning progress, not loss, is paid: what cannot be
    learnt gains nothing. gamma / K lifts small subsets from the first update on.

    Changed: the fall (``lookahead_gain``, of the batch as a whole) is divided by the subset's mean
    training loss of the interval, where the source takes the mean of each example's own quotient.
    Updates come every 200 steps by default, as for all policies here; with alpha = 0.95 that makes
    Q slow: half-way after 14 updates. A subset without a measurement keeps its Q_i.

    Example:
        >>> policy = DynamixSFT(beta=5)
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior that the shares are anchored to: 1 proportional, infinity uniform."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    alpha: float = 0.95
    """Weight of the old in the running reward."""
    beta: float = 4.0
    """Sharpness: how much a running reward of 1 counts, in powers of e."""
    gamma: float = 0.3
    """Share that is spread evenly over the subsets."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.number("alpha", self.alpha, 0.0, 1.0)
        fields.number("beta", self.beta, 0.0)
        fields.number("gamma", self.gamma, 0.0, 1.0)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The gain of one step, and the loss that it is divided by."""
        return frozenset({LOOKAHEAD_GAIN, LOSS})

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
        """Pay the subsets that were measured, and tilt the prior."""
        gain = signals.whole_values(LOOKAHEAD_GAIN)
        loss = subset_values(signals.table(LOSS), signals.sizes)[0]
        with np.errstate(over="ignore", invalid="ignore"):
            relative = gain / np.where(loss > 0, loss, np.nan)
        reward, old = _between_0_and_1(relative), from_plain(state["rewards"])
        running = np.where(np.isfinite(reward), self.alpha * old + (1 - self.alpha) * reward, old)
        state = {**state, "rewards": running.tolist()}
        state["last"] = shares.explained(relative, what="gain of one step")
        if not np.isfinite(reward).any():
            return state
        moved = shares.tilted(from_plain(state["prior"]), self.beta * running, self.gamma)
        return {**state, "shares": moved.tolist()}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global`` rewards: the relative gain of each subset, before it is scaled."""
        return dict(state["last"])


def _between_0_and_1(values: FloatArray) -> FloatArray:
    """(K,) from the least known value at 0 to the greatest at 1; 0.5 where they are all the same.

    Unknown values stay unknown.
    """
    known = np.isfinite(values)
    if not known.any():
        return np.full(values.shape, np.nan)
    low, high = float(values[known].min()), float(values[known].max())
    if not np.isfinite(high - low) or high == low:
        return np.where(known, 0.5, np.nan)
    return np.where(known, (values - low) / (high - low), np.nan)
