"""What every benchmark needs: interleaved repeats, medians, where it ran, a table, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_INSTALLED = "not installed"


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share; a benchmark may add its own.

    Args:
        description: What ``--help`` says first.
    """
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here as well")
    return made


def arguments(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of a benchmark without options of its own.

    Args:
        description: What ``--help`` says first.
        argv: The words of the command line; ``None``: those of this process.
    """
    return parser(description).parse_args(argv)


Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts what this process computes, whoever else is busy; for one thread on a CPU."""


def seconds(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Time of one call."""
    start = clock()
    work()
    return clock() - start


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """One measurement of each contender in turn, ``rounds`` times over: A B C, A B C, ...

    What else the machine does then falls on all of them alike, so that ratios hold. Each is said on
    stderr as it comes.

    Returns:
        The measurements of each, in order.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            measured[name].append(measure())
            sys.stderr.write(f"{name}: {measured[name][-1]:.4g}\n")
    return measured


def medians(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median measurement of each contender."""
    return {name: statistics.median(values) for name, values in measured.items()}


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of ours / other's: what slows a whole round down drops out."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of packages, or that a package is not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def commit() -> str:
    """The commit of the working tree, ``-dirty`` where files differ from it."""
    words = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def spread(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest ratio of any round."""
    ratios = [a / b for a, b in zip(ours, others, strict=True)]
    return min(ratios), max(ratios)


def device() -> str:
    """The processor in words, how many cores, and how many of them are busy at the moment."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if "model name" in line]
        name = models[0].partition(":")[2].strip() if models else name
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{name}, {os.cpu_count()} cores{load}"


def where(*packages: str, device_name: str | None = None) -> dict[str, Any]:
    """What a measurement holds for, printed and given back: device, commit, versions.

    Args:
        packages: Packages whose versions matter.
        device_name: The accelerator that measures; ``None``: the processor.
    """
    found = {
        "device": device() if device_name is None else f"{device_name}; {device()}",
        "commit": commit(),
        "versions": versions(*packages),
    }
    for name, value in found.items():
        say(f"{name}: {value}")
    say()
    return found


def say(text: str = "") -> None:
    """One line of the result on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns, ready for the documentation."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(f"| {' | '.join(cells)} |")
    say()


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
