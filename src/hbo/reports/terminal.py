"""The short table that ends ``hbo train``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.reports.record import Heldout
from hbo.reports.text import count, duration, number, percent, plural, visible

WIDTH, NAME_WIDTH, GAP = 100, 20, 3


def closing_table(
    summary: Mapping[str, Any],
    prior: Mapping[str, float] | None = None,
    *,
    width: int = WIDTH,
    color: bool = False,
) -> str:
    """What a run came to, one line a subset.

    Args:
        summary: As in ``summary.json``.
        prior: Subset -> share of draws before any update; unset, only the final share is shown.
        width: Columns of the terminal.
        color: Whether to mark better and worse by colour (escape codes).

    Returns:
        Text of several lines, ending in a newline.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False,
        color_system="standard" if color else None, legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(_table(summary, prior or {}, width))
    console.print(Text(_cost_line(summary), style="dim" if color else ""))
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()) + "\n"


@dataclass(frozen=True)
class _Column:
    """A column of numbers: two lines of header, a foot, a cell for each subset."""

    header: tuple[str, str]
    cells: list[str]
    foot: str = ""
    tones: list[str] | None = None

    @property
    def width(self) -> int:
        return max(len(text) for text in (*self.header, *self.cells, self.foot)) + GAP


def _table(summary: Mapping[str, Any], prior: Mapping[str, float], width: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    subsets: Mapping[str, Mapping[str, Any]] = summary.get("subsets") or {}
    columns = _columns(summary, subsets, prior)
    # Numbers are never cut: on a narrow terminal columns give way, then names.
    for spare in ("rows", "train"):
        if width - sum(column.width for column in columns) < NAME_WIDTH:
            columns = [column for column in columns if spare not in column.header]
    room = max(width - sum(column.width for column in columns) - 2, 8)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_footer=True)
    table.add_column("\nsubset", footer="macro", overflow="ellipsis", no_wrap=True, max_width=room)
    for column in columns:
        header = "\n".join(column.header)
        table.add_column(
            header, footer=column.foot, justify="right", no_wrap=True, min_width=column.width - GAP
        )
    for row, name in enumerate(subsets):
        cells = [
            Text(column.cells[row], style=column.tones[row] if column.tones else "")
            for column in columns
        ]
        table.add_row(Text(visible(name)), *cells)
    return table


def _columns(
    summary: Mapping[str, Any],
    subsets: Mapping[str, Mapping[str, Any]],
    prior: Mapping[str, float],
) -> list[_Column]:
    def numbers(key: str) -> list[float]:
        return [_float(values.get(key)) for values in subsets.values()]

    def pairs(key: str) -> list[tuple[Any, Any]]:
        return [(s.get(f"{key}_before"), s.get(f"{key}_after")) for s in subsets.values()]

    losses, graded = pairs("holdout_loss"), pairs("holdout_accuracy")
    macro = (summary.get("macro_holdout_loss_before"), summary.get("macro_holdout_loss_after"))
    columns = [
        _Column(("", "rows"), [count(value) for value in numbers("examples")]),
        _Column(
            ("", "draws"),
            [count(value) for value in numbers("draws")],
            count(_float(summary.get("draws"))),
        ),
        _Column(("", "passes"), [number(value, 2) for value in numbers("passes")]),
        _Column(
            ("share", "prior → final" if prior else "final"),
            [_share(summary, prior, name) for name in subsets],
        ),
        _Column(("train", "loss"), [number(value) for value in numbers("train_loss")]),
        _Column(
            ("held-out", "loss"),
            [_loss_pair(*pair) for pair in losses],
            _loss_pair(*macro),
            [_tone(*pair) for pair in losses],
        ),
    ]
    if any(after is not None for _, after in graded):
        cells = [_accuracy_pair(*pair) for pair in graded]
        columns.append(_Column(("held-out", "accuracy"), cells, _accuracy_footer(graded)))
    return columns


def _share(summary: Mapping[str, Any], prior: Mapping[str, float], name: str) -> str:
    groups = (summary.get("probabilities") or {}).get(name)
    final = percent(math.fsum(groups)) if groups else "–"
    return f"{percent(prior[name])} → {final}" if name in prior else final


def _loss_pair(before: Any, after: Any) -> str:
    if before is None and after is None:
        return "–"
    return f"{number(_float(before))} → {number(_float(after))}"


def _accuracy_pair(before: Any, after: Any) -> str:
    if before is None and after is None:
        return "–"
    return f"{percent(_float(before), 0)} → {percent(_float(after), 0)}"


def _accuracy_footer(graded: Sequence[tuple[Any, Any]]) -> str:
    values = np.array([[_float(value) for value in pair] for pair in graded])
    return _accuracy_pair(*Heldout(values[:, 0], values[:, 1]).macro)


def _tone(before: Any, after: Any) -> str:
    if before is None or after is None or before == after:
        return ""
    return "green" if after < before else "yellow"


def _cost_line(summary: Mapping[str, Any]) -> str:
    wall, ours = _float(summary.get("wall_seconds")), _float(summary.get("balance_seconds"))
    steps = _float(summary.get("steps"))
    said = plural(int(steps), "step") if math.isfinite(steps) else "– steps"
    parts = [f"{visible(str(summary.get('policy', '?')))}, {said} in {duration(wall)}"]
    if wall > 0 and math.isfinite(ours):
        parts.append(f"balancing took {percent(ours / wall)} of it ({duration(ours)})")
    return "; ".join(parts)


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
