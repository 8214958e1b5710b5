"""What holds for every asset of the table."""

from __future__ import annotations

import re

import pytest

from hbo.assets import ASSETS, cache_root, is_asset, list_assets


@pytest.mark.parametrize("asset", list_assets(), ids=lambda asset: asset.name)
def test_every_asset_says_what_it_is(asset):
    assert is_asset(asset.name) and ASSETS[asset.name] is asset
    assert asset.description and asset.licence and asset.revision
    assert re.fullmatch(r"[a-z0-9-]+", asset.name)
    assert asset.room >= asset.download_size
    assert (asset.kind == "model") or asset.wheels
    assert not asset.gguf or asset.kind == "model"
    for wheel in asset.wheels:
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HBO_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("HBO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "hbo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "hbo"
