"""Real processes: two ranks train on disjoint halves of one stream and hold one law."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def launch(folder: Path, policy: str, ranks: int) -> list[dict[str, Any]]:
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), "-m", "tests.integrations.rank_script"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder), policy, str(8 // ranks)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.process
def test_two_ranks_share_one_stream_and_one_law(tmp_path: Path) -> None:
    first, second = launch(tmp_path / "two", "hbo", 2)
    assert first["probabilities"] == second["probabilities"]
    assert first["stream_sha256"] == second["stream_sha256"]
    assert first["subsets"] == second["subsets"]  # losses and tokens are those of both ranks
    for mine, other in zip(first["trained"], second["trained"], strict=True):
        assert len(mine) == len(other) == 4
    assert first["trained"] != second["trained"]
    alone = launch(tmp_path / "one", "prop", 1)[0]
    halves = launch(tmp_path / "half", "prop", 2)
    assert halves[0]["stream_sha256"] == alone["stream_sha256"]
    for step, whole in enumerate(alone["trained"]):
        assert sorted(halves[0]["trained"][step] + halves[1]["trained"][step]) == sorted(whole)
    assert halves[0]["draws"] == alone["draws"] == 64
