"""What a reader of a comparison must know before its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hbo.reports.comparison.folder import ComparisonFolder
from hbo.reports.text import plural, probability
from hbo.statistics import SIGNIFICANT, seeds_needed, smallest_p

FEW_EXAMPLES = 20
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def warnings_of(found: ComparisonFolder, reference: int | None) -> list[str]:
    """Everything that limits what the numbers show, in plain words.

    Args:
        found: What the folder holds.
        reference: The place of the policy that the others are compared with; None: no run yet.
    """
    if not found.policies:
        return ["No run is finished yet.", *found.warnings]
    said = [_missing(found), _reference(found, reference), _seeds(found, reference)]
    said += [*found.warnings, _other_data(found), _draws(found), _few_examples(found)]
    return [text for text in said if text]


def _missing(found: ComparisonFolder) -> str:
    if not found.missing:
        return ""
    verb = "is" if len(found.missing) == 1 else "are"
    return (
        f"Not finished: {plural(len(found.missing), 'run')} {verb} missing: "
        f"{_named(found.missing)}. Differences are taken over the seeds that both policies have."
    )


def _named(runs: Sequence[tuple[str, int]]) -> str:
    """Runs (label, seed) by policy."""
    by_policy: dict[str, list[int]] = {}
    for label, seed in runs:
        by_policy.setdefault(label, []).append(seed)
    return "; ".join(
        f"{label} (seed{'s' * (len(seeds) > 1)} {_listed([str(seed) for seed in seeds])})"
        for label, seeds in by_policy.items()
    )


def _reference(found: ComparisonFolder, reference: int | None) -> str:
    if reference is not None:
        return ""
    return (
        f"{found.against!r}, which the others are compared with, has no finished run yet, or is a "
        "setting that was not chosen."
    )


def _seeds(found: ComparisonFolder, reference: int | None) -> str:
    others = len(found.policies) - (reference is not None)
    if reference is None or not others:
        return too_few_seeds(max(len(policy.runs) for policy in found.policies), 0)
    with_reference = found.policies[reference].runs
    seeds = max(
        len(policy.runs.keys() & with_reference)
        for p, policy in enumerate(found.policies)
        if p != reference
    )
    return too_few_seeds(seeds, others)


def too_few_seeds(seeds: int, others: int) -> str:
    """What so few seeds cannot show; nothing where they are enough for p < 0.05.

    Args:
        seeds: How many both policies have.
        others: How many policies are compared with one; 0: none is.

    Example:
        >>> too_few_seeds(3, 1)[:44]
        'Three seeds cannot give p < 0.05 by themselv'
    """
    if not others or smallest_p(seeds, others) < SIGNIFICANT:
        return "" if seeds > 1 else _one_seed()
    smallest, corrected = smallest_p(seeds), smallest_p(seeds, others)
    words = NUMBERS[seeds] if seeds < len(NUMBERS) else str(seeds)
    theirs = "seed cannot give p < 0.05 by itself" if seeds == 1 else (
        "seeds cannot give p < 0.05 by themselves"
    )  # fmt: skip
    text = f"{words.capitalize()} {theirs}: the smallest possible is {probability(smallest)}"
    if others > 1 and corrected > smallest:
        text += f", {probability(corrected)} when corrected for {others} policies"
    text += f"; {seeds_needed(others)} seeds would be needed."
    return f"{_one_seed()} {text}" if seeds == 1 else text


def _one_seed() -> str:
    return "One seed: intervals are of held-out examples only, and say nothing about other seeds."


def _other_data(found: ComparisonFolder) -> str:
    """Names the runs of unchanged configurations whose examples are not those of most."""
    data = {
        (policy.label, seed): run.record.provenance["data fingerprint"]
        for policy in found.policies
        if not policy.entry.changes
        for seed, run in policy.runs.items()
        if "data fingerprint" in run.record.provenance
    }
    if len(set(data.values())) < 2:
        return ""
    usual, _ = Counter(data.values()).most_common(1)[0]
    others = [run for run, fingerprint in data.items() if fingerprint != usual]
    return (
        f"Trained on other data than the rest: {_named(others)}. What they differ by is not the "
        "policy alone; run them again on the same files."
    )


def _draws(found: ComparisonFolder) -> str:
    records = [run.record for policy in found.policies for run in policy.runs.values()]
    draws = {int(np.nansum(record.draws)) for record in records}
    steps = {record.last_step for record in records}
    if len(draws) == 1 and len(steps) == 1:
        return ""
    what, seen = ("steps", steps) if len(steps) > 1 else ("draws", draws)
    return (
        f"The runs differ in {what} ({_listed([str(value) for value in sorted(seen)])}), "
        "so their losses are not at equal work."
    )


def _few_examples(found: ComparisonFolder) -> str:
    test = next(iter(found.policies[0].runs.values())).test
    few = [f"{name} ({len(test[name].losses)})" for name in found.subsets
           if len(test[name].losses) < FEW_EXAMPLES]  # fmt: skip
    if not few:
        return ""
    return (
        f"Fewer than {FEW_EXAMPLES} test examples: {_listed(few)}. "
        "What a few examples say is anecdote, and intervals over them are too narrow."
    )


def _listed(items: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
