"""A probe: extra passes over a few examples of each cell, only to measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.batches import TokenBudget
from hbo.measure.examples import Encoded
from hbo.measure.gradient_norm import batch_gradient_norm, example_gradient_norms, gradient_cosines
from hbo.measure.response import response_losses
from hbo.measure.sharding import check_probe, probed_together
from hbo.measure.taps import DEFAULT_SCOPE, Scope
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    GRADIENT_COSINE,
    GRADIENT_NORM,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
)

LOSS_SIGNALS = frozenset({LOSS, PERPLEXITY, PERPLEXITY_RATIO})
PROBED_SIGNALS = LOSS_SIGNALS | {GRADIENT_NORM, BATCH_GRADIENT_NORM, GRADIENT_COSINE}

# First word of the random counter, so that no choice of examples shares numbers with another kind.
_CELLS, _SUBSETS = 0, 1
_KEY = 0x70726F6265  # "probe": apart from the generators of the training stream, whatever the seed


@dataclass(frozen=True, eq=False)
class ProbeValues:
    """What one probe measured on one rank.

    Args:
        examples: Signal name -> (example ids (n,), values (n,)), for ``Balancer.observe``.
        whole: Signal name -> (K,) values, NaN where this rank did not measure the subset.
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

    Raises:
        ConfigError: A number of examples is below 1.
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

    def __post_init__(self) -> None:
        for name in ("examples_per_cell", "gradient_examples_per_cell", "examples_per_subset"):
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
        groups = self.mixture.num_groups
        count = self.examples_per_subset or self.examples_per_cell * groups
        size = int(self.mixture.subset_sizes[subset])
        start = self.mixture.offsets[subset * groups]
        return np.asarray(start + self._choice(_SUBSETS, number, subset, size, count))

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
            ConfigError: A signal that no probe measures, or none on a model sharded in this way
                (``check_probe``); ``perplexity_ratio`` without ``first_loss``.
        """
        self._check(model, wanted)
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
            norms = example_gradient_norms(
                model,
                self.get_examples(norm_ids),
                scope=self.scope,
                tokens_per_batch=self._budget,
                pad_id=self.pad_id,
                dtype=self.dtype,
            )
            examples[GRADIENT_NORM] = (norm_ids, norms)
        subsets = np.arange(self.mixture.num_subsets)
        if cells is not None:
            subsets = subsets[cells.any(axis=1)]
        whole: dict[str, FloatArray] = {}
        backward = len(norm_ids)
        if BATCH_GRADIENT_NORM in wanted:
            whole[BATCH_GRADIENT_NORM] = self._batch_norms(model, subsets[mine], number)
            backward += sum(len(self.subset_batch(number, int(k))) for k in subsets[mine])
        if GRADIENT_COSINE in wanted:
            compared = subsets if rank == 0 else subsets[:0]
            whole[GRADIENT_COSINE] = self._mean_cosines(model, compared, number)
            backward += sum(len(self.subset_batch(number, int(k))) for k in compared)
        return ProbeValues(examples, whole, len(loss_ids), backward)

    @cached_property
    def _budget(self) -> TokenBudget:
        return TokenBudget(self.tokens_per_batch, self.notice)

    def _check(self, model: nn.Module, wanted: Collection[str]) -> None:
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
        check_probe(model, wanted)

    def _choice(self, kind: int, number: int, place: int, size: int, count: int) -> IntArray:
        """``count`` distinct positions below ``size``; of a larger count, a smaller is the head."""
        bits = np.random.Philox(key=[self.seed % 2**64, _KEY], counter=[0, kind, number, place])
        generator = np.random.Generator(bits)
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
        losses = response_losses(
            model,
            self.get_examples(ids),
            tokens_per_batch=self._budget,
            pad_id=self.pad_id,
            dtype=self.dtype,
        )
        values = {LOSS: losses}
        # An overflow to infinity is left out of the tables, as every value that is not finite.
        with np.errstate(over="ignore"):
            values[PERPLEXITY] = np.exp(losses)
            if PERPLEXITY_RATIO in wanted and self.first_loss is not None:
                values[PERPLEXITY_RATIO] = np.exp(losses - self.first_loss(ids))
        return {name: found for name, found in values.items() if name in wanted}

    def _batch_norms(self, model: nn.Module, subsets: IntArray, number: int) -> FloatArray:
        norms = np.full(self.mixture.num_subsets, np.nan)
        for subset in subsets:
            norms[subset] = batch_gradient_norm(
                model,
                self.get_examples(self.subset_batch(number, int(subset))),
                tokens_per_batch=self._budget,
                pad_id=self.pad_id,
                dtype=self.dtype,
            )
        return norms

    def _mean_cosines(self, model: nn.Module, subsets: IntArray, number: int) -> FloatArray:
        """(K,) mean cosine of each subset's gradient with those of all subsets, itself included."""
        means = np.full(self.mixture.num_subsets, np.nan)
        if not len(subsets):
            return means
        cosines = gradient_cosines(
            model,
            [self.get_examples(self.subset_batch(number, int(subset))) for subset in subsets],
            tokens_per_batch=self._budget,
            pad_id=self.pad_id,
            dtype=self.dtype,
        )
        known = np.isfinite(np.diag(cosines))
        if known.any():
            means[subsets[known]] = cosines[known][:, known].mean(axis=1)
        return means
