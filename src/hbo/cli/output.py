"""What a command prints: its result on stdout, nothing else; libraries are kept quiet."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DistributedDataParallel's advice from C++, once a rank
}


@contextmanager
def calm_environment() -> Iterator[None]:
    """Environment variables that libraries read when they are imported; bars only at a terminal."""
    wanted = dict(_ENVIRONMENT)
    if not sys.stderr.isatty():
        wanted["TQDM_DISABLE"] = "1"
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def quiet_libraries(stdout: bool = False) -> Iterator[None]:
    """Hold back warnings and log lines of libraries; with ``stdout`` also what they print."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if stdout:
                with redirect_stdout(io.StringIO()):
                    yield
            else:
                yield
    finally:
        logging.disable(before)


def tell(line: str) -> None:
    """A line of progress, for people: on stderr, as stdout belongs to the result."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN and infinities become null."""
    from hbo.run.files import json_text

    print(json_text(value), end="")


def console() -> Console:
    """Where tables go: as wide as the terminal, at least 100 columns where there is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, width=width)
