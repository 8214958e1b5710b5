"""Measure on a model that is being trained, and leave no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hbo.measure.sharding import reshard


@contextmanager
def undisturbed(
    model: nn.Module, *, train_mode: bool = False, gradients: bool = True
) -> Iterator[nn.Module]:
    """Leave gradients, random state and train mode bit for bit as they were, come what may.

    Inside, every parameter's ``grad`` is ``None`` and the model is in eval mode: dropout is off, so
    a measurement is a property of the weights and not of a mask. (The paper and its released code
    do not say which they mean; the models they train have no dropout, where the two are the same.)
    The very gradient tensors come back afterwards, not copies, so that buckets of
    DistributedDataParallel that they are views of stay joined to them.

    Restored, also after an exception: ``grad`` of every parameter, ``training`` of every submodule,
    the global random states of Python, NumPy and torch (CPU, CUDA, MPS), and, in train mode, the
    buffers (running statistics). Autocast's cache of cast weights is off inside: a weight cast
    without gradient here would otherwise be used by the training step around it. Parameters that
    FSDP2 gathered are sharded again, before and after.

    Args:
        model: The model; wrappers such as DistributedDataParallel are fine.
        train_mode: Measure with dropout on.
        gradients: Gradients are taken inside; otherwise every ``grad`` stays where it is, which
            FSDP1 insists on.

    Returns:
        The model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
        >>> before = torch.get_rng_state()
        >>> with undisturbed(model):
        ...     (model.training, torch.rand(1).shape)
        (False, torch.Size([1]))
        >>> model.training, torch.equal(before, torch.get_rng_state())
        (True, True)
    """
    reshard(model)
    restore: list[Callable[[], None]] = [
        _remember_random_state(),
        _remember_modes(model),
        _remember_autocast_cache(),
        lambda: reshard(model),
    ]
    if gradients:
        restore.append(_remember_gradients(model))
    if train_mode:
        restore.append(_remember_buffers(model))
    try:
        torch.set_autocast_cache_enabled(False)
        if gradients:
            for parameter in model.parameters():
                parameter.grad = None
        model.train(train_mode)
        yield model
    finally:
        for put_back in restore:
            put_back()


def _remember_random_state() -> Callable[[], None]:
    # The global generators are what other people's code draws from, so they are what we guard.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_cpu = torch.get_rng_state()
    # A CUDA that nobody has used yet has no state to save, and asking would start it.
    cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return put_back


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _remember_modes(model: nn.Module) -> Callable[[], None]:
    modes = [(module, module.training) for module in model.modules()]

    def put_back() -> None:
        # One by one: a frozen submodule may be in eval mode inside a model in train mode.
        for module, training in modes:
            module.training = training

    return put_back


def _remember_gradients(model: nn.Module) -> Callable[[], None]:
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]

    def put_back() -> None:
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return put_back


def _remember_autocast_cache() -> Callable[[], None]:
    enabled = torch.is_autocast_cache_enabled()
    return lambda: torch.set_autocast_cache_enabled(enabled)


def _remember_buffers(model: nn.Module) -> Callable[[], None]:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def put_back() -> None:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    return put_back
