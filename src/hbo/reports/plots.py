"""The charts of one run: which lines, in which colours, said in which words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hbo.reports.charts import CARD, Charts, Line, Panel, smooth
from hbo.reports.record import FloatArray, RunRecord
from hbo.reports.text import number, percent
from hbo.reports.words import bdi


@dataclass(frozen=True)
class Card:
    """A small chart with a name."""

    name: Markup
    note: str
    chart: Markup


def group_colour(group: int, groups: int) -> str:
    """The CSS variable of a difficulty group: the scale runs from easiest to hardest."""
    return f"--g{round(5 * group / max(groups - 1, 1))}"


def share_note(run: RunRecord, k: int) -> str:
    """A subset's share of draws: at first and in the end, or the one there is."""
    if not run.moved:
        return percent(run.final[k])
    return f"{percent(run.prior[k])} → {percent(run.final[k])}"


def law_chart(run: RunRecord, charts: Charts, slots: dict[int, int]) -> Markup:
    """Every subset's share of draws over steps; those without a colour stand in grey behind."""
    steps, shares = run.law
    if not np.isfinite(shares).any():
        return Markup("")
    order = [k for k in range(len(run.subsets)) if k not in slots] + list(slots)
    lines = [
        Line(
            f"--s{slots[k]}" if k in slots else "--rest",
            steps, shares[:, k],
            title=f"{run.subsets[k]}: {share_note(run, k)}" if k in slots else "",
            dashed=slots.get(k, 0) >= 4,
            steps=True, faint=k not in slots, key=slots.get(k),
        )
        for k in order
    ]  # fmt: skip
    marks = [float(update.step) for update in run.updates]
    text = "Share of draws of each subset over optimiser steps: " + _spoken(run, slots)
    return Markup(charts.both(Panel(lines, run.last_step, True, marks, floor=0.0), text))


def _spoken(run: RunRecord, slots: dict[int, int]) -> str:
    return "; ".join(f"{run.subsets[k]} {share_note(run, k)}" for k in slots) + "."


def reward_chart(run: RunRecord, charts: Charts, slots: dict[int, int]) -> Markup:
    """Global rewards with standard errors at each update; empty where none was logged."""
    if not any(np.isfinite(update.rewards).any() for update in run.updates):
        return Markup("")
    steps = np.array([float(update.step) for update in run.updates])
    # A hair's breadth apart, so that error bars at one step do not hide each other.
    nudge = (np.arange(len(slots)) - len(slots) / 2) * run.last_step / 600
    lines = [
        Line(
            f"--s{slot}",
            steps + nudge[slot],
            np.array([update.rewards[k] for update in run.updates]),
            title=run.subsets[k],
            errors=np.nan_to_num([update.errors[k] for update in run.updates]),
            dashed=slot >= 4,
            marker=True,
            key=slot,
        )
        for k, slot in slots.items()
    ]
    last = run.updates[-1].rewards
    text = "Global rewards with standard errors at each update; at the last one: " + "; ".join(
        f"{run.subsets[k]} {number(last[k])}" for k in slots
    )
    return Markup(charts.both(Panel(lines, run.last_step), text))


def local_cards(run: RunRecord, charts: Charts, shown: Sequence[int]) -> list[Card]:
    """One small chart for each Local Actor: shares of the groups above, rewards below.

    Args:
        run: The run.
        charts: Draws them.
        shown: Subsets to draw, in this order; one whose actor never moved has no card.
    """
    cards = []
    for k in shown:
        panels = _local_panels(run, k)
        if not panels:
            continue
        last = panels[0].lines
        ends = ", ".join(f"{line.title} {percent(float(line.y[-1]))}" for line in last)
        text = (
            f"Shares of the difficulty groups of {run.subsets[k]} over steps; at the end: {ends}."
        )
        size = (CARD[0], 120 * len(panels) + 30)
        chart = Markup(charts.draw(panels, size, text))
        cards.append(Card(bdi(run.subsets[k]), f"{share_note(run, k)} of draws", chart))
    return cards


def _local_panels(run: RunRecord, k: int) -> list[Panel]:
    updates = [(u, u.local[k]) for u in run.updates]
    moves = [(update, local) for update, local in updates if local is not None]
    if not moves or len(moves[0][1].after) < 2:
        return []
    groups = len(moves[0][1].after)
    moves = [(update, local) for update, local in moves if len(local.after) == groups]
    begun = np.array([0.0, *(update.effective_step for update, _ in moves)])
    decided = np.array([float(update.step) for update, _ in moves])
    shares = np.array([moves[0][1].before, *(local.after for _, local in moves)])
    rewards = np.array([local.rewards for _, local in moves])
    errors = np.nan_to_num(np.array([local.errors for _, local in moves]))
    upper = [
        Line(group_colour(g, groups), begun, shares[:, g], f"group {g}", steps=True, key=g)
        for g in range(groups)
    ]
    panels = [Panel(upper, run.last_step, percent=True, level=1 / groups)]
    if np.isfinite(rewards).any():
        lower = [
            Line(
                group_colour(g, groups), decided, rewards[:, g], f"group {g}",
                errors=errors[:, g], marker=True, key=g,
            )
            for g in range(groups)
        ]  # fmt: skip
        panels.append(Panel(lower, run.last_step))
    return panels


def loss_cards(run: RunRecord, charts: Charts, shown: Sequence[int]) -> list[Card]:
    """One small chart of train and held-out loss for each subset in ``shown``."""
    cards = []
    for k in shown:
        lines = _loss_lines(
            run, run.steps.subset_loss[:, k], run.steps.draws[:, k],
            [evaluation.loss[k] for evaluation in run.evaluations],
        )  # fmt: skip
        if not lines:
            continue
        before, after = run.loss.before[k], run.loss.after[k]
        note = f"train {number(run.train_loss[k])}"
        if math.isfinite(after):
            note += f" · held-out {number(before)} → {number(after)}"
        text = f"Loss of {run.subsets[k]} over steps: {note}."
        chart = charts.draw([Panel(lines, run.last_step)], CARD, text)
        cards.append(Card(bdi(run.subsets[k]), note, Markup(chart)))
    return cards


def loss_chart(run: RunRecord, charts: Charts) -> Markup:
    """Train loss over all subsets, and the macro average of held-out loss."""
    lines = _loss_lines(
        run, run.steps.loss, np.ones(len(run.steps.loss)),
        [evaluation.macro_loss for evaluation in run.evaluations],
    )  # fmt: skip
    if not lines:
        return Markup("")
    before, after = run.macro_loss
    trained = f"last {number(float(run.steps.loss[-1]))}" if len(run.steps.loss) else "not logged"
    text = (
        f"Train loss over steps, {trained}; held-out loss averaged over subsets, "
        f"{number(before)} before and {number(after)} after."
    )
    return Markup(charts.both(Panel(lines, run.last_step), text))


def _loss_lines(
    run: RunRecord, loss: FloatArray, weights: FloatArray, heldout: Sequence[float]
) -> list[Line]:
    lines = []
    if np.isfinite(loss).any():
        mean = smooth(loss, weights, max(3, round(len(loss) / 12)))
        few = thinned(len(loss))
        lines.append(Line("--s0", run.steps.step[few], loss[few], faint=True))
        lines.append(Line("--s0", run.steps.step[few], mean[few], "train, running mean", key=0))
    values = np.array(heldout, dtype=float)
    if np.isfinite(values).any():
        steps = np.array([float(evaluation.step) for evaluation in run.evaluations])
        lines.append(Line("--s1", steps, values, "held-out", dashed=True, marker=True, key=1))
    return lines


def thinned(count: int, most: int = 400) -> NDArray[np.int64]:
    """Positions of at most ``most`` of ``count`` values, the first and last among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))
