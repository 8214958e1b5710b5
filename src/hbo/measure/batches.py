"""Examples of like length side by side, padded on the right, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from hbo.measure.examples import IGNORED, Encoded
from hbo.mixture import IntArray


@dataclass(frozen=True, eq=False)
class Batch:
    """Rectangular tensors of some examples.

    Args:
        input_ids: (B, T) int64, padded on the right.
        attention_mask: (B, T) int64, 1 on tokens, 0 on padding.
        labels: (B, T) int64, -100 on prompt and padding.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device)
        )


def plan_batches(lengths: ArrayLike, tokens_per_batch: int) -> list[IntArray]:
    """Cut examples into batches of like length.

    Examples are sorted by length, longest first (what does not fit in memory fails at the start,
    not after an hour) and, at equal length, by index; a batch is filled until its padded size, rows
    x longest row, would exceed the budget. An example longer than the budget gets a batch of its
    own.

    Args:
        lengths: (n,) tokens of each example.
        tokens_per_batch: Padded tokens that one batch may hold.

    Returns:
        Arrays of indices into ``lengths``: each index once, in all.

    Raises:
        ValueError: The budget is not positive.

    Example:
        >>> [batch.tolist() for batch in plan_batches([3, 9, 4, 4], tokens_per_batch=9)]
        [[1], [2, 3], [0]]
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable").astype(np.int64)
    batches, start = [], 0
    while start < len(order):
        longest = max(int(sizes[order[start]]), 1)
        stop = start + max(tokens_per_batch // longest, 1)
        batches.append(order[start:stop])
        start = stop
    return batches


def collate(examples: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad examples on the right to the longest of them.

    Args:
        examples: B examples, at least one.
        pad_id: Any id of the vocabulary; it is masked everywhere.

    Returns:
        Tensors of shape (B, T), on the CPU.
    """
    shape = len(examples), max(example.num_tokens for example in examples)
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        ids[row, : example.num_tokens] = example.input_ids
        mask[row, : example.num_tokens] = 1
        labels[row, : example.num_tokens] = example.labels
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels))
