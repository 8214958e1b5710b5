"""How a trainer is balanced: where signals come from, when laws take hold, what is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

from hbo.errors import ConfigError
from hbo.measure.taps import Scope
from hbo.signals import HELDOUT_SIGNALS, UNCERTAINTIES

SIGNAL_SOURCES = ("observed", "probe")
RESUME = ("exact", "anew")


@dataclass(frozen=True)
class BalanceOptions:
    """How a trainer is balanced; what is decided is the policy's business.

    Args:
        signals: ``"observed"``: losses and gradient norms come from the training batches, and a
            probe fills up cells that they showed too little of; ``"probe"``: everything is probed.
        lag: Optimiser steps between an update and the first draw made from it; ``None``:
            ``min(8, interval)``.
        unit: What shares count: ``"examples"`` or ``"tokens"``.
        probe_examples: Examples of each subset that one probe measures, spread over its groups;
            observed, a cell that showed fewer than its part of them is measured on that many.
        top_up: The most work that such a probe may do, as a share of an interval's training.
        measure_every: One training step in so many shows gradient norms; ``None``: each where
            adapters are trained, else one in ten.
        norm_scope: Trained parameters that a gradient norm covers, ``"all"``, ``"blocks"`` or
            ``"adapters"``; ``None``: ``"blocks"`` with observed signals, since a fused loss goes
            around the output head, ``"all"`` with ``signals="probe"``.
        heldout_examples: Validation examples of each subset that a probe of held-out signals runs
            forward, the same ones each time.
        dropout_passes: Passes over those, with dropout on, that uncertainties are taken from;
            ``None``: one pass without dropout.
        seed: Seed of the draws and probes; ``None``: the trainer's ``data_seed`` or ``seed``.
        resume: What to do with a checkpoint whose balancing state is of another run (other data,
            policy or settings): ``"exact"``: refuse it, ``"anew"``: keep its weights and optimiser,
            and begin balancing anew at its step.
    """

    signals: str = "observed"
    lag: int | None = None
    unit: str = "examples"
    probe_examples: int = 8
    top_up: float = 0.01
    measure_every: int | None = None
    norm_scope: Scope | None = None
    heldout_examples: int = 32
    dropout_passes: int | None = None
    seed: int | None = None
    resume: str = "exact"

    def __post_init__(self) -> None:
        words = {
            "signals": SIGNAL_SOURCES,
            "resume": RESUME,
            "norm_scope": (None, *get_args(Scope)),
        }
        for name, allowed in words.items():
            value = getattr(self, name)
            if value not in allowed:
                said = ", ".join(str(word) for word in allowed if word is not None)
                raise ConfigError(f"balance.{name} is {value!r}; allowed: {said}")
        for name in ("probe_examples", "measure_every", "heldout_examples", "dropout_passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"balance.{name} is {value}; at least 1")
        if self.measure_every is not None and not self.observed:
            raise ConfigError(
                "balance.measure_every is of no use with balance.signals 'probe', which reads no "
                "norms off training; drop one of them"
            )
        if not 0.0 <= self.top_up < math.inf:
            raise ConfigError(f"balance.top_up is {self.top_up}; at least 0")

    @property
    def observed(self) -> bool:
        """Whether what training shows is used."""
        return self.signals == "observed"

    def measured_by(self, probed: frozenset[str]) -> dict[str, Any]:
        """What decides the examples that rewards are measured on: no resume may change it.

        Args:
            probed: Signals that a probe measures.
        """
        found: dict[str, Any] = {
            "signals": self.signals,
            "probe_examples": self.probe_examples,
            "norm_scope": self.scope,
        }
        if self.observed:
            found |= {"measure_every": self.measure_every, "top_up": self.top_up}
        if probed & HELDOUT_SIGNALS:
            found["heldout_examples"] = self.heldout_examples
        if probed & UNCERTAINTIES:
            found["dropout_passes"] = self.dropout_passes
        return found

    @property
    def scope(self) -> Scope:
        """What a gradient norm covers."""
        return self.norm_scope or ("blocks" if self.observed else "all")
