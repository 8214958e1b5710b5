"""Conversations to tokens by a chat template, and which of them the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hbo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading items that two sequences share.

    Example:
        >>> common_prefix_length([1, 2, 3], [1, 2, 4, 5])
        2
    """
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length


@dataclass(frozen=True)
class ChatRenderer:
    """A chat template applied by a tokenizer, as TRL applies it.

    Args:
        tokenizer: The tokenizer.
        template: A chat template to use instead of the tokenizer's own; ``None`` for its own.
        marked_template: Its variant with ``{% generation %}`` markers, rendered where the
            assistant's tokens are to be told apart; ``None`` where there is none.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | None = None
    marked_template: str | None = None

    def ids(
        self, messages: Messages, *, options: dict[str, Any], prompt: bool = False
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: The messages.
            options: ``tools`` and the record's ``chat_template_kwargs``.
            prompt: End with the header of the assistant's next turn (the generation prompt).

        Raises:
            ConfigError: There is no chat template.
            DataError: The template refuses the conversation.
        """
        rendered = self._apply(messages, self.template, options, add_generation_prompt=prompt)
        return [int(token) for token in rendered["input_ids"]]

    def ids_and_mask(
        self, messages: Messages, *, options: dict[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and 1 for each token that the assistant wrote.

        A template with ``{% generation %}`` markers says so itself. Without one, each assistant
        turn is found by rendering the conversation up to it and including it: the turn reaches
        from the end of its header to the end of its rendering, end-of-turn token and the template's
        line break included, exactly as in a prompt/completion record.

        Raises:
            ConfigError: There is no chat template.
            DataError: The turns cannot be told apart.
        """
        template = self._marked
        if template is None:
            return self._incremental(messages, options)
        rendered = self._apply(messages, template, options, return_assistant_tokens_mask=True)
        mask = [int(bit) for bit in rendered["assistant_masks"]]
        if 1 not in mask:
            raise DataError(
                "the chat template marks no token of this conversation as the assistant's"
            )
        return [int(token) for token in rendered["input_ids"]], mask

    @cached_property
    def header(self) -> list[int]:
        """Tokens that open an assistant turn: what the generation prompt adds to a conversation."""
        question = [{"role": "user", "content": "?"}]
        try:
            without = self.ids(question, options={})
            opened = self.ids(question, options={}, prompt=True)
        except DataError:
            return []
        return opened[common_prefix_length(without, opened) :]

    @cached_property
    def _marked(self) -> str | None:
        """A template with markers: the one in use, else the variant given for this purpose."""
        own = self.template or self.tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default", "")
        return str(own) if own and _MARKER.search(own) else self.marked_template

    def _apply(
        self, messages: Messages, template: str | None, options: dict[str, Any], **arguments: Any
    ) -> Any:
        if template is None and not self.tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'the model'} has no chat "
                "template, which records made of messages need: set training.chat_template_path "
                "to a .jinja file, use an instruction-tuned model, or give `prompt` and "
                "`completion` as text"
            )
        from jinja2.exceptions import TemplateError

        settings = {"chat_template": template, **options, **arguments}
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, **settings
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from error

    def _incremental(
        self, messages: Messages, options: dict[str, Any]
    ) -> tuple[list[int], list[int]]:
        full = self.ids(messages, options=options)
        mask = [0] * len(full)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = self._turn(messages, turn, full, options)
                mask[start:end] = [1] * (end - start)
        return full, mask

    def _turn(
        self, messages: Messages, turn: int, full: list[int], options: dict[str, Any]
    ) -> tuple[int, int]:
        """First and last-but-one token number of one assistant turn in the whole conversation."""
        opened = self.ids(messages[:turn], options=options, prompt=True) if turn else self.header
        start = common_prefix_length(opened, full)
        if turn + 1 == len(messages):
            end = through = len(full)
        else:
            closed = self.ids(messages[: turn + 1], options=options)
            through, end = common_prefix_length(closed, full), len(closed)
        # The template may render the header otherwise, or tokens may merge over its end, but what
        # stands before the header must be the same, or the turn's place is unknown.
        known = start == len(opened)
        if not known and turn:
            known = start >= len(self.ids(messages[:turn], options=options))
        if not known or through < end or start >= end:
            raise DataError(
                f"this chat template renders message {turn} differently when more follows, so the "
                "assistant's tokens cannot be told apart: use a template with {% generation %} "
                "markers (training.chat_template_path), prompt/completion records, or "
                "assistant_only_loss: false"
            )
        return start, end
