"""Several examples in a row, packed inside their cell, so that a row belongs to one cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN, BuiltMixture
from hbo.measure.examples import IGNORED, Encoded
from hbo.mixture import FloatArray, IntArray, Mixture

if TYPE_CHECKING:
    from datasets import Dataset

SEGMENTS_COLUMN = "seq_lengths"
"""Tokens of each example in a packed row; TRL's name, whose collator restarts positions there."""

Pack = Callable[["Dataset"], "Dataset"]
"""Packs the lists of a dataset's only column into longer ones, cutting them where it must."""


def is_packed(dataset: Dataset) -> bool:
    """Whether a mixture's rows hold several examples each."""
    return SEGMENTS_COLUMN in dataset.column_names


def pack_mixture(built: BuiltMixture, pack: Pack) -> BuiltMixture:
    """Pack the examples of each cell into rows; rows are what is drawn then.

    What is packed are the numbers of the tokens. From them follow, for each row, the segments that
    it consists of, and for each segment its example: a whole one, or a part of one that was cut.
    Rows without a trained token are left out.

    Args:
        built: A mixture whose dataset is in its layout, with one example a row.
        pack: Packs one cell.

    Returns:
        A mixture of rows, in which ``seq_lengths`` (tokens) and ``hbo_first_loss`` (nats per
        response token, NaN for a part of an example) hold a list for each row, one number for each
        segment.

    Raises:
        DataError: A subset is left without a trained token.

    Example:
        >>> from hbo.data.assemble import assemble
        >>> from hbo.data.subset import EncodedSubset
        >>> one = Encoded(np.array([1, 2]), np.array([-100, 2]))
        >>> subset = EncodedSubset((one, one, one), np.arange(3), np.array([], dtype=np.int64))
        >>> built = assemble({"a": subset}, {"a": np.arange(3.0)}, groups=1)
        >>> packed = pack_mixture(
        ...     built,
        ...     lambda rows: rows.from_dict({"tokens": [sum(rows["tokens"], [])]}),
        ... )
        >>> packed.mixture.sizes.tolist(), packed.dataset["seq_lengths"][0]
        ([[1]], [2, 2, 2])
    """
    import pyarrow as pa
    from datasets import Dataset

    source = _Source.of(built.dataset)
    cells = [source.packed(a, b, pack) for a, b in pairwise(built.mixture.offsets.tolist())]
    sizes = np.array([len(cell.row_tokens) for cell in cells], dtype=np.int64)
    trained = np.array([cell.trained for cell in cells], dtype=np.float64)
    shape = built.mixture.sizes.shape
    mixture = Mixture(
        built.mixture.names,
        sizes.reshape(shape),
        _fingerprint(built.mixture.data_fingerprint, cells),
        (trained / np.maximum(sizes, 1)).reshape(shape),
    )
    columns = {name: pa.chunked_array([c.columns[name] for c in cells]) for name in _COLUMNS}
    columns[ID_COLUMN] = pa.array(np.arange(mixture.num_examples))
    return replace(built, dataset=Dataset(pa.table(columns)), mixture=mixture, rows=None)


def segment_of(example_id: int, labels: Any, lengths: Sequence[int]) -> tuple[int, slice]:
    """The example that stands for a packed row in a probe, by the row's number: any of them alike.

    Args:
        example_id: The row's number.
        labels: (T,) its labels.
        lengths: Tokens of its segments.

    Returns:
        The number of a segment with a trained token, and where it lies in the row.

    Example:
        >>> labels = [-100, 5, -100, -100, -100, 6]
        >>> [segment_of(row, labels, [2, 2, 2])[0] for row in range(3)]
        [0, 2, 0]
    """
    ends = np.cumsum(lengths).tolist()
    places = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    whole = np.asarray(labels)
    usable = [n for n, at in enumerate(places) if Encoded(whole[at], whole[at]).response_tokens]
    number = usable[example_id % len(usable)]
    return number, places[number]


_COLUMNS = ("input_ids", "labels", SEGMENTS_COLUMN, FIRST_LOSS_COLUMN)


@dataclass(frozen=True, eq=False)
class _Cell:
    """The packed rows of one cell.

    Args:
        columns: Arrow lists, one a row.
        row_tokens: (R,) tokens of each row.
        segments: (3, S) first token, number of tokens and row of each segment.
        trained: Tokens of all rows that are trained on.
    """

    columns: dict[str, Any]
    row_tokens: IntArray
    segments: IntArray
    trained: int


@dataclass(frozen=True, eq=False)
class _Source:
    """The unpacked mixture as flat arrays: N examples, T tokens.

    Args:
        ids: (T,) token ids.
        labels: (T,) labels.
        starts: (N + 1,) number of the first token of each example.
        first_losses: (N,) nats, NaN where unknown.
    """

    ids: IntArray
    labels: IntArray
    starts: IntArray
    first_losses: FloatArray

    @classmethod
    def of(cls, dataset: Dataset) -> _Source:
        table = dataset.with_format("arrow")[:]
        lists = {name: table.column(name).chunks for name in ("input_ids", "labels")}
        ids, labels = (np.concatenate([part.flatten() for part in lists[name]]) for name in lists)
        lengths = np.concatenate([part.value_lengths() for part in lists["input_ids"]])
        starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        return cls(ids, labels, starts, table.column(FIRST_LOSS_COLUMN).to_numpy())

    def packed(self, first: int, last: int, pack: Pack) -> _Cell:
        """The rows of the cell that holds the examples from ``first`` to before ``last``."""
        tokens, row_tokens = _pack_numbers(self.starts[first : last + 1], pack)
        owners = np.searchsorted(self.starts, tokens, side="right") - 1
        begins = np.diff(owners, prepend=-1) != 0
        begins[np.cumsum(row_tokens) - row_tokens] = True
        # The first token of a segment is predicted by nothing.
        counted = (self.labels[tokens] != IGNORED) & ~begins
        kept = _by_row(counted, row_tokens) > 0
        here = np.repeat(kept, row_tokens)
        tokens, owners, begins = tokens[here], owners[here], begins[here]
        row_tokens = row_tokens[kept]
        places = np.flatnonzero(begins)
        lengths = np.diff(places, append=len(tokens))
        owner = owners[places]
        whole = lengths == self.starts[owner + 1] - self.starts[owner]
        first_losses = np.where(whole, self.first_losses[owner], np.nan)
        row_segments = _by_row(begins, row_tokens)
        columns = {
            "input_ids": _lists(self.ids[tokens], row_tokens),
            "labels": _lists(self.labels[tokens], row_tokens),
            SEGMENTS_COLUMN: _lists(lengths.astype(np.int32), row_segments),
            FIRST_LOSS_COLUMN: _lists(first_losses, row_segments),
        }
        rows = np.repeat(np.arange(len(row_tokens)), row_segments)
        segments = np.stack([tokens[places], lengths, rows]).astype(np.int64)
        return _Cell(columns, row_tokens, segments, int(counted.sum()))


def _pack_numbers(starts: IntArray, pack: Pack) -> tuple[IntArray, IntArray]:
    """Numbers of the tokens of a cell, row after row, and how many there are in each row."""
    import pyarrow as pa
    from datasets import Dataset

    nothing = np.empty(0, dtype=np.int64)
    if len(starts) == 1:
        return nothing, nothing
    numbers = _lists(np.arange(starts[0], starts[-1]), np.diff(starts))
    packed = pack(Dataset(pa.table({"tokens": numbers}))).with_format("arrow")[:]
    chunks = packed.column("tokens").chunks
    tokens = np.concatenate([nothing, *(chunk.flatten() for chunk in chunks)])
    row_tokens = np.concatenate([nothing, *(chunk.value_lengths() for chunk in chunks)])
    return tokens, row_tokens


def _by_row(marks: Any, row_tokens: IntArray) -> IntArray:
    """(R,) how many tokens of each row are marked."""
    sums = np.concatenate(([0], np.cumsum(marks, dtype=np.int64)))
    ends = np.cumsum(row_tokens)
    return np.asarray(sums[ends] - sums[ends - row_tokens], dtype=np.int64)


def _lists(values: Any, lengths: IntArray) -> Any:
    """An Arrow array of lists of these lengths, made from the whole array."""
    import pyarrow as pa

    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _fingerprint(of_data: str, cells: Sequence[_Cell]) -> str:
    """Of the examples, and of which part of which lies in which row."""
    digest = hashlib.sha256(of_data.encode())
    for cell in cells:
        digest.update(cell.segments.astype("<i8").tobytes())
    return digest.hexdigest()
