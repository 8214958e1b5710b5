"""Response statistics of a whole mixture, kept on disk shard by shard as they are measured."""

from __future__ import annotations

import contextlib
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
from hbo.measure.ranks import ONE_RANK, Ranks
from hbo.measure.response import Progress, alone_examples, response_losses, response_token_counts
from hbo.mixture import FloatArray

SCHEMA = 1
SHARD_SIZE = 128
"""Examples of a shard: what a kill loses at most on each rank, and what is batched together."""
_PREFIX = ".scores-"

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
    ranks: Ranks = ONE_RANK,
) -> ResponseStatistics:
    """Response statistics of all examples, measuring only what the cache does not hold.

    The examples are cut into shards. A shard's file is named by a hash of ``key`` and of the
    shard's own tokens and labels, and holds one loss per example with a checksum; it is written,
    whole or not at all, as soon as it is measured. So a killed run goes on where it was, another
    model, template or length limit never meets stale numbers, a metric that needs the same pass
    finds it done, and of appended data only the new is measured. A damaged file is measured again,
    with a notice. A beginning that all examples of a shard share (a system prompt) is run once,
    where that saves enough and the model allows it.

    Several ranks share the shards that the cache of rank 0 lacks. Shards, and the batches inside
    them, do not depend on the ranks, so neither does a score: it is the same bit for bit on ranks
    that compute alike (the same kind of device, as many threads, memory enough for the batches).
    Each rank keeps what it measured in the cache that it sees; rank 0 keeps everything, so that
    machines with disks of their own have one complete cache.

    Args:
        model: The scoring model, or a function that loads it, called only if something is to be
            done, and only on ranks that have a part in it.
        encoded: N examples, the same on all ranks; read a shard at a time, so they may be lazy.
        alone: Also the pass over the response alone (its shards are kept apart from the others).
        cache_dir: Folder of the cache, made if need be; ``None``: nothing is kept.
        key: What the losses depend on besides the tokens: ``scoring_fingerprint``.
        tokens_per_batch: Padded tokens of one batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.
        progress: Called with (examples done, in all), both passes and all ranks together, cached
            ones included.
        notice: Told of damaged shards, on rank 0.
        shard_size: Examples per shard.
        ranks: Who measures; every rank of them calls this.

    Returns:
        As ``response_statistics``, the same on all ranks.

    Raises:
        EnvironmentProblem: The cache cannot be written, memory does not hold a single example, or
            another rank failed.
        ValueError: A cache without a key: it would answer for any model.
    """
    if cache_dir is not None and not key:
        raise ValueError("a score cache needs a key: scoring_fingerprint(model_fingerprint(model))")
    cache = None if cache_dir is None else Path(cache_dir)
    ranks.combine(0, lambda _nothing: _open(cache))
    scorer = _Scorer(
        model=model,
        cache=cache,
        key=key,
        tokens_per_batch=tokens_per_batch,
        pad_id=pad_id,
        dtype=dtype,
        notice=notice or (lambda _line: None),
        shard_size=shard_size,
        ranks=ranks,
    )
    total = len(encoded) * (2 if alone else 1)

    def losses(kind: str, take: _Take, offset: int) -> FloatArray:
        def report(done: int) -> None:
            if progress is not None:
                progress(offset + done, total)

        return scorer.losses(kind, len(encoded), take, report)

    def take_alone(place: slice) -> Sequence[Encoded]:
        return alone_examples(encoded[place])

    return ResponseStatistics(
        loss=losses("response", encoded.__getitem__, 0),
        alone_loss=losses("alone", take_alone, len(encoded)) if alone else None,
        response_tokens=response_token_counts(encoded).astype(np.float64),
    )


_Take = Callable[[slice], Sequence[Encoded]]
"""Reads the examples of one shard, anew each time they are needed."""


@dataclass(frozen=True, eq=False)
class _Shard:
    """Examples that are measured and kept together, from ``start`` on in the order of all.

    It does not hold them, so that no more than a shard of a lazy sequence is in memory.
    """

    start: int
    count: int
    tokens: int
    path: Path | None

    @property
    def place(self) -> slice:
        return slice(self.start, self.start + self.count)


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
    ranks: Ranks

    def losses(
        self, kind: str, total: int, take: _Take, report: Callable[[int], None]
    ) -> FloatArray:
        shards = self._shards(kind, total, take)
        losses, known = self._known(shards, total)
        missing = [shard for shard, is_known in zip(shards, known, strict=True) if not is_known]
        # Shards of like cost in one round; the longest first, as memory fails soon if it fails.
        missing.sort(key=lambda shard: shard.tokens, reverse=True)
        done = total - sum(shard.count for shard in missing)
        elsewhere: list[tuple[_Shard, FloatArray]] = []

        def measure(shard: _Shard) -> FloatArray:
            self._keep(elsewhere)
            return self._measure(shard, take(shard.place), lambda more: report(done + more))

        report(done)
        dealt = self.ranks.deal(missing, lambda shard: shard.count, measure)
        for number, (shard, values) in enumerate(dealt):
            losses[shard.place] = values
            done += shard.count
            report(done)
            if number % self.ranks.world_size:
                elsewhere.append((shard, values))
        self.ranks.combine(0, lambda _nothing: self._keep(elsewhere))
        return losses

    def _keep(self, elsewhere: list[tuple[_Shard, FloatArray]]) -> None:
        """Rank 0 writes what other ranks measured, unless they wrote it to the same disk."""
        for shard, values in elsewhere:
            if self.ranks.rank == 0 and shard.path and _read(shard, lambda _line: None) is None:
                _write(shard.path, values)
        elsewhere.clear()

    def _shards(self, kind: str, total: int, take: _Take) -> list[_Shard]:
        shards = []
        for start in range(0, total, self.shard_size):
            examples = take(slice(start, min(start + self.shard_size, total)))
            tokens = sum(example.num_tokens for example in examples)
            shards.append(_Shard(start, len(examples), tokens, self._path(examples, kind)))
        return shards

    def _known(self, shards: Sequence[_Shard], count: int) -> tuple[FloatArray, FloatArray]:
        """(count,) losses as far as rank 0 has them in its cache, and per shard whether it has."""

        def fill(values: FloatArray) -> None:
            if self.ranks.rank > 0:
                return
            for number, shard in enumerate(shards):
                found = _read(shard, self.notice)
                if found is not None:
                    values[shard.place] = found
                    values[count + number] = 1.0

        values = self.ranks.combine(count + len(shards), fill)
        return values[:count], values[count:]

    def _measure(
        self, shard: _Shard, examples: Sequence[Encoded], report: Callable[[int], None]
    ) -> FloatArray:
        losses = response_losses(
            self._loaded(),
            examples,
            tokens_per_batch=self.tokens_per_batch,
            pad_id=self.pad_id,
            dtype=self.dtype,
            progress=lambda done, _total: report(done),
            share_prefix=True,
        )
        if shard.path is not None:
            _write(shard.path, losses)
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


def _open(folder: Path | None) -> None:
    """Make the folder, know it to be writable before an hour of work, and clear up after kills."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for leftover in folder.glob(f"{_PREFIX}*"):
            # It may be the half-written file of a process that lives: that one writes it again.
            with contextlib.suppress(OSError):
                leftover.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


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
        while not _wrote(path, text):
            pass
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _wrote(path: Path, text: str) -> bool:
    """Write a file whole or not at all; not so if another process cleared the unfinished one up."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except FileNotFoundError:
        return False
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return True


def _read(shard: _Shard, notice: Notice) -> FloatArray | None:
    """Losses of a shard; ``None`` without a file and, with a notice, where it is damaged."""
    if shard.path is None:
        return None
    try:
        text = shard.path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        text = ""
    count = shard.count
    try:
        values = json.loads(text)
        if values["schema"] == SCHEMA and values["sha256"] == _checksum(values["losses"]):
            losses = np.asarray(values["losses"], dtype=np.float64)
            if losses.shape == (count,):
                return losses
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    notice(f"{shard.path}: damaged shard of the score cache; its {count} examples are scored again")
    return None
