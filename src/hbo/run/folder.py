"""The run directory: who owns it, what is in it, and which checkpoint is whole."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hbo.config import LoadedConfig
from hbo.config.explain import shorten
from hbo.config.overrides import dotted
from hbo.errors import ConfigError, EnvironmentProblem
from hbo.run.files import write_whole
from hbo.run.models import is_whole_safetensors

CONFIG, LOG, SUMMARY, REPORT, EVALUATION, MODEL = (
    "config.yaml",
    "run.jsonl",
    "summary.json",
    "report.html",
    "evaluation.json",
    "model",
)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be resumed.

    Args:
        path: Its folder.
        step: Optimiser steps done.
        seconds: Wall seconds that the run had taken.
    """

    path: Path
    step: int
    seconds: float


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    return any((folder / name).exists() for name in (CONFIG, LOG, SUMMARY)) or bool(
        _checkpoints(folder)
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
    for path in _checkpoints(folder).values():
        shutil.rmtree(path)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    for name in (CONFIG, LOG, SUMMARY, REPORT, EVALUATION):
        (folder / name).unlink(missing_ok=True)


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


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint that is whole, and a line on each damaged one that was passed over."""
    damaged: list[str] = []
    for step, path in sorted(_checkpoints(folder).items(), reverse=True):
        fault = _fault(path, step)
        if fault is None:
            return Checkpoint(path, step, _seconds(path)), damaged
        damaged.append(f"{path.name} is damaged ({fault}) and passed over")
    return None, damaged


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    named = [(path, _CHECKPOINT.fullmatch(path.name)) for path in folder.iterdir()]
    return {int(match[1]): path for path, match in named if match and path.is_dir()}


def _trainer_state(path: Path) -> dict[str, Any]:
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    return state if isinstance(state, dict) else {}


def _seconds(path: Path) -> float:
    saved = _trainer_state(path).get("stateful_callbacks", {}).get("hbo_run", {})
    return float(saved.get("seconds", 0.0))


def _fault(path: Path, step: int) -> str | None:
    """Why a checkpoint cannot be resumed; ``None`` where it can."""
    try:
        state = _trainer_state(path)
    except (OSError, ValueError):
        return "trainer_state.json cannot be read"
    if state.get("global_step") != step:
        return "trainer_state.json is of another step"
    weights = sorted(path.glob("*.safetensors"))
    sharded = any(path.glob("pytorch_model_fsdp*")) or any(path.glob("global_step*"))
    if not weights and not sharded:
        return "it has no weights"
    for file in weights:
        if not is_whole_safetensors(file):
            return f"{file.name} is cut off"
    for file in path.glob("*.pt"):
        if not zipfile.is_zipfile(file):
            return f"{file.name} is cut off"
    return None
