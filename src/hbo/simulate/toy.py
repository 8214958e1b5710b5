"""The toy learner: the loss of every cell as a known function of the draws that it got."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hbo.mixture import FloatArray, IntArray

REPETITION = 15.0
"""Passes after which repeating a cell's examples teaches next to nothing more."""
SMALLEST_PRICE = float(np.exp(-60.0))
"""The search for the best mixture tells gains per draw apart down to about this."""


@dataclass(frozen=True, eq=False)
class ToyLearner:
    """A loss for every cell, falling with the draws that the cell gets.

    With n draws of a cell of u examples, of which repeats count less and less,
    e(n) = n up to u, then u (1 + r (1 - exp(-(n / u - 1) / r))), the cell's loss is
    floor + gap exp(-x / scale), x = (1 - transfer) e(n) + transfer x mean draws of all cells.
    The form of e(n), with r = 15, follows arXiv 2305.16264 (its Eq. 5).

    On examples that were held out, repeats also do harm: overfit x (n / u - 1) more after the first
    pass. That is the loss that counts; without ``overfit`` the two are the same.

    Args:
        sizes: (K, G) examples per cell.
        floor: (K, G) loss that training cannot go below, nats per token.
        gap: (K, G) first loss above the floor.
        scale: (K, G) draws after which the gap is 1/e of what it was.
        transfer: Share of a draw that teaches all cells alike, 0 to 1.
        noise: Standard deviation of an example's loss around its cell's.
        overfit: Rise of the held-out loss with each pass after the first, nats per token.
    """

    sizes: IntArray
    floor: FloatArray
    gap: FloatArray
    scale: FloatArray
    transfer: float = 0.0
    noise: float = 0.3
    overfit: float = 0.0

    @classmethod
    def random(
        cls,
        num_subsets: int,
        num_groups: int,
        draws: int,
        *,
        seed: int,
        imbalance: float = 50.0,
        transfer: float = 0.0,
        noise: float = 0.3,
        overfit: float = 0.0,
    ) -> ToyLearner:
        """A learner whose cells need, between them, about as many draws as there are.

        Sizes fall from largest to smallest by ``imbalance``; harder groups start and end higher and
        learn more slowly; how fast a subset learns does not depend on its size.
        """
        generator = np.random.default_rng([seed, 1])
        smallest = 4 * num_groups
        steps = np.linspace(1.0, 0.0, num_subsets) if num_subsets > 1 else np.ones(1)
        totals = np.round(smallest * imbalance**steps).astype(np.int64)
        sizes = totals[:, None] // num_groups + (
            np.arange(num_groups) < totals[:, None] % num_groups
        )
        hardness = np.linspace(0.5, 1.5, num_groups) if num_groups > 1 else np.ones(1)
        subset = generator.lognormal(0.0, 0.7, size=(num_subsets, 1))
        cell = generator.lognormal(0.0, 0.2, size=(num_subsets, num_groups))
        return cls(
            sizes=sizes.astype(np.int64),
            floor=generator.uniform(0.3, 1.0, size=(num_subsets, 1)) + 0.5 * hardness,
            gap=generator.uniform(0.5, 1.5, size=(num_subsets, 1)) * cell,
            scale=draws / cell.size * subset * hardness / cell,
            transfer=transfer,
            noise=noise,
            overfit=overfit,
        )

    def losses(self, draws: FloatArray | IntArray) -> FloatArray:
        """(K, G) training loss of each cell after (K, G) draws, which may be fractions."""
        return self._losses(draws, float(np.sum(draws)))

    def heldout(self, draws: FloatArray | IntArray) -> FloatArray:
        """(K, G) held-out loss of each cell after (K, G) draws."""
        return np.asarray(self.losses(draws) + self.overfit * self._repeats(draws))

    def lookahead_gain(self, draws: FloatArray | IntArray, more: float) -> FloatArray:
        """(K,) fall of a subset's training loss after ``more`` draws of this subset alone."""
        total, shares = float(np.sum(draws)), self.shares
        fall = self._losses(draws, total) - self._losses(draws + more * shares, total + more)
        return np.asarray((shares * fall).sum(axis=1), dtype=np.float64)

    @cached_property
    def shares(self) -> FloatArray:
        """(K, G) share of each group in the examples of its subset."""
        return np.asarray(self.sizes / self.sizes.sum(axis=1, keepdims=True), dtype=np.float64)

    def macro(self, losses: FloatArray) -> float:
        """Mean over subsets of the mean loss over their examples: every subset counts alike."""
        return float((self._weights * losses).sum())

    def best(self, draws: int) -> FloatArray:
        """(K, G) mixture with the lowest held-out macro loss after ``draws`` draws, of fixed ones.

        Every cell's loss is convex in its draws, so at the best mixture one more draw gains the
        same wherever it goes: -c d loss / dn = lambda, or less where n = 0, with c the cell's
        weight in the macro loss. Bisection on lambda, and inside it on each n. Where there are more
        draws than do good, the last ones do harm: lambda is negative.
        """
        low, high = -90.0, 90.0  # of a scale that is logarithmic on both sides of 0
        amounts = np.zeros(self.sizes.shape)
        for _ in range(50):
            middle = (low + high) / 2
            amounts = self._draws_at(SMALLEST_PRICE * float(np.sinh(middle)), draws)
            low, high = (middle, high) if amounts.sum() > draws else (low, middle)
        return np.asarray(amounts / amounts.sum(), dtype=np.float64)

    def _draws_at(self, price: float, draws: int) -> FloatArray:
        low, high = np.zeros(self.sizes.shape), np.full(self.sizes.shape, float(draws))
        for _ in range(30):
            middle = (low + high) / 2
            more = self._gain(middle, draws) > price
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.asarray(high, dtype=np.float64) * (self._gain(0.0 * high, draws) > price)

    def _gain(self, draws: FloatArray, total: int) -> FloatArray:
        """Fall of the held-out macro loss per draw, but for what all cells have alike."""
        repeats = self._repeats(draws)
        taught = self._taught(draws, repeats, float(total))
        learnt = self._weights * self.gap / self.scale
        learnt = learnt * np.exp(-taught / self.scale - repeats / REPETITION)
        harm = self._weights * self.overfit / self.sizes * (repeats > 0)
        own = max(1.0 - self.transfer, 1e-12)  # the part of a draw that its own cell keeps
        return np.asarray(own * learnt - harm, dtype=np.float64)

    def _losses(self, draws: FloatArray | IntArray, total: float) -> FloatArray:
        taught = self._taught(draws, self._repeats(draws), total)
        return np.asarray(self.floor + self.gap * np.exp(-taught / self.scale), dtype=np.float64)

    def _taught(
        self, draws: FloatArray | IntArray, repeats: FloatArray, total: float
    ) -> FloatArray:
        """(K, G) x: what the cell's own draws are worth, and its part of all of them."""
        worth = REPETITION * -np.expm1(-repeats / REPETITION)
        own = np.minimum(draws, self.sizes) + self.sizes * worth
        shared = self.transfer * total / draws.size
        return np.asarray((1.0 - self.transfer) * own + shared, dtype=np.float64)

    def _repeats(self, draws: FloatArray | IntArray) -> FloatArray:
        """(K, G) passes after the first."""
        return np.asarray(np.maximum(draws / self.sizes - 1.0, 0.0), dtype=np.float64)

    @cached_property
    def _weights(self) -> FloatArray:
        """(K, G) weight of each cell in the macro loss."""
        return self.shares / len(self.sizes)
