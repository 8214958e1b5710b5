"""Gradient norms of many examples from one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from hbo.measure.batches import Batch, TokenBudget, collate
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.forward import autocasting, device_of, token_losses
from hbo.measure.layer_norms import Layout, Lookup
from hbo.measure.sharding import probed_together
from hbo.measure.taps import Coverage, NotApplicable, Record, Scope, coverage_of, tapped
from hbo.mixture import FloatArray


def batched_gradient_norms(
    module: nn.Module,
    encoded: Sequence[Encoded],
    *,
    scope: Scope,
    tokens_per_batch: TokenBudget | int,
    pad_id: int,
    dtype: torch.dtype | None,
) -> FloatArray:
    """Norm of each example's gradient, without ever forming it.

    Examples of a batch do not see each other, so one backward pass of the sum of their losses
    brings each layer the output gradients of all; what they make of a norm is in ``layer_norms``.
    The pass goes down to the embeddings' outputs and leaves the parameters' gradients out.

    Args:
        module: A causal language model in eval mode, gradients enabled.
        encoded: n examples.
        scope: Which trained parameters the norm covers.
        tokens_per_batch: Padded tokens of a batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.

    Returns:
        (n,) norms of the gradient of each example's mean loss; NaN without a response token.

    Raises:
        ConfigError: Nothing is trained in this scope.
        NotApplicable: There is no rule for a layer, or for how it was called.
        OutOfMemory: Memory does not hold a single example, or, of a sharded model, a batch.
    """
    coverage, device = coverage_of(module, scope), device_of(module)
    squares = np.zeros(len(encoded))

    def squared_norms(examples: Sequence[Encoded]) -> FloatArray:
        batch = collate(examples, pad_id).to(device)
        # The head sees the states before response tokens only, those of all examples in one row.
        answers = (batch.labels[:, 1:] != IGNORED).sum(dim=1)
        record = Record(coverage, Layout(len(examples)), Layout.packed(answers))
        with ExitStack() as stack:
            anchors = stack.enter_context(_anchored(module, coverage))
            stack.enter_context(tapped(record, coverage))
            with autocasting(device, dtype):
                loss = _sum_of_means(module, batch)
            record.check_called()
            torch.autograd.grad(loss, anchors, allow_unused=True)
        record.check_measured()
        assert record.squares is not None
        return record.squares.double().cpu().numpy()

    budget = TokenBudget.of(tokens_per_batch)
    for indices, found in budget.run(encoded, squared_norms, together=probed_together(module)):
        squares[indices] = found
    answered = np.array([example.response_tokens > 0 for example in encoded], dtype=bool)
    return np.where(answered, np.sqrt(squares), np.nan)


@contextmanager
def _anchored(module: nn.Module, coverage: Coverage) -> Iterator[list[torch.Tensor]]:
    """While open, the outputs of embeddings are where the backward pass ends.

    Yields them, once the model has run.
    """
    anchors: list[torch.Tensor] = []

    def anchor(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        anchors.append(output.detach().requires_grad_())
        return anchors[-1]

    get_embeddings = getattr(module, "get_input_embeddings", None)
    inputs = None if get_embeddings is None else get_embeddings()
    if not isinstance(inputs, nn.Module):
        raise NotApplicable("the model does not say which module embeds its tokens")
    lookups = {layer.module for layer in coverage.layers if isinstance(layer, Lookup)}
    # PEFT may have wrapped the embedding that is trained.
    ends = lookups if lookups & set(inputs.modules()) else lookups | {inputs}
    with ExitStack() as stack:
        for part in ends:
            stack.callback(part.register_forward_hook(anchor).remove)
        yield anchors


def _sum_of_means(module: nn.Module, batch: Batch) -> torch.Tensor:
    """The sum over examples of each one's mean loss."""
    losses = token_losses(module, batch)
    mask = batch.labels[:, 1:] != IGNORED
    rows = mask.nonzero()[:, 0].to(losses.device)
    counts = mask.sum(dim=1).to(losses.device)
    return (losses / counts[rows]).sum()
