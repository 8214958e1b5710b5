"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hbo.run.plan import Plan


def printable(text: object) -> str:
    """A name as it can be shown: markup escaped, control characters and directions taken out."""
    from rich.markup import escape

    return escape("".join(letter if letter.isprintable() else "?" for letter in str(text)))


def number(value: Any, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _table(first: str, *rest: str, title: str | None = None) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column(first, overflow="fold")
    for name in rest:
        table.add_column(name, justify="right")
    return table


def print_plan(plan: Plan, screen: Console) -> None:
    """What each subset and group would get, notices and warnings."""
    values = plan.to_json()
    title = (
        f"{printable(values['policy'])} on {printable(values['model'])}: {values['steps']} steps of"
        f" {values['draws_per_step']} examples"
    )
    columns = ("rows", "tokens", "probability", "expected draws", "expected passes")
    table = _table("subset / group", *columns, title=title)
    for name, subset in values["subsets"].items():
        table.add_row(printable(name), *_cells(subset), style="bold")
        for g, group in enumerate(subset["groups"]):
            if group["rows"]:
                table.add_row(f"  group {g}", *_cells(group))
    screen.print(table)
    lines = [*_plan_lines(values), *(f"warning: {printable(text)}" for text in plan.warning_lines)]
    for line in lines:
        screen.print(line, soft_wrap=True)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["rows"]),
        str(row["tokens"]),
        f"{row['probability']:.4f}",
        f"{row['expected_draws']:.1f}",
        f"{row['expected_passes']:.2f}",
    ]


def _plan_lines(values: Mapping[str, Any]) -> list[str]:
    subsets = values["subsets"].values()
    counts = {
        key: sum(subset[key] for subset in subsets)
        for key in ("validation", "test", "skipped", "dropped", "truncated")
    }
    cost = values["cost"]
    groups = "from scores" if values["scored"] else "not scored yet: equal parts stand in"
    lines = [
        f"groups: {groups}; scoring needs {cost['scoring_passes']} forward passes",
        "held out: {validation} validation, {test} test; {skipped} bad records skipped, {dropped}"
        " dropped, {truncated} truncated".format(**counts),
        f"signals: {cost['updates']} updates, lag {values['lag']} steps; observed"
        f" {', '.join(cost['observed']) or 'none'}{_measured(cost)}; probed"
        f" {', '.join(cost['probed']) or 'none'}; about {cost['forward_passes']} forward and"
        f" {cost['backward_passes']} backward passes of probes,"
        f" {100 * cost['share']:.1f} % of the work of training",
    ]
    lines += [f"notice: {printable(text)}" for text in values["notices"]]
    return lines


def _measured(cost: Mapping[str, Any]) -> str:
    every = cost["measure_every"]
    return f" (norms of one step in {every})" if every and every > 1 else ""


def print_scores(result: Mapping[str, Any], screen: Console) -> None:
    """Difficulty per subset, by quantiles."""
    table = _table(
        "subset", "examples", "easiest", "median", "hardest", "unknown", title=result["metric"]
    )
    for name, row in result["subsets"].items():
        quantiles = [number(row[key]) for key in ("min", "median", "max")]
        table.add_row(printable(name), str(row["examples"]), *quantiles, str(row["unknown"]))
    screen.print(table)


def print_evaluation(result: Mapping[str, Any], screen: Console) -> None:
    """Held-out results of one model."""
    table = _table("subset", "examples", "loss", "perplexity", "accuracy", "graded by")
    for name, row in result["subsets"].items():
        values = [number(row[key]) for key in ("loss", "perplexity", "accuracy")]
        table.add_row(printable(name), str(row["examples"]), *values, row["grading"] or "-")
    macro = result["macro"]
    values = [number(macro[key]) for key in ("loss", "perplexity", "accuracy")]
    table.add_row("mean over subsets", "", *values, "", style="bold")
    screen.print(table)
