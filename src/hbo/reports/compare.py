"""Several runs side by side: what each policy brought, at what cost, and where it drew from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hbo.reports.charts import Charts, Line, Panel, smooth
from hbo.reports.plots import thinned
from hbo.reports.record import FloatArray, RunRecord
from hbo.reports.text import MISSING, count, duration, number, percent, plural, visible
from hbo.reports.view import COLOURS, Key
from hbo.reports.words import bdi, policy_words

Measure = Callable[[RunRecord], float]


@dataclass(frozen=True)
class Entry:
    """One policy: its runs, and the numbers of the comparison, each a mean over them."""

    name: Markup
    colour: str
    runs: int
    seeds: str
    loss_before: str
    loss: str
    accuracy: str
    tokens: str
    wall: str
    cost: str
    train_loss: str
    best_loss: bool
    best_accuracy: bool


@dataclass(frozen=True)
class Cell:
    """A number in a table of subsets by policies; ``place`` is 0 to 1 for its bar."""

    text: str
    best: bool = False
    place: float = 0.0


@dataclass(frozen=True)
class SubsetRow:
    """One subset: a cell for each policy."""

    name: Markup
    cells: list[Cell]


@dataclass(frozen=True)
class Comparison:
    """Everything that the template of several runs needs."""

    title: Markup
    sentences: list[Markup]
    entries: list[Entry]
    keys: list[Key]
    train_keys: list[Key]
    several_seeds: bool
    train: Markup
    heldout: Markup
    losses: list[SubsetRow]
    accuracies: list[SubsetRow]
    shares: list[SubsetRow]
    left_out: str


def comparison(runs: Sequence[RunRecord], charts: Charts) -> Comparison:
    """Lay out several runs; runs of one policy that differ in nothing but the seed are averaged.

    Args:
        runs: Two or more.
        charts: The page's charts.
    """
    groups = _groups(runs)
    entries = _entries(groups)
    names = list(dict.fromkeys(name for run in runs for name in run.subsets))
    hidden = len(runs) - 8
    return Comparison(
        title=Markup("{} compared on {}").format(
            f"{len(groups)} policies" if len({run.policy for run in runs}) == len(groups) > 1
            else plural(len(runs), "run"),
            plural(len(names), "subset"),
        ),
        sentences=_sentences(groups),
        entries=entries,
        keys=_keys(entries, [entry.loss for entry in entries]),
        train_keys=_keys(entries, [entry.train_loss for entry in entries]),
        several_seeds=any(len(group) > 1 for group in groups.values()),
        train=_train_chart(groups, charts),
        heldout=_heldout_chart(groups, charts),
        losses=_table(names, groups, lambda r, k: float(r.loss.after[k]), number, best=min),
        accuracies=_table(
            names, groups, lambda r, k: float(r.accuracy.after[k]), _tenths, best=max,
        ),
        shares=_table(names, groups, lambda r, k: float(r.realised[k]), percent, best=None),
        left_out="" if hidden <= 0 else (
            f"{plural(hidden, 'more run')} in the tables only; `hbo report RUN` shows one alone."
        ),
    )  # fmt: skip


def _keys(entries: Sequence[Entry], notes: Sequence[str]) -> list[Key]:
    return [
        Key(slot, entry.colour, slot >= 4, entry.name, note)
        for slot, (entry, note) in enumerate(zip(entries[:COLOURS], notes, strict=False))
    ]


def _groups(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Policy -> its runs; runs that share policy and seed are told apart by their folders."""
    seen = [(run.policy, run.seed) for run in runs]
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        repeated = seen.count((run.policy, run.seed)) > 1
        label = f"{run.policy} ({run.folder.name})" if repeated else run.policy
        groups.setdefault(label, []).append(run)
    return groups


def _colour(slot: int) -> str:
    return f"--s{slot}" if slot < COLOURS else "--rest"


def _mean(group: Sequence[RunRecord], measure: Measure) -> float:
    values = [value for value in (measure(run) for run in group) if math.isfinite(value)]
    return math.fsum(values) / len(values) if values else float("nan")


def _spread(group: Sequence[RunRecord], measure: Measure, say: Callable[[float], str]) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    values = [value for value in (measure(run) for run in group) if math.isfinite(value)]
    if not values:
        return MISSING
    mean = say(math.fsum(values) / len(values))
    return f"{mean} ± {say(float(np.std(values, ddof=1)))}" if len(values) > 1 else mean


def _tenths(share: float) -> str:
    return percent(share, 1)


def _loss(run: RunRecord) -> float:
    return run.macro_loss[1]


def _accuracy(run: RunRecord) -> float:
    return run.accuracy.macro[1]


def _train_loss(run: RunRecord) -> float:
    known = run.steps.loss[np.isfinite(run.steps.loss)]
    return float(known[-1]) if len(known) else float("nan")


def _one_mixture(groups: Mapping[str, Sequence[RunRecord]]) -> bool:
    """Whether all runs have the same subsets: else averages over subsets are of other things."""
    return len({frozenset(run.subsets) for group in groups.values() for run in group}) == 1


def _winner(values: Sequence[float], best: Callable[[list[float]], float]) -> float:
    """The best of numbers that differ; NaN, which equals none, where there is no contest."""
    known = [value for value in values if math.isfinite(value)]
    return best(known) if len(set(known)) > 1 else float("nan")


def _entries(groups: dict[str, list[RunRecord]]) -> list[Entry]:
    losses = {label: _mean(group, _loss) for label, group in groups.items()}
    accuracies = {label: _mean(group, _accuracy) for label, group in groups.items()}
    comparable = _one_mixture(groups)
    least = _winner(list(losses.values()), min) if comparable else float("nan")
    most = _winner(list(accuracies.values()), max) if comparable else float("nan")
    return [
        Entry(
            name=bdi(label),
            colour=_colour(slot),
            runs=len(group),
            seeds=", ".join(str(run.seed) for run in group if run.seed is not None),
            loss_before=number(_mean(group, lambda run: run.macro_loss[0])),
            loss=_spread(group, _loss, number),
            accuracy=_spread(group, _accuracy, lambda v: percent(v, 1)),
            tokens=count(_mean(group, lambda run: run.all_tokens)),
            wall=duration(_mean(group, lambda run: run.wall_seconds)),
            cost=percent(_mean(group, lambda run: run.cost)),
            train_loss=number(_mean(group, _train_loss)),
            best_loss=losses[label] == least,
            best_accuracy=accuracies[label] == most,
        )
        for slot, (label, group) in enumerate(groups.items())
    ]


def _sentences(groups: dict[str, list[RunRecord]]) -> list[Markup]:
    ranked = sorted(
        ((_mean(group, _loss), label) for label, group in groups.items()),
        key=lambda item: (not math.isfinite(item[0]), item[0]),
    )
    ranked = [item for item in ranked if math.isfinite(item[0])]
    said = []
    if not _one_mixture(groups):
        said.append(
            Markup("The runs have different subsets, so only the tables by subset compare them.")
        )
    elif len(ranked) > 1:
        (best, first), (second, runner_up) = ranked[0], ranked[1]
        said.append(
            Markup(
                "Lowest held-out loss, averaged over subsets: <b>{} with {}</b>, then {} with {}."
            ).format(_label(first), number(best), _label(runner_up), number(second))
        )  # fmt: skip
    fewest = min(len(group) for group in groups.values())
    if fewest < 3:
        said.append(
            Markup("{} per policy: a difference this page shows may be chance.").format(
                plural(fewest, "seed")
            )
        )
    steps = {run.last_step for group in groups.values() for run in group}
    if len(steps) > 1:
        said.append(
            Markup("The runs differ in length ({} steps).").format(
                ", ".join(str(step) for step in sorted(steps))
            )
        )
    return said


def _label(label: str) -> Markup:
    words = policy_words(label)
    return bdi(words) if words == label else Markup("{}").format(words)


# --- charts ---------------------------------------------------------------------------------------


def _train_chart(groups: dict[str, list[RunRecord]], charts: Charts) -> Markup:
    lines = []
    for slot, (label, group) in enumerate(groups.items()):
        for run in group:
            loss = run.steps.loss
            if not np.isfinite(loss).any():
                continue
            few = thinned(len(loss))
            mean = smooth(loss, np.ones(len(loss)), max(3, round(len(loss) / 12)))
            lines.append(_line(slot, label, run.steps.step[few], mean[few]))
    return _chart(
        groups, lines, charts, "Train loss over steps (running mean) by policy", _train_loss
    )


def _heldout_chart(groups: dict[str, list[RunRecord]], charts: Charts) -> Markup:
    lines = []
    for slot, (label, group) in enumerate(groups.items()):
        for run in group:
            steps = np.array([float(evaluation.step) for evaluation in run.evaluations])
            loss = np.array([evaluation.macro_loss for evaluation in run.evaluations])
            if np.isfinite(loss).sum() > 1:
                lines.append(_line(slot, label, steps, loss, marker=True))
    return _chart(
        groups, lines, charts, "Held-out loss averaged over subsets, over steps, by policy", _loss
    )


def _line(slot: int, label: str, x: FloatArray, y: FloatArray, *, marker: bool = False) -> Line:
    key = slot if slot < COLOURS else None
    dashed = 4 <= slot < COLOURS
    return Line(_colour(slot), x, y, label, dashed=dashed, marker=marker, key=key)


def _chart(
    groups: dict[str, list[RunRecord]],
    lines: list[Line],
    charts: Charts,
    text: str,
    last: Measure,
) -> Markup:
    if not lines:
        return Markup("")
    end = max(run.last_step for group in groups.values() for run in group)
    told = "; ".join(f"{label} ends at {number(_mean(g, last))}" for label, g in groups.items())
    return Markup(charts.both(Panel(lines, end), f"{text}: {told}."))


# --- subsets by policies --------------------------------------------------------------------------


def _table(
    names: Sequence[str],
    groups: dict[str, list[RunRecord]],
    value: Callable[[RunRecord, int], float],
    say: Callable[[float], str],
    best: Callable[[list[float]], float] | None,
) -> list[SubsetRow]:
    numbers = np.array(
        [[_subset_mean(name, group, value) for group in groups.values()] for name in names]
    )
    if not np.isfinite(numbers).any():
        return []
    most = float(np.nanmax(numbers)) or 1.0
    rows = []
    for name, line in zip(names, numbers, strict=True):
        top = _winner(line.tolist(), best) if best is not None else float("nan")
        cells = [Cell(say(float(v)), bool(v == top), float(np.nan_to_num(v / most))) for v in line]
        rows.append(SubsetRow(Markup("<bdi>{}</bdi>").format(visible(name)), cells))
    return rows


def _subset_mean(
    name: str, group: Sequence[RunRecord], value: Callable[[RunRecord, int], float]
) -> float:
    having = [run for run in group if name in run.subsets]
    return _mean(having, lambda run: value(run, run.subsets.index(name)))
