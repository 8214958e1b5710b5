"""``hbo report`` and ``hbo export``: what a run did, as a page and as a recipe for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hbo.cli.options import RunFolder
from hbo.cli.output import quiet_libraries

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs.")]
Page = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where the page is written.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME",
        help="trl, llamafactory, axolotl, schedule or mixture; repeatable; all by default.",
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Write files there; else print them."),
]


def report(runs: Runs, output: Page = None) -> None:
    """Write the report page of one run, or of several side by side, and print its path."""
    from hbo.reports import write_report

    with quiet_libraries(stdout=True):
        path = write_report(runs, output)
    print(path)


def export(run: RunFolder, format_: Formats = None, output: Folder = None) -> None:
    """Write the learned mixture as a static recipe for other tools, and as a schedule to replay."""
    from hbo.reports import export_recipe

    with quiet_libraries(stdout=True):
        files = export_recipe(run, format_ or None, output)
    for name, text in files.items():
        if output is not None:
            print(output / name)
        else:
            print(text if len(files) == 1 else f"# --- {name}\n{text}", end="")
