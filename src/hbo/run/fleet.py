"""Runs of a comparison as processes, some at a time: started, watched, stopped and counted."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from hbo.run.comparison import Run
from hbo.run.estimate import progress_of
from hbo.run.progress import printable
from hbo.run.stop import Interrupted, StopRequest

TICK = 0.25
"""Seconds between two looks at the processes."""
PATIENCE = 60.0
"""Seconds that a process has to leave a checkpoint when the comparison itself breaks off."""
TAIL = 2**16
LONGEST = 400
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Child(Protocol):
    """A process, as ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """Its exit status, once it has one."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        ...


Launch = Callable[[Sequence[str], Path, Mapping[str, str]], Child]
Tell = Callable[[str], None]


def launch(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Child:
    """Start ``hbo ARGUMENTS``; what it prints goes to the end of ``log``.

    It is out of reach of the terminal's Ctrl-C, so that it is told once and by us; where the system
    can do that, it is also told to stop when this process is killed.
    """
    prepare = None
    if sys.platform == "linux":
        prepare = partial(ctypes.CDLL(None).prctl, _PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return subprocess.Popen(
            # -P: files of the working directory are not taken for modules.
            [sys.executable, "-P", "-m", "hbo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=prepare,
        )


def slots(jobs: int | None, on_cpu: bool = False) -> list[dict[str, str]]:
    """Environment variables of each place where a run can be: a GPU of its own, or some cores.

    Args:
        jobs: How many; ``None``: one for each GPU, one on a CPU. More than GPUs: they share.
        on_cpu: GPUs are not used.
    """
    import torch

    count = 0 if on_cpu else torch.cuda.device_count()
    if count:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = [name.strip() for name in given.split(",") if name.strip()][:count]
        devices = devices or [str(number) for number in range(count)]
        wanted = len(devices) if jobs is None else jobs
        return [{"CUDA_VISIBLE_DEVICES": devices[n % len(devices)]} for n in range(wanted)]
    wanted = jobs or 1
    if wanted == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(wanted)]
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return [{"OMP_NUM_THREADS": str(max(1, cores // wanted))} for _ in range(wanted)]


@dataclass(frozen=True)
class Failure:
    """A run that did not get to its end: the exit status and the words of its process."""

    status: int
    text: str


@dataclass(eq=False)
class _Active:
    run: Run
    child: Child
    slot: int
    began: float
    log_before: int
    step_before: int


class Fleet:
    """Runs as processes, as many at a time as there are slots.

    Args:
        runs: In the order in which they start.
        places: ``slots``.
        stop: Hears signals; they are passed on.
        tell: Told of each start and end, in a line.
        watch: Called several times a second.
        finished: Called with each run whose process ended well; what it says is a failure after
            all.
        command: Arguments of a run's process.
        launch: Starts it.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        places: Sequence[Mapping[str, str]],
        stop: StopRequest,
        *,
        tell: Tell,
        watch: Callable[[Fleet], None] = lambda fleet: None,
        finished: Callable[[Run], str | None] = lambda run: None,
        command: Callable[[Run], Sequence[str]] = lambda run: (
            "train",
            str(run.config),
            "--resume",
        ),
        launch: Launch = launch,
    ) -> None:
        self.waiting = list(runs)
        self.active: list[_Active] = []
        self.failed: dict[Run, Failure] = {}
        self._places, self._stop, self._tell, self._watch = places, stop, tell, watch
        self._finished, self._command, self._launch = finished, command, launch
        self._said_busy: set[Run] = set()
        self._passed_on: int | None = None

    def go(self) -> None:
        """Run them all; returns when every one has ended.

        Raises:
            Interrupted: A signal came. All processes have ended, with their checkpoints unless it
                came twice. Each process hears it as often as it came, and no run that it stopped
                has failed.
        """
        self._stop.patient = True
        try:
            while self.active or (self.waiting and self._stop.signal_number is None):
                self._pass_on()
                if self._stop.signal_number is None:
                    self._fill()
                self._watch(self)
                time.sleep(TICK)
                self._collect()
        except Interrupted:
            self._passed_on = None  # it came again, and is for the processes too
            raise
        finally:
            self._stop.patient = False
            self._end_all()
        self._stop.raise_if_requested("the runs left checkpoints; run again to go on")

    def _pass_on(self) -> None:
        number = self._stop.signal_number
        if number is not None and self._passed_on is None:
            self._passed_on = number
            self._tell("stopping: waiting for checkpoints; once more to end at once")
            for active in self.active:
                active.child.send_signal(number)

    def _fill(self) -> None:
        taken = {active.slot for active in self.active}
        for slot in (n for n in range(len(self._places)) if n not in taken):
            run = next((run for run in self.waiting if not self._is_busy(run)), None)
            if run is None:
                return
            self.waiting.remove(run)
            size = run.log.stat().st_size if run.log.exists() else 0
            step = progress_of(run.folder).step
            child = self._launch(self._command(run), run.log, self._places[slot])
            self.active.append(_Active(run, child, slot, time.monotonic(), size, step))
            self._tell(f"started: {run.name} ({run.log})")

    def _is_busy(self, run: Run) -> bool:
        """Whether a process of an earlier comparison, say, is still at work on it."""
        from filelock import FileLock, Timeout

        if not run.folder.is_dir():
            return False
        try:
            with FileLock(run.folder / ".lock", timeout=0):
                return False
        except Timeout:
            if run not in self._said_busy:
                self._said_busy.add(run)
                self._tell(f"waiting: {run.name}: another process is at work on it")
            return True

    def _collect(self) -> None:
        for active in list(self.active):
            status = active.child.poll()
            if status is None:
                continue
            self.active.remove(active)
            if status != 0 and self._stop.signal_number is not None:
                self.waiting.append(active.run)  # as we asked it to
                continue
            text = _last_words(active, status) if status else self._finished(active.run)
            if text is None:
                self._tell(f"finished: {active.run.name}")
                continue
            self.failed[active.run] = Failure(status or 1, text)
            self._tell(f"failed: {active.run.name}: {text}")

    def _end_all(self) -> None:
        """Leave no process behind when the comparison breaks off."""
        number, deadline = self._stop.signal_number or signal.SIGTERM, time.monotonic() + PATIENCE
        if self._passed_on is None:
            for active in self.active:
                with suppress(OSError):
                    active.child.send_signal(number)
        while any(active.child.poll() is None for active in self.active):
            if time.monotonic() > deadline:
                for active in self.active:
                    active.child.send_signal(signal.SIGKILL)
                return
            time.sleep(TICK)


def _last_words(active: _Active, status: int) -> str:
    """The one line that a process ended with, or what ended it."""
    with active.run.log.open("rb") as file:
        file.seek(active.log_before)
        lines = file.read()[-TAIL:].decode("utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    text = (errors or said or [f"exit status {status}, without a word"])[-1]
    return printable(text.removeprefix("error: "))[:LONGEST]
