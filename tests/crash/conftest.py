"""One server for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.runs import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A process that forks runs."""
    server = Server()
    yield server
    server.close()
