"""Checkpoints that are whole or not there: sealed when written, looked over before a resume."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbo.errors import StateError

if TYPE_CHECKING:
    from transformers import TrainingArguments

SEAL = "hbo_state.json"
STATE_KEY = "hbo"
"""Under which balancing keeps its state among a trainer's stateful callbacks."""
TRAINER_STATE = "trainer_state.json"
SCHEMA = 1
HASHED_BYTES = 16 * 2**20
"""Files up to this size are sealed by their hash too, larger ones by their length."""
_UNSEALED = {SEAL, "training_args.bin"}  # no resume reads the latter
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be resumed.

    Args:
        path: Its folder.
        step: Optimiser steps done.
        callbacks: What stateful callbacks saved in it, by name.
    """

    path: Path
    step: int
    callbacks: Mapping[str, Any]


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Every ``checkpoint-N`` of a folder by its step, whole or not."""
    if not folder.is_dir():
        return {}
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    return {int(match[1]): path for path, match in named if match and path.is_dir()}


def holds_sealed(folder: Path) -> bool:
    """Whether any checkpoint of a folder was once written to its end."""
    return any((path / SEAL).exists() for path in checkpoints_in(folder).values())


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The last checkpoint that is whole, and a line on each damaged one that was passed over."""
    damaged: list[str] = []
    for step, path in sorted(checkpoints_in(folder).items(), reverse=True):
        fault = fault_of(path, step)
        if fault is None:
            return Checkpoint(path, step, _callbacks(_read(path / TRAINER_STATE))), damaged
        damaged.append(f"{path.name} is damaged ({fault}) and passed over")
    return None, damaged


def fault_of(path: Path, step: int | None = None) -> str | None:
    """Why a checkpoint cannot be resumed; ``None`` where it can.

    A sealed one is compared with its seal, file by file. One without a seal, as a trainer without
    balancing writes it, is only looked at: its state, and whether weights are cut off.

    Args:
        path: The checkpoint.
        step: What its name says.
    """
    try:
        state = _read(path / TRAINER_STATE)
    except (OSError, ValueError):
        return f"{TRAINER_STATE} cannot be read"
    if step is not None and state.get("global_step") != step:
        return f"{TRAINER_STATE} is of another step"
    if (path / SEAL).exists():
        return _broken_seal(path)
    if _is_ours(state):
        return "it was not written to its end"
    return _cut_off(path)


def check_checkpoint(path: Path) -> None:
    """Refuse a damaged checkpoint that somebody asked for by name.

    Raises:
        StateError: It is damaged, or not there.
    """
    if not path.is_dir():
        raise StateError("there is no such checkpoint; name a folder checkpoint-N", where=str(path))
    fault = fault_of(path)
    if fault is not None:
        raise StateError(
            f"the checkpoint is damaged ({fault}); resume from an earlier one", where=str(path)
        )


@contextmanager
def kept_until_sealed(args: TrainingArguments) -> Iterator[None]:
    """While a checkpoint is written, older ones are not rotated away, and none is uploaded."""
    limit, args.save_total_limit = args.save_total_limit, None
    push, args.push_to_hub = args.push_to_hub, False
    try:
        yield
    finally:
        args.save_total_limit, args.push_to_hub = limit, push


def seal(path: Path, about: Mapping[str, Any]) -> None:
    """Say that a checkpoint is whole, in a file that is itself written whole or not at all.

    Args:
        path: The checkpoint, all its files written.
        about: What people may want to know of it; JSON-safe.
    """
    files = {name: _mark(path / name) for name in _files(path)}
    text = json.dumps({"schema": SCHEMA, **about, "files": files}, indent=1, ensure_ascii=False)
    temporary = path / f".{SEAL}.tmp"
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / SEAL)


def unseal(path: Path) -> None:
    """Before a checkpoint is written over an older one of the same step."""
    (path / SEAL).unlink(missing_ok=True)


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beside one that is sealed.

    The age of a checkpoint is that of its seal: the folder itself changes when a kill leaves it
    half removed, and a damaged one may be of a later step than the newest.

    Args:
        newest: Stays.
        limit: How many stay; ``None``: all.
        best: Stays too.
    """
    if not limit or limit < 0:
        return
    kept = {path.resolve() for path in (newest, *([Path(best)] if best else [])) if path.is_dir()}
    found = checkpoints_in(newest.parent)
    older = [step for step, path in found.items() if path.resolve() not in kept]
    older.sort(key=lambda step: (_written(found[step]), step))
    for step in older[: max(len(older) + len(kept) - limit, 0)]:
        unseal(found[step])  # half removed, it is not taken for whole
        shutil.rmtree(found[step], ignore_errors=True)


def _written(path: Path) -> float:
    """When a checkpoint was finished; 0 where it was not."""
    for name in (SEAL, TRAINER_STATE):
        if (path / name).is_file():
            return (path / name).stat().st_mtime
    return 0.0


def _files(path: Path) -> list[str]:
    found = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(file.relative_to(path).as_posix() for file in found if file.name not in _UNSEALED)


def _mark(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if size > HASHED_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _broken_seal(path: Path) -> str | None:
    try:
        seal = _read(path / SEAL)
        if seal["schema"] != SCHEMA:
            return f"{SEAL} is of schema {seal['schema']!r}, this version reads {SCHEMA}"
        for name, mark in seal["files"].items():
            fault = _broken_file(path, name, mark)
            if fault is not None:
                return fault
        if seal.get("finite_weights") is False:
            return "its weights are not finite"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{SEAL} cannot be read"
    return None if TRAINER_STATE in seal["files"] else f"{SEAL} does not name {TRAINER_STATE}"


def _broken_file(path: Path, name: str, mark: Mapping[str, Any]) -> str | None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{SEAL} names files of other folders"
    file = path / name
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size < mark["bytes"]:
        return f"{name} is cut off"
    return None if _mark(file) == mark else f"{name} has changed"


def _cut_off(path: Path) -> str | None:
    weights = sorted(path.glob("*.safetensors"))
    sharded = any(path.glob("pytorch_model_fsdp*")) or any(path.glob("global_step*"))
    if not weights and not sharded:
        return "it has no weights"
    cut = [file.name for file in weights if not is_whole_safetensors(file)]
    cut += [file.name for file in sorted(path.glob("*.pt*")) if not zipfile.is_zipfile(file)]
    return f"{cut[0]} is cut off" if cut else None


def is_whole_safetensors(path: Path) -> bool:
    """Whether a weights file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            file.keys()
    except (SafetensorError, OSError):
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError("not a file")  # a pipe would never end
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a table")
    return value


def _callbacks(state: Mapping[str, Any]) -> Mapping[str, Any]:
    found = state.get("stateful_callbacks")
    return found if isinstance(found, dict) else {}


def _is_ours(state: Mapping[str, Any]) -> bool:
    return STATE_KEY in _callbacks(state)
