"""Policies that never change: proportional, temperature, uniform and given shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, joint, two_level_prior
from hbo.signals import Signals


@dataclass(frozen=True)
class Prior:
    """Fixed probabilities from sizes: p(i) ~ n_i^(1/T), and inside a subset every example alike.

    ``prop`` is T = 1, ``temp`` T = 10 unless ``temperature`` says otherwise, ``uni`` T = infinity.
    Weights given with the datasets take the place of the sizes n_i.

    Eq. 3 of arXiv 2505.12300; the baselines "Prop.", "Temp.", "Uni." of its Table 1.

    Example:
        >>> policy = Prior(temperature=float("inf"))
        >>> policy.probabilities(policy.init(np.array([[8, 8], [2, 2]]))).tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """

    temperature: float = 10.0
    """T: 1 is proportional, infinity is uniform."""
    update_interval: int = 200
    """Optimiser steps between updates; a static policy only logs them."""
    prior_temperature: float | None = None
    """The key that all policies share; takes its default only, see ``temperature``."""

    def __post_init__(self) -> None:
        fields.number("temperature", self.temperature, 0.0, above=True, finite=False)
        fields.whole_number("update_interval", self.update_interval, 1)
        fields.shared_prior_temperature(self.prior_temperature)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """No signals."""
        return frozenset()

    def needs_at(self, step: int) -> frozenset[str]:
        """No signals."""
        return frozenset()

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The probabilities of the whole run."""
        return {"probabilities": joint(*two_level_prior(sizes, weights, self.temperature)).tolist()}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) the same at every step."""
        return from_plain(state["probabilities"])

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The same state."""
        return state

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """Nothing to explain."""
        return {}


@dataclass(frozen=True)
class Static:
    """Fixed shares given by the user; inside a subset every example alike.

    The shares come from ``weights`` (in the order of the datasets) or, without it, from the weights
    given with the datasets.

    Example:
        >>> policy = Static(weights=(3, 1))
        >>> policy.probabilities(policy.init(np.array([[8], [2]]))).round(6).tolist()
        [[0.75], [0.25]]
    """

    weights: tuple[float, ...] | None = None
    """Share of each subset, normalised; ``None``: ``datasets.NAME.weight``."""
    update_interval: int = 200
    """Optimiser steps between updates; a static policy only logs them."""
    prior_temperature: float | None = None
    """The key that all policies share; takes its default only."""

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", fields.share_list("weights", self.weights))
        fields.whole_number("update_interval", self.update_interval, 1)
        fields.shared_prior_temperature(self.prior_temperature)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """No signals."""
        return frozenset()

    def needs_at(self, step: int) -> frozenset[str]:
        """No signals."""
        return frozenset()

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``."""
        return self.update_interval

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The probabilities of the whole run.

        Raises:
            ConfigError: No weights anywhere, or not one for each subset.
        """
        own = None if self.weights is None else np.asarray(self.weights)
        given = weights if own is None else own
        if given is None:
            raise ConfigError(
                "policy static has no weights; give datasets.NAME.weight to every dataset, or "
                "balance.weights, a list with one number for each"
            )
        if len(given) != len(sizes):
            raise ConfigError(f"weights has {len(given)} entries for {len(sizes)} subsets")
        return {"probabilities": joint(*two_level_prior(sizes, given, 1.0)).tolist()}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) the same at every step."""
        return from_plain(state["probabilities"])

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The same state."""
        return state

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """Nothing to explain."""
        return {}
