"""docs/compatibility.md: what it calls tested has a test, and what it calls refused is refused."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
STATUSES = ("tested", "expected", "probed", "refused")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
QUOTED = re.compile(r'"([^"]+)"')


def rows() -> list[tuple[str, str, str]]:
    """Combination, status, test or reason: every row of every table of the page."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]
    table = [row for row in cells if row[0] != "combination" and not set(row[0]) <= set("-|")]
    assert all(len(row) == 3 for row in table)
    return table  # type: ignore[return-value]


def named(text: str) -> list[tuple[str, str]]:
    return TEST.findall(text)


@functools.cache
def functions(path: Path) -> set[str]:
    """Names of the functions of a file."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@functools.cache
def words_of_the_code() -> tuple[str, ...]:
    """Every piece of text in the package's code, as its error messages are written."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "src").rglob("*.py")]
    constants = (
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)
    )
    return tuple(node.value for node in constants if isinstance(node.value, str))


def test_there_are_tables_and_every_combination_stands_once():
    combinations = [row[0] for row in rows()]
    assert len(combinations) > 40
    assert len(set(combinations)) == len(combinations)
    assert {row[1] for row in rows()} == set(STATUSES)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_names_what_shows_it(row: tuple[str, str, str]):
    _, status, reason = row
    assert status in STATUSES
    for path, name in named(reason):
        assert (ROOT / path).is_file(), path
        assert name in functions(ROOT / path), f"{path} has no {name}"
    if status != "expected":
        assert named(reason)
    if status == "refused":
        (message,) = QUOTED.findall(reason)
        assert any(message in text for text in words_of_the_code()), message
    if status != "tested":
        assert len(TEST.sub("", reason)) > 20  # and why


def test_the_versions_are_those_of_the_tests():
    (row,) = (row for row in rows() if "transformers 5" in row[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = dict(
        line.split("==") for line in project["optional-dependencies"]["dev"] if "==" in line
    )
    for name in ("torch", "transformers", "trl", "accelerate", "datasets", "peft"):
        assert f"{name} {pinned[name]}" in row[0]
    assert f"Python {project['requires-python'].removeprefix('>=')}" in row[0]
