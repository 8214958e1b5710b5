"""A comparison that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reports.comparisons import ALIKE, BETTER, PROP, THREE
from tests.reports.fake_run import fake_comparison


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_comparison(tmp_path_factory.mktemp("three"), [PROP, ALIKE, BETTER], sizes=THREE)
