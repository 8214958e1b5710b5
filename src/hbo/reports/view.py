"""One run as the page shows it: figures, legend, charts and rows, ready for the template."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hbo.reports.charts import CARD, Charts, Line, Panel, smooth
from hbo.reports.record import FloatArray, RunRecord
from hbo.reports.text import count, duration, number, percent, plural, signed, visible
from hbo.reports.words import bdi, policy_words, sentences, title

COLOURS = 8
CARDS, MORE_CARDS = 12, 24
DASHED = (0, (4, 2))


@dataclass(frozen=True)
class Figure:
    """A key figure: what it is, its value, a note under it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: ``key`` ties it to its line, ``colour`` names a CSS variable."""

    key: int
    colour: str
    dashed: bool
    name: Markup
    note: str


@dataclass(frozen=True)
class Card:
    """A small chart with a name."""

    name: Markup
    note: str
    chart: Markup


@dataclass(frozen=True)
class Row:
    """One subset in the tables; numbers are NaN where unknown, places are 0 to 1 along a bar."""

    name: Markup
    colour: str
    examples: float
    draws: float
    passes: float
    never_seen: float
    prior: float
    final: float
    target: float
    realised: float
    token_share: float
    train_loss: float
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    share_place: float
    target_place: float
    loss_before_place: float
    loss_after_place: float

    @property
    def loss_change(self) -> float:
        """Held-out loss after minus before."""
        return self.loss_after - self.loss_before


@dataclass(frozen=True)
class Moved:
    """One update in the decision log."""

    step: int
    effective_draw: str
    effective_step: str
    grew: Markup
    shrank: Markup
    seconds: str


@dataclass(frozen=True)
class RunView:
    """Everything that the template of one run needs."""

    run: RunRecord
    anchor: str
    title: Markup
    sentences: list[Markup]
    figures: list[Figure]
    keys: list[Key]
    reward_keys: list[Key]
    rest: str
    rows: list[Row]
    law: Markup
    rewards: Markup
    groups: list[Key]
    locals: list[Card]
    more_locals: list[Card]
    locals_note: str
    losses: list[Card]
    more_losses: list[Card]
    loss_chart: Markup
    moves: list[Moved]


def run_view(run: RunRecord, charts: Charts, anchor: str = "run") -> RunView:
    """Lay out one run.

    Args:
        run: What the run says.
        charts: The page's charts, for ids that are unique on it.
        anchor: Prefix of this run's ids.

    Returns:
        What the template shows.
    """
    slots = colour_slots(run)
    keys = _keys(run, slots, lambda k: _share_note(run, k))
    shown = _card_order(run)
    local_cards = _local_cards(run, charts, shown)
    loss_cards = _loss_cards(run, charts, shown)
    rest = len(run.subsets) - len(keys)
    return RunView(
        run=run,
        anchor=anchor,
        title=title(run),
        sentences=sentences(run),
        figures=_figures(run),
        keys=keys,
        reward_keys=_keys(run, slots, lambda k: _reward_note(run, k)),
        rest=f"{plural(rest, 'more subset')} in grey; see the table" if rest else "",
        rows=_rows(run, slots),
        law=_law_chart(run, charts, slots),
        rewards=_reward_chart(run, charts, slots),
        groups=_group_keys(run.num_groups),
        locals=local_cards[:CARDS],
        more_locals=local_cards[CARDS:],
        locals_note=_left_out(run, bool(local_cards)),
        losses=loss_cards[:CARDS],
        more_losses=loss_cards[CARDS:],
        loss_chart=_loss_chart(run, charts),
        moves=_moves(run),
    )


def colour_slots(run: RunRecord) -> dict[int, int]:
    """Subset index -> colour; the subsets with the largest shares get one where there are many."""
    count_ = len(run.subsets)
    if count_ <= COLOURS:
        return {k: k for k in range(count_)}
    _, shares = run.law
    largest = np.nan_to_num(shares, nan=0.0).max(axis=0)
    chosen = sorted(np.argsort(-largest, kind="stable")[:COLOURS].tolist())
    return {k: slot for slot, k in enumerate(chosen)}


def group_colour(group: int, groups: int) -> str:
    """The CSS variable of a difficulty group: the scale runs from easiest to hardest."""
    return f"--g{round(5 * group / max(groups - 1, 1))}"


# --- key figures and legends ---------------------------------------------------------------------


def _figures(run: RunRecord) -> list[Figure]:
    before, after = run.macro_loss
    accuracy_before, accuracy_after = run.accuracy.macro
    found = [
        Figure("Held-out loss, macro", number(after), f"before: {number(before)}"),
        Figure("Accuracy, macro", percent(accuracy_after, 1), f"before: {percent(accuracy_before, 1)}"),
        Figure("Cost of balancing", percent(run.cost), f"{duration(run.balance_seconds)} of "
               f"{duration(run.wall_seconds)}"),
        Figure("Optimiser steps", count(run.last_step), f"{count(np.nansum(run.draws))} draws"),
        Figure("Updates", count(len(run.updates)), policy_words(run.policy)),
        Figure("Most passes", number(_largest(run.passes), 1), _most_repeated(run)),
    ]  # fmt: skip
    if not math.isfinite(after):
        found[0] = Figure("Train loss", number(_last(run.steps.loss)), "last step logged")
    return [figure for figure in found if figure.value != "–"]


def _most_repeated(run: RunRecord) -> str:
    if not np.isfinite(run.passes).any():
        return ""
    return visible(run.subsets[int(np.nanargmax(run.passes))])


def _largest(values: FloatArray) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else float("nan")


def _last(values: FloatArray) -> float:
    return float(values[-1]) if len(values) else float("nan")


def _keys(run: RunRecord, slots: dict[int, int], note: Callable[[int], str]) -> list[Key]:
    by_final = sorted(slots, key=lambda k: -np.nan_to_num(run.final[k]))
    return [
        Key(slots[k], f"--s{slots[k]}", slots[k] >= 4, bdi(run.subsets[k]), note(k)) for k in by_final
    ]


def _share_note(run: RunRecord, k: int) -> str:
    if not run.moved:
        return percent(run.final[k])
    return f"{percent(run.prior[k])} → {percent(run.final[k])}"


def _reward_note(run: RunRecord, k: int) -> str:
    if not run.updates:
        return ""
    last = run.updates[-1]
    error = f" ± {number(last.errors[k], 2)}" if math.isfinite(last.errors[k]) else ""
    return f"{number(last.rewards[k], 2)}{error}"


def _group_keys(groups: int) -> list[Key]:
    words = {0: "easiest", groups - 1: "hardest"} if groups > 1 else {}
    return [
        Key(g, group_colour(g, groups), False, Markup("group {}").format(g + 1), words.get(g, ""))
        for g in range(groups)
    ]


# --- charts --------------------------------------------------------------------------------------


def _law_chart(run: RunRecord, charts: Charts, slots: dict[int, int]) -> Markup:
    steps, shares = run.law
    if not np.isfinite(shares).any():
        return Markup("")
    order = [k for k in range(len(run.subsets)) if k not in slots] + list(slots)
    lines = [
        Line(
            f"--s{slots[k]}" if k in slots else "--rest",
            steps, shares[:, k],
            title=f"{run.subsets[k]}: {_share_note(run, k)}" if k in slots else "",
            style=DASHED if slots.get(k, 0) >= 4 else "solid",
            steps=True, faint=k not in slots, key=slots.get(k),
        )
        for k in order
    ]  # fmt: skip
    marks = [float(update.step) for update in run.updates]
    text = "Share of draws of each subset over optimiser steps: " + _spoken(run, slots)
    return Markup(charts.both(Panel(lines, run.last_step, True, marks, floor=0.0), text))


def _spoken(run: RunRecord, slots: dict[int, int]) -> str:
    return "; ".join(f"{run.subsets[k]} {_share_note(run, k)}" for k in slots) + "."


def _reward_chart(run: RunRecord, charts: Charts, slots: dict[int, int]) -> Markup:
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
            style=DASHED if slot >= 4 else "solid",
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


def _local_cards(run: RunRecord, charts: Charts, shown: Sequence[int]) -> list[Card]:
    cards = []
    for k in shown:
        moves = [(update, update.local[k]) for update in run.updates if update.local[k] is not None]
        if not moves:
            continue
        local = [item for _, item in moves if item is not None]
        groups = len(local[0].after)
        local = [item for item in local if len(item.after) == groups]
        begun = np.concatenate([[0.0], [update.effective_step for update, _ in moves]])[: len(local) + 1]
        decided = np.array([float(update.step) for update, _ in moves])[: len(local)]
        shares = np.array([local[0].before, *(item.after for item in local)])
        rewards = np.array([item.rewards for item in local])
        errors = np.nan_to_num(np.array([item.errors for item in local]))
        top = Panel(
            [
                Line(group_colour(g, groups), begun, shares[:, g], f"group {g + 1}", steps=True, key=g)
                for g in range(groups)
            ],
            run.last_step, percent=True, level=1 / groups,
        )  # fmt: skip
        panels = [top]
        if np.isfinite(rewards).any():
            panels.append(Panel(
                [
                    Line(group_colour(g, groups), decided, rewards[:, g], f"group {g + 1}",
                         errors=errors[:, g], marker=True, key=g)
                    for g in range(groups)
                ],
                run.last_step,
            ))  # fmt: skip
        ends = ", ".join(f"group {g + 1} {percent(shares[-1, g])}" for g in range(groups))
        text = f"Shares of the difficulty groups of {run.subsets[k]} over steps; at the end: {ends}."
        size = (CARD[0], 120 * len(panels) + 30)
        cards.append(
            Card(bdi(run.subsets[k]), f"{_share_note(run, k)} of draws",
                 Markup(charts.draw(panels, size, text)))
        )  # fmt: skip
    return cards


def _loss_cards(run: RunRecord, charts: Charts, shown: Sequence[int]) -> list[Card]:
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


def _loss_lines(
    run: RunRecord, loss: FloatArray, weights: FloatArray, heldout: Sequence[float]
) -> list[Line]:
    lines = []
    if np.isfinite(loss).any():
        window = max(3, round(len(loss) / 12))
        mean = smooth(loss, weights, window)
        lines.append(Line("--s0", run.steps.step, loss, faint=True))
        lines.append(Line("--s0", run.steps.step, mean, "train, running mean", key=0))
    values = np.array(heldout, dtype=float)
    if np.isfinite(values).any():
        steps = np.array([float(evaluation.step) for evaluation in run.evaluations])
        lines.append(Line("--s1", steps, values, "held-out", style=DASHED, marker=True, key=1))
    return lines


def _loss_chart(run: RunRecord, charts: Charts) -> Markup:
    lines = _loss_lines(
        run, run.steps.loss, np.ones(len(run.steps.loss)),
        [evaluation.macro_loss for evaluation in run.evaluations],
    )  # fmt: skip
    if not lines:
        return Markup("")
    before, after = run.macro_loss
    text = (
        f"Train loss over steps, last {number(_last(run.steps.loss))}; held-out loss averaged over "
        f"subsets, {number(before)} before and {number(after)} after."
    )
    return Markup(charts.both(Panel(lines, run.last_step), text))


# --- rows ----------------------------------------------------------------------------------------


def _card_order(run: RunRecord) -> list[int]:
    order = list(range(len(run.subsets)))
    if len(order) > CARDS:
        order.sort(key=lambda k: -np.nan_to_num(run.draws[k]))
    return order[: CARDS + MORE_CARDS]


def _left_out(run: RunRecord, any_card: bool) -> str:
    left = len(run.subsets) - CARDS - MORE_CARDS
    if left <= 0 or not any_card:
        return ""
    return f"The {plural(left, 'subset')} drawn least have no chart; the table has every subset."


def _rows(run: RunRecord, slots: dict[int, int]) -> list[Row]:
    target = run.target
    most = max(_largest(run.realised), _largest(target), 1e-12)
    losses = np.concatenate([run.loss.before, run.loss.after])
    losses = losses[np.isfinite(losses)]
    low, high = (float(losses.min()), float(losses.max())) if len(losses) else (0.0, 1.0)
    low -= 0.06 * (high - low or 1.0)
    high += 0.06 * (high - low or 1.0)

    def place(value: float) -> float:
        return (value - low) / (high - low) if math.isfinite(value) else float("nan")

    return [
        Row(
            name=bdi(name),
            colour=f"--s{slots[k]}" if k in slots else "--rest",
            examples=float(run.examples[k]),
            draws=float(run.draws[k]),
            passes=float(run.passes[k]),
            never_seen=float(run.never_seen[k]),
            prior=float(run.prior[k]),
            final=float(run.final[k]),
            target=float(target[k]),
            realised=float(run.realised[k]),
            token_share=float(run.token_share[k]),
            train_loss=float(run.train_loss[k]),
            loss_before=float(run.loss.before[k]),
            loss_after=float(run.loss.after[k]),
            accuracy_before=float(run.accuracy.before[k]),
            accuracy_after=float(run.accuracy.after[k]),
            share_place=float(np.nan_to_num(run.realised[k] / most)),
            target_place=float(np.nan_to_num(target[k] / most)),
            loss_before_place=place(float(run.loss.before[k])),
            loss_after_place=place(float(run.loss.after[k])),
        )
        for k, name in enumerate(run.subsets)
    ]


def _moves(run: RunRecord) -> list[Moved]:
    return [
        Moved(
            step=update.step,
            effective_draw=count(update.effective_draw) if update.effective_draw is not None else "–",
            effective_step=number(update.effective_step, 0),
            grew=_mover(run, update.after - update.before, 1),
            shrank=_mover(run, update.after - update.before, -1),
            seconds=duration(update.seconds),
        )
        for update in run.updates
    ]


def _mover(run: RunRecord, change: FloatArray, sign: int) -> Markup:
    if not np.isfinite(change).any():
        return Markup("–")
    k = int(np.nanargmax(sign * change))
    if sign * change[k] <= 0:
        return Markup("–")
    return Markup("{} {}").format(bdi(run.subsets[k]), f"{signed(100 * change[k], 1)} points")
