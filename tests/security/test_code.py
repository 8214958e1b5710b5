"""Nothing that a file holds is run: no pickle, and no Python file unless asked for by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hbo.integrations.checkpoints import seal
from tests.support.tiny import tiny_model
from tests.support.workspace import CONFIG, record, write_config, write_jsonl

TRAINING = {**CONFIG["training"], "max_steps": 2, "save_steps": 1, "logging_steps": 1}


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.trace, "w")


def test_the_payload_works(tmp_path: Path):
    torch.save(Payload(tmp_path / "trace"), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False).close()
    assert (tmp_path / "trace").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A workspace with a run of two steps, a checkpoint after each."""
    from hbo.cli import main

    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    write_config(folder, training=TRAINING, evaluation={"before": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HBO_CACHE", str(folder / "cache"))
        assert main(["train", "config.yaml"]) == 0
    return folder


@pytest.fixture
def stopped(workspace: Path, trained: Path) -> Path:
    """The working directory, with a run that was stopped after its first step."""
    shutil.copytree(trained / "run", workspace / "run")
    write_config(workspace, training=TRAINING, evaluation={"before": False})
    for name in ("checkpoint-2", "model"):
        shutil.rmtree(workspace / "run" / name)
    (workspace / "run/summary.json").unlink()
    return workspace


def torch_saved(path: Path, payload: Payload) -> None:
    torch.save(payload, path)


def pickled(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("optimizer.pt", torch_saved),
        ("optimizer.pt", pickled),
        ("scheduler.pt", torch_saved),
        ("rng_state.pth", torch_saved),
    ],
)
def test_a_pickle_in_a_checkpoint_is_refused(
    stopped: Path, hbo, name: str, write: Callable[[Path, Payload], None]
):
    checkpoint = stopped / "run/checkpoint-1"
    write(checkpoint / name, Payload(stopped / "trace"))
    seal(checkpoint, {})  # as one would who means harm
    said = hbo("train", "config.yaml", "--resume")
    assert not (stopped / "trace").exists()
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "holds pickled objects, which are never loaded" in said.err


@pytest.mark.parametrize("name", ["scaler.pt", "training_args.bin", "pytorch_model.bin"])
def test_a_pickle_beside_a_checkpoint_is_not_run(stopped: Path, hbo, name: str):
    checkpoint = stopped / "run/checkpoint-1"
    torch.save(Payload(stopped / "trace"), checkpoint / name)
    seal(checkpoint, {})
    said = hbo("train", "config.yaml", "--resume")
    assert not (stopped / "trace").exists()
    assert said.err.count("\n") == (1 if said.status else 0)


@pytest.mark.parametrize("place", ["model", "difficulty.scoring_model", "run/model"])
def test_a_model_of_pickled_weights_is_refused(trained: Path, workspace: Path, hbo, place: str):
    shutil.copytree(trained / "run", workspace / "run")
    folder = workspace / ("run/model" if place == "run/model" else "pickled")
    if folder.name == "pickled":
        shutil.copytree(trained / "model", folder)
    (folder / "model.safetensors").unlink()
    torch.save(Payload(workspace / "trace"), folder / "pytorch_model.bin")
    settings = {"model": "model=pickled", "difficulty.scoring_model": f"{place}=pickled"}
    if place in settings:
        said = hbo(
            "plan", "config.yaml", "--set", settings[place], "--set", "difficulty.metric=loss"
        )
    else:
        said = hbo("evaluate", "run")
    assert not (workspace / "trace").exists()
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "are pickled" in said.err
    assert folder.name in said.err


def test_an_adapter_of_pickled_weights_is_not_run(trained: Path, workspace: Path, hbo):
    from peft import LoraConfig, get_peft_model

    shutil.copytree(trained / "run", workspace / "run")
    adapter = workspace / "run/model"
    shutil.rmtree(adapter)
    get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        adapter
    )
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Payload(workspace / "trace"), adapter / "adapter_model.bin")
    said = hbo("evaluate", "run")
    assert not (workspace / "trace").exists()
    assert (said.status, said.err.count("\n")) == (2, 1)


def test_no_setting_lets_a_pickle_in(workspace: Path, hbo):
    for key in ("weights_only", "use_safetensors"):
        write_config(workspace, training={**TRAINING, "model_init_kwargs": {key: False}})
        said = hbo("train", "config.yaml")
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert f"training.model_init_kwargs: '{key}' is not set here" in said.err


CODE = """
open({trace!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "theirs"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""


def with_code(folder: Path, trace: Path, name: str, maps: dict[str, Any]) -> None:
    """A model's folder whose ``config.json`` or ``tokenizer_config.json`` names a Python file."""
    (folder / "theirs.py").write_text(CODE.format(trace=str(trace)))
    values = json.loads((folder / name).read_text())
    values["auto_map"] = maps
    if name == "config.json":
        values["model_type"] = "theirs"
    else:
        values["tokenizer_class"] = "Tokenizer"
    (folder / name).write_text(json.dumps(values))


MAPS = {
    "config.json": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    "tokenizer_config.json": {"AutoTokenizer": [None, "theirs.Tokenizer"]},
}


@pytest.fixture
def own_code(workspace: Path, prepared: Path) -> Path:
    (workspace / "model").unlink()
    shutil.copytree(prepared / "model", workspace / "model")
    return workspace


@pytest.mark.parametrize("name", MAPS)
def test_python_code_of_a_model_is_refused(own_code: Path, hbo, name: str):
    with_code(own_code / "model", own_code / "trace", name, MAPS[name])
    write_config(own_code, difficulty={"metric": "loss", "groups": 2, "cache_dir": "scores"})
    for command in ("plan", "score", "train"):
        said = hbo(command, "config.yaml")
        assert not (own_code / "trace").exists()
        if said.status:
            assert (said.status, said.err.count("\n")) == (2, 1)
            assert "training.trust_remote_code: true" in said.err
    assert said.status == 2


def test_python_code_of_a_model_runs_when_asked_for_by_name(
    own_code: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_MODULES_CACHE", str(own_code / "modules"))
    with_code(
        own_code / "model",
        own_code / "trace",
        "tokenizer_config.json",
        MAPS["tokenizer_config.json"],
    )
    hbo("plan", "config.yaml", "--set", "training.trust_remote_code=true")
    assert (own_code / "trace").exists()


def test_python_code_in_a_folder_of_data_is_left_alone(workspace: Path, hbo):
    folder = workspace / "data"
    folder.mkdir()
    for name in ("data.py", "__init__.py", "setup.py"):
        (folder / name).write_text(f"open({str(workspace / 'trace')!r}, 'w')\n")
    (folder / "dataset_infos.json5").write_text("{}")
    write_config(workspace, datasets={"german": {"path": "data"}})
    said = hbo("plan", "config.yaml")
    assert (said.status, said.err.count("\n")) == (2, 1)
    write_jsonl(folder / "train.jsonl", [record(n) for n in range(20)])
    said = hbo("plan", "config.yaml")
    assert (said.status, said.err) == (0, "")
    assert not (workspace / "trace").exists()
