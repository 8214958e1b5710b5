"""Held-out examples of the tiny model, and the slow, obvious way to every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hbo.evaluation import HeldoutExample
from hbo.measure.examples import IGNORED, Encoded
from tests.support.tiny import tiny_tokenizer

TOKENIZER: Any = tiny_tokenizer()
PAD, END = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def example(prompt: str, response: str, tail: Sequence[int] | None = None) -> HeldoutExample:
    """ChatML-like: prompt bytes, response bytes, end of turn, newline."""
    start = TOKENIZER(prompt)["input_ids"]
    end = TOKENIZER(response)["input_ids"] + list(
        tail if tail is not None else [END, *TOKENIZER("\n")["input_ids"]]
    )
    return from_ids(start, end, response)


def from_ids(prompt: Sequence[int], response: Sequence[int], text: str) -> HeldoutExample:
    ids = np.array([*prompt, *response], dtype=np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORED
    return HeldoutExample(Encoded(ids, labels), text)


def choices(n: int, answers: Sequence[str] = ("A", "B", "yes"), seed: int = 0) -> list[Any]:
    """`n` prompts of different lengths, with answers in turn."""
    generator = np.random.Generator(np.random.Philox(seed))
    letters = np.array(list("abcdefgh "))
    return [
        example("".join(generator.choice(letters, size=3 + 5 * (i % 7))), answers[i % len(answers)])
        for i in range(n)
    ]


def log_likelihood(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """One sequence, no padding, no cache, every logit."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].float().log_softmax(dim=-1)
    places = range(len(prompt), len(prompt) + len(response))
    return sum(float(log_probs[place - 1, ids[0, place]]) for place in places)
