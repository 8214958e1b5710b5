"""Dynamic batch loading of Sheared-LLaMA: more of what is furthest above its target loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, to_plain
from hbo.signals import HELDOUT_LOSS, Signals


@dataclass(frozen=True)
class DynamicLoading:
    """Let all subsets reach their target losses at about the same time.

    With l_i the held-out loss of subset i (nats per response token), r_i its target, w_i its share
    since the last update, c ``smoothing`` and K subsets::

        D_i  = max(l_i - r_i, 0)
        w_i <- w_i exp(D_i), normalised
        w_i <- (1 - c) w_i + c / K

    Source: arXiv 2310.06694, Algorithm 1; c = 1e-4 is in its public code only, which in turn does
    not cut at 0. It updates every 50 to 400 steps.

    Changed: there r_i is the loss that a scaling law predicts for a model of that size trained from
    scratch. For fine-tuning there is no such law: give ``target_losses``, or leave it out, and each
    target is ``target_fraction`` of the subset's first held-out loss. That is measured before the
    first step (``update_at_start``; the shares do not move there), or else at the first update.
    A target that cannot be reached keeps its subset growing: look at the held-out losses. w starts
    at the prior, as there.

    Example:
        >>> policy = DynamicLoading(target_losses=[1.1, 0.7])
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior that the shares start from."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    target_losses: tuple[float, ...] | None = None
    """r: one number for each subset, in the order of the datasets."""
    target_fraction: float = 0.5
    """Target as a fraction of the first held-out loss, where ``target_losses`` are not given."""
    smoothing: float = 1e-4
    """c: share that is spread evenly over the subsets at each update."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.number("target_fraction", self.target_fraction, 0.0)
        fields.number("smoothing", self.smoothing, 0.0, 1.0)
        if self.target_losses is not None:
            object.__setattr__(self, "target_losses", _targets(self.target_losses))

    @property
    def update_at_start(self) -> bool:
        """Whether held-out losses are measured before the first step, to set the targets."""
        return self.target_losses is None

    @property
    def needs(self) -> frozenset[str]:
        """The held-out loss."""
        return frozenset({HELDOUT_LOSS})

    def needs_at(self, step: int) -> frozenset[str]:
        """The same at every update."""
        return self.needs

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """Shares at the prior; targets where they are given.

        Raises:
            ConfigError: ``target_losses`` has not one number for each subset.
        """
        state = shares.start(sizes, weights, self.prior_temperature)
        if self.target_losses is None:
            return {**state, "targets": [None] * len(sizes)}
        if len(self.target_losses) != len(sizes):
            raise ConfigError(
                f"target_losses has {len(self.target_losses)} entries for {len(sizes)} subsets"
            )
        return {**state, "targets": list(self.target_losses)}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) shares of the last update, examples of a subset alike."""
        return shares.law(state)

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """One step of the rule; before the first optimiser step, only the targets are set."""
        now = signals.whole_values(HELDOUT_LOSS)
        known = shares.latest(now, state.get("losses"))
        # What the state holds goes first: a target that was set stays.
        targets = shares.latest(from_plain(state["targets"]), to_plain(self.target_fraction * now))
        state = {**state, "losses": to_plain(known), "targets": to_plain(targets)}
        state["last"] = shares.explained(now, what="held-out loss")
        above = known - targets
        if signals.step == 0 or not np.isfinite(above).any():
            return state
        scores = np.maximum(shares.or_mean(above), 0.0)
        moved = shares.tilted(from_plain(state["shares"]), scores, self.smoothing)
        return {**state, "shares": moved.tolist()}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global`` rewards: the held-out loss of each subset."""
        return dict(state["last"])


def _targets(value: Any) -> tuple[float, ...]:
    plain = isinstance(value, Sequence) and not isinstance(value, str)
    if not plain or not value:
        raise fields.refused("target_losses", value, "a list of numbers, one for each subset", True)
    for entry in value:
        fields.number("an entry of target_losses", entry, 0.0)
    return tuple(float(entry) for entry in value)
