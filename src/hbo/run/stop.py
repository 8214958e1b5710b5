"""SIGINT and SIGTERM: stop at the next safe point, with a checkpoint that resumes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

ONE_WISH = 2.0
"""Seconds in which a signal that comes again is still the first: a scheduler signals all processes
of a job, and a launcher among them passes it on to its workers."""


class Interrupted(BaseException):
    """The run was asked to stop; like ``KeyboardInterrupt`` no ``Exception``, so it gets through.

    Args:
        signal_number: ``signal.SIGINT`` or ``signal.SIGTERM``.
        text: What there is to go on from.
    """

    def __init__(self, signal_number: int, text: str = "nothing was lost") -> None:
        self.signal_number = int(signal_number)
        super().__init__(f"{signal.Signals(self.signal_number).name}; {text}")


class StopRequest:
    """What the signal handler notes and a training loop asks.

    Outside training a signal raises at once. While ``patient`` (a training loop that stops itself
    after its optimiser step), the first signal is only noted; a second, ``ONE_WISH`` seconds later
    or more, raises.

    Args:
        text: What to tell the user of a stop outside training.
    """

    def __init__(self, text: str = "nothing was lost") -> None:
        self.text = text
        self.signal_number: int | None = None
        self.patient = False
        self._noted = 0.0

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        now, first = time.monotonic(), self.signal_number is None
        if not first and now - self._noted < ONE_WISH:
            return
        self.signal_number, self._noted = signal_number, now
        if not (self.patient and first):
            raise Interrupted(signal_number, self.text)

    def raise_if_requested(self, text: str) -> None:
        """Raise what was noted, once the loop has stopped."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number, text)


@contextmanager
def listening(text: str = "nothing was lost") -> Iterator[StopRequest]:
    """A ``StopRequest`` that hears SIGINT and SIGTERM inside the block; main thread only."""
    request = StopRequest(text)
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # Elsewhere (a notebook's thread) signals stay with whoever has them.
        for wanted in (signal.SIGINT, signal.SIGTERM):
            before[int(wanted)] = signal.signal(wanted, request.handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heed_parent_only() -> None:
    """In a loader worker: end when its parent says so, not when a launcher signals everybody.

    torch's workers die of a SIGTERM from elsewhere, and take the training with them before it can
    save. ``torchrun`` and schedulers send one to every process of a job.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process there too
        return
    parent = multiprocessing.parent_process()
    parent_id = os.getppid() if parent is None else parent.pid  # they differ under forkserver
    wanted = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)

    def wait() -> None:
        while signal.sigwaitinfo(wanted).si_pid != parent_id:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def steady_workers(trainer: Any) -> None:
    """Make the workers of a trainer's training loader heed only their parent."""
    make = trainer.get_train_dataloader

    def steady() -> Any:
        loader = make()
        inner = getattr(loader, "base_dataloader", loader)  # inside Accelerate's
        inner.worker_init_fn = partial(_begin_worker, inner.worker_init_fn)
        return loader

    trainer.get_train_dataloader = steady


def _begin_worker(begin: Callable[[int], None], worker_id: int) -> None:
    begin(worker_id)
    heed_parent_only()
