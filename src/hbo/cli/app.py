"""The list of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from hbo.cli import assets, compare, doctor, evaluate, plan, results, score, simulate, train


def _show_version(wanted: bool) -> None:
    if wanted:
        import hbo

        print(f"hbo {hbo.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; works after a command too."),
    ] = False,
) -> None:
    """Fine-tune a language model on a mixture of datasets that balances itself.

    Start with `hbo plan CONFIG`, then `hbo train CONFIG`.
    """


app = typer.Typer(
    name="hbo",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    callback=_options,
)
app.command("plan")(plan.plan)
app.command("score")(score.score)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(results.report)
app.command("export")(results.export)
app.command("simulate")(simulate.simulate)
app.command("doctor")(doctor.doctor)
app.add_typer(assets.app, name="assets")
