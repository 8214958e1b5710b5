"""Whole runs that something happens to: the command line in this process, or a trainer."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import pytest

from hbo.cli import main
from tests.cli.conftest import hbo, prepared, workspace
from tests.failures.runs import SAVING
from tests.integrations.conftest import built, make
from tests.support.workspace import make_workspace

__all__ = ["built", "hbo", "make", "prepared", "workspace"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to, for tests to compare with."""
    folder = make_workspace(tmp_path_factory.mktemp("whole"))
    with chdir(folder):
        assert main(["train", "config.yaml", *SAVING]) == 0
    return folder / "run"
