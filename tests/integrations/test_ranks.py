"""Real processes: two ranks train on disjoint halves of one stream and hold one law."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.rank_script import train, trainer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process


def launch(folder: Path, policy: str, *more: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "tests.integrations.rank_script"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(folder), policy, "4", *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def results(folder: Path, policy: str) -> list[dict[str, Any]]:
    done = launch(folder, policy)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_hold_one_law(tmp_path: Path) -> None:
    first, second = results(tmp_path / "two", "hbo")
    assert first["probabilities"] == second["probabilities"]
    assert first["stream_sha256"] == second["stream_sha256"]
    assert first["subsets"] == second["subsets"]  # losses and tokens are those of both ranks
    for mine, other in zip(first["trained"], second["trained"], strict=True):
        assert len(mine) == len(other) == 4
    assert first["trained"] != second["trained"]


def test_two_ranks_share_the_stream_of_one_which_goes_on_from_their_checkpoint(
    tmp_path: Path,
) -> None:
    alone = train(trainer(tmp_path / "one", "prop", 8))
    halves = results(tmp_path / "two", "prop")
    assert halves[0]["stream_sha256"] == alone["stream_sha256"]
    for step, examples in enumerate(alone["trained"]):
        mine, other = (half["trained"][step] for half in halves)
        assert sorted(mine + other) == sorted(examples)
    assert halves[0]["draws"] == alone["draws"] == 64

    shutil.rmtree(tmp_path / "two" / "checkpoint-8")
    resumed = train(trainer(tmp_path / "two", "prop", 8), resume=True)
    assert resumed["trained"] == alone["trained"][4:]
    assert resumed["stream_sha256"] == alone["stream_sha256"]
    for name, subset in resumed["subsets"].items():
        whole = alone["subsets"][name]
        assert subset["draws"] == whole["draws"]
        assert subset["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)


def test_ranks_that_come_to_hold_two_laws_stop_at_once(tmp_path: Path) -> None:
    done = launch(tmp_path / "two", "hbo", "tamper")  # within its limit: nobody waits for ever
    assert done.returncode != 0
    assert done.stderr.count("StateError: the ranks hold different sampling probabilities") == 2
    assert not (tmp_path / "two" / "checkpoint-4").exists()  # it was the update after step 2
