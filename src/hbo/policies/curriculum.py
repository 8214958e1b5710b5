"""A curriculum: difficulty groups of each subset open one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.actor import BoolArray
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, joint
from hbo.signals import Signals

ORDERS = ("easy-to-hard", "hard-to-easy")


@dataclass(frozen=True)
class Curriculum:
    """Fixed shares of the subsets; inside each, difficulty groups in order.

    Let subset i have M_i groups with examples, numbered j = 0, 1, ... in ``order``, and s be the
    part of ``length`` that is done. Group j is drawn from

        cumulative:   s >= j / (M_i - 1)
        one by one:   j / M_i <= s < (j + 1) / M_i, and s >= 1

    so that the whole mixture is open when ``length`` is done. Open groups are drawn by size.

    Source: the idea is that of Bengio et al. (ICML 2009); the two forms are the "baby step"
    (cumulative) and "one pass" curricula of Cirik et al. (arXiv 1611.06204), which begin the next
    part when the last one is learnt, not at a fixed step. Subsets are ours: each has its own order.

    Example:
        >>> policy = Curriculum(length=100)
        >>> policy.probabilities(policy.init(np.array([[3, 3], [1, 1]]))).round(3).tolist()
        [[0.75, 0.0], [0.25, 0.0]]
    """

    prior_temperature: float = 1.0
    """T of the prior over subsets, which is kept."""
    update_interval: int = 200
    """Optimiser steps between updates: groups open at these only."""
    order: str = "easy-to-hard"
    """``easy-to-hard`` or ``hard-to-easy``."""
    length: int | None = None
    """Optimiser steps until the whole mixture is open; ``None``: one pass over its examples."""
    cumulative: bool = True
    """Groups stay open; off: one group at a time until ``length`` is done."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.choice("order", self.order, ORDERS)
        fields.whole_number("length", self.length, 1, optional=True)
        fields.flag("cumulative", self.cumulative)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """No signals."""
        return frozenset()

    def needs_at(self, step: int) -> frozenset[str]:
        """No signals."""
        return frozenset()

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The first group of each subset open."""
        return {**shares.start(sizes, weights, self.prior_temperature), "done": [0, 1]}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) prior of the subset x size of the group among those that are open."""
        groups = from_plain(state["groups"])
        inside = np.where(self._open(groups > 0, *state["done"]), groups, 0.0)
        return joint(from_plain(state["shares"]), inside / inside.sum(axis=1, keepdims=True))

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The same state, further on."""
        if self.length is None:
            return {**state, "done": [int(signals.draws.sum()), int(signals.sizes.sum())]}
        return {**state, "done": [int(signals.step), self.length]}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """Nothing to explain."""
        return {}

    def _open(self, real: BoolArray, done: int, length: int) -> BoolArray:
        """(K, G) the groups that are drawn from.

        Args:
            real: (K, G) cells with examples.
            done: Steps or draws done.
            length: Steps or draws of the whole curriculum.
        """
        count = real.sum(axis=1, keepdims=True)
        rank = np.cumsum(real, axis=1) - 1
        if self.order == "hard-to-easy":
            rank = count - 1 - rank
        # In whole numbers: a third of 300 steps is step 100, not 99.99.
        if self.cumulative:
            return np.asarray(real & (done * (count - 1) >= rank * length))
        return np.asarray(real & ((done * count // length == rank) | (done >= length)))
