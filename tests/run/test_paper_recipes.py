"""The recipes of ``configs/paper/``: their data from made-up sources, and a plan of each."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import datasets
import pytest

from hbo.cli import main
from hbo.config import load_config
from hbo.config.entries import entries_of, names_of
from tests.evaluation.benchmark_files import write_split
from tests.support.tiny import save_tiny, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper"
AYA = {"eng": "English", "zho": "Chinese", "rus": "Russian", "spa": "Spanish",
       "arb": "Arabic", "deu": "German", "hin": "Hindi", "swh": "Swahili"}  # fmt: skip
MIXTURES = {
    "multilingual": [name.lower() for name in AYA.values()],
    "multitask": ["general", "math", "finance", "medical"],
}


def script() -> ModuleType:
    """``configs/paper/prepare.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("paper_prepare", PAPER / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_prepare"] = module
    spec.loader.exec_module(module)
    return module


PREPARE = script()


def talk(question: str, answer: str, language: str, **more) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"conversation": turns, "language": language, **more}


def write_sources(folder: Path) -> None:
    """Twenty records of every subset, in the columns of the hub's datasets."""
    numbers = range(20)
    aya = [
        {"inputs": f"{name} {n}?", "targets": f"Answer {n}.", "language_code": code}
        for code, name in AYA.items()
        for n in numbers
    ]
    chat = [talk(f"Chat in {name}, {n}?", f"Yes {n}.", name, toxic=False)
            for name in AYA.values() for n in numbers]  # fmt: skip
    lmsys = [talk(f"Arena {n}?", f"No {n}.", "English", openai_moderation=[{"flagged": n == 0}])
             for n in numbers]  # fmt: skip
    medical = [
        {"conversations": [{"from": "human", "value": f"Dose {n}?"}, {"from": "gpt", "value": "1"}]}
        for n in numbers
    ]
    for dataset, rows in {
        "CohereForAI/aya_dataset": aya,
        "allenai/WildChat-1M": chat,
        "lmsys/lmsys-chat-1m": lmsys,
        "meta-math/MetaMathQA": [{"query": f"{n} + 1?", "response": str(n + 1)} for n in numbers],
        "DeividasM/financial-instruction-aq22": [
            {"instruction": f"Rate {n}?", "input": "", "output": f"{n} %"} for n in numbers
        ],
        "TsinghuaC3I/UltraMedical": medical,
    }.items():
        write_split(folder, dataset, None, "train", rows)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A working directory with the recipes, sources and a tiny model without a chat template."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "configs").symlink_to(ROOT / "configs")
    save_tiny(folder / "model", chat_template=None)
    write_sources(folder / "hub")
    return folder


@pytest.fixture(autouse=True)
def inside(home, monkeypatch) -> None:
    def refuse(*_args, **_kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.chdir(home)
    monkeypatch.setenv("HBO_CACHE", str(home / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_recipe_is_prepared_and_planned_short_of_the_download(mixture, capsys):
    assert PREPARE.main([mixture, "--files", "hub", "--share", "0.5"]) == 0
    said = capsys.readouterr().out.splitlines()
    sizes = {Path(line.split(":")[0]).stem: line.split(": ")[1] for line in said}
    assert list(sizes) == MIXTURES[mixture]
    expected = {"general": "20 of 39"} if mixture == "multitask" else {"swahili": "20 of 40"}
    for name, size in expected.items():
        assert sizes[name] == f"{size} records"
    plan = ["plan", f"configs/paper/{mixture}.yaml", "--set", "model=model", "--json"]
    assert main(plan) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["subsets"]) == MIXTURES[mixture]
    assert found["policy"] == "hbo-paper"
    # Two examples, four micro-batches; eight GPUs make it 64.
    assert found["draws_per_step"] == 8
    rows = sum(subset["rows"] for subset in found["subsets"].values())
    assert found["steps"] == pytest.approx(3 * rows / 8, abs=3)
    assert main([*plan, "--set", "balance.policy=hbo", "--set", "balance.signals=observed"]) == 0


def test_the_settings_are_the_papers():
    for mixture in MIXTURES:
        config = load_config(PAPER / f"{mixture}.yaml").config
        training = config.training
        assert (training["learning_rate"], training["num_train_epochs"]) == (1e-5, 3)
        assert (training["lr_scheduler_type"], training["warmup_steps"]) == ("linear", 0.1)
        assert (training["weight_decay"], training["max_length"]) == (0.1, 4096)
        draws = (
            training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * 8
        )
        assert draws == 64
        assert config.difficulty.groups == 4
        assert config.balance.fields == {"prior_temperature": 1, "update_interval": 200}
        assert len(config.policies) == 9
    assert len(config.evaluation.benchmarks) == 4


def test_of_questions_the_first_answer_and_of_conversations_the_first_turn_is_kept():
    chat = [
        talk("Hi?", "one", "English"),
        talk("Hi?", "two", "English"),
        talk("Bad?", "no", "English", toxic=True),
        talk("Worse?", "no", "English", openai_moderation=[{"flagged": True}]),
        talk("Empty?", " ", "English"),
        talk("Hallo?", "ja", "German"),
        {"conversation": [{"role": "assistant", "content": "I begin"}], "language": "English"},
    ]
    longer = talk(" More? ", "yes", "English")
    longer["conversation"] += [{"role": "user", "content": "And?"}]
    found = PREPARE.collect({"english": [PREPARE.wildchat("English")]}, lambda _: [*chat, longer])
    assert found == {"english": {"Hi?": "one", "More?": "yes"}}


def test_a_share_is_the_same_whatever_the_order_and_part_of_a_larger_one():
    questions = {f"Question {n}": str(n) for n in range(100)}
    fifth = PREPARE.share_of(questions, 0.2)
    assert len(fifth) == 20
    assert PREPARE.share_of(dict(reversed(questions.items())), 0.2) == fifth
    assert PREPARE.share_of(questions, 0.5)[:20] == fifth
    assert {answer for _, answer in fifth} != {str(n) for n in range(20)}


def test_a_source_that_is_not_there_is_one_line(tmp_path, capsys):
    assert PREPARE.main(["multitask", "--files", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "hf download allenai/WildChat-1M --repo-type dataset" in error


def test_the_template_writes_user_and_assistant():
    tokenizer = tiny_tokenizer((PAPER / "template.jinja").read_text("utf-8"))
    messages = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>USER:\nHi?\n\nASSISTANT:\nYes.<|im_end|>"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt) and prompt.endswith("ASSISTANT:\n")


def test_every_backbone_and_command_of_the_readme_is_one_of_the_recipes():
    text = (PAPER / "README.md").read_text("utf-8")
    named = set(re.findall(r"configs/[\w/.-]+", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert {f"configs/paper/{mixture}.yaml" for mixture in MIXTURES} <= named


def test_the_loop_of_the_readme_makes_the_runs_that_a_comparison_would():
    loop = re.findall(r"```sh\n(.+?)```", (PAPER / "README.md").read_text("utf-8"), re.DOTALL)[0]
    said = subprocess.run(
        ["sh", "-c", f'accelerate() {{ echo "$@"; }}\n{loop}'],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    commands = [line.split(" -m hbo ")[1] for line in said.splitlines()]
    trained = [shlex.split(one) for one in commands if one.startswith("train ")]
    configs = [load_config(words[1], words[3::2]).config for words in trained]
    evaluated = [one.removeprefix("evaluate ") for one in commands if one.startswith("evaluate ")]
    assert evaluated == [config.output_dir for config in configs]
    loaded = load_config(PAPER / "multilingual.yaml")
    wanted = [
        entry.configured(seed, "out", False).config.balance
        for entry in entries_of(loaded, names_of(loaded))
        for seed in (42, 43, 44)
    ]
    assert len(configs) == len(wanted) == len(set(evaluated)) == 27
    assert all(wanted.count(one.balance) == 3 for one in configs)
    assert {config.seed for config in configs} == {42, 43, 44}
