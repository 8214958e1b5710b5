"""A folder like a user's, for tests of what a run is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workspace import make_workspace


@pytest.fixture(scope="session")
def tiny_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that tests copy links of; never written to."""
    return make_workspace(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(tiny_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: its own configuration, model and data linked."""
    for name in ("model", "german.jsonl", "arabic.jsonl"):
        (tmp_path / name).symlink_to(tiny_workspace / name)
    (tmp_path / "config.yaml").write_bytes((tiny_workspace / "config.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HBO_CACHE", str(tmp_path / "cache"))
    return tmp_path
