"""The global batch of a run, kept when it is resumed on another number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def configured_cut(training: Any) -> dict[str, Any]:
    """What a checkpoint has to say of the configured batch, besides ``draws_per_step``.

    Args:
        training: ``SFTConfig``, before ``keep_global_batch``.
    """
    sizes = training.per_device_train_batch_size, training.gradient_accumulation_steps
    return {"per_device_train_batch_size": sizes[0], "gradient_accumulation_steps": sizes[1]}


def keep_global_batch(training: Any, saved: Mapping[str, Any], ranks: int) -> str | None:
    """Cut the steps of a resumed run so that each draws as many examples as before.

    Where only the number of ranks has changed, accumulation makes up for it, and where that does
    not divide, a smaller batch per device. Where the configuration itself asks for another batch,
    or no cut fits, nothing is changed.

    Args:
        training: ``SFTConfig``; its batch size and accumulation may be changed.
        saved: ``configured_cut`` and ``draws_per_step`` of the run, from its checkpoint.
        ranks: Processes of the resumed run.

    Returns:
        A notice; ``None`` where nothing had to change.

    Example:
        >>> from types import SimpleNamespace
        >>> training = SimpleNamespace(
        ...     per_device_train_batch_size=8,
        ...     gradient_accumulation_steps=1,
        ...     accelerator_config=SimpleNamespace(split_batches=False),
        ... )
        >>> saved = configured_cut(training) | {"draws_per_step": 16}  # of two ranks
        >>> keep_global_batch(training, saved, ranks=1)
        'a step goes on drawing 16 examples: 2 micro-batches of 8 on each of 1 ranks'
        >>> training.gradient_accumulation_steps
        2
    """
    configured, wanted = configured_cut(training), saved.get("draws_per_step")
    same = configured == {key: saved.get(key) for key in configured}
    if not (same and isinstance(wanted, int) and wanted > 0):
        return None
    batch, accumulation = configured.values()
    if training.accelerator_config.split_batches:
        return None  # the configured batch is that of all ranks already
    if batch * accumulation * ranks == wanted:
        return None
    if getattr(training, "deepspeed", None):
        return (
            f"a step drew {wanted} examples before; with training.deepspeed set gradient_"
            "accumulation_steps yourself to keep that, as DeepSpeed has read its settings already"
        )
    fitting = [size for size in range(batch, 0, -1) if wanted % (size * ranks) == 0]
    if not fitting:
        return f"{wanted} examples of a step cannot be dealt to {ranks} ranks; its size changes"
    training.per_device_train_batch_size = fitting[0]
    training.gradient_accumulation_steps = wanted // (fitting[0] * ranks)
    return (
        f"a step goes on drawing {wanted} examples: {training.gradient_accumulation_steps} "
        f"micro-batches of {fitting[0]} on each of {ranks} ranks"
    )
