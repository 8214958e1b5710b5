"""Names in the documentation are names in the code, and every setting is documented."""

import dataclasses
import importlib
import re
import typing

import pytest
import yaml
from pydantic import BaseModel

from tests.docs.markdown import PAGES, ROOT

DOTTED = re.compile(r"`(hbo(?:\.\w+)+)(?:\(\))?`")
NAMES = sorted({name for page in PAGES for name in DOTTED.findall(page.read_text("utf-8"))})


def resolve(name: str) -> object:
    """Return what a dotted name stands for: a module, a thing in it, or a field of a class."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            fields = fields_of(found)
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def fields_of(thing: object) -> dict[str, object]:
    """Return the fields of a dataclass or of a part of the configuration."""
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        return dict(thing.model_fields)
    if isinstance(thing, type) and dataclasses.is_dataclass(thing):
        return {field.name: field for field in dataclasses.fields(thing)}
    return {}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_the_documentation_exists(name):
    resolve(name)


def test_names_that_do_not_exist_are_found():
    with pytest.raises(AttributeError):
        resolve("hbo.errors.NoSuchError")


def keys(model: type[BaseModel]) -> set[str]:
    """Return the keys of a part of the configuration and of the parts in it."""
    found = set(model.model_fields)
    for field in model.model_fields.values():
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= keys(kind)
    return found


def documented(page: str) -> set[str]:
    """Return everything that a page sets in code type."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {
        word for code in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[\s:,(){}]+", code)
    }


def test_every_configuration_key_is_documented():
    from hbo.config.schema import Config

    assert keys(Config) - {"fields"} - documented("configuration.md") == set()


def test_the_defaults_of_the_configuration_are_those_of_its_tables():
    from hbo.config import schema

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    sections = {
        "## Top level": schema.Config,
        "## `datasets.NAME`": schema.DatasetSection,
        "## `difficulty`": schema.DifficultySection,
        "## `balance`": schema.BalanceSection,
        "## `evaluation`": schema.EvaluationSection,
    }
    checked = 0
    for heading, model in sections.items():
        table = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
        written = dict(re.findall(r"^\| `(\w+)` \| `([^`|]+)` \|", table, re.MULTILINE))
        for key, field in model.model_fields.items():
            if isinstance(field.default, str | int | float) and key in written:
                assert yaml.safe_load(written[key]) == field.default, f"{heading} {key}"
                checked += 1
    assert checked >= 10


def test_every_policy_and_its_fields_are_documented():
    from hbo.policies import POLICIES

    page = documented("configuration.md")
    assert set(POLICIES) - page == set()
    assert {field for preset in POLICIES.values() for field in preset.fields} - page == set()


def test_the_defaults_of_the_three_presets_are_those_of_the_table():
    from hbo.policies import POLICIES

    names = ("hbo", "hbo-paper", "hbo-released")
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = text.partition("### Fields of HBO")[2].partition("\n\nWhere")[0]
    rows = [
        re.findall(r"`([^`]+)`", row)[:4] for row in table.splitlines() if row.startswith("| `")
    ]
    written = {field: [yaml.safe_load(value) for value in values] for field, *values in rows}
    fields = {field: [POLICIES[name].fields[field] for name in names] for field in written}
    assert written == fields
    assert set(written) == set(POLICIES["hbo"].fields)


def test_every_reward_and_difficulty_metric_is_documented():
    from hbo.difficulty.metrics import METRICS
    from hbo.rewards import GLOBAL_REWARDS, LOCAL_REWARDS

    assert {*METRICS, *GLOBAL_REWARDS, *LOCAL_REWARDS} - documented("configuration.md") == set()
