"""Response statistics of a whole mixture, kept on disk shard by shard as they are measured."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hbo.difficulty.metrics import ResponseStatistics
from hbo.errors import EnvironmentProblem
from hbo.measure.examples import Encoded
from hbo.measure.fingerprints import examples_fingerprint
from hbo.measure.response import Progress, alone_examples, response_losses, response_token_counts
from hbo.mixture import FloatArray

SCHEMA = 1
SHARD_SIZE = 128
"""Examples of a shard: what a kill loses at most, and what is sorted by length together."""

Notice = Callable[[str], None]
"""Called with one line for the user."""


def score_examples(
    model: nn.Module | Callable[[], nn.Module],
    encoded: Sequence[Encoded],
    *,
    alone: bool = False,
    cache_dir: str | Path | None = None,
    key: str = "",
    tokens_per_batch: int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    shard_size: int = SHARD_SIZE,
) -> ResponseStatistics:
    """Response statistics of all examples, measuring only what the cache does not hold.

    The examples are cut into shards. A shard's file is named by a hash of ``key`` and of the
    shard's own tokens and labels, and holds one loss per example with a checksum; it is written,
    whole or not at all, as soon as it is measured. So a killed run goes on where it was, another
    model, template or length limit never meets stale numbers, a metric that needs the same pass
    finds it done, and of appended data only the new is measured. A damaged file is measured again,
    with a notice.

    Args:
        model: The scoring model, or a function that loads it, called only if something is to be
            done.
        encoded: N examples.
        alone: Also the pass over the response alone (its shards are kept apart from the others).
        cache_dir: Folder of the cache, made if need be; ``None``: nothing is kept.
        key: What the losses depend on besides the tokens: ``scoring_fingerprint``.
        tokens_per_batch: Padded tokens of one batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.
        progress: Called with (examples done, in all), both passes together, cached ones included.
        notice: Told of damaged shards.
        shard_size: Examples per shard.

    Returns:
        As ``response_statistics``.

    Raises:
        EnvironmentProblem: The cache cannot be written, or memory does not hold a single example.
        ValueError: A cache without a key: it would answer for any model.
    """
    if cache_dir is not None and not key:
        raise ValueError("a score cache needs a key: scoring_fingerprint(model_fingerprint(model))")
    scorer = _Scorer(
        model=model,
        cache=None if cache_dir is None else _opened(Path(cache_dir)),
        key=key,
        tokens_per_batch=tokens_per_batch,
        pad_id=pad_id,
        dtype=dtype,
        notice=notice or (lambda _line: None),
        shard_size=shard_size,
    )
    total = len(encoded) * (2 if alone else 1)

    def losses(examples: Sequence[Encoded], kind: str, offset: int) -> FloatArray:
        def report(done: int) -> None:
            if progress is not None:
                progress(offset + done, total)

        return scorer.losses(examples, kind, report)

    return ResponseStatistics(
        loss=losses(encoded, "response", 0),
        alone_loss=losses(alone_examples(encoded), "alone", len(encoded)) if alone else None,
        response_tokens=response_token_counts(encoded).astype(np.float64),
    )


@dataclass
class _Scorer:
    """One pass over many shards; holds the model once it had to be loaded."""

    model: nn.Module | Callable[[], nn.Module]
    cache: Path | None
    key: str
    tokens_per_batch: int
    pad_id: int
    dtype: torch.dtype | None
    notice: Notice
    shard_size: int

    def losses(
        self, encoded: Sequence[Encoded], kind: str, report: Callable[[int], None]
    ) -> FloatArray:
        parts = []
        for start in range(0, len(encoded), self.shard_size):
            shard = encoded[start : start + self.shard_size]
            parts.append(self._shard_losses(shard, kind, start, report))
            report(start + len(shard))
        return np.concatenate(parts) if parts else np.empty(0)

    def _shard_losses(
        self, shard: Sequence[Encoded], kind: str, start: int, report: Callable[[int], None]
    ) -> FloatArray:
        path = self._path(shard, kind)
        known = None if path is None else _read(path, len(shard), self.notice)
        if known is not None:
            return known
        losses = response_losses(
            self._loaded(),
            shard,
            tokens_per_batch=self.tokens_per_batch,
            pad_id=self.pad_id,
            dtype=self.dtype,
            progress=lambda done, _total: report(start + done),
        )
        if path is not None:
            _write(path, losses)
        return losses

    def _path(self, shard: Sequence[Encoded], kind: str) -> Path | None:
        if self.cache is None:
            return None
        facts = f"{SCHEMA} {self.key} {self.dtype} {examples_fingerprint(shard)}"
        name = hashlib.sha256(facts.encode())
        return self.cache / f"{kind}-{name.hexdigest()[:40]}.json"

    def _loaded(self) -> nn.Module:
        if not isinstance(self.model, nn.Module):
            self.model = self.model()
        return self.model


def _opened(folder: Path) -> Path:
    """The folder, made and known to be writable before an hour of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot write the score cache ({error.strerror}); free space or choose another folder, "
        "what was scored so far is kept",
        where=str(folder),
    )


def _checksum(values: list[float]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _write(path: Path, losses: FloatArray) -> None:
    # Python writes floats exactly and reads its own NaN back.
    values = [float(value) for value in losses]
    text = json.dumps({"schema": SCHEMA, "sha256": _checksum(values), "losses": values})
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _read(path: Path, count: int, notice: Notice) -> FloatArray | None:
    """Losses of a shard; ``None`` without a file and, with a notice, where it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        text = ""
    try:
        shard = json.loads(text)
        if shard["schema"] == SCHEMA and shard["sha256"] == _checksum(shard["losses"]):
            losses = np.asarray(shard["losses"], dtype=np.float64)
            if losses.shape == (count,):
                return losses
    except (ValueError, TypeError, KeyError):
        pass
    notice(f"{path}: damaged shard of the score cache; its {count} examples are scored again")
    return None
