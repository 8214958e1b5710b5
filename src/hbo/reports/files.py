"""Pages are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hbo.errors import EnvironmentProblem


def write_whole(path: Path, page: str, remedy: str) -> None:
    """Write a page; one half written would hide the one before.

    Args:
        path: Where; folders are made.
        page: Its text.
        remedy: What to do where it cannot be written.

    Raises:
        EnvironmentProblem: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=path.suffix)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the report: {error.strerror or error}; {remedy}", where=str(path)
        ) from None
