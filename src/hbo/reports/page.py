"""The report: one HTML file that loads nothing and runs no script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hbo.errors import ConfigError
from hbo.reports import text
from hbo.reports.charts import Charts
from hbo.reports.compare import comparison
from hbo.reports.files import write_whole
from hbo.reports.reading import read_run
from hbo.reports.record import RunRecord
from hbo.reports.view import run_view
from hbo.reports.words import bdi

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
    write_whole(path, page, "name another file with --output")
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
    template = environment().get_template("page.html")
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


@cache
def environment() -> Environment:
    """The templates, with the numbers and names of ``hbo.reports.text`` as filters."""
    environment = Environment(
        loader=PackageLoader("hbo.reports", "templates"),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in ("visible", "number", "signed", "percent", "count", "duration", "plural"):
        environment.filters[name] = getattr(text, name)
    environment.filters.update(lines_visible=_lines_visible, bdi=bdi)
    return environment


def _lines_visible(value: str) -> str:
    return "\n".join(text.visible(line) for line in value.splitlines())


def _beside(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
