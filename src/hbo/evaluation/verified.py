"""Answers that a verifier judges: what greedy decoding gives, read as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from hbo.evaluation.examples import HeldoutExample
from hbo.evaluation.passes import (
    BoolArray,
    PassSettings,
    forward,
    in_batches,
    left_padded,
)
from hbo.measure.forward import autocasting, bare_model, device_of
from hbo.mixture import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPARE_TOKENS = 16


@dataclass(frozen=True)
class AnswerReader:
    """From the tokens of an answer to its text.

    Args:
        tokenizer: The model's.
        end_ids: Tokens that end a generation.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]

    def text(self, tokens: Sequence[int]) -> str | None:
        """The text before the end of turn, special tokens and outer white space left out.

        None where the turn does not end: a beginning is not an answer.
        """
        ends = [place for place, token in enumerate(tokens) if token in self.end_ids]
        if not ends:
            return None
        read: Any = self.tokenizer
        text: str = read.decode(
            list(tokens[: ends[0]]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.strip()


def answer_limit(example: HeldoutExample) -> int:
    """Tokens within which an answer must end to count: twice those of the response, and 16."""
    return 2 * len(example.response_ids) + SPARE_TOKENS


def verified_answers(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    matches: BoolArray,
    reader: AnswerReader,
    settings: PassSettings,
) -> BoolArray:
    """Whether each example's verifier accepts the answer of greedy decoding.

    Where that is known to be the response (`greedy_matches`), nothing is generated. It is judged
    all the same, so that the result is what generating and judging every answer would give. An
    answer that has not ended by `answer_limit` is wrong.

    Args:
        model: Causal language model on its device.
        examples: n examples with one answer and a verifier each.
        matches: (n,) whether greedy decoding gives exactly the response.
        reader: Makes text of tokens.
        settings: Batch size, precision and ranks.

    Returns:
        (n,) whether the answer is right.
    """
    correct = np.zeros(len(examples), dtype=bool)
    unknown = []
    for row, example in enumerate(examples):
        text = reader.text(example.response_ids) if matches[row] else None
        if text is None:
            unknown.append(row)
        else:
            correct[row] = _accepts(example, text)

    def judge(batch: list[HeldoutExample]) -> FloatArray:
        answers = greedy_answers(model, batch, reader.end_ids, settings)
        texts = [reader.text(tokens) for tokens in answers]
        right = [
            text is not None and _accepts(example, text)
            for example, text in zip(batch, texts, strict=True)
        ]
        return np.array(right, dtype=np.float64)[:, None]

    asked = [examples[row] for row in unknown]
    lengths = [example.prompt_length + answer_limit(example) for example in asked]
    judged = in_batches(model, asked, lengths, 1, judge, settings, None)
    correct[unknown] = judged[:, 0] == 1.0
    return correct


def greedy_answers(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    end_ids: frozenset[int],
    settings: PassSettings,
) -> list[list[int]]:
    """The most probable next token after each prompt, again and again, all prompts at once.

    Plain greedy decoding: nothing of a model's generation settings (penalties, suppressed tokens)
    has a say. A model without a cache of keys and values runs the whole text for every token.

    Args:
        model: Causal language model on its device, in eval mode.
        examples: Whose prompts; each answer ends at an end token or at its `answer_limit`.
        end_ids: Tokens that end an answer; part of it.
        settings: Padding and precision.

    Returns:
        The tokens of each answer.
    """
    from transformers import Cache

    device = device_of(bare_model(model))
    ids, mask = left_padded([example.prompt_ids for example in examples], settings.pad_id)
    ids, mask = ids.to(device), mask.to(device)
    answers: list[list[int]] = [[] for _ in examples]
    waiting = list(range(len(examples)))
    inputs, cache = ids, cast(Any, None)
    with torch.no_grad(), autocasting(device, settings.dtype):
        while True:
            past = {} if cache is None else {"past_key_values": cache}
            output = forward(model, inputs, mask, keep=1, use_cache=True, **past)
            # As in `greedy_matches`: equal logits must not give different tokens there and here.
            new = output.logits[:, -1].float().log_softmax(dim=-1).argmax(dim=-1)
            for row, token in enumerate(new.tolist()):
                if row in waiting:
                    answers[row].append(token)
            waiting = [row for row in waiting if _goes_on(answers[row], examples[row], end_ids)]
            if not waiting:
                return answers
            found = output.get("past_key_values")
            cache = found if isinstance(found, Cache) else None
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            ids = torch.cat([ids, new[:, None]], dim=1)
            inputs = ids if cache is None else new[:, None]


def _goes_on(answer: list[int], example: HeldoutExample, end_ids: frozenset[int]) -> bool:
    return answer[-1] not in end_ids and len(answer) < answer_limit(example)


def _accepts(example: HeldoutExample, text: str) -> bool:
    return example.verify is not None and example.verify(text)
