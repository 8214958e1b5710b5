"""Models whose parameters are spread over the ranks: which kind it is, and what it lets us measure.

Under sharding no rank holds the whole model. Every forward and backward pass gathers parameters
from all ranks, so all must enter it together, with the same number of passes: a sharded model is
probed by all ranks on the same examples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import distributed, nn

from hbo.errors import ConfigError, StateError
from hbo.measure.forward import bare_model
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    GRADIENT_COSINE,
    GRADIENT_NORM,
    HELDOUT_COSINE,
    LOOKAHEAD_GAIN,
)

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

GRADIENT_SIGNALS = frozenset(
    {GRADIENT_NORM, BATCH_GRADIENT_NORM, GRADIENT_COSINE, HELDOUT_COSINE, LOOKAHEAD_GAIN}
)


class Sharding(Enum):
    """How a model's parameters lie on the ranks; the value is what an error calls it.

    ``NONE`` covers all that keep parameters whole on each rank: one process,
    DistributedDataParallel, and DeepSpeed ZeRO-1 and 2, which shard gradients and optimiser only.
    """

    NONE = "no sharding"
    DTENSOR = "FSDP2 (fully_shard)"
    FSDP1 = "FSDP1 (FullyShardedDataParallel)"
    ZERO3 = "DeepSpeed ZeRO-3"


def sharding_of(model: nn.Module) -> Sharding:
    """Recognise the kind of sharding by the marks that each leaves on parameters and modules.

    Example:
        >>> sharding_of(nn.Linear(2, 2))
        <Sharding.NONE: 'no sharding'>
    """
    parameters = list(model.parameters())
    if any(_mark(parameter, "ds_id") is not None for parameter in parameters):
        return Sharding.ZERO3
    if any(_mark(parameter, "_fsdp_flattened") for parameter in parameters):
        return Sharding.FSDP1
    # Between forward and backward a root's parameters are whole, but its class still says it.
    if any(is_dtensor(p) for p in parameters) or any(True for _ in _fsdp2_modules(model)):
        return Sharding.DTENSOR
    return Sharding.NONE


def check_probe(model: nn.Module, wanted: Collection[str]) -> None:
    """Refuse, before any pass, what a probe cannot measure on a sharded model.

    Losses, hidden states and uncertainties need forward passes only, which every kind of sharding
    can make. Gradients can be had under FSDP2; FSDP1 and ZeRO-3 keep them in buffers of their own,
    where a probe would disturb the training. A look-ahead step needs parameters that are whole.

    Args:
        model: The model in training, as its forward is called: with its FSDP1 wrapper.
        wanted: Signal names, of ``PROBED_SIGNALS``.

    Raises:
        ConfigError: It cannot be measured; the text names ways out.
    """
    if not wanted:
        return
    model = bare_model(model)
    kind = sharding_of(model)
    if kind is Sharding.FSDP1:
        _check_wrapped(model)
    gradients = sorted(GRADIENT_SIGNALS & set(wanted))
    if not gradients:
        return
    if kind in (Sharding.FSDP1, Sharding.ZERO3):
        raise ConfigError(
            f"{gradients[0]} cannot be probed under {kind.value}; use rewards that need no "
            "gradient (balance.global_reward: heldout-loss, loss or progress), or train "
            "with FSDP2, ZeRO-2 or DistributedDataParallel, where it can"
        )
    if kind is Sharding.DTENSOR:
        if LOOKAHEAD_GAIN in gradients:
            raise ConfigError(
                f"lookahead_gain takes a step on whole parameters, and {kind.value} shards them; "
                "use another policy, or train with DistributedDataParallel or ZeRO-2"
            )
        _check_reduction(model, gradients[0])


def probed_together(model: nn.Module) -> bool:
    """Whether all ranks have to enter every pass of a probe together."""
    return sharding_of(bare_model(model)) is not Sharding.NONE


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 has gathered; nothing happens elsewhere.

    A forward pass without a backward pass leaves the root's parameters gathered: the next forward
    would then compute with weights from before the optimiser's step.
    """
    for module in _fsdp2_modules(model):
        module.reshard()


def check_synchronised(model: nn.Module) -> None:
    """Make sure that FSDP2 is going to reduce the gradients of the next backward pass.

    Raises:
        StateError: It was told not to, as between two micro-batches of an optimiser step: gradients
            of the training are waiting to be reduced, and a probe's would be added to them.
    """
    if not all(group.reduce_grads for group in _parameter_groups(model)):
        raise StateError(
            "a probe of gradients came while set_requires_gradient_sync(False) holds; probe at the "
            "end of an optimiser step, with gradients synchronised"
        )


def is_dtensor(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is one rank's shard of a larger one."""
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from its shards, by all ranks at once; any other as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def total_norm(tensors: Sequence[torch.Tensor]) -> float:
    """L2 norm of many tensors together, sharded or not; for sharded ones, all ranks call it."""
    sums: dict[Any, torch.Tensor] = {}
    for tensor in tensors:
        # One fp32 sum over millions of squares can be a thousandth too low; those of rows are not.
        single = torch.promote_types(tensor.dtype, torch.float32)
        dtype = single if tensor.ndim > 1 else torch.float64
        rows = torch.linalg.vector_norm(tensor.detach(), dim=-1, dtype=dtype)
        square = rows.double().square().sum()
        # Devices may differ under a device map; the shards of a mesh share one sum over its ranks.
        key = tensor.device_mesh if is_dtensor(tensor) else tensor.device
        sums[key] = sums[key] + square if key in sums else square
    return float(sum(float(whole(square)) for square in sums.values()) ** 0.5)


def _mark(parameter: nn.Parameter, name: str) -> Any:
    # Attributes that other libraries hang on parameters: none of them has a type to ask for.
    return getattr(parameter, name, None)


def _fsdp2_modules(model: nn.Module) -> Iterator[Any]:
    if distributed.is_available():
        from torch.distributed.fsdp import FSDPModule

        yield from (module for module in model.modules() if isinstance(module, FSDPModule))


def _parameter_groups(model: nn.Module) -> Iterator[Any]:
    # torch has public setters of these settings, and no getters.
    for module in _fsdp2_modules(model):
        group = module._get_fsdp_state()._fsdp_param_group
        if group is not None:
            yield group


def _check_wrapped(model: nn.Module) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    if not isinstance(model, FullyShardedDataParallel):
        raise ConfigError(
            "this is the module inside a FullyShardedDataParallel wrapper, which cannot gather its "
            "parameters; pass the wrapper"
        )


def _check_reduction(model: nn.Module, signal: str) -> None:
    if any(getattr(group, "gradient_divide_factor", None) for group in _parameter_groups(model)):
        raise ConfigError(
            f"{signal} needs gradients that are averaged over the ranks, and "
            "set_gradient_divide_factor changed that; scale the loss instead"
        )
    if any(_mark(parameter, "_post_accumulate_grad_hooks") for parameter in model.parameters()):
        raise ConfigError(
            f"{signal} cannot be probed under FSDP2 where hooks run after each gradient "
            "(register_post_accumulate_grad_hook): a probe would set them off, an optimiser step "
            "among them"
        )
