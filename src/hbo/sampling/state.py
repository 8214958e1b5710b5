"""What a stream of draws writes down, and the checks before it is believed again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hbo.errors import StateError
from hbo.mixture import FloatArray, IntArray

SCHEMA = 1
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Breakpoint:
    """A probability law and the draw number from which it is in force.

    Args:
        draw: First draw made from it.
        probabilities: (K, G) joint probabilities, read-only.
    """

    draw: int
    probabilities: FloatArray


def checked_law(probabilities: object, sizes: IntArray, *, draw: int) -> FloatArray:
    """A read-only copy of ``probabilities``, if they are a law over the cells of ``sizes``.

    Args:
        probabilities: (K, G), at least 0, sum 1 to a part in a million, 0 where a cell is empty.
        sizes: (K, G) examples in each cell.
        draw: The draw number it is for; named in the errors.

    Raises:
        StateError: They are not such a law.
    """
    place = f"probabilities from draw {draw}"
    try:
        law = np.array(probabilities, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise StateError(f"{place} are not a table of numbers") from None
    if law.shape != sizes.shape:
        raise StateError(f"{place} have shape {law.shape}; the mixture has {sizes.shape}")
    if not np.isfinite(law).all() or (law < 0).any():
        raise StateError(f"{place} must be finite and at least 0; look at the rewards before it")
    if abs(law.sum() - 1) > _SUM_TOLERANCE:
        raise StateError(f"{place} must sum to 1, not {law.sum():.9g}")
    if (law[sizes == 0] > 0).any():
        subset, group = (int(i) for i in np.argwhere((sizes == 0) & (law > 0))[0])
        raise StateError(f"{place}: cell ({subset}, {group}) is empty and must have probability 0")
    law.setflags(write=False)
    return law


def sizes_hash(sizes: IntArray) -> str:
    """SHA-256 over the shape and the cell sizes."""
    digest = hashlib.sha256(repr(sizes.shape).encode())
    digest.update(np.ascontiguousarray(sizes, dtype="<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StreamState:
    """Everything that decides the rest of a stream, as it goes into a checkpoint.

    Args:
        seed: Seed of the stream.
        sizes: (K, G) examples in each cell.
        max_draws: (K,) most draws of each subset, -1 for no limit.
        position: Number of the next draw.
        counts: (K, G) draws made of each cell.
        history: The laws so far and to come, by increasing draw number.
    """

    seed: int
    sizes: IntArray
    max_draws: IntArray
    position: int
    counts: IntArray
    history: Sequence[Breakpoint]

    def to_json(self) -> dict[str, Any]:
        """Values that survive JSON exactly; its size grows with the number of updates only."""
        return {
            **self._identity(),
            "position": self.position,
            "counts": self.counts.tolist(),
            "history": [
                {"draw": point.draw, "probabilities": point.probabilities.tolist()}
                for point in self.history
            ],
        }

    def restored(self, saved: Mapping[str, Any]) -> StreamState:
        """The saved state, if it belongs to the same seed, sizes and caps as this one.

        Raises:
            StateError: It belongs to another stream (the text names what differs), or is damaged.
        """
        if not isinstance(saved, Mapping):
            raise StateError("the saved stream is damaged: it is not a table")
        for key, ours in self._identity().items():
            if key not in saved:
                raise StateError(f"the saved stream is damaged: it has no {key!r}")
            if saved[key] != ours:
                raise StateError(_difference(key, saved[key], ours))
        position = _natural(saved.get("position"), "position")
        history = self._history(saved.get("history"), position)
        counts = self._counts(saved.get("counts"), position)
        return StreamState(self.seed, self.sizes, self.max_draws, position, counts, history)

    def _identity(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "sizes_sha256": sizes_hash(self.sizes),
            "max_draws": self.max_draws.tolist(),
        }

    def _history(self, saved: object, position: int) -> tuple[Breakpoint, ...]:
        if not isinstance(saved, list) or not all(isinstance(point, Mapping) for point in saved):
            raise StateError("the saved stream is damaged: its history is not a list of laws")
        points = []
        for entry in saved:
            draw = _natural(entry.get("draw"), "history draw")
            law = checked_law(entry.get("probabilities"), self.sizes, draw=draw)
            points.append(Breakpoint(draw, law))
        draws = [point.draw for point in points]
        if any(later <= earlier for earlier, later in pairwise(draws)):
            raise StateError("the saved stream is damaged: its history is out of order")
        if draws[:1] != [0] and (draws or position):
            raise StateError("the saved stream is damaged: its history does not start at draw 0")
        return tuple(points)

    def _counts(self, saved: Any, position: int) -> IntArray:
        rows, groups = self.sizes.shape
        fits = isinstance(saved, list) and len(saved) == rows
        if not fits or any(not isinstance(row, list) or len(row) != groups for row in saved):
            raise StateError(f"the saved stream is damaged: counts need shape {self.sizes.shape}")
        values = [_natural(cell, "count") for row in saved for cell in row]
        counts = np.array(values, dtype=np.int64).reshape(rows, groups)
        if sum(values) != position:
            raise StateError(
                f"the saved stream is damaged: counts sum to {sum(values)} at position {position}"
            )
        over = (self.max_draws >= 0) & (counts.sum(axis=1) > self.max_draws)
        if over.any() or (counts[self.sizes == 0] > 0).any():
            raise StateError("the saved stream is damaged: counts above a cap or in an empty cell")
        return counts


def _natural(value: object, what: str) -> int:
    """``value`` if it is a whole number from 0 to 2^62."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**62:
        raise StateError(f"the saved stream is damaged: {what} is {value!r}"[:200])
    return value


def _difference(key: str, saved: object, ours: object) -> str:
    theirs = repr(saved)[:100]
    if key == "seed":
        return f"the saved stream has seed {theirs}, this run has {ours!r}; use the same seed"
    if key == "schema":
        return f"the saved stream has schema {theirs}; this version reads schema {ours!r}"
    if key == "max_draws":
        return (
            "the saved stream has other caps (max_passes) on draws; "
            "use the same ones, or start a new run"
        )
    return (
        "the saved stream belongs to a mixture with other sizes of subsets or groups "
        "(sizes_sha256); use the same data, grouping and order, or start a new run"
    )
