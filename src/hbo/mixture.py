"""The table of what there is to train on: subsets x difficulty groups, and their sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hbo.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Names and cell sizes of a mixture, and nothing per example.

    Example ids are ``0 .. num_examples - 1``, laid out subset by subset and, inside a subset, group
    by group: the cell of an id follows from ``offsets`` alone, so a mixture of a billion examples
    costs as much memory as one of ten.

    Args:
        names: Names of the K subsets; distinct, any text.
        sizes: (K, G) number of examples in each cell. A subset smaller than G has empty cells.
        data_fingerprint: Hash of the examples in this order; part of ``fingerprint``.
        mean_tokens: (K, G) mean tokens of an example, 0 in empty cells; ``None`` where unknown.

    Raises:
        DataError: No subsets, a name twice, a shape that does not fit, an empty subset.

    Example:
        >>> mixture = Mixture(("arabic", "german"), np.array([[2, 1], [4, 3]]))
        >>> mixture.subset_sizes.tolist(), mixture.cell_of(np.array([0, 2, 9])).tolist()
        ([3, 7], [0, 1, 3])
    """

    names: tuple[str, ...]
    sizes: IntArray
    data_fingerprint: str = ""
    mean_tokens: FloatArray | None = None

    def __post_init__(self) -> None:
        sizes = np.ascontiguousarray(self.sizes, dtype=np.int64)
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "sizes", sizes)
        self._check(sizes)
        sizes.setflags(write=False)

    def _check(self, sizes: IntArray) -> None:
        if sizes.ndim != 2 or 0 in sizes.shape:
            raise DataError(f"a mixture needs sizes of shape (subsets, groups), got {sizes.shape}")
        if len(self.names) != len(sizes):
            raise DataError(f"{len(self.names)} subset names for {len(sizes)} rows of sizes")
        if len(set(self.names)) != len(self.names):
            raise DataError("two subsets have the same name; give each its own")
        if (sizes < 0).any():
            raise DataError("a cell has a negative number of examples")
        empty = [name for name, row in zip(self.names, sizes, strict=True) if not row.any()]
        if empty:
            raise DataError(f"subset {empty[0]!r} has no example; remove it or give it data")
        if self.mean_tokens is not None and np.shape(self.mean_tokens) != sizes.shape:
            raise DataError(f"mean_tokens must have the shape of sizes, {sizes.shape}")

    @property
    def num_subsets(self) -> int:
        """K, the number of subsets."""
        return int(self.sizes.shape[0])

    @property
    def num_groups(self) -> int:
        """G, the number of difficulty groups of each subset."""
        return int(self.sizes.shape[1])

    @property
    def num_examples(self) -> int:
        """N, the number of examples of all subsets together."""
        return int(self.sizes.sum())

    @cached_property
    def subset_sizes(self) -> IntArray:
        """(K,) examples in each subset."""
        return np.asarray(self.sizes.sum(axis=1), dtype=np.int64)

    @cached_property
    def offsets(self) -> IntArray:
        """(K * G + 1,) first example id of each cell, and N at the end."""
        return np.concatenate(([0], np.cumsum(self.sizes.ravel()))).astype(np.int64)

    def cell_of(self, example_ids: IntArray) -> IntArray:
        """Flat cell number ``subset * G + group`` of each example id."""
        return np.searchsorted(self.offsets, example_ids, side="right").astype(np.int64) - 1

    def subset_of(self, example_ids: IntArray) -> IntArray:
        """Subset number of each example id."""
        return self.cell_of(example_ids) // self.num_groups

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and the data's own hash: equal only for the same mixture."""
        text = json.dumps([self.names, self.sizes.tolist(), self.data_fingerprint])
        return hashlib.sha256(text.encode()).hexdigest()

    def by_name(self, values: Sequence[object] | NDArray[np.generic]) -> dict[str, object]:
        """Pair one value per subset with the subsets' names."""
        plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
        return dict(zip(self.names, plain, strict=True))
