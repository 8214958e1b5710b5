"""Measuring on several ranks: who they are, how they add, and how pieces of work are dealt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

from hbo.errors import EnvironmentProblem, HBOError
from hbo.mixture import FloatArray

Piece = TypeVar("Piece")

_SAYS_WHY = "its own message says why; mend that and run again"


def _unchanged(array: FloatArray) -> FloatArray:
    return array


@dataclass(frozen=True)
class Ranks:
    """The ranks that measure together; by default there is one.

    Every rank calls the same methods in the same order. What befalls one of them reaches all: a
    rank that fails still takes part in the sum that is due, and then all stop, so that none waits
    for ever. Only a process that is stopped or killed cannot; its launcher then ends the others.

    Args:
        rank: Number of this one.
        world_size: How many there are.
        add: The sum of a float64 array over all ranks.

    Example:
        >>> list(ONE_RANK.deal(["ab", "c"], len, lambda piece: np.ones(len(piece))))
        [('ab', array([1., 1.])), ('c', array([1.]))]
    """

    rank: int = 0
    world_size: int = 1
    add: Callable[[FloatArray], FloatArray] = _unchanged

    def combine(self, size: int, fill: Callable[[FloatArray], object]) -> FloatArray:
        """The sum of what each rank fills into zeros of its own, the same on all ranks.

        A sum with zeros keeps every bit, infinities and NaN included; minus zero becomes zero, on
        one rank as on many.

        Args:
            size: Values.
            fill: Writes this rank's values into a (size,) array of zeros.

        Returns:
            (size,) sums.

        Raises:
            EnvironmentProblem: Another rank failed, or is gone; where this one did, its own error
                is raised.
        """
        failed, values = np.zeros(self.world_size), np.zeros(size)
        own: Exception | None = None
        try:
            fill(values)
        except Exception as error:
            own, values = error, np.zeros(size)
            failed[self.rank] = 1.0
        try:
            total = self.add(np.concatenate([failed, values + 0.0]))
        except RuntimeError as error:  # torch's, of every backend
            raise own or EnvironmentProblem(f"another rank is gone; {_SAYS_WHY}") from error
        if own is not None:
            raise self._told(own, alone=self.rank > 0 and not total[0])
        others = ", ".join(str(rank) for rank in np.flatnonzero(total[: self.world_size]))
        if others:
            raise EnvironmentProblem(f"stopped, because rank {others} failed; {_SAYS_WHY}")
        return total[self.world_size :]

    def _told(self, error: Exception, alone: bool) -> Exception:
        """Bad input that only this rank has is a fault of its machine: rank 0 cannot tell of it."""
        if not (alone and isinstance(error, HBOError)):
            return error
        told = EnvironmentProblem(error.message, where=error.where)
        told.__cause__ = error
        return told

    def deal(
        self,
        pieces: Sequence[Piece],
        size: Callable[[Piece], int],
        measure: Callable[[Piece], FloatArray],
    ) -> Iterator[tuple[Piece, FloatArray]]:
        """Measure pieces on all ranks at once, and give every rank all values.

        They are dealt in rounds of one piece for each rank, and a round is added up before the next
        begins. So no rank is further ahead than a piece, whatever their speeds, and a failure is
        known to all within one. Pieces of like cost side by side keep all ranks busy.

        Args:
            pieces: The same list on all ranks.
            size: How many values a piece has.
            measure: Measures them: ``(size(piece),)``. A function of the piece alone, so that the
                number of ranks cannot change a value; not called on a rank that gets no piece.

        Yields:
            Each piece with its values, in order.
        """
        for start in range(0, len(pieces), self.world_size):
            dealt = pieces[start : start + self.world_size]
            ends = list(accumulate(size(piece) for piece in dealt))

            def fill(
                values: FloatArray, dealt: Sequence[Piece] = dealt, ends: Sequence[int] = ends
            ) -> None:
                if self.rank < len(dealt):
                    np.split(values, ends[:-1])[self.rank][:] = measure(dealt[self.rank])

            values = self.combine(ends[-1], fill)
            yield from zip(dealt, np.split(values, ends[:-1]), strict=True)


ONE_RANK = Ranks()
