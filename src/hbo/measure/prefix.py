"""A beginning that examples share (a system prompt, a template's first lines), run only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from hbo.measure.examples import IGNORED, Encoded

LEAST_SAVED = 0.125
"""Share of all tokens that a shared beginning must save; what follows it runs a little slower."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a model keeps of the tokens that all rows of a batch begin with.

    Args:
        length: p tokens.
        cache: A Transformers cache with the (1, heads, p, size) keys and values of each layer. It
            serves any number of batches of any size, and keeps nothing of them.
    """

    length: int
    cache: Any

    def inputs(self, attention_mask: torch.Tensor) -> dict[str, Any]:
        """Arguments of the model's forward for (B, T) tokens that follow the prefix."""
        seen = attention_mask.new_ones((len(attention_mask), self.length))
        return {
            "attention_mask": torch.cat([seen, attention_mask], dim=1),
            "past_key_values": self.cache,
            "use_cache": True,
        }


def shared_length(examples: Sequence[Encoded]) -> int:
    """Tokens that all examples begin with and that predict no label; 0 where too few to pay.

    Args:
        examples: Examples with at least one response token each.

    Example:
        >>> ids = [np.array([1, 2, 3, last]) for last in range(8)]
        >>> shared_length([Encoded(i, np.array([-100, -100, -100, i[3]])) for i in ids])
        2
    """
    if not examples:
        return 0
    first, length = np.asarray(examples[0].input_ids), examples[0].num_tokens
    for example in examples:
        predicting = np.asarray(example.labels)[1:] != IGNORED
        length = min(length, int(predicting.argmax()))
        differs = np.asarray(example.input_ids)[:length] != first[:length]
        length = int(differs.argmax()) if differs.any() else length
    saved = length * (len(examples) - 1)
    return length if saved >= LEAST_SAVED * sum(e.num_tokens for e in examples) else 0


def after_prefix(example: Encoded, length: int) -> Encoded:
    """An example without its first tokens."""
    return Encoded(example.input_ids[length:], example.labels[length:])


def may_be_cut(module: Any) -> bool:
    """Whether a model gives the same result when its pass over a sequence is cut in two.

    Transformers' own models do (other code may have its own ideas of a cache), unless how long the
    sequence is changes their rotary positions.
    """
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    kinds = [getattr(part, "rope_type", "default") for part in module.modules()]
    own = type(base).__module__.startswith("transformers.models.")
    return own and all(kind in ("default", "linear", "llama3", "yarn") for kind in kinds)


def prefix_of(output: Any, length: int) -> Prefix | None:
    """The prefix that a forward pass of one row with ``use_cache`` has left in its output.

    ``None`` unless every layer keeps the keys and values of exactly these tokens, all of them: not
    so with sliding windows, recurrent layers, or virtual tokens of prompt-learning adapters.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = output.get("past_key_values")
    if type(cache) is not DynamicCache:
        return None
    for layer in cache.layers:
        plain = type(layer) is DynamicLayer and layer.is_initialized
        if not plain or layer.keys.shape[0] != 1 or layer.get_seq_length() != length:
            return None
        layer.update = partial(_follow, layer.keys, layer.values)
    return Prefix(length, cache)


def _follow(
    keys: torch.Tensor,
    values: torch.Tensor,
    more_keys: torch.Tensor,
    more_values: torch.Tensor,
    *_args: Any,
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of prefix and batch; the layer goes on with the prefix alone."""
    rows = len(more_keys)
    return (
        torch.cat([keys.expand(rows, -1, -1, -1), more_keys], dim=-2),
        torch.cat([values.expand(rows, -1, -1, -1), more_values], dim=-2),
    )
