"""The user's cache of assets: where it is, and how they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hbo.errors import EnvironmentProblem


def cache_root() -> Path:
    """The folder of all assets: `$HBO_CACHE`, else `$XDG_CACHE_HOME/hbo`, else `~/.cache/hbo`.

    The same on every system, as PyTorch and the Hugging Face libraries do it.
    """
    if given := os.environ.get("HBO_CACHE"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "hbo"


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock called `name`; a second process waits until the first is done."""
    from filelock import FileLock

    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that is gone when the block ends.

    The caller holds the lock of `target`, so folders of that name left by a killed process are dead
    and cleared away first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".partial-{target.name}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes `target` when the block ends without an error.

    Args:
        target: The folder to make; does not exist yet. The caller holds its lock.
    """
    with scratch_folder(target) as scratch:
        yield scratch
        scratch.rename(target)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a file to write; it becomes `target` when the block ends without an error."""
    with scratch_folder(target) as scratch:
        yield scratch / target.name
        (scratch / target.name).replace(target)


@contextlib.contextmanager
def cache_problems(name: str) -> Iterator[None]:
    """Turn a failure of the disk into one line that says which asset and which folder.

    Raises:
        EnvironmentProblem: The block raised an OSError (full or read-only disk, no permission).
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the asset {name!r} to the cache: {error.strerror or error}; "
            "set HBO_CACHE to a writable folder with room",
            where=str(cache_root()),
        ) from error


def require_room(name: str, room: int) -> None:
    """Refuse early where the disk cannot hold what is to come.

    Raises:
        EnvironmentProblem: Fewer than `room` bytes are free.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < room:
        raise EnvironmentProblem(
            f"the asset {name!r} needs {room / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free; "
            "make room or set HBO_CACHE to another folder",
            where=str(root),
        )
