"""SIGINT and SIGTERM: stop at the next safe point, with a checkpoint that resumes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


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
    after its optimiser step), the first signal is only noted; the second raises.

    Args:
        text: What to tell the user of a stop outside training.
    """

    def __init__(self, text: str = "nothing was lost") -> None:
        self.text = text
        self.signal_number: int | None = None
        self.patient = False

    def handle(self, signal_number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if not self.patient or self.signal_number is not None:
            raise Interrupted(signal_number, self.text)
        self.signal_number = signal_number

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
