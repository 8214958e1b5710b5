"""No secret is written: not into the run's folder, not onto the screen."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hbo.cli.faults import explain
from hbo.config import from_mapping
from hbo.config.secrets import HIDDEN, hide, is_secret, without_hidden, without_secrets
from hbo.errors import DataError
from hbo.run.card import card_text
from hbo.run.folder import changed_keys, write_config
from tests.support.workspace import CONFIG
from tests.support.workspace import write_config as write_file

SECRET = "hunter2-and-more"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"
ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "COMET_API_KEY")
TRAINING = {
    **CONFIG["training"],
    "max_steps": 2,
    "hub_token": SECRET,
    "model_init_kwargs": {"token": SECRET},
}


@pytest.mark.parametrize(
    "key",
    ["hub_token", "token", "use_auth_token", "api_key", "wandb-api-key", "password", "Secret"],
)
def test_a_field_of_such_a_name_is_hidden(key: str):
    assert is_secret(key)
    values = {"training": {key: SECRET, "deep": [{key: 12345}]}}
    assert without_secrets(values, named=True) == {
        "training": {key: HIDDEN, "deep": [{key: HIDDEN}]}
    }


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "max_new_tokens", "author", "tokenizer"])
def test_a_field_of_the_vocabulary_is_not(key: str):
    assert not is_secret(key)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{SECRET}@host/x", "https://***@host/x"),
        (f"https://host/x?a=1&token={SECRET}&b=2", "https://host/x?a=1&token=***&b=2"),
        (f"https://host/x?X-Amz-Signature={SECRET}", "https://host/x?X-Amz-Signature=***"),
        (f"a {TOKEN} b", "a *** b"),
        ("who@where.example, hf_hub, a:b@c", "who@where.example, hf_hub, a:b@c"),
    ],
)
def test_a_text_shows_no_secret_that_has_a_form(text: str, shown: str):
    assert hide(text) == shown
    assert explain(DataError(text, where="a.jsonl")) == (2, f"a.jsonl: {shown}")


@given(st.text())
def test_hiding_twice_is_hiding_once(text: str):
    assert hide(hide(text)) == hide(text)


def test_mappings_given_as_json_text_are_hidden_too():
    values = {"model_init_kwargs": json.dumps({"token": SECRET, "a": 1})}
    hidden = without_secrets(values, named=True)
    assert json.loads(hidden["model_init_kwargs"]) == {"token": HIDDEN, "a": 1}


def test_a_subset_may_be_called_token():
    values = {"model": "m", "datasets": {"token": {"path": "x"}, "api_key": {"path": "y"}}}
    plain = from_mapping(values).config.plain()
    assert list(plain["datasets"]) == ["token", "api_key"]
    assert plain["datasets"]["token"]["path"] == "x"


def test_what_was_written_is_read_as_not_given_and_compares_as_the_same(tmp_path: Path):
    values = {"model": "m", "datasets": {"a": {"path": "x"}}, "training": TRAINING}
    config = from_mapping(values).config
    assert config.training["hub_token"] == SECRET
    write_config(config.plain(), tmp_path)
    assert changed_keys(config.plain(), tmp_path) == []
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["training"]["hub_token"] == HIDDEN
    again = from_mapping(written).config
    assert "hub_token" not in again.training
    assert again.training["model_init_kwargs"] == {}
    assert without_hidden(config.plain()) == again.plain() | {
        "training": without_hidden(config.plain())["training"]
    }


def test_the_model_card_hides_the_secret_of_an_address():
    values = {"model": f"https://me:{SECRET}@host/m", "datasets": {"a": {"path": "x"}}}
    summary = {"subsets": {}, "steps": 1, "draws": 1, "seed": 1}
    assert SECRET not in card_text(from_mapping(values).config, summary)


def files_with(folder: Path, secret: str) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    }


def test_a_run_writes_none_into_its_records(workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch):
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    write_file(workspace, training={**TRAINING, "save_steps": 1})
    for command in ("plan", "train"):
        said = hbo(command, "config.yaml")
        assert said.status == 0, said.err
        assert SECRET not in said.out + said.err
    said = hbo("train", "config.yaml", "--resume")
    assert "finished" in said.out, said.err  # the settings count as the same
    said = hbo("export", "run", "--output", "run/recipe")
    assert said.status == 0
    found = files_with(workspace / "run", SECRET)
    # The Trainer's own pickle of its arguments; it is not read back, nor in model/.
    assert {name for name in found if not name.endswith("/training_args.bin")} == set()
    assert "model/training_args.bin" not in found
    assert HIDDEN in (workspace / "run/config.yaml").read_text()
    assert HIDDEN in (workspace / "run/run.jsonl").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        ["training.hub_token=[a, hunter2-and-more]"],
        ["training.hub_token=hunter2-and-more", "training.hub_token.x=1"],
        ["training.hub_tokn=hunter2-and-more"],
        [f"model=https://me:{SECRET}@host/m"],
        [f"training.hub_token {TOKEN}"],
    ],
)
def test_no_error_cites_one(workspace: Path, hbo, settings: list[str]):
    said = hbo("plan", "config.yaml", *(word for text in settings for word in ("--set", text)))
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert SECRET not in said.err
    assert TOKEN not in said.err


def test_no_text_takes_long_to_be_cleaned():
    begun = time.monotonic()
    assert hide("?token" * 20_000 + "=abc").endswith("***")
    assert time.monotonic() - begun < 5  # minutes, were it more than linear
