"""Recipes: each is what its tool reads, shares sum to one, and the order is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from hbo.errors import ConfigError, DataError, EnvironmentProblem
from hbo.policies import POLICIES
from hbo.reports import FORMATS, export_recipe, read_run
from hbo.reports.export import rows_without_repeats
from hbo.reports.mixture import learned_mixture, rounded_shares
from hbo.signals import Signals
from tests.reports.fake_run import AWKWARD, EXAMS, FakeRun, fake_run

RUN = FakeRun(steps=24, interval=6, lag=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("run")
    fake_run(path, EXAMS, RUN)
    return path


def test_trl_reads_the_fractions(folder):
    from trl.scripts.utils import DatasetMixtureConfig

    text = export_recipe(folder, ["trl"])["trl.yaml"]
    config = DatasetMixtureConfig(**yaml.safe_load(text))
    fractions = [dataset.fraction for dataset in config.datasets]
    assert fractions == pytest.approx(read_run(folder).target, abs=1e-6)
    assert sum(fractions) == pytest.approx(1, abs=1e-12)
    assert [dataset.data_files for dataset in config.datasets] == [
        f"data/{k}.jsonl" for k in range(len(EXAMS))
    ]
    assert {dataset.path for dataset in config.datasets} == {"json"}


def test_the_rows_that_trl_is_said_to_keep_are_those_it_keeps(tmp_path):
    from trl import get_dataset
    from trl.scripts.utils import DatasetMixtureConfig

    sizes = {"a": 37, "b": 11, "c": 5}
    fake_run(tmp_path, sizes, RUN)
    text = export_recipe(tmp_path, ["trl"])["trl.yaml"]
    recipe = yaml.safe_load(text)
    for k, rows in enumerate(sizes.values()):
        file = tmp_path / f"{k}.jsonl"
        file.write_text("".join(f'{{"text": "{k}"}}\n' for _ in range(rows)))
        recipe["datasets"][k]["data_files"] = str(file)
    made = get_dataset(DatasetMixtureConfig(**recipe))["train"]["text"]
    for k, (name, rows) in enumerate(sizes.items()):
        assert f"#   {name}: {list(made).count(str(k))} of {rows}" in text


def test_llamafactory_has_one_probability_for_each_dataset(folder):
    files = export_recipe(folder, ["llamafactory"])
    settings = yaml.safe_load(files["llamafactory.yaml"])
    names = settings["dataset"].split(",")
    probabilities = [float(p) for p in settings["interleave_probs"].split(",")]
    assert names == list(EXAMS) and settings["mix_strategy"] == "interleave_under"
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert list(json.loads(files["dataset_info.json"])) == names


def test_axolotl_cuts_each_dataset_to_its_share(folder):
    entries = yaml.safe_load(export_recipe(folder, ["axolotl"])["axolotl.yaml"])["datasets"]
    rows = [int(entry["split"].split(":")[1][:-1]) for entry in entries]
    run = read_run(folder)
    assert np.array(rows) / sum(rows) == pytest.approx(run.target, abs=0.01)
    assert all(kept <= size for kept, size in zip(rows, EXAMS.values(), strict=True))
    assert any(kept == size for kept, size in zip(rows, EXAMS.values(), strict=True))
    assert all(entry["path"].endswith(".jsonl") and entry["ds_type"] == "json" for entry in entries)


def test_the_schedule_replays_the_run(folder):
    """The policy ``schedule`` gives what was in force, update by update."""
    config = json.loads(export_recipe(folder, ["schedule"])["schedule.json"])
    balance = dict(config["balance"])
    assert balance.pop("lag") == 2 and balance.pop("unit") == "examples"
    policy = POLICIES[balance.pop("policy")](**balance)
    assert policy.interval == 6
    sizes = np.full((len(EXAMS), 4), 10)
    state, none = policy.init(sizes), {}
    run = read_run(folder)
    assert policy.probabilities(state).sum(axis=1) == pytest.approx(run.prior)
    for update in run.updates:
        signals = Signals(
            now=none,
            before=none,
            first=none,
            whole=none,
            step=update.step,
            sizes=sizes,
            draws=sizes,
        )
        state = policy.update(state, signals)
        table = policy.probabilities(state)
        assert table.sum(axis=1) == pytest.approx(update.after)
        inside = [local.after for local in update.local if local is not None]
        assert table / table.sum(axis=1, keepdims=True) == pytest.approx(np.array(inside))


def test_the_schedule_is_the_runs_own_configuration(folder):
    config = json.loads(export_recipe(folder, ["schedule"])["schedule.json"])
    own = read_run(folder).config
    assert config["datasets"] == own["datasets"] and list(config["datasets"]) == list(EXAMS)
    assert config["output_dir"] == "runs/example-replay" and config["seed"] == own["seed"]


def test_the_mixture_by_name(folder):
    told = json.loads(export_recipe(folder, ["mixture"])["mixture.json"])
    assert list(told["average"]) == list(EXAMS) and sum(told["average"].values()) == pytest.approx(
        1
    )
    assert [point["step"] for point in told["trajectory"]] == [0, 6, 12, 18]
    assert [point["effective_draw"] for point in told["trajectory"]] == [0, 64, 112, 160]
    for point in told["trajectory"]:
        assert sum(map(sum, point["probabilities"].values())) == pytest.approx(1)


def test_names_of_any_kind_stay_apart(tmp_path):
    fake_run(tmp_path, {**AWKWARD, "a,b": 9, "a b": 8, "؟": 7}, RUN)
    files = export_recipe(tmp_path)
    for name, text in files.items():
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        assert value
    names = yaml.safe_load(files["llamafactory.yaml"])["dataset"].split(",")
    assert len(set(names)) == len(names) == 8
    assert all(name.isprintable() and " " not in name for name in names)


def test_a_static_run_exports_its_weights(tmp_path):
    fake_run(tmp_path, {"a": 30, "b": 10}, FakeRun(steps=4, moves=False, policy="prop"))
    mixture = learned_mixture(read_run(tmp_path))
    assert mixture.average.tolist() == [0.75, 0.25] == mixture.final.tolist()
    assert len(mixture.points) == 1


def test_an_update_of_one_level_keeps_the_other(tmp_path):
    fake_run(tmp_path, {"a": 30, "b": 10}, FakeRun(steps=12, interval=6, local=False))
    mixture = learned_mixture(read_run(tmp_path))
    for point in mixture.points:
        for groups in point.probabilities:
            assert groups == pytest.approx(np.full(4, groups.sum() / 4))


def test_an_unfinished_run_exports_all_but_row_counts(tmp_path):
    fake_run(tmp_path, EXAMS, FakeRun(steps=24, interval=6, finished=False))
    assert "axolotl.yaml" not in export_recipe(tmp_path)
    with pytest.raises(DataError, match="axolotl recipe counts rows"):
        export_recipe(tmp_path, ["axolotl"])


def test_files_are_written_where_asked(folder, tmp_path):
    files = export_recipe(folder, output=tmp_path / "recipe")
    assert {path.name for path in (tmp_path / "recipe").iterdir()} == set(files)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write the recipe"):
        export_recipe(folder, ["trl"], blocked)


def test_an_unknown_format_is_refused_with_the_known_ones(folder):
    with pytest.raises(ConfigError, match=f"'yaml'; allowed: {', '.join(FORMATS)}"):
        export_recipe(folder, ["yaml"])


def test_rounding_keeps_the_sum():
    shares = rounded_shares(np.random.default_rng(3).dirichlet(np.ones(97)))
    assert abs(sum(round(share * 1e6) for share in shares) - 1e6) == 0


def test_rows_without_repeats_is_bounded_by_the_scarcest():
    assert rows_without_repeats([100, 10], [0.5, 0.5]) == [10, 10]
    assert rows_without_repeats([100, 10], [1.0, 0.0]) == [100, 0]


def test_held_out_rows_inside_the_files_are_said(tmp_path):
    fake_run(tmp_path, EXAMS, RUN)
    assert "kept apart for evaluation" in export_recipe(tmp_path, ["trl"])["trl.yaml"]
    log = tmp_path / "run.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for source in events[0]["config"]["datasets"].values():
        source["eval_files"] = "test.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert "kept apart for evaluation" not in export_recipe(tmp_path, ["trl"])["trl.yaml"]
