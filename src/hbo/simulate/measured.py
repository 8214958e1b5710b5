"""What a trainer would have measured on the toy learner: every signal that a policy can ask for."""

from __future__ import annotations

import numpy as np

from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.observations import loss_signals
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    CELL_HIDDEN_COSINE,
    GRADIENT_COSINE,
    GRADIENT_NORM,
    HELDOUT_COSINE,
    HELDOUT_END_ENTROPY,
    HELDOUT_ENTROPY,
    HELDOUT_EXPECTED,
    HELDOUT_LOSS,
    HELDOUT_PREDICTED,
    HELDOUT_VARIANCE,
    HELDOUT_VARIATION,
    HIDDEN_COSINE,
    LOOKAHEAD_GAIN,
    UNSEEN_LOSS,
)
from hbo.simulate.toy import ToyLearner

GRADIENT_FLOOR = 0.3
"""Gradient norm of an example of a learnt cell: noise that training cannot remove."""
HELDOUT_EXAMPLES = 32
"""Held-out examples of each subset, the same ones each time."""
LOOKAHEAD_DRAWS = 8.0
"""Examples in the batch of a look-ahead step."""
PASS_SPREAD = 0.1
"""Standard deviation of a response's probability over dropout passes, at probability 0."""


class Instruments:
    """Measures a toy learner; all that is random comes from one seed.

    Args:
        toy: The learner.
        mixture: Its cells.
        seed: Of the examples' offsets and of the noise.
    """

    def __init__(self, toy: ToyLearner, mixture: Mixture, seed: int) -> None:
        self._toy, self._mixture = toy, mixture
        self._generator = np.random.default_rng([seed, 2])
        self._offsets = self._generator.normal(0.0, toy.noise, size=mixture.num_examples)
        spread = toy.noise / np.sqrt(HELDOUT_EXAMPLES)
        heldout = np.random.default_rng([seed, 3])
        self._heldout_offsets = heldout.normal(0.0, spread, size=mixture.num_subsets)

    def probe(self, count: int) -> IntArray:
        """Examples of a probe: ``count`` of every cell (some twice, where it has fewer)."""
        sizes = self._mixture.sizes.ravel()
        filled = np.flatnonzero(sizes)
        places = (self._generator.random((len(filled), count)) * sizes[filled, None]).astype(int)
        return np.asarray((self._mixture.offsets[filled][:, None] + places).ravel(), dtype=np.int64)

    def of_examples(self, example_ids: IntArray, cell_losses: FloatArray) -> dict[str, FloatArray]:
        """Losses, ratios and gradient norms of single examples.

        An example's loss is its cell's, an offset of its own and noise. Its gradient has the norm
        sqrt(loss - floor) + 0.3 of a quadratic bowl, plus what noise leaves.

        Args:
            example_ids: (n,) examples.
            cell_losses: (n,) loss of their cells when they were measured.
        """
        toy = self._toy
        cells, offsets = self._mixture.cell_of(example_ids), self._offsets[example_ids]
        above = np.maximum(cell_losses - toy.floor.ravel()[cells], 0.0)
        wobble = self._generator.normal(0.0, toy.noise, size=(2, len(example_ids)))
        first = (toy.floor + toy.gap).ravel()[cells] + offsets
        values = loss_signals(cell_losses + offsets + 0.3 * wobble[0], first)
        norms = (np.sqrt(above) + GRADIENT_FLOOR) * np.exp(wobble[1])
        return values | {GRADIENT_NORM: norms}

    def whole(self, draws: IntArray) -> dict[str, FloatArray]:
        """What is measured on whole subsets and cells after (K, G) draws.

        - Norm of a batch's gradient: g_i = sqrt of the subset's mean loss above its floor.
        - Cosines of gradients: subsets point apart but for the transfer t, and a batch's gradient
          is noise but for s_i = g_i / sqrt(g_i^2 + 0.3^2): cos(i, k) = t s_i s_k between subsets,
          s_i^2 with held-out data of its own, 1 with itself.
        - Cosines of hidden states: all subsets look alike to the untouched model, and apart (but
          for t) to one that has learnt them. With u_i the part of the gap that is left,
          a_i = sqrt(t + (1 - t) u_i) and cos(i, k) = a_i a_k, 1 with itself. The same for cells.
        - Look-ahead gain: exact fall of the subset's loss after 8 more draws of it.
        - Held-out loss: the toy's, over-fitting included, and a constant error of each subset, as
          32 examples leave it: the only error among these.
        - Uncertainties rise with the held-out loss l, like those of a calibrated model: entropy l,
          at the end l / 2; with p = exp(-l): predicted and expected 1 - p, variance 0.1^2 (1 - p),
          variation the variance over p.
        """
        toy = self._toy
        left = np.maximum(toy.losses(draws) - toy.floor, 0.0)
        whole = np.sqrt((toy.shares * left).sum(axis=1))
        clear = whole / np.sqrt(whole**2 + GRADIENT_FLOOR**2)
        others = toy.transfer * clear * (clear.sum() - clear)
        unlearnt = left / toy.gap
        subsets = (toy.shares * unlearnt).sum(axis=1)
        heldout = (toy.shares * toy.heldout(draws)).sum(axis=1) + self._heldout_offsets
        return {
            BATCH_GRADIENT_NORM: whole,
            GRADIENT_COSINE: (others + 1.0) / len(whole),
            HELDOUT_COSINE: (others + clear**2) / len(whole),
            HIDDEN_COSINE: _mean_cosine(subsets, toy.transfer),
            CELL_HIDDEN_COSINE: _mean_cosine(unlearnt, toy.transfer),
            LOOKAHEAD_GAIN: toy.lookahead_gain(draws, LOOKAHEAD_DRAWS),
            HELDOUT_LOSS: heldout,
            UNSEEN_LOSS: heldout,
            **_uncertainties(heldout),
        }


def _mean_cosine(unlearnt: FloatArray, transfer: float) -> FloatArray:
    """Mean over all, itself included, of a_i a_k."""
    alike = np.sqrt(transfer + (1.0 - transfer) * np.minimum(unlearnt, 1.0))
    return np.asarray((alike * (alike.sum() - alike) + 1.0) / alike.size, dtype=np.float64)


def _uncertainties(loss: FloatArray) -> dict[str, FloatArray]:
    certain = np.exp(-np.maximum(loss, 0.0))
    variance = PASS_SPREAD**2 * (1.0 - certain)
    return {
        HELDOUT_ENTROPY: np.maximum(loss, 0.0),
        HELDOUT_END_ENTROPY: np.maximum(loss, 0.0) / 2,
        HELDOUT_PREDICTED: 1.0 - certain,
        HELDOUT_EXPECTED: 1.0 - certain,
        HELDOUT_VARIANCE: variance,
        HELDOUT_VARIATION: variance / certain,
    }
