"""The run directory: whose it is, and which checkpoint is whole."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hbo.config import from_mapping
from hbo.errors import ConfigError, EnvironmentProblem, StateError
from hbo.integrations.checkpoints import newest_checkpoint, seal
from hbo.measure.ranks import Ranks
from hbo.run import resume
from hbo.run.files import disk_is_full, write_whole
from hbo.run.folder import changed_keys, clear, holds_run, require_free
from hbo.run.folder import write_config as write_run_config
from hbo.run.resume import claim


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = {"global_step": step, "stateful_callbacks": {"hbo_run": {"seconds": 1.5 * step}}}
    (path / "trainer_state.json").write_text(json.dumps(state))
    save_file({"w": np.ones(8, dtype=np.float32)}, path / "model.safetensors")
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "none") == (None, [])
    for step in (8, 16, 100):
        checkpoint(tmp_path, step)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.callbacks["hbo_run"], damaged) == (100, {"seconds": 150.0}, [])


def test_a_run_is_another_one_by_its_settings_not_by_its_place(tmp_path: Path):
    values = {"model": "m", "training": {"learning_rate": 1e-5}, "datasets": {"a.b": {"weight": 1}}}
    write_run_config({**values, "output_dir": "x", "versions": {"hbo": "1"}}, tmp_path)
    assert changed_keys({**values, "output_dir": "y"}, tmp_path) == []
    values["datasets"] = {"a.b": {"weight": 2}}
    assert changed_keys({**values, "seed": 3}, tmp_path) == ['datasets."a.b".weight', "seed"]
    assert changed_keys(values, tmp_path / "none") == []


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(13, "Permission denied"), False),
        (RuntimeError("Error while serializing: I/O error: No space left on device"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 12 vs 1"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (ValueError("loss is nan"), False),
    ],
)
def test_a_full_disk_is_known_by_whatever_words_a_library_has(error: Exception, full: bool):
    assert disk_is_full(error) == full


@pytest.mark.parametrize(
    ("name", "keep", "reason"),
    [
        ("trainer_state.json", 20, "trainer_state.json cannot be read"),
        ("trainer_state.json", None, "trainer_state.json cannot be read"),
        ("model.safetensors", 50, "model.safetensors is cut off"),
        ("model.safetensors", None, "it has no weights"),
        ("optimizer.pt", 0, "optimizer.pt is cut off"),
    ],
)
def test_a_damaged_one_is_passed_over_and_told(
    tmp_path: Path, name: str, keep: int | None, reason: str
):
    checkpoint(tmp_path, 8)
    path = checkpoint(tmp_path, 16) / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep] if path.exists() else b"")
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 8
    assert damaged == [f"checkpoint-16 is damaged ({reason}) and passed over"]


def test_a_folder_with_a_run_is_not_taken(tmp_path: Path):
    loaded = from_mapping(
        {"model": "m", "datasets": {"a": {"path": "x"}}, "output_dir": str(tmp_path / "run")}
    )
    assert require_free(loaded, resume=False, overwrite=False) == tmp_path / "run"
    checkpoint(tmp_path / "run", 4)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds a run already"):
        require_free(loaded, resume=False, overwrite=False)
    require_free(loaded, resume=True, overwrite=False)
    clear(tmp_path / "run")
    assert not holds_run(tmp_path / "run")
    assert (tmp_path / "run" / "notes.txt").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "deep" / "a.json"
    write_whole(path, "one")
    with pytest.raises(TypeError):
        write_whole(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "one"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_a_run_none_of_whose_checkpoints_is_whole_is_not_thrown_away(tmp_path: Path):
    path = checkpoint(tmp_path, 4)
    seal(path, {})
    (path / "model.safetensors").write_bytes(b"cut")
    training = SimpleNamespace(main_process_first=lambda desc: nullcontext())
    with pytest.raises(StateError, match=r"no checkpoint is whole any more: checkpoint-4 .*--over"):
        claim(tmp_path, training, resume=True, overwrite=False)
    assert path.is_dir()
    assert claim(tmp_path, training, resume=False, overwrite=True)[0] is None
    assert not path.exists()


def test_what_was_never_written_to_its_end_is_begun_anew(tmp_path: Path):
    path = checkpoint(tmp_path, 4)
    (path / "trainer_state.json").write_text("{")
    training = SimpleNamespace(main_process_first=lambda desc: nullcontext())
    assert claim(tmp_path, training, resume=True, overwrite=False)[0] is None
    assert not path.exists()


@pytest.mark.parametrize(("seen", "refused"), [((0, 0), False), ((1, 1), False), ((0, 1), True)])
def test_ranks_must_see_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: tuple[int, int], refused: bool
):
    plan: Any = SimpleNamespace(budget=SimpleNamespace(steps=4))
    if seen[0]:
        (tmp_path / "summary.json").write_text('{"steps": 4}')
    two = Ranks(0, 2, lambda array: array + np.array([0.0, 0.0, seen[1]]))
    monkeypatch.setattr(resume, "all_ranks", lambda: two)
    if refused:
        with pytest.raises(EnvironmentProblem, match="a disk that all of them share"):
            resume.finished_summary(tmp_path, plan)
    else:
        assert bool(resume.finished_summary(tmp_path, plan)) == bool(seen[0])
