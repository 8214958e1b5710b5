"""The numbers of a comparison: means, intervals and tests, from the runs in its folder.

What the statistics are stands in ``hbo.statistics``; every number on test examples is of the model
at the end of its run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.reports.comparison.folder import ComparisonFolder, Reported
from hbo.reports.comparison.time import equal_time
from hbo.reports.comparison.warnings import FEW_EXAMPLES, warnings_of
from hbo.reports.record import FloatArray, RunRecord
from hbo.runlog import finite
from hbo.statistics import (
    LEVEL,
    REPLICATES,
    Measure,
    Replicates,
    bootstrap,
    holm,
    interval,
    sign_flip_p,
)

SCHEMA = 1
MEASURES = ("loss", "accuracy", "worst_loss", "worst_accuracy")


@dataclass(frozen=True)
class _Measured:
    """One measure of all runs: its numbers as they are (P, S, K), and under redraws."""

    measure: Measure
    scores: FloatArray
    replicates: Replicates
    highest: float

    @property
    def macro(self) -> FloatArray:
        """(P, S) plain means over the measured subsets."""
        return np.asarray(self.scores[..., self.measure.known].mean(axis=-1))

    @property
    def worst(self) -> FloatArray:
        """(P, S) the worst measured subset of each run."""
        return np.asarray(self.measure.worst(self.scores[..., self.measure.known], axis=-1))


def comparison_numbers(found: ComparisonFolder) -> dict[str, Any]:
    """All numbers of a comparison, as ``comparison.json`` holds them (docs/cli.md).

    Args:
        found: What the folder holds.

    Returns:
        JSON-safe values; null where there is no number.
    """
    reference = reference_of(found)
    measured = _all_measured(found)
    numbers: dict[str, Any] = {
        "schema": SCHEMA,
        "against": found.policies[reference].label if reference is not None else found.against,
        "seeds": list(found.seeds),
        "missing": [{"policy": label, "seed": seed} for label, seed in found.missing],
        "split": "test",
        "level": LEVEL,
        "replicates": REPLICATES,
        "policies": {
            policy.label: _policy(found, p, policy, measured)
            for p, policy in enumerate(found.policies)
        },
        "choices": _choices(found),
        "before": _before(found),
        "best": _best(found, measured),
        "equal_time": equal_time(found.policies),
    }
    _add_differences(found, numbers["policies"], reference, measured)
    numbers["warnings"] = warnings_of(found, reference)
    plain: dict[str, Any] = finite(numbers)
    return plain


def reference_of(found: ComparisonFolder) -> int | None:
    """The place of the policy that the others are compared with; None where it has no run yet."""
    for place, policy in enumerate(found.policies):
        if found.against in (policy.label, policy.entry.name):
            return place
    return None


# --- measures -------------------------------------------------------------------------------------


def _all_measured(found: ComparisonFolder) -> dict[str, _Measured]:
    if not found.policies:
        return {}
    first = next(iter(found.policies[0].runs.values())).test
    tokens = [first[name].tokens for name in found.subsets]
    present = np.array([[s in policy.runs for s in found.seeds] for policy in found.policies])
    losses = Measure([_table(found, k, "losses") for k in found.subsets], tokens, present, np.max)
    measures = {"loss": losses}
    graded = [first[name].correct is not None for name in found.subsets]
    if any(graded):
        pairs = zip(found.subsets, graded, strict=True)
        correct = [_table(found, k, "correct") if known else None for k, known in pairs]
        ones = [np.ones(len(row)) for row in tokens]
        measures["accuracy"] = Measure(correct, ones, present, np.min)
    return {
        name: _Measured(
            measure, measure.scores(), bootstrap(measure), 1.0 if name == "accuracy" else math.inf
        )
        for name, measure in measures.items()
    }


def _table(found: ComparisonFolder, subset: str, what: str) -> FloatArray:
    """(P, S, n) of one subset; zeros where there is no run."""
    rows = [
        [getattr(p.runs[s].test[subset], what) if s in p.runs else None for s in found.seeds]
        for p in found.policies
    ]
    some = next(row for line in rows for row in line if row is not None)
    return np.array([[np.zeros_like(some) if r is None else r for r in line] for line in rows])


def _over_runs(
    found: ComparisonFolder, p: int, measured: _Measured, values: FloatArray, drawn: FloatArray
) -> dict[str, Any]:
    """A number of each run of a policy: its mean, interval, and value for each seed."""
    present = measured.measure.present[p]
    replicates = measured.replicates.over_seeds(drawn[:, p], present)
    per_seed = {
        str(seed): float(value)
        for seed, value, there in zip(found.seeds, values[p], present, strict=True)
        if there
    }
    mean = math.fsum(per_seed.values()) / len(per_seed)
    return {**_with_interval(mean, replicates, measured.highest), "per_seed": per_seed}


def _with_interval(mean: float, replicates: FloatArray, highest: float) -> dict[str, float]:
    low, high = interval(replicates)
    return {"mean": mean, "low": max(low, 0.0), "high": min(high, highest)}


# --- one policy -----------------------------------------------------------------------------------


def _policy(
    found: ComparisonFolder, p: int, policy: Reported, measured: dict[str, _Measured]
) -> dict[str, Any]:
    records = [run.record for run in policy.runs.values()]
    numbers: dict[str, Any] = {
        "policy": policy.entry.policy,
        "entry": policy.entry.name,
        "settings": dict(policy.entry.settings),
        "set": dict(policy.entry.changes),
        "seeds": list(policy.runs),
    }
    for name in ("loss", "accuracy"):
        numbers[f"macro_{name}"] = numbers[f"worst_{name}"] = None
        one = measured.get(name)
        if one is not None:
            drawn = one.replicates
            numbers[f"macro_{name}"] = _over_runs(found, p, one, one.macro, drawn.macro)
            numbers[f"worst_{name}"] = {
                **_over_runs(found, p, one, one.worst, drawn.worst),
                "subsets": _worst_names(found, p, one),
            }
    numbers["subsets"] = {
        name: _subset(k, name, p, records, measured) for k, name in enumerate(found.subsets)
    }
    numbers["difference"] = None
    numbers["cost"] = _cost(records)
    numbers["passes_smallest"] = _mean([_passes_smallest(record) for record in records])
    return numbers


def _worst_names(found: ComparisonFolder, p: int, one: _Measured) -> list[str]:
    """The worst subset of each run, the one that was so most often first."""
    known = one.measure.known
    rows = one.scores[p][one.measure.present[p]][:, known]
    pick = np.argmax if one.measure.worst is np.max else np.argmin
    counted = Counter(found.subsets[known[place]] for place in pick(rows, axis=-1))
    return [name for name, _ in counted.most_common()]


def _subset(
    k: int, name: str, p: int, records: Sequence[RunRecord], measured: dict[str, _Measured]
) -> dict[str, Any]:
    numbers: dict[str, Any] = {"loss": None, "accuracy": None}
    for measure, one in measured.items():
        if k in one.measure.known:
            mean = float(one.scores[p, one.measure.present[p], k].mean())
            numbers[measure] = _with_interval(mean, one.replicates.subsets[:, p, k], one.highest)
    places = [(r, r.subsets.index(name)) for r in records if name in r.subsets]
    numbers["examples"] = len(measured["loss"].measure.weights[k])
    numbers["share"] = _mean([float(record.realised[at]) for record, at in places])
    numbers["passes"] = _mean([float(record.passes[at]) for record, at in places])
    return numbers


def _cost(records: Sequence[RunRecord]) -> dict[str, float]:
    return {
        "wall_seconds": _mean([record.wall_seconds for record in records]),
        "training_seconds": _mean([record.training_seconds for record in records]),
        "balance_seconds": _mean([record.balance_seconds for record in records]),
        "balance_share": _mean([record.cost for record in records]),
        "tokens": _mean([record.all_tokens for record in records]),
        "draws": _mean([float(np.nansum(record.draws)) for record in records]),
        "steps": _mean([float(record.last_step) for record in records]),
    }


def _passes_smallest(record: RunRecord) -> float:
    known = np.isfinite(record.examples)
    return float(record.passes[np.nanargmin(record.examples)]) if known.any() else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


# --- policies against one another -----------------------------------------------------------------


def _add_differences(
    found: ComparisonFolder,
    policies: dict[str, Any],
    reference: int | None,
    measured: dict[str, _Measured],
) -> None:
    """What each policy differs by from the reference, in each measure, corrected for how many."""
    if reference is None:
        return
    others = [p for p in range(len(found.policies)) if p != reference]
    for p in others:
        policies[found.policies[p].label]["difference"] = dict.fromkeys(MEASURES)
    for name in MEASURES:
        one = measured.get(name.removeprefix("worst_"))
        if one is None:
            continue
        worst = name.startswith("worst")
        rows = {p: row for p in others if (row := _difference(one, p, reference, worst=worst))}
        corrected = holm([row["p"] for row in rows.values()])
        for (p, row), p_corrected in zip(rows.items(), corrected, strict=True):
            policies[found.policies[p].label]["difference"][name] = {
                **row,
                "p_corrected": p_corrected,
                "per_seed": {
                    str(seed): value
                    for seed, value in zip(found.seeds, row["per_seed"], strict=True)
                    if math.isfinite(value)
                },
            }


def _difference(one: _Measured, p: int, other: int, *, worst: bool) -> dict[str, Any] | None:
    """Paired by seed and by example; None where no seed has both runs."""
    present = one.measure.present[p] & one.measure.present[other]
    if not present.any():
        return None
    values = one.worst if worst else one.macro
    drawn = one.replicates.worst if worst else one.replicates.macro
    differences = np.where(present, values[p] - values[other], np.nan)
    low, high = interval(one.replicates.over_seeds(drawn[:, p] - drawn[:, other], present))
    return {
        "mean": float(differences[present].mean()),
        "low": low,
        "high": high,
        "p": sign_flip_p(differences[present]),
        "per_seed": differences.tolist(),
    }


def _best(found: ComparisonFolder, measured: dict[str, _Measured]) -> dict[str, Any]:
    """The best policy, where the interval of its difference to each other one leaves zero out.

    Nothing is marked that an interval cannot know: one seed says nothing about seeds, a subset of
    few examples little about examples, and one of a single example seems to have no noise at all.
    """
    best: dict[str, Any] = {"macro_loss": None, "macro_accuracy": None, "subsets": {}}
    for name, one in measured.items():
        sign = 1.0 if name == "loss" else -1.0
        examples = {k: len(one.measure.weights[k]) for k in one.measure.known}
        first, *others = _order(sign * one.macro)
        if min(examples.values()) > 1 and _seeds_tell(one, first, others):
            gaps = [_difference(one, first, other, worst=False) for other in others]
            if all(gap is not None and not gap["low"] <= 0.0 <= gap["high"] for gap in gaps):
                best[f"macro_{name}"] = found.policies[first].label
        for k, count in examples.items():
            label = best["subsets"].setdefault(found.subsets[k], {"loss": None, "accuracy": None})
            if count >= FEW_EXAMPLES:
                label[name] = _best_on(found, one, k, sign)
    return best


def _best_on(found: ComparisonFolder, one: _Measured, k: int, sign: float) -> str | None:
    first, *others = _order(sign * one.scores[..., k])
    if not _seeds_tell(one, first, others):
        return None
    drawn = one.replicates.subsets[:, :, k]
    gaps = [interval(drawn[:, first] - drawn[:, other]) for other in others]
    return None if any(low <= 0.0 <= high for low, high in gaps) else found.policies[first].label


def _order(values: FloatArray) -> list[int]:
    """The policies by the mean of their runs (P, S), lowest first."""
    return [int(p) for p in np.argsort(np.nanmean(values, axis=1), kind="stable")]


def _seeds_tell(one: _Measured, first: int, others: Sequence[int]) -> bool:
    """Whether there are others, each with two seeds or more that the first has as well."""
    present = one.measure.present
    return bool(others) and all((present[first] & present[p]).sum() > 1 for p in others)


# --- the rest -------------------------------------------------------------------------------------


def _choices(found: ComparisonFolder) -> dict[str, Any]:
    """Validation numbers of every setting that was tried; nothing of test examples."""
    return {
        label: [
            {
                "name": setting.entry.name,
                "settings": dict(setting.entry.settings),
                "set": dict(setting.entry.changes),
                "validation_loss": _mean([setting.losses[seed] for seed in setting.seeds]),
                "per_seed": {str(seed): value for seed, value in setting.losses.items()},
                "seeds": list(setting.seeds),
                "chosen": setting.chosen,
            }
            for setting in settings
        ]
        for label, settings in found.choices.items()
    }


def _before(found: ComparisonFolder) -> dict[str, Any] | None:
    """The untouched model on the same test examples."""
    record = found.before
    if record is None or not np.isfinite(record.loss.before).any():
        return None
    accuracies = record.accuracy.before[np.isfinite(record.accuracy.before)]
    return {
        "macro_loss": _mean(record.loss.before.tolist()),
        "macro_accuracy": float(accuracies.mean()) if len(accuracies) else None,
        "subsets": {
            name: {
                "loss": float(record.loss.before[k]),
                "accuracy": float(record.accuracy.before[k]),
            }
            for k, name in enumerate(record.subsets)
        },
    }
