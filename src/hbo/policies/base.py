"""What a policy is: its configuration, with pure methods over an explicit state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from hbo.mixture import FloatArray, IntArray
from hbo.signals import Signals

PolicyState = dict[str, Any]
"""JSON-safe values only: numbers, text, lists, dicts with text keys; never changed in place."""


class Policy(Protocol):
    """A rule that turns training history into sampling probabilities.

    An implementation is a frozen dataclass whose fields are its settings. It holds no state:
    ``init`` makes one, ``update`` returns the next, and the balancer keeps it (and writes it to
    checkpoints).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def needs(self) -> frozenset[str]:
        """Names of the signals (``hbo.signals``) that ``update`` reads."""
        ...

    def needs_at(self, step: int) -> frozenset[str]:
        """The part of ``needs`` that the update after ``step`` pays for: only that is probed.

        Args:
            step: Optimiser steps done, a multiple of ``interval``.
        """
        ...

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        ...

    @property
    def update_at_start(self) -> bool:
        """Whether ``update`` is also called before the first step."""
        ...

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """State before any update.

        Args:
            sizes: (K, G) size of each cell (examples, or tokens where ``unit`` is tokens).
            weights: (K,) shares that the user gave, summing to 1; ``None``: sizes give the prior.
        """
        ...

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) sampling probabilities: >= 0, sum 1, 0 where a cell is empty."""
        ...

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The next state, given what was measured since the last update."""
        ...

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """What the last update saw, for the run log.

        Returns:
            ``global``: {``rewards``, ``errors``}: (K,) lists or ``None``; ``local``: the same with
            (K, G) lists; ``notes``: list of [code, text] pairs worth a warning. Empty for a policy
            that never changes.
        """
        ...
