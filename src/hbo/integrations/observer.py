"""Signals in: what the training batches show of themselves, read from passes made anyway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN
from hbo.errors import DataError
from hbo.integrations.loader import ROW_TOKENS
from hbo.integrations.observed_norms import NormObserver
from hbo.measure.loss import example_losses_from_log_probs, example_losses_from_logits
from hbo.mixture import FloatArray, IntArray

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Stopwatch:
    """Seconds spent on balancing: everything that the same trainer would not do without us."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(eq=False)
class _Batch:
    example_ids: torch.Tensor
    first_loss: torch.Tensor
    row_tokens: torch.Tensor
    labels: torch.Tensor | None
    seen: bool = False


@dataclass(frozen=True, eq=False)
class Observed:
    """What one optimiser step trained on, on this rank.

    Args:
        example_ids: (n,) ids.
        loss: (n,) mean loss of each example's trained tokens, nats; NaN without any.
        first_loss: (n,) the same under the untouched model; NaN where unknown.
        tokens: (n,) trained tokens.
        norms: (n,) gradient norm of each example's own loss; NaN where not measured.
    """

    example_ids: IntArray
    loss: FloatArray
    first_loss: FloatArray
    tokens: FloatArray
    norms: FloatArray


class BatchObserver:
    """Watches a model's training forwards through a hook; nothing is recomputed.

    The trainer says which examples a forward is about (``batch``), the hook takes their losses from
    its output, and ``flush`` brings an optimiser step's worth to the CPU in one go.

    Args:
        clock: Counts what the watching costs.
        losses_needed: Whether an output that shows no per-example loss is refused; otherwise those
            losses are unknown.
    """

    def __init__(self, clock: Stopwatch, *, losses_needed: bool = True) -> None:
        self._clock = clock
        self._losses_needed = losses_needed
        self._batch: _Batch | None = None
        self._pending: list[tuple[torch.Tensor, ...]] = []
        self._handle: RemovableHandle | None = None
        self._norms: NormObserver | None = None
        self._ids_came = False

    def watch(self, model: nn.Module, norms: NormObserver | None = None) -> None:
        """Hook the module whose forward gets the batch (inside DDP and the like).

        Args:
            model: The module.
            norms: Measures gradient norms as well; ``None``: they are unknown.
        """
        self.release()
        self._pending.clear()  # of a training that was broken off
        self._handle = model.register_forward_hook(self._after_forward)
        self._norms = norms
        if norms is not None:
            norms.watch(model)

    def release(self) -> None:
        """Take the hooks off again."""
        if self._norms is not None:
            self._norms.release()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def norms_given_up(self) -> str | None:
        """Why norms cannot be observed, once that is known."""
        return None if self._norms is None else self._norms.given_up

    def without_norms(self) -> None:
        """Observe losses only, from now on."""
        if self._norms is not None:
            self._norms.release()
            self._norms = None

    def passed(self) -> None:
        """The backward pass of a batch is over: what comes next is not the training's."""
        if self._norms is not None:
            self._norms.release()

    @contextmanager
    def batch(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Take our keys out of a batch and watch the forward passes inside.

        Raises:
            DataError: A training batch came without example ids.
        """
        ids = inputs.pop(ID_COLUMN, None)
        first_loss, row_tokens = inputs.pop(FIRST_LOSS_COLUMN, None), inputs.pop(ROW_TOKENS, None)
        self._ids_came = self._ids_came or ids is not None
        if ids is not None and self._handle is not None:
            labels = inputs.get("labels")
            self._batch = _Batch(ids, first_loss, row_tokens, labels)
            if self._norms is not None:
                flattened = labels is not None and len(labels) != len(ids)
                self._norms.begin(len(ids), row_tokens if flattened else None)
        try:
            yield
        finally:
            self._batch = None

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        batch = self._batch
        # A pass without gradients, or in eval mode, is not the training's.
        if batch is None or batch.seen or not module.training or not torch.is_grad_enabled():
            return
        with self._clock.running(), torch.no_grad():
            batch.seen = True
            found = _losses(output, batch)
            if found is None and self._losses_needed:
                raise DataError(
                    "the model's training output has neither log_probs nor logits beside labels, "
                    "so per-example losses cannot be observed; set balance.signals to probe"
                )
            sums, tokens = found or _unknown(batch)
            self._pending.append((batch.example_ids, batch.first_loss, sums, tokens))
            if self._norms is not None:
                self._norms.watch_output(output, batch.labels, len(batch.example_ids))

    def flush(self) -> Observed:
        """What was seen since the last call."""
        if not self._pending:
            if self._ids_came:
                raise DataError(
                    "the model made no training pass over its batches: it is in eval mode, or its "
                    "gradients are off; call model.train()"
                )
            raise DataError(
                "no training batch carried example ids; the trainer's dataset, collator or "
                "remove_unused_columns dropped the hbo columns: pass the mixture's own dataset"
            )
        columns = [torch.cat(column).cpu().numpy() for column in zip(*self._pending, strict=True)]
        self._pending.clear()
        ids, first_loss, sums, tokens = columns
        norms = np.full(len(ids), np.nan)
        if self._norms is not None:
            norms[:] = self._norms.flush().numpy()
        loss = np.full(len(ids), np.nan)
        np.divide(sums, tokens, out=loss, where=tokens > 0, casting="unsafe")
        return Observed(
            ids.astype(np.int64),
            loss,
            first_loss.astype(np.float64),
            tokens.astype(np.float64),
            norms,
        )


def _unknown(batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """No loss and no tokens, for each example."""
    nothing = torch.zeros(len(batch.example_ids), device=batch.example_ids.device)
    return nothing, nothing.long()


def _losses(output: Any, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Per-example loss sums and trained tokens, from TRL's fused output or from logits."""
    log_probs = getattr(output, "log_probs", None)
    if log_probs is not None:
        rows = _rows(batch, *log_probs.shape)
        return example_losses_from_log_probs(
            log_probs, output.label_mask, rows=rows, num_examples=len(batch.example_ids)
        )
    if getattr(output, "logits", None) is None or batch.labels is None:
        return None
    logits = output.logits[:, output.logits.shape[1] - batch.labels.shape[1] :]  # no virtual tokens
    rows = _rows(batch, logits.shape[0], logits.shape[1] - 1)
    return example_losses_from_logits(
        logits, batch.labels, rows=rows, num_examples=len(batch.example_ids)
    )


def _rows(batch: _Batch, num_rows: int, num_tokens: int) -> torch.Tensor | None:
    """(1, num_tokens) the example of each next token, where the batch was flattened into one row.

    -1 for what a collator padded the row with.
    """
    count = len(batch.example_ids)
    if num_rows == count:
        return None
    numbers = torch.arange(count, device=batch.row_tokens.device)
    rows = torch.repeat_interleave(numbers, batch.row_tokens)[None, 1:]
    if num_rows != 1 or rows.shape[1] > num_tokens:
        raise DataError(
            f"{count} examples became a batch of {num_rows} rows of {num_tokens + 1} tokens, so "
            "their losses cannot be told apart; use padded or padding_free batches"
        )
    return nn.functional.pad(rows, (0, num_tokens - rows.shape[1]), value=-1)
