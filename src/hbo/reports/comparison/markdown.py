"""A comparison as GitHub Markdown, to be pasted where results are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hbo.reports.comparison.tables import (
    SubsetNumbers,
    accuracy_table,
    how_text,
    loss_table,
    policy_rows,
    seeds_text,
    settings_text,
    share_table,
)
from hbo.reports.comparison.words import Numbers, sentences
from hbo.reports.text import duration, number, visible

_MARKS = re.compile(r"^[#>]|[\\|`*]|<(?=\S)|(?<!\w)_|_(?!\w)|~|\](?=[(\[:])")
"""What would be markup: a bracket only where it could close a link, `_` only at a word's edge."""


def markdown(numbers: Numbers) -> str:
    """All tables of a comparison.

    Args:
        numbers: The content of ``comparison.json``.

    Returns:
        Markdown with headings of the third level.
    """
    parts = [*[plain(text) for text in sentences(numbers)], _warnings(numbers)]
    if numbers["policies"]:
        parts += [_policies(numbers), plain(how_text(numbers))]
        parts += _subsets(numbers, "Held-out loss by subset", loss_table(numbers), before=True)
        parts += _subsets(numbers, "Accuracy by subset", accuracy_table(numbers), before=True)
        parts += _subsets(numbers, "Share of draws by subset", share_table(numbers), before=False)
    parts += [*_choices(numbers), *_equal_time(numbers)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    r"""Text that Markdown and a table's cells take as it is.

    Example:
        >>> plain("a|b *c* <d> [e](f) g_h, p < 0.05 [1, 2]")
        'a\\|b \\*c\\* \\<d> [e\\](f) g_h, p < 0.05 [1, 2]'
    """
    return _MARKS.sub(r"\\\g<0>", visible(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bold(text: str, bold: bool) -> str:
    return f"**{plain(text)}**" if bold else plain(text)


def _warnings(numbers: Numbers) -> str:
    return "\n".join(f"- {plain(text)}" for text in numbers["warnings"])


def _policies(numbers: Numbers) -> str:
    head = ["policy", "macro loss", f"difference to {plain(numbers['against'])}", "p",
            "worst subset, loss", "macro accuracy", "balancing", "tokens", "passes"]  # fmt: skip
    rows = [
        [
            plain(row.name) + (f" ({plain(row.note)})" if row.note else ""),
            _bold(row.loss, row.best_loss),
            _bold(row.difference, row.beyond_noise),
            plain(row.p),
            f"{plain(row.worst)} {plain(row.worst_name)}",
            _bold(row.accuracy, row.best_accuracy),
            row.balancing,
            row.tokens,
            row.passes,
        ]
        for row in policy_rows(numbers)
    ]
    return table(head, rows)


def _subsets(
    numbers: Numbers, title: str, rows: Sequence[SubsetNumbers], *, before: bool
) -> list[str]:
    if not rows:
        return []
    untouched = before and numbers["before"] is not None
    names = [plain(row.name) for row in policy_rows(numbers)]
    head = ["subset", *(["untouched"] if untouched else []), *names]
    lines = [
        [
            plain(row.name),
            *([row.before] if untouched else []),
            *(_bold(cell.text, cell.best) for cell in row.numbers),
        ]
        for row in rows
    ]
    return [f"### {title}", table(head, lines)]


def _choices(numbers: Numbers) -> list[str]:
    if not numbers["choices"]:
        return []
    rows = [
        [
            plain(label),
            plain(setting["name"]),
            plain(settings_text(setting["settings"], setting["set"])),
            _bold(number(setting["validation_loss"]), setting["chosen"]),
            seeds_text(numbers, setting["seeds"]),
        ]
        for label, settings in numbers["choices"].items()
        for setting in settings
    ]
    head = ["policy", "setting", "values", "validation macro loss", "seeds"]
    return ["### Settings, chosen on validation examples", table(head, rows)]


def _equal_time(numbers: Numbers) -> list[str]:
    view = numbers["equal_time"]
    if not numbers["policies"]:
        return []
    title = "### At equal training time"
    if view["seconds"] is None:
        return [title, plain(view["note"])]
    ordered = sorted(view["policies"].items(), key=lambda item: item[1]["loss"])
    rows = [
        [
            plain(name),
            plain(f"{number(row['loss'])} [{number(row['low'])}, {number(row['high'])}]"),
            number(row["step"], 0),
            number(row["end_loss"]),
        ]
        for name, row in ordered
    ]
    head = [f"policy, after {duration(view['seconds'])}", "validation macro loss [seeds]",
            "step", "at its own end"]  # fmt: skip
    return [title, table(head, rows)]
