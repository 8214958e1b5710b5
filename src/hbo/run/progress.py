"""Progress of passes over examples: a bar at a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hbo.run.world import is_main


def say(line: str) -> None:
    """One line for the user, from the main process only."""
    if is_main():
        sys.stdout.write(f"{printable(line)}\n")
        sys.stdout.flush()


def printable(line: str) -> str:
    """A text as one line: a subset's name may hold a newline, or turn the direction of the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function to tell (done, total); it moves a bar on stderr while the block runs."""
    if not (is_main() and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hold back the bars of transformers and datasets where stderr is no terminal."""
    if sys.stderr.isatty() and is_main():
        yield
        return
    import datasets
    from transformers.utils import logging

    models, tables = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if models:
            logging.enable_progress_bar()
        if tables:
            datasets.enable_progress_bars()
