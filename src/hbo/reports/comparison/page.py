"""The page of a comparison: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

from hbo.reports.charts import Charts
from hbo.reports.comparison.folder import ComparisonFolder
from hbo.reports.comparison.tables import (
    accuracy_table,
    how_text,
    loss_table,
    policy_rows,
    seeds_text,
    settings_text,
    share_table,
)
from hbo.reports.comparison.view import forest, share_cards, share_keys, share_rest
from hbo.reports.comparison.words import Numbers, sentences
from hbo.reports.page import environment
from hbo.reports.text import plural
from hbo.reports.words import isolated


def render_comparison(found: ComparisonFolder, numbers: Numbers) -> str:
    """The page's HTML.

    Args:
        found: What the folder holds, for the courses of the shares.
        numbers: The content of ``comparison.json``.

    Returns:
        A whole document.
    """
    some, names = bool(numbers["policies"]), _names(found, numbers)
    return (
        environment()
        .get_template("comparison.html")
        .render(
            heading=_title(numbers),
            sentences=[isolated(text, names) for text in sentences(numbers)],
            warnings=[isolated(text, names) for text in numbers["warnings"]],
            figures=[],
            numbers=numbers,
            settings_text=settings_text,
            seeds_text=seeds_text,
            rows_of_policies=policy_rows(numbers) if some else [],
            how=how_text(numbers),
            forest=forest(numbers) if some else None,
            losses=loss_table(numbers) if some else [],
            accuracies=accuracy_table(numbers) if some else [],
            shares=share_table(numbers) if some else [],
            cards=share_cards(found, numbers, Charts()) if some else [],
            keys=share_keys(found),
            rest=share_rest(found),
        )
    )


def _names(found: ComparisonFolder, numbers: Numbers) -> set[str]:
    """What sentences may name."""
    settings = {setting["name"] for rows in numbers["choices"].values() for setting in rows}
    policies = {run["policy"] for run in numbers["missing"]} | {numbers["against"]}
    return {*numbers["policies"], *policies, *numbers["choices"], *settings, *found.subsets}


def _title(numbers: Numbers) -> str:
    count = len(numbers["policies"])
    policies = "1 policy" if count == 1 else f"{count} policies"
    return f"{policies} compared over {plural(len(numbers['seeds']), 'seed')}"
