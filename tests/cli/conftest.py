"""The command line run in this process, in a folder like a user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hbo.cli import main
from tests.support.workspace import make_workspace


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that tests copy links of; never written to."""
    return make_workspace(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: its own files, the model linked."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "model").symlink_to(prepared / "model")
    for name in ("german.jsonl", "arabic.jsonl", "config.yaml"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HBO_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def hbo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run ``hbo`` with these arguments."""

    def run(*arguments: str | os.PathLike[str]) -> Said:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run
