"""Examples of like length side by side, padded on the right, under a budget of tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from hbo.errors import EnvironmentProblem
from hbo.measure.examples import IGNORED, Encoded
from hbo.mixture import IntArray

Found = TypeVar("Found")


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


BATCH_COST = 64
"""What a batch costs before its first token, in padded tokens: measured on a CPU."""

ACCELERATOR_BATCH_COST = 512
"""The same elsewhere, by calculation: to read the weights takes as long as some 300 tokens (an
H100's bf16 arithmetic over its bandwidth), and each layer's kernels have to be launched.
"""


def plan_batches(
    lengths: ArrayLike, tokens_per_batch: int, batch_cost: int = BATCH_COST
) -> list[IntArray]:
    """Cut examples into batches of like length, with little padding and few batches.

    Examples are sorted by length, longest first (what does not fit in memory fails at the start,
    not after an hour) and, at equal length, by index. Of all ways to cut that row into batches
    whose padded size, rows x longest row, is within the budget, one is taken that has the fewest
    padded tokens, each batch counted as ``batch_cost`` tokens more. An example longer than the
    budget gets a batch of its own.

    Args:
        lengths: (n,) tokens of each example.
        tokens_per_batch: Padded tokens that one batch may hold.
        batch_cost: Padded tokens that cost as much as one more batch.

    Returns:
        Arrays of indices into ``lengths``: each index once, in all.

    Raises:
        ValueError: The budget is not positive.

    Example:
        >>> lengths = [30, 9, 29, 8, 8]
        >>> [batch.tolist() for batch in plan_batches(lengths, 60, batch_cost=10)]
        [[0, 2], [1, 3, 4]]
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, got {tokens_per_batch}")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable").astype(np.int64)
    starts = _best_starts(np.maximum(sizes[order], 1), tokens_per_batch, batch_cost)
    batches, stop = [], len(order)
    while stop:
        start = int(starts[stop])
        batches.append(order[start:stop])
        stop = start
    return batches[::-1]


def _best_starts(longest: IntArray, budget: int, batch_cost: int) -> IntArray:
    """(n + 1,) for every first part of the row, where the last of its cheapest batches starts.

    A batch need only start where the length changes, or be full: any other would take in one row
    more at no cost. So few starts are tried for each stop, less than the budget's square root.

    Args:
        longest: (n,) positive lengths that nowhere rise.
        budget: Padded tokens of a batch.
        batch_cost: What a batch adds to its padded tokens.
    """
    count = len(longest)
    changes = np.flatnonzero(np.diff(longest, prepend=0))
    seen = np.searchsorted(changes, np.arange(count + 1))
    least = np.zeros(count + 1, dtype=np.int64)
    starts = np.zeros(count + 1, dtype=np.int64)
    rows, full = longest.tolist(), 0
    for stop in range(1, count + 1):
        while full < stop - 1 and (stop - full) * rows[full] > budget:
            full += 1
        tried = changes[seen[full] : seen[stop]]
        costs = least[tried] + (stop - tried) * longest[tried]
        best, cost = full, int(least[full]) + (stop - full) * rows[full]
        if len(tried) and costs.min() < cost:
            best, cost = int(tried[costs.argmin()]), int(costs.min())
        least[stop], starts[stop] = cost + batch_cost, best
    return starts


def batch_cost_on(device: torch.device) -> int:
    """What a batch costs before its first token, in padded tokens."""
    return BATCH_COST if device.type == "cpu" else ACCELERATOR_BATCH_COST


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


class OutOfMemory(EnvironmentProblem):
    """Memory ran out, and no smaller batch can help."""


class TokenBudget:
    """Padded tokens of a batch: halved whenever memory runs out, and small from then on.

    Args:
        tokens: Padded tokens that one batch may hold.
        notice: Told, in one line, of each change.

    Example:
        >>> budget = TokenBudget(9)
        >>> examples = [Encoded(np.arange(n), np.arange(n)) for n in (3, 9, 4, 4)]
        >>> for indices, tokens in budget.run(examples, lambda e: sum(x.num_tokens for x in e)):
        ...     print(indices.tolist(), tokens)
        [1] 9
        [2, 3] 8
        [0] 3
    """

    def __init__(self, tokens: int, notice: Callable[[str], None] | None = None) -> None:
        self.tokens = tokens
        self.notice = notice or (lambda _line: None)

    @classmethod
    def of(cls, tokens: TokenBudget | int) -> TokenBudget:
        """A budget as it is, or a fresh one."""
        return tokens if isinstance(tokens, TokenBudget) else cls(tokens)

    def run(
        self,
        encoded: Sequence[Encoded],
        work: Callable[[list[Encoded]], Found],
        *,
        together: bool = False,
        batch_cost: int = BATCH_COST,
    ) -> Iterator[tuple[IntArray, Found]]:
        """Do some work on every example, in batches that memory holds.

        Args:
            encoded: n examples.
            work: Called with the examples of a batch; when memory runs out in it, it is called
                again with the halves, so it must leave nothing behind when it fails.
            together: All ranks do this work together: none can go on with batches of its own.
            batch_cost: As for ``plan_batches``.

        Yields:
            Indices into ``encoded`` and what ``work`` gave for them.

        Raises:
            OutOfMemory: A single example is too much, or ranks work together.
        """
        lengths = [example.num_tokens for example in encoded]
        waiting = deque(plan_batches(lengths, self.tokens, batch_cost))
        while waiting:
            indices = waiting.popleft()
            examples = [encoded[int(index)] for index in indices]
            size = len(examples) * max(example.num_tokens for example in examples)
            failed = len(examples) > 1 and size > self.tokens
            if not failed:
                try:
                    found = work(examples)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    self._shrink(size, len(examples), together, error)
                    failed = True
            # Out of the handler, which keeps the tensors of the failed pass alive.
            if failed:
                half = (len(indices) + 1) // 2
                waiting.extendleft([indices[half:], indices[:half]])
            else:
                yield indices, found

    def _shrink(self, size: int, count: int, together: bool, error: Exception) -> None:
        if together:
            raise OutOfMemory(
                f"out of memory on a batch of {size} tokens; ranks that share a sharded model "
                "cannot shrink it alone: lower max_length or, where a probe took it, set "
                "balance.signals to observed"
            ) from error
        if count == 1:
            raise OutOfMemory(
                f"out of memory on one example of {size} tokens; lower max_length, use a smaller "
                "model or, for scoring, the CPU"
            ) from error
        self.tokens = size // 2
        self.notice(
            f"out of memory in a probe of {size} tokens; batches of {self.tokens} from now on"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator said so."""
    """Whether an allocator of any device gave up."""
    # The allocators of CPUs, of Apple's GPUs and of cuBLAS have no exception type of their own.
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
