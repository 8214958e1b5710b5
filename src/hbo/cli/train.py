"""``hbo train``: plan, score, fine-tune, evaluate, report."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from hbo.cli.options import ConfigFile, Overrides
from hbo.cli.output import quiet_libraries

_RESUME = "nothing was lost; run again with --resume"


def train(
    config: ConfigFile,
    set_: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in output_dir, or start it if there is none."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in output_dir.")
    ] = False,
) -> None:
    """Plan, score, fine-tune, evaluate and report."""
    from hbo.config import load_config
    from hbo.reports import closing_table
    from hbo.run.progress import hidden_bars
    from hbo.run.stop import listening
    from hbo.run.train import train_run
    from hbo.run.world import is_main, process_group

    loaded = load_config(config, set_ or ())
    with (
        listening(_RESUME) as stop,
        quiet_libraries(stdout=not is_main()),
        hidden_bars(),
        process_group(),
    ):
        outcome = train_run(loaded, resume=resume, overwrite=overwrite, stop=stop)
        if is_main():
            terminal = sys.stdout.isatty()
            width = shutil.get_terminal_size((120, 24)).columns
            table = closing_table(outcome.summary, outcome.prior, width=width, color=terminal)
            print(table, end="")
            print(f"report: {Path(loaded.config.output_dir) / 'report.html'}")
