"""What was observed since the last update: summed per cell, added over ranks, kept in state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.signals import (
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
_WHOLE_NAMES = tuple(sorted(WHOLE_SIGNALS))


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
        self._local = self._blank()
        self._now = self._blank()
        self._before: dict[str, SignalTable] = {}
        self._first: dict[str, SignalTable] = {}

    def _blank(self) -> dict[str, FloatArray]:
        shape = self._mixture.sizes.shape
        blank = {name: np.zeros((3, *shape)) for name in _EXAMPLE_NAMES}
        # Sum and count of the values measured whole; sums of (loss x tokens, tokens) per subset,
        # and how many examples had tokens but no finite loss.
        blank |= {name: np.zeros((2, shape[0])) for name in _WHOLE_NAMES}
        blank["totals"] = np.zeros((3, shape[0]))
        return blank

    def observe(self, example_ids: IntArray, values: Mapping[str, FloatArray]) -> None:
        """Add per-example values, such as ``loss_signals`` gives.

        Args:
            example_ids: (n,) examples that were measured.
            values: Signal name -> (n,) values; what is not finite is left out.
        """
        cells = self._mixture.cell_of(np.asarray(example_ids, dtype=np.int64))
        for name, column in values.items():
            add_values(self._local[name], cells, column)

    def train(self, example_ids: IntArray, loss: FloatArray, tokens: FloatArray) -> None:
        """Add trained examples to the run's totals: (n,) mean loss and trained tokens of each."""
        subsets = self._mixture.subset_of(np.asarray(example_ids, dtype=np.int64))
        usable, broken = (
            (tokens > 0) & finite for finite in (np.isfinite(loss), ~np.isfinite(loss))
        )
        size = self._mixture.num_subsets
        exact = np.round(loss[usable] * tokens[usable] * 2.0**20) / 2.0**20
        self._local["totals"] += [
            np.bincount(subsets[usable], weights=exact, minlength=size),
            np.bincount(subsets[usable], weights=tokens[usable], minlength=size),
            np.bincount(subsets[broken], minlength=size),
        ]

    def observe_whole(self, name: str, values: FloatArray) -> None:
        """Add (K,) values measured on whole subsets; NaN where this rank measured none."""
        known = np.isfinite(values)
        kept = np.where(known, np.clip(values, -LARGEST, LARGEST), 0.0)
        self._local[name] += [kept, known.astype(np.float64)]

    def gather(self, reduce: Reduce = alone) -> None:
        """Add what the ranks observed since the last call; one reduction for everything."""
        names = list(self._local)
        flat = reduce(np.concatenate([self._local[name].ravel() for name in names]))
        start = 0
        for name in names:
            size = self._local[name].size
            self._now[name] = self._now[name] + flat[start : start + size].reshape(
                self._local[name].shape
            )
            start += size
        self._local = self._blank()

    @property
    def totals(self) -> FloatArray:
        """(3, K) gathered since the run began, per subset: loss x tokens (nats), tokens, broken.

        Broken are examples with trained tokens whose loss was not finite; they are in no sum.
        """
        return self._now["totals"]

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
                for name, (total, count) in ((n, self._now[n]) for n in _WHOLE_NAMES)
                if count.any()
            },
            step=step,
            sizes=self._mixture.sizes,
            draws=draws,
        )

    def _tables(self) -> dict[str, SignalTable]:
        return {
            name: SignalTable.from_array(self._now[name])
            for name in _EXAMPLE_NAMES
            if self._now[name][2].any()
        }

    def close(self) -> None:
        """End the interval: now becomes before, and first where there was none."""
        self._before = self._tables()
        self._first = {**self._before, **self._first}
        self._now = self._blank() | {"totals": self._now["totals"]}

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe gathered state; call ``gather`` first."""
        return {
            "now": {name: value.tolist() for name, value in self._now.items() if value.any()},
            "before": {name: table.to_json() for name, table in self._before.items()},
            "first": {name: table.to_json() for name, table in self._first.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``.

        Raises:
            ValueError, TypeError, KeyError: It is damaged.
        """
        blank = self._blank()
        now, before, first = (
            {name: _of_shape(blank[name], value) for name, value in state[part].items()}
            for part in ("now", "before", "first")
        )
        self._local, self._now = self._blank(), blank | now
        self._before = {name: SignalTable.from_array(value) for name, value in before.items()}
        self._first = {name: SignalTable.from_array(value) for name, value in first.items()}


def _of_shape(blank: FloatArray, value: Any) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != blank.shape or not np.isfinite(array).all():
        raise ValueError(f"a table of shape {array.shape} in place of {blank.shape}")
    return array


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
