"""Trackers (``report_to``) that fail are switched off: a run does not depend on who watches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Warn = Callable[[str, str], None]
"""Takes a code and a text: see ``Engine.warn``."""


def guard_trackers(trainer: Any, warn: Warn) -> None:
    """Let no tracker of a trainer end its training.

    Its callbacks stay the objects they are; their events are wrapped one by one. At the first that
    raises, the tracker gets no further event. What is no ``Exception`` (a user's interrupt, our
    ``Interrupted``) passes. A tracker that cannot even be made stops the run before training, in
    the trainer's own constructor.

    Args:
        trainer: A ``transformers.Trainer``, made and not yet trained.
        warn: Told once for each tracker that fails.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    for callback in trainer.callback_handler.callbacks:
        if type(callback) in names:
            _guard(callback, names[type(callback)], warn)


def _guard(callback: Any, name: str, warn: Warn) -> None:
    failed = False

    def guarded(event: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                return event(*args, **kwargs)
            except Exception as error:
                failed = True
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                warn("tracker", f"the tracker {name} failed and is switched off ({reason})")
                return None

        return call

    for event in dir(callback):
        if event.startswith("on_"):
            setattr(callback, event, guarded(getattr(callback, event)))
