"""The run directory: who owns it, and what is in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from hbo.config import LoadedConfig
from hbo.config.explain import shorten
from hbo.config.overrides import dotted
from hbo.errors import ConfigError, EnvironmentProblem
from hbo.integrations.checkpoints import checkpoints_in
from hbo.run.files import write_whole

CONFIG, LOG, SUMMARY, REPORT, EVALUATION, HELDOUT, MODEL = (
    "config.yaml",
    "run.jsonl",
    "summary.json",
    "report.html",
    "evaluation.json",
    "heldout.json",
    "model",
)


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    return any((folder / name).exists() for name in (CONFIG, LOG, SUMMARY)) or bool(
        checkpoints_in(folder)
    )


def require_free(loaded: LoadedConfig, *, resume: bool, overwrite: bool) -> Path:
    """The output folder; refused where it holds a run that nobody asked to continue or replace.

    Raises:
        ConfigError: It holds a run, it is a file, or both options are given.
    """
    folder = Path(loaded.config.output_dir)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one of them")
    require_place(loaded, ("output_dir",), folder)
    if holds_run(folder) and not resume and not overwrite:
        raise loaded.error(
            ("output_dir",),
            f"{str(folder)!r} holds a run already; continue it with --resume, replace it with"
            " --overwrite, or set another output_dir",
        )
    return folder


def require_place(loaded: LoadedConfig, path: tuple[str, ...], folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, without making it.

    Args:
        loaded: The configuration.
        path: The key that names the folder.
        folder: The folder.

    Raises:
        ConfigError: A file is in the way, or it is no possible name.
        EnvironmentProblem: The place does not let us write.
    """
    try:
        # lstat tells a name that is impossible from one that is free, where exists() does not.
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()
        here = next(place for place in (folder, *folder.parents) if place.exists())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise loaded.error(path, f"{shorten(str(folder))} cannot be a folder: {reason}") from None
    if not here.is_dir():
        raise loaded.error(path, f"{shorten(str(here))} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        raise EnvironmentProblem(
            f"{dotted(path)}: {shorten(str(here))} cannot be written to ({error.strerror}); free"
            " space or name another folder",
            where=loaded.document.place(path),
        ) from None


def clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for path in checkpoints_in(folder).values():
        shutil.rmtree(path)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    for name in (CONFIG, LOG, SUMMARY, REPORT, EVALUATION, HELDOUT):
        (folder / name).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for pattern in (
        f"{LOG}.*.tmp",
        f".{CONFIG}.tmp",
        f".{SUMMARY}.tmp",
        f".{HELDOUT}.tmp",
        ".report-*.html",
    ):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def changed_keys(values: Mapping[str, Any], folder: Path) -> list[str]:
    """Keys in which a configuration differs from the one that the folder's run was begun with.

    Args:
        values: The resolved configuration, as ``write_config`` would get it.
        folder: The run's.

    Returns:
        Dotted keys; none where the folder has no readable configuration.
    """
    try:
        saved = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    if not isinstance(saved, dict):
        return []
    # Where it lies and what made it do not make it another run.
    ours, theirs = ({**side, "output_dir": None, "versions": None} for side in (values, saved))
    return [dotted(path) for path in _differences(ours, theirs, ())]


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], path: tuple[str, ...]
) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, (*path, key))
        elif one != other:
            found.append((*path, key))
    return found


def write_config(values: Mapping[str, Any], folder: Path) -> None:
    """Write the resolved configuration, with the versions that the run was made with."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
    write_whole(folder / CONFIG, text)
