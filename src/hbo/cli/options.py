"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", readable=False, help="A configuration file, .yaml or .json."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help='Change a key: training.max_steps=100 or datasets."a.b".weight=0.2; repeatable.',
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's output_dir.")]
