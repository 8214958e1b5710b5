"""Entries of a comparison: what each one's configuration is, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hbo.config import load_config
from hbo.config.entries import Entry, entries_of, names_of, reference_of, refuse_secrets
from hbo.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = """model: m
datasets: {a: {data_files: a.jsonl}, b: {data_files: b.jsonl}}
balance: {policy: hbo, update_interval: 50, rate: 0.3, prior_temperature: 2.0, lag: 4}
"""


@pytest.fixture
def entries(tmp_path: Path):
    """Load a configuration with this ``policies`` block; its entries by name."""

    def load(block: str, *names: str, base: str = BASE) -> dict[str, Entry]:
        path = tmp_path / "c.yaml"
        path.write_text(base + block)
        loaded = load_config(path)
        return {e.name: e for e in entries_of(loaded, names or list(loaded.config.policies))}

    return load


def balance(entry: Entry) -> dict[str, Any]:
    section = entry.configured(3, "out", False).config.balance
    return {"policy": section.policy, "lag": section.lag, **section.fields}


def test_the_policy_of_balance_has_all_its_fields_and_another_one_the_shared_ones(entries):
    found = entries("", "hbo", "hbo-paper", "prop")
    shared = {"lag": 4, "update_interval": 50}
    prior = {"prior_temperature": 2.0}
    assert balance(found["hbo"]) == {"policy": "hbo", **shared, "rate": 0.3, **prior}
    assert balance(found["hbo-paper"]) == {"policy": "hbo-paper", **shared, **prior}
    assert balance(found["prop"]) == {"policy": "prop", **shared}  # it has no prior to leave


def test_an_entry_overrides_what_balance_says_and_set_any_other_key(entries):
    found = entries(
        "policies:\n"
        "  temp: {temperature: 5, update_interval: 7}\n"
        "  uni:\n"
        "  mine: {policy: hbo, prior_temperature: .inf, lag: 2, top_up: 0.5,\n"
        "         set: {difficulty.groups: 1, 'datasets.\"a\".max_passes': 3}}\n"
    )
    assert balance(found["temp"])["policy"] == "temp"  # after the entry's name
    assert balance(found["temp"])["temperature"] == 5
    assert balance(found["temp"])["update_interval"] == 7
    assert found["uni"].policy == "uni"
    mine = found["mine"].configured(9, "out", True).config
    assert (mine.seed, mine.output_dir, mine.balance.lag, mine.balance.top_up) == (9, "out", 2, 0.5)
    assert mine.balance.fields == {
        "update_interval": 50,
        "rate": 0.3,
        "prior_temperature": math.inf,
    }
    assert (mine.difficulty.groups, mine.datasets["a"].max_passes) == (1, 3)
    assert mine.datasets["b"].max_passes is None
    assert mine.evaluation.validation and mine.evaluation.before
    assert not mine.policies
    assert not found["mine"].configured(9, "out", False).config.evaluation.before


def test_choose_makes_an_entry_of_every_combination(entries):
    found = entries(
        "policies:\n  tuned: {policy: hbo, choose: {rate: [0.2, 0.5], difficulty.groups: [1, 2]}}\n"
    )
    assert list(found) == [
        "tuned rate=0.2 difficulty.groups=1",
        "tuned rate=0.2 difficulty.groups=2",
        "tuned rate=0.5 difficulty.groups=1",
        "tuned rate=0.5 difficulty.groups=2",
    ]
    last = found["tuned rate=0.5 difficulty.groups=2"]
    assert (last.of, last.group, last.set) == ("tuned", "tuned", {"difficulty.groups": 2})
    config = last.configured(1, "out", False).config
    assert (config.balance.fields["rate"], config.difficulty.groups) == (0.5, 2)


def test_a_required_field_may_be_given_by_choose(entries):
    assert len(entries("policies:\n  s: {policy: schedule, choose: {points: [[{step: 0, weights: "
                       "[1, 2]}], [{step: 0, weights: [2, 1]}]]}}\n")) == 2  # fmt: skip


REFUSED = [
    ("mine: {policy: hbo,\n   lag: 0}", "c.yaml:6: policies.mine.lag: is 0; must be at least 1"),
    ("mine: {policy: hbo,\n   rat: 0}", "c.yaml:6: policies.mine.rat: unknown key 'rat'; did you"),
    ("mine: {lag: 1}", "c.yaml:5: policies.mine.policy: unknown policy 'mine'"),
    ("mine: 3", "c.yaml:5: policies.mine: is 3; must be a mapping"),
    ("m: {policy: hbo,\n   set: {difficulty.groups: x}}", "c.yaml:6: difficulty.groups: is 'x'"),
    ("m: {policy: hbo,\n   set: {seed: 1}}", "c.yaml:6: policies.m.set.seed: is the same for all"),
    ("m: {policy: hbo,\n   set: {evaluation.holdout: 0.2}}", "is the same for all entries"),
    ("m: {policy: hbo,\n   set: {balance.lag: 1}}", "belongs to the entry itself: write lag bes"),
    ("m: {policy: hbo,\n   set: {training.hub_token: x}}", "is a secret, which is written down no"),
    ("m: {policy: hbo,\n   set: {a..b: x}}", 'c.yaml:6: policies.m.set."a..b": is no dotted key'),
    ("m: {policy: hbo,\n   choose: {rate: 1}}", "policies.m.choose.rate: is 1; must be a list"),
    ("m: {policy: hbo,\n   choose: {rate: [1, x]}}", "c.yaml:6: policies.m.rate: is 'x'"),
    ("m: {policy: hbo, choose: {rate: [1, 1]}}", "choose.rate: holds a value twice"),
    ("m: {policy: hbo, rate: 1, choose: {rate: [0.5]}}", "choose.rate: is given beside choose"),
    (
        f"m: {{policy: hbo, choose: {{rate: {[n / 101 for n in range(101)]}}}}}",
        "makes 101 combinations; at most 100",
    ),
]


@pytest.mark.parametrize(("block", "message"), REFUSED, ids=[case[1][:30] for case in REFUSED])
def test_an_impossible_entry_is_refused_at_its_line(entries, block: str, message: str):
    with pytest.raises(ConfigError) as caught:
        entries(f"policies:\n  {block}\n")
    assert message in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest(entries):
    with pytest.raises(ConfigError, match="--policies: unknown policy 'unni'; did you mean 'uni'"):
        entries("", "unni")


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ("training: {hub_token: abc}\n", "c.yaml:4: training.hub_token"),
        ("on_bad_record: skip\ntuning: {model_name_or_path: 'https://a:b@c/d'}\n",
         "c.yaml:5: tuning.model_name_or_path"),
    ],
)  # fmt: skip
def test_secrets_are_refused_since_configurations_are_written_down(tmp_path, more, place):
    path = tmp_path / "c.yaml"
    path.write_text(BASE + more)
    with pytest.raises(ConfigError) as caught:
        refuse_secrets(load_config(path))
    assert place in str(caught.value)
    assert "abc" not in str(caught.value) and "a:b" not in str(caught.value)


def test_a_configuration_without_secrets_is_none(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "training: {lr_scheduler_kwargs: '{\"a\":1}', hub_token: '***'}\n")
    refuse_secrets(load_config(path))


@pytest.mark.parametrize(
    ("block", "reference"),
    [
        ("a: {policy: uni}\n  b: {policy: prop}\n  prop: {policy: prop}", "prop"),
        ("prop: {policy: uni}\n  b: {policy: prop}", "prop"),
        ("a: {policy: prop, set: {train_share: 0.5}}\n  b: {policy: prop}", "b"),
        ("a: {policy: uni}\n  b: {policy: temp, choose: {temperature: [2, 3]}}", "a"),
        ("b: {policy: temp, choose: {temperature: [2, 3]}}", "b"),
    ],
)
def test_the_reference_is_proportional_sampling_where_nobody_says(entries, block, reference):
    assert reference_of(list(entries(f"policies:\n  {block}\n").values())) == reference


RECIPES = sorted(
    path
    for folder in ("analyses", "paper")
    for path in (ROOT / "configs" / folder).glob("*.yaml")
    if path.name != "common.yaml"
)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_compares_different_things_with_proportional_sampling(path: Path):
    loaded = load_config(path)
    found = entries_of(loaded, names_of(loaded))
    assert len(found) > 3
    reference = reference_of(found)
    assert [entry.policy for entry in found if entry.group == reference] == ["prop"]
    plain = [entry.configured(1, "out", False).config.plain() for entry in found]
    equal = [(found[a].name, found[b].name) for b in range(len(found)) for a in range(b)
             if plain[a] == plain[b]]  # fmt: skip
    assert equal == []


def test_no_two_analyses_share_a_folder():
    folders = [load_config(path).config.output_dir for path in RECIPES]
    assert len(set(folders)) == len(RECIPES)
