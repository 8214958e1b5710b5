"""What a run did and why: the report page, the closing table, and recipes for other tools.

Reports know only what stands in a run directory: the run log, the summary, the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hbo.errors import EnvironmentProblem
from hbo.reports.export import FORMATS, export_recipe
from hbo.reports.reading import read_run
from hbo.reports.record import RunRecord
from hbo.reports.terminal import closing_table

__all__ = ["FORMATS", "RunRecord", "closing_table", "export_recipe", "read_run", "write_report"]


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
