"""What a run says about itself, as typed arrays: the only thing that charts and tables look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LocalUpdate:
    """What one Local Actor did in one update; every array is (G,), NaN where unknown."""

    rewards: FloatArray
    errors: FloatArray
    before: FloatArray
    after: FloatArray


@dataclass(frozen=True)
class Update:
    """One change of the policy; arrays over subsets are (K,), NaN where unknown.

    Args:
        step: Optimiser step at which it was decided.
        effective_draw: First draw made from the new probabilities.
        effective_step: The same place on the axis of optimiser steps.
        rewards: Global rewards.
        errors: Their standard errors.
        before: Shares of draws before.
        after: Shares of draws after.
        local: One per subset; None where that actor did not move.
        seconds: What it cost.
    """

    step: int
    effective_draw: int | None
    effective_step: float
    rewards: FloatArray
    errors: FloatArray
    before: FloatArray
    after: FloatArray
    local: tuple[LocalUpdate | None, ...]
    seconds: float


@dataclass(frozen=True)
class Steps:
    """The training steps that were logged: ``step`` and ``loss`` are (S,), the rest (S, K)."""

    step: FloatArray
    loss: FloatArray
    draws: FloatArray
    tokens: FloatArray
    subset_loss: FloatArray


@dataclass(frozen=True)
class Evaluation:
    """One look at held-out examples; arrays are (K,), NaN where there is no number.

    ``seconds`` is the training time so far, without evaluations. ``ours``: token by token, as at
    the start and the end of a run; a trainer's own look is a mean over examples of batch means.
    """

    step: int
    loss: FloatArray
    accuracy: FloatArray
    macro_loss: float
    macro_accuracy: float
    examples: FloatArray
    seconds: float = float("nan")
    ours: bool = False


@dataclass(frozen=True)
class Warned:
    """A warning of the run."""

    step: int | None
    code: str
    text: str


@dataclass(frozen=True)
class Heldout:
    """Loss (nats per response token) or accuracy on held-out examples, before and after; (K,)."""

    before: FloatArray
    after: FloatArray

    @property
    def macro(self) -> tuple[float, float]:
        """Plain averages over the same subsets, those that have both numbers.

        Where one side was never measured the other stands alone, over what it has.
        """
        before, after = np.isfinite(self.before), np.isfinite(self.after)
        if before.any() and after.any():
            before = after = before & after
        return _average(self.before[before]), _average(self.after[after])

    @property
    def known(self) -> bool:
        """Whether any subset has a number."""
        return bool(np.isfinite(self.after).any() or np.isfinite(self.before).any())


@dataclass(frozen=True)
class RunRecord:
    """One run; arrays over subsets are (K,) in the order of ``subsets``, NaN where unknown.

    Args:
        folder: The run directory.
        finished: Whether the run wrote its summary.
        policy: Name of the policy.
        seed: Seed of the run.
        model: What was trained.
        subsets: Names, in the order of the configuration.
        steps: The logged training steps.
        updates: The policy's updates, in order.
        evaluations: Evaluations on test examples, in order.
        validation: Evaluations on validation examples, in order.
        warnings: The run's warnings.
        last_step: Last optimiser step known.
        draws_per_step: Examples an optimiser step draws (NaN where unknown).
        examples: Rows of each subset.
        draws: Examples drawn of each subset.
        tokens: Response tokens trained on, of each subset.
        all_tokens: The same of all subsets together.
        passes: Times each subset was gone through.
        never_seen: Rows never drawn.
        train_loss: Train loss of each subset, as the summary says or the last one logged.
        loss: Held-out loss before and after.
        accuracy: Held-out accuracy before and after.
        macro_loss: Held-out loss averaged over subsets, before and after.
        probabilities: Final joint probabilities, one array of groups a subset; None where unknown.
        wall_seconds: How long the run took.
        training_seconds: How long of it was training, balancing included.
        balance_seconds: How long of it was ours.
        config: The resolved configuration.
        config_text: The same as text.
        versions: Name -> version.
        provenance: Fingerprints and checksums, name -> value.
    """

    folder: Path
    finished: bool
    policy: str
    seed: int | None
    model: str
    subsets: tuple[str, ...]
    steps: Steps
    updates: tuple[Update, ...]
    evaluations: tuple[Evaluation, ...]
    validation: tuple[Evaluation, ...]
    warnings: tuple[Warned, ...]
    last_step: int
    draws_per_step: float
    examples: FloatArray
    draws: FloatArray
    tokens: FloatArray
    all_tokens: float
    passes: FloatArray
    never_seen: FloatArray
    train_loss: FloatArray
    loss: Heldout
    accuracy: Heldout
    macro_loss: tuple[float, float]
    probabilities: tuple[FloatArray, ...] | None
    wall_seconds: float
    training_seconds: float
    balance_seconds: float
    config: Mapping[str, Any]
    config_text: str
    versions: Mapping[str, str]
    provenance: Mapping[str, str]

    @property
    def prior(self) -> FloatArray:
        """Shares of draws (K,) before any update."""
        if self.updates:
            return self.updates[0].before
        return self.final

    @property
    def final(self) -> FloatArray:
        """Shares of draws (K,) at the end; what was drawn where nothing else is known."""
        if self.probabilities is not None:
            return np.array([float(groups.sum()) for groups in self.probabilities])
        if self.updates:
            return self.updates[-1].after
        return self.realised

    @property
    def realised(self) -> FloatArray:
        """Shares (K,) of the draws that were made."""
        return _divided(self.draws, float(np.nansum(self.draws)))

    @property
    def token_share(self) -> FloatArray:
        """Shares (K,) of the response tokens that were trained on."""
        return _divided(self.tokens, float(np.nansum(self.tokens)))

    @property
    def law(self) -> tuple[FloatArray, FloatArray]:
        """The shares in force over time.

        Returns:
            Steps (U + 1,) from which each holds, the first being 0, and the shares (U + 1, K).
        """
        steps = [0.0, *(update.effective_step for update in self.updates)]
        shares = [self.prior, *(update.after for update in self.updates)]
        return np.array(steps), np.array(shares)

    @property
    def target(self) -> FloatArray:
        """The draw-weighted average (K,) of the shares in force: what was to be expected."""
        steps, shares = self.law
        ends = np.minimum(np.append(steps[1:], self.last_step), self.last_step)
        lengths = np.maximum(ends - np.minimum(steps, self.last_step), 0.0)
        if lengths.sum() <= 0:
            return self.prior
        return _divided((lengths[:, None] * shares).sum(axis=0), float(lengths.sum()))

    @property
    def heldout_examples(self) -> FloatArray:
        """Held-out examples (K,) behind each number, as the last evaluation says."""
        if not self.evaluations:
            return np.full(len(self.subsets), np.nan)
        return self.evaluations[-1].examples

    @property
    def unused_updates(self) -> int:
        """Updates decided so late that no draw of this run was made from them."""
        return sum(update.effective_step >= self.last_step for update in self.updates)

    @property
    def cost(self) -> float:
        """Share of the wall time that went into balancing (NaN where unknown)."""
        return self.balance_seconds / self.wall_seconds if self.wall_seconds > 0 else float("nan")

    @property
    def num_groups(self) -> int:
        """The largest number of difficulty groups of a subset."""
        sizes = [len(groups) for groups in self.probabilities or ()]
        for update in self.updates[:1]:
            sizes += [len(local.after) for local in update.local if local is not None]
        return max(sizes, default=1)

    @property
    def moved(self) -> bool:
        """Whether the shares changed at all."""
        return any(
            bool(np.nan_to_num(np.abs(update.after - self.prior)).max(initial=0.0) > 1e-9)
            for update in self.updates
        )


def _average(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _divided(values: FloatArray, total: float) -> FloatArray:
    return values / total if total > 0 else np.full(len(values), np.nan)
