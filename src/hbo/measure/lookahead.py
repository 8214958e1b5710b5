"""What one step on a batch would do to its loss: taken on copies of the weights, and taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from hbo.measure.batches import TokenBudget
from hbo.measure.examples import Encoded
from hbo.measure.forward import bare_model, device_of
from hbo.measure.gradient_norm import batch_gradient
from hbo.measure.response import response_losses, response_token_counts
from hbo.measure.taps import parameters_of


def lookahead_gain(
    model: nn.Module,
    encoded: Sequence[Encoded],
    learning_rate: float,
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> float:
    """Fall of a batch's loss after one plain gradient step on it.

    ``L(B; theta) - L(B; theta - lr grad L(B; theta))``, L the mean over the response tokens of the
    batch: about lr times the squared gradient norm while the step is small. DynamixSFT (arXiv
    2508.12116) rewards a subset by such a virtual step, as the mean over examples of the fall
    relative to the loss before; this is the fall itself, of the batch's mean. The step is really
    taken, without momentum or the optimiser's scales, and both losses come from the same forward
    passes in eval mode.

    The trained weights are swapped for stepped copies and put back, so the memory of another copy
    of them and of their gradient is needed. At learning rates of fine-tuning the fall is far below
    what bf16 resolves: where all weights are in fp32 the passes are too, whatever autocast the
    training runs under. With weights in bf16 the result is mostly noise.

    Args:
        model: Causal language model whose parameters each rank holds whole.
        encoded: The batch.
        learning_rate: Size of the step.
        tokens_per_batch: Padded tokens of a micro-batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type, unless all weights are in fp32; ``None``: the weights' own.

    Returns:
        Nats per response token, negative where the step overshoots; NaN where the batch has no
        response token.
    """
    if not response_token_counts(encoded).sum():
        return float("nan")
    module, budget = bare_model(model), TokenBudget.of(tokens_per_batch)
    exact = all(p.dtype == torch.float32 for p in module.parameters())
    settings: dict[str, Any] = {"tokens_per_batch": budget, "pad_id": pad_id}
    settings["dtype"] = None if exact else dtype
    with _without_autocast(module) if exact else nullcontext():
        gradient = batch_gradient(module, encoded, **settings)
        before = token_mean_loss(module, encoded, **settings)
        with _stepped(module, gradient, learning_rate):
            return before - token_mean_loss(module, encoded, **settings)


def token_mean_loss(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> float:
    """Mean loss of examples over all their response tokens; NaN where there is none."""
    tokens = response_token_counts(encoded)
    losses = response_losses(
        model, encoded, tokens_per_batch=tokens_per_batch, pad_id=pad_id, dtype=dtype
    )
    measured = tokens > 0
    return (
        float(np.average(losses[measured], weights=tokens[measured])) if measured.any() else np.nan
    )


@contextmanager
def _without_autocast(module: nn.Module) -> Iterator[None]:
    """While open, neither what is around nor what Accelerate put in autocasts the forward pass."""
    # Accelerate keeps the forward that it wrapped under this name, to unwrap models later.
    original, wrapped = vars(module).get("_original_forward"), module.forward
    try:
        if original is not None:
            module.forward = original
        with torch.autocast(device_of(module).type, enabled=False):
            yield
    finally:
        if original is not None:
            module.forward = wrapped


@contextmanager
def _stepped(
    module: nn.Module, gradient: Sequence[torch.Tensor], learning_rate: float
) -> Iterator[None]:
    """While open, the trained parameters hold other tensors, one step further."""
    parameters = list(parameters_of(module, "all").values())
    kept = [parameter.data for parameter in parameters]
    try:
        for parameter, part in zip(parameters, gradient, strict=True):
            stepped = parameter.data.float() - learning_rate * part
            parameter.data = stepped.to(parameter.dtype)
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data
