"""Cosines of the gradients of batches: of subsets with each other, and with held-out examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.batches import TokenBudget
from hbo.measure.examples import Encoded
from hbo.measure.forward import bare_model
from hbo.measure.gradient_norm import batch_gradient
from hbo.measure.response import response_token_counts
from hbo.measure.sharding import total_norm, whole
from hbo.measure.taps import parameters_of
from hbo.mixture import FloatArray

MAX_STORED_BYTES = 8 * 2**30
"""Gradient vectors that may be held at a time."""


def gradient_cosines(
    model: nn.Module,
    batches: Sequence[Sequence[Encoded]],
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
    max_bytes: int = MAX_STORED_BYTES,
) -> FloatArray:
    """Cosine of the batch gradients of every two subsets.

    The gradients are those of ``batch_gradient_norm``, held on the CPU in fp32: 4 bytes x K x
    trainable parameters, which suits adapters and small models.

    Args:
        model: Causal language model.
        batches: One batch per subset, K of them.
        tokens_per_batch: Padded tokens of a micro-batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.
        max_bytes: Memory that the K gradients may take.

    Returns:
        (K, K), symmetric, 1 on the diagonal; NaN in the rows and columns of batches without a
        response token or with a zero gradient.

    Raises:
        ConfigError: The gradients do not fit in ``max_bytes``, or there is no trainable parameter.
    """
    what = f"gradient cosines of {len(batches)} subsets"
    way_out = "use another global reward (gradient-norm), or LoRA"
    size = _check_memory(model, len(batches), what, way_out, max_bytes)
    budget = TokenBudget.of(tokens_per_batch)
    # A NaN row says "unknown" through every product below.
    units = torch.full((len(batches), size), torch.nan)
    for row, batch in enumerate(batches):
        found = _direction(model, batch, budget, pad_id, dtype)
        if found is not None:
            units[row] = found
    cosines = np.zeros((len(batches), len(batches)))
    for part in torch.split(units, 2**20, dim=1):  # a few MiB at a time in fp64
        cosines += (part.double() @ part.double().T).numpy()
    return np.clip(cosines, -1.0, 1.0)


def heldout_cosines(
    model: nn.Module,
    batches: Iterable[Sequence[Encoded]],
    heldout: Iterable[Sequence[Encoded]],
    *,
    tokens_per_batch: TokenBudget | int = 4096,
    pad_id: int = 0,
    dtype: torch.dtype | None = None,
    max_bytes: int = MAX_STORED_BYTES,
) -> FloatArray:
    """Mean cosine of each batch's gradient with the gradients of all held-out batches.

    The reward of MultiDDS as Eq. 13 of arXiv 2109.02284 has it: for training batch B_i and the N
    held-out batches D_k, ``(1 / N) sum_k cos(grad L(D_k), grad L(B_i))``. That is the product of
    the unit gradient of B_i with the mean of the N unit held-out gradients: one vector is kept of
    all held-out gradients, and each training gradient is met once and dropped.

    Args:
        model: Causal language model.
        batches: One training batch per subset, K of them.
        heldout: The N held-out batches.
        tokens_per_batch: Padded tokens of a micro-batch.
        pad_id: Any id of the vocabulary.
        dtype: Autocast to this type; ``None``: the weights' own.
        max_bytes: Memory that two gradients may take.

    Returns:
        (K,) cosines; NaN for a batch without a response token or with a zero gradient. Such a
        held-out batch does not count in N.

    Raises:
        ConfigError: Two gradients do not fit in ``max_bytes``, or there is no trainable parameter.
    """
    way_out = "use a policy that compares no gradients, or LoRA"
    size = _check_memory(model, 2, "held-out gradient cosines", way_out, max_bytes)
    budget = TokenBudget.of(tokens_per_batch)
    total, count = torch.zeros(size), 0
    for batch in heldout:
        unit = _direction(model, batch, budget, pad_id, dtype)
        if unit is not None:
            total += unit
            count += 1
    found = []
    for batch in batches:
        unit = _direction(model, batch, budget, pad_id, dtype) if count else None
        found.append(np.nan if unit is None else _product(unit, total) / count)
    return np.clip(np.array(found, dtype=np.float64), -1.0, 1.0)


def _check_memory(model: nn.Module, vectors: int, what: str, way_out: str, limit: int) -> int:
    """Numbers of a gradient; refuses to hold so many gradients as memory would not."""
    size = sum(part.numel() for part in parameters_of(bare_model(model), "all").values())
    if (needed := 4 * size * vectors) > limit:
        raise ConfigError(
            f"{what} need {needed / 2**30:.1f} GiB, the limit is {limit / 2**30:.1f} GiB; {way_out}"
        )
    return size


def _direction(
    model: nn.Module,
    batch: Sequence[Encoded],
    budget: TokenBudget,
    pad_id: int,
    dtype: torch.dtype | None,
) -> torch.Tensor | None:
    """(P,) unit gradient of a batch on the CPU in fp32; ``None`` where it has no direction."""
    if not response_token_counts(batch).sum():
        return None
    parts = batch_gradient(model, batch, tokens_per_batch=budget, pad_id=pad_id, dtype=dtype)
    flat = torch.cat([whole(part).flatten().cpu() for part in parts])
    norm = total_norm([flat])
    return flat.div_(norm) if np.isfinite(norm) and norm > 0 else None


def _product(one: torch.Tensor, other: torch.Tensor) -> float:
    """Inner product in fp64, a few MiB at a time."""
    pairs = zip(torch.split(one, 2**20), torch.split(other, 2**20), strict=True)
    return sum(float(a.double() @ b.double()) for a, b in pairs)
