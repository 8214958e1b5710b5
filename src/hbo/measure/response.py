"""Response statistics: how well a model predicts each response, given its prompt and alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from hbo.difficulty.metrics import ResponseStatistics
from hbo.measure.batches import TokenBudget, batch_cost_on, collate, is_out_of_memory
from hbo.measure.examples import Encoded
from hbo.measure.forward import autocasting, bare_model, device_of, run_prefix, token_losses
from hbo.measure.prefix import Prefix, after_prefix, shared_length
from hbo.measure.sharding import probed_together
from hbo.measure.undisturbed import undisturbed
from hbo.mixture import FloatArray, IntArray

Progress = Callable[[int, int], None]
"""Called with (examples done, examples in all)."""


def response_statistics(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    alone: bool = False,
    tokens_per_batch: int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> ResponseStatistics:
    """Mean loss of each response under the model and, if asked, of the response without its prompt.

    With y the response tokens of an example and x what precedes them, the loss is
    ``-(1 / |y|) sum_l log p(y_l | x, y_<l)`` (Eq. 1 of arXiv 2505.12300, per token): one forward
    pass gives loss and perplexity, and the pass over the response alone gives what
    instruction-following difficulty (arXiv 2308.12032) compares it with. The model is left as it
    was (``undisturbed``), and measured in eval mode.

    Args:
        model: Causal language model on its device; PEFT and trainers' patches are fine.
        encoded: N examples.
        alone: Run the second pass, over ``alone_ids``.
        tokens_per_batch: Padded tokens of one batch; halved for as long as memory runs out.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.
        progress: Told of examples done, of both passes together.

    Returns:
        (N,) arrays in the order of ``encoded``; nats per response token. An example without a
        response token (or without ``alone_ids``) has NaN; so has one for which the model computes
        NaN, and no other.

    Raises:
        EnvironmentProblem: Memory does not hold a single example.
    """
    total = len(encoded) * (2 if alone else 1)

    def report(offset: int) -> Progress | None:
        return None if progress is None else lambda done, _total: progress(offset + done, total)

    def losses(examples: Sequence[Encoded], offset: int) -> FloatArray:
        return response_losses(
            model,
            examples,
            tokens_per_batch=tokens_per_batch,
            pad_id=pad_id,
            dtype=dtype,
            progress=report(offset),
        )

    return ResponseStatistics(
        loss=losses(encoded, 0),
        alone_loss=losses(alone_examples(encoded), len(encoded)) if alone else None,
        response_tokens=response_token_counts(encoded).astype(np.float64),
    )


def response_losses(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    share_prefix: bool = False,
) -> FloatArray:
    """One pass of ``response_statistics``: (N,) nats per response token, NaN where there is none.

    With ``share_prefix``, a beginning that all examples share is run once, where that saves enough
    and the model allows it. Of a sharded model all ranks call it together, with the same examples;
    nothing is shared then.

    Raises:
        EnvironmentProblem: Memory does not hold a single example, or, of a sharded model, a batch.
    """
    losses = np.full(len(encoded), np.nan)
    measurable = np.flatnonzero(response_token_counts(encoded) > 0)
    examples = [encoded[int(index)] for index in measurable]
    done = len(encoded) - len(measurable)
    budget, together = TokenBudget.of(tokens_per_batch), probed_together(model)
    # Not inference_mode: a buffer that a model makes on the way (a rotary table grown to a longer
    # sequence) would stay behind as an inference tensor, which no later backward pass accepts.
    with undisturbed(model, gradients=False), torch.no_grad():
        prefix = _shared_prefix(model, examples, dtype) if share_prefix and not together else None
        if prefix is not None:
            examples = [after_prefix(example, prefix.length) for example in examples]
        for indices, found in budget.run(
            examples,
            lambda batch: _mean_losses(model, batch, pad_id, dtype, prefix),
            together=together,
            batch_cost=batch_cost_on(device_of(bare_model(model))),
        ):
            losses[measurable[indices]] = found
            done += len(indices)
            if progress is not None:
                progress(done, len(encoded))
    return losses


def response_token_counts(encoded: Sequence[Encoded]) -> IntArray:
    """(N,) trained tokens of each example."""
    return np.array([example.response_tokens for example in encoded], dtype=np.int64)


def alone_examples(encoded: Sequence[Encoded]) -> list[Encoded]:
    """The response-alone sequence of each example; an empty one where an example has none."""
    empty = np.empty(0, dtype=np.int32)
    return [example.alone or Encoded(empty, empty) for example in encoded]


def _shared_prefix(
    model: nn.Module, examples: Sequence[Encoded], dtype: torch.dtype | None
) -> Prefix | None:
    """What all examples begin with, run once; ``None`` where that does not pay or cannot be."""
    length = shared_length(examples)
    if not length:
        return None
    device = device_of(bare_model(model))
    ids = np.asarray(examples[0].input_ids[:length], dtype=np.int64)
    try:
        with autocasting(device, dtype):
            return run_prefix(model, torch.from_numpy(ids)[None].to(device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None  # the first batch says it, with its size


def _mean_losses(
    model: nn.Module,
    examples: Sequence[Encoded],
    pad_id: int,
    dtype: torch.dtype | None,
    prefix: Prefix | None,
) -> FloatArray:
    device = device_of(bare_model(model))
    batch = collate(examples, pad_id).to(device)
    with autocasting(device, dtype):
        losses = token_losses(model, batch, prefix)
    counts = response_token_counts(examples)
    ends = np.cumsum(counts)
    # One segment per example, summed in fp64, so that a NaN stays with the example it came from.
    sums = np.add.reduceat(losses.cpu().numpy().astype(np.float64), ends - counts)
    return np.asarray(sums / counts, dtype=np.float64)
