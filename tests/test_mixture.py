"""Mixture: layout of example ids, fingerprints, what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hbo.errors import DataError
from hbo.mixture import Mixture

SIZES = hnp.arrays(
    np.int64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(0, 9)
)


@given(SIZES)
def test_cell_of_is_the_layout_written_out(sizes: np.ndarray) -> None:
    sizes[:, 0] += 1
    mixture = Mixture(tuple(f"s{k}" for k in range(len(sizes))), sizes)
    written_out = [cell for cell, size in enumerate(sizes.ravel().tolist()) for _ in range(size)]
    ids = np.arange(mixture.num_examples)
    assert mixture.cell_of(ids).tolist() == written_out
    assert mixture.subset_of(ids).tolist() == [cell // sizes.shape[1] for cell in written_out]


def test_fingerprint_tells_names_sizes_and_data_apart() -> None:
    base = Mixture(("a", "b"), np.array([[2], [3]]), "x")
    others = [
        Mixture(("a", "c"), np.array([[2], [3]]), "x"),
        Mixture(("a", "b"), np.array([[3], [2]]), "x"),
        Mixture(("a", "b"), np.array([[2], [3]]), "y"),
    ]
    assert base.fingerprint == Mixture(("a", "b"), np.array([[2], [3]]), "x").fingerprint
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        (("a",), np.array([[0, 0]]), "'a' has no example"),
        (("a", "a"), np.array([[1], [1]]), "same name"),
        (("a",), np.array([[1], [1]]), "1 subset names for 2 rows"),
        ((), np.zeros((0, 1), dtype=np.int64), "shape"),
        (("a",), np.array([[2, -1]]), "negative"),
    ],
)
def test_refused(names: tuple[str, ...], sizes: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(names, sizes)
