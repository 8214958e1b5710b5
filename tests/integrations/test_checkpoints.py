"""Which checkpoint a resume takes, when some are damaged; and what is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hbo.errors import StateError
from hbo.integrations.checkpoints import (
    HASHED_BYTES,
    SEAL,
    check_checkpoint,
    checkpoints_in,
    fault_of,
    kept_until_sealed,
    newest_checkpoint,
    rotate,
    seal,
    unseal,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def write_checkpoint(folder: Path, step: int, *, sealed: bool = True, ours: bool = True) -> Path:
    """A small checkpoint with every kind of file."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"weight": torch.zeros(64)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, path / name)
    callbacks = {"hbo": {"step": step}} if ours else {}
    state = {"global_step": step, "stateful_callbacks": callbacks}
    (path / "trainer_state.json").write_text(json.dumps(state))
    if sealed:
        seal(path, {"step": step})
    return path


def damage_seal(path: Path, **changes: Any) -> None:
    about = json.loads((path / SEAL).read_text()) | changes
    (path / SEAL).write_text(json.dumps(about))


def test_the_newest_whole_checkpoint_is_taken_and_each_damaged_one_named(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    write_checkpoint(tmp_path, 12, sealed=False)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None and (found.step, found.callbacks) == (4, {"hbo": {"step": 4}})
    assert damaged == [
        "checkpoint-12 is damaged (it was not written to its end) and passed over",
        "checkpoint-10 is damaged (optimizer.pt is missing) and passed over",
    ]


def test_only_folders_named_as_a_trainer_names_them_are_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2)
    for name in ("checkpoint-02", "checkpoint-٣", "checkpoint--1", "checkpoint-3.old", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert checkpoints_in(tmp_path) == {2: tmp_path / "checkpoint-2"}
    assert checkpoints_in(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("where", ["cut", "flipped", "empty", "longer", "missing", "folder"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", SEAL]
)
def test_no_damage_to_a_sealed_file_goes_unseen(tmp_path: Path, name: str, where: str) -> None:
    path = write_checkpoint(tmp_path, 3)
    assert fault_of(path, 3) is None
    file = path / name
    data = file.read_bytes()
    file.unlink()
    if where == "folder":
        file.mkdir()
    elif where != "missing":
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        wrong = {"cut": data[:middle], "flipped": flipped, "empty": b"", "longer": data + b"x"}
        file.write_bytes(wrong[where])
    fault = fault_of(path, 3)
    # A flipped letter in what people read of a seal is no damage; anywhere else it is.
    harmless = name == SEAL and where == "flipped" and fault is None
    assert fault is not None or harmless


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), number=st.integers(0, 4))
def test_a_flipped_bit_in_any_sealed_file_is_seen(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int, number: int
) -> None:
    path = write_checkpoint(tmp_path_factory.mktemp("run"), 3)
    file = sorted(file for file in path.iterdir() if file.name != SEAL)[number]
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 1 << bit
    file.write_bytes(bytes(data))
    assert fault_of(path, 3) is not None


@given(value=JSON, key=st.sampled_from(["schema", "files", None]))
def test_no_content_of_a_seal_or_state_gets_past_as_an_exception(
    tmp_path_factory: pytest.TempPathFactory, value: Any, key: str | None
) -> None:
    path = write_checkpoint(tmp_path_factory.mktemp("run"), 3)
    if key is None:
        (path / "trainer_state.json").write_text(json.dumps(value))
    else:
        damage_seal(path, **{key: value})
    fault = fault_of(path, 3)
    assert fault is not None or (key == "schema" and value in (1, True))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"files": ', "", "\0", "é"])
@pytest.mark.parametrize("name", [SEAL, "trainer_state.json"])
def test_files_that_are_no_json_are_damage(tmp_path: Path, name: str, text: str) -> None:
    path = write_checkpoint(tmp_path, 3)
    (path / name).write_bytes(text.encode("latin-1"))
    assert fault_of(path, 3) == f"{name} cannot be read"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_a_seal_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, 3)
    (tmp_path / "outside").write_text("x")
    files = json.loads((path / SEAL).read_text())["files"]
    damage_seal(path, files={name: {"bytes": 1}, **files})
    assert fault_of(path) == f"{SEAL} names files of other folders"


def test_a_seal_of_another_schema_and_an_empty_one_do_not_count(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3)
    damage_seal(path, schema=2)
    assert fault_of(path) == f"{SEAL} is of schema 2, this version reads 1"
    damage_seal(path, schema=1, files={})
    assert fault_of(path) == f"{SEAL} does not name trainer_state.json"


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in (SEAL, "trainer_state.json"):
        path = write_checkpoint(tmp_path / name, 3)
        (path / name).unlink()
        os.mkfifo(path / name)
        assert fault_of(path, 3) == f"{name} cannot be read"


def test_a_large_file_is_sealed_by_its_length(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, sealed=False)
    with (path / "large").open("wb") as file:
        file.truncate(HASHED_BYTES + 1)
    seal(path, {})
    assert json.loads((path / SEAL).read_text())["files"]["large"] == {"bytes": HASHED_BYTES + 1}
    os.truncate(path / "large", HASHED_BYTES)
    assert fault_of(path) == "large is cut off"


def test_a_checkpoint_of_another_step_than_its_name_is_damage(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3)
    path.rename(tmp_path / "checkpoint-4")
    assert newest_checkpoint(tmp_path)[1] == [
        "checkpoint-4 is damaged (trainer_state.json is of another step) and passed over"
    ]
    check_checkpoint(tmp_path / "checkpoint-4")  # by name: whoever renamed it knows


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_checkpoint_without_balancing_is_looked_at_for_what_is_cut_off(
    tmp_path: Path, name: str
) -> None:
    path = write_checkpoint(tmp_path, 3, sealed=False, ours=False)
    assert fault_of(path, 3) is None
    os.truncate(path / name, (path / name).stat().st_size // 2)
    assert fault_of(path, 3) == f"{name} is cut off"
    (path / name).unlink()
    assert (fault_of(path, 3) == "it has no weights") == (name == "model.safetensors")


def test_a_kill_while_sealing_leaves_no_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint(tmp_path, 3)
    unseal(path)

    def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        seal(path, {})
    monkeypatch.undo()
    assert fault_of(path, 3) == "it was not written to its end"
    seal(path, {})
    assert fault_of(path, 3) is None


def test_a_named_checkpoint_that_is_damaged_or_missing_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 3, sealed=False)
    with pytest.raises(StateError, match=r"checkpoint-3: .*not written to its end.*earlier one"):
        check_checkpoint(path)
    with pytest.raises(StateError, match="no such checkpoint"):
        check_checkpoint(tmp_path / "checkpoint-9")


def test_nothing_is_rotated_away_or_uploaded_before_the_seal() -> None:
    args: Any = SimpleNamespace(save_total_limit=1, push_to_hub=True)
    with pytest.raises(OSError), kept_until_sealed(args):
        assert (args.save_total_limit, args.push_to_hub) == (None, False)
        raise OSError
    assert (args.save_total_limit, args.push_to_hub) == (1, True)


def aged(folder: Path, *steps: int) -> None:
    """Checkpoints written one after another, ten seconds apart."""
    for age, step in enumerate(steps):
        path = write_checkpoint(folder, step)
        os.utime(path / SEAL, (age * 10, age * 10))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, {2, 4, 6, 8}),
        (0, None, {2, 4, 6, 8}),
        (1, None, {8}),
        (3, None, {4, 6, 8}),
        (1, 2, {2, 8}),
        (2, 2, {2, 8}),
        (3, 4, {4, 6, 8}),
        (2, 8, {6, 8}),
    ],
)
def test_the_newest_and_the_best_stay(
    tmp_path: Path, limit: int | None, best: int | None, left: set[int]
) -> None:
    aged(tmp_path, 2, 4, 6, 8)
    rotate(tmp_path / "checkpoint-8", limit, best and str(tmp_path / f"checkpoint-{best}"))
    assert set(checkpoints_in(tmp_path)) == left


def test_a_damaged_later_checkpoint_goes_before_a_whole_one(tmp_path: Path) -> None:
    aged(tmp_path, 4, 8)
    write_checkpoint(tmp_path, 12, sealed=False)
    os.utime(tmp_path / "checkpoint-12" / "trainer_state.json", (5, 5))
    rotate(tmp_path / "checkpoint-8", 1, None)
    assert set(checkpoints_in(tmp_path)) == {8}


def test_what_a_kill_left_half_removed_goes_first(tmp_path: Path) -> None:
    aged(tmp_path, 4, 8, 12)
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()  # the folder is the last to change
    rotate(tmp_path / "checkpoint-12", 2, None)
    assert set(checkpoints_in(tmp_path)) == {8, 12}


def test_a_checkpoint_that_is_half_removed_has_no_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(tmp_path, 4, 8)
    monkeypatch.setattr(shutil, "rmtree", lambda *_args, **_kwargs: None)
    rotate(tmp_path / "checkpoint-8", 1, None)
    assert fault_of(tmp_path / "checkpoint-4") == "it was not written to its end"
