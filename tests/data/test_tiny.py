"""The support models and records of the suite keep the properties the other tests lean on."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny import (
    CHATML_WITH_MARKERS,
    KINDS,
    LAYOUTS,
    save_tiny,
    tiny_model,
    tiny_records,
    tiny_tokenizer,
)


def test_tokenizer_round_trips_any_text_and_has_distinct_specials():
    tokenizer = tiny_tokenizer()
    text = "Grüße, 東京!\n <tab>\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert len(tokenizer) == 259


def test_chat_template_is_chatml():
    messages = [{"role": "user", "content": "Hi"}]
    for template in (None, CHATML_WITH_MARKERS):
        tokenizer = tiny_tokenizer(template) if template else tiny_tokenizer()
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_model_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = tiny_model(3), tiny_model(3), tiny_model(4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_are_deterministic_and_distinct(kind, layout):
    records = tiny_records(30, seed=1, kind=kind, layout=layout)
    assert records == tiny_records(30, seed=1, kind=kind, layout=layout)
    assert records != tiny_records(30, seed=2, kind=kind, layout=layout)
    assert len({str(record) for record in records}) == 30


def test_saved_folder_loads_again(tmp_path):
    folder = save_tiny(tmp_path / "tiny", seed=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        np.testing.assert_array_equal(model(ids).logits, tiny_model(2).eval()(ids).logits)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
