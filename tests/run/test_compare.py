"""A comparison from its configuration to its last run, with processes that train nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hbo.reports
import hbo.run.stop
from hbo.config import load_config
from hbo.errors import ConfigError, DataError, EnvironmentProblem
from hbo.run import compare, fleet
from hbo.run.comparison import Comparison, plan_comparison
from hbo.run.estimate import Board, Progress, cost_of, progress_of
from hbo.run.evaluate import evaluate_run
from hbo.run.resume import alone_in
from hbo.run.stop import Interrupted, StopRequest, listening
from tests.run.fake_runs import FakeLauncher, leave_run
from tests.support.workspace import write_config

ALL = ("prop", "temp", "hbo")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "TICK", 0.0)


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose results were written, in the place of writing them."""
    written: list[Path] = []
    monkeypatch.setattr(hbo.reports, "write_comparison", written.append, raising=False)
    return written


def planned(*names: str, seeds: tuple[int, ...] = (1, 2), **options: Any) -> Comparison:
    return plan_comparison(load_config("config.yaml"), names or ALL, seeds, **options)


def run(comparison: Comparison, launcher: FakeLauncher, **options: Any) -> list[str]:
    """Run it; returns what was told."""
    told: list[str] = []
    options = {"places": [{}], "stop": StopRequest(), **options}
    compare.run_comparison(comparison, tell=told.append, launch=launcher, **options)
    return told


def test_it_runs_seed_by_seed_and_writes_the_results_after_each(here: Path, pages: list[Path]):
    launcher = FakeLauncher()
    told = run(planned(), launcher)
    order = [f"run/{name}/seed-{seed}.yaml" for seed in (1, 2) for name in ALL]
    assert launcher.started == [["train", path, "--resume"] for path in order]
    assert pages == [Path("run")] * 7
    assert told[:2] == ["started: prop, seed 1 (run/prop/seed-1.log)", "finished: prop, seed 1"]
    manifest = json.loads((here / "run" / "runs.json").read_text())
    assert (manifest["against"], manifest["seeds"], manifest["before"]) == (
        "prop",
        [1, 2],
        "prop/seed-1",
    )
    assert [entry["folders"] for entry in manifest["entries"]] == [
        {"1": f"{name}/seed-1", "2": f"{name}/seed-2"} for name in ALL
    ]
    assert [set(entry) for entry in manifest["entries"]] == [
        {"name", "policy", "settings", "set", "of", "folders"}
    ] * 3
    configs = [load_config(path).config for path in order]
    assert [one.evaluation.before for one in configs] == [True] + [False] * 5
    assert all(one.evaluation.validation for one in configs)
    assert [one.balance.policy for one in configs] == [*ALL, *ALL]
    assert [one.seed for one in configs] == [1] * 3 + [2] * 3
    assert {one.datasets["german"].data_files for one in configs} == {"german.jsonl"}


def test_finished_runs_are_not_made_again_and_keep_the_models_that_were_kept(here: Path):
    run(planned("prop", "temp", seeds=(1,)), FakeLauncher(), keep_models=True)
    assert (here / "run/prop/seed-1/model").is_dir()
    launcher = FakeLauncher()
    told = run(planned("hbo", "prop", "temp"), launcher)
    assert launcher.trained == [
        "run/hbo/seed-1.yaml", "run/hbo/seed-2.yaml", "run/prop/seed-2.yaml", "run/temp/seed-2.yaml"
    ]  # fmt: skip
    assert told[0] == "2 of 6 runs are finished"
    left = {path.name for path in (here / "run" / "hbo" / "seed-1").iterdir()}
    assert left == {"config.yaml", "summary.json", "heldout.json", "run.jsonl"}
    kept = {path.name for path in (here / "run" / "prop" / "seed-1").iterdir()}
    assert kept == {*left, "model", "checkpoint-4"}
    # The first run has measured the untouched model: no other does it again.
    assert json.loads((here / "run" / "runs.json").read_text())["before"] == "prop/seed-1"
    assert not load_config("run/hbo/seed-1.yaml").config.evaluation.before


def test_evaluating_a_run_whose_model_was_removed_says_so(here: Path):
    run(planned("prop", seeds=(1,)), FakeLauncher())
    with pytest.raises(DataError) as caught:
        evaluate_run("run/prop/seed-1")
    assert "this run's model was removed, as `hbo compare` does without --keep-m" in str(
        caught.value
    )
    again = "hbo train run/prop/seed-1/config.yaml --set output_dir=ANOTHER"
    assert again in str(caught.value)
    (here / "run/prop/seed-1/summary.json").unlink()
    with pytest.raises(DataError, match="was removed"):
        evaluate_run("run/prop/seed-1")
    (here / "run/prop/seed-1/heldout.json").unlink()
    with pytest.raises(DataError, match="this run has no model yet; finish it"):
        evaluate_run("run/prop/seed-1")


def test_a_run_that_lacks_its_end_is_made_again(here: Path):
    run(planned("prop", seeds=(1, 2, 3)), FakeLauncher())
    (here / "run/prop/seed-1/heldout.json").unlink()
    (here / "run/prop/seed-2/summary.json").write_text('{"steps": 2}')
    launcher = FakeLauncher()
    run(planned("prop", seeds=(1, 2, 3)), launcher)
    assert launcher.trained == ["run/prop/seed-1.yaml", "run/prop/seed-2.yaml"]


@pytest.mark.parametrize(("status", "error"), [(2, ConfigError), (1, EnvironmentProblem)])
def test_a_run_that_fails_is_named_with_its_words_and_the_others_go_on(
    here: Path, status: int, error: type[Exception], pages: list[Path]
):
    launcher = FakeLauncher({"temp/seed-1": (status, "error: the words of it")})
    told: list[str] = []
    with pytest.raises(error) as caught:
        compare.run_comparison(planned(), [{}], StopRequest(), tell=told.append, launch=launcher)
    assert len(launcher.trained) == 6
    assert "failed: temp, seed 1: the words of it" in told
    assert str(caught.value).startswith(
        "1 of 6 runs failed: temp, seed 1 (run/temp/seed-1.log); mend that"
    )
    assert len(pages) == 6
    again = FakeLauncher()
    run(planned(), again)
    assert again.trained == ["run/temp/seed-1.yaml"]


def test_words_of_an_earlier_try_are_not_those_of_this_one(here: Path):
    for text in ("error: first", "no error at all"):
        told: list[str] = []
        with pytest.raises(EnvironmentProblem):
            compare.run_comparison(
                planned("prop", seeds=(1,)), [{}], StopRequest(), tell=told.append,
                launch=FakeLauncher({"prop": (1, text)}),
            )  # fmt: skip
    assert told[-1] == "failed: prop, seed 1: no error at all"


def test_a_run_that_ends_well_and_leaves_nothing_has_failed(here: Path):
    with pytest.raises(EnvironmentProblem):
        told: list[str] = []
        compare.run_comparison(
            planned("prop", seeds=(1,)), [{}], StopRequest(), tell=told.append,
            launch=FakeLauncher({"prop": (0, "this run is finished")}),
        )  # fmt: skip
    assert told[-1].startswith("failed: prop, seed 1: run/prop/seed-1 has no heldout.json")


def test_a_process_that_was_killed_is_said_to_be(here: Path):
    with pytest.raises(EnvironmentProblem):
        told: list[str] = []
        compare.run_comparison(
            planned("prop", seeds=(1,)), [{}], StopRequest(), tell=told.append,
            launch=FakeLauncher({"prop": (-signal.SIGKILL, "")}),
        )  # fmt: skip
    assert told[-1] == "failed: prop, seed 1: killed by SIGKILL (out of memory?)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_nothing_new_starts(here: Path, number: signal.Signals):
    launcher, comparison = FakeLauncher(waiting=True), planned()
    board = Board(comparison)

    def send(watched: fleet.Fleet) -> None:
        board.rows(watched)  # as the table at a terminal does
        if not fleets:
            fleets.append(watched)
            launcher.children[1].slow = 20
            os.kill(os.getpid(), number)

    fleets: list[fleet.Fleet] = []
    with listening() as stop, pytest.raises(Interrupted) as caught:
        run(comparison, launcher, stop=stop, places=[{}, {}], watch=send)
    assert caught.value.signal_number == number
    assert "run again to go on" in str(caught.value)
    assert [child.signals for child in launcher.children] == [[number], [number]]
    assert [(row.done, row.failed) for row in board.rows(fleets[0])] == [(0, 0)] * 3
    assert set(fleets[0].waiting) == set(comparison.runs)


@pytest.mark.parametrize("again", [True, False])
def test_runs_hear_a_signal_as_often_as_it_came(
    here: Path, monkeypatch: pytest.MonkeyPatch, again: bool
):
    monkeypatch.setattr(hbo.run.stop, "ONE_WISH", 0.0)
    launcher, looks = FakeLauncher(waiting=True), 0

    def send(watched: fleet.Fleet) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            launcher.children[0].slow = 20
            os.kill(os.getpid(), signal.SIGINT)
        if looks == 3 and again:
            os.kill(os.getpid(), signal.SIGINT)
        elif looks == 3:
            raise RuntimeError("of the table")

    with listening() as stop, pytest.raises(Interrupted if again else RuntimeError):
        run(planned(), launcher, stop=stop, watch=send)
    (only,) = launcher.children
    assert only.signals == [signal.SIGINT] * (2 if again else 1)
    assert only.status is not None


def test_what_breaks_the_comparison_off_leaves_no_process_behind(here: Path):
    launcher = FakeLauncher(waiting=True)

    def fail(watched: fleet.Fleet) -> None:
        raise RuntimeError("of the table")

    with pytest.raises(RuntimeError):
        run(planned(), launcher, watch=fail)
    assert [child.status for child in launcher.children] == [128 + signal.SIGTERM]


def test_results_that_cannot_be_written_stop_no_run(here: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(folder: Path) -> None:
        raise OSError("no page")

    monkeypatch.setattr(hbo.reports, "write_comparison", fail, raising=False)
    launcher = FakeLauncher()
    with pytest.raises(OSError, match="no page"):
        run(planned(), launcher)
    assert len(launcher.trained) == 6


def test_several_at_a_time_have_places_of_their_own_and_scores_before(here: Path):
    write_config(here, difficulty={"metric": "loss", "groups": 2, "cache_dir": "scores"})
    launcher = FakeLauncher()
    comparison, seen = planned(seeds=(1,)), []
    board = Board(comparison)
    run(
        comparison,
        launcher,
        places=[{"PLACE": "a"}, {"PLACE": "b"}],
        watch=lambda one: seen.append([row.done for row in board.rows(one)]),
    )
    assert seen[0] == [0, 0, 0]  # none of them is in the fleet that scores
    assert launcher.started[0] == ["score", "run/prop/seed-1.yaml"]
    assert len(launcher.started) == 4
    assert {tuple(one.items()) for one in launcher.environments[1:3]} == {
        (("PLACE", "a"),), (("PLACE", "b"),)
    }  # fmt: skip
    alone = FakeLauncher()
    run(planned(seeds=(2,)), alone)
    assert len(alone.trained) == len(alone.started) == 3


def test_a_run_that_another_process_works_on_is_waited_for(here: Path):
    comparison, launcher = planned("prop", "temp", seeds=(1,)), FakeLauncher()
    other = alone_in(comparison.runs[0].folder)
    other.__enter__()

    def release(watched: fleet.Fleet) -> None:
        if len(launcher.started) == 1 and not watched.active and watched.waiting:
            other.__exit__(None, None, None)

    told = run(comparison, launcher, watch=release)
    assert launcher.trained == ["run/temp/seed-1.yaml", "run/prop/seed-1.yaml"]
    assert told.count("waiting: prop, seed 1: another process is at work on it") == 1


def test_runs_of_other_settings_are_refused_and_overwrite_removes_them(here: Path):
    run(planned("prop", seeds=(1,)), FakeLauncher())
    other = load_config("config.yaml", ["training.learning_rate=0.5"])
    with pytest.raises(ConfigError) as caught:
        plan_comparison(other, ["temp", "prop"], [1])
    assert "holds a run of another configuration (training.learning_rate)" in str(caught.value)
    assert str(caught.value).startswith("config.yaml:")
    comparison = plan_comparison(other, ["temp", "prop"], [1], overwrite=True)
    (here / "run/prop/seed-1/mine.txt").write_text("kept")
    compare.start_anew(comparison)
    assert {path.name for path in (here / "run").rglob("*") if path.is_file()} == {
        ".lock", "mine.txt"
    }  # fmt: skip


def test_the_untouched_model_is_measured_again_where_it_is_another(here: Path):
    run(planned("prop", seeds=(1,)), FakeLauncher())
    assert planned("temp").before == "prop/seed-1"
    assert planned("temp", overwrite=True).before == "temp/seed-1"
    write_config(here, evaluation={"max_examples": 1})
    assert planned("temp").before == "temp/seed-1"
    again = planned("temp", "prop", overwrite=True)
    assert [one.loaded.config.evaluation.before for one in again.runs] == [True] + [False] * 3


def test_steps_and_draws_are_the_same_for_all_and_groups_need_not_be(here: Path):
    def with_set(**set_: Any) -> Comparison:
        write_config(here, policies={"odd": {"policy": "hbo", "set": set_}})
        return planned("prop", "odd")

    assert len(with_set(**{"difficulty.groups": 1}).runs) == 4
    for key, value in (("max_steps", 6), ("per_device_train_batch_size", 4)):
        with pytest.raises(ConfigError, match=r"policies.odd: it has .* and 'prop' has .* fixes"):
            with_set(**{f"training.{key}": value})


def test_what_is_measured_is_the_same_for_all(here: Path):
    def with_length(tokens: int) -> Comparison:
        short = {"policy": "prop", "set": {"training.max_length": tokens}}
        write_config(here, policies={"prop": {}, "short": short})
        return planned("prop", "short")

    assert len(with_length(1000).runs) == 4  # cuts nothing
    with pytest.raises(ConfigError) as caught:
        with_length(36)  # the longest have 37 tokens
    assert "policies.short: its held-out examples of 'arabic' are not those of 'prop'" in str(
        caught.value
    )
    assert not (here / "run").exists()


def test_all_is_checked_before_anything_is_written(here: Path):
    write_config(here, policies={"odd": {"policy": "hbo", "set": {"training.optim": "none"}}})
    with pytest.raises(ConfigError, match=r"none is not a valid Opt.* \(entry 'odd'\)$"):
        planned("prop", "odd")
    assert not (here / "run").exists()


def test_what_is_in_the_way_is_refused(here: Path):
    with pytest.raises(ConfigError, match="--against: unknown entry 'uni'"):
        planned(against="uni")
    write_config(here, policies={"a b": {"policy": "uni"}, "a/b": {"policy": "uni"}})
    with pytest.raises(ConfigError, match="its folder would be 'a-b', and that is taken"):
        planned("a b", "a/b")
    write_config(here, policies={"Uni": {"policy": "uni"}, "uni": {}})
    with pytest.raises(ConfigError, match=r"policies.Uni: its folder would be 'Uni', and that is"):
        planned("uni", "Uni")
    (here / "run").mkdir()
    (here / "run" / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="'run' holds a run; a comparison needs another"):
        planned()


def test_by_default_the_block_alone_is_compared(here: Path):
    names = {"temp": {"temperature": 3}, "../x": {"policy": "uni"}}
    write_config(
        here, policies={**names, "t": {"policy": "temp", "choose": {"temperature": [2, 4]}}}
    )
    loaded = load_config("config.yaml")
    manifest = plan_comparison(loaded, None, [5], "t").manifest()
    assert [
        (entry["name"], entry["of"], entry["folders"]["5"]) for entry in manifest["entries"]
    ] == [
        ("temp", None, "temp/seed-5"),
        ("../x", None, "-.-x/seed-5"),
        ("t temperature=2", "t", "t-temperature-2/seed-5"),
        ("t temperature=4", "t", "t-temperature-4/seed-5"),
    ]
    assert manifest["against"] == "t"
    write_config(here)
    manifest = plan_comparison(load_config("config.yaml"), None, [5]).manifest()
    assert [entry["name"] for entry in manifest["entries"]] == ["hbo"]


def test_the_untouched_model_is_not_measured_where_nobody_wants_it(here: Path):
    write_config(here, evaluation={"before": False})
    comparison = planned()
    assert comparison.before is None
    assert not any(one.loaded.config.evaluation.before for one in comparison.runs)


def test_places_are_gpus_or_shares_of_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert fleet.slots(None) == [{}]
    assert fleet.slots(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert fleet.slots(2) == [{}, {}]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert fleet.slots(None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert fleet.slots(None, on_cpu=True) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [one["CUDA_VISIBLE_DEVICES"] for one in fleet.slots(3)] == ["3", "5", "3"]


def test_time_is_estimated_from_finished_runs_and_else_not_known(here: Path):
    comparison = planned()
    cost = cost_of(comparison, 2)
    assert (cost["runs"], cost["finished"], cost["seconds_left"]) == (6, 0, None)
    hbo_cost = cost["entries"][2]
    assert hbo_cost["relative_cost"] == 1 + hbo_cost["signals_share"] > 1.01
    assert [entry["relative_cost"] for entry in cost["entries"][:2]] == [1.0, 1.0]
    # Three checkpoints' worth (weights, two moments) and the model, for each of two at a time.
    weights = sum(p.numel() for p in tiny_parameters()) * 4
    assert cost["bytes_while_running"] == 2 * 4 * weights
    assert cost["bytes_with_keep_models"] == 6 * 4 * weights
    compare.write_run_config(comparison.runs[0])
    leave_run(comparison.runs[0].config, wall_seconds=10.0, balance_seconds=2.0)
    cost = cost_of(comparison, 1)
    assert cost["finished"] == 1
    prop, temp, hbo_entry = cost["entries"]
    assert (prop["seconds"], temp["seconds"]) == (10.0, 8.0)
    assert hbo_entry["seconds"] == pytest.approx(8.0 * hbo_entry["relative_cost"])
    assert cost["seconds_left"] == pytest.approx(10 + 2 * 8 + 2 * hbo_entry["seconds"])


def tiny_parameters() -> list[torch.Tensor]:
    from tests.support.tiny import tiny_model

    return list(tiny_model().parameters())


def test_the_time_of_another_run_serves_where_there_is_none(here: Path):
    comparison = planned("prop")
    compare.write_run_config(comparison.runs[0])
    like = leave_run(comparison.runs[0].config)
    like.rename("like")
    assert cost_of(comparison, 1, Path("like"))["entries"][0]["seconds"] == 8.0
    with pytest.raises(DataError, match="there is no finished run here"):
        cost_of(comparison, 1, Path("nowhere"))


def test_the_table_shows_validation_and_never_test(here: Path):
    comparison, launcher = planned("prop", "temp"), FakeLauncher()
    board, seen = Board(comparison), []
    run(comparison, launcher, watch=lambda one: seen.append(board.rows(one)))
    middle = next(rows for rows in seen if rows[0].done == 1 and rows[1].now)
    assert (middle[0].total, middle[0].validation, middle[0].seconds_left) == (2, 1.5, 10.0)
    assert middle[1].now == (Progress(),)
    assert middle[1].seconds_left == 20.0  # of the other entry's pace
    assert 9.0 not in [row.validation for rows in seen for row in rows]


def test_progress_is_read_from_the_end_of_a_log_that_is_being_written(tmp_path: Path):
    assert progress_of(tmp_path) == Progress()
    lines = [json.dumps({"event": "step", "step": n, "loss": float(n)}) for n in range(5000)]
    (tmp_path / "run.jsonl").write_text("\n".join(lines) + '\n{"event": "st')
    assert progress_of(tmp_path) == Progress(4999, 4999.0)


def test_the_same_configuration_is_read_back_as_was_checked(here: Path):
    write_config(here, balance={"policy": "hbo", "prior_temperature": float("inf"), "rate": 1e-5})
    (only,) = planned("hbo", seeds=(1,)).runs
    compare.write_run_config(only)
    assert load_config(only.config).config == only.loaded.config
    assert yaml.safe_load(only.config.read_text())["output_dir"] == "run/hbo/seed-1"
    assert re.match(r"run/hbo/seed-1\.(yaml|log)", str(only.log))


def test_an_entry_that_was_mended_is_made_again_when_its_folder_is_removed(here: Path):
    run(planned("prop", "temp", seeds=(1,)), FakeLauncher())
    mended = load_config("config.yaml", ["policies.temp.temperature=5"])
    with pytest.raises(ConfigError, match=r"'run/temp/seed-1' holds .*remove that folder to make"):
        plan_comparison(mended, ["prop", "temp"], [1])
    shutil.rmtree(here / "run/temp/seed-1")
    launcher = FakeLauncher()
    run(plan_comparison(mended, ["prop", "temp"], [1]), launcher)
    assert launcher.trained == ["run/temp/seed-1.yaml"]


def test_a_plan_to_begin_anew_counts_no_run_as_finished(here: Path):
    run(planned("prop", "temp", seeds=(1,)), FakeLauncher())
    comparison = planned("prop", "temp", seeds=(1,))
    assert cost_of(comparison, 1)["finished"] == 2
    anew = cost_of(comparison, 1, anew=True)
    assert anew["finished"] == 0 and anew["seconds_left"] > 0
    assert [entry["finished"] for entry in anew["entries"]] == [0, 0]
