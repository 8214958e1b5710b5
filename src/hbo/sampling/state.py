"""What a stream of draws writes down, and the checks before it is believed again."""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from hbo.errors import StateError
from hbo.mixture import FloatArray, IntArray

SCHEMA = 2
_SUM_TOLERANCE = 1e-6
_GREATEST = 2**62


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
    _check_values(law[None], sizes, [place])
    law.setflags(write=False)
    return law


def _check_values(laws: FloatArray, sizes: IntArray, places: Sequence[str]) -> None:
    """Refuse a table that is no law; all of them are looked at together.

    Args:
        laws: (L, K, G) tables of numbers.
        sizes: (K, G) examples in each cell.
        places: (L,) what each is called in the errors.

    Raises:
        StateError: One is not finite, below 0, does not sum to 1, or gives an empty cell a chance.
    """
    wild = np.flatnonzero(~(np.isfinite(laws) & (laws >= 0)).all(axis=(1, 2)))
    if wild.size:
        raise StateError(
            f"{places[int(wild[0])]} must be finite and at least 0; look at the rewards before it"
        )
    with np.errstate(over="ignore"):
        totals = laws.sum(axis=(1, 2))
    off = np.flatnonzero(np.abs(totals - 1) > _SUM_TOLERANCE)
    if off.size:
        raise StateError(f"{places[int(off[0])]} must sum to 1, not {totals[off[0]]:.9g}")
    empty = sizes == 0
    chances = np.argwhere(laws[:, empty] > 0)
    if chances.size:
        number, cell = (int(i) for i in chances[0])
        subset, group = (int(i) for i in np.argwhere(empty)[cell])
        raise StateError(
            f"{places[number]}: cell ({subset}, {group}) is empty and must have probability 0"
        )


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
        """Values that survive JSON exactly; its size grows with the number of updates only.

        A law is the hexadecimal text of its little-endian float64 cells: as decimal numbers it
        would take twenty times as long to read. (Base64 is a third shorter and takes twice as long;
        compression saves a twentieth.) Laws that are equal are written once.
        """
        numbers: dict[bytes, int] = {}
        history = [
            {"draw": point.draw, "law": numbers.setdefault(_packed(point), len(numbers))}
            for point in self.history
        ]
        return {
            **self._identity(),
            "position": self.position,
            "counts": self.counts.tolist(),
            "laws": [law.hex() for law in numbers],
            "history": history,
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
        (position,) = _naturals([saved.get("position")], "position")
        history = self._history(saved.get("history"), self._laws(saved.get("laws")), position)
        counts = self._counts(saved.get("counts"), position)
        return StreamState(self.seed, self.sizes, self.max_draws, position, counts, history)

    def _identity(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "sizes_sha256": sizes_hash(self.sizes),
            "max_draws": self.max_draws.tolist(),
        }

    def _laws(self, saved: object) -> FloatArray:
        """(L, K, G) the distinct laws, unpacked and checked; read-only."""
        if not isinstance(saved, list) or not all(isinstance(law, str) for law in saved):
            raise StateError("the saved stream is damaged: its laws are not a list of texts")
        packed = []
        for number, text in enumerate(saved):
            try:
                packed.append(binascii.unhexlify(text))
            except ValueError:
                raise StateError(f"the saved stream is damaged: law {number} is not hex") from None
            if len(packed[-1]) != 8 * self.sizes.size:
                raise StateError(
                    f"the saved stream is damaged: law {number} does not have "
                    f"{self.sizes.size} cells"
                )
        laws = np.frombuffer(b"".join(packed), dtype="<f8").astype(np.float64, copy=False)
        laws = laws.reshape(len(packed), *self.sizes.shape)
        _check_values(laws, self.sizes, [f"saved law {number}" for number in range(len(packed))])
        laws.setflags(write=False)
        return laws

    def _history(self, saved: object, laws: FloatArray, position: int) -> tuple[Breakpoint, ...]:
        if not isinstance(saved, list) or not all(isinstance(point, Mapping) for point in saved):
            raise StateError("the saved stream is damaged: its history is not a list of laws")
        draws = _naturals([point.get("draw") for point in saved], "history draw")
        numbers = _naturals([point.get("law") for point in saved], "history law")
        if any(number >= len(laws) for number in numbers):
            raise StateError(
                f"the saved stream is damaged: its history names law {max(numbers)} "
                f"of {len(laws)} laws"
            )
        if any(later <= earlier for earlier, later in pairwise(draws)):
            raise StateError("the saved stream is damaged: its history is out of order")
        if draws[:1] != [0] and (draws or position):
            raise StateError("the saved stream is damaged: its history does not start at draw 0")
        return tuple(
            Breakpoint(draw, laws[number]) for draw, number in zip(draws, numbers, strict=True)
        )

    def _counts(self, saved: Any, position: int) -> IntArray:
        rows, groups = self.sizes.shape
        fits = isinstance(saved, list) and len(saved) == rows
        if not fits or any(not isinstance(row, list) or len(row) != groups for row in saved):
            raise StateError(f"the saved stream is damaged: counts need shape {self.sizes.shape}")
        values = _naturals(list(chain.from_iterable(saved)), "count")
        counts = np.array(values, dtype=np.int64).reshape(rows, groups)
        if sum(values) != position:
            raise StateError(
                f"the saved stream is damaged: counts sum to {sum(values)} at position {position}"
            )
        over = (self.max_draws >= 0) & (counts.sum(axis=1) > self.max_draws)
        if over.any() or (counts[self.sizes == 0] > 0).any():
            raise StateError("the saved stream is damaged: counts above a cap or in an empty cell")
        return counts


def _packed(point: Breakpoint) -> bytes:
    return point.probabilities.astype("<f8", copy=False).tobytes()


def _naturals(values: list[Any], what: str) -> list[int]:
    """``values`` if they are whole numbers from 0 to 2^62; JSON's true and false are none."""
    for value in values:
        if type(value) is not int or not 0 <= value <= _GREATEST:
            raise StateError(f"the saved stream is damaged: {what} is {value!r}"[:200])
    return values


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
