"""The scoring benchmark beside other code: here code of our own, with the same names."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
CODE = """
import torch

PROMPT_DICT = {"prompt_no_input": "Q: {instruction}\\n\\nA: "}

def mean_loss(prompt, output, tokenizer, model):
    ids = torch.tensor([tokenizer.encode(prompt + output)])
    labels = ids.clone()
    labels[0, : len(tokenizer.encode(prompt))] = -100
    with torch.no_grad():
        return model(ids, labels=labels).loss * FACTOR

def calculate_loss_per_example(example, tokenizer, model):
    prompt = PROMPT_DICT["prompt_no_input"].format(instruction=example["instruction"])
    return mean_loss(prompt, example["output"], tokenizer, model)

def calculate_ppl_per_example(example, tokenizer, model):
    return torch.exp(calculate_loss_per_example(example, tokenizer, model))

def calculate_ifd_per_example(example, tokenizer, model):
    alone = mean_loss("A: ", example["output"], tokenizer, model)
    return calculate_loss_per_example(example, tokenizer, model) / alone
"""


@pytest.fixture
def against(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("HBO_CACHE", str(tmp_path / "cache"))
    result = tmp_path / "scoring.json"

    def run(factor):
        (tmp_path / "utils.py").write_text(CODE.replace("FACTOR", factor), encoding="utf-8")
        words = ["--quick", "--json", str(result), "--released", str(tmp_path)]
        importlib.import_module("scoring").main(words)
        found = json.loads(result.read_text(encoding="utf-8"))
        return found["scores_of_both"], capsys.readouterr().out.splitlines()

    return run


def test_the_same_scores_are_timed_on_both_sides(against):
    result, printed = against("1")
    assert result["examples"] == 16 and result["difference"] < 1e-4
    assert f"released {result['ratio']:.2f}" in printed
    assert printed[-1].startswith("scoring ")


def test_scores_that_differ_are_not_compared(against):
    with pytest.raises(RuntimeError, match=r"our scores and the released code's are .* apart"):
        against("1.1")


def test_a_checkout_that_is_not_there_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit, match="is not there; --released is a checkout"):
        importlib.import_module("released").load(tmp_path)
