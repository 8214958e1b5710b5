"""One run as the page shows it: figures, legend, charts and rows, ready for the template."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hbo.reports.charts import Charts
from hbo.reports.plots import (
    Card,
    group_colour,
    law_chart,
    local_cards,
    loss_cards,
    loss_chart,
    reward_chart,
    share_note,
)
from hbo.reports.record import FloatArray, RunRecord
from hbo.reports.text import count, duration, number, percent, plural, signed, visible
from hbo.reports.words import bdi, policy_words, sentences, title

COLOURS = 8
CARDS, MORE_CARDS = 12, 12
ROWS, FOLDED_ROWS = 20, 12  # a longer table is folded to its first rows


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
class Row:
    """One subset in the tables; numbers are NaN where unknown, places are 0 to 1 along a bar."""

    name: Markup
    colour: str
    examples: float
    heldout_examples: float
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
    shown_rows: int
    evaluated: bool
    counted: bool
    errors: bool
    law: Markup
    rewards: Markup
    groups: list[Key]
    locals: list[Card]
    more_locals: list[Card]
    locals_note: str
    losses: list[Card]
    more_losses: list[Card]
    loss_chart: Markup
    late: str
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
    keys = _keys(run, slots, lambda k: share_note(run, k))
    shown = _by_draws(run)[: CARDS + MORE_CARDS]
    rows = _rows(run, slots)
    inside = local_cards(run, charts, shown)
    losses = loss_cards(run, charts, shown)
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
        rows=[rows[k] for k in _by_draws(run)],
        shown_rows=len(rows) if len(rows) <= ROWS else FOLDED_ROWS,
        counted=bool(np.isfinite(run.heldout_examples).any()),
        errors=any(np.isfinite(update.errors).any() for update in run.updates),
        evaluated=bool(np.isfinite(run.loss.after).any() or np.isfinite(run.accuracy.after).any()),
        law=law_chart(run, charts, slots) if run.moved else Markup(""),
        rewards=reward_chart(run, charts, slots),
        groups=_group_keys(run.num_groups),
        locals=inside[:CARDS],
        more_locals=inside[CARDS:],
        locals_note=_left_out(run, bool(inside)),
        losses=losses[:CARDS],
        more_losses=losses[CARDS:],
        loss_chart=loss_chart(run, charts),
        late=plural(run.unused_updates, "update") + " came" if run.unused_updates else "",
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


# --- key figures and legends ---------------------------------------------------------------------


def _figures(run: RunRecord) -> list[Figure]:
    before, after = run.macro_loss
    graded_before, graded_after = run.accuracy.macro
    found = [
        Figure("Held-out loss, macro", number(after), f"before: {number(before)}"),
        Figure("Accuracy, macro", percent(graded_after, 1), f"before: {percent(graded_before, 1)}"),
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
        Key(slots[k], f"--s{slots[k]}", slots[k] >= 4, bdi(run.subsets[k]), note(k))
        for k in by_final
    ]


def _reward_note(run: RunRecord, k: int) -> str:
    if not run.updates:
        return ""
    last = run.updates[-1]
    error = f" ± {number(last.errors[k], 2)}" if math.isfinite(last.errors[k]) else ""
    return f"{number(last.rewards[k], 2)}{error}"


def _group_keys(groups: int) -> list[Key]:
    words = {0: "easiest", groups - 1: "hardest"} if groups > 1 else {}
    return [
        Key(g, group_colour(g, groups), False, Markup("group {}").format(g), words.get(g, ""))
        for g in range(groups)
    ]


# --- rows ----------------------------------------------------------------------------------------


def _by_draws(run: RunRecord) -> list[int]:
    """The configuration's order; where there are many subsets, those drawn most come first."""
    order = list(range(len(run.subsets)))
    if len(order) > CARDS:
        order.sort(key=lambda k: -np.nan_to_num(run.draws[k]))
    return order


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
            heldout_examples=float(run.heldout_examples[k]),
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
            effective_draw=count(update.effective_draw)
            if update.effective_draw is not None
            else "–",
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
