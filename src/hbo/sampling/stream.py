"""The one stream of draws: which example is trained on n-th, for every n."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbo.errors import ConfigError, StateError
from hbo.mixture import IntArray
from hbo.sampling.draw import Law, Shelves, occurrence_ranks
from hbo.sampling.random import check_seed, uniforms
from hbo.sampling.state import Breakpoint, StreamState, checked_law

_BLOCK = 2**16  # draws worked on at once: arrays of this length stay in a processor's cache
_FEW = 2**9  # a caller that takes so few at a time is served from ids made ahead
_LEAST_AHEAD, _MOST_AHEAD = 2**10, 2**14
_NO_IDS: IntArray = np.empty(0, dtype=np.int64)


class ExhaustedError(StateError):
    """Every subset that could be drawn has reached its ``max_draws``."""


class Stream:
    """An endless, replayable stream of example ids.

    Draw n is a function of the seed, n, the law in force at n, and the counts so far, and of
    nothing else: uniform number n of the seed picks a cell by the law, and the cell gives the next
    example of its own shuffled order; it is used up before it repeats, in a new order each cycle.
    How ``take`` calls cut the stream changes nothing. A subset that has been drawn ``max_draws``
    times has probability 0 from the next draw on, and the others share what it had in proportion.

    Time and memory do not depend on the number of examples; the state is the counts and the history
    of laws.

    Args:
        sizes: (K, G) examples in each cell; ids are laid out cell by cell, as in ``Mixture``.
        seed: From 0 to 2^64 - 1.
        max_draws: (K,) most draws of each subset ever, -1 or infinity for no limit; ``None`` for no
            limits at all.

    Raises:
        ConfigError: Shapes that do not fit, no examples, a bad seed or a bad limit.

    Example:
        >>> stream = Stream(np.array([[2, 1], [4, 0]]), seed=7)
        >>> stream.push(0, np.array([[0.5, 0.25], [0.25, 0.0]]))
        >>> first = stream.take(3).tolist() + stream.take(2).tolist()
        >>> first == stream.at(0).take(5).tolist()
        True
    """

    def __init__(self, sizes: ArrayLike, seed: int, *, max_draws: ArrayLike | None = None) -> None:
        self.seed = check_seed(seed)
        self.sizes: IntArray = np.array(sizes, dtype=np.int64)
        if self.sizes.ndim != 2 or (self.sizes < 0).any() or not self.sizes.any():
            raise ConfigError(
                "a stream needs sizes of shape (subsets, groups) with examples in them"
            )
        self.sizes.setflags(write=False)
        self.max_draws = _checked_limits(max_draws, len(self.sizes))
        self._shelves = Shelves(self.sizes.ravel(), self.seed)
        self._history: list[Breakpoint] = []
        # The counts are those at `_position`; from there on ids lie ready, `_given` of them taken.
        self._position = 0
        self._counts: IntArray = np.zeros(self.sizes.size, dtype=np.int64)
        self._ahead = _NO_IDS
        self._given = 0
        self._next_ahead = _LEAST_AHEAD
        self._prepared: tuple[bytes, Law] | None = None

    @property
    def position(self) -> int:
        """Number of the next draw, which is how many were made."""
        return self._position + self._given

    @property
    def counts(self) -> IntArray:
        """(K, G) draws made of each cell; a copy."""
        self._settle()
        return self._counts.reshape(self.sizes.shape).copy()

    @property
    def history(self) -> tuple[Breakpoint, ...]:
        """Every law pushed, in order, those still to come included."""
        return tuple(self._history)

    @property
    def exhausted(self) -> NDArray[np.bool_]:
        """(K,) whether each subset has reached its ``max_draws``."""
        self._settle()
        drawn = self._counts.reshape(self.sizes.shape).sum(axis=1)
        return np.asarray((self.max_draws >= 0) & (drawn >= self.max_draws), dtype=np.bool_)

    def push(self, draw: int, probabilities: ArrayLike) -> None:
        """Put a law in force from draw number ``draw`` on.

        Args:
            draw: The first draw made from it; 0 for the first law. A second law for the same draw
                replaces the first.
            probabilities: (K, G) joint probabilities: at least 0, sum 1, 0 where a cell is empty.

        Raises:
            StateError: That draw was made already, a later law was pushed already, the first law
                does not start at 0, or these are not probabilities.
        """
        if draw < self.position:
            raise StateError(
                f"new probabilities from draw {draw}, but {self.position} draws were made "
                "already; raise balance.lag, or let the loader look less far ahead"
            )
        last = self._history[-1].draw if self._history else -1
        if draw < last:
            raise StateError(f"new probabilities from draw {draw} after some from draw {last}")
        if not self._history and draw != 0:
            raise StateError(f"the first probabilities must start at draw 0, not {draw}")
        point = Breakpoint(int(draw), checked_law(probabilities, self.sizes, draw=draw))
        if draw == last:
            self._history.pop()
        self._history.append(point)
        self._forget()

    def remaining(self) -> int | None:
        """How many draws the caps still allow; ``None`` where a subset has no cap."""
        if (self.max_draws < 0).any():
            return None
        return int(self.max_draws.sum()) - self.position

    def take(self, count: int) -> IntArray:
        """The next ``count`` example ids.

        Args:
            count: How many, at least 0.

        Returns:
            (count,) ids in draw order.

        Raises:
            ExhaustedError: The caps leave fewer draws than ``count``; then none is drawn.
            StateError: No law is in force.
        """
        if not 0 <= count <= _FEW:
            self._settle()
            self._ahead = _NO_IDS
            return self._make(count)
        if count > self._ahead.size - self._given:
            self._make_ahead(count)
        start = self._given
        self._given += count
        return self._ahead[start : start + count].copy()

    def _make_ahead(self, count: int) -> None:
        """Work out ids to hand out later, at least ``count``: few cost almost as much as many.

        More from time to time, while no new law makes them useless.
        """
        self._settle()
        twin = self.copy()
        try:
            ids = twin._make(self._next_ahead)
        except ExhaustedError:
            ids = twin._make(count)
        self._ahead, self._prepared = ids, twin._prepared
        self._next_ahead = min(2 * self._next_ahead, _MOST_AHEAD)

    def _make(self, count: int) -> IntArray:
        ids = np.empty(count, dtype=np.int64)
        start = self._position
        with self._all_or_nothing():
            for cells, drawn in self._blocks(count):
                turns = self._counts[cells] + occurrence_ranks(cells, drawn)
                filled = self._position - start
                ids[filled : filled + cells.size] = self._shelves.example_ids(cells, turns)
        return ids

    def skip(self, count: int) -> None:
        """Go on by ``count`` draws without working out their ids, several times faster.

        Raises:
            StateError: As ``take``.
        """
        self._settle()
        self._ahead = _NO_IDS
        with self._all_or_nothing():
            for _ in self._blocks(count):
                pass

    def copy(self) -> Stream:
        """An independent stream at the same place: for looking ahead. Costs the counts only."""
        twin = copy.copy(self)
        twin._counts = self._counts.copy()
        twin._history = list(self._history)
        return twin

    def at(self, draw: int) -> Stream:
        """A new stream with the same history, standing at ``draw``.

        Goes on from here where ``draw`` lies ahead, and replays from draw 0 where it lies behind;
        a place far behind is reached faster from a saved state.

        Raises:
            StateError: As ``take``.
        """
        twin = self.copy()
        if draw < self.position:
            twin._forget()
            twin._position = 0
            twin._counts = np.zeros_like(self._counts)
        twin.skip(draw - twin.position)
        return twin

    def replay(self, up_to: int | None = None) -> Iterator[IntArray]:
        """The ids of the first draws again, from draw 0 on, in blocks; nothing here is changed.

        Args:
            up_to: How many draws; ``None``: all that were made so far.

        Yields:
            (n,) example ids.

        Raises:
            StateError: As ``take``.
        """
        end = self.position if up_to is None else up_to
        twin = self.at(0)
        while twin.position < end:
            yield twin.take(min(_BLOCK, end - twin.position))

    def state_dict(self) -> dict[str, Any]:
        """A JSON-safe state: position, counts, history of laws, and what they belong to."""
        return self._state().to_json()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a state written by ``state_dict``; on an error nothing is changed.

        Raises:
            StateError: It belongs to another seed, other sizes or other caps, or is damaged.
        """
        state = self._state().restored(saved)
        self._forget()
        self._position = state.position
        self._counts = state.counts.ravel().copy()
        self._history = list(state.history)

    def _settle(self) -> None:
        """Count the draws handed out of those made ahead."""
        if self._given:
            cells = self._shelves.cells(self._ahead[: self._given])
            counts = self._counts + np.bincount(cells, minlength=self.sizes.size)
            self._counts, self._position = counts, self._position + self._given
            self._ahead, self._given = self._ahead[self._given :], 0

    def _forget(self) -> None:
        """Drop what was worked out ahead under laws that may no longer hold."""
        self._settle()
        self._ahead = _NO_IDS
        self._next_ahead = _LEAST_AHEAD
        self._prepared = None

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Put the stream back where it stood if the draws made inside fail or are interrupted."""
        before = self._position, self._counts.copy()
        try:
            yield
        except BaseException:
            self._position, self._counts = before
            raise

    def _state(self) -> StreamState:
        return StreamState(
            self.seed, self.sizes, self.max_draws, self.position, self.counts, self._history
        )

    def _blocks(self, count: int) -> Iterator[tuple[IntArray, IntArray]]:
        """Cells of the next draws, block by block, with how often each occurs; then count them.

        A block ends where its law does: at a breakpoint, or at the draw that exhausts a subset.
        """
        if count < 0:
            raise ValueError(f"cannot make {count} draws")
        end = self._position + count
        while self._position < end:
            number = self._law_number(self._position)
            later = self._history[number + 1].draw if number + 1 < len(self._history) else end
            length = min(_BLOCK, min(later, end) - self._position)
            cells = self._law(number).cells(uniforms(self.seed, self._position, length))
            drawn = np.bincount(cells, minlength=self.sizes.size)
            cut = self._first_exhaustion(cells, drawn)
            if cut < length:
                cells = cells[:cut]
                drawn = np.bincount(cells, minlength=self.sizes.size)
            yield cells, drawn
            self._counts += drawn
            self._position += cells.size

    def _first_exhaustion(self, cells: IntArray, drawn: IntArray) -> int:
        """Length of the block up to and including the first draw that exhausts a subset."""
        if not (self.max_draws >= 0).any():
            return cells.size
        groups = self.sizes.shape[1]
        left = self.max_draws - self._counts.reshape(self.sizes.shape).sum(axis=1)
        in_block = drawn.reshape(self.sizes.shape).sum(axis=1)
        reached = np.flatnonzero((self.max_draws >= 0) & (in_block > 0) & (in_block >= left))
        if not reached.size:
            return cells.size
        order = np.argsort(cells // groups, kind="stable")
        starts = np.cumsum(in_block) - in_block
        return int(order[starts[reached] + left[reached] - 1].min()) + 1

    def _law_number(self, draw: int) -> int:
        number = bisect_right(self._history, draw, key=lambda point: point.draw) - 1
        if number < 0:
            raise StateError(f"no probabilities are in force at draw {draw}: push some for draw 0")
        return number

    def _law(self, number: int) -> Law:
        """Law ``number`` of the history without exhausted subsets, kept while it is in use."""
        exhausted = self.exhausted
        mark = number.to_bytes(8, "little") + exhausted.tobytes()
        if self._prepared is None or self._prepared[0] != mark:
            left = np.where(exhausted[:, None], 0.0, self._history[number].probabilities).ravel()
            if not left.any():
                raise ExhaustedError(
                    f"nothing is left to draw at draw {self._position}: every subset with a "
                    "positive probability has reached its max_passes; raise them, or train for "
                    "fewer steps"
                )
            self._prepared = (mark, Law(left))
        return self._prepared[1]


def _checked_limits(max_draws: ArrayLike | None, num_subsets: int) -> IntArray:
    """(K,) limits as whole numbers, -1 for none."""
    limits = np.full(num_subsets, -1.0) if max_draws is None else np.array(max_draws, np.float64)
    limits = np.where(np.isposinf(limits), -1.0, limits)
    if limits.shape != (num_subsets,) or not (np.floor(limits) == limits).all():
        raise ConfigError(f"max_draws needs {num_subsets} whole numbers, -1 for no limit")
    if (limits < -1).any():
        raise ConfigError("max_draws must be at least 0, or -1 for no limit")
    whole = limits.astype(np.int64)
    whole.setflags(write=False)
    return whole
