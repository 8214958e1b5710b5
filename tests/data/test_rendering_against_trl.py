"""Our tokens and labels against those of the real SFTTrainer, format by format."""

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hbo.data.formats import normalise
from hbo.data.rendering import Renderer
from tests.support.tiny import (
    CHATML,
    CHATML_WITH_MARKERS,
    LAYOUTS,
    tiny_model,
    tiny_records,
    tiny_tokenizer,
)

CONVERSATIONS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Say {word}"},
            {"role": "assistant", "content": word},
            {"role": "user", "content": "Again!"},
            {"role": "assistant", "content": f"{word} {word}"},
        ]
    }
    for word in ("yes", "no", "perhaps, or perhaps not")
]
SHAREGPT = [
    {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": word}]}
    for word in ("one", "two")
]
PREPARED = [
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    {"input_ids": [9, 8], "labels": [-100, 8]},
]
# An end token that is there already is not added again; an empty prompt masks nothing.
BOUNDARY = [{"prompt": "é", "completion": "\n\nyes<|im_end|>"}, {"prompt": "", "completion": "no"}]


def by_trl(records, tmp_path, tokenizer, **settings):
    """What the real trainer trains on."""
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=None,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    trainer = SFTTrainer(
        tiny_model(), args, train_dataset=Dataset.from_list(records), processing_class=tokenizer
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def by_us(records, tokenizer, **settings):
    renderer = Renderer(tokenizer, **settings)
    encoded = [renderer.encode(normalise(record)) for record in records]
    return [(e.input_ids.tolist(), e.labels.tolist()) for e in encoded if e is not None]


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode:FutureWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("max_length", "mode"), [(1024, "keep_start"), (40, "keep_start"), (9, "keep_end")]
)
def test_every_layout_and_truncation(layout, max_length, mode, tmp_path):
    records = tiny_records(12, seed=3, kind="count", layout=layout)
    settings = {"max_length": max_length, "truncation_mode": mode}
    expected = by_trl(records, tmp_path, tiny_tokenizer(), **settings)
    assert by_us(records, tiny_tokenizer(), assistant_only=False, **settings) == expected
    assert expected


@pytest.mark.parametrize("records", [CONVERSATIONS, SHAREGPT, PREPARED, BOUNDARY])
def test_other_formats(records, tmp_path):
    expected = by_trl(records, tmp_path, tiny_tokenizer())
    assert by_us(records, tiny_tokenizer(), assistant_only=False) == expected


@pytest.mark.parametrize("records", [CONVERSATIONS, tiny_records(4, layout="chat")])
def test_assistant_only_is_trls_with_a_marked_template(records, tmp_path):
    expected = by_trl(
        records, tmp_path, tiny_tokenizer(CHATML_WITH_MARKERS), assistant_only_loss=True
    )
    assert by_us(records, tiny_tokenizer(CHATML_WITH_MARKERS), assistant_only=True) == expected
    # Without markers the turns are found by rendering, with the same result.
    assert by_us(records, tiny_tokenizer(CHATML), assistant_only=True) == expected


@pytest.mark.parametrize("layout", ["prompt-completion", "chat"])
def test_completion_only_off(layout, tmp_path):
    records = tiny_records(4, layout=layout)
    expected = by_trl(records, tmp_path, tiny_tokenizer(), completion_only_loss=False)
    assert by_us(records, tiny_tokenizer(), completion_only=False) == expected


def test_tools_and_template_arguments_reach_the_template(tmp_path):
    template = "{{ (tools | length) ~ ' tools, ' ~ mood ~ ': ' }}" + CHATML
    records = [
        dict(record, tools=[{"name": "f"}], chat_template_kwargs={"mood": "calm"})
        for record in tiny_records(3, layout="chat")
    ]
    expected = by_trl(records, tmp_path, tiny_tokenizer(template))
    assert by_us(records, tiny_tokenizer(template)) == expected
    assert tiny_tokenizer().decode(expected[0][0]).startswith("1 tools, calm: <|im_start|>")


def test_a_template_that_trl_knows_is_rendered_in_its_training_variant(tmp_path):
    from trl import chat_template_utils

    tokenizer = tiny_tokenizer(chat_template_utils.qwen2_5_chat_template)
    expected = by_trl(CONVERSATIONS, tmp_path, tokenizer, assistant_only_loss=True)
    marked = chat_template_utils.get_training_chat_template(tokenizer)
    assert by_us(CONVERSATIONS, tokenizer, marked_template=marked) == expected


@pytest.mark.asset
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tokenizer_of_a_real_model(layout, tmp_path):
    """SmolLM2: a merging vocabulary, a default system prompt, and pad = eos."""
    from transformers import AutoTokenizer

    from hbo import assets

    folder = assets.path("smollm2-135m")
    records = tiny_records(6, kind="count", layout=layout)
    expected = by_trl(records, tmp_path, AutoTokenizer.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert by_us(records, tokenizer, assistant_only=False) == expected
    if layout == "chat":
        assert "You are a helpful AI assistant named SmolLM" in tokenizer.decode(expected[0][0])
    if layout == "messages":
        # One question and one answer: the same as prompt and completion.
        pairs = tiny_records(6, kind="count", layout="chat")
        assert by_us(records, tokenizer) == by_us(pairs, tokenizer)
