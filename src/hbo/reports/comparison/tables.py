"""The tables of a comparison as text, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hbo.reports.comparison.words import (
    Numbers,
    beyond_noise,
    ranked,
    share_spread,
    signed_spread,
    spread,
)
from hbo.reports.text import MISSING, count, duration, number, percent, probability


@dataclass(frozen=True)
class PolicyRow:
    """One policy of the main table."""

    name: str
    note: str
    loss: str
    best_loss: bool
    difference: str
    beyond_noise: bool
    p: str
    worst: str
    worst_name: str
    accuracy: str
    best_accuracy: bool
    balancing: str
    training: str
    tokens: str
    passes: str


@dataclass(frozen=True)
class Number:
    """A number of a policy on a subset: its value, its interval, whether it is surely the best."""

    text: str
    range: str
    best: bool


@dataclass(frozen=True)
class SubsetNumbers:
    """One subset: what the untouched model has on it, and a number for each policy."""

    name: str
    before: str
    numbers: list[Number]


def policy_rows(numbers: Numbers) -> list[PolicyRow]:
    """The main table, lowest macro loss first.

    Args:
        numbers: The content of ``comparison.json``.
    """
    return [_policy_row(numbers, name) for name in ranked(numbers)]


def _policy_row(numbers: Numbers, name: str) -> PolicyRow:
    row = numbers["policies"][name]
    difference = (row["difference"] or {}).get("loss")
    cost = row["cost"]
    share = percent(cost["balance_share"])
    seconds = duration(cost["balance_seconds"])
    return PolicyRow(
        name=name,
        note=_note(numbers, name),
        loss=spread(row["macro_loss"]),
        best_loss=numbers["best"]["macro_loss"] == name,
        difference="reference" if name == numbers["against"] else signed_spread(difference),
        beyond_noise=beyond_noise(difference),
        p=probability(difference["p_corrected"]) if difference else MISSING,
        worst=spread(row["worst_loss"]),
        worst_name=", ".join(row["worst_loss"]["subsets"]),
        accuracy=share_spread(row["macro_accuracy"]),
        best_accuracy=numbers["best"]["macro_accuracy"] == name,
        balancing=MISSING if MISSING in (share, seconds) else f"{share} ({seconds})",
        training=duration(cost["training_seconds"]),
        tokens=count(cost["tokens"]),
        passes=number(row["passes_smallest"], 2),
    )


def _note(numbers: Numbers, name: str) -> str:
    """What a reader must know of one row: which setting it is, and runs that are not there."""
    row = numbers["policies"][name]
    notes = [] if row["entry"] == name else [f"chosen: {row['entry']}"]
    if len(row["seeds"]) < len(numbers["seeds"]):
        notes.append(f"{len(row['seeds'])} of {len(numbers['seeds'])} seeds")
    return "; ".join(notes)


def loss_table(numbers: Numbers) -> list[SubsetNumbers]:
    """Held-out loss of each subset under each policy, in the order of ``policy_rows``."""
    return _subset_table(numbers, "loss", number, lambda v: spread(v).partition(" ")[2])


def accuracy_table(numbers: Numbers) -> list[SubsetNumbers]:
    """The same of accuracy, for the subsets whose answers can be graded."""
    rows = _subset_table(
        numbers, "accuracy", lambda v: percent(v, 1), lambda v: share_spread(v).partition(" ")[2]
    )
    return [row for row in rows if any(cell.text != MISSING for cell in row.numbers)]


def share_table(numbers: Numbers) -> list[SubsetNumbers]:
    """Share of the draws of each subset, with its passes."""
    policies = numbers["policies"]
    return [
        SubsetNumbers(
            name,
            "",
            [
                Number(percent(at["share"]), f"{number(at['passes'], 2)} passes", False)
                for at in (policies[policy]["subsets"][name] for policy in ranked(numbers))
            ],
        )
        for name in _subsets(numbers)
    ]


def _subset_table(
    numbers: Numbers,
    measure: str,
    say: Callable[[float | None], str],
    say_range: Callable[[Mapping[str, Any] | None], str],
) -> list[SubsetNumbers]:
    before = (numbers["before"] or {}).get("subsets", {})
    rows = []
    for name in _subsets(numbers):
        best = numbers["best"]["subsets"].get(name, {}).get(measure)
        cells = []
        for policy in ranked(numbers):
            value = numbers["policies"][policy]["subsets"][name][measure]
            mean = value["mean"] if value else None
            cells.append(Number(say(mean), say_range(value), policy == best))
        rows.append(SubsetNumbers(name, say(before.get(name, {}).get(measure)), cells))
    return rows


def _subsets(numbers: Numbers) -> list[str]:
    return list(next(iter(numbers["policies"].values()))["subsets"])


def settings_text(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """Settings as one line, ``name=value``."""
    return ", ".join(f"{name}={value}" for name, value in {**settings, **changes}.items())


def seeds_text(numbers: Numbers, seeds: Sequence[int]) -> str:
    """How many seeds a number is of, and which ones where they are not all.

    Example:
        >>> seeds_text({"seeds": [1, 2]}, [1, 2]), seeds_text({"seeds": [1, 2]}, [2])
        ('2', '1 of 2 (2)')
    """
    if len(seeds) == len(numbers["seeds"]):
        return str(len(seeds))
    which = f" ({', '.join(map(str, seeds))})" if seeds else ""
    return f"{len(seeds)} of {len(numbers['seeds'])}{which}"


def how_text(numbers: Numbers) -> str:
    """What the numbers are, for the foot of a table."""
    seeds = ", ".join(str(seed) for seed in numbers["seeds"])
    return (
        f"Seeds {seeds}. Macro is the plain average over subsets, of test examples, after "
        "training; the worst subset is the worst of each run. In brackets: 95 % intervals "
        f"({numbers['replicates']:,} bootstrap replicates over seeds and examples). p: exact "
        "sign-flip test over seeds, two-sided, Holm-corrected for the number of policies. "
        "Balancing: share of the wall time, and seconds; passes: over the smallest subset."
    )
