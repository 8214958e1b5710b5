"""The report: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hbo.errors import ConfigError, EnvironmentProblem
from hbo.reports import text
from hbo.reports.charts import Charts
from hbo.reports.compare import comparison
from hbo.reports.reading import read_run
from hbo.reports.record import RunRecord
from hbo.reports.view import run_view

FULL_RUNS = 8


def write_page(
    run_dirs: Sequence[Path | str] | Path | str, output: Path | str | None = None
) -> Path:
    """What ``hbo.reports.write_report`` does; its arguments are explained there."""
    folders = [Path(run_dirs)] if isinstance(run_dirs, str | Path) else [Path(d) for d in run_dirs]
    if not folders:
        raise ConfigError("no run to report on; name at least one run directory")
    page = render_page([read_run(folder) for folder in folders])
    path = Path(output) if output is not None else _beside(folders) / "report.html"
    _write_whole(path, page)
    return path


def render_page(runs: Sequence[RunRecord]) -> str:
    """The page's HTML.

    Args:
        runs: At least one.

    Returns:
        A whole document.
    """
    charts = Charts()
    views = [run_view(run, charts, f"run-{index}") for index, run in enumerate(runs[:FULL_RUNS])]
    template = _environment().get_template("page.html")
    if len(runs) == 1:
        view = views[0]
        return template.render(
            heading=view.title, sentences=view.sentences, figures=view.figures, views=views,
            compared=None,
        )  # fmt: skip
    compared = comparison(runs, charts)
    return template.render(
        heading=compared.title, sentences=compared.sentences, figures=[], views=views,
        compared=compared,
    )  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hbo.reports", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in ("visible", "number", "signed", "percent", "count", "plural"):
        environment.filters[name] = getattr(text, name)
    environment.filters["lines_visible"] = _lines_visible
    return environment


def _lines_visible(value: str) -> str:
    return "\n".join(text.visible(line) for line in value.splitlines())


def _beside(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def _write_whole(path: Path, page: str) -> None:
    """All of it or nothing: a page half written would hide the one before."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".html")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the report: {error.strerror or error}; name another file with --output",
            where=str(path),
        ) from None
