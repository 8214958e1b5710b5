"""The paper's nine benchmarks in the harness's own task code, on local files, network off."""

from __future__ import annotations

import json
import re
import socket
import string

import datasets
import huggingface_hub
import pytest
import torch

from hbo.errors import DataError
from hbo.evaluation import BENCHMARKS, load_tasks, macro_average, run_harness
from tests.evaluation import benchmark_files as made
from tests.evaluation.cases import TOKENIZER, log_likelihood
from tests.support.tiny import tiny_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    """No sockets, no hub, no cache of earlier runs."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def model():
    """The tiny model with a liking for digits, so that it now and then answers with a number."""
    tiny = tiny_model().eval()
    digits = [TOKENIZER(digit)["input_ids"][0] for digit in string.digits]
    with torch.no_grad():
        tiny.lm_head.weight[digits] *= 2
    return tiny


def ask(model, benchmark, folder):
    return run_harness(model, TOKENIZER, load_tasks([benchmark], folder))


def test_every_benchmark_gives_the_papers_averages_without_a_network(model, tmp_path):
    for write in made.WRITERS.values():
        write(tmp_path)
    tasks = load_tasks(list(BENCHMARKS), tmp_path)
    results = run_harness(model, TOKENIZER, tasks)
    examples = {"mmmlu_ar_xy_anatomy": 1, "mmlu_virology": 1, "mgsm_direct_sw": 2, "gsm8k": 2}
    examples |= {"xstorycloze_hi": 2, "xnli_de": 3, "medmcqa": 4, "xcopa_zh": 5, "multifin_en": 6}
    assert {task: results[task]["sample_len"] for task in examples} == examples
    averages = macro_average(results)
    means = averages["means"]
    assert list(means) == list(BENCHMARKS)
    assert all(0 <= mean <= 1 for mean in means.values())
    for name in ("xnli", "mmmlu"):
        alone = [results[task]["acc,none"] for task in BENCHMARKS[name].tasks.values()]
        assert means[name] == pytest.approx(sum(alone) / len(alone))
    multilingual = ("mmmlu", "mgsm", "xcopa", "xstorycloze", "xnli")
    assert averages["mu_ml"] == pytest.approx(sum(means[name] for name in multilingual) / 5)
    multitask = ("mmlu", "multifin", "gsm8k", "medmcqa")
    assert averages["mu_mt"] == pytest.approx(sum(means[name] for name in multitask) / 4)


def number_in(model, prompt: str, stops: tuple[str, ...]) -> str | None:
    """The last number of the greedy answer, by hand."""
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=256, do_sample=False, pad_token_id=0)
    text = TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in stops:
        text = text.split(stop)[0]
    found = [match.group() for match in re.finditer(r"-?[$0-9.,]{2,}|-?[0-9]+", text)]
    return found[-1] if found else None


def numbers_said(model) -> dict[str, str]:
    """Questions that the model answers with a number, and the number."""
    questions = [f"How many is {number}?" for number in range(6)]
    said = {
        question: number_in(model, f"Question: {question}\nAnswer:", ("Question:", "</s>"))
        for question in questions
    }
    return {question: answer for question, answer in said.items() if answer and len(answer) < 9}


def test_grade_school_maths_is_the_share_of_right_last_numbers(model, tmp_path):
    said = numbers_said(model)
    assert len(said) > 2
    right, *others = said
    rows = [(right, said[right]), *((question, "77") for question in others)]
    made.gsm8k(tmp_path, rows)
    share = sum(said[question] == answer for question, answer in rows) / len(rows)
    assert 0 < share < 1
    found = ask(model, "gsm8k", tmp_path)["gsm8k"]
    assert found["exact_match,flexible-extract"] == pytest.approx(share)
    # The other number that the harness gives: an answer after "####", which this model never says.
    assert found["exact_match,strict-match"] == 0


def test_the_same_in_six_languages(model, tmp_path):
    said = numbers_said(model)
    wrong = list(said)[-1]
    rows = [(question, int(answer) + (question == wrong)) for question, answer in said.items()]
    made.mgsm(tmp_path, rows)
    results = ask(model, "mgsm", tmp_path)
    assert list(results) == [f"mgsm_direct_{each}" for each in ("de", "en", "es", "ru", "sw", "zh")]
    value = results["mgsm_direct_en"]["exact_match,flexible-extract"]
    assert value == pytest.approx(1 - 1 / len(said))


def test_a_choice_is_right_where_its_text_is_likeliest(model, tmp_path):
    made.xcopa(tmp_path)
    right = []
    path = tmp_path / "cambridgeltl/xcopa/sw/test.jsonl"
    for row in map(json.loads, path.read_text("utf-8").splitlines()):
        word = {"cause": "kwa sababu", "effect": "kwa hiyo"}[row["question"]]
        prompt = TOKENIZER(f"{row['premise'][:-1]} {word}")["input_ids"]
        scores = [
            log_likelihood(model, prompt, TOKENIZER(" " + text[0].lower() + text[1:])["input_ids"])
            for text in (row["choice1"], row["choice2"])
        ]
        right.append(scores.index(max(scores)) == row["label"])
    assert 0 < sum(right) < len(right)
    found = ask(model, "xcopa", tmp_path)["xcopa_sw"]["acc,none"]
    assert found == pytest.approx(sum(right) / len(right))


def test_multifin_asks_for_the_topic_of_english_headlines(tmp_path):
    made.multifin(tmp_path)
    (task,) = load_tasks(["multifin"], tmp_path).tasks.values()
    documents = list(task.test_docs())
    assert [row["label"] for row in documents] == list(made.TOPICS)
    assert [task.doc_to_target(row) for row in documents] == list(range(6))
    assert task.doc_to_choice(documents[0]) == list("ABCDEF")
    text = task.doc_to_text(documents[0])
    assert "Headline: Headline 0\nA. Business & Management\n" in text
    assert text.endswith("F. Technology\nAnswer:")


def test_splits_in_several_files_and_in_folders_are_read_whole(tmp_path):
    row = {"question": "1?", "answer": "#### 1"}
    made.write_split(tmp_path, "openai/gsm8k", "main", "test-00000-of-00002", [row])
    made.write_split(tmp_path, "openai/gsm8k", "main/test", "0001", [row, row])
    made.write_split(tmp_path, "openai/gsm8k", "main", "train", [row])
    (task,) = load_tasks(["gsm8k"], tmp_path).tasks.values()
    assert len(task.test_docs()) == 3
    assert len(task.training_docs()) == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda folder: None,
            r"gsm8k: benchmark 'gsm8k': there is no folder .* hf download openai/",
        ),
        (lambda folder: (folder / "openai/gsm8k").mkdir(parents=True), r"there is no file; wanted"),
        (
            lambda folder: made.write_split(folder, "openai/gsm8k", "main", "train", [{"a": 1}]),
            r"there is no split 'test' \(but train\); add test.jsonl",
        ),
        (
            lambda folder: made.write_split(folder, "openai/gsm8k", "main", "test", [{"a": 1}]),
            r"its local files lack what the task reads \(\w+: .*question",
        ),
        (
            lambda folder: (
                made.write_split(folder, "openai/gsm8k", "main", "test", [])
                or (folder / "openai/gsm8k/main/test.jsonl").write_text("{", encoding="utf-8")
            ),
            r"openai/gsm8k: benchmark 'gsm8k': cannot be read: ",
        ),
    ],
)
def test_local_files_that_do_not_do_are_one_line(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_tasks(["gsm8k"], tmp_path)
    assert "\n" not in str(caught.value)
