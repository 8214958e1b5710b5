"""``hbo compare``: policies x seeds from one configuration, then the page of results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbo.cli.options import AsJson, ConfigFile, Overrides
from hbo.cli.output import console, print_json, quiet_libraries, tell

if TYPE_CHECKING:
    from rich.table import Table

    from hbo.config import LoadedConfig
    from hbo.run.comparison import Comparison
    from hbo.run.estimate import Row
    from hbo.run.fleet import Fleet

MOST_SEEDS = 1000


def compare(
    config: ConfigFile,
    set_: Overrides = None,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Entries of `policies:`, or policies. Default: the whole block."
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N", help="So many from `seed` upwards; or a list: 1,2,5.")
    ] = "3",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the others are compared with. Default: of policy prop."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Runs at the same time. Default: one for each GPU."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Check every entry and show the cost; train nothing.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="With --plan: a finished run to estimate time from."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin all these runs anew.")
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the weights of the runs that finish now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train every policy with every seed, and compare them. Run again to go on."""
    from hbo.config import load_config
    from hbo.errors import ConfigError
    from hbo.run.estimate import cost_of
    from hbo.run.world import world_size

    if world_size() > 1:
        raise ConfigError("hbo compare starts its runs itself; call it without a launcher")
    loaded = load_config(config, set_ or ())
    names = None if policies is None else _names(policies)
    numbers = _seeds(seeds, loaded.config.seed)
    comparison, places = _checked(loaded, names, numbers, against, jobs, overwrite)
    if not plan:
        _run(comparison, places, overwrite=overwrite, keep_models=keep_models, as_json=as_json)
        return
    cost = cost_of(comparison, len(places), like, anew=overwrite)
    if as_json:
        print_json(cost)
    else:
        _print_cost(cost, loaded)


def _checked(
    loaded: LoadedConfig,
    names: Sequence[str] | None,
    seeds: Sequence[int],
    against: str | None,
    jobs: int | None,
    overwrite: bool,
) -> tuple[Comparison, list[dict[str, str]]]:
    """The runs, and the places where they can be at the same time."""
    from hbo.run.comparison import plan_comparison
    from hbo.run.fleet import slots

    progress = tell if sys.stderr.isatty() else None
    with quiet_libraries(stdout=True):
        comparison = plan_comparison(
            loaded, names, seeds, against, overwrite=overwrite, progress=progress
        )
        return comparison, slots(jobs, on_cpu=bool(loaded.config.training.get("use_cpu")))


def _names(text: str) -> list[str]:
    from hbo.errors import ConfigError

    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(
            f"{text!r} holds an empty name; write names with commas between", where="--policies"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice!r} is given twice; keep one", where="--policies")
    return names


def _seeds(text: str, first: int) -> list[int]:
    """N seeds from ``first`` upwards, or the seeds of a list."""
    from hbo.errors import ConfigError

    words = [word.strip() for word in text.split(",")]
    listed = len(words) > 1
    words = [word for word in words if word]
    good = bool(words) and all(word.isascii() and word.isdigit() for word in words)
    numbers = [int(word[:20]) for word in words] if good else []
    if numbers and not listed and numbers[0] <= MOST_SEEDS:
        numbers = list(range(first, first + numbers[0]))
    elif not listed:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or max(numbers) >= 2**32:
        raise ConfigError(
            f"{text[:80]!r} are no seeds; allowed: how many (1 to {MOST_SEEDS}), or a list of "
            "different whole numbers below 2^32, such as 1,2,5 or 5,",
            where="--seeds",
        )
    return numbers


def _run(
    comparison: Comparison,
    places: Sequence[Mapping[str, str]],
    *,
    overwrite: bool,
    keep_models: bool,
    as_json: bool,
) -> None:
    from hbo.errors import HBOError
    from hbo.run.compare import run_comparison, start_anew
    from hbo.run.progress import say
    from hbo.run.resume import alone_in
    from hbo.run.stop import listening

    with listening("run again to go on") as stop, alone_in(comparison.folder):
        if overwrite:
            start_anew(comparison)
        with _shown(comparison, tell if as_json else say) as (told, watch):
            try:
                run_comparison(
                    comparison, places, stop, tell=told, watch=watch, keep_models=keep_models
                )
            except HBOError:  # what there is of it; the error says what is lacking
                _print_results(comparison, as_json)
                raise
    _print_results(comparison, as_json)


def _print_results(comparison: Comparison, as_json: bool) -> None:
    from hbo.run.comparison import PAGES

    data, words, page = (comparison.folder / name for name in PAGES)
    if not page.exists():
        return
    if as_json:
        print(data.read_text(encoding="utf-8"), end="")
    else:
        print(words.read_text(encoding="utf-8"), end="")
        print(f"comparison: {page}")


@contextmanager
def _shown(
    comparison: Comparison, plain: Callable[[str], None]
) -> Iterator[tuple[Callable[[str], None], Callable[[Fleet], None]]]:
    """Where lines go, and what watches the runs: a table at a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield plain, lambda fleet: None
        return
    from rich.console import Console
    from rich.live import Live

    from hbo.run.estimate import Board
    from hbo.run.progress import printable

    screen, board, shown = Console(stderr=True, highlight=False), Board(comparison), -1.0
    watched: list[Fleet] = []
    with Live(console=screen, auto_refresh=False) as live:

        def watch(fleet: Fleet) -> None:
            nonlocal shown
            watched[:] = [fleet]
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                live.update(_table(board.rows(fleet)), refresh=True)

        def told(line: str) -> None:
            screen.print(printable(line), markup=False, soft_wrap=True)

        try:
            yield told, watch
        finally:
            for fleet in watched:  # as it ended
                live.update(_table(board.rows(fleet)), refresh=True)


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    from hbo.run.tables import number, printable

    table = Table()
    table.add_column("entry", overflow="fold")
    for name in ("runs", "step", "loss", "validation loss", "time left"):
        table.add_column(name, justify="right")
    for row in rows:
        failed = f" ({row.failed} failed)" if row.failed else ""
        table.add_row(
            printable(row.name),
            f"{row.done}/{row.total}{failed}",
            ", ".join(f"{one.step}/{row.steps}" for one in row.now) or "-",
            ", ".join(number(one.loss) for one in row.now) or "-",
            number(row.validation),
            "done" if row.done == row.total else _duration(row.seconds_left),
        )
    return table


def _duration(seconds: float | None) -> str:
    """A time for people.

    Example:
        >>> _duration(40), _duration(4000), _duration(None)
        ('40 s', '1 h 07 min', '-')
    """
    if seconds is None:
        return "-"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _print_cost(cost: Mapping[str, Any], loaded: LoadedConfig) -> None:
    from rich.table import Table

    from hbo.run.tables import printable

    screen = console()
    title = f"{printable(loaded.config.model)}: {cost['runs']} runs, {cost['finished']} finished"
    table = Table(title=title)
    table.add_column("entry", overflow="fold")
    for name in ("policy", "runs", "steps", "draws", "signals", "relative cost", "time of a run"):
        table.add_column(name, justify="right")
    for entry in cost["entries"]:
        table.add_row(
            printable(entry["name"]),
            printable(entry["policy"]),
            f"{entry['finished']}/{entry['runs']}",
            str(entry["steps"]),
            str(entry["draws"]),
            f"{100 * entry['signals_share']:.1f} %",
            f"{entry['relative_cost']:.2f}",
            _duration(entry["seconds"]),
        )
    screen.print(table)
    for line in _cost_lines(cost):
        screen.print(printable(line), soft_wrap=True)


def _cost_lines(cost: Mapping[str, Any]) -> list[str]:
    many = "one at a time" if cost["jobs"] == 1 else f"{cost['jobs']} at a time"
    time_left = (
        "how long it takes is not known before a run is finished; name one with --like RUN"
        if cost["seconds_left"] is None
        else f"about {_duration(cost['seconds_left'])} are left"
    )
    lines = [
        f"seeds {', '.join(map(str, cost['seeds']))}; {many}; {time_left}",
        f"disk: about {_bytes(cost['bytes_while_running'])} while runs are made, for checkpoints "
        f"and models; {_bytes(cost['bytes_with_keep_models'])} with --keep-models",
    ]
    if not all(entry["scored"] for entry in cost["entries"]):
        lines.append("difficulty is scored first, once for all runs on the same data")
    if cost["seeds_warning"] is not None:
        lines.append(f"warning: {cost['seeds_warning']}")
    said: dict[str, list[str]] = {}
    for entry in cost["entries"]:
        for warning in entry["warnings"]:
            subset = f"{warning['subset']}: " if warning["subset"] else ""
            said.setdefault(f"{subset}{warning['text']}", []).append(entry["name"])
    for text, names in said.items():
        whom = "" if len(names) == len(cost["entries"]) else f"{', '.join(names)}: "
        lines.append(f"warning: {whom}{text}")
    return lines
