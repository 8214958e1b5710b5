"""Gradients of batches, and gradient norms of examples and of batches, by probing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from hbo.measure.batched_norms import batched_gradient_norms
from hbo.measure.batches import OutOfMemory, TokenBudget, collate
from hbo.measure.examples import Encoded
from hbo.measure.forward import autocasting, bare_model, device_of, token_losses
from hbo.measure.response import response_token_counts
from hbo.measure.sharding import (
    Sharding,
    check_synchronised,
    probed_together,
    sharding_of,
    total_norm,
)
from hbo.measure.taps import DEFAULT_SCOPE, NotApplicable, Scope, parameters_of
from hbo.measure.undisturbed import undisturbed
from hbo.mixture import FloatArray


def example_gradient_norms(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    scope: Scope = DEFAULT_SCOPE,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> FloatArray:
    """L2 norm of the gradient of each example's own loss.

    The loss of an example is the *mean* over its response tokens, as if it were a batch of its own,
    so the norm does not grow with the number of tokens by itself (it falls with it, where the
    tokens' gradients point different ways). Examples are run in eval mode, and the training run is
    left as it was (``undisturbed``); gradients are taken by ``torch.autograd.grad``, so no
    ``.grad`` is touched and no hook of DistributedDataParallel or of an optimiser fires. Of a model
    that FSDP2 shards, all ranks measure the same examples together: the mean over ranks that its
    backward pass leaves is then the gradient itself.

    A batch of examples shares one backward pass (``batched_norms``); where a model has a layer that
    this has no rule for, each example has its own (``norms_one_by_one``).

    Args:
        model: Causal language model; a DistributedDataParallel wrapper is looked through.
        encoded: n examples.
        scope: Which trained parameters the norm covers.
        tokens_per_batch: Padded tokens of a batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.

    Returns:
        (n,) norms; NaN for an example without a response token.

    Raises:
        ConfigError: The model has no trainable parameter, or none in the scope.
    """
    module = bare_model(model)
    check_synchronised(module)
    budget = TokenBudget.of(tokens_per_batch)
    try:
        with undisturbed(module), torch.enable_grad():
            return batched_gradient_norms(
                module, encoded, scope=scope, tokens_per_batch=budget, pad_id=pad_id, dtype=dtype
            )
    except NotApplicable:
        pass
    except OutOfMemory:
        if probed_together(module):
            raise
        budget.notice("out of memory in a probe of one example; gradients are recomputed, slower")
    # One by one needs the least memory too: layers that training checkpoints, recompute.
    return norms_one_by_one(module, encoded, scope=scope, dtype=dtype)


def norms_one_by_one(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    scope: Scope = DEFAULT_SCOPE,
    dtype: torch.dtype | None = None,
) -> FloatArray:
    """The same, the slow, obviously right way: each example alone, without padding."""
    norms = np.full(len(encoded), np.nan)
    for index, example in enumerate(encoded):
        if example.response_tokens:
            norms[index] = total_norm(batch_gradient(model, [example], scope=scope, dtype=dtype))
    return norms


def batch_gradient_norm(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> float:
    """L2 norm of the gradient of one batch's loss.

    R_global(i) = || grad L(B_i; theta) ||_2 with B_i the batch ``encoded`` (Eq. 7 of arXiv
    2505.12300). L is the mean over all response tokens of the batch, as in training (the paper's
    Eq. 1 is a sum; its trainer, like every one here, divides by the tokens). The batch is run in
    micro-batches whose gradients add up, so its size does not need to fit in memory.

    Args:
        model: Causal language model.
        encoded: The batch.
        tokens_per_batch: Padded tokens of a micro-batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.

    Returns:
        The norm over trainable parameters; NaN where the batch has no response token.

    Raises:
        ConfigError: The model has no trainable parameter.
    """
    if not response_token_counts(encoded).sum():
        return float("nan")
    return total_norm(
        batch_gradient(
            model, encoded, tokens_per_batch=tokens_per_batch, pad_id=pad_id, dtype=dtype
        )
    )


def batch_gradient(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    scope: Scope = "all",
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """fp32 gradient, one tensor per trained parameter, of the batch's loss per response token.

    The arguments are those of ``batch_gradient_norm``, and the scope. The batch must have a
    response token.
    """
    module = bare_model(model)
    response_tokens = int(response_token_counts(encoded).sum())
    total: list[torch.Tensor] = []
    with undisturbed(module), torch.enable_grad():
        _keep_checkpointing(module)
        parameters, device = list(parameters_of(module, scope).values()), device_of(module)
        gradients = _gradients_of(module, parameters)

        def micro_batch(examples: list[Encoded]) -> Sequence[torch.Tensor | None]:
            batch = collate(examples, pad_id).to(device)
            with autocasting(device, dtype):
                loss = token_losses(module, batch).sum() / response_tokens
            return gradients(loss)

        budget = TokenBudget.of(tokens_per_batch)
        for _, parts in budget.run(encoded, micro_batch, together=probed_together(module)):
            # Of a batch in one piece no second copy is made.
            total = [
                _added(total[place] if total else None, part, parameters[place])
                for place, part in enumerate(parts)
            ]
    return total


def _gradients_of(
    module: nn.Module, parameters: Sequence[nn.Parameter]
) -> Callable[[torch.Tensor], Sequence[torch.Tensor | None]]:
    """How the gradients of a loss are taken: a function of the loss."""
    if sharding_of(module) is not Sharding.DTENSOR:
        return lambda loss: torch.autograd.grad(loss, parameters, allow_unused=True)
    check_synchronised(module)

    def reduced(loss: torch.Tensor) -> list[torch.Tensor | None]:
        # The graph holds gathered copies of the parameters. What autograd finds for them, FSDP2
        # averages over the ranks into the shards' ``grad``.
        loss.backward()  # type: ignore[no-untyped-call]
        found = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

    return reduced


def _added(
    summed: torch.Tensor | None, part: torch.Tensor | None, parameter: nn.Parameter
) -> torch.Tensor:
    if part is None:  # a parameter that this forward did not use
        return torch.zeros_like(parameter, dtype=torch.float32) if summed is None else summed
    # Not in place: autograd may give two parameters one tensor.
    return part.float() if summed is None else summed + part


def _keep_checkpointing(module: nn.Module) -> None:
    """Let checkpointed layers recompute in eval mode too: a probe needs no more memory than a step.

    Transformers checkpoints a layer only if the layer itself says it is training; its children stay
    in eval mode, which is where dropout lives. Left alone are layers that drop out by a rate of
    their own, and re-entrant checkpointing, which ``torch.autograd.grad`` cannot go through.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in module.modules():
        if not isinstance(layer, GradientCheckpointingLayer) or not layer.gradient_checkpointing:
            continue
        function = layer._gradient_checkpointing_func
        reentrant = not isinstance(function, partial) or function.keywords.get(
            "use_reentrant", True
        )
        drops_out = any(
            "dropout" in name and isinstance(value, float) and value > 0
            for name, value in vars(layer).items()
        )
        if not reentrant and not drops_out:
            layer.training = True
