"""Sums over the ranks of a run, through torch.distributed where there are several."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hbo.errors import StateError
from hbo.measure.sharding import is_dtensor
from hbo.mixture import FloatArray


def world() -> tuple[int, int]:
    """``(rank, world size)``; ``(0, 1)`` outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def add_over_ranks(array: FloatArray) -> FloatArray:
    """The sum of an array over all ranks; every rank must call it at the same point."""
    if world()[1] == 1:
        return array
    # A group made without naming a backend has one for the CPU too, on a machine with a GPU.
    on_cpu = "cpu:" in dist.get_backend_config()
    device = "cpu" if on_cpu else torch.accelerator.current_accelerator()
    tensor = torch.tensor(array, dtype=torch.float64, device=device)  # a copy: reduced in place
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def check_same_on_all_ranks(array: FloatArray, what: str) -> None:
    """Stop the run where ranks hold different values.

    Raises:
        StateError: The values differ; training on would follow another law on each rank.
    """
    size = world()[1]
    if size == 1:
        return
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
    # 48 bits are whole numbers in float64, and so are their sums over any number of ranks here.
    own = np.frombuffer(digest[:24], dtype="<u2").astype(np.float64)
    if not np.array_equal(add_over_ranks(own), own * size):
        raise StateError(f"the ranks hold different {what}; this run cannot go on exactly")


def weights_are_finite(model: nn.Module) -> bool:
    """Whether no trained weight is NaN or infinite, on any rank; all ranks call it together."""
    trained = (p.detach() for p in model.parameters() if p.requires_grad)
    # Under ZeRO-3 a parameter is an empty stand-in for this rank's part of it.
    own = (p.to_local() if is_dtensor(p) else getattr(p, "ds_tensor", p) for p in trained)
    broken = not all(bool(torch.isfinite(weights).all()) for weights in own)
    return not add_over_ranks(np.array([float(broken)])).any()
