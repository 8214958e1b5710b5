"""Gradient norms of many examples from one backward pass, where only linear layers are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hbo.measure.batches import Batch, TokenBudget, collate
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.forward import autocasting, device_of, token_losses
from hbo.measure.sharding import is_dtensor, probed_together
from hbo.mixture import FloatArray


class NotApplicable(Exception):
    """The shortcut does not hold for this model: the caller goes the slow way."""


@dataclass(frozen=True, eq=False)
class _Call:
    layer: nn.Linear
    inputs: torch.Tensor
    outputs: torch.Tensor
    parallel: bool


def trained_linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The linear layers that hold every trainable parameter of a model, as LoRA's adapters do.

    Raises:
        NotApplicable: Something else is trained too (embeddings, norms), a parameter is shared, or
            the output head is trained, which sees a part of the tokens only.
    """
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear]
    layers = [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]
    held = [id(p) for layer in layers for p in layer.parameters() if p.requires_grad]
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    get_head = getattr(module, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    if set(held) != trained or len(held) != len(trained) or any(x is head for x in layers):
        raise NotApplicable
    return layers


def linear_gradient_norms(
    module: nn.Module,
    encoded: Sequence[Encoded],
    *,
    tokens_per_batch: TokenBudget | int,
    pad_id: int,
    dtype: torch.dtype | None,
) -> FloatArray:
    """Norm of each example's gradient, without ever forming it.

    For a linear layer with inputs a (T, I) and output gradients g (T, O) of one example, the
    gradient of the weight is g^T a, and its squared norm is sum((a a^T) * (g g^T)): two T x T
    matrices in place of an O x I one (Goodfellow 2015, arXiv 1510.01799). Where O x I is the
    smaller, as for the thin matrices of LoRA, the gradient itself is the cheaper way. Examples of a
    batch do not see each other, so one backward pass of the sum of their losses gives the g of all.

    Args:
        module: A causal language model in eval mode, gradients enabled.
        encoded: n examples.
        tokens_per_batch: Padded tokens of a batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.

    Returns:
        (n,) norms of the gradient of each example's mean loss; NaN without a response token.

    Raises:
        NotApplicable: ``trained_linear_layers``; or a layer ran twice, not on whole rows, or is
            split by tensor parallelism.
        OutOfMemory: Memory does not hold a single example, or, of a sharded model, a batch.
    """
    layers, device = trained_linear_layers(module), device_of(module)
    squares = np.zeros(len(encoded))

    def squared_norms(examples: Sequence[Encoded]) -> FloatArray:
        batch = collate(examples, pad_id).to(device)
        with _recorded(layers) as calls, autocasting(device, dtype):
            loss = _sum_of_means(module, batch)
        _check(calls, batch)
        gradients = torch.autograd.grad(loss, [call.outputs for call in calls], allow_unused=True)
        found = np.zeros(len(examples))
        for call, gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                found += _squared_norms(call, gradient).double().cpu().numpy()
        return found

    budget = TokenBudget.of(tokens_per_batch)
    for indices, found in budget.run(encoded, squared_norms, together=probed_together(module)):
        squares[indices] = found
    answered = np.array([example.response_tokens > 0 for example in encoded], dtype=bool)
    return np.where(answered, np.sqrt(squares), np.nan)


@contextmanager
def _recorded(layers: Sequence[nn.Linear]) -> Iterator[list[_Call]]:
    calls: list[_Call] = []

    def record(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        # FSDP2 has gathered the weight by now; what is still sharded is tensor-parallel.
        calls.append(_Call(layer, args[0].detach(), output, is_dtensor(layer.weight)))

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _sum_of_means(module: nn.Module, batch: Batch) -> torch.Tensor:
    """The sum over examples of each one's mean loss."""
    losses = token_losses(module, batch)
    mask = batch.labels[:, 1:] != IGNORED
    rows = mask.nonzero()[:, 0].to(losses.device)
    counts = mask.sum(dim=1).to(losses.device)
    return (losses / counts[rows]).sum()


def _check(calls: Sequence[_Call], batch: Batch) -> None:
    seen = [id(call.layer) for call in calls]
    rows = batch.input_ids.shape[:1]
    whole = all(call.inputs.ndim == 3 and call.inputs.shape[:1] == rows for call in calls)
    if len(set(seen)) != len(seen) or not whole or any(call.parallel for call in calls):
        raise NotApplicable


def _squared_norms(call: _Call, gradient: torch.Tensor) -> torch.Tensor:
    """(B,) squared norm of each row's gradient of this layer's trained parameters."""
    a, g = call.inputs.float(), gradient.float()
    total = torch.zeros(a.shape[0], device=a.device)
    if call.layer.weight.requires_grad:
        if a.shape[1] ** 2 < a.shape[2] * g.shape[2]:
            total += ((a @ a.mT) * (g @ g.mT)).sum(dim=(1, 2))
        else:
            total += (g.mT @ a).square().sum(dim=(1, 2))
    bias: nn.Parameter | None = call.layer.bias  # torch's own annotation forgets the None
    if bias is not None and bias.requires_grad:
        total += g.sum(dim=1).square().sum(dim=1)
    # Rounding can leave a Gram sum a hair below zero.
    return total.clamp(min=0)
