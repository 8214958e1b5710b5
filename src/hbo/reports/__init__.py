"""What runs did and why: the report page, comparisons, the closing table, recipes for other tools.

Reports know only what stands in run directories: the run log, the summary, the configuration, and
what was measured on held-out examples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hbo.errors import EnvironmentProblem
from hbo.reports.comparison.folder import read_comparison
from hbo.reports.comparison.markdown import markdown
from hbo.reports.comparison.numbers import comparison_numbers
from hbo.reports.export import FORMATS, export_recipe
from hbo.reports.files import write_whole
from hbo.reports.reading import read_run
from hbo.reports.record import RunRecord
from hbo.reports.terminal import closing_table

__all__ = [
    "FORMATS",
    "RunRecord",
    "closing_table",
    "compare_folder",
    "export_recipe",
    "read_run",
    "write_comparison",
    "write_report",
]


def write_report(
    run_dirs: Sequence[Path | str] | Path | str, output: Path | str | None = None
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        run_dirs: One run directory, or several.
        output: The file. Unset, it is ``report.html`` in the run directory, or beside the run
            directories where there are several.

    Returns:
        The path of the page.

    Raises:
        ConfigError: No run directory is given.
        DataError: A directory holds no run, or a damaged one.
        EnvironmentProblem: The page cannot be written, or the libraries of the extra ``report``
            are not installed.
    """
    try:
        from hbo.reports import page
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"the report needs {error.name}, which is not installed; pip install 'hbo[report]'"
        ) from None
    return page.write_page(run_dirs, output)


def compare_folder(folder: str | Path) -> dict[str, Any]:
    """The numbers of a comparison, finished or not: what ``comparison.json`` holds (docs/cli.md).

    Args:
        folder: What ``hbo compare`` writes into, with ``runs.json``.

    Raises:
        DataError: There is no comparison, it is damaged, or its runs were tested on other examples.
    """
    return comparison_numbers(read_comparison(folder))


def write_comparison(folder: str | Path) -> Path:
    """Write ``comparison.json``, ``comparison.md`` and ``comparison.html`` into a comparison.

    The first two need no library of the extra ``report``, and are there before the third is tried.

    Args:
        folder: What ``hbo compare`` writes into, with ``runs.json``; runs may be unfinished.

    Returns:
        The path of the page.

    Raises:
        DataError: There is no comparison, it is damaged, or its runs were tested on other examples.
        EnvironmentProblem: The files cannot be written, or the libraries of the extra ``report``
            are not installed.
    """
    found = read_comparison(folder)
    numbers = comparison_numbers(found)
    path = Path(folder) / "comparison.html"
    remedy = "make room, or make the folder writable"
    text = json.dumps(numbers, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    write_whole(path.with_suffix(".json"), text, remedy)
    write_whole(path.with_suffix(".md"), markdown(numbers), remedy)
    try:
        from hbo.reports.comparison import page
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"the page needs {error.name}, which is not installed; pip install 'hbo[report]'"
        ) from None
    write_whole(path, page.render_comparison(found, numbers), remedy)
    return path
