"""Runs that kill themselves at chosen moments, and end as one that was never killed.

The ordinary suite strings a few moments together, each start being killed at the next one;
``make test-crash`` takes them all, together and one by one, under several settings.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.crash.points import AFTER, BEFORE, POINTS, SAVING, TRAINING
from tests.crash.runs import Server, expect_equal, workspace

ALL = "HBO_KILLS" in os.environ
WORKERS: dict[str, Any] = {"dataloader_num_workers": 2, "save_steps": 4}
VALIDATION: dict[str, Any] = {
    "save_steps": 4,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_mixture_loss",
    "greater_is_better": True,  # so that the best one is the first
}
SETTINGS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "workers": WORKERS,
    "workers that stay": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "epochs": {
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "max_steps": -1,
        "num_train_epochs": 2,
    },
    "best model": VALIDATION,
}
FEW = (
    ("scores", 1),
    ("evaluated", 1),
    ("forward", 3),
    ("weights", 1),
    ("update half logged", 2),
    ("in probe", 1),
    ("optimiser", 1),
    ("trainer state", 1),
    ("seal", 1),
    ("rotation", 1),
    ("step half logged", 1),
    ("before seal", 1),
    ("updated", 1),
    ("sealed", 1),
    ("model", 1),
    ("end half logged", 1),
    ("summary", 1),
    ("report", 1),
)
CHAINS = {"no workers": FEW, "workers": FEW[5:12]}
ONE_BY_ONE = [
    *((name, 1) for name in (*BEFORE, *AFTER)),
    *((name, 5) for name in TRAINING),
    *((name, 3) for name in SAVING),
]


@pytest.fixture(scope="module")
def runs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A workspace for each of the settings, with the run that nobody killed."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name in SETTINGS if ALL else CHAINS:
        found[name] = workspace(folder / name.replace(" ", "-"), SETTINGS[name])
        server.finish(found[name])
    return found


def fresh(whole: Path, folder: Path) -> Path:
    """The same workspace without the run."""
    return Path(
        shutil.copytree(whole, folder / "killed", ignore=shutil.ignore_patterns("run", "scores"))
    )


@pytest.mark.process
@pytest.mark.parametrize("settings", CHAINS)
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_were_not(
    server: Server, runs: dict[str, Path], tmp_path: Path, settings: str
) -> None:
    killed = fresh(runs[settings], tmp_path)
    for name, nth in CHAINS[settings]:
        assert server.run(killed, point=name, nth=nth) == -9, name
    server.finish(killed)
    expect_equal(runs[settings], killed)


@pytest.mark.process
@pytest.mark.skipif(not ALL, reason="make test-crash")
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_that_is_killed_everywhere_ends_as_if_it_were_not(
    server: Server, runs: dict[str, Path], tmp_path: Path, settings: str
) -> None:
    killed = fresh(runs[settings], tmp_path)
    statuses = {name: server.run(killed, point=name) for name in POINTS}
    server.finish(killed)
    expect_equal(runs[settings], killed)
    # With few checkpoints, a few moments do not come any more.
    assert all(statuses[name] == -9 for name in statuses if settings != "epochs"), statuses


@pytest.mark.process
@pytest.mark.skipif(not ALL, reason="make test-crash")
@pytest.mark.parametrize(("name", "nth"), ONE_BY_ONE)
def test_one_kill_at_one_moment_changes_nothing(
    server: Server, runs: dict[str, Path], tmp_path: Path, name: str, nth: int
) -> None:
    whole = runs["no workers"]
    killed = fresh(whole, tmp_path)
    if name == "log rewritten":
        assert server.run(killed, point="model") == -9  # there has to be a log
    assert server.run(killed, point=name, nth=nth) == -9
    server.finish(killed)
    expect_equal(whole, killed)
