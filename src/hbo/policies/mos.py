"""MoS: more of the subsets that are like the others, or that the model has learnt least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields, paid, shares
from hbo.policies.base import PolicyState
from hbo.policies.cells import two_level_prior
from hbo.rewards import GLOBAL_REWARDS
from hbo.rewards.reward import Measured, Reward
from hbo.signals import HIDDEN_COSINE, Signals

FIT = paid.Fit(learning_rate=1e-4, tolerance=1e-10)
"""The source's fit to the prior."""


def hidden_cosine(signals: Signals) -> Measured:
    """R_i = (1/N) sum_n cos(z_i, z_n), z_i the mean last hidden state of subset i: COSSIM."""
    return paid.whole(signals.whole_values(HIDDEN_COSINE))


REWARDS: Mapping[str, Reward] = MappingProxyType(
    {
        "hidden-cosine": Reward("hidden-cosine", frozenset({HIDDEN_COSINE}), hidden_cosine),
        "relative-perplexity": GLOBAL_REWARDS["relative-perplexity"],
    }
)
"""The rewards of the source: COSSIM and DIFF."""


@dataclass(frozen=True)
class MoS:
    """An actor over subsets, paid their likeness to all subsets or what they still have to learn.

    With N subsets, z_i the mean over examples of subset i of their mean last hidden state, x an
    example of subset i, theta_0 the untouched model, and beta ``ema_alpha``, one of::

        R_i = (1/N) sum_n cos(z_i, z_n)            hidden-cosine (COSSIM), n = i included
        R_i = mean_x PPL(x; theta) / PPL(x; theta_0)      relative-perplexity (DIFF, Eq. 9)

        R_i <- beta R_i + (1 - beta) R_i of the update before, which is ``ema_start`` at first

    and p moves towards R / sum R (``paid.py``).

    Source: arXiv 2406.08811; what it does not say, from the MoS trainer in the released code of
    HBO: T = infinity, an update every 100 steps, beta = 0.9 (recursive, from 1), 200 Adam steps of
    1e-4 per update, a fit to the prior until the mean squared error is 1e-10; 64 examples of each
    subset for COSSIM, 16 for DIFF, whose perplexity there is that of prompt and response together.
    HBO's paper compares with it at T = 1 and does not say which reward, interval or beta.

    Changed: T = 1, as in that comparison; perplexities of responses, as in Eq. 9;
    ``update_interval`` is the key that all policies share; the number of examples is the probe's.
    The actor starts exactly at the prior: see ``prior_fit``.

    Example:
        >>> policy = MoS(reward="relative-perplexity")
        >>> sorted(policy.needs)
        ['perplexity_ratio']
    """

    prior_temperature: float = 1.0
    """T of the prior that the actor starts from: 1 proportional, infinity uniform (the source)."""
    update_interval: int = 200
    """Optimiser steps between updates."""
    reward: str = "hidden-cosine"
    """Name in ``REWARDS``."""
    ema_alpha: float | None = 0.9
    """beta: weight of the new reward in the running one; ``None``: no smoothing."""
    ema_start: float | None = 1.0
    """Running reward before the first one; ``None``: the first one itself."""
    actor_learning_rate: float = 1e-4
    """Step size of Adam on the logits."""
    inner_steps: int = 200
    """Adam steps of an update, with the same rewards."""
    prior_fit: bool = False
    """Start from the source's fit to the prior. Off: it takes about a second, and what it leaves in
    Adam makes the first updates larger."""

    def __post_init__(self) -> None:
        shares.check_start(self.prior_temperature, self.update_interval)
        fields.choice("reward", self.reward, REWARDS)
        paid.check_smoothing(self.ema_alpha, self.ema_start)
        paid.check_actor(self.actor_learning_rate, self.inner_steps, self.prior_fit)

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The signal of the reward."""
        return REWARDS[self.reward].needs

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
        """Pay the running rewards to the actor."""
        return self._actor.pay(state, REWARDS[self.reward].compute(signals))

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """``global``: ``rewards`` and ``errors`` as measured, and ``paid``, the running ones."""
        return dict(state["last"])

    @property
    def _actor(self) -> paid.PaidActor:
        return paid.PaidActor(
            self.actor_learning_rate,
            self.inner_steps,
            FIT if self.prior_fit else None,
            self.ema_alpha,
            self.ema_start,
        )
