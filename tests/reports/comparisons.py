"""What tests of comparisons share: entries, sizes, and what is written into a folder of one."""

from __future__ import annotations

import json
from pathlib import Path

from hbo.reports import write_comparison
from tests.reports.fake_run import FakeEntry
from tests.reports.pages import Page, parse

THREE = {"a": 40, "b": 10, "c": 25}
TEN = tuple(range(10))
PROP, BETTER, ALIKE = FakeEntry("prop"), FakeEntry("hbo", -0.3), FakeEntry("static")


def change(path: Path, edit) -> None:
    """Edit a JSON file in place."""
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def row_of(folder: Path, run: str, subset: str, half: str = "test") -> dict:
    """What ``heldout.json`` of a run holds of one subset."""
    return json.loads((folder / run / "heldout.json").read_text())["splits"][half][subset]


def page_of(folder: Path) -> tuple[str, Page]:
    """The page, as text and parsed; written anew."""
    text = write_comparison(folder).read_text(encoding="utf-8")
    return text, parse(text)
