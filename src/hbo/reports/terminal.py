"""The short table that ends ``hbo train``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

from hbo.reports.text import count, duration, number, percent, visible

WIDTH = 100


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
    console.print(_table(summary, prior or {}))
    console.print(Text(_cost_line(summary), style="dim" if color else ""))
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()) + "\n"


def _table(summary: Mapping[str, Any], prior: Mapping[str, float]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    subsets: Mapping[str, Mapping[str, Any]] = summary.get("subsets") or {}
    graded = any(s.get("holdout_accuracy_after") is not None for s in subsets.values())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_footer=True)
    macro_loss = (summary.get("macro_holdout_loss_before"), summary.get("macro_holdout_loss_after"))
    table.add_column("subset", footer="macro", overflow="ellipsis", no_wrap=True, ratio=None)
    for header, footer in (
        ("rows", ""),
        ("draws", count(_float(summary.get("draws")))),
        ("passes", ""),
        ("share\nprior → final" if prior else "final\nshare", ""),
        ("train\nloss", ""),
        ("held-out loss\nbefore → after", _loss_pair(*macro_loss)),
        *((("accuracy\nbefore → after", _accuracy_footer(subsets)),) if graded else ()),
    ):
        table.add_column(header, footer=footer, justify="right", no_wrap=True)
    for name, values in subsets.items():
        before, after = values.get("holdout_loss_before"), values.get("holdout_loss_after")
        cells: list[str | Text] = [
            Text(visible(name)),
            count(_float(values.get("examples"))),
            count(_float(values.get("draws"))),
            number(_float(values.get("passes")), 2),
            _share(summary, prior, name),
            number(_float(values.get("train_loss"))),
            Text(_loss_pair(before, after), style=_tone(before, after)),
        ]
        if graded:
            cells.append(
                _accuracy_pair(
                    values.get("holdout_accuracy_before"), values.get("holdout_accuracy_after")
                )
            )
        table.add_row(*cells)
    return table


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


def _accuracy_footer(subsets: Mapping[str, Mapping[str, Any]]) -> str:
    keys = ("holdout_accuracy_before", "holdout_accuracy_after")
    pairs = [[values.get(key) for key in keys] for values in subsets.values()]
    known = [pair for pair in pairs if None not in pair]
    if not known:
        return "–"
    before, after = (math.fsum(column) / len(known) for column in zip(*known, strict=True))
    return _accuracy_pair(before, after)


def _tone(before: Any, after: Any) -> str:
    if before is None or after is None or before == after:
        return ""
    return "green" if after < before else "yellow"


def _cost_line(summary: Mapping[str, Any]) -> str:
    wall, ours = _float(summary.get("wall_seconds")), _float(summary.get("balance_seconds"))
    steps = count(_float(summary.get("steps")))
    parts = [f"{visible(str(summary.get('policy', '?')))}, {steps} steps in {duration(wall)}"]
    if wall > 0 and math.isfinite(ours):
        parts.append(f"balancing took {percent(ours / wall)} of it ({duration(ours)})")
    return "; ".join(parts)


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
