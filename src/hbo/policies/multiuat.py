"""MultiUAT: more of the subsets whose held-out data the model is unsure of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, paid, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import two_level_prior
from hbo.signals import (
    HELDOUT_END_ENTROPY,
    HELDOUT_ENTROPY,
    HELDOUT_EXPECTED,
    HELDOUT_PREDICTED,
    HELDOUT_VARIANCE,
    HELDOUT_VARIATION,
    Signals,
)

MEASURES = MappingProxyType(
    {
        "entropy": HELDOUT_ENTROPY,
        "end-entropy": HELDOUT_END_ENTROPY,
        "predicted": HELDOUT_PREDICTED,
        "expected": HELDOUT_EXPECTED,
        "variance": HELDOUT_VARIANCE,
        "variation": HELDOUT_VARIATION,
    }
)
"""Signal of each measure; in the source ENTSENT, ENTEOS, PRETP, EXPTP, VARTP, COMEV."""

FIT = paid.Fit(learning_rate=1e-4, tolerance=1e-8)
"""The source's fit to the prior."""


@dataclass(frozen=True)
class MultiUAT:
    """An actor over subsets, paid the model's uncertainty on held-out data.

    With u one of ``MEASURES``, D_i the held-out examples of subset i and P passes with dropout on,
    each with other units dropped, theta_k the model of pass k::

        R_i = (1/P) sum_k u(D_i; theta_k)

    and p moves towards R / sum R (``paid.py``).

    Source: arXiv 2109.02284 and its code: T = 1, P = 30, 200 Adam steps of 1e-4 per update, an
    update every 2000 (languages) or 1000 steps (domains), a fit to the prior until the mean squared
    error is 1e-8. Its analysis uses ENTEOS. HBO's paper compares with it, T = 1, and does not say
    which measure, P or held-out data; it is not in its code.

    Changed: the default is the mean entropy over all response tokens, which says more than one
    token does; P is ``balance.dropout_passes``, by default one pass without dropout, as Llama, Qwen
    and the like have none ("variance" and "variation" need two passes with it). Signs
    are such that more uncertainty is paid more, whatever the measure: the printed ones do not agree
    with each other (``measure/uncertainty.py``). ``update_interval`` is the key that all policies
    share. The actor starts exactly at the prior: see ``prior_fit``.

    Example:
        >>> policy = MultiUAT(measure="end-entropy")
        >>> sorted(policy.needs)
        ['heldout_end_entropy']
    """

    prior_temperature: float = 1.0
    """T of the prior that the actor starts from: 1 proportional, infinity uniform."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    measure: str = "entropy"
    """Name in ``MEASURES``."""
    actor_learning_rate: float = 1e-4
    """Step size of Adam on the logits."""
    inner_steps: int = 200
    """Adam steps of an update, with the same rewards."""
    prior_fit: bool = False
    """Start from the source's fit to the prior. Off: it takes about a second, ends beside the prior
    of small subsets, and what it leaves in Adam makes the first updates larger."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.choice("measure", self.measure, MEASURES)
        paid.check_actor(self.actor_learning_rate, self.inner_steps, self.prior_fit)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The signal of the measure."""
        return frozenset({MEASURES[self.measure]})

    def needs_at(self, step: int) -> frozenset[str]:
        """The same at every update."""
        return self.needs

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The actor at the prior."""
        subsets, groups = two_level_prior(sizes, weights, self.prior_temperature)
        return {**self._actor.start(subsets), "groups": groups.tolist()}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) shares of the last update, examples of a subset alike."""
        return shares.law(state)

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """Pay the uncertainty to the actor."""
        return self._actor.pay(state, paid.whole(signals.whole_values(MEASURES[self.measure])))

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global``: ``rewards`` as measured; ``paid``, with what stood in for the unknown."""
        return dict(state["last"])

    @property
    def _actor(self) -> paid.PaidActor:
        fit = FIT if self.prior_fit else None
        return paid.PaidActor(self.actor_learning_rate, self.inner_steps, fit)
