"""What was observed since the last update: summed per cell, added over ranks, kept in state."""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.signals import (
    CELL_SIGNALS,
    EXAMPLE_SIGNALS,
    FIRST_LOSS,
    LARGEST,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    WHOLE_SIGNALS,
    Signals,
    SignalTable,
    add_values,
)

Reduce = Callable[[FloatArray], FloatArray]
"""Adds an array over all ranks; every rank calls it at the same point with the same shape."""

MAX_LOG_RATIO = 20.0
"""exp of more than this (4.8e8) says nothing more about an example than that it is broken."""

_EXAMPLE_NAMES = tuple(sorted(EXAMPLE_SIGNALS))
_WHOLE_NAMES = (*sorted(WHOLE_SIGNALS), *sorted(CELL_SIGNALS))


def alone(array: FloatArray) -> FloatArray:
    """The ``Reduce`` of a run on one rank."""
    return array


class Observations:
    """Signal tables of this interval, the last and the first, and token totals of the whole run.

    Each rank observes its own examples; ``gather`` adds what is new over the ranks. Sums are exact
    (``SignalTable.with_values``), so it does not matter how often, or where, that happens.

    Args:
        mixture: Gives the cells.
    """

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        subsets, groups = mixture.sizes.shape
        # Sums, squares and counts per cell; sum and count of the values measured whole, per subset
        # or per cell; sums of (loss x tokens, tokens) per subset, and how many examples had tokens
        # but no finite loss.
        self._shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(_EXAMPLE_NAMES, (3, subsets, groups)),
            **dict.fromkeys(sorted(WHOLE_SIGNALS), (2, subsets)),
            **dict.fromkeys(sorted(CELL_SIGNALS), (2, subsets, groups)),
            "totals": (3, subsets),
        }
        self._local, self._now = _Tables(self._shapes), _Tables(self._shapes)
        self._before: dict[str, SignalTable] = {}
        self._first: dict[str, SignalTable] = {}

    def observe(self, example_ids: IntArray, values: Mapping[str, FloatArray]) -> None:
        """Add per-example values, such as ``loss_signals`` gives.

        Args:
            example_ids: (n,) examples that were measured.
            values: Signal name -> (n,) values; what is not finite is left out.
        """
        cells = self._mixture.cell_of(np.asarray(example_ids, dtype=np.int64))
        for name, column in values.items():
            add_values(self._local.tables[name], cells, column)

    def train(self, example_ids: IntArray, loss: FloatArray, tokens: FloatArray) -> None:
        """Add trained examples to the run's totals: (n,) mean loss and trained tokens of each."""
        subsets = self._mixture.subset_of(np.asarray(example_ids, dtype=np.int64))
        usable, broken = (
            (tokens > 0) & finite for finite in (np.isfinite(loss), ~np.isfinite(loss))
        )
        size = self._mixture.num_subsets
        exact = np.rint(loss[usable] * tokens[usable] * 2.0**20) / 2.0**20
        self._local.tables["totals"] += [
            np.bincount(subsets[usable], weights=exact, minlength=size),
            np.bincount(subsets[usable], weights=tokens[usable], minlength=size),
            np.bincount(subsets[broken], minlength=size),
        ]

    def observe_whole(self, name: str, values: FloatArray) -> None:
        """Add values measured whole, (K,) or (K, G); NaN where this rank measured none."""
        known = np.isfinite(values)
        kept = np.where(known, np.clip(values, -LARGEST, LARGEST), 0.0)
        self._local.tables[name] += [kept, known.astype(np.float64)]

    def gather(self, reduce: Reduce = alone) -> None:
        """Add what the ranks observed since the last call; one reduction for everything."""
        self._now.flat += reduce(self._local.flat)
        self._local = _Tables(self._shapes)

    @property
    def totals(self) -> FloatArray:
        """(3, K) gathered since the run began, per subset: loss x tokens (nats), tokens, broken.

        Broken are examples with trained tokens whose loss was not finite; they are in no sum.
        """
        return self._now.tables["totals"].copy()

    def signals(self, step: int, draws: IntArray) -> Signals:
        """The gathered state as a policy sees it.

        Args:
            step: Optimiser steps done.
            draws: (K, G) draws consumed.
        """
        return Signals(
            now=self._tables(),
            before=dict(self._before),
            first=dict(self._first),
            whole={
                name: np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
                for name, (total, count) in ((n, self._now.tables[n]) for n in _WHOLE_NAMES)
                if count.any()
            },
            step=step,
            sizes=self._mixture.sizes,
            draws=draws,
        )

    def _tables(self) -> dict[str, SignalTable]:
        return {
            name: SignalTable.from_array(self._now.tables[name].copy())
            for name in _EXAMPLE_NAMES
            if self._now.tables[name][2].any()
        }

    def close(self) -> None:
        """End the interval: now becomes before, and first where there was none."""
        self._before = self._tables()
        self._first = {**self._before, **self._first}
        totals = self.totals
        self._now = _Tables(self._shapes)
        self._now.tables["totals"][:] = totals

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe gathered state; call ``gather`` first."""
        now = self._now.tables
        return {
            "now": {name: _packed(table) for name, table in now.items() if table.any()},
            "before": {name: _packed(table.to_array()) for name, table in self._before.items()},
            "first": {name: _packed(table.to_array()) for name, table in self._first.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``.

        Raises:
            ValueError, TypeError, KeyError: It is damaged.
        """
        now, before, first = (
            {name: _unpacked(text, self._shapes[name]) for name, text in state[part].items()}
            for part in ("now", "before", "first")
        )
        self._local, self._now = _Tables(self._shapes), _Tables(self._shapes)
        for name, table in now.items():
            self._now.tables[name][:] = table
        self._before = {name: SignalTable.from_array(table) for name, table in before.items()}
        self._first = {name: SignalTable.from_array(table) for name, table in first.items()}


class _Tables:
    """Zeros, as one array that ranks add up, and as tables by name that share its memory."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.flat = np.zeros(sum(map(math.prod, shapes.values())))
        self.tables: dict[str, FloatArray] = {}
        start = 0
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            self.tables[name] = self.flat[start:end].reshape(shape)
            start = end


def _packed(table: FloatArray) -> str:
    """Hexadecimal text of a table: a bit for each cell, set where it is not all 0, and those cells.

    Exact. As decimal numbers, one a line as a trainer writes them, a full table would be half as
    long again and take thirty times as long to write.

    Args:
        table: (R, ...) R numbers for each cell.
    """
    rows = table.reshape(len(table), -1)
    filled = rows.any(axis=0)
    return (np.packbits(filled).tobytes() + rows[:, filled].astype("<f8").tobytes()).hex()


def _unpacked(text: str, shape: tuple[int, ...]) -> FloatArray:
    """The inverse of ``_packed``.

    Raises:
        ValueError, TypeError: It is no text of a table of this shape, or a number is not finite.
    """
    rows, cells = shape[0], math.prod(shape[1:])
    raw, bits = binascii.unhexlify(text), (cells + 7) // 8
    filled = np.unpackbits(np.frombuffer(raw[:bits], np.uint8), count=cells).astype(np.bool_)
    values = np.frombuffer(raw[bits:], "<f8")
    if len(values) != rows * filled.sum() or not np.isfinite(values).all():
        raise ValueError(f"{len(raw)} bytes are no table of shape {shape}")
    table = np.zeros((rows, cells))
    table[:, filled] = values.reshape(rows, -1)
    return table.reshape(shape)


def loss_signals(loss: FloatArray, first_loss: FloatArray | None = None) -> dict[str, FloatArray]:
    """The signals that follow from the losses of some examples.

    Args:
        loss: (n,) mean negative log-likelihood of the response tokens, nats.
        first_loss: (n,) the same under the untouched model; NaN where unknown.

    Returns:
        ``loss`` and ``perplexity``; with ``first_loss`` that and ``perplexity_ratio`` (Eq. 8).

    Example:
        >>> signals = loss_signals(np.array([1.0]), np.array([2.0]))
        >>> round(signals["perplexity_ratio"].item(), 4)  # exp(1 - 2)
        0.3679
    """
    loss = np.asarray(loss, dtype=np.float64)
    loss = np.where(np.isfinite(loss), loss, np.nan)  # unknown in every signal, not "very large"
    signals = {LOSS: loss, PERPLEXITY: np.exp(np.minimum(loss, MAX_LOG_RATIO))}
    if first_loss is not None:
        first_loss = np.asarray(first_loss, dtype=np.float64)
        ratio = np.exp(np.minimum(loss - first_loss, MAX_LOG_RATIO))
        signals |= {FIRST_LOSS: first_loss, PERPLEXITY_RATIO: ratio}
    return signals
