"""The probe of a tokenised dataset: rows out of it, in the precision of the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hbo.data.assemble import FIRST_LOSS_COLUMN
from hbo.data.packing import SEGMENTS_COLUMN, is_packed, segment_of
from hbo.measure.examples import Encoded
from hbo.measure.probe import Probe
from hbo.mixture import FloatArray, IntArray, Mixture

if TYPE_CHECKING:
    from datasets import Dataset

TOKENS_PER_BATCH = 1024
"""A probe has few examples of many lengths: small batches waste little of their work on padding."""


def mean_first_losses(dataset: Dataset, mixture: Mixture) -> FloatArray | None:
    """(K,) mean loss of each subset under the untouched model; ``None`` where it is not known.

    Close enough on any device, and another for another model: it says whether a resumed run still
    has the model that its rewards refer to.
    """
    if FIRST_LOSS_COLUMN not in dataset.column_names:
        return None
    losses, subsets = dataset[FIRST_LOSS_COLUMN], mixture.subset_of(np.arange(len(dataset)))
    if is_packed(dataset):
        subsets = np.repeat(subsets, [len(row) for row in losses])
        losses = [value for row in losses for value in row]
    losses = np.asarray(losses, dtype=np.float64)
    known = np.isfinite(losses)
    sums = np.bincount(subsets[known], losses[known], minlength=mixture.num_subsets)
    counts = np.bincount(subsets[known], minlength=mixture.num_subsets)
    means: FloatArray = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def dataset_probe(
    dataset: Dataset,
    mixture: Mixture,
    *,
    examples_per_subset: int,
    seed: int,
    pad_id: int,
    dtype: torch.dtype | None = None,
    notice: Callable[[str], None] | None = None,
    heldout: Mapping[str, Sequence[Encoded]] | None = None,
    heldout_examples: int = 32,
    dropout_passes: int | None = None,
    learning_rate: Callable[[], float] | None = None,
) -> Probe:
    """A probe over the rows of a dataset in the mixture's layout.

    Of a packed row it takes one example (``segment_of``).

    Args:
        dataset: Rows with ``input_ids``, ``labels`` and, where known, ``hbo_first_loss``.
        mixture: Its layout.
        examples_per_subset: Budget of one probe per subset, spread evenly over its groups.
        seed: Seed of the choice of examples.
        pad_id: Any id of the vocabulary.
        dtype: Autocast type; ``None``: the weights' own.
        notice: Told, in one line, when memory ran out in a probe.
        heldout: Validation examples by subset, where there are some.
        heldout_examples: As for ``Probe``, like the two that follow.
        dropout_passes: Passes with dropout.
        learning_rate: The present one of the training.
    """
    has_first_loss = FIRST_LOSS_COLUMN in dataset.column_names
    packed = is_packed(dataset)
    segments = sum(len(row) for row in dataset[SEGMENTS_COLUMN]) if packed else len(dataset)

    def rows(example_ids: IntArray) -> dict[str, Any]:
        columns = dict(dataset[example_ids.tolist()])
        if packed:
            parts = example_ids.tolist(), columns["labels"], columns[SEGMENTS_COLUMN]
            chosen = [segment_of(*row) for row in zip(*parts, strict=True)]
            for name in ("input_ids", "labels"):
                columns[name] = [
                    row[place] for row, (_, place) in zip(columns[name], chosen, strict=True)
                ]
            losses = zip(columns[FIRST_LOSS_COLUMN], chosen, strict=True)
            columns[FIRST_LOSS_COLUMN] = [row[number] for row, (number, _) in losses]
        return columns

    def get_examples(example_ids: IntArray) -> list[Encoded]:
        columns = rows(example_ids)
        pairs = zip(columns["input_ids"], columns["labels"], strict=True)
        return [Encoded(np.asarray(ids), np.asarray(labels)) for ids, labels in pairs]

    def first_loss(example_ids: IntArray) -> FloatArray:
        return np.asarray(rows(example_ids)[FIRST_LOSS_COLUMN], dtype=np.float64)

    return Probe(
        mixture,
        get_examples,
        first_loss if has_first_loss else None,
        examples_per_cell=math.ceil(examples_per_subset / mixture.num_groups),
        examples_per_subset=examples_per_subset,
        seed=seed,
        tokens_per_batch=TOKENS_PER_BATCH,
        pad_id=pad_id,
        dtype=dtype,
        notice=notice,
        examples_per_row=segments / len(dataset),
        heldout=[(heldout or {}).get(name, ()) for name in mixture.names],
        heldout_examples=heldout_examples,
        dropout_passes=dropout_passes,
        learning_rate=learning_rate,
    )
