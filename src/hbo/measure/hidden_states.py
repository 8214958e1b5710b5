"""Mean last hidden states of examples, and how alike sets of examples are by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hbo.measure.batches import TokenBudget, batch_cost_on, collate
from hbo.measure.examples import Encoded
from hbo.measure.forward import autocasting, bare_model, device_of, last_hidden_states
from hbo.measure.sharding import probed_together
from hbo.measure.undisturbed import undisturbed
from hbo.mixture import FloatArray, IntArray


def mean_hidden_states(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
) -> FloatArray:
    """Mean over all tokens of each example, prompt and response, of the last hidden state.

    Forward passes only, in eval mode; the model is left as it was.

    Args:
        model: Causal language model; PEFT and trainers' patches are fine.
        encoded: n examples of at least one token.
        tokens_per_batch: Padded tokens of a batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.

    Returns:
        (n, H) means, taken in fp32.

    Raises:
        ConfigError: The model does not say which of its modules computes them.
    """
    found: list[FloatArray | None] = [None] * len(encoded)
    device = device_of(bare_model(model))

    def means(examples: Sequence[Encoded]) -> FloatArray:
        batch = collate(examples, pad_id).to(device)
        with autocasting(device, dtype):
            states = last_hidden_states(model, batch)
        mask = batch.attention_mask.to(states.device, torch.float32)[..., None]
        sums = torch.where(mask > 0, states.float(), 0.0).sum(dim=1)
        return (sums / mask.sum(dim=1)).cpu().double().numpy()

    budget = TokenBudget.of(tokens_per_batch)
    with undisturbed(model, gradients=False), torch.no_grad():
        for indices, rows in budget.run(
            encoded,
            means,
            together=probed_together(model),
            batch_cost=batch_cost_on(device),
        ):
            for index, row in zip(indices.tolist(), rows, strict=True):
                found[index] = row
    return np.array(found, dtype=np.float64)


def mean_cosines(vectors: FloatArray, sets: IntArray, count: int) -> FloatArray:
    """How alike sets of examples are: the mean cosine of each one's mean with those of all sets.

    COSSIM of MoS (arXiv 2406.08811): with z_i the mean over the examples of set i,
    ``(1 / n) sum_j cos(z_i, z_j)`` over all n sets, i itself included.

    Args:
        vectors: (n, H) a vector of each example.
        sets: (n,) the set of each.
        count: Number of sets.

    Returns:
        (count,) mean cosines; NaN, and left out of the others' means, where a set has no example or
        no direction.

    Example:
        >>> mean_cosines(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 2]), 3).tolist()
        [0.5, nan, 0.5]
    """
    found = np.full(count, np.nan)
    units = {}
    for one in np.unique(sets).tolist():
        mean = vectors[sets == one].mean(axis=0)
        norm = np.linalg.norm(mean)
        if np.isfinite(norm) and norm > 0:
            units[one] = mean / norm
    if units:
        directions = np.array(list(units.values()))
        # The mean of the cosines is the product with the mean direction.
        found[list(units)] = directions @ directions.mean(axis=0)
    return found
