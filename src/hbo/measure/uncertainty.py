"""How unsure a model is of held-out responses: the measures of MultiUAT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.batches import TokenBudget, batch_cost_on, collate
from hbo.measure.examples import Encoded
from hbo.measure.forward import (
    LOGITS_PER_CHUNK,
    autocasting,
    bare_model,
    device_of,
    response_logits,
)
from hbo.measure.response import response_token_counts
from hbo.measure.sharding import probed_together
from hbo.measure.undisturbed import undisturbed
from hbo.mixture import FloatArray
from hbo.signals import (
    HELDOUT_END_ENTROPY,
    HELDOUT_ENTROPY,
    HELDOUT_EXPECTED,
    HELDOUT_PREDICTED,
    HELDOUT_VARIANCE,
    HELDOUT_VARIATION,
)

SPREADS = frozenset({HELDOUT_VARIANCE, HELDOUT_VARIATION})
"""Measures of how far passes differ: they need two."""


def uncertainties(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    seeds: Sequence[int] | None = None,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """The uncertainty measures of MultiUAT (arXiv 2109.02284, section 3.2), teacher-forced.

    With p_t the next-token law before response token y_t, e an example and P the passes:

    - entropy (ENTSENT): mean over all response tokens of the entropy of p_t;
    - end entropy (ENTEOS): the same at each example's last response token, its end of turn;
    - predicted (PRETP): 1 - mean over e of exp(mean_t log max_v p_t(v));
    - expected (EXPTP): 1 - mean over e of q(e), with q(e) = exp(mean_t log p_t(y_t));
    - variance (VARTP): mean over e of the variance of q(e) over the passes (n - 1 in the divisor);
    - variation (COMEV): mean over e of that variance over the mean of q(e) over the passes.

    The first four are means over the passes. All grow with uncertainty: the paper's signs, which
    its released code does not follow throughout, are settled in this way. That code also takes
    the likeliest token in place of y_t, a sum in place of the mean in PRETP, the variance over the
    tokens of one pass in VARTP, and exp(variance / mean log-probability) in COMEV; geometric means
    make responses of different lengths comparable, and y_t is what held-out data tell us.

    Args:
        model: Causal language model.
        encoded: Held-out examples.
        seeds: One pass with dropout for each, seeded by it; ``None``: one without.
        tokens_per_batch: Padded tokens of a batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.

    Returns:
        Signal name -> value; those of ``SPREADS`` with two passes or more. NaN where no example has
        a response token.

    Raises:
        ConfigError: Dropout is asked for, and the model has none.
    """
    tokens = response_token_counts(encoded)
    examples = [encoded[int(index)] for index in np.flatnonzero(tokens)]
    dropping = [] if seeds is None else check_dropout(model)
    budget = TokenBudget.of(tokens_per_batch)
    passes = []
    with undisturbed(model, gradients=False), torch.no_grad():
        for module in dropping:
            module.training = True
        for seed in [None] if seeds is None else seeds:
            if seed is not None:
                _seed(device_of(bare_model(model)), seed)
            passes.append(_one_pass(model, examples, budget, pad_id, dtype))
    return _measures(np.array(passes), tokens[tokens > 0])


def check_dropout(model: nn.Module) -> list[nn.Module]:
    """The modules that have to be in train mode for dropout to be on, and no others.

    Those are dropout layers with a rate, modules that hold one (attention may read its rate), and
    modules with a rate of their own (``attention_dropout``).

    Raises:
        ConfigError: There are none.
    """
    found = [module for module in model.modules() if _drops_out(module)]
    if not found:
        raise ConfigError(
            "balance.dropout_passes asks for passes with dropout, and this model has none (every "
            "rate is 0); leave it out, or train with dropout (tuning.lora_dropout)"
        )
    return found


def _drops_out(module: nn.Module) -> bool:
    if any(_has_rate(part) for part in (module, *module.children())):
        return True
    settings = vars(module).items()
    return any(
        "dropout" in name and isinstance(rate, float) and rate > 0 for name, rate in settings
    )


def _has_rate(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _seed(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from; a device that nobody has used yet stays unused."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _one_pass(
    model: nn.Module,
    examples: Sequence[Encoded],
    budget: TokenBudget,
    pad_id: int,
    dtype: torch.dtype | None,
) -> FloatArray:
    """(4, n) of each example: summed entropy, end entropy, and two geometric mean probabilities."""
    found = np.full((4, len(examples)), np.nan)
    device = device_of(bare_model(model))

    def work(part: Sequence[Encoded]) -> FloatArray:
        batch = collate(part, pad_id).to(device)
        with autocasting(device, dtype):
            logits, wanted = response_logits(model, batch)
        tokens = torch.cat(list(_of_tokens(logits, wanted)), dim=1).cpu().double().numpy()
        return _of_examples(tokens, response_token_counts(part))

    for indices, values in budget.run(
        examples, work, together=probed_together(model), batch_cost=batch_cost_on(device)
    ):
        found[:, indices] = values
    return found


def _of_tokens(logits: torch.Tensor, wanted: torch.Tensor) -> Iterator[torch.Tensor]:
    """(3, m) of chunks of tokens: entropy, log-probabilities of the likeliest and of the wanted."""
    rows = max(LOGITS_PER_CHUNK // logits.shape[-1], 1)
    for part, ids in zip(torch.split(logits, rows), torch.split(wanted, rows), strict=True):
        law = part.float().log_softmax(dim=-1)
        # 0 log 0 = 0, where a model rules a token out.
        entropy = -torch.where(law.isneginf(), 0.0, law.exp() * law).sum(dim=-1)
        yield torch.stack([entropy, law.amax(dim=-1), law.gather(1, ids[:, None])[:, 0]])


def _of_examples(tokens: FloatArray, counts: np.ndarray) -> FloatArray:
    """From (3, M) numbers of tokens to the (4, n) of ``_one_pass``."""
    ends = np.cumsum(counts)
    entropy, likeliest, wanted = np.add.reduceat(tokens, ends - counts, axis=1)
    last = tokens[0, ends - 1]
    return np.stack([entropy, last, np.exp(likeliest / counts), np.exp(wanted / counts)])


def _measures(passes: FloatArray, tokens: np.ndarray) -> dict[str, float]:
    """From (P, 4, n) numbers of passes to the measures."""
    if not len(tokens):
        passes = np.full((len(passes), 4, 1), np.nan)
    entropy, last, predicted, expected = passes.transpose(1, 0, 2)
    found = {
        HELDOUT_ENTROPY: entropy.sum(axis=1).mean() / max(tokens.sum(), 1),
        HELDOUT_END_ENTROPY: last.mean(),
        HELDOUT_PREDICTED: 1 - predicted.mean(),
        HELDOUT_EXPECTED: 1 - expected.mean(),
    }
    if len(passes) > 1:
        variance, mean = expected.var(axis=0, ddof=1), expected.mean(axis=0)
        ratio = np.divide(variance, mean, out=np.zeros_like(mean), where=mean != 0)
        found |= {HELDOUT_VARIANCE: variance.mean(), HELDOUT_VARIATION: ratio.mean()}
    return {name: float(value) for name, value in found.items()}
