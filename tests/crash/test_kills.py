"""SIGKILL at random moments: the finished run is the one that was never killed.

``HBO_KILLS`` sets how many kills the run has to survive (``make test-crash``: 20).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.support.workspace import make_workspace, write_config

KILLS = int(os.environ.get("HBO_KILLS", "2"))
STEPS = 40
MEASURED_TIME = {"wall_seconds", "balance_seconds", "seconds", "scoring_seconds"}


def workspace(folder: Path) -> Path:
    """A model with dropout, probes at every other step, one checkpoint kept."""
    folder.mkdir()
    make_workspace(folder)
    tiny_model(dropout=0.2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    training = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "logging_steps": 3,
        "save_steps": 4,
        "save_total_limit": 1,
        "learning_rate": 0.01,
    }
    write_config(folder, training=training)
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hbo", "train", "config.yaml", "--resume"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path) -> float:
    begun = time.monotonic()
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]
    return time.monotonic() - begun


def kill_at_random(folder: Path, seconds: float) -> bool:
    """Start, wait, kill; whether the run was still going on."""
    process = start(folder)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    process.communicate()
    return False


def timeless(value: Any) -> Any:
    """Without what a clock measured."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in MEASURED_TIME}
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return value


def results(folder: Path) -> tuple[Any, list[Any], dict[str, Any]]:
    run = folder / "run"
    summary = timeless(json.loads((run / "summary.json").read_text()))
    log = [timeless(json.loads(line)) for line in (run / "run.jsonl").read_text().splitlines()]
    # A checkpoint that a kill cut off is passed over, and said so; nothing else may differ.
    log = [event for event in log if event.get("code") != "damaged-checkpoint"]
    return summary, log, load_file(run / "model" / "model.safetensors")


@pytest.mark.process
def test_a_killed_run_ends_as_one_that_was_never_killed(tmp_path: Path) -> None:
    whole, killed = workspace(tmp_path / "whole"), workspace(tmp_path / "killed")
    duration = finish(whole)
    moments = random.Random(11)
    kills = 0
    while kills < KILLS:
        # Most of a run is start-up; a share of the kills falls there, the rest into training.
        if kill_at_random(killed, duration * moments.uniform(0.3, 0.95)):
            kills += 1
        elif kills < KILLS:  # it got to its end: the next kills need a new run
            expect_equal(whole, killed)
            shutil.rmtree(killed / "run")
    finish(killed)
    expect_equal(whole, killed)


def expect_equal(whole: Path, killed: Path) -> None:
    """The same summary, the same log and, bit for bit, the same weights."""
    expected, found = results(whole), results(killed)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2].keys() == expected[2].keys()
    assert all((found[2][name] == value).all() for name, value in expected[2].items())
