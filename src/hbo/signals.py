"""Numbers measured on the model: sums and counts per cell, and what a reward may see of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LOSS = "loss"
"""Mean negative log-likelihood of an example's response tokens, nats per token."""
FIRST_LOSS = "first_loss"
"""The same under the untouched model."""
PERPLEXITY = "perplexity"
"""exp(loss) of an example."""
PERPLEXITY_RATIO = "perplexity_ratio"
"""exp(loss - first_loss) of an example: the summand of Eq. 8 of arXiv 2505.12300."""
GRADIENT_NORM = "gradient_norm"
"""L2 norm of the gradient of one example's loss."""
TOKENS = "tokens"
"""Trained (response) tokens of an example."""

BATCH_GRADIENT_NORM = "batch_gradient_norm"
"""Per subset: L2 norm of the gradient of one batch's loss (Eq. 7)."""
GRADIENT_COSINE = "gradient_cosine"
"""Per subset: mean cosine of its batch gradient with those of all subsets."""
HIDDEN_COSINE = "hidden_cosine"
"""Per subset: mean cosine of its mean last hidden state with those of all subsets, itself too."""
CELL_HIDDEN_COSINE = "cell_hidden_cosine"
"""Per cell: the same among all cells."""
LOOKAHEAD_GAIN = "lookahead_gain"
"""Per subset: fall of the loss of a batch after one gradient step on it, nats per token."""

HELDOUT_LOSS = "heldout_loss"
"""Per subset: mean loss of its validation examples, nats per response token."""
UNSEEN_LOSS = "unseen_loss"
"""The same, NaN where a subset has no validation example: nothing is refused for want of them."""
HELDOUT_COSINE = "heldout_cosine"
"""Per subset: mean cosine of its batch gradient with the held-out gradients of all subsets."""
HELDOUT_ENTROPY = "heldout_entropy"
"""Per subset: mean entropy of the model's next-token law over held-out response tokens, nats."""
HELDOUT_END_ENTROPY = "heldout_end_entropy"
"""Per subset: the same at the last response token of each held-out example."""
HELDOUT_PREDICTED = "heldout_predicted"
"""Per subset: 1 - geometric mean probability of the likeliest token, held-out (PRETP of UAT)."""
HELDOUT_EXPECTED = "heldout_expected"
"""Per subset: 1 - mean over passes of the probability of held-out responses (EXPTP of UAT)."""
HELDOUT_VARIANCE = "heldout_variance"
"""Per subset: variance over passes with dropout of that probability (VARTP of UAT)."""
HELDOUT_VARIATION = "heldout_variation"
"""Per subset: both together (COMEV of UAT)."""

RESOLUTION = 2.0**30
"""Steps per unit to which values are rounded before they are summed."""
LARGEST = 1e100
"""Values beyond are cut to this: their squares, and sums of those, are still finite."""

UNCERTAINTIES = frozenset(
    {
        HELDOUT_ENTROPY,
        HELDOUT_END_ENTROPY,
        HELDOUT_PREDICTED,
        HELDOUT_EXPECTED,
        HELDOUT_VARIANCE,
        HELDOUT_VARIATION,
    }
)
HELDOUT_SIGNALS = frozenset({HELDOUT_LOSS, UNSEEN_LOSS, HELDOUT_COSINE}) | UNCERTAINTIES
"""Measured on validation examples, which are never trained on."""
WHOLE_SIGNALS = HELDOUT_SIGNALS | {
    BATCH_GRADIENT_NORM,
    GRADIENT_COSINE,
    HIDDEN_COSINE,
    LOOKAHEAD_GAIN,
}
"""One value per subset, measured whole."""
CELL_SIGNALS = frozenset({CELL_HIDDEN_COSINE})
"""One value per cell, measured whole."""
EXAMPLE_SIGNALS = frozenset({LOSS, FIRST_LOSS, PERPLEXITY, PERPLEXITY_RATIO, GRADIENT_NORM, TOKENS})


@dataclass(frozen=True, eq=False)
class SignalTable:
    """Sums, sums of squares and counts of one per-example signal, for each cell.

    Tables add: over time, and over ranks that measured disjoint examples.

    Args:
        sums: (K, G) sum of the values.
        squares: (K, G) sum of the squared values.
        counts: (K, G) number of values.

    Example:
        >>> table = SignalTable.empty(1, 2).with_values(
        ...     np.array([0, 0, 1]), np.array([1.0, 3.0, 5.0])
        ... )
        >>> table.mean.tolist(), table.standard_error[0, 0].item()
        ([[2.0, 5.0]], 1.0)
    """

    sums: FloatArray
    squares: FloatArray
    counts: FloatArray

    @classmethod
    def empty(cls, num_subsets: int, num_groups: int) -> SignalTable:
        """A table without a value."""
        shape = (num_subsets, num_groups)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def with_values(self, cells: IntArray, values: FloatArray) -> SignalTable:
        """Add one value per example; what is not finite is left out, what is huge cut to 1e100.

        Values are rounded to multiples of 2**-30 (1e-9), squares too. Sums of such numbers below
        2**23 are exact in float64, so the order in which examples, micro-batches, ranks and
        checkpoints add them up cannot change a reward.

        Args:
            cells: (n,) flat cell numbers.
            values: (n,) values.
        """
        table = self.to_array()
        add_values(table, cells, values)
        return SignalTable.from_array(table)

    def __add__(self, other: SignalTable) -> SignalTable:
        return SignalTable(
            self.sums + other.sums, self.squares + other.squares, self.counts + other.counts
        )

    @property
    def mean(self) -> FloatArray:
        """(K, G) mean value; NaN where nothing was measured."""
        return _divide(self.sums, self.counts)

    @property
    def standard_error(self) -> FloatArray:
        """(K, G) standard error of the mean; NaN with fewer than two values."""
        return _standard_error(self.sums, self.squares, self.counts)

    @property
    def subset_mean(self) -> FloatArray:
        """(K,) mean over all measured examples of a subset; NaN where there are none."""
        return _divide(self.sums.sum(axis=1), self.counts.sum(axis=1))

    @property
    def subset_standard_error(self) -> FloatArray:
        """(K,) standard error of ``subset_mean``; NaN with fewer than two values."""
        return _standard_error(
            self.sums.sum(axis=1), self.squares.sum(axis=1), self.counts.sum(axis=1)
        )

    def to_array(self) -> FloatArray:
        """(3, K, G) sums, squares, counts: what ranks add up."""
        return np.stack([self.sums, self.squares, self.counts])

    @classmethod
    def from_array(cls, array: FloatArray) -> SignalTable:
        """The inverse of ``to_array``."""
        sums, squares, counts = np.asarray(array, dtype=np.float64)
        return cls(sums, squares, counts)


@dataclass(frozen=True, eq=False)
class Signals:
    """The training state that a reward may see at one update.

    Args:
        now: Tables of the interval that ends with this update, by signal name.
        before: The same of the interval before it; empty at the first update.
        first: The same of the first interval in which the signal was measured.
        whole: What is measured whole, by name: (K,) of ``WHOLE_SIGNALS``, (K, G) of
            ``CELL_SIGNALS``; NaN where not measured.
        step: Optimiser steps done.
        sizes: (K, G) examples per cell.
        draws: (K, G) draws consumed so far.
    """

    now: Mapping[str, SignalTable]
    step: int
    sizes: IntArray
    draws: IntArray
    before: Mapping[str, SignalTable] = field(default_factory=dict)
    first: Mapping[str, SignalTable] = field(default_factory=dict)
    whole: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def passes(self) -> FloatArray:
        """(K,) draws so far per example of a subset."""
        return _divide(self.draws.sum(axis=1).astype(np.float64), self.sizes.sum(axis=1))

    def table(self, name: str) -> SignalTable:
        """The present table of a signal; an empty one where it was not measured."""
        found = self.now.get(name)
        return SignalTable.empty(*self.sizes.shape) if found is None else found

    def whole_values(self, name: str) -> FloatArray:
        """(K,) values measured whole, (K, G) of ``CELL_SIGNALS``; NaN where there are none."""
        found = self.whole.get(name)
        shape = self.sizes.shape if name in CELL_SIGNALS else self.sizes.shape[:1]
        return np.full(shape, np.nan) if found is None else found


def add_values(table: FloatArray, cells: IntArray, values: FloatArray) -> None:
    """``SignalTable.with_values`` in place: its cost does not grow with the number of cells.

    Args:
        table: (3, K, G) sums, squares and counts; contiguous.
        cells: (n,) flat cell numbers.
        values: (n,) values.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    cells = cells[finite]
    values = _rounded(np.minimum(np.maximum(values[finite], -LARGEST), LARGEST))
    sums, squares, counts = table.reshape(3, -1)
    np.add.at(sums, cells, values)
    np.add.at(squares, cells, _rounded(values * values))
    np.add.at(counts, cells, 1.0)


def _rounded(values: FloatArray) -> FloatArray:
    return np.rint(values * RESOLUTION) / RESOLUTION


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    out = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _standard_error(sums: FloatArray, squares: FloatArray, counts: FloatArray) -> FloatArray:
    mean = _divide(sums, counts)
    # Rounding can leave a tiny negative number where all values are equal.
    variance = np.maximum(_divide(squares - sums * mean, counts - 1), 0.0)
    return np.where(counts > 1, np.sqrt(_divide(variance, counts)), np.nan)
