"""Held-out examples, and how the answers of a subset can be graded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hbo.measure.examples import IGNORED, Encoded

Grading = Literal["verifier", "options", "exact"]
Options = Mapping[str, tuple[int, ...]]
"""The answers that can be chosen between: text -> response tokens, end of turn included."""

MAX_OPTIONS = 10
SHORT_CHARACTERS = 80
SHORT_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class HeldoutExample:
    """An example that the model is measured on.

    Args:
        encoded: Its tokens and labels, as in training.
        response: The text of the response, by which answers are told apart.
        verify: Says of a text whether it is a right answer; None where nothing can.
    """

    encoded: Encoded
    response: str
    verify: Callable[[str], bool] | None = None

    @property
    def prompt_length(self) -> int:
        """Tokens before the first response token."""
        return int(np.argmax(np.asarray(self.encoded.labels) != IGNORED))

    @property
    def response_ids(self) -> tuple[int, ...]:
        """All tokens from the first response token on."""
        return tuple(int(token) for token in self.encoded.input_ids[self.prompt_length :])

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """All tokens before the response."""
        return tuple(int(token) for token in self.encoded.input_ids[: self.prompt_length])

    @property
    def one_answer(self) -> bool:
        """Whether it is one prompt and one response: what can be graded right or wrong.

        Not so a conversation with several trained turns, or a text without a prompt.
        """
        start = self.prompt_length
        return start > 0 and bool(np.all(np.asarray(self.encoded.labels)[start:] != IGNORED))


def is_short(response: str) -> bool:
    r"""Whether a response is an answer rather than a text: one line of at most 80 characters.

    Characters, not words or tokens: the rule is then the same for every language and tokenizer.

    Example:
        >>> is_short("[D]"), is_short("a " * 50), is_short("First,\nthen")
        (True, False, False)
    """
    return len(response) <= SHORT_CHARACTERS and "\n" not in response


def find_options(examples: Iterable[HeldoutExample]) -> Options | None:
    """The answers to choose between, where a subset has from 2 to 10 distinct short ones.

    Pass the training and the held-out examples of the subset: a few held-out ones alone can make an
    open question look like a multiple choice.

    Args:
        examples: All examples of one subset.

    Returns:
        Each distinct response with its most frequent tokenisation (one cut by `max_length` is
        another one), sorted by text; None where the subset has other responses.
    """
    tokenisations: dict[str, Counter[tuple[int, ...]]] = {}
    for example in examples:
        if not example.one_answer or not is_short(example.response):
            return None
        tokenisations.setdefault(example.response, Counter())[example.response_ids] += 1
        if len(tokenisations) > MAX_OPTIONS:
            return None
    if len(tokenisations) < 2:  # one answer for all is no choice; exact match still tells something
        return None
    return {text: tokenisations[text].most_common(1)[0][0] for text in sorted(tokenisations)}


def choose_grading(examples: Sequence[HeldoutExample], options: Options | None) -> Grading | None:
    """How a subset is graded.

    "verifier", where every example has one; else "options", "exact" (at least nine in ten responses
    short), or not.
    """
    if not examples or not all(example.one_answer for example in examples):
        return None
    if all(example.verify is not None for example in examples):
        return "verifier"
    if options is not None:
        return "options"
    short = sum(is_short(example.response) for example in examples)
    return "exact" if short >= SHORT_SHARE * len(examples) else None
