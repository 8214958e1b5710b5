"""Files of a run: written whole or not at all; JSON without NaN."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from hbo.runlog import finite

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""EFBIG: a limit on the size of a file, of a shell or a file system, leaves no space either."""
_FULL_WORDS = (
    "no space left on device",
    "disk quota exceeded",
    "file too large (os error",
    # torch.save says no more than that what it wrote has not arrived.
    "unexpected pos ",
    "iostream error",
    "pytorchstreamwriter failed writing",
)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk; libraries in C++ and Rust have their own words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(words in str(error).lower() for words in _FULL_WORDS)


def json_text(value: Any, indent: int | None = 2) -> str:
    """A JSON document, readable in any language; indented, or on one line."""
    return json.dumps(finite(value), ensure_ascii=False, indent=indent, allow_nan=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
