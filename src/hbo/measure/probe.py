"""A probe: extra passes over a few examples of each cell, only to measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.batches import TokenBudget
from hbo.measure.examples import Encoded
from hbo.measure.fingerprints import examples_fingerprint
from hbo.measure.gradient_norm import example_gradient_norms
from hbo.measure.response import response_losses
from hbo.measure.sharding import check_probe, probed_together
from hbo.measure.taps import DEFAULT_SCOPE, Scope
from hbo.measure.uncertainty import SPREADS, check_dropout
from hbo.measure.whole import WHOLE, Measurement, Source, measurements
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.signals import (
    GRADIENT_NORM,
    HELDOUT_SIGNALS,
    LOOKAHEAD_GAIN,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    UNCERTAINTIES,
    UNSEEN_LOSS,
)

LOSS_SIGNALS = frozenset({LOSS, PERPLEXITY, PERPLEXITY_RATIO})
PROBED_SIGNALS = LOSS_SIGNALS | {GRADIENT_NORM} | set(WHOLE)

# First word of the random counter, so that no choice of examples shares numbers with another kind.
_CELLS, _SUBSETS, _HELDOUT, _DROPOUT = range(4)
_KEY = 0x70726F6265  # "probe": apart from the generators of the training stream, whatever the seed


@dataclass(frozen=True, eq=False)
class ProbeValues:
    """What one probe measured on one rank.

    Args:
        examples: Signal name -> (example ids (n,), values (n,)), for ``Balancer.observe``.
        whole: Signal name -> (K,) values, (K, G) of ``CELL_SIGNALS``; NaN where this rank did not
            measure.
        forward_examples: Examples run forward only.
        backward_examples: Examples run forward and backward.
    """

    examples: Mapping[str, tuple[IntArray, FloatArray]]
    whole: Mapping[str, FloatArray]
    forward_examples: int
    backward_examples: int

    def none(self) -> ProbeValues:
        """The same measurement, made, but handed in by another rank."""
        nothing = np.empty(0, np.int64), np.empty(0)
        return replace(
            self,
            examples=dict.fromkeys(self.examples, nothing),
            whole={name: np.full_like(column, np.nan) for name, column in self.whole.items()},
        )


@dataclass(frozen=True, eq=False)
class Probe:
    """Chooses examples of each cell for a numbered probe, and measures signals on them.

    The choice is a function of (seed, number of the probe, cell): it is the same after a resume and
    on any number of ranks, and takes nothing from the training stream. The model is left as it was,
    bit for bit (``undisturbed``).

    Args:
        mixture: What there is to choose from.
        get_examples: Encoded examples of given ids, in their order.
        first_loss: Loss under the untouched model of given ids, nats per response token, NaN where
            unknown; needed by ``perplexity_ratio`` only.
        examples_per_cell: Examples of each cell for per-example signals.
        gradient_examples_per_cell: The same for ``gradient_norm``, which costs three to four times
            as much; ``None``: as many. The smaller choice is the head of the larger.
        examples_per_subset: Examples of the batch of a subset that is measured whole (drawn
            uniformly from it: B_i of Eq. 7); ``None``: ``examples_per_cell`` x groups.
        seed: Seed of the choice.
        tokens_per_batch: Padded tokens of one batch, to begin with: when memory runs out, this and
            all later probes go on with smaller ones (``TokenBudget``).
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.
        scope: Trained parameters that a per-example gradient norm covers.
        examples_per_row: Mean examples of a row that is drawn; more than 1 where rows are packed.
        notice: Told, in one line, when memory ran out.
        heldout: Held-out examples of each of the K subsets, none or some; ``None``: none.
        heldout_examples: The most of them that a forward pass reads.
        dropout_passes: Passes over those, with dropout on, that uncertainties are taken from;
            ``None``: one without.
        learning_rate: The present one of the training; needed by ``lookahead_gain`` only.

    Raises:
        ConfigError: A number of examples or passes is below 1.
    """

    mixture: Mixture
    get_examples: Callable[[IntArray], Sequence[Encoded]]
    first_loss: Callable[[IntArray], FloatArray] | None = None
    examples_per_cell: int = 4
    gradient_examples_per_cell: int | None = None
    examples_per_subset: int | None = None
    seed: int = 0
    tokens_per_batch: int = 4096
    pad_id: int = 0
    dtype: torch.dtype | None = None
    scope: Scope = DEFAULT_SCOPE
    examples_per_row: float = 1.0
    notice: Callable[[str], None] | None = None
    heldout: Sequence[Sequence[Encoded]] | None = None
    heldout_examples: int = 32
    dropout_passes: int | None = None
    learning_rate: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        for name in (
            "examples_per_cell",
            "gradient_examples_per_cell",
            "examples_per_subset",
            "heldout_examples",
            "dropout_passes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")

    def cell_examples(
        self, number: int, count: int, cells: NDArray[np.bool_] | None = None
    ) -> IntArray:
        """Ids of the ``count`` examples of each cell that probe ``number`` reads.

        Args:
            number: Counts the probes of a run; the optimiser step will do.
            count: Examples per cell, drawn without repetition; all of a smaller cell.
            cells: (K, G) True for the cells to read; ``None``: all.

        Returns:
            Ids, cell by cell.
        """
        wanted = np.ones(self.mixture.sizes.size, bool) if cells is None else cells.ravel()
        sizes, offsets = self.mixture.sizes.ravel(), self.mixture.offsets
        chosen = [
            offsets[cell] + self._choice(_CELLS, number, int(cell), int(sizes[cell]), count)
            for cell in np.flatnonzero(wanted & (sizes > 0))
        ]
        return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)

    def subset_batch(self, number: int, subset: int) -> IntArray:
        """Ids of the batch, uniform over the subset, that probe ``number`` measures whole."""
        size = int(self.mixture.subset_sizes[subset])
        start = self.mixture.offsets[subset * self.mixture.num_groups]
        chosen = self._choice(_SUBSETS, number, subset, size, self._batch_size)
        return np.asarray(start + chosen)

    def batch(self, number: int, subset: int) -> Sequence[Encoded]:
        """The examples of ``subset_batch``."""
        return self.get_examples(self.subset_batch(number, subset))

    def heldout_batch(self, number: int, subset: int) -> list[Encoded]:
        """As many held-out examples of a subset, chosen for probe ``number``; all of fewer."""
        known = self._heldout_of(subset)
        chosen = self._choice(_HELDOUT, number, subset, len(known), self._batch_size)
        return [known[place] for place in chosen.tolist()]

    def heldout_sample(self, subset: int) -> list[Encoded]:
        """The held-out examples of a subset that every probe of every run reads, evenly spaced."""
        known = self._heldout_of(subset)
        count = min(self.heldout_examples, len(known))
        return [known[number * len(known) // count] for number in range(count)]

    def dropout_seeds(self, number: int, subset: int) -> list[int] | None:
        """A seed for each pass with dropout over a subset, the same on any rank."""
        if self.dropout_passes is None:
            return None
        bits = self._bits(_DROPOUT, number, subset)
        return [int(word) for word in bits.random_raw(self.dropout_passes) >> np.uint64(1)]

    @property
    def settings(self) -> dict[str, Any]:
        """How every pass is made."""
        return {"tokens_per_batch": self._budget, "pad_id": self.pad_id, "dtype": self.dtype}

    def count(self, source: Source, subset: int) -> int:
        """How many examples of a subset a pass over ``source`` runs."""
        size = int(self.mixture.subset_sizes[subset])
        held = len(self._heldout_of(subset))
        sample = min(self.heldout_examples, held)
        counts: dict[Source, int] = {
            "batch": min(self._batch_size, size),
            "cells": int(np.minimum(self.mixture.sizes[subset], self.examples_per_cell).sum()),
            "heldout": sample,
            "heldout batch": min(self._batch_size, held),
            "heldout passes": sample * (self.dropout_passes or 1),
        }
        return counts[source]

    def passes(self, task: Measurement, subsets: IntArray) -> IntArray:
        """(2,) examples run forward only, and run forward and backward, on some subsets."""
        sources = task.forward, task.both_ways
        return np.array(
            [sum(self.count(s, k) for k in subsets.tolist() for s in part) for part in sources]
        )

    def measure(
        self,
        model: nn.Module,
        wanted: Collection[str],
        number: int,
        *,
        cells: NDArray[np.bool_] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> ProbeValues:
        """Measure the wanted signals, this rank's share of them.

        Examples and subsets are dealt to the ranks in turn: rank r takes numbers r, r + world_size,
        ... of the whole choice, and the ranks' values put together are those of one rank. Cosines
        compare every subset with every other and are rank 0's. Of a sharded model, whose ranks have
        to enter every pass together, all measure everything, and rank 0 alone hands it in.

        Args:
            model: The model in training; wrappers such as DistributedDataParallel are looked
                through.
            wanted: Signal names, of ``PROBED_SIGNALS``.
            number: As in ``cell_examples``.
            cells: (K, G) True for the cells to measure; whole signals are measured for subsets with
                any. ``None``: all.
            rank: This process's number.
            world_size: How many processes measure.

        Returns:
            Per-example values and whole values; only those wanted.

        Raises:
            ConfigError: It cannot be measured (``check``).
        """
        self.check(model, wanted)
        if not probed_together(model):
            return self._measure(model, wanted, number, cells, rank, world_size)
        values = self._measure(model, wanted, number, cells, 0, 1)
        return values if rank == 0 else values.none()

    def _measure(
        self,
        model: nn.Module,
        wanted: Collection[str],
        number: int,
        cells: NDArray[np.bool_] | None,
        rank: int,
        world_size: int,
    ) -> ProbeValues:
        mine = slice(rank, None, world_size)
        loss_ids, norm_ids = np.empty(0, np.int64), np.empty(0, np.int64)
        examples: dict[str, tuple[IntArray, FloatArray]] = {}
        if LOSS_SIGNALS & set(wanted):
            loss_ids = self.cell_examples(number, self.examples_per_cell, cells)[mine]
            values = self._loss_signals(model, loss_ids, wanted)
            examples |= {name: (loss_ids, found) for name, found in values.items()}
        if GRADIENT_NORM in wanted:
            count = self.gradient_examples_per_cell or self.examples_per_cell
            norm_ids = self.cell_examples(number, count, cells)[mine]
            normed = self.get_examples(norm_ids)
            norms = example_gradient_norms(model, normed, scope=self.scope, **self.settings)
            examples[GRADIENT_NORM] = (norm_ids, norms)
        subsets = np.arange(self.mixture.num_subsets)
        if cells is not None:
            subsets = subsets[cells.any(axis=1)]
        whole: dict[str, FloatArray] = {}
        passes = np.array([len(loss_ids), len(norm_ids)])
        for task in measurements(wanted):
            compared = subsets if rank == 0 else subsets[:0]
            chosen = compared if task.compares else subsets[mine]
            found = task.measure(self, model, chosen, number)
            whole |= {name: column for name, column in found.items() if name in wanted}
            passes += self.passes(task, chosen)
        return ProbeValues(examples, whole, int(passes[0]), int(passes[1]))

    @cached_property
    def _budget(self) -> TokenBudget:
        return TokenBudget(self.tokens_per_batch, self.notice)

    @property
    def _batch_size(self) -> int:
        return self.examples_per_subset or self.examples_per_cell * self.mixture.num_groups

    @cached_property
    def heldout_fingerprint(self) -> str:
        """Hash of all held-out examples."""
        return examples_fingerprint([one for part in self.heldout or () for one in part])

    def _heldout_of(self, subset: int) -> Sequence[Encoded]:
        return self.heldout[subset] if self.heldout else ()

    def check(self, model: nn.Module, wanted: Collection[str]) -> None:
        """Refuse, before any pass, what cannot be measured on a model.

        Raises:
            ConfigError: As ``check_settings``; a model sharded in a way that does not allow it
                (``check_probe``); passes with dropout of a model without any.
        """
        self.check_settings(wanted)
        if self.dropout_passes is not None and UNCERTAINTIES & set(wanted):
            check_dropout(model)
        check_probe(model, wanted)

    def check_settings(self, wanted: Collection[str]) -> None:
        """Refuse, before there is a model, what cannot be measured.

        Raises:
            ConfigError: A signal that no probe measures; ``perplexity_ratio`` without
                ``first_loss``, ``lookahead_gain`` without ``learning_rate``, a spread over passes
                without two of them, or a held-out signal where a subset has no held-out example.
        """
        unknown = sorted(set(wanted) - PROBED_SIGNALS)
        if unknown:
            raise ConfigError(
                f"a probe cannot measure {unknown[0]!r}; "
                f"it measures {', '.join(sorted(PROBED_SIGNALS))}"
            )
        if PERPLEXITY_RATIO in wanted and self.first_loss is None:
            raise ConfigError(
                "perplexity_ratio needs the loss of each example under the untouched model "
                "(first_loss); score the mixture with the model that is trained"
            )
        if LOOKAHEAD_GAIN in wanted and self.learning_rate is None:
            raise ConfigError(
                "lookahead_gain needs the training's present learning rate; give "
                "BalancedLoop(learning_rate=lambda: optimizer.param_groups[0]['lr'])"
            )
        spreads = sorted(SPREADS & set(wanted))
        if spreads and (self.dropout_passes or 1) < 2:
            raise ConfigError(
                f"{spreads[0]} is a difference between passes with dropout; set "
                "balance.dropout_passes to 2 or more, or use an entropy"
            )
        self._check_heldout(sorted(HELDOUT_SIGNALS & set(wanted) - {UNSEEN_LOSS}))

    def _check_heldout(self, wanted: Sequence[str]) -> None:
        without = [
            name for k, name in enumerate(self.mixture.names) if not len(self._heldout_of(k))
        ]
        if wanted and without:
            raise ConfigError(
                f"{wanted[0]} is measured on held-out examples, and subset {without[0]!r} has none;"
                " give build_mixture(heldout=...) some of each subset or, in a configuration, set "
                "evaluation.holdout or eval_files"
            )

    def _bits(self, kind: int, number: int, place: int) -> np.random.Philox:
        return np.random.Philox(key=[self.seed % 2**64, _KEY], counter=[0, kind, number, place])

    def _choice(self, kind: int, number: int, place: int, size: int, count: int) -> IntArray:
        """``count`` distinct positions below ``size``; of a larger count, a smaller is the head."""
        generator = np.random.Generator(self._bits(kind, number, place))
        count = min(count, size)
        chosen: dict[int, None] = {}
        # One draw after another, repeats thrown away: memory of the choice only, in cells of any
        # size.
        while len(chosen) < count:
            if 2 * len(chosen) > size:
                rest = np.setdiff1d(np.arange(size), np.fromiter(chosen, np.int64))
                chosen |= dict.fromkeys(generator.permutation(rest)[: count - len(chosen)].tolist())
            else:
                chosen[int(generator.integers(size))] = None
        return np.fromiter(chosen, np.int64, len(chosen))

    def _loss_signals(
        self, model: nn.Module, ids: IntArray, wanted: Collection[str]
    ) -> dict[str, FloatArray]:
        losses = response_losses(model, self.get_examples(ids), **self.settings)
        values = {LOSS: losses}
        # An overflow to infinity is left out of the tables, as every value that is not finite.
        with np.errstate(over="ignore"):
            values[PERPLEXITY] = np.exp(losses)
            if PERPLEXITY_RATIO in wanted and self.first_loss is not None:
                values[PERPLEXITY_RATIO] = np.exp(losses - self.first_loss(ids))
        return {name: found for name, found in values.items() if name in wanted}
