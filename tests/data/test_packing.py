"""Packing: rows of one cell each, and nothing about the examples in them is lost."""

from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from datasets import Dataset

from hbo.data.assemble import BuiltMixture, assemble
from hbo.data.packing import is_packed, pack_mixture, segment_of
from hbo.data.subset import EncodedSubset
from hbo.errors import DataError
from hbo.measure.examples import IGNORED, Encoded

PROMPT = 2


def example(rng: np.random.Generator, length: int) -> Encoded:
    ids = rng.integers(1, 1000, length)
    return Encoded(ids, np.where(np.arange(length) < PROMPT, IGNORED, ids))


def built(lengths: dict[str, list[int]], groups: int = 2) -> BuiltMixture:
    rng = np.random.default_rng(3)
    subsets = {
        name: EncodedSubset(
            tuple(example(rng, n) for n in own), np.arange(len(own)), np.array([], dtype=np.int64)
        )
        for name, own in lengths.items()
    }
    losses = {name: np.arange(len(own)) + 1.5 for name, own in lengths.items()}
    scores = {name: np.array(own, dtype=float) for name, own in lengths.items()}
    return assemble(subsets, scores, groups=groups, first_losses=losses)


MIXED = {"a": [5, 9, 4, 7, 12, 6, 3], "b": [8, 3, 5], "c": [6]}


def joined(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def by_twos(rows: Dataset) -> Dataset:
    """Two examples a row."""
    lists = rows["tokens"][:]
    return Dataset.from_dict({"tokens": [joined(lists[n : n + 2]) for n in range(0, len(rows), 2)]})


def cut_at(width: int):
    """Rows of so many tokens, whatever the examples."""

    def pack(rows: Dataset) -> Dataset:
        flat = joined(rows["tokens"][:])
        return Dataset.from_dict(
            {"tokens": [flat[n : n + width] for n in range(0, len(flat), width)]}
        )

    return pack


def truncated(rows: Dataset) -> Dataset:
    return Dataset.from_dict({"tokens": [row[:6] for row in rows["tokens"]]})


def segments(packed: BuiltMixture) -> list[tuple[int, list[int], list[int], float]]:
    """(cell, ids, labels, first loss) of every segment, row after row."""
    found = []
    for row, cell in zip(packed.dataset, packed.mixture.cell_of(np.arange(999)), strict=False):
        ends = [0, *np.cumsum(row["seq_lengths"]).tolist()]
        assert ends[-1] == len(row["input_ids"]) == len(row["labels"])
        for (a, b), loss in zip(pairwise(ends), row["hbo_first_loss"], strict=True):
            found.append((int(cell), row["input_ids"][a:b], row["labels"][a:b], loss))
    return found


def test_whole_examples_stay_in_their_cells_with_their_labels_and_losses() -> None:
    mixture = built(MIXED)
    packed = pack_mixture(mixture, by_twos)
    cells = mixture.mixture.cell_of(np.arange(mixture.mixture.num_examples)).tolist()
    expected = [
        (cell, row["input_ids"], row["labels"], row["hbo_first_loss"])
        for cell, row in zip(cells, mixture.dataset, strict=True)
    ]
    assert segments(packed) == expected
    assert packed.mixture.sizes.tolist() == [[2, 2], [1, 1], [1, 0]]
    assert packed.dataset["hbo_example_id"][:] == list(range(7))
    assert is_packed(packed.dataset) and not is_packed(mixture.dataset)
    assert packed.dataset["seq_lengths"][0] == [5, 4] and packed.rows is None


def test_parts_of_an_example_that_was_cut_have_no_first_loss() -> None:
    mixture = built({"a": [6, 7, 9]}, groups=1)
    found = segments(pack_mixture(mixture, cut_at(8)))
    assert [len(ids) for _, ids, _, _ in found] == [6, 2, 5, 3, 6]
    assert [loss for *_, loss in found] == pytest.approx([1.5, *[np.nan] * 4], nan_ok=True)
    flat = [token for _, ids, _, _ in found for token in ids]
    assert flat == joined(mixture.dataset["input_ids"][:])


def test_an_example_whose_end_is_cut_off_has_no_first_loss() -> None:
    found = segments(pack_mixture(built({"a": [6, 7]}, groups=1), truncated))
    assert [loss for *_, loss in found] == pytest.approx([1.5, np.nan], nan_ok=True)


def test_mean_tokens_of_a_row_are_those_that_are_trained_on() -> None:
    # No token is predicted across the border of two segments.
    packed = pack_mixture(built({"a": [6, 7, 9]}, groups=1), cut_at(8))
    trained = [
        sum(label != IGNORED for label in labels[1:]) for _, _, labels, _ in segments(packed)
    ]
    assert trained == [4, 0, 4, 1, 5]
    assert packed.mixture.mean_tokens.tolist() == [[14 / 3]]


def test_rows_without_a_trained_token_are_left_out() -> None:
    packed = pack_mixture(built({"a": [4, 8]}, groups=1), cut_at(2))
    # 4 = prompt 2 + 2 trained; a row of two tokens trains on its second one alone.
    assert packed.mixture.sizes.tolist() == [[1 + 3]]
    assert all(len(row) == 2 and row[1] != IGNORED for row in packed.dataset["labels"])


def test_a_subset_of_which_nothing_is_left_is_an_error() -> None:
    with pytest.raises(DataError, match="subset 'a' has no example"):
        pack_mixture(built({"a": [4, 8], "b": [5]}), cut_at(1))


def test_the_fingerprint_is_that_of_the_rows() -> None:
    prints = [
        pack_mixture(built(lengths), pack).mixture.fingerprint
        for lengths in (MIXED, {**MIXED, "c": [7]})
        for pack in (by_twos, by_twos, cut_at(8), cut_at(9))
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 6
    assert built(MIXED).mixture.fingerprint not in prints


def test_any_example_of_a_row_can_stand_for_it_but_one_without_a_trained_token() -> None:
    labels = [-100, 5, -100, -100, 7, 8, 9]
    chosen = [segment_of(row, labels, [2, 2, 1, 2]) for row in range(5)]
    assert chosen == [(n, slice(a, b)) for n, a, b in [(0, 0, 2), (3, 5, 7)] * 3][:5]
