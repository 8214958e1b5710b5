"""Folders in the user's cache."""

from __future__ import annotations

from pathlib import Path

from hbo.config import Config


def cache_dir() -> Path:
    """The user's cache of this package: assets and scores."""
    from hbo.assets import cache_root

    return Path(cache_root())


def scores_dir(config: Config) -> Path:
    """``difficulty.cache_dir``, else ``scores`` in the user's cache."""
    given = config.difficulty.cache_dir
    return Path(given) if given else cache_dir() / "scores"
