"""``hbo train`` as ranks of a launcher, and in this process as a single one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hbo.cli import main
from tests.support.workspace import make_workspace, write_config

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")
# `accelerate launch --cpu` starts a single process, whatever its --num_processes says; so it is
# told of several GPUs, and hbo of none. The rest it would otherwise ask for.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes")
STEPS = 24
TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "logging_steps": 2,
    "save_steps": 4,
    "use_cpu": True,
}
HALVES = ("--set", "training.per_device_train_batch_size=2")  # of two ranks: 4 examples a step


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Workspace:
    """A folder with a tiny model, data and configuration; runs in it go to folders of a name."""

    folder: Path

    def alone(self, name: str, *arguments: str) -> Said:
        """``hbo train`` on one rank, in this process."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status = main(arguments_of(name, *arguments))
        return Said(status, out.getvalue(), err.getvalue())

    def launch(
        self,
        name: str,
        *arguments: str,
        ranks: int = 2,
        launcher: tuple[str, ...] = TORCHRUN,
        interrupt: Callable[[Path, subprocess.Popen[str]], None] | None = None,
    ) -> Said:
        """``hbo train`` on several ranks; ``interrupt`` may wait for something and end it."""
        command = [sys.executable, "-m", *launcher, str(ranks), "-m", "hbo"]
        process = subprocess.Popen(
            [*command, *arguments_of(name, *arguments)],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if interrupt is not None:
                interrupt(self.folder / name, process)
            out, err = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                kill_all(process)
        return Said(process.returncode, out, err)

    def broken_off(self, name: str, source: str, step: int) -> None:
        """A run as a kill after the checkpoint of a step would have left ``source``."""
        shutil.copytree(self.folder / source, self.folder / name)
        for left in (self.folder / name).iterdir():
            number = left.name.removeprefix("checkpoint-")
            if number.isdigit() and int(number) > step:
                shutil.rmtree(left)
        (self.folder / name / "summary.json").unlink()

    def summary(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.folder / name / "summary.json").read_text())
        return result

    def events(self, name: str) -> list[dict[str, Any]]:
        log = self.folder / name / "run.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()]

    def story(self, name: str) -> list[tuple[Any, ...]]:
        """What a run log tells but for measured numbers, and but for warnings of a resume."""
        return [_told(event) for event in self.events(name) if event["event"] != "warning"]

    def warnings(self, name: str) -> dict[str, str]:
        """Code -> text of the warnings after the beginning."""
        later = [e for e in self.events(name) if e["event"] == "warning" and e["step"]]
        assert len({event["code"] for event in later}) == len(later)
        return {event["code"]: event["text"] for event in later}


def arguments_of(name: str, *arguments: str) -> list[str]:
    return ["train", "config.yaml", "--set", f"output_dir={name}", *arguments]


def _told(event: dict[str, Any]) -> tuple[Any, ...]:
    subsets = {
        name: (subset.get("draws"), subset.get("tokens"))
        for name, subset in (event.get("subsets") or {}).items()
    }
    probabilities = {name: law["after"] for name, law in (event.get("local") or {}).items()}
    return event["event"], event.get("step"), event.get("draws"), subsets, probabilities


def sealed(step: int) -> Callable[[Path, subprocess.Popen[str]], None]:
    """Wait until a checkpoint is whole."""

    def wait(run: Path, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 240
        while not (run / f"checkpoint-{step}" / "hbo_state.json").exists():
            assert process.poll() is None, process.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


def terminate_after(step: int) -> Callable[[Path, subprocess.Popen[str]], None]:
    """SIGTERM to the launcher, as a scheduler sends it."""

    def interrupt(run: Path, process: subprocess.Popen[str]) -> None:
        sealed(step)(run, process)
        process.send_signal(signal.SIGTERM)

    return interrupt


def kill_after(step: int) -> Callable[[Path, subprocess.Popen[str]], None]:
    """SIGKILL to the launcher and all its ranks, as a machine that goes down."""

    def interrupt(run: Path, process: subprocess.Popen[str]) -> None:
        sealed(step)(run, process)
        kill_all(process)

    return interrupt


def kill_all(process: subprocess.Popen[str]) -> None:
    import psutil

    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A fixed policy, four examples a step, a checkpoint at every fourth."""
    folder = make_workspace(tmp_path_factory.mktemp("launch"))
    write_config(folder, balance={"policy": "prop", "lag": 4}, training=TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HBO_CACHE", str(folder / "cache"))
        yield Workspace(folder)


@pytest.fixture(scope="session")
def whole(workspace: Workspace) -> str:
    """The name of a run on one rank that nothing stopped: what all others are compared with."""
    said = workspace.alone("whole")
    assert (said.status, said.err) == (0, "")
    return "whole"
