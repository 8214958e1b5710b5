"""Choosing cells by their probabilities, and examples inside them by their turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.sampling.permutation import WordArray, derive_keys, permute

_BUCKETS = 2**16
_SLICE = 2**14  # arrays this short are allocated without asking the system: twice as fast
_WORTH_A_GUIDE = 2**12  # below this many draws, building the guide costs more than it saves


@dataclass(frozen=True, eq=False)
class Law:
    """One probability law over cells, ready to turn uniform numbers into cells.

    The cell of a uniform number u is the first whose cumulative probability exceeds u times the
    total, so a cell of probability 0 is never chosen and the law need not sum to exactly 1.

    Args:
        probabilities: (C,) non-negative, at least one of them positive.

    Example:
        >>> Law(np.array([0.5, 0.0, 0.25, 0.25])).cells(np.array([0.0, 0.5, 0.99])).tolist()
        [0, 2, 3]
    """

    probabilities: FloatArray

    @cached_property
    def cumulative(self) -> FloatArray:
        """(C,) running sums in cell order; added one by one, so equal on every machine."""
        return np.cumsum(self.probabilities)

    @cached_property
    def last(self) -> int:
        """The last cell of positive probability; catches products that round up to a tiny total."""
        return int(np.flatnonzero(self.probabilities)[-1])

    @cached_property
    def guide(self) -> IntArray:
        """Cell of each 2^-16 slice of [0, 1), or -1 where a slice holds an edge between cells."""
        edges: FloatArray = np.arange(_BUCKETS + 1) / _BUCKETS
        first = self.search(edges[:-1])
        last = self.search(np.nextafter(edges[1:], 0.0))
        return np.where(first == last, first, np.int64(-1))

    def search(self, uniforms: FloatArray) -> IntArray:
        """Cells by binary search: the definition."""
        targets: FloatArray = uniforms * self.cumulative[-1]
        found = np.searchsorted(self.cumulative, targets, side="right")
        return np.minimum(found, self.last, dtype=np.int64)

    def cells(self, uniforms: FloatArray) -> IntArray:
        """Cells of many uniform numbers: as ``search``, by table look-up where that is faster.

        Args:
            uniforms: (n,) in [0, 1).

        Returns:
            (n,) flat cell numbers.
        """
        if uniforms.size < _WORTH_A_GUIDE:
            return self.search(uniforms)
        cells = self.guide[(uniforms * _BUCKETS).astype(np.int64)]
        unsure = np.flatnonzero(cells < 0)
        cells[unsure] = self.search(uniforms[unsure])
        return cells


def occurrence_ranks(cells: IntArray, drawn: IntArray) -> IntArray:
    """How often each draw's cell occurs before it in the same block.

    Args:
        cells: (n,) cells in draw order.
        drawn: (C,) how often each cell occurs in ``cells``.

    Example:
        >>> occurrence_ranks(np.array([1, 0, 1, 1]), np.array([1, 3])).tolist()
        [0, 0, 1, 2]
    """
    # NumPy sorts 16-bit integers stably by counting, ten times faster than wider ones.
    narrow = cells.astype(np.uint16) if drawn.size <= 2**16 else cells
    order = np.argsort(narrow, kind="stable")
    starts = np.cumsum(drawn) - drawn
    ranks = np.empty(cells.size, dtype=np.int64)
    ranks[order] = np.arange(cells.size) - np.repeat(starts, drawn)
    return ranks


@dataclass(frozen=True, eq=False)
class Shelves:
    """The cells' examples, each cell in an order of its own for each of its cycles.

    The m-th draw of cell c takes place m mod size(c) of cycle m div size(c): a cell is used up
    before any of its examples comes again, and each cycle has a new order.

    Args:
        sizes: (C,) examples in each cell.
        seed: Seed of the orders.
    """

    sizes: IntArray
    seed: int

    @cached_property
    def offsets(self) -> IntArray:
        """(C,) first example id of each cell."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def cell_keys(self) -> WordArray:
        """(C,) key of each cell's orders."""
        seeds = np.full(self.sizes.size, self.seed, dtype=np.uint64)
        return derive_keys(derive_keys(seeds, np.zeros_like(self.sizes)), np.arange(seeds.size))

    def cells(self, example_ids: IntArray) -> IntArray:
        """(n,) flat cell numbers of examples."""
        return np.searchsorted(self.offsets, example_ids, side="right").astype(np.int64) - 1

    def example_ids(self, cells: IntArray, turns: IntArray) -> IntArray:
        """Ids of the examples that take the given turns of their cells.

        Args:
            cells: (n,) flat cell numbers, none of an empty cell.
            turns: (n,) how many draws of that cell come before, from the very start.
        """
        ids = np.empty(cells.size, dtype=np.int64)
        for start in range(0, cells.size, _SLICE):
            part = slice(start, start + _SLICE)
            ids[part] = self._few_example_ids(cells[part], turns[part])
        return ids

    def _few_example_ids(self, cells: IntArray, turns: IntArray) -> IntArray:
        sizes = self.sizes[cells]
        cycles = turns // sizes
        keys = derive_keys(self.cell_keys[cells], cycles)
        return self.offsets[cells] + permute(turns - cycles * sizes, sizes, keys)
