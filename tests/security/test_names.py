"""Subset names are any text: they stay names in paths, in tables, on the page and in the card."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hbo.config import Config
from hbo.reports import closing_table, export_recipe, write_report
from hbo.run.card import card_text
from tests.reports.fake_run import FakeRun, fake_run
from tests.security.mutate import EVIL_NAMES
from tests.support.workspace import CONFIG, write_config

IN_A_RUN = EVIL_NAMES[:2] + EVIL_NAMES[5:7] + EVIL_NAMES[8:10]
NAMES = st.sampled_from(EVIL_NAMES) | st.text(min_size=1, max_size=30)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
# What a terminal acts on, or what turns the text around it.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Tags(html.parser.HTMLParser):
    """Names of the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_whole_run_keeps_to_its_folders_and_shows_no_control_character(workspace: Path, hbo):
    datasets = {name: {"data_files": "german.jsonl"} for name in IN_A_RUN}
    write_config(
        workspace,
        datasets=datasets,
        difficulty={"metric": "loss", "groups": 2, "cache_dir": "scores"},
        balance={"policy": "hbo", "update_interval": 1, "lag": 1},
        training={**CONFIG["training"], "max_steps": 2, "save_steps": 1, "eval_strategy": "epoch"},
    )
    before = entries(workspace.parent)
    for command in (("plan", "config.yaml"), ("train", "config.yaml"), ("evaluate", "run")):
        said = hbo(*command)
        assert said.status == 0, said.err
        assert not CONTROL.search(said.out + said.err)
    said = hbo("export", "run", "--output", "recipe")
    assert said.status == 0, said.err
    new = entries(workspace.parent) - before
    allowed = r"workspace/(run|scores|recipe)(/.*)?|cache(/.*)?"
    assert {path for path in new if not re.fullmatch(allowed, path)} == set()
    # Not even inside a folder of ours does a name become a part of a path.
    files = {path for path in new if (workspace.parent / path).is_file()}
    assert {path for path in files if not re.fullmatch(r"[\w./-]+", path)} == set()
    assert not any("escape" in path or "evil" in path for path in files)
    summary = json.loads((workspace / "run/summary.json").read_text())
    assert tuple(summary["subsets"]) == IN_A_RUN


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory: pytest.TempPathFactory) -> Tags:
    folder = tmp_path_factory.mktemp("plain")
    fake_run(folder, {f"s{n}": 30 for n in range(len(IN_A_RUN))}, FakeRun(steps=8, interval=4))
    return tags_of(write_report(folder).read_text(encoding="utf-8"))


def tags_of(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_the_page_has_the_tags_of_any_page(tmp_path: Path, plain_tags: Tags):
    model = '"><img src=x onerror=alert(1)>\u202e\x1b[0m'
    sizes = dict.fromkeys(IN_A_RUN, 30)
    fake_run(tmp_path, sizes, FakeRun(steps=8, interval=4, model=model))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    tags = tags_of(page)
    assert (tags.tags, tags.attributes) == (plain_tags.tags, plain_tags.attributes)
    assert "script" not in tags.tags
    assert not CONTROL.search(page)


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_the_closing_table_shows_any_name_on_one_line(names: list[str]):
    summary = {"subsets": {name: {"draws": 1} for name in names}, "policy": "\x1b[31m"}
    table = closing_table(summary)
    assert not CONTROL.search(table)
    assert len(table.splitlines()) == len(closing_table({"subsets": {}}).splitlines()) + len(names)


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_recipes_say_any_name_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]):
    folder = tmp_path_factory.mktemp("run")
    fake_run(folder, dict.fromkeys(names, 20), FakeRun(steps=4, interval=2))
    files = export_recipe(folder, output=folder / "recipe")
    assert entries(folder / "recipe") == set(files)
    assert list(json.loads(files["mixture.json"])["final"]) == names
    for name, text in files.items():
        if name.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
    assert re.fullmatch(r"[\w.,-]+", yaml.safe_load(files["llamafactory.yaml"])["dataset"])


def card(model: str, names: list[str]) -> str:
    values = {"model": model, "datasets": {name: {"data_files": "x"} for name in names}}
    row = {
        "examples": 1, "draws": 1, "passes": 1.0,
        "holdout_loss_before": 1.0, "holdout_loss_after": None,
    }  # fmt: skip
    summary: dict[str, Any] = {"steps": 1, "draws": 1, "seed": 1}
    return card_text(
        Config.model_validate(values), summary | {"subsets": dict.fromkeys(names, row)}
    )


@settings(max_examples=60)
@given(
    st.sampled_from(EVIL_NAMES) | TEXTS,
    st.lists(TEXTS | st.sampled_from(EVIL_NAMES), min_size=1, max_size=3, unique=True),
)
def test_a_name_can_add_nothing_to_the_model_card(model: str, names: list[str]):
    from huggingface_hub import ModelCard

    found = ModelCard(card(model, names))
    plain = ModelCard(card("plain", ["a"] * 1))
    assert found.data.to_dict() == {**plain.data.to_dict(), "base_model": model}
    body = found.text
    assert "<" not in body
    assert not CONTROL.search(body)
    assert not re.search(
        r"(?<!\\)[`|\[]", re.sub(r"^\| | \| | \|$|`hbo`|\|---.*", "", body, flags=re.M)
    )
    assert body.count("\n") == plain.text.count("\n") + len(names) - 1
