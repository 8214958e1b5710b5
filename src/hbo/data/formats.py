"""Records of any supported format to one canonical form, TRL's.

Canonical examples are dicts with exactly one of these key sets:

- ``messages``: a conversation of ``{"role", "content", ...}`` messages,
- ``prompt`` and ``completion``: both text, or both lists of messages,
- ``text``: plain text without a prompt,
- ``input_ids`` and ``labels``: tokens prepared elsewhere,

and, where the record has them, ``tools`` and ``chat_template_kwargs``. A record is refused rather
than guessed at: without a response there is nothing to train on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from hbo.errors import DataError

Example = dict[str, Any]
Messages = list[dict[str, Any]]

ALLOWED = (
    "allowed are messages | prompt + completion (text or messages) | text | "
    "conversations (from/value) | instruction (+ input) + output | input + ideal | "
    "input_ids (+ labels)"
)

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
}
MAX_DEPTH = 100
"""Of lists and objects in a record; no format of messages or tools comes near it."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_PASSED_ON = ("tools", "chat_template_kwargs")


def normalise(data: Mapping[str, Any], where: str | None = None) -> Example:
    """Bring one record into canonical form.

    The first format of ``FORMATS`` whose keys the record has decides; columns outside the format
    are left out (see ``extra_columns``). ``None`` counts as absent, as tables fill gaps with it.

    Args:
        data: The record.
        where: Its place, for messages.

    Returns:
        The canonical example (module docstring).

    Raises:
        DataError: No known format, no response, or a value of the wrong type.

    Example:
        >>> normalise({"instruction": "Say hi", "output": "hi"})["completion"]
        [{'role': 'assistant', 'content': 'hi'}]
    """
    present = {key: value for key, value in data.items() if value is not None}
    try:
        for keys, convert in FORMATS.items():
            if present.keys() >= set(keys):
                example = convert(present) | _passed_on(present)
                _require_unicode(example)
                return example
        for question, response in (
            ("prompt", "completion"),
            ("instruction", "output"),
            ("input", "ideal"),
        ):
            if question in present:
                raise DataError(
                    f"a record without a response: `{question}` is there, `{response}` is not; "
                    + ALLOWED
                )
        names = ", ".join(sorted(map(str, data))) or "none"
        raise DataError(f"no known record format in its keys ({names}); {ALLOWED}")
    except DataError as error:
        raise DataError(error.message, where=where) from None


def extra_columns(data: Mapping[str, Any]) -> dict[str, Any]:
    """The record's columns that are not part of its format, kept for ``difficulty: column:NAME``.

    Example:
        >>> extra_columns({"text": "a", "grade": 3})
        {'grade': 3}
    """
    return {key: value for key, value in data.items() if key not in _FORMAT_KEYS}


def prompt_text(example: Example) -> str:
    """What is asked, as text: the key by which examples are held out together.

    Of a conversation, everything before the first assistant turn, so that two conversations that
    begin with the same question count as one prompt. Where nothing is asked (``text``, tokens that
    are all trained on) it is the whole example. Runs of white space count as one space.

    Example:
        >>> prompt_text({"prompt": "Say  hi", "completion": "hi"})
        'Say hi'
    """
    if "input_ids" in example:
        return _token_prompt(example["input_ids"], example["labels"])
    source = example.get("prompt", example.get("text"))
    if source is None:
        source = _before_first_assistant(example["messages"])
    if isinstance(source, list):
        source = " ".join(f"{message['role']}: {_content(message)}" for message in source)
    return " ".join(source.split())


def response_text(example: Example) -> str | None:
    """The one response of an example, to grade an answer against, without surrounding white space.

    Returns:
        The text of the completion or of the only assistant turn; ``None`` where there is no such
        thing: ``text``, tokens, several assistant turns, tool calls.

    Example:
        >>> response_text({"prompt": "Say hi", "completion": " hi"})
        'hi'
    """
    completion = example.get("completion", example.get("messages"))
    if completion is None or isinstance(completion, str):
        return completion.strip() if completion else None
    answers = [message for message in completion if message["role"] == "assistant"]
    if len(answers) != 1 or answers[0].get("tool_calls"):
        return None
    return _content(answers[0]).strip()


def is_conversational(example: Example) -> bool:
    """Whether the example consists of messages, which a chat template renders."""
    return "messages" in example or isinstance(example.get("prompt"), list)


def _from_tokens(data: Mapping[str, Any]) -> Example:
    ids = _integers(data, "input_ids")
    labels = _integers(data, "labels") if "labels" in data else list(ids)
    if not ids or len(ids) != len(labels):
        raise DataError(
            f"`input_ids` ({len(ids)}) and `labels` ({len(labels)}) must be as long as each other"
        )
    for mask in ("completion_mask", "assistant_masks"):
        if "labels" not in data and mask in data:
            bits = _integers(data, mask)
            if len(bits) != len(ids):
                raise DataError(
                    f"`{mask}` ({len(bits)}) must be as long as `input_ids` ({len(ids)})"
                )
            labels = [label if bit else -100 for label, bit in zip(labels, bits, strict=True)]
    if all(label == -100 for label in labels):
        raise DataError("a record without a response: every label is -100")
    return {"input_ids": ids, "labels": labels}


def _from_prompt_completion(data: Mapping[str, Any]) -> Example:
    prompt, completion = data["prompt"], data["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        _require_response(completion, "completion")
        return {"prompt": prompt, "completion": completion}
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError("`prompt` and `completion` must both be text or both lists of messages")
    return {
        "prompt": _messages(prompt, "prompt"),
        "completion": _with_response(_messages(completion, "completion"), "completion"),
    }


def _from_messages(data: Mapping[str, Any]) -> Example:
    return {"messages": _with_response(_messages(data["messages"], "messages"), "messages")}


def _from_conversations(data: Mapping[str, Any]) -> Example:
    turns = data["conversations"]
    if isinstance(turns, list):
        turns = [_from_value(turn) if isinstance(turn, dict) else turn for turn in turns]
    return {"messages": _with_response(_messages(turns, "conversations"), "conversations")}


def _from_alpaca(data: Mapping[str, Any]) -> Example:
    instruction, context, output = (_text(data, key) for key in ("instruction", "input", "output"))
    _require_response(output, "output")
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    system = _text(data, "system")
    prompt = [{"role": "system", "content": system}] if system.strip() else []
    prompt.append({"role": "user", "content": question})
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": output}]}


def _from_evals(data: Mapping[str, Any]) -> Example:
    question, ideal = data["input"], data["ideal"]
    answer = next(iter(ideal), "") if isinstance(ideal, list) else ideal
    if not isinstance(answer, str):
        raise DataError("`ideal` must be text or a list of texts")
    _require_response(answer, "ideal")
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    return {
        "prompt": _messages(question, "input"),
        "completion": [{"role": "assistant", "content": answer}],
    }


def _from_text(data: Mapping[str, Any]) -> Example:
    _require_response(_text(data, "text"), "text")
    return {"text": data["text"]}


FORMATS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], Example]] = {
    ("input_ids",): _from_tokens,
    ("prompt", "completion"): _from_prompt_completion,
    ("messages",): _from_messages,
    ("conversations",): _from_conversations,
    ("instruction", "output"): _from_alpaca,
    ("input", "ideal"): _from_evals,
    ("text",): _from_text,
}

_FORMAT_KEYS = frozenset(key for keys in FORMATS for key in keys) | {
    "labels", "completion_mask", "assistant_masks", "system", *_PASSED_ON,
}  # fmt: skip


def _passed_on(data: Mapping[str, Any]) -> Example:
    """`tools` and `chat_template_kwargs`, checked; tools may be JSON text, as TRL allows."""
    kept = {key: data[key] for key in _PASSED_ON if key in data}
    if isinstance(kept.get("tools"), str):
        try:
            kept["tools"] = json.loads(kept["tools"])
        except (ValueError, RecursionError):
            raise DataError("`tools` must be a list, or a list as JSON text") from None
    if "tools" in kept and not isinstance(kept["tools"], list):
        raise DataError("`tools` must be a list, or a list as JSON text")
    if "chat_template_kwargs" in kept and not isinstance(kept["chat_template_kwargs"], dict):
        raise DataError("`chat_template_kwargs` must be an object")
    return kept


def _messages(value: Any, key: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise DataError(f"`{key}` must be a list with at least one message")
    return [_message(message, f"{key}[{number}]") for number, message in enumerate(value)]


def _message(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str) or not value["role"]:
        raise DataError(f'`{place}` must be {{"role": ..., "content": ...}} with a text as role')
    # Tables fill the keys that other messages have with None; a chat template must not see them.
    message = {key: item for key, item in value.items() if item is not None}
    if not isinstance(message.get("content", "" if message.get("tool_calls") else None), str):
        raise DataError(f"`{place}` must have a text as `content`")
    return message


def _from_value(turn: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if "from" in turn:
        rest["role"] = (
            _SHAREGPT_ROLES.get(turn["from"], turn["from"])
            if isinstance(turn["from"], str)
            else None
        )
    if "value" in turn:
        rest["content"] = turn["value"]
    return rest


def _with_response(messages: Messages, key: str) -> Messages:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise DataError(
            f"a record without a response: `{key}` has no message with the role assistant"
        )
    if any(not _content(answer).strip() and not answer.get("tool_calls") for answer in answers):
        raise DataError(f"a record without a response: an assistant message of `{key}` is empty")
    return messages


def _require_response(text: str, key: str) -> None:
    if not text.strip():
        raise DataError(f"a record without a response: `{key}` is empty")


def _require_unicode(example: Example) -> None:
    """Refuse half of a surrogate pair, which JSON can escape and no tokenizer can read."""
    level: list[Any] = [item for key, item in example.items() if key not in ("input_ids", "labels")]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii() and _SURROGATE.search(item):
                raise DataError("the text holds a broken character (half of a surrogate pair)")
        if not below:
            return
        level = below
    raise DataError(f"nested more than {MAX_DEPTH} deep")


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise DataError(f"`{key}` must be text")
    return value


def _integers(data: Mapping[str, Any], key: str) -> list[int]:
    value = data[key]
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise DataError(f"`{key}` must be a list of whole numbers")
    least = -100 if key == "labels" else 0
    if value and not least <= min(value) <= max(value) < 2**31:
        raise DataError(f"`{key}` must be numbers of tokens, from {least} to 2**31 - 1")
    return value


def _content(message: Mapping[str, Any]) -> str:
    return str(message.get("content", ""))


def _before_first_assistant(messages: Messages) -> Messages:
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:first] or messages


def _token_prompt(ids: list[int], labels: list[int]) -> str:
    first = next(i for i, label in enumerate(labels) if label != -100)
    return " ".join(map(str, ids[:first] or ids))
