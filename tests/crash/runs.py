"""Small whole runs to be killed, and what two of them have to have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.support.workspace import make_workspace, write_config

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a process with threads cannot fork
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
MEASURED_TIME = {
    "wall_seconds",
    "training_seconds",
    "balance_seconds",
    "seconds",
    "scoring_seconds",
}
BALANCE = {
    "policy": "hbo",
    "update_interval": 2,
    "lag": 2,
    "probe_examples": 2,
    "signals": "probe",
}
TRAINING = {
    "max_steps": 12,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 2,
    "save_steps": 3,
    "save_total_limit": 1,
    "learning_rate": 0.01,
}
"""An epoch is eight steps of four examples; checkpoints fall between logs, updates and epochs."""


def workspace(
    folder: Path, training: dict[str, Any] | None = None, balance: dict[str, Any] | None = None
) -> Path:
    """A model with dropout, scored by itself, probed every other step, one checkpoint kept."""
    folder.mkdir()
    make_workspace(folder)
    tiny_model(dropout=0.2).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_config(
        folder,
        difficulty={"metric": "ifd", "groups": 2, "cache_dir": "scores"},
        balance=BALANCE | (balance or {}),
        training=TRAINING | (training or {}),
    )
    return folder


class Server:
    """The process of ``tests.crash.server``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.server"],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, **request: Any) -> int:
        """``hbo train --resume`` in a folder.

        Args:
            folder: The workspace.
            **request: ``point`` and ``nth``: where it kills itself; ``seconds``: when it is killed.

        Returns:
            Its exit status; -9 if it was killed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"folder": str(folder), **request}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the server has gone"
        return int(answer)

    def finish(self, folder: Path) -> float:
        """Run to the end; the seconds it took."""
        begun = time.monotonic()
        status = self.run(folder)
        assert status == 0, (folder / "output.txt").read_text()[-3000:]
        return time.monotonic() - begun

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def timeless(value: Any) -> Any:
    """Without what a clock measured."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in MEASURED_TIME}
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return value


def results(folder: Path) -> tuple[Any, list[Any], dict[str, Any]]:
    """Summary, run log and weights of a finished run."""
    run = folder / "run"
    summary = timeless(json.loads((run / "summary.json").read_text()))
    log = [timeless(json.loads(line)) for line in (run / "run.jsonl").read_text().splitlines()]
    # A checkpoint that a kill cut off is passed over, and said so; nothing else may differ.
    log = [event for event in log if event.get("code") != "damaged-checkpoint"]
    return summary, log, load_file(run / "model" / "model.safetensors")


def expect_equal(whole: Path, killed: Path) -> None:
    """The same summary, the same log and, bit for bit, the same weights."""
    expected, found = results(whole), results(killed)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2].keys() == expected[2].keys()
    assert all((found[2][name] == value).all() for name, value in expected[2].items())
    assert (killed / "run" / "report.html").read_text().rstrip().endswith("</html>")
