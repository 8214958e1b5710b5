"""The run log: one JSON object a line, written as things happen, readable after any crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SCHEMA = 1
EVENTS = frozenset({"start", "step", "update", "evaluation", "warning", "end"})


class RunLog:
    """Append events to ``run.jsonl``.

    A line is written whole and flushed at once; a line cut by a crash is ignored by ``read_log``
    and removed by ``keep``. Only one process of a run writes; the others hold a log without a path.

    Args:
        path: The file; ``None`` drops every event.
        keep: Where the file exists already, which of its events stay (a resumed run drops what came
            after its checkpoint). ``None`` keeps all.
    """

    def __init__(
        self, path: Path | str | None, keep: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            self._rewrite(self.path, keep)

    @staticmethod
    def _rewrite(path: Path, keep: Callable[[dict[str, Any]], bool] | None) -> None:
        kept = [event for event in read_log(path) if keep is None or keep(event)]
        # Several ranks may be given the same path: each writes a file of its own, all the same.
        temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(event) for event in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Args:
            event: One of ``EVENTS``.
            **fields: JSON-safe values; NaN and infinities become null.
        """
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r}; known: {sorted(EVENTS)}")
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line({"event": event, "schema": SCHEMA, **fields}))


def up_to(step: int) -> Callable[[dict[str, Any]], bool]:
    """A ``keep`` rule: what a run at ``step`` has said; no later event, and no end."""

    def keep(event: dict[str, Any]) -> bool:
        return event["event"] != "end" and int(event.get("step") or 0) <= step

    return keep


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """All whole events of a run log, in order; a line cut by a crash is passed over."""
    return list(_events(Path(path)))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


def _line(event: dict[str, Any]) -> str:
    try:
        text = json.dumps(event, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN or infinity: rare, and the walk costs more than the dump
        text = json.dumps(_finite(event), ensure_ascii=False, allow_nan=False)
    return text + "\n"


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
