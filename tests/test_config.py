"""Configurations: what is read, what is refused, and whether the message helps."""

# ruff: noqa: E501  (a table of cases reads best with one case a line)

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hbo.config import from_mapping, load_config
from hbo.config.document import Document, load_document
from hbo.config.overrides import apply_override, split_path
from hbo.config.trl import check_trl, with_cpu_defaults
from hbo.errors import ConfigError

BASE = """\
model: some-model
datasets:
  german: {data_files: german.jsonl, weight: 0.7}
  arabic: {path: exams, name: arabic, weight: 0.3}
training:
  max_steps: 10
  learning_rate: 1e-5
balance:
  policy: hbo
  update_interval: 50
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_whole_configuration_is_read(write):
    config = load_config(write(BASE)).config
    assert list(config.datasets) == ["german", "arabic"]
    assert config.training["learning_rate"] == 1e-5
    assert config.balance.fields == {"update_interval": 50}
    assert config.weights == [0.7, 0.3]
    assert config.output_dir == "runs/config"
    assert (config.seed, config.evaluation.holdout, config.difficulty.groups) == (42, 0.1, 4)


def test_json_and_yaml_are_the_same(write):
    values = yaml.safe_load(BASE.replace("1e-5", "1.0e-5"))
    text = json.dumps(values, indent="\t")
    from_json = load_config(write(text, "config.json")).config
    assert from_json == load_config(write(BASE)).config


def test_the_resolved_configuration_reads_back_as_itself(write):
    config = load_config(write(BASE + "difficulty: {metric: 'column:grade'}\n")).config
    again = load_config(write(yaml.safe_dump(config.plain()), "again.yaml")).config
    assert again == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.5e+3", 1500.0), (".5", 0.5), ("-2e-3", -0.002),
        ("12", 12), ("0x10", 16), ("010", 10), ("12:30", "12:30"), ("1_000", 1000),
        ("true", True), ("off", False), ("~", None), ("", None), ("'1e-5'", "1e-5"), (".inf", float("inf")),
    ],
)  # fmt: skip
def test_yaml_values_mean_what_they_look_like(write, text: str, value: Any):
    found = load_document(write(f"key: {text}\n")).values["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "name", ["no", "1", "null", "on", "1e5", "a.b", "<script>", "../x", "مزيج"]
)
def test_a_subset_may_have_any_name(write, name: str):
    quoted = f"'{name}'" if name == "a.b" else name
    path = write(f"model: m\ndatasets:\n  {quoted}: {{path: x}}\n")
    assert list(load_config(path).config.datasets) == [name]


MESSAGES = [
    ("modle: x\n" + BASE, "config.yaml:1: modle: unknown key 'modle'; did you mean 'model'? Allowed:"),
    (BASE.replace("data_files: german", "data_fiels: german"),
     "config.yaml:3: datasets.german.data_fiels: unknown key 'data_fiels'; did you mean 'data_files'?"),
    (BASE.replace("update_interval", "update_intervall"),
     "config.yaml:10: balance.update_intervall: unknown key 'update_intervall'; "
     "did you mean 'update_interval'?"),
    (BASE.replace("hbo", "hbo-papr"),
     "config.yaml:9: balance.policy: unknown policy 'hbo-papr'; did you mean 'hbo-paper'?"),
    (BASE.replace("50", "0"), "config.yaml:10: balance.update_interval: is 0; allowed: a whole number"),
    (BASE.replace("weight: 0.3", "streaming: true"), "config.yaml:4: datasets.arabic.streaming: 'streaming' gives"),
    (BASE.replace("weight: 0.3", "fraction: 0.3"), "config.yaml:4: datasets.arabic.fraction: 'fraction' is TRL's"),
    (BASE.replace(", weight: 0.3", ""),
     "config.yaml:4: datasets.arabic: has no weight, but other datasets have"),
    (BASE.replace("weight: 0.3", "weight: 0"), "config.yaml:4: datasets.arabic.weight: is 0; must be above"),
    (BASE.replace("weight: 0.3", "weight: '0.3'"),
     "config.yaml:4: datasets.arabic.weight: is '0.3'; must be a number"),
    (BASE.replace("weight: 0.3", "weight: true"),
     "config.yaml:4: datasets.arabic.weight: is true; must be a number"),
    (BASE.replace("name: arabic", "name: no"), "config.yaml:4: datasets.arabic.name: is false; must be text"),
    (BASE.replace("path: exams, ", ""), "config.yaml:4: datasets.arabic: needs 'path'"),
    (BASE.replace("german.jsonl", "3"), "config.yaml:3: datasets.german.data_files: is 3; must be a file"),
    (BASE.replace("weight: 0.7", "weight: 0.7, min_share: 0.8").replace("weight: 0.3", "weight: 0.3, min_share: 0.4"),
     "config.yaml:4: datasets.arabic.min_share: the min_share of all datasets sum to 1.2"),
    (BASE.replace("weight: 0.7", "weight: 0.7, max_share: 0.3").replace("weight: 0.3", "weight: 0.3, max_share: 0.4"),
     "config.yaml:4: datasets.arabic.max_share: the max_share of all datasets sum to 0.7"),
    (BASE.replace("weight: 0.7", "weight: 0.7, min_share: 0.5, max_share: 0.2"),
     "config.yaml:3: datasets.german.min_share: is 0.5, above max_share 0.2; lower it"),
    (BASE.replace("weight: 0.7", "weight: 0.7, max_passes: -1"), "datasets.german.max_passes: is -1; must be above 0"),
    (BASE + "evaluation: {holdout: 0.7}\n", "config.yaml:11: evaluation.holdout: is 0.7; must be at most 0.5"),
    (BASE + "difficulty: {groups: 2.5}\n", "config.yaml:11: difficulty.groups: is 2.5; must be a whole number"),
    (BASE + "difficulty: {metric: idf}\n",
     "config.yaml:11: difficulty.metric: unknown value 'idf'; did you mean 'ifd'? Allowed: ifd, ifd-loss"),
    (BASE + "on_bad_record: ignore\n", "config.yaml:11: on_bad_record: unknown value 'ignore'; Allowed: error, skip"),
    (BASE + "seed: -1\n", "config.yaml:11: seed: is -1; must be at least 0"),
    (BASE + "tuning: 3\n", "config.yaml:11: tuning: is 3; must be a mapping"),
    (BASE + "seed: 1\nseed: 2\n", "config.yaml:12: 'seed' is given twice; keep one"),
    (BASE + "policies:\n  mine: {policy: hbo, rat: 0.1}\n",
     "config.yaml:12: policies.mine.rat: unknown key 'rat'; did you mean 'rate'?"),
    ("model: m\n", "config.yaml:1: datasets: is missing; it is required"),
    ("model: m\ndatasets: {}\n", "config.yaml:2: datasets: is empty; name at least one dataset"),
    ("model: m\ndatasets: [a]\n", "config.yaml:2: datasets: is ['a']; must be a mapping"),
    ("", "config.yaml:1: the file is empty"),
    ("- a\n", "config.yaml:1: must be a mapping of settings"),
    ("model: m\ndatasets: {a: {path: [}\n", "config.yaml:2: not valid YAML:"),
    ("model: m\n  seed: 1\n", "config.yaml:2: not valid YAML: mapping values are not allowed here"),
    ("model: !!python/object/apply:os.system [ls]\n", "config.yaml:1: the tag 'tag:yaml.org,2002:python/object"),
    ("model: \x00\n", "config.yaml:1: not valid YAML: special characters are not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_an_error_says_where_what_and_what_is_allowed(write, text: str, message: str):
    found = error_of(write(text))
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"model": "m",\n "datasets": {"a": {"pth": "x"}}}',
            "config.json:2: datasets.a.pth: unknown key",
        ),
        ('{"model": "m",\n "model": "n"}', "config.json:2: 'model' is given twice"),
        ('{"model": "m",\n', "config.json:2: not valid JSON: Expecting"),
        ('{"model": NaN}', "config.json:1: NaN is no JSON number"),
        ("[1]", "config.json:1: must be an object"),
    ],
)
def test_json_errors_name_their_line_too(write, text: str, message: str):
    assert message in error_of(write(text, "config.json"))


def test_a_file_that_is_not_there_or_no_configuration(tmp_path: Path):
    assert "none.yaml: no such configuration file" in error_of(tmp_path / "none.yaml")
    assert "a configuration is a .yaml" in error_of(tmp_path / "data.jsonl")
    (tmp_path / "latin.yaml").write_bytes(b"model: m\nname: \xe4\n")
    assert "latin.yaml:2: not UTF-8 text" in error_of(tmp_path / "latin.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml: cannot be read" in error_of(tmp_path / "folder.yaml")


def test_of_several_errors_the_first_line_is_told(write):
    path = write(BASE.replace("weight: 0.3", "weight: -1") + "seed: x\n")
    assert "config.yaml:4: datasets.arabic.weight" in error_of(path)


def test_aliases_cannot_grow_without_bound(write):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "nested too deeply or too large" in error_of(write("\n".join(lines)))
    assert "nested too deeply or too large" in error_of(write("a: &a [*a]\n"))


def test_aliases_and_merges_work(write):
    text = "model: m\ndatasets:\n  a: &base {path: x, max_passes: 3}\n  b: {<<: *base, name: n}\n"
    datasets = load_config(write(text)).config.datasets
    assert (datasets["b"].path, datasets["b"].name, datasets["b"].max_passes) == ("x", "n", 3)


# --- --set --------------------------------------------------------------------------------------


def test_set_reads_yaml_and_quoted_names(write):
    overrides = [
        "training.learning_rate=1e-3",
        'datasets."a.b".path=x=y',
        "datasets.'a.b'.weight=2",
        "balance={policy: prop}",
        "evaluation.holdout=0.2",
        "output_dir=out",
    ]
    config = load_config(write(BASE), overrides).config
    assert config.training["learning_rate"] == 1e-3
    assert config.datasets["a.b"].path == "x=y"
    assert config.weights is not None
    assert sum(config.weights) == pytest.approx(1)
    assert (config.balance.policy, config.balance.fields) == ("prop", {})
    assert (config.evaluation.holdout, config.output_dir) == (0.2, "out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr", "--set: 'training.lr' has no value or an empty name"),
        ("=3", "--set: '=3' has no value or an empty name"),
        ('datasets."a.b=3', "has an unclosed quote"),
        ("model.name=3", "--set: model.name: model is 'some-model', not a mapping"),
        ("sed=3", "--set: sed: unknown key 'sed'; did you mean 'seed'?"),
        ("balance.rate=7", "--set: balance.rate: is 7; allowed: a number from 0 to 1"),
        ("seed=[", "--set: not valid YAML"),
        ("seed=!!python/none", "--set: the tag"),
        ("datasets.german.weight=-1", "--set: datasets.german.weight: is -1; must be above 0"),
    ],
)
def test_set_errors_are_at_set(write, override: str, message: str):
    assert message in error_of(write(BASE), override)


def test_a_set_through_an_alias_changes_one_place_only(write):
    text = "model: m\ndatasets:\n  a: &base {path: x}\n  b: *base\n"
    datasets = load_config(write(text), ["datasets.b.max_passes=2"]).config.datasets
    assert (datasets["a"].max_passes, datasets["b"].max_passes) == (None, 2)


@given(st.lists(st.text(st.characters(exclude_characters="\"'=."), min_size=1), min_size=1))
def test_a_path_of_plain_names_splits_back(names: list[str]):
    assert split_path(".".join(names) + "=1=2") == (tuple(names), "1=2")


# --- TRL's own fields ---------------------------------------------------------------------------


def trl_error(**changes: Any) -> str:
    values = {"model": "m", "datasets": {"a": {"path": "x"}}, **changes}
    with pytest.raises(ConfigError) as caught:
        check_trl(from_mapping(values))
    return str(caught.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"max_step": 3}, "training.max_step: unknown key 'max_step'; did you mean 'max_steps'?"),
        ({"seed": 3}, "training.seed: is not set here; set the top-level 'seed' instead"),
        (
            {"output_dir": "x"},
            "training.output_dir: is not set here; set the top-level 'output_dir'",
        ),
        ({"data_seed": 3}, "training.data_seed: is not set here"),
        ({"resume_from_checkpoint": "x"}, "use `hbo train --resume` instead"),
        ({"learning_rate": "fast"}, "training.learning_rate: is 'fast'; must be a number"),
        (
            {"learning_rate": -1.0},
            "training.learning_rate: is -1.0; must be a finite number, at least 0",
        ),
        ({"learning_rate": True}, "training.learning_rate: is true; must be a number"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: is 0; must be above 0"),
        ({"per_device_train_batch_size": 1.5}, "is 1.5; must be a whole number"),
        ({"max_steps": -5}, "training.max_steps: is -5; must be at least 1"),
        ({"lr_scheduler_type": "cosin"}, "training: SFTConfig refuses this: 'cosin is not a valid"),
    ],
)
def test_training_is_checked_against_sftconfig(training: dict[str, Any], message: str):
    assert message in trl_error(training=training)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"lora_rank": 3}, "tuning.lora_rank: unknown key 'lora_rank'"),
        ({"use_peft": "maybe"}, "tuning.use_peft: is 'maybe'; must be true or false"),
        (
            {"model_name_or_path": "x"},
            "tuning.model_name_or_path: is not set here; set the top-level",
        ),
        (
            {"load_in_4bit": True, "load_in_8bit": True},
            "ModelConfig refuses this: 'You can't use 8 bit",
        ),
    ],
)
def test_tuning_is_checked_against_modelconfig(tuning: dict[str, Any], message: str):
    assert message in trl_error(tuning=tuning)


def test_without_an_accelerator_unset_fields_are_set_and_told():
    values, notices = with_cpu_defaults({"bf16": True}, accelerator=False)
    assert values == {"bf16": True, "use_cpu": True, "gradient_checkpointing": False}
    assert len(notices) == 2
    assert "training.use_cpu is unset: true" in notices[0]
    assert with_cpu_defaults({}, accelerator=True) == ({}, [])


def test_trl_dataclasses_get_the_values(tmp_path: Path):
    loaded = from_mapping(
        {
            "model": "m",
            "datasets": {"a": {"path": "x"}},
            "training": {"max_steps": 3, "learning_rate": 1},
            "tuning": {"use_peft": True, "lora_r": 8},
            "output_dir": str(tmp_path),
            "seed": 5,
        }
    )
    settings = check_trl(loaded)
    assert (settings.training.max_steps, settings.training.seed) == (3, 5)
    assert settings.training.output_dir == str(tmp_path)
    assert (settings.tuning.use_peft, settings.tuning.lora_r) == (True, 8)


# --- fuzz ---------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["model", "datasets", "balance", "difficulty", "training", "evaluation", "seed", "policy", "path",
     "weight", "min_share", "policies", "on_bad_record", "groups", "update_interval", "rate", "zzz"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_values_give_a_configuration_or_one_line(values: dict[str, Any]):
    try:
        from_mapping(values)
    except ConfigError as error:
        assert "\n" not in str(error)


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_file_gives_a_configuration_or_one_line(tmp_path_factory, content: str | bytes):
    folder = tmp_path_factory.getbasetemp()
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    for name in ("fuzz.yaml", "fuzz.json"):
        (folder / name).write_bytes(data)
        try:
            load_config(folder / name)
        except ConfigError as error:
            assert "\n" not in str(error)


@given(st.text(max_size=60))
def test_any_set_gives_a_value_or_one_line(text: str):
    document = Document({"model": "m"})
    try:
        apply_override(document, text)
    except ConfigError as error:
        assert "\n" not in str(error)


WORDS = st.sampled_from(["no", "all", "steps", "x", "1e-5", "auto", "{}", "/none"])
FIELDS = st.sampled_from(
    ["fsdp", "deepspeed", "log_level", "report_to", "debug", "optim", "optim_args", "eval_strategy",
     "save_strategy", "lr_scheduler_type", "lr_scheduler_kwargs", "accelerator_config", "fsdp_config",
     "gradient_checkpointing_kwargs", "parallelism_config", "torch_compile_backend", "liger_kernel_config",
     "include_for_metrics", "label_names", "warmup_steps", "max_steps", "eval_steps", "logging_steps",
     "load_best_model_at_end", "packing", "padding_free", "max_length", "loss_type", "hub_strategy"]
)  # fmt: skip
SIMPLE = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | WORDS | st.lists(WORDS)


@given(st.dictionaries(FIELDS, SIMPLE | st.dictionaries(WORDS, SIMPLE, max_size=2), max_size=3))
def test_any_training_values_give_an_sftconfig_or_one_line(training: dict[str, Any]):
    values = {"model": "m", "datasets": {"a": {"path": "x"}}, "training": training}
    try:
        check_trl(from_mapping(values))
    except ConfigError as error:
        assert "\n" not in str(error)


def test_no_secret_is_written():
    values = {
        "model": "m",
        "datasets": {"a": {"path": "x"}},
        "training": {"hub_token": "hf_secret"},
    }
    assert "hf_secret" not in str(from_mapping(values).config.plain())


@pytest.fixture
def family(tmp_path: Path):
    """Write a base and the configuration that extends it; returns the latter's path."""

    def files(base: str, child: str) -> Path:
        (tmp_path / "base.yaml").write_text(base)
        (tmp_path / "child.yaml").write_text(child)
        return tmp_path / "child.yaml"

    return files


SHORT = (
    "model: m\ndatasets: {a: {path: x, weight: 1}, b: {path: y, weight: 2}}\ntraining: {lr: 1}\n"
)


def test_a_configuration_extends_another_key_by_key(family):
    child = "extends: base.yaml\ndatasets: {b: {weight: 5}, c: {path: z, weight: 1}}\nseed: 3\n"
    values = load_config(family(SHORT, child)).config
    assert (values.model, values.seed, values.training) == ("m", 3, {"lr": 1})
    assert {name: (s.path, s.weight) for name, s in values.datasets.items()} == {
        "a": ("x", 1),
        "b": ("y", 5),
        "c": ("z", 1),
    }
    assert values.output_dir == "runs/child"
    assert "extends" not in values.plain()


def test_null_takes_away_what_the_other_file_says(family):
    child = "extends: base.yaml\ndatasets: {a: null, b: {weight: null}}\ntraining: null\n"
    values = load_config(family(SHORT, child)).config
    assert (list(values.datasets), values.datasets["b"].weight, values.training) == (
        ["b"],
        None,
        {},
    )


@pytest.mark.parametrize(
    ("base", "child", "message"),
    [
        (SHORT, "extends: base.yaml\nseed: x\n", r"child\.yaml:2: seed: "),
        (SHORT + "seed: x\n", "extends: base.yaml\n", r"base\.yaml:4: seed: "),
        (SHORT, "extends: other.yaml\n", r"child\.yaml:1: extends: other\.yaml: no such"),
        (SHORT, "\nextends: [base.yaml]\n", r"child\.yaml:2: extends: must be the name of one"),
        (SHORT, "extends: child.yaml\n", r"child\.yaml:1: extends: child\.yaml leads back here"),
        (
            "extends: child.yaml\n",
            "extends: base.yaml\n",
            r"base\.yaml:1: extends: child\.yaml lea",
        ),
        ("a: [", "extends: base.yaml\n", r"base\.yaml:1: not valid YAML"),
    ],
)
def test_errors_of_extended_files_name_the_file_that_is_wrong(family, base, child, message):
    with pytest.raises(ConfigError) as caught:
        load_config(family(base, child))
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("names", [["q_proj"], ["q_proj", "v_proj"], ["all-linear"]])
def test_one_name_of_a_list_of_modules_stays_a_list(names):
    loaded = from_mapping(
        {
            "model": "m",
            "datasets": {"a": {"path": "x"}},
            "tuning": {"use_peft": True, "lora_target_modules": names},
        }
    )
    modules = check_trl(loaded).tuning.lora_target_modules
    assert modules == ("all-linear" if names == ["all-linear"] else names)
