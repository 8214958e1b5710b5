"""Difficulty scores by several processes: those of one, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hbo.cli import main
from tests.support.workspace import make_workspace, record, write_config, write_jsonl

ROOT = Path(__file__).parents[2]
IFD = {"metric": "ifd", "groups": 2, "cache_dir": "scores"}


@pytest.fixture
def workspaces(tmp_path: Path) -> list[Path]:
    """Three folders with the same model and data, and no scores."""
    folders = [tmp_path / name for name in ("alone", "rank-0", "rank-1")]
    for folder in folders:
        folder.mkdir()
        if folder is not folders[0]:
            (folder / "model").symlink_to(folders[0] / "model")
        else:
            make_workspace(folder)
        write_jsonl(folder / "german.jsonl", [record(n, "ABCD"[n % 4] * 3) for n in range(320)])
        write_jsonl(folder / "arabic.jsonl", [record(n + 900, "yes no"[:3]) for n in range(60)])
        write_config(folder, difficulty=IFD)
    return folders


def scores(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "scores").iterdir()}


@pytest.mark.process
def test_hbo_score_on_two_ranks_with_disks_of_their_own_gives_the_scores_of_one(
    workspaces: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, first, second = workspaces
    monkeypatch.chdir(alone)
    assert main(["score", "config.yaml", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    command += ["--nproc_per_node", "2", "bash", "-c"]
    command += ['cd rank-$RANK && exec "$0" -m hbo score config.yaml --json', sys.executable]
    done = subprocess.run(
        command,
        cwd=alone.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["subsets"] == expected["subsets"]
    assert scores(first) == scores(alone)
    # Each rank measured its part: rank 0 has all of it, rank 1 what it measured itself.
    assert len(scores(first)) == 6 and len(scores(second)) == 2
    assert scores(second).items() < scores(first).items()
