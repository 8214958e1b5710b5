"""A comparison as its page shows it: places along the tracks, charts of shares, legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hbo.reports.charts import CARD, Charts, Line, Panel
from hbo.reports.comparison.folder import ComparisonFolder
from hbo.reports.comparison.words import Numbers, ranked, signed_spread
from hbo.reports.plots import Card
from hbo.reports.record import FloatArray, RunRecord
from hbo.reports.text import number, percent, plural, signed
from hbo.reports.view import COLOURS, Key
from hbo.reports.words import bdi


@dataclass(frozen=True)
class Track:
    """Places, 0 to 1 along a line, of a mean, its interval, zero, and the number of each seed."""

    mean: float
    low: float
    high: float
    zero: float | None
    seeds: list[float]


@dataclass(frozen=True)
class ForestRow:
    """One policy: its macro loss for each seed, and its difference to the reference."""

    name: str
    loss: Track
    difference: Track | None
    text: str


@dataclass(frozen=True)
class Forest:
    """Differences with intervals and the numbers of each seed; the ends of both axes in words."""

    rows: list[ForestRow]
    losses: str
    differences: str


def forest(numbers: Numbers) -> Forest:
    """Lay out the differences to the reference, all on one axis.

    Args:
        numbers: The content of ``comparison.json``, with at least one policy.
    """
    policies = numbers["policies"]
    differences = {name: (policies[name]["difference"] or {}).get("loss") for name in policies}
    losses = [v for p in policies.values() for v in p["macro_loss"]["per_seed"].values()]
    known = [row for row in differences.values() if row is not None]
    reach = [0.0, *(row[end] for row in known for end in ("low", "high"))]
    reach += [value for row in known for value in row["per_seed"].values()]
    rows = []
    for name in ranked(numbers):
        loss = policies[name]["macro_loss"]
        alone = {"mean": loss["mean"], "low": loss["mean"], "high": loss["mean"]}
        row = differences[name]
        rows.append(
            ForestRow(
                name,
                _track({**alone, "per_seed": loss["per_seed"]}, losses),
                _track(row, reach, zero=True) if row is not None else None,
                "reference" if name == numbers["against"] else signed_spread(row),
            )
        )
    return Forest(
        rows,
        f"{number(min(losses))} to {number(max(losses))}",
        f"{signed(min(reach))} to {signed(max(reach))}" if known else "",
    )


def _track(value: Numbers, axis: Sequence[float], *, zero: bool = False) -> Track:
    low, width = min(axis), max(axis) - min(axis)

    def place(at: float) -> float:
        return round(0.03 + 0.94 * (at - low) / width, 4) if width > 0 else 0.5

    return Track(
        mean=place(value["mean"]),
        low=place(value["low"]),
        high=place(value["high"]),
        zero=place(0.0) if zero else None,
        seeds=[place(seed) for seed in value["per_seed"].values()],
    )


# --- shares over steps ----------------------------------------------------------------------------


def share_cards(found: ComparisonFolder, numbers: Numbers, charts: Charts) -> list[Card]:
    """One small chart for each policy: every subset's share of draws, averaged over seeds."""
    policies = {policy.label: policy for policy in found.policies}
    cards = []
    for label in ranked(numbers):
        records = [run.record for run in policies[label].runs.values()]
        steps, shares = mean_law(records, found.subsets)
        if not np.isfinite(shares).any():
            continue
        lines = [_line(k, name, steps, shares[:, k]) for k, name in enumerate(found.subsets)]
        end = max(record.last_step for record in records)
        told = "; ".join(
            f"{line.title} {percent(float(line.y[0]))} → {percent(float(line.y[-1]))}"
            for line in lines[:COLOURS]
        )
        text = f"Share of draws of each subset over steps under {label}: {told}."
        chart = charts.draw([Panel(lines[::-1], end, True, floor=0.0)], CARD, text)
        note = "fixed" if len(steps) == 1 else f"mean over {plural(len(records), 'seed')}"
        cards.append(Card(bdi(label), note, Markup(chart)))
    return cards


def share_keys(found: ComparisonFolder) -> list[Key]:
    """The legend of the shares: the first subsets have a colour."""
    return [
        Key(k, f"--s{k}", k >= 4, bdi(name), "") for k, name in enumerate(found.subsets[:COLOURS])
    ]


def share_rest(found: ComparisonFolder) -> str:
    """What the legend says of the subsets without a colour."""
    left = len(found.subsets) - COLOURS
    return f"{plural(left, 'more subset')} in grey" if left > 0 else ""


def mean_law(records: Sequence[RunRecord], subsets: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """The shares in force over time, averaged over runs.

    Args:
        records: Runs of one policy.
        subsets: K names, in the order wanted.

    Returns:
        Steps (U,) at which the share of any run changes, and mean shares (U, K); only the first
        where none ever does.
    """
    laws = [_law(record, subsets) for record in records]
    steps = np.unique(np.concatenate([law[0] for law in laws]))
    shares = np.mean(
        [values[np.searchsorted(at, steps, side="right") - 1] for at, values in laws], axis=0
    )
    return (
        (steps, shares) if np.ptp(shares, axis=0).max(initial=0.0) > 0 else (steps[:1], shares[:1])
    )


def _law(record: RunRecord, subsets: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    steps, shares = record.law
    places: Mapping[str, int] = {name: k for k, name in enumerate(record.subsets)}
    columns = [
        shares[:, places[name]] if name in places else np.full(len(steps), np.nan)
        for name in subsets
    ]
    return steps, np.stack(columns, axis=1)


def _line(k: int, name: str, steps: FloatArray, shares: FloatArray) -> Line:
    known = k < COLOURS
    return Line(
        f"--s{k}" if known else "--rest", steps, shares, title=name if known else "",
        dashed=4 <= k < COLOURS, steps=True, faint=not known, key=k if known else None,
    )  # fmt: skip
