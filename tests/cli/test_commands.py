"""The commands, one by one: what they print, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hbo as package
from hbo.cli.faults import explain
from hbo.errors import DataError, EnvironmentProblem
from tests.support.workspace import write_config


def program(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """``python -m hbo`` in a process of its own."""
    command = [sys.executable, "-m", "hbo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_help_lists_the_commands_that_work(hbo):
    said = hbo("--help")
    assert (said.status, said.err) == (0, "")
    for command in (
        "plan",
        "score",
        "train",
        "evaluate",
        "report",
        "export",
        "simulate",
        "doctor",
        "assets",
    ):
        assert f" {command} " in said.out  # fmt: skip


def test_no_arguments_show_the_help_and_the_version_is_told(hbo):
    assert hbo().out == hbo("--help").out
    assert hbo("--version").out == f"hbo {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("trian",), ("plan",), ("plan", "--jsn", "x.yaml"), ("assets",), ("assets", "fetch"),
        ("simulate", "--steps", "many"), ("plan", "a.yaml", "b.yaml"), ("train", "x.yaml", "--set"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_status_2(hbo, arguments: tuple[str, ...]):
    said = hbo(*arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


@pytest.mark.process
def test_help_is_there_at_once():
    start = time.perf_counter()
    done = program("--help")
    assert (done.returncode, done.stderr) == (0, "")
    # A second on an idle machine; a loaded one gets some room.
    assert time.perf_counter() - start < 3


@pytest.mark.process
def test_plan_as_a_process_prints_json_and_nothing_else(workspace: Path):
    done = program("plan", "config.yaml", "--json", cwd=workspace)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)["subsets"]) == {"german", "arabic"}


@pytest.mark.process
def test_a_reader_that_goes_away_is_no_fault(workspace: Path):
    command = f"{sys.executable} -m hbo assets list --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=workspace)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


# --- plan ---------------------------------------------------------------------------------------


def test_plan_counts_rows_and_draws(workspace: Path, hbo):
    said = hbo("plan", "config.yaml", "--json", "--set", "balance.policy=uni",
               "--set", "balance={policy: uni}")  # fmt: skip
    assert (said.status, said.err) == (0, "")
    plan = json.loads(said.out)
    assert (plan["steps"], plan["draws_per_step"], plan["draws"]) == (4, 2, 8)
    assert plan["policy"] == "uni"
    for subset in plan["subsets"].values():
        assert subset["probability"] == pytest.approx(0.5)
        assert subset["expected_draws"] == pytest.approx(4)
        assert subset["expected_passes"] == pytest.approx(4 / subset["rows"])
        assert sum(group["rows"] for group in subset["groups"]) == subset["rows"]
        assert sum(group["tokens"] for group in subset["groups"]) == subset["tokens"]
    german = plan["subsets"]["german"]
    assert german["rows"] + german["validation"] + german["test"] == german["source_rows"] == 24
    assert plan["cost"]["share"] == 0


def test_plan_is_the_same_from_json_and_yaml(workspace: Path, hbo):
    import yaml

    values = yaml.safe_load((workspace / "config.yaml").read_text())
    (workspace / "config.json").write_text(json.dumps(values))
    assert hbo("plan", "config.json", "--json").out == hbo("plan", "config.yaml", "--json").out


def test_plan_for_people_names_notices_and_warnings(workspace: Path, hbo):
    said = hbo(
        "plan", "config.yaml", "--set", "balance.update_interval=50", "--set", "balance.lag=4"
    )
    assert said.status == 0
    assert "warning: the policy never updates" in said.out
    assert "group 1" in said.out
    if "use_cpu is unset" in said.out:
        assert "notice: training.use_cpu is unset: true" in said.out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("norm_scope=adapters", "balance.norm_scope: is 'adapters', and none are trained"),
        ("measure_every=5", "balance.measure_every: is of no use with signals: probe"),
    ],
)
def test_plan_finds_norms_that_nothing_could_measure(workspace: Path, hbo, change: str, text: str):
    probing = ["--set", "balance.global_reward=gradient-norm"]
    probing += ["--set", "balance.signals=probe"] if "every" in change else []
    said = hbo("plan", "config.yaml", *probing, "--set", f"balance.{change}")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert text in said.err


def test_plan_writes_nothing(workspace: Path, hbo):
    before = sorted(workspace.rglob("*"))
    assert hbo("plan", "config.yaml").status == 0
    assert sorted(workspace.rglob("*")) == before


def test_weights_caps_and_floors_show_in_the_plan(workspace: Path, hbo):
    datasets = {
        "german": {"data_files": "german.jsonl", "weight": 1, "max_share": 0.6},
        "arabic": {"data_files": "arabic.jsonl", "weight": 4, "max_passes": 0.3},
    }
    write_config(workspace, datasets=datasets, balance={"policy": "prop"})
    subsets = json.loads(hbo("plan", "config.yaml", "--json").out)["subsets"]
    assert subsets["german"]["probability"] == pytest.approx(0.2)
    rows = subsets["arabic"]["rows"]
    assert subsets["arabic"]["expected_draws"] == pytest.approx(int(0.3 * rows))
    assert sum(subset["expected_draws"] for subset in subsets.values()) == pytest.approx(8)


def test_a_subset_of_any_name_is_shown_and_controls_are_not(workspace: Path, hbo):
    names = ["[bold]x[/bold]", "a\x1b[31mred", "../up", "<b>", "مزيج\u202e"]
    write_config(workspace, datasets={name: {"data_files": "german.jsonl"} for name in names})
    said = hbo("plan", "config.yaml")
    assert said.status == 0
    assert "[bold]x[/bold]" in said.out
    assert "\x1b" not in said.out
    assert "\u202e" not in said.out
    assert list(json.loads(hbo("plan", "config.yaml", "--json").out)["subsets"]) == names


# --- assets, doctor, simulate, results ----------------------------------------------------------


def test_assets_path_prints_the_folder_and_nothing_else(workspace: Path, hbo):
    said = hbo("assets", "path", "tiny-llama")
    assert said.status == 0
    folder = Path(said.out.removesuffix("\n"))
    assert (folder / "config.json").is_file()
    assert os.environ["HBO_CACHE"] in str(folder)


def test_assets_list_tells_all_names(hbo):
    names = {asset["name"] for asset in json.loads(hbo("assets", "list", "--json").out)}
    assert {"smollm2-135m", "exams", "tiny-llama"} <= names
    assert "smollm2-135m" in hbo("assets", "list").out


def test_an_unknown_asset_is_refused(hbo):
    said = hbo("assets", "path", "smollm")
    assert (said.status, said.out) == (2, "")
    assert "smollm2-135m" in said.err


def test_doctor_knows_what_is_here(hbo):
    found = json.loads(hbo("doctor", "--json").out)
    assert found["versions"]["hbo"] == package.__version__
    assert any(device.startswith("cpu") for device in found["devices"])
    assert {"what", "use", "state"} == set(found["integrations"][0])
    assert "torch" in hbo("doctor").out


def test_simulate_runs_a_policy_with_its_fields(hbo):
    said = hbo("simulate", "--subsets", "3", "--steps", "60", "--set", "rate=0.0", "--json")
    assert (said.status, said.err) == (0, "")
    result = json.loads(said.out)
    for subset in result["subsets"].values():
        assert subset["probabilities"][0] == subset["probabilities"][-1]
    assert "macro loss" in hbo("simulate", "--subsets", "3", "--steps", "60").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "hob"), "unknown policy 'hob'"),
        (("--set", "rat=1"), "unknown policy field 'rat'"),
        (("--set", "rate"), "--set: 'rate' has no value"),
        (("--subsets", "0"), "num_subsets is 0"),
    ],
)
def test_simulate_refuses_what_cannot_be(hbo, arguments: tuple[str, ...], message: str):
    said = hbo("simulate", *arguments)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert message in said.err


@pytest.mark.parametrize("command", ["evaluate", "report", "export"])
def test_a_folder_without_a_run_is_told(workspace: Path, hbo, command: str):
    said = hbo(command, workspace)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "no run here" in said.err


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataError("no response", where="a.jsonl:3"), 2, "a.jsonl:3: no response"),
        (EnvironmentProblem("x"), 1, "x"),
        (OSError(28, "No space left on device", "run/log"), 1, "run/log: the disk is full"),
        (PermissionError(13, "Permission denied", "run"), 1, "run: Permission denied"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of memory",
        ),
        (ConnectionError("reset\nby peer"), 1, "the model hub cannot be reached"),
        (
            ModuleNotFoundError("No module named 'trl'", name="trl"),
            1,
            "the package 'trl' is not installed",
        ),
        (ZeroDivisionError("a\nb"), 1, "a fault of hbo or of a library: ZeroDivisionError: a b"),
    ],
)
def test_every_fault_has_a_status_and_one_line(error: Exception, status: int, text: str):
    found = explain(error)
    assert found[0] == status
    assert text in found[1]
    assert "\n" not in found[1]


def test_a_full_disk_is_found_under_what_it_caused():
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed") from error
    except RuntimeError as error:
        assert "the disk is full" in explain(error)[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_any_work_has_its_status(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch, number: int, status: int
):
    def signalled(*_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("hbo.config.load_config", signalled)
    said = hbo("plan", "config.yaml")
    assert (said.status, said.out) == (status, "")
    assert said.err == f"stopped: {signal.Signals(number).name}; nothing was lost\n"
