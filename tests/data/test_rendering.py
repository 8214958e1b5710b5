import numpy as np
import pytest

from hbo.data.chat import ChatRenderer
from hbo.data.formats import normalise
from hbo.data.rendering import Renderer
from hbo.errors import ConfigError, DataError
from tests.support.tiny import CHATML, CHATML_WITH_MARKERS, tiny_records, tiny_tokenizer

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}
MORE = {"role": "user", "content": "More"}
BYE = {"role": "assistant", "content": "Bye"}
TURN = "Hello<|im_end|>\n"
HEADER = "<|im_start|>assistant\n"

# Renders a message otherwise when more follows: the last assistant turn alone keeps its thought.
FORGETFUL = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'][:2])"
)


def encode(example, tokenizer=None, **settings):
    return Renderer(tokenizer or tiny_tokenizer(), **settings).encode(normalise(example))


def trained(encoded, labels="labels"):
    """The text that is trained on; what is not shows as "~"."""
    tokenizer = tiny_tokenizer()
    pieces = [
        "~" if label == -100 else tokenizer.decode([label]) for label in getattr(encoded, labels)
    ]
    return "".join(pieces)


def text(ids):
    return tiny_tokenizer().decode(ids)


def test_single_turn_messages_are_the_same_tokens_as_prompt_and_completion():
    pair = encode({"prompt": [USER], "completion": [BOT]})
    messages = encode({"messages": [USER, BOT]})
    for field in ("input_ids", "labels", "alone_ids", "alone_labels"):
        np.testing.assert_array_equal(getattr(pair, field), getattr(messages, field))
    assert trained(pair).lstrip("~") == TURN
    assert pair.input_ids.dtype == pair.labels.dtype == np.int32


def test_all_assistant_turns_of_a_conversation_are_trained_and_nothing_else():
    encoded = encode({"messages": [USER, BOT, MORE, BYE]})
    assert [part for part in trained(encoded).split("~") if part] == [TURN, "Bye<|im_end|>\n"]


def test_assistant_only_can_be_turned_off():
    encoded = encode({"messages": [USER, BOT]}, assistant_only=False)
    assert trained(encoded) == text(encoded.input_ids)
    assert encoded.alone is None


def test_the_response_alone_keeps_the_header_of_each_turn_and_the_tokens_trained_on():
    one = encode({"messages": [USER, BOT]})
    assert text(one.alone_ids) == HEADER + TURN
    assert trained(one, "alone_labels").lstrip("~") == TURN
    two = encode({"messages": [USER, BOT, MORE, BYE]})
    assert text(two.alone_ids) == HEADER + TURN + HEADER + "Bye<|im_end|>\n"
    assert two.alone.response_tokens == two.response_tokens


def test_the_response_alone_of_plain_text_starts_with_bos():
    encoded = encode({"prompt": "Say hi: ", "completion": "hi"})
    assert text(encoded.alone_ids) == "<|im_start|>hi<|im_end|>"
    assert trained(encoded, "alone_labels") == "~hi<|im_end|>"
    assert encoded.alone.response_tokens == encoded.response_tokens
    shortest = encode({"prompt": "?", "completion": "hi"})
    assert text(shortest.alone_ids) == "<|im_start|>hi<|im_end|>"
    no_bos = tiny_tokenizer()
    no_bos.bos_token = None
    encoded = encode({"prompt": "Say hi: ", "completion": "hi"}, no_bos)
    assert text(encoded.alone_ids) == "<|im_end|>hi<|im_end|>"


def test_a_template_that_opens_with_bos_keeps_it_in_the_response_alone():
    bos = tiny_tokenizer("{{ bos_token }}" + CHATML.replace("<|im_start|>", "["))
    encoded = encode({"messages": [USER, BOT]}, bos)
    assert text(encoded.alone_ids) == "<|im_start|>[assistant\n" + TURN


def test_a_header_that_belongs_to_the_response_is_not_repeated():
    # TRL's training template for Qwen counts the line break after the role to the response.
    template = CHATML_WITH_MARKERS.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' }}", "{{ '<|im_start|>' + message['role'] }}"
    ).replace("{{ message['content'] + '<|im_end|>'", "{{ '\n' + message['content'] + '<|im_end|>'")
    encoded = encode({"messages": [USER, BOT]}, tiny_tokenizer(template))
    assert text(encoded.input_ids) == text(encode({"messages": [USER, BOT]}).input_ids)
    assert trained(encoded).lstrip("~") == "\n" + TURN
    assert text(encoded.alone_ids) == HEADER + TURN


@pytest.mark.parametrize("layout", ["chat", "messages", "prompt-completion"])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_response_alone_has_the_tokens_that_truncation_left(layout, mode):
    tokenizer = tiny_tokenizer()
    records = tiny_records(3, kind="count", layout=layout)
    for max_length in range(2, 70, 4):
        for encoded in (
            encode(record, tokenizer, max_length=max_length, truncation_mode=mode)
            for record in records
        ):
            if encoded is None:
                continue
            assert encoded.response_tokens >= 1
            assert len(encoded.input_ids) <= max_length
            seen = encoded.labels[1:][encoded.labels[1:] != -100]
            alone = encoded.alone_labels[1:]
            np.testing.assert_array_equal(alone[alone != -100], seen)


def test_truncation_that_removes_the_response_gives_nothing():
    record = {"prompt": "0123456789", "completion": "yes"}
    assert encode(record, max_length=10) is None
    assert trained(encode(record, max_length=11)) == "~~~~~~~~~~y"
    # A response token that nothing predicts is no training either.
    assert encode({"input_ids": [7], "labels": [7]}) is None
    assert encode({"input_ids": [7, 8], "labels": [7, -100]}) is None


@pytest.mark.parametrize("text", ["plain", "ends<|im_end|>"])
def test_text_has_no_prompt_and_one_end(text):
    encoded = encode({"text": text})
    assert trained(encoded) == text.removesuffix("<|im_end|>") + "<|im_end|>"
    assert encoded.alone is None


def test_tokens_prepared_elsewhere_are_left_alone():
    encoded = encode({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9]})
    assert encoded.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert encoded.alone_ids.tolist() == [tiny_tokenizer().bos_token_id, 6, 8, 9]
    assert encoded.alone_labels.tolist() == [-100, 6, 8, 9]


def test_turns_that_cannot_be_told_apart_are_refused():
    forgetful = tiny_tokenizer(FORGETFUL)
    assert encode({"messages": [USER, BOT]}, forgetful) is not None
    with pytest.raises(DataError, match=r"message 1 differently when more follows.*generation"):
        Renderer(forgetful).encode({"messages": [USER, BOT, MORE, BYE]}, "a.jsonl:3")


def test_a_conversation_that_the_assistant_opens():
    encoded = encode({"messages": [BOT, MORE, BYE]})
    assert trained(encoded).lstrip("~").startswith(TURN)
    # A default system prompt stands before it, which an empty conversation does not show.
    system = "{% if messages[0]['role'] != 'system' %}{{ 'Be nice. ' }}{% endif %}"
    with pytest.raises(DataError, match="message 0"):
        encode({"messages": [BOT, MORE, BYE]}, tiny_tokenizer(system + CHATML))


def test_no_chat_template_is_one_line_with_the_fix():
    for record in ({"messages": [USER, BOT]}, {"prompt": [USER], "completion": [BOT]}):
        with pytest.raises(ConfigError, match=r"no chat template.*set training\.chat_templ"):
            encode(record, tiny_tokenizer(None))
    assert encode({"messages": [USER, BOT]}, tiny_tokenizer(None), chat_template=CHATML)
    assert encode({"prompt": "a", "completion": "b"}, tiny_tokenizer(None))


def test_a_template_that_refuses_names_the_record():
    strict = tiny_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        DataError, match="refuses this conversation: roles must alternate"
    ) as caught:
        Renderer(strict).encode({"prompt": [USER], "completion": [BOT]}, "a.jsonl:3")
    assert caught.value.where == "a.jsonl:3"


def test_markers_that_mark_nothing_are_refused():
    nothing = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    with pytest.raises(DataError, match="marks no token"):
        encode({"messages": [USER, BOT]}, tiny_tokenizer(nothing))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "max_length is 1; allowed are whole numbers from 2"),
        ({"truncation_mode": "keep"}, "allowed are keep_start and keep_end"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        Renderer(tiny_tokenizer(), **settings)


def test_assistant_only_on_plain_text_and_no_end_token_are_refused():
    with pytest.raises(ConfigError, match="assistant_only_loss needs records made of messages"):
        encode({"text": "a"}, assistant_only=True)
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        encode({"text": "a"}, endless)


def test_named_templates_use_the_default_one():
    named = tiny_tokenizer({"default": CHATML_WITH_MARKERS, "tool_use": "no"})
    ids, mask = ChatRenderer(named).ids_and_mask([USER, BOT], options={})
    assert text(np.array(ids)[np.array(mask) == 1]) == TURN
