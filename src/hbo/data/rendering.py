"""Canonical examples to tokens and labels, token for token what TRL's SFTTrainer prepares.

The rules of TRL 1.16, ``SFTTrainer._prepare_dataset``, restated here because scoring and evaluation
need them without a trainer; a test holds the two equal for every format.

1. Plain text gets the end-of-sequence token; conversations get what their template gives them.
2. The completion starts where the tokenised prompt and the tokenised prompt + completion diverge.
3. Labels are the ids where the masks in force are 1, and -100 elsewhere.
4. Truncation cuts ids and labels alike; an example left without a response is dropped.

One default differs: in a ``messages`` record only the assistant's turns are trained on (TRL:
everything, unless ``assistant_only_loss``). ``assistant_only=False`` asks for TRL's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hbo.data.chat import ChatRenderer, common_prefix_length
from hbo.data.formats import Example, is_conversational
from hbo.errors import ConfigError, DataError
from hbo.measure.examples import IGNORED, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRUNCATION_MODES = ("keep_start", "keep_end")


@dataclass(frozen=True)
class Renderer:
    """Turns canonical examples (``hbo.data.formats``) into tokens and labels.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Tokens at which an example is cut; ``None`` cuts nothing.
        truncation_mode: Which end survives the cut: ``keep_start`` or ``keep_end``.
        completion_only: Train on the completion only; ``None`` is TRL's rule (yes for
            prompt/completion records).
        assistant_only: Train on assistant turns only; ``None`` is yes for ``messages`` records.
        chat_template: Used in place of the tokenizer's own.
        marked_template: The chat template's variant with ``{% generation %}`` markers, such as
            TRL's ``get_training_chat_template`` has for the templates it knows; where assistant
            turns are to be told apart it is rendered, as in TRL. Without one they are found by
            rendering the conversation turn by turn.

    Raises:
        ConfigError: A value is out of range.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    completion_only: bool | None = None
    assistant_only: bool | None = None
    chat_template: str | None = None
    marked_template: str | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length is {self.max_length}; allowed are whole numbers from 2, or null"
            )
        if self.truncation_mode not in TRUNCATION_MODES:
            raise ConfigError(
                f"truncation_mode is {self.truncation_mode!r}; "
                f"allowed are {' and '.join(TRUNCATION_MODES)}"
            )

    def encode(self, example: Example, where: str | None = None) -> Encoded | None:
        """Tokens and labels of one example, and its response alone.

        The response-alone sequence is the assistant's header (the generation prompt) and the
        response, for each turn one after the other and without the turns between; for plain text
        it is the response after the BOS (else EOS) token, so that its first token is predicted. It
        holds exactly the tokens that are trained on in the whole sequence. There is none
        (``None``) where nothing but the response exists: ``text``, or a loss on all tokens.

        Args:
            example: A canonical example.
            where: Its place, for messages.

        Returns:
            The encoded example; ``None`` where truncation left no response token to train on.

        Raises:
            ConfigError: The tokenizer lacks a chat template or an end-of-sequence token.
            DataError: The template refuses the example.
        """
        try:
            ids, labels = self._tokens(example)
        except DataError as error:
            raise DataError(error.message, where=where) from None
        visible = self._window(labels)
        kept = np.full(len(labels), IGNORED, dtype=np.int32)
        kept[visible] = labels[visible]
        if len(ids[visible]) < 2 or not (kept[visible][1:] != IGNORED).any():
            return None
        alone = None
        if (labels == IGNORED).any():  # there is a prompt, even if truncation took it away
            alone = self._alone(ids, kept, visible.start, chat=is_conversational(example))
        return Encoded(ids[visible], kept[visible], *(alone or (None, None)))

    def _tokens(self, example: Example) -> tuple[_Tokens, _Tokens]:
        """Ids and labels before truncation (rules 1 to 3)."""
        if "input_ids" in example:
            return _tokens(example["input_ids"]), _tokens(example["labels"])
        if is_conversational(example):
            ids, masks = self._conversation(example)
        elif self.assistant_only:
            raise ConfigError(
                "assistant_only_loss needs records made of messages, and this one is plain text: "
                "leave it unset, or give the record as `messages`"
            )
        else:
            ids, masks = self._plain(example)
        labels = _tokens(ids)
        for mask in masks:
            labels[np.asarray(mask) == 0] = IGNORED
        return _tokens(ids), labels

    def _conversation(self, example: Example) -> tuple[list[int], list[list[int]]]:
        options = {"tools": example.get("tools"), **example.get("chat_template_kwargs", {})}
        masks = []
        if "messages" in example:
            messages, assistant_only = example["messages"], self.assistant_only is not False
        else:
            messages = example["prompt"] + example["completion"]
            assistant_only = bool(self.assistant_only)
        if assistant_only:
            ids, mask = self._chat.ids_and_mask(messages, options=options)
            masks.append(mask)
        else:
            ids = self._chat.ids(messages, options=options)
        if "prompt" in example and self.completion_only is not False:
            prompt = self._chat.ids(example["prompt"], options=options, prompt=True)
            masks.append(_completion_mask(prompt, ids))
        return ids, masks

    def _plain(self, example: Example) -> tuple[list[int], list[list[int]]]:
        end = self.tokenizer.eos_token
        if not isinstance(end, str):
            raise ConfigError(
                "the tokenizer has no end-of-sequence token, which plain text needs; "
                "set training.eos_token"
            )
        text = example["text"] if "text" in example else example["completion"]
        text = text if text.endswith(end) else text + end
        if "text" in example:
            return self._text_ids(text), []
        ids = self._text_ids(example["prompt"] + text)
        if self.completion_only is False:
            return ids, []
        return ids, [_completion_mask(self._text_ids(example["prompt"]), ids)]

    def _text_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text=text)["input_ids"])

    def _window(self, labels: _Tokens) -> slice:
        """The part of a sequence that truncation keeps."""
        if self.max_length is None or len(labels) <= self.max_length:
            return slice(0, len(labels))
        if self.truncation_mode == "keep_start":
            return slice(0, self.max_length)
        return slice(len(labels) - self.max_length, len(labels))

    def _alone(
        self, ids: _Tokens, labels: _Tokens, first: int, *, chat: bool
    ) -> tuple[_Tokens, _Tokens]:
        """The response without its prompt.

        Args:
            ids: (T,) the whole example, before truncation.
            labels: (T,) its labels, -100 outside what truncation keeps.
            first: The first token that truncation keeps.
            chat: Whether turns have a header.
        """
        labels = labels.copy()
        labels[first] = IGNORED  # nothing predicts a sequence's first token
        start_ids = [self._first] if self._first is not None else []
        keep_first = chat and len(ids) > 0 and ids[0] == self.tokenizer.bos_token_id
        pieces, trained = [], []
        for start, end in _runs(labels != IGNORED):
            header = self._header_before(ids, start) if chat else ids[:0]
            pieces += [header, ids[start:end]]
            trained += [np.full(len(header), IGNORED, dtype=np.int32), labels[start:end]]
        alone_ids, alone_labels = np.concatenate(pieces), np.concatenate(trained)
        if alone_labels[0] != IGNORED or (keep_first and alone_ids[0] != ids[0]):
            alone_ids = np.concatenate((_tokens(start_ids), alone_ids))
            alone_labels = np.concatenate(
                (np.full(len(start_ids), IGNORED, np.int32), alone_labels)
            )
        return alone_ids, alone_labels

    def _header_before(self, ids: _Tokens, start: int) -> _Tokens:
        """The assistant's header that ends where the response starts.

        A template may count the header's last tokens to the response (TRL's for Qwen), so the
        longest beginning of the header that stands there is taken.
        """
        header = _tokens(self._chat.header)
        for length in range(min(len(header), start), 0, -1):
            if np.array_equal(ids[start - length : start], header[:length]):
                return header[:length]
        return header[:0]

    @cached_property
    def _chat(self) -> ChatRenderer:
        return ChatRenderer(self.tokenizer, self.chat_template, self.marked_template)

    @cached_property
    def _first(self) -> int | None:
        """The token that a sequence without a prompt starts with."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return None


_Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]


def _tokens(values: Any) -> _Tokens:
    return np.array(values, dtype=np.int32)


def _completion_mask(prompt: list[int], whole: list[int]) -> list[int]:
    length = common_prefix_length(prompt, whole)
    return [0] * length + [1] * (len(whole) - length)


def _runs(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Iterator[tuple[int, int]]:
    """First and last-but-one position of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
