"""mSFT as an online rule: stop drawing a subset when its held-out loss has risen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, shares
from hbo.policies.actor import BoolArray
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, to_plain
from hbo.policies.treatment import Note
from hbo.signals import HELDOUT_LOSS, Signals


@dataclass(frozen=True)
class MSFT:
    """Fixed shares, out of which subsets drop that begin to over-fit.

    With l_i the held-out loss of subset i (nats per response token), b_i the lowest so far, rho
    ``min_rise`` and q_i the prior::

        i stops   when l_i > b_i + rho |b_i| at ``patience`` measurements running
        p_i     = q_i / sum of q over those not stopped; 0 for the stopped

    The last subset never stops.

    Source: arXiv 2603.21606. There the mixture is trained for a budget (a quarter to a few epochs),
    the subset whose held-out *accuracy* was the first to peak is excluded, the model is **rolled
    back** to the checkpoint of that peak, and training goes on without it; an excluded subset never
    returns, and neither does one here.

    Changed: a policy decides what is drawn next and cannot take back what was learnt, so there is
    no roll-back: what over-fitted until the stop remains, and ``patience`` updates of it are the
    price of not stopping at noise. Loss is watched, since it needs no graded answers; it starts to
    rise earlier than accuracy falls. More than one subset can stop at an update. The rules for
    noise, ``min_rise`` and ``patience``, are ours.

    Example:
        >>> policy = MSFT(patience=1)
        >>> policy.probabilities(policy.init(np.array([[30, 30], [10, 10]]))).round(3).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    prior_temperature: float = 1.0
    """T of the prior, which is kept among the subsets that are drawn."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    min_rise: float = 0.01
    """rho: rise above the lowest held-out loss that counts, as a fraction of it."""
    patience: int = 2
    """Measurements running that must show it."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.number("min_rise", self.min_rise, 0.0)
        fields.whole_number("patience", self.patience, 1)

    update_at_start: ClassVar[bool] = False

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
        """Shares at the prior; nothing measured, nothing stopped."""
        state = shares.start(sizes, weights, self.prior_temperature)
        count = len(sizes)
        return {**state, "best": [None] * count, "risen": [0] * count, "stopped": [False] * count}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) the prior over the subsets that are not stopped, examples of a subset alike."""
        return shares.law(state)

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """Count the rises, and stop what has risen often enough."""
        now, prior = signals.whole_values(HELDOUT_LOSS), from_plain(state["prior"])
        losses = np.where(np.isfinite(now), now, np.nan)
        best = np.fmin(from_plain(state["best"]), losses)
        rise = losses - best
        # Unknown is neither a rise nor the end of one.
        counts = np.where(np.isnan(rise), state["risen"], 0)
        counts = np.where(rise > self.min_rise * np.abs(best), np.array(state["risen"]) + 1, counts)
        was = np.array(state["stopped"], dtype=np.bool_)
        stopped, notes = _stop(was, (counts >= self.patience) & (prior > 0), rise, prior > 0)
        left = np.where(stopped, 0.0, prior)
        return {
            **state,
            "best": to_plain(best),
            "risen": counts.tolist(),
            "stopped": stopped.tolist(),
            "shares": (left / left.sum()).tolist() if stopped.any() else state["prior"],
            "last": shares.explained(now, notes=notes, what="held-out loss"),
        }

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global`` rewards: the held-out loss of each subset; a note where one stops."""
        return dict(state["last"])


def _stop(
    was: BoolArray, risen: BoolArray, rise: FloatArray, real: BoolArray
) -> tuple[BoolArray, list[Note]]:
    """(K,) what is stopped now, the one that rose least spared where none would be left."""
    stopped = was | risen
    notes: list[Note] = []
    if not (real & ~stopped).any():
        candidates = np.where(real & ~was, np.where(np.isnan(rise), -np.inf, rise), np.inf)
        stopped = stopped & (np.arange(len(was)) != candidates.argmin())
        notes.append(["last-subset", "the held-out losses of all subsets rose; one is kept on"])
    new = int((stopped & ~was).sum())
    if new:
        left = int((real & ~stopped).sum())
        text = f"{new} of {len(was)} subsets stopped: held-out loss rose; still drawn: {left}"
        notes.append(["subset-stopped", text])
    return stopped, notes
