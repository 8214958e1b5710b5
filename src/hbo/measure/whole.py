"""Signals measured on whole subsets: for each, how it is measured and what passes that takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import nn

from hbo.measure.gradient_cosines import gradient_cosines, heldout_cosines
from hbo.measure.gradient_norm import batch_gradient_norm
from hbo.measure.hidden_states import mean_cosines, mean_hidden_states
from hbo.measure.lookahead import lookahead_gain, token_mean_loss
from hbo.measure.uncertainty import uncertainties
from hbo.mixture import FloatArray, IntArray
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    CELL_HIDDEN_COSINE,
    GRADIENT_COSINE,
    HELDOUT_COSINE,
    HELDOUT_LOSS,
    HIDDEN_COSINE,
    LOOKAHEAD_GAIN,
    UNCERTAINTIES,
    UNSEEN_LOSS,
)

if TYPE_CHECKING:
    from hbo.measure.probe import Probe

Source = Literal["batch", "cells", "heldout", "heldout batch", "heldout passes"]
"""Examples that a pass reads, of each subset: the probe's batch of it; some of each of its cells;
a sample of its held-out ones, always the same; a batch of held-out ones, drawn; that sample, once
for each pass that uncertainties take.
"""

Found = Mapping[str, FloatArray]
"""Signal name -> (K,) values, (K, G) of ``CELL_SIGNALS``; NaN where not measured."""


@dataclass(frozen=True)
class Measurement:
    """How one signal, or several that come from the same passes, are measured.

    Args:
        measure: From a probe, a model, the numbers of the subsets to measure and the number of the
            probe to the values.
        forward: The examples of each forward pass without a backward pass.
        both_ways: The examples of each forward and backward pass.
        compares: It compares subsets with each other: one rank measures them all. Otherwise they
            are dealt to the ranks.
    """

    measure: Callable[[Probe, nn.Module, IntArray, int], Found]
    forward: tuple[Source, ...] = ()
    both_ways: tuple[Source, ...] = ()
    compares: bool = False


def measurements(wanted: Collection[str]) -> list[Measurement]:
    """What has to be done for the wanted signals; others of ``wanted`` are no concern of it."""
    found = {WHOLE[name]: None for name in WHOLE if name in wanted}
    return list(found)


def _each(
    name: str, probe: Probe, subsets: IntArray, value: Callable[[int], float]
) -> dict[str, FloatArray]:
    column = np.full(probe.mixture.num_subsets, np.nan)
    for subset in subsets.tolist():
        column[subset] = value(subset)
    return {name: column}


def _batch_norms(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    def norm(subset: int) -> float:
        return batch_gradient_norm(model, probe.batch(number, subset), **probe.settings)

    return _each(BATCH_GRADIENT_NORM, probe, subsets, norm)


def _gradient_cosines(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    """Mean cosine of each subset's gradient with those of all subsets, itself included."""
    means = np.full(probe.mixture.num_subsets, np.nan)
    batches = [probe.batch(number, subset) for subset in subsets.tolist()]
    if batches:
        cosines = gradient_cosines(model, batches, **probe.settings)
        known = np.isfinite(np.diag(cosines))
        if known.any():
            means[subsets[known]] = cosines[known][:, known].mean(axis=1)
    return {GRADIENT_COSINE: means}


def _heldout_cosines(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    found = np.full(probe.mixture.num_subsets, np.nan)
    if len(subsets):
        batches = (probe.batch(number, subset) for subset in subsets.tolist())
        everywhere = range(probe.mixture.num_subsets)
        heldout = (probe.heldout_batch(number, subset) for subset in everywhere)
        found[subsets] = heldout_cosines(model, batches, heldout, **probe.settings)
    return {HELDOUT_COSINE: found}


def _hidden_cosines(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    ids = [probe.subset_batch(number, subset) for subset in subsets.tolist()]
    found = _cosines(probe, model, ids, probe.mixture.subset_of, probe.mixture.num_subsets)
    return {HIDDEN_COSINE: found}


def _cell_hidden_cosines(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    sizes = probe.mixture.sizes
    cells = np.zeros(sizes.shape, dtype=np.bool_)
    cells[subsets] = True
    ids = [probe.cell_examples(number, probe.examples_per_cell, cells)]
    found = _cosines(probe, model, ids, probe.mixture.cell_of, sizes.size)
    return {CELL_HIDDEN_COSINE: found.reshape(sizes.shape)}


def _cosines(
    probe: Probe,
    model: nn.Module,
    ids: list[IntArray],
    set_of: Callable[[IntArray], IntArray],
    count: int,
) -> FloatArray:
    chosen = np.concatenate([np.empty(0, dtype=np.int64), *ids])
    if not len(chosen):
        return np.full(count, np.nan)
    states = mean_hidden_states(model, probe.get_examples(chosen), **probe.settings)
    return mean_cosines(states, set_of(chosen), count)


def _lookahead_gains(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    assert probe.learning_rate is not None
    rate = probe.learning_rate()

    def gain(subset: int) -> float:
        return lookahead_gain(model, probe.batch(number, subset), rate, **probe.settings)

    return _each(LOOKAHEAD_GAIN, probe, subsets, gain)


def _heldout_losses(
    name: str, probe: Probe, model: nn.Module, subsets: IntArray, _number: int
) -> Found:
    def loss(subset: int) -> float:
        return token_mean_loss(model, probe.heldout_sample(subset), **probe.settings)

    return _each(name, probe, subsets, loss)


def _uncertainties(probe: Probe, model: nn.Module, subsets: IntArray, number: int) -> Found:
    found = {name: np.full(probe.mixture.num_subsets, np.nan) for name in UNCERTAINTIES}
    for subset in subsets.tolist():
        seeds = probe.dropout_seeds(number, subset)
        examples = probe.heldout_sample(subset)
        values = uncertainties(model, examples, seeds=seeds, **probe.settings)
        for name, value in values.items():
            found[name][subset] = value
    return found


_UNCERTAINTY = Measurement(_uncertainties, forward=("heldout passes",))

WHOLE: dict[str, Measurement] = {
    BATCH_GRADIENT_NORM: Measurement(_batch_norms, both_ways=("batch",)),
    GRADIENT_COSINE: Measurement(_gradient_cosines, both_ways=("batch",), compares=True),
    HIDDEN_COSINE: Measurement(_hidden_cosines, forward=("batch",), compares=True),
    CELL_HIDDEN_COSINE: Measurement(_cell_hidden_cosines, forward=("cells",), compares=True),
    LOOKAHEAD_GAIN: Measurement(_lookahead_gains, forward=("batch", "batch"), both_ways=("batch",)),
    HELDOUT_LOSS: Measurement(partial(_heldout_losses, HELDOUT_LOSS), forward=("heldout",)),
    UNSEEN_LOSS: Measurement(partial(_heldout_losses, UNSEEN_LOSS), forward=("heldout",)),
    HELDOUT_COSINE: Measurement(
        _heldout_cosines, both_ways=("batch", "heldout batch"), compares=True
    ),
    **dict.fromkeys(sorted(UNCERTAINTIES), _UNCERTAINTY),
}
"""Every signal that is measured whole. A new one is a function and a line here."""
