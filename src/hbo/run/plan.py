"""``hbo plan``: every check, no training, and what each subset and group would get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.config import LoadedConfig
from hbo.data.assemble import assemble
from hbo.difficulty.groups import assign_groups
from hbo.difficulty.metrics import NEEDS_ALONE
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.priors import given
from hbo.run.budget import (
    Budget,
    check_passes,
    expected_draws,
    make_budget,
    policy_of,
    signal_cost,
    start_probabilities,
)
from hbo.run.prepare import Part, Prepared, prepare
from hbo.run.rehearsal import rehearse
from hbo.run.scores import cached_scores, is_measured, limits_of, packed, wants_first_losses
from hbo.run.world import world_size

SCHEMA = 1
MANY_PASSES = 5.0
FEW_IN_A_CELL = 4
FEW_TEST_EXAMPLES = 5
MUCH_TRUNCATED = 0.05


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run would do.

    Args:
        prepared: The data, ready.
        tokens: (K, G) tokens of each cell, prompts included.
        mixture: Cells; where nothing is scored yet the groups are equal parts in file order.
        budget: Steps and draws.
        lag: Optimiser steps between an update and its first draw.
        probabilities: (K, G) draw probabilities at the start.
        draws: (K, G) expected draws, should they stay.
        scored: Whether the groups come from scores.
        cost: ``signal_cost``, and the passes of scoring.
        warnings: {``code``, ``subset``, ``text``} of what a user should know before training.
    """

    prepared: Prepared
    mixture: Mixture
    tokens: FloatArray
    budget: Budget
    lag: int
    probabilities: FloatArray
    draws: FloatArray
    scored: bool
    cost: dict[str, Any]
    warnings: tuple[dict[str, Any], ...]

    @property
    def warning_lines(self) -> list[str]:
        """Each warning as one line that names its subset."""
        return [
            f"{warning['subset']}: {warning['text']}" if warning["subset"] else warning["text"]
            for warning in self.warnings
        ]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-safe values, by subset and group."""
        config = self.prepared.loaded.config
        parts = self.prepared.parts
        return {
            "schema": SCHEMA,
            "model": config.model,
            "policy": config.balance.policy,
            "steps": self.budget.steps,
            "draws_per_step": self.budget.draws_per_step,
            "draws": self.budget.draws,
            "lag": self.lag,
            "unit": config.balance.unit,
            "scored": self.scored,
            "fingerprint": self.mixture.fingerprint,
            "subsets": {part.name: self._subset(k, part) for k, part in enumerate(parts)},
            "cost": self.cost,
            "notices": list(self.prepared.settings.notices),
            "warnings": list(self.warnings),
        }

    def _subset(self, k: int, part: Part) -> dict[str, Any]:
        sizes, draws = self.mixture.sizes[k], self.draws[k]
        rows = int(sizes.sum())
        groups = [
            {
                "rows": int(sizes[g]),
                "tokens": round(float(self.tokens[k, g])),
                "probability": float(self.probabilities[k, g]),
                "expected_draws": float(draws[g]),
                "expected_passes": float(draws[g] / sizes[g]) if sizes[g] else 0.0,
            }
            for g in range(self.mixture.num_groups)
        ]
        return {
            "rows": rows,
            "tokens": sum(example.num_tokens for example in part.encoded.encoded),
            "response_tokens": sum(example.response_tokens for example in part.encoded.encoded),
            "source_rows": part.rows,
            "validation": len(part.validation),
            "test": len(part.test),
            "skipped": len(part.skipped),
            "dropped": len(part.dropped),
            "truncated": part.truncated,
            "overlap": part.overlap,
            "probability": float(self.probabilities[k].sum()),
            "expected_draws": float(draws.sum()),
            "expected_passes": float(draws.sum() / rows),
            "groups": groups,
        }


def make_plan(loaded: LoadedConfig, progress: Callable[[str], None] | None = None) -> Plan:
    """Check a configuration and its data, and work out what a run would do; loads no weights.

    Raises:
        ConfigError: A setting, a path or a combination that cannot work.
        DataError: A record, a file or a subset that cannot be used.
    """
    return plan_of(prepare(loaded, progress))


def plan_of(prepared: Prepared) -> Plan:
    """The plan of a mixture that is read already."""
    loaded = prepared.loaded
    config = loaded.config
    scores = cached_scores(prepared)
    mixture, tokens = _mixture(prepared, None if scores is None else dict(scores.difficulty))
    budget = make_budget(prepared.settings.training, mixture.num_examples, world_size())
    limits = limits_of(prepared)
    check_passes(loaded, mixture, budget, limits)
    rehearse(prepared, budget.steps)
    weights = None if config.weights is None else given(config.weights)
    probabilities, lag = start_probabilities(loaded, mixture, budget, limits, weights)
    _check_workers(prepared, lag)
    caps = limits.max_draws(mixture.subset_sizes)
    draws = expected_draws(probabilities, budget.draws, caps)
    policy = policy_of(loaded)
    adapters = bool(prepared.settings.tuning.use_peft)
    if config.balance.norm_scope == "adapters" and not adapters:
        text = "is 'adapters', and none are trained; set tuning.use_peft, or use all or blocks"
        raise loaded.error(("balance", "norm_scope"), text)
    examples = sum(len(part.encoded.encoded) for part in prepared.parts)
    heldout = [[example.encoded for example in part.validation] for part in prepared.parts]
    cost = signal_cost(
        loaded, mixture, budget, policy, probabilities, adapters, examples, heldout
    ) | {"scoring_passes": _scoring_passes(prepared, scores is not None)}
    warnings = _warnings(prepared, mixture, budget, draws, caps)
    if policy.needs and budget.steps < policy.interval:
        text = (
            f"the policy never updates in training: it does every {policy.interval} steps, the run"
            f" has {budget.steps}; lower balance.update_interval"
        )
        warnings.append({"code": "no-update", "subset": None, "text": text})
    return Plan(
        prepared,
        mixture,
        tokens,
        budget,
        lag,
        probabilities,
        draws,
        scores is not None,
        cost,
        tuple(warnings),
    )


def _mixture(
    prepared: Prepared, scores: dict[str, FloatArray] | None
) -> tuple[Mixture, FloatArray]:
    """The mixture's table, in equal parts where nothing is scored, and (K, G) tokens."""
    found = scores or {
        part.name: np.arange(len(part.encoded.encoded), dtype=np.float64) for part in prepared.parts
    }
    difficulty = prepared.loaded.config.difficulty
    groups, dropped = difficulty.groups, difficulty.drop_easiest
    tokens = [
        np.bincount(
            assign_groups(found[part.name], groups, dropped) + 1,  # 0: dropped
            weights=[example.num_tokens for example in part.encoded.encoded],
            minlength=groups + 1,
        )[1:]
        for part in prepared.parts
    ]
    built = assemble(prepared.encoded, found, groups=groups, drop_easiest=dropped)
    return packed(prepared, built).mixture, np.array(tokens)


def _check_workers(prepared: Prepared, lag: int) -> None:
    import copy

    from hbo.errors import ConfigError
    from hbo.integrations.loader import fit_look_ahead

    try:
        fit_look_ahead(copy.copy(prepared.settings.training), lag)
    except ConfigError as error:
        raise prepared.loaded.error(("training", "dataloader_num_workers"), error.message) from None


def _scoring_passes(prepared: Prepared, scored: bool) -> int:
    """Forward passes that scoring still has to make, with and without the prompt."""
    config = prepared.loaded.config
    metric = config.difficulty.metric
    num_examples = sum(len(part.encoded.encoded) for part in prepared.parts)
    if not is_measured(metric):
        return num_examples if wants_first_losses(prepared) else 0
    if scored:
        return 0
    passes = 1 + (metric in NEEDS_ALONE) + (prepared.scoring_model != prepared.model)
    return passes * num_examples


def _warnings(
    prepared: Prepared, mixture: Mixture, budget: Budget, draws: FloatArray, caps: IntArray
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def warn(code: str, subset: str, text: str) -> None:
        found.append({"code": code, "subset": subset, "text": text})

    drawn = "packed rows" if prepared.settings.training.packing else "examples"
    for k, part in enumerate(prepared.parts):
        rows, passes = mixture.subset_sizes[k], draws[k].sum() / mixture.subset_sizes[k]
        filled = mixture.sizes[k][mixture.sizes[k] > 0]
        if filled.min() < FEW_IN_A_CELL:
            text = (
                f"its smallest difficulty group has {filled.min()} {drawn}: rewards will be noisy"
            )
            warn("tiny-group", part.name, text)
        if passes > MANY_PASSES:
            text = f"each of its {rows} {drawn} is repeated {passes:.1f} times; set max_passes"
            warn("many-passes", part.name, text)
        if caps[k] >= 0 and draws[k].sum() >= caps[k]:
            text = f"it reaches max_passes after {caps[k]} draws; then its share goes to the others"
            warn("reaches-cap", part.name, text)
        if part.skipped:
            place, reason = part.skipped[0]
            text = f"{len(part.skipped)} bad records are skipped; first: {place}: {reason}"
            warn("bad-records", part.name, text)
        if part.dropped:
            text = (
                f"{len(part.dropped)} examples are dropped: training.max_length cuts them"
                f" before their response; first: {part.dropped[0]}"
            )
            warn("dropped", part.name, text)
        examples = len(part.encoded.encoded)
        if part.truncated > MUCH_TRUNCATED * examples:
            text = f"{part.truncated} of {examples} examples are cut at training.max_length"
            warn("truncated", part.name, text)
        if part.overlap:
            text = f"{part.overlap} training rows are left out: their prompt is held out"
            warn("overlap", part.name, text)
        if len(part.test) < FEW_TEST_EXAMPLES:
            text = f"only {len(part.test)} test examples: its held-out loss will be noisy"
            warn("few-test-examples", part.name, text)
    return found
