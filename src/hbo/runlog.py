"""The run log: one JSON object a line, written as things happen, readable after any crash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from hbo.errors import DataError

SCHEMA = 1
MAX_LINE = 2**26
"""Characters of a line that are read; a longer one is passed over as damaged."""
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
        self.path: Path | None = None
        self.listener: Callable[[dict[str, Any]], None] | None = None
        """Called with each event, after it is written."""
        if path is not None:
            self.open(Path(path), keep)

    def open(self, path: Path, keep: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Write to this file from now on; see the class for ``keep``."""
        self.path = path
        if path.exists():
            self._rewrite(path, keep)

    @staticmethod
    def _rewrite(path: Path, keep: Callable[[dict[str, Any]], bool] | None) -> None:
        kept = [event for event in read_log(path) if keep is None or keep(event)]
        # Several ranks may be given the same path: each writes a file of its own, all the same.
        temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
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
        entry = {"event": event, "schema": SCHEMA, **fields}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A file's name may hold bytes that are no UTF-8; escaped, they are valid JSON.
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(_line(entry))
        if self.listener is not None:
            self.listener(entry)


def up_to(step: int) -> Callable[[dict[str, Any]], bool]:
    """A ``keep`` rule: what a run at ``step`` has said; no later event, and no end.

    Evaluations of the trained model, which unlike a trainer's own have a perplexity, belong to the
    end: they are made again.
    """

    def keep(event: dict[str, Any]) -> bool:
        at = event.get("step") or 0
        if not isinstance(at, int | float):
            return False  # a line that was tampered with may hold anything
        macro = event.get("macro")
        ours = isinstance(macro, dict) and "perplexity" in macro
        of_end = event["event"] == "evaluation" and ours and at > 0
        return event["event"] != "end" and not of_end and at <= step

    return keep


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """All whole events of a run log, in order; a line cut by a crash is passed over.

    Raises:
        DataError: It is no regular file (reading a pipe would wait for ever).
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError("the run log is no regular file; restore it", where=str(path))
    return list(_events(path))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in _lines(file):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):  # no JSON, a number of a million digits, depth
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event


def _lines(file: TextIO) -> Iterator[str]:
    """Lines of a bounded length; the rest of a longer one is read past and dropped."""
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE or line.endswith("\n"):
            yield line
            continue
        while line and not line.endswith("\n"):
            line = file.readline(MAX_LINE)


def _line(event: dict[str, Any]) -> str:
    try:
        text = _dumps(event)
    except ValueError:  # NaN or infinity: rare, and the walk costs more than the dump
        text = _dumps(finite(event))
    return text + "\n"


def _dumps(event: Any) -> str:
    # Events are trees: to look for circles takes a tenth of the time.
    return json.dumps(event, ensure_ascii=False, allow_nan=False, check_circular=False)


def finite(value: Any) -> Any:
    """Plain values for JSON: NaN and infinities become null.

    Example:
        >>> finite({"loss": float("nan"), "draws": (1, 2)})
        {'loss': None, 'draws': [1, 2]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
