"""One forward pass of any causal language model, with logits for response tokens only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hbo.errors import ConfigError
from hbo.measure.batches import Batch
from hbo.measure.examples import IGNORED
from hbo.measure.prefix import Prefix, may_be_cut, prefix_of

LOGITS_PER_CHUNK = 2**24
"""Logits that are cast to fp32 at a time: 64 MiB."""


def bare_model(model: nn.Module) -> nn.Module:
    """The module inside wrappers whose own forward must not run: no replicas, no all-reduce.

    Looked through are DataParallel, DistributedDataParallel and DeepSpeed's engine, whose module
    holds its hooks; not FSDP1's wrapper, which alone can gather the parameters.
    """
    while _is_wrapper(model):
        model = cast(nn.Module, model.module)
    return model


def _is_wrapper(model: nn.Module) -> bool:
    # DeepSpeed's by name: it is not among our dependencies.
    deepspeed = any(cls.__name__ == "DeepSpeedEngine" for cls in type(model).__mro__)
    return deepspeed or isinstance(model, (DataParallel, DistributedDataParallel))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's inputs go."""
    return next(model.parameters()).device


def autocasting(
    device: torch.device, dtype: torch.dtype | None
) -> AbstractContextManager[torch.autocast | None]:
    """Run in ``dtype`` where one is given; else as the weights and the trainer's wrapper say."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def token_losses(model: nn.Module, batch: Batch, prefix: Prefix | None = None) -> torch.Tensor:
    """Negative log-likelihood of every labelled token of a batch.

    Log-softmax is in fp32, a chunk of tokens at a time.

    Works under autograd; runs in the mode (train, eval) and precision that it finds.

    Args:
        model: A Transformers causal language model, PEFT-wrapped or patched by TRL or not.
        batch: (B, T) tensors on the model's device.
        prefix: What precedes every row of the batch (``run_prefix``).

    Returns:
        (M,) nats, fp32, of the M tokens with a label, row by row.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(
        ...     hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        ... )
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        >>> ids = torch.tensor([[1, 2, 3, 4]])
        >>> batch = Batch(ids, torch.ones_like(ids), torch.tensor([[-100, -100, 3, 4]]))
        >>> token_losses(model, batch).shape
        torch.Size([2])
    """
    return _chunked_losses(*response_logits(model, batch, prefix))


def response_logits(
    model: nn.Module, batch: Batch, prefix: Prefix | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits for every labelled token of a batch, and the tokens.

    The language-model head sees only the hidden states that predict a labelled token: a hook on the
    head picks them out, and whatever the model does to its logits afterwards (soft-capping, a
    scale) it still does itself. Where a model has no such head, or uses it in another way, all its
    logits are computed and the same ones picked.

    Args:
        model: As for ``token_losses``.
        batch: As there.
        prefix: As there.

    Returns:
        (M, V) logits as the model gives them, and (M,) the M tokens with a label, row by row.
    """
    targets = batch.labels[:, 1:]
    predicting = targets != IGNORED
    module = bare_model(model)
    options = {"attention_mask": batch.attention_mask, "use_cache": False}
    if prefix is not None:
        options = prefix.inputs(batch.attention_mask)
    with _head_sees(module, predicting) as picked:
        logits = module(input_ids=batch.input_ids, **options).logits
    if not picked:
        logits = _predicting_states(logits, predicting)
    return logits.flatten(0, -2), targets[predicting].to(logits.device)


def last_hidden_states(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The hidden state of every token of a batch above the last layer, as the head would see it.

    Read by a hook on the decoder, so that the model may be wrapped or patched; the head itself runs
    on no token.

    Args:
        model: As for ``token_losses``.
        batch: (B, T) tensors on the model's device.

    Returns:
        (B, T, H) states; those of padding are of no meaning, and those of virtual tokens left out.

    Raises:
        ConfigError: The model does not say which of its modules computes them.
    """
    module = bare_model(model)
    decoder = _decoder_of(module)
    seen: list[torch.Tensor] = []

    def look(_decoder: nn.Module, _args: Any, output: Any) -> None:
        state = getattr(output, "last_hidden_state", None)
        seen.append(output[0] if state is None else state)

    nothing = torch.zeros_like(batch.labels[:, 1:], dtype=torch.bool)
    handle = decoder.register_forward_hook(look)
    try:
        with _head_sees(module, nothing):
            options = {"attention_mask": batch.attention_mask, "use_cache": False}
            module(input_ids=batch.input_ids, **options)
    finally:
        handle.remove()
    return seen[-1][:, -batch.input_ids.shape[1] :]


def _decoder_of(module: nn.Module) -> nn.Module:
    get_decoder = getattr(module, "get_decoder", None)
    decoder = None if get_decoder is None else get_decoder()
    # A model that knows of none gives itself, whose outputs are logits.
    if not isinstance(decoder, nn.Module) or decoder is module:
        raise ConfigError(
            f"{type(module).__name__} does not say which of its modules computes hidden states "
            "(get_decoder), so a policy that compares them cannot be used with it"
        )
    return decoder


def run_prefix(model: nn.Module, ids: torch.Tensor) -> Prefix | None:
    """Run what many rows begin with once, for ``token_losses`` of what follows it in each.

    Args:
        model: As for ``token_losses``, in the same mode and precision.
        ids: (1, p) tokens on the model's device.

    Returns:
        ``None`` where the model may give other losses so (``may_be_cut``, ``prefix_of``).
    """
    module = bare_model(model)
    if not may_be_cut(module):
        return None
    nothing = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
    with _head_sees(module, nothing):
        output = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    return prefix_of(output, ids.shape[1])


@contextmanager
def _head_sees(module: nn.Module, predicting: torch.Tensor) -> Iterator[list[bool]]:
    """While open, the head is called with the (1, M, H) states at ``predicting`` (B, T - 1) only.

    Yields a list that is empty until the head was called with states of the expected shape.
    """
    picked: list[bool] = []

    def pick(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0] if args else None
        rows, length = predicting.shape
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3:
            return None
        if hidden.shape[0] != rows or hidden.shape[1] <= length:
            return None
        picked.append(True)
        return (_predicting_states(hidden, predicting), *args[1:])

    head = head_of(module)
    if head is None:
        yield picked
        return
    handle = head.register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()


def head_of(module: nn.Module) -> nn.Module | None:
    """The language-model head of a model, where it has one."""
    get_head = getattr(module, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    return head if isinstance(head, nn.Module) else None


def _predicting_states(states: torch.Tensor, predicting: torch.Tensor) -> torch.Tensor:
    """(1, M, ...) the states (B, V + T, ...) before each labelled token.

    The V extra leading positions are virtual tokens of prompt-learning adapters; mostly V = 0.
    """
    virtual = states.shape[1] - predicting.shape[1] - 1
    return states[:, virtual:-1][predicting.to(states.device)].unsqueeze(0)


def _chunked_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(M,) cross-entropy in fp32 of (M, V) logits, never more than a chunk of them in fp32."""
    if not len(targets):
        # Still joined to the graph, so that a batch without a label has gradient zero, not an
        # error.
        return logits.float().sum(dim=-1)
    rows = max(LOGITS_PER_CHUNK // logits.shape[-1], 1)
    parts = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    return torch.cat(
        [functional.cross_entropy(part.float(), wanted, reduction="none") for part, wanted in parts]
    )
