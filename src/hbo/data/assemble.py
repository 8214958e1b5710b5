"""Encoded subsets to one mixture: the table a trainer draws from, in `Mixture`'s order of ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hbo.data.subset import EncodedSubset
from hbo.difficulty.groups import assign_groups
from hbo.errors import ConfigError, DataError
from hbo.measure.examples import Encoded
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.priors import given
from hbo.sampling.limits import Limits

if TYPE_CHECKING:
    from datasets import Dataset

ID_COLUMN = "hbo_example_id"
FIRST_LOSS_COLUMN = "hbo_first_loss"


@dataclass(frozen=True, eq=False)
class BuiltMixture:
    """A mixture and its rows.

    Args:
        dataset: N rows in the mixture's layout: row i is example id i. Columns ``input_ids``,
            ``labels``, ``hbo_example_id`` (int64) and ``hbo_first_loss`` (nats per response token
            under the untouched model, NaN where not measured).
        mixture: Names and cell sizes.
        limits: Floors and caps of the subsets.
        weights: (K,) given shares, summing to 1; ``None`` where the sizes decide.
        rows: (N,) row of each example among the usable records of its subset.
        dropped: Per subset, how many examples truncation left without a response.
        heldout: Validation examples by subset, of all subsets or some: what policies that look at
            held-out data are shown, and nobody trains on.
    """

    dataset: Dataset
    mixture: Mixture
    limits: Limits
    weights: FloatArray | None = None
    rows: IntArray | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    heldout: Mapping[str, Sequence[Encoded]] = field(default_factory=dict)


def assemble(
    subsets: Mapping[str, EncodedSubset],
    scores: Mapping[str, FloatArray],
    *,
    groups: int,
    first_losses: Mapping[str, FloatArray] | None = None,
    weights: Mapping[str, float] | None = None,
    limits: Limits | None = None,
    heldout: Mapping[str, Sequence[Encoded]] | None = None,
    drop_easiest: float = 0.0,
) -> BuiltMixture:
    """Cut encoded subsets into difficulty groups and lay them out as one mixture.

    Args:
        subsets: The K subsets by name, n_k examples each.
        scores: Per subset (n_k,) difficulty scores, higher is harder.
        groups: G, difficulty groups of each subset.
        first_losses: Per subset (n_k,) losses under the untouched model; ``None``: unknown.
        weights: Share of draws of every subset; ``None``: their sizes decide.
        limits: Floors and caps; ``None``: none.
        heldout: Validation examples of some subsets, or of all.
        drop_easiest: Share of each subset, its easiest examples, that is left out.

    Returns:
        The mixture and its rows: subset by subset, group by group, in original order inside.

    Raises:
        ConfigError: ``weights`` are not given for exactly the subsets, or limits are impossible.
        DataError: There is no subset.

    Example:
        >>> one = Encoded(np.array([1, 2]), np.array([-100, 2]))
        >>> subset = EncodedSubset((one, one, one), np.arange(3), np.array([], dtype=np.int64))
        >>> built = assemble({"a": subset}, {"a": np.array([3.0, 1.0, 2.0])}, groups=2)
        >>> built.rows.tolist(), built.mixture.sizes.tolist()
        ([1, 2, 0], [[2, 1]])
    """
    shares, limits = check_plan(tuple(subsets), weights, limits)
    cells: list[list[Encoded]] = []
    order: dict[str, IntArray] = {}
    for name, subset in subsets.items():
        group = assign_groups(scores[name], groups, drop_easiest)
        order[name] = np.argsort(group, kind="stable")[np.count_nonzero(group < 0) :]
        members = (np.flatnonzero(group == g).tolist() for g in range(groups))
        cells += [[subset.encoded[i] for i in rows] for rows in members]
    shape = (len(subsets), groups)
    mixture = Mixture(
        names=tuple(subsets),
        sizes=np.array([len(cell) for cell in cells], dtype=np.int64).reshape(shape),
        data_fingerprint=content_fingerprint(cells),
        mean_tokens=np.array([_mean_tokens(cell) for cell in cells]).reshape(shape),
    )
    return BuiltMixture(
        dataset=_table(cells, [_first_losses(first_losses, name, order[name]) for name in subsets]),
        mixture=mixture,
        limits=limits,
        weights=shares,
        rows=np.concatenate([subsets[name].rows[order[name]] for name in subsets]),
        dropped={name: len(subset.dropped) for name, subset in subsets.items()},
        heldout=dict(heldout or {}),
    )


def check_plan(
    names: Sequence[str], weights: Mapping[str, float] | None, limits: Limits | None
) -> tuple[FloatArray | None, Limits]:
    """Check what a user asks of the subsets before anything is measured.

    Args:
        names: Names of the K subsets.
        weights: Share of draws of every subset, or ``None``.
        limits: Floors and caps, or ``None``.

    Returns:
        (K,) shares that sum to 1 (``None`` without weights), and limits.

    Raises:
        ConfigError: Weights are not given for exactly the subsets, or limits are impossible.
        DataError: There is no subset.
    """
    if not names:
        raise DataError("a mixture needs at least one subset")
    limits = limits or Limits.none(len(names))
    limits.check(names)
    if weights is None:
        return None, limits
    if set(weights) != set(names):
        other = ", ".join(sorted(set(weights) ^ set(names)))
        raise ConfigError(f"weights are for all subsets or for none; without a partner: {other}")
    return given([weights[name] for name in names]), limits


def content_fingerprint(cells: Iterable[Sequence[Encoded]]) -> str:
    """SHA-256 over lengths, tokens and labels of examples in this order.

    Example:
        >>> a, b = (Encoded(np.array([1, t]), np.array([-100, t])) for t in (2, 3))
        >>> content_fingerprint([[a, b]]) == content_fingerprint([[a], [b]])
        True
        >>> content_fingerprint([[a, b]]) == content_fingerprint([[b, a]])
        False
    """
    digests = [hashlib.sha256() for _ in range(3)]
    for cell in cells:
        ids, labels, offsets = _flat(cell)
        for digest, part in zip(digests, (np.diff(offsets), ids, labels), strict=True):
            digest.update(part.astype("<i4", copy=False).tobytes())
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _flat(cell: Sequence[Encoded]) -> tuple[Any, Any, IntArray]:
    """All ids and all labels of a cell, one after the other, and where each example starts."""
    offsets = np.cumsum([0, *(example.num_tokens for example in cell)]).astype(np.int64)
    empty = np.empty(0, dtype=np.int32)
    ids = np.concatenate([empty, *(example.input_ids for example in cell)])
    labels = np.concatenate([empty, *(example.labels for example in cell)])
    return ids.astype(np.int32, copy=False), labels.astype(np.int32, copy=False), offsets


def _table(
    cells: Sequence[Sequence[Encoded]], first_losses: Sequence[FloatArray | None]
) -> Dataset:
    """The rows of all cells; Arrow lists are made from whole arrays, not row by row."""
    import pyarrow as pa
    from datasets import Dataset

    ids, labels = [], []
    for cell in cells:
        flat_ids, flat_labels, offsets = _flat(cell)
        starts = pa.array(offsets.astype(np.int32))
        ids.append(pa.ListArray.from_arrays(starts, pa.array(flat_ids)))
        labels.append(pa.ListArray.from_arrays(starts, pa.array(flat_labels)))
    count = sum(len(cell) for cell in cells)
    known = [loss for loss in first_losses if loss is not None]
    table = pa.table(
        {
            "input_ids": pa.chunked_array(ids),
            "labels": pa.chunked_array(labels),
            ID_COLUMN: pa.array(np.arange(count, dtype=np.int64)),
            FIRST_LOSS_COLUMN: pa.array(np.concatenate(known) if known else np.full(count, np.nan)),
        }
    )
    return Dataset(table)


def _first_losses(
    losses: Mapping[str, FloatArray] | None, name: str, order: IntArray
) -> FloatArray | None:
    return None if losses is None else np.asarray(losses[name], dtype=np.float64)[order]


def _mean_tokens(cell: Sequence[Encoded]) -> float:
    """Of the tokens that are trained on: the loss is their mean, and the run log counts them."""
    return sum(example.response_tokens for example in cell) / len(cell) if cell else 0.0
