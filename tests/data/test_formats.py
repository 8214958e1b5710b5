import pytest

from hbo.data.formats import extra_columns, is_conversational, normalise, prompt_text, response_text
from hbo.errors import DataError

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}
CHAT = {"prompt": [USER], "completion": [BOT]}

CASES = [
    ({"messages": [USER, BOT]}, {"messages": [USER, BOT]}),
    ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
    ({"prompt": "", "completion": "b"}, {"prompt": "", "completion": "b"}),
    (CHAT, CHAT),
    ({"text": "a"}, {"text": "a"}),
    (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [USER, BOT]},
    ),
    ({"conversations": [USER, BOT]}, {"messages": [USER, BOT]}),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, CHAT),
    ({"instruction": "Hi", "output": "Hello"}, CHAT),
    (
        {"instruction": "Add", "input": "1+1", "output": "2"},
        {
            "prompt": [{"role": "user", "content": "Add\n\n1+1"}],
            "completion": [{"role": "assistant", "content": "2"}],
        },
    ),
    ({"input": [USER], "ideal": "Hello"}, CHAT),
    ({"input": "Hi", "ideal": ["Hello", "Hey"]}, CHAT),
    ({"input_ids": [1, 2]}, {"input_ids": [1, 2], "labels": [1, 2]}),
    (
        {"input_ids": [1, 2], "labels": [-100, 2]},
        {"input_ids": [1, 2], "labels": [-100, 2]},
    ),
    (
        {"input_ids": [1, 2], "assistant_masks": [0, 1]},
        {"input_ids": [1, 2], "labels": [-100, 2]},
    ),
    # A hub table with both: `prompt` alone is no prompt/completion record.
    ({"prompt": "Hi", "prompt_id": "x", "messages": [USER, BOT]}, {"messages": [USER, BOT]}),
    # Tables fill gaps with None, in records and in messages.
    (
        {"messages": [USER | {"name": None}, BOT], "text": None, "completion": None},
        {"messages": [USER, BOT]},
    ),
]


@pytest.mark.parametrize(("record", "expected"), CASES)
def test_formats(record, expected):
    before = repr(record)
    assert normalise(record) == expected
    assert normalise(expected) == expected
    assert repr(record) == before


def test_an_assistant_turn_may_be_a_tool_call():
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    example = normalise({"messages": [USER, call], "tools": '[{"name": "f"}]'})
    assert example["messages"][1] == {"role": "assistant", "tool_calls": [{"type": "function"}]}
    assert example["tools"] == [{"name": "f"}]
    assert response_text(example) is None


def test_tools_and_template_arguments_are_passed_on():
    arguments = {"enable_thinking": False}
    record = CHAT | {"tools": [{"name": "f"}], "chat_template_kwargs": arguments, "grade": 3}
    assert normalise(record) == CHAT | {
        "tools": [{"name": "f"}],
        "chat_template_kwargs": arguments,
    }
    assert extra_columns(record) == {"grade": 3}


REFUSED = [
    ({"prompt": "a"}, "a record without a response: `prompt` is there, `completion` is not"),
    ({"prompt": "a", "completion": None}, "`completion` is not"),
    ({"prompt": "a", "completion": " \n"}, "a record without a response: `completion` is empty"),
    ({"prompt": "a", "completion": [BOT]}, "must both be text or both lists of messages"),
    ({"prompt": "a", "completion": 3}, "must both be text"),
    ({"prompt": [USER], "completion": [USER]}, "no message with the role assistant"),
    ({"prompt": [], "completion": [BOT]}, "`prompt` must be a list with at least one message"),
    ({"messages": [USER]}, "a record without a response: `messages` has no message"),
    ({"messages": [USER, BOT | {"content": " "}]}, "an assistant message of `messages` is empty"),
    ({"messages": [USER, {"role": "assistant"}]}, r"`messages\[1\]` must have a text as `content`"),
    ({"messages": [USER, BOT, "hm"]}, r"`messages\[2\]` must be"),
    ({"messages": [{"role": 3, "content": "a"}]}, "with a text as role"),
    ({"messages": [USER | {"content": [{"type": "text"}]}, BOT]}, "a text as `content`"),
    ({"messages": "Hi"}, "`messages` must be a list"),
    ({"conversations": [{"from": "human", "value": "Hi"}]}, "`conversations` has no message"),
    ({"text": ""}, "`text` is empty"),
    ({"text": 3}, "`text` must be text"),
    ({"instruction": "a", "output": ""}, "`output` is empty"),
    ({"instruction": "a", "input": "b"}, "`output` is not"),
    ({"input": [USER]}, "`ideal` is not"),
    ({"input": [USER], "ideal": []}, "`ideal` is empty"),
    ({"input": [USER], "ideal": [3]}, "`ideal` must be text"),
    ({"input_ids": [1, 2], "labels": [1]}, "as long as each other"),
    ({"input_ids": [1, 2], "labels": [-100, -100]}, "every label is -100"),
    ({"input_ids": "1 2"}, "list of whole numbers"),
    ({"input_ids": []}, "as long as each other"),
    ({"text": "a\ud83d"}, "half of a surrogate pair"),
    ({"messages": [USER, BOT | {"content": "\udc00"}]}, "half of a surrogate pair"),
    (CHAT | {"tools": "nonsense"}, "`tools` must be a list"),
    (CHAT | {"chat_template_kwargs": 3}, "must be an object"),
    ({"question": "a", "answer": "b"}, r"no known record format in its keys \(answer, question\)"),
    ({}, r"no known record format in its keys \(none\)"),
]


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_what_is_refused(record, message):
    with pytest.raises(DataError, match=message) as caught:
        normalise(record, "train.jsonl:7")
    assert caught.value.where == "train.jsonl:7"


@pytest.mark.parametrize("record", [{"prompt": "a"}, {"question": "a"}])
def test_an_unknown_record_says_what_is_allowed(record):
    with pytest.raises(DataError, match=r"allowed are messages \| prompt \+ completion .* \| text"):
        normalise(record)


def test_prompt_text_is_the_same_for_the_same_question_in_any_layout():
    layouts = [
        CHAT,
        {"messages": [USER, BOT]},
        {"messages": [USER, BOT, USER | {"content": "More"}, BOT | {"content": "No"}]},
        {"instruction": "Hi", "output": "Hello"},
        {"input": "Hi", "ideal": "Hey"},
    ]
    assert {prompt_text(normalise(record)) for record in layouts} == {"user: Hi"}


def test_prompt_text_where_nothing_is_asked_is_the_whole_example():
    assert prompt_text({"text": " a \n b"}) == "a b"
    assert prompt_text(normalise({"input_ids": [1, 2, 3]})) == "1 2 3"
    assert prompt_text(normalise({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})) == "1"
    first = {"messages": [BOT, USER, BOT]}
    assert prompt_text(first) == "assistant: Hello user: Hi assistant: Hello"


def test_response_text():
    assert response_text(CHAT) == "Hello"
    assert response_text({"prompt": "a", "completion": " b\n"}) == "b"
    assert response_text({"messages": [USER, BOT]}) == "Hello"
    assert response_text({"messages": [USER, BOT, USER, BOT]}) is None
    assert response_text({"text": "a"}) is None
    assert response_text({"input_ids": [1], "labels": [1]}) is None


def test_is_conversational():
    assert is_conversational(CHAT)
    assert is_conversational({"messages": [USER, BOT]})
    assert not is_conversational({"text": "a"})
    assert not is_conversational({"prompt": "a", "completion": "b"})
