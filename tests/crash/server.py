"""Starts runs without importing anything anew: a process that has it all forks one for each.

``python -m tests.crash.server`` reads one request a line, forks, and answers with the exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tests.crash.points import plant

PRELOADED = (
    "hbo.assets",
    "hbo.cli.app",
    "hbo.run.train",
    "hbo.run.card",
    "hbo.run.callbacks",
    "hbo.reports",
    "hbo.reports.plots",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "hbo.integrations.trl",
    "hbo.measure.scoring",
    "hbo.evaluation.heldout",
    "transformers.models.llama.modeling_llama",
    "transformers.modeling_utils",
)

LIMIT, TOO_LONG = 120.0, 124
"""Seconds that a run may take, and the status of one that took longer."""


def serve() -> None:
    """Fork a run for each request until the input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else 1
    assert threads == 1, f"{threads} threads: a fork would copy the locks of all and run one"
    gc.freeze()  # what is imported is garbage in no child
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        print(_wait(child, request.get("seconds")), flush=True)


def _run(request: dict[str, Any]) -> None:
    """The child: ``hbo train`` in its folder, its output in a file there."""
    status = 1
    try:
        os.setsid()  # its loader's workers are killed with it, or outlive it; never this server
        os.chdir(request["folder"])
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if request.get("point"):
            plant(request["point"], request.get("nth", 1))
        from hbo.cli import main

        warnings.resetwarnings()
        status = main(["train", "config.yaml", "--resume", "--debug"])
        sys.stdout.flush()
    finally:
        os._exit(status)


def _wait(child: int, seconds: float | None) -> int:
    """The child's exit status, or minus the signal that ended it; it is killed when it is due."""
    begun, due = time.monotonic(), math.inf if seconds is None else seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        taken = time.monotonic() - begun
        if done:
            return TOO_LONG if taken > LIMIT else os.waitstatus_to_exitcode(status)
        if taken > min(due, LIMIT):
            os.kill(child, signal.SIGKILL)  # not reaped yet, so the number is still the child's
        time.sleep(0.002)


if __name__ == "__main__":
    serve()
