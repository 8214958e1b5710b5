"""Example ids out: the sampler that reads the stream, and the collator that carries ids along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler

from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN
from hbo.data.packing import SEGMENTS_COLUMN
from hbo.errors import ConfigError
from hbo.sampling.stream import ExhaustedError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hbo.balancer import Balancer

ROW_TOKENS = "hbo_row_tokens"
"""Batch key: tokens of each example, which say where it lies in a batch of one flattened row."""


class BalancedSampler(Sampler[int]):
    """The order in which a loader visits the dataset: the balancer's stream, an epoch at a time.

    A plain ``Sampler``: Accelerate replaces subclasses of ``RandomSampler``. Every rank runs the
    whole of it and keeps its own batches (Accelerate's ``BatchSamplerShard``).

    Args:
        balancer: Gives the current balancer; asked at each epoch.
        length: Draws of one epoch, a whole number of global batches.
        skipped: Whether the caller discards what was consumed of this epoch (the Trainer does on
            resume): then placeholders stand in for those draws, so that a resume costs nothing.
        finished: Whether the run is over already, and only begun again: the Trainer asks whether it
            is done after a step, so that it would train one step too many.
    """

    def __init__(
        self,
        balancer: Callable[[], Balancer],
        length: int,
        skipped: Callable[[], bool],
        finished: Callable[[], bool] = lambda: False,
    ) -> None:
        self._balancer = balancer
        self._length = length
        self._skipped = skipped
        self._finished = finished

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        if self._finished():
            return
        balancer = self._balancer()
        # Counted in steps, as the Trainer does: after a resume with steps of another size, the
        # place in the epoch is no longer the place in the stream.
        done = balancer.step * balancer.draws_per_step % self._length
        if self._skipped():
            yield from (0 for _ in range(done))
        given = done
        try:
            for example_ids in balancer.look_ahead(balancer.position, self._length - done):
                yield from example_ids.tolist()
                given += len(example_ids)
        except ExhaustedError:
            # A loader looks beyond the last step; to train there is refused by ``advance``.
            yield from (0 for _ in range(self._length - given))


class ExampleIdCollator:
    """A trainer's own collator, with the id of each example beside the tensors.

    A packed row shows each example in it: the row's id comes once for each of them, with the
    example's own tokens and first loss.

    Args:
        collate: The trainer's collator; it never sees our columns.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows, with or without our columns."""
        if ID_COLUMN not in features[0]:
            return self.collate(features)
        ours = {ID_COLUMN, FIRST_LOSS_COLUMN}
        batch = self.collate([{k: v for k, v in row.items() if k not in ours} for row in features])
        lengths = [row.get(SEGMENTS_COLUMN) or [len(row["input_ids"])] for row in features]
        batch[ID_COLUMN] = torch.tensor(
            [int(row[ID_COLUMN]) for row, own in zip(features, lengths, strict=True) for _ in own]
        )
        batch[FIRST_LOSS_COLUMN] = torch.tensor(
            [
                float("nan") if value is None else float(value)
                for row, own in zip(features, lengths, strict=True)
                for value in _listed(row.get(FIRST_LOSS_COLUMN), len(own))
            ],
            dtype=torch.float32,  # not every device has float64
        )
        batch[ROW_TOKENS] = torch.tensor([length for own in lengths for length in own])
        return batch


def _listed(value: Any, count: int) -> list[Any]:
    """The numbers of a row's examples: a packed row has a list of them."""
    return value if isinstance(value, list) else [value] * count


def fit_look_ahead(args: TrainingArguments, lag: int) -> str | None:
    """Keep the loader's look-ahead within the lag, by prefetching less.

    One micro-batch more than is trained on is drawn always, and ``workers * prefetch`` more with
    workers; all of them must have been decided by updates at least ``lag`` steps old.

    Args:
        args: The trainer's arguments; ``dataloader_prefetch_factor`` may be lowered.
        lag: Optimiser steps.

    Returns:
        A notice where the prefetch factor was lowered.

    Raises:
        ConfigError: Even a prefetch factor of 1 looks too far ahead.
    """
    workers = args.dataloader_num_workers
    if workers == 0:
        return None
    prefetch = args.dataloader_prefetch_factor or 2
    room = (lag * args.gradient_accumulation_steps - 1) // workers
    if prefetch <= room:
        return None
    if room < 1:
        raise ConfigError(
            f"{workers} loader workers draw further ahead than balance.lag = {lag} steps allow; "
            f"use at most {max(lag * args.gradient_accumulation_steps - 1, 0)} workers or raise lag"
        )
    args.dataloader_prefetch_factor = room
    return f"dataloader_prefetch_factor lowered from {prefetch} to {room}, to stay within the lag"
