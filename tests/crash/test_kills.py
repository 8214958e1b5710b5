"""SIGKILL from outside at random moments: the finished run is the one that was never killed.

``HBO_KILLS`` sets how many kills the run has to survive (``make test-crash``: 20).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.runs import ENVIRONMENT, Server, expect_equal, workspace

ALL = "HBO_KILLS" in os.environ
KILLS = int(os.environ.get("HBO_KILLS", "4"))
LONG = {"max_steps": 40, "save_steps": 4, "logging_steps": 3}

Run = Callable[[Path, float | None], int]


def survive(whole: Path, killed: Path, run: Run, kills: int, moments: tuple[float, float]) -> None:
    """Kill a run at random moments until it was killed often enough, and compare the end.

    Args:
        whole: A workspace for the run that is not killed.
        killed: The same for the other.
        run: Runs in a folder, for some seconds or to the end; the exit status.
        kills: How many.
        moments: Shares of the duration of a run between which the kills fall.
    """
    begun = time.monotonic()
    assert run(whole, None) == 0
    duration = time.monotonic() - begun
    randomness = random.Random(11)
    while kills:
        if run(killed, duration * randomness.uniform(*moments)) == -9:
            kills -= 1
        else:  # it got to its end: the next kills need a new run
            expect_equal(whole, killed)
            shutil.rmtree(killed / "run")
    assert run(killed, None) == 0
    expect_equal(whole, killed)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2] if ALL else [0])
def test_a_run_killed_at_random_moments_ends_as_if_it_were_not(
    server: Server, tmp_path: Path, workers: int
) -> None:
    def run(folder: Path, seconds: float | None) -> int:
        return server.run(folder, seconds=seconds)

    training = LONG | {"dataloader_num_workers": workers}
    whole, killed = (workspace(tmp_path / name, training) for name in ("whole", "killed"))
    survive(whole, killed, run, KILLS // 2, (0.02, 0.8))  # the other half with workers


@pytest.mark.process
@pytest.mark.skipif(not ALL, reason="make test-crash")
def test_a_program_killed_at_random_moments_ends_as_if_it_were_not(tmp_path: Path) -> None:
    def run(folder: Path, seconds: float | None) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "hbo", "train", "config.yaml", "--resume"],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()

    whole, killed = (workspace(tmp_path / name, LONG) for name in ("whole", "killed"))
    # Most of a run is start-up.
    survive(whole, killed, run, 3, (0.4, 0.95))
