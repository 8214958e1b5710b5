"""Forward passes over left-padded prompts: log-likelihoods of options, and greedy exact match."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hbo.evaluation.examples import HeldoutExample, Options
from hbo.measure.batches import plan_batches
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.forward import autocasting, bare_model, device_of
from hbo.measure.ranks import ONE_RANK, Ranks
from hbo.measure.response import Progress, response_losses
from hbo.measure.undisturbed import undisturbed
from hbo.mixture import FloatArray, IntArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class PassSettings:
    """How forward passes are run.

    Args:
        tokens_per_batch: Padded tokens of one batch, the copies that options need included.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; None: the weights' own.
        ranks: Who runs them: batches are dealt to these ranks, and all of them get all numbers.
    """

    tokens_per_batch: int = 4096
    pad_id: int = 0
    dtype: torch.dtype | None = None
    ranks: Ranks = ONE_RANK


def losses_of(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    settings: PassSettings,
    progress: Progress | None = None,
) -> FloatArray:
    """(n,) nats per response token, in the batches that ``response_losses`` makes of them all."""

    def measure(batch: list[HeldoutExample]) -> FloatArray:
        return _losses(model, [example.encoded for example in batch], settings)

    lengths = [example.encoded.num_tokens for example in examples]
    return in_batches(model, examples, lengths, 1, measure, settings, progress)[:, 0]


def option_log_likelihoods(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    options: Options,
    settings: PassSettings,
    progress: Progress | None = None,
) -> FloatArray:
    """Log-likelihood of every option after every prompt, the prompt computed once.

    `sum_l log p(o_l | prompt, o_<l)` over all tokens of an option, end of turn included: the
    probability of exactly that answer, so that options need no length normalisation. The prompt's
    keys and values are kept and repeated for the options; a model without such a cache (a recurrent
    one) is measured on whole sequences instead.

    Args:
        model: Causal language model on its device.
        examples: n examples with one answer each.
        options: m answers.
        settings: Batch size and precision.
        progress: Told (examples done, n).

    Returns:
        (n, m) nats, negative.
    """
    from transformers import Cache

    def measure(batch: list[HeldoutExample]) -> FloatArray:
        with autocasting(device_of(bare_model(model)), settings.dtype):
            first, cache, mask = _prompt_pass(model, batch, settings.pad_id)
            if isinstance(cache, Cache):
                return _option_pass(model, first, cache, mask, options, settings.pad_id)
        return slow_option_log_likelihoods(model, batch, options, settings)

    lengths = [example.prompt_length for example in examples]
    fewer = replace(settings, tokens_per_batch=max(settings.tokens_per_batch // len(options), 1))
    return in_batches(model, examples, lengths, len(options), measure, fewer, progress)


def slow_option_log_likelihoods(
    model: nn.Module, examples: Sequence[HeldoutExample], options: Options, settings: PassSettings
) -> FloatArray:
    """The same numbers the obvious way: each prompt with each option is a sequence of its own."""
    sequences = [_with_response(example, ids) for example in examples for ids in options.values()]
    losses = _losses(model, sequences, settings)
    counts = np.array([sequence.response_tokens for sequence in sequences])
    return np.asarray(-losses * counts, dtype=np.float64).reshape(len(examples), len(options))


def greedy_matches(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    end_ids: frozenset[int],
    settings: PassSettings,
    progress: Progress | None = None,
) -> tuple[FloatArray, BoolArray]:
    """Loss of each response, and whether greedy decoding of the prompt would give exactly it.

    Greedy decoding reproduces a response if and only if, after the prompt and each beginning of the
    response, the next response token is the most probable one. So one pass over the known answer
    decides what a token-by-token generation would show (lm-evaluation-harness calls it
    `is_greedy`). The end of turn belongs to the answer; what the chat template puts after it does
    not, as generation has stopped.

    Args:
        model: Causal language model on its device.
        examples: n examples with one answer each.
        end_ids: Tokens that end a generation.
        settings: Batch size and precision.
        progress: Told (examples done, n).

    Returns:
        (n,) mean nats per response token, and (n,) whether it matches.
    """

    def measure(batch: list[HeldoutExample]) -> FloatArray:
        with autocasting(device_of(bare_model(model)), settings.dtype):
            return np.stack(_match_pass(model, batch, end_ids, settings.pad_id), axis=1)

    lengths = [example.encoded.num_tokens for example in examples]
    found = in_batches(model, examples, lengths, 2, measure, settings, progress)
    return found[:, 0], found[:, 1] == 1.0


def in_batches(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    lengths: Sequence[int],
    width: int,
    measure: Callable[[list[HeldoutExample]], FloatArray],
    settings: PassSettings,
    progress: Progress | None,
) -> FloatArray:
    """(n, width) numbers that ``measure`` gives of all examples, batch by batch, on all ranks."""
    result, done = np.full((len(examples), width), np.nan), 0

    def values_of(indices: IntArray) -> FloatArray:
        return measure([examples[int(index)] for index in indices]).ravel()

    batches = plan_batches(lengths, settings.tokens_per_batch)
    with undisturbed(model), torch.no_grad():
        dealt = settings.ranks.deal(batches, lambda indices: len(indices) * width, values_of)
        for indices, values in dealt:
            result[indices] = values.reshape(len(indices), width)
            done += len(indices)
            if progress is not None:
                progress(done, len(examples))
    return result


def _losses(model: nn.Module, encoded: Sequence[Encoded], settings: PassSettings) -> FloatArray:
    return response_losses(
        model,
        encoded,
        tokens_per_batch=settings.tokens_per_batch,
        pad_id=settings.pad_id,
        dtype=settings.dtype,
    )


def _prompt_pass(
    model: nn.Module, examples: Sequence[HeldoutExample], pad_id: int
) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """(B, V) log-probabilities of the first answer token, the cache, the (B, T) attention mask."""
    device = device_of(bare_model(model))
    ids, mask = left_padded([example.prompt_ids for example in examples], pad_id)
    output = forward(model, ids.to(device), mask.to(device), keep=1, use_cache=True)
    logits = output.logits[:, -1].float()
    # A ModelOutput is a dict; a recurrent model has no such entry.
    return logits.log_softmax(dim=-1), output.get("past_key_values"), mask.to(device)


def _option_pass(
    model: nn.Module,
    first: torch.Tensor,
    cache: Any,
    mask: torch.Tensor,
    options: Options,
    pad_id: int,
) -> FloatArray:
    """(B, m) log-likelihoods: first tokens from the prompt's logits, the rest by one more pass."""
    rows, count, longest = len(first), len(options), max(map(len, options.values()))
    ids = torch.full((count, longest), pad_id, dtype=torch.int64)
    real = torch.zeros((count, longest), dtype=torch.bool)
    for row, tokens in enumerate(options.values()):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        real[row, : len(tokens)] = True
    ids, real = ids.to(first.device), real.to(first.device)
    total = first[:, ids[:, 0]].double()
    if longest > 1:
        cache.batch_repeat_interleave(count)
        inputs = ids[:, :-1].repeat(rows, 1)
        seen = mask.repeat_interleave(count, dim=0)
        # Padding on the right of shorter options: no real token sees it, so the mask need not hide
        # it.
        seen = torch.cat([seen, torch.ones_like(inputs)], dim=1)
        output = forward(
            model, inputs, seen, keep=longest - 1, use_cache=True, past_key_values=cache
        )
        log_probs = output.logits[:, -(longest - 1) :].float().log_softmax(dim=-1)
        later = log_probs.gather(2, ids[:, 1:].repeat(rows, 1).unsqueeze(2)).squeeze(2)
        later = later.double().masked_fill(~real[:, 1:].repeat(rows, 1), 0.0)
        total = total + later.sum(dim=1).reshape(rows, count)
    return np.asarray(total.cpu().numpy(), dtype=np.float64)


def _match_pass(
    model: nn.Module, examples: Sequence[HeldoutExample], end_ids: frozenset[int], pad_id: int
) -> tuple[FloatArray, BoolArray]:
    """(B,) mean losses and (B,) greedy matches, from the logits of the last positions only."""
    device = device_of(bare_model(model))
    responses = [example.response_ids for example in examples]
    longest = max(map(len, responses))
    ids, mask = left_padded([example.encoded.input_ids for example in examples], pad_id)
    ids, mask = ids.to(device), mask.to(device)
    # The logits at position t judge the token at t + 1, so one more position than response tokens.
    output = forward(model, ids, mask, keep=longest + 1, use_cache=False)
    log_probs = output.logits[:, -(longest + 1) : -1].float().log_softmax(dim=-1)
    targets = ids[:, -longest:]
    losses = -log_probs.gather(2, targets.unsqueeze(2)).squeeze(2).double().cpu().numpy()
    hits = (log_probs.argmax(dim=-1) == targets).cpu().numpy()
    means, matches = np.empty(len(examples)), np.empty(len(examples), dtype=bool)
    for row, response in enumerate(responses):
        start = longest - len(response)
        ends = [place for place, token in enumerate(response, 1) if token in end_ids]
        stop = start + (ends[0] if ends else len(response))
        means[row] = losses[row, start:].mean()
        matches[row] = hits[row, start:stop].all()
    return means, matches


def left_padded(
    sequences: Sequence[Sequence[int] | Any], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and attention mask, padded on the left: all sequences end together."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def forward(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, *, keep: int, **options: Any
) -> Any:
    """Run the model on left-padded ids; its output head sees the last `keep` positions.

    `mask` covers what is cached as well; positions count real tokens only.
    """
    module = bare_model(model)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with _head_sees_last(module, keep):
        return module(input_ids=ids, attention_mask=mask, position_ids=positions, **options)


@contextmanager
def _head_sees_last(module: Any, keep: int) -> Iterator[None]:
    """While open, the output head is called with the last `keep` positions only."""

    def cut(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, -keep:], *args[1:])

    handle = module.get_output_embeddings().register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _with_response(example: HeldoutExample, response: tuple[int, ...]) -> Encoded:
    ids = np.array([*example.prompt_ids, *response], dtype=np.int32)
    labels = ids.copy()
    labels[: example.prompt_length] = IGNORED
    return Encoded(ids, labels)
