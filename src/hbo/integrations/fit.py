"""What a trainer must be like to be balanced: its arguments, and its dataset's layout."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hbo.data.assemble import ID_COLUMN, BuiltMixture
from hbo.data.packing import is_packed
from hbo.errors import ConfigError, DataError
from hbo.measure.undisturbed import undisturbed
from hbo.mixture import Mixture

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainingArguments


def check_mixture(mixture: object) -> None:
    """Catch the likeliest mistake: datasets where a built mixture belongs.

    Raises:
        ConfigError: It is no ``BuiltMixture``.
    """
    if not isinstance(mixture, BuiltMixture):
        raise ConfigError(
            f"mixture is a {type(mixture).__name__}; pass what build_mixture(...) returns"
        )


def check_arguments(args: TrainingArguments) -> None:
    """Settings that would change what is drawn, or hide what is seen of it."""
    strategy = getattr(args, "train_sampling_strategy", "random")
    if strategy in ("group_by_length", "batch_rebalance"):
        raise ConfigError(
            f"train_sampling_strategy={strategy!r} picks examples itself; balancing draws them: "
            "leave it at 'random'"
        )
    if args.auto_find_batch_size:
        raise ConfigError("auto_find_batch_size changes the draws of a step; set a batch size")
    if args.accelerator_config.dispatch_batches:
        raise ConfigError("accelerator_config.dispatch_batches=True is not supported; unset it")
    if getattr(args, "eval_packing", None):
        raise ConfigError(
            "eval_packing=True is not supported: what is held out is evaluated example by example; "
            "leave it out"
        )
    if (getattr(args, "liger_kernel_config", None) or {}).get("fused_linear_cross_entropy"):
        raise ConfigError(
            "liger_kernel_config.fused_linear_cross_entropy=True gives a loss without logits or "
            "log_probs, so the losses of single examples cannot be seen; set it to false"
        )
    if getattr(args, "activation_offloading", False) and not torch.accelerator.is_available():
        raise ConfigError(
            "activation_offloading=True moves activations from an accelerator to the CPU, and "
            "there is no accelerator here; leave it out"
        )


def check_labels(args: TrainingArguments) -> None:
    """Settings that say what is trained on, where the mixture's rows have labels already.

    Raises:
        ConfigError: One of them would not be heeded.
    """
    asked = {"assistant_only_loss": True, "completion_only_loss": False}
    for name, value in asked.items():
        if getattr(args, name, None) is value:
            key = name.removesuffix("_loss")
            raise ConfigError(
                f"{name}={value} comes too late: the mixture's rows have labels already; leave it "
                f"out and give build_mixture(renderer=Renderer(tokenizer, {key}={value}))"
            )


def check_rows(trainer: Any) -> None:
    """Rows and losses that a trainer must not mix up: packed ones, and those of Liger.

    Raises:
        ConfigError: Its collator would not keep the examples of a packed row apart, or its loss
            hides them.
    """
    args = trainer.args
    if getattr(args, "packing", False):
        raise ConfigError(
            "packing=True packs across subsets and groups once the trainer is made; let "
            "BalancedSFTTrainer do it, or pack with hbo.integrations.trl.pack_rows and give "
            "padding_free=True and max_length=None"
        )
    if is_packed(trainer.train_dataset) and not getattr(trainer, "padding_free", False):
        raise ConfigError(
            "the mixture's rows are packed, which only TRL's padding-free batches keep apart: use "
            "BalancedSFTTrainer or SFTTrainer with padding_free=True and max_length=None"
        )
    if args.use_liger_kernel and (args.liger_kernel_config or {}).get(
        "fused_linear_cross_entropy", True
    ):
        raise ConfigError(
            "use_liger_kernel=True gives a loss without logits, so the losses of single examples "
            "cannot be seen; set liger_kernel_config={'fused_linear_cross_entropy': False}"
        )
    check_apart(trainer)


def check_parallelism(trainer: Any) -> None:
    """Ways to use several devices that cut a batch in other ways than ranks do."""
    devices = trainer.args.n_gpu
    if devices > 1:
        raise ConfigError(
            f"{devices} GPUs in one process (DataParallel) are not supported; start with torchrun "
            f"--nproc_per_node {devices} or accelerate launch, or set CUDA_VISIBLE_DEVICES to one"
        )
    if trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise ConfigError(
            "tensor, context and sequence parallelism share one batch between ranks, which "
            "balancing does not count yet; use DDP, FSDP or DeepSpeed ZeRO"
        )


def check_apart(trainer: Any) -> None:
    """Models that let the examples of a flattened row see each other.

    The trainer's own collator flattens two examples, twice, the first one changed: what the model
    says of the second must not change.

    Raises:
        ConfigError: It does.
    """
    model = trainer.model
    parts = (parameter.is_meta or not parameter.numel() for parameter in model.parameters())
    elsewhere = getattr(model, "device", None) != trainer.args.device  # FSDP, DeepSpeed: not yet
    if not getattr(trainer, "padding_free", False) or any(parts) or elsewhere:
        return
    with undisturbed(model, gradients=False), torch.no_grad(), trainer.accelerator.autocast():
        one, other = (_second_of_two(trainer, first) for first in (1, 2))
    if (one - other).abs().max() > one.abs().max() * math.sqrt(torch.finfo(one.dtype).eps):
        raise ConfigError(
            f"the attention of {model.config.model_type!r} models lets the examples of a row see "
            "each other, so they can be neither packed nor padding_free; use padded batches or, "
            "where the model has it, attn_implementation flash_attention_2"
        )


def _second_of_two(trainer: Any, token: int, length: int = 8) -> torch.Tensor:
    """Logits of the second of two flattened examples; the first repeats a token."""
    rows = [[token] * length, list(range(1, length + 1))]
    batch = trainer.data_collator([{"input_ids": row, "labels": row} for row in rows])
    inputs = {
        name: value.to(trainer.model.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    logits: torch.Tensor = trainer.model(**inputs, use_cache=False).logits
    virtual = logits.shape[1] - inputs["input_ids"].shape[1]  # of prompt-learning adapters
    return logits[0, virtual + length : virtual + 2 * length]


def check_evaluated(datasets: Any) -> None:
    """A subset whose own evaluation would be taken for the average over all.

    Raises:
        ConfigError: One of several evaluation sets is called ``mixture``.
    """
    if isinstance(datasets, dict) and "mixture" in datasets:
        raise ConfigError(
            "a subset called 'mixture' cannot be evaluated: eval_mixture_loss is the average over "
            "subsets; give it another name"
        )


def pad_id_of(trainer: Any) -> int:
    """Any id of the vocabulary to pad with; the tokenizer's own where it has one."""
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    return int(getattr(tokenizer, "pad_token_id", None) or 0)


def draws_per_step_of(trainer: Any) -> int:
    """Examples of one optimiser step, all ranks and accumulation steps together."""
    args = trainer.args
    ranks = 1 if args.accelerator_config.split_batches else args.world_size
    return int(args.train_batch_size * args.gradient_accumulation_steps * ranks)


def align(mixture: Mixture, dataset: Dataset) -> tuple[Mixture, Dataset]:
    """The trainer's rows in the mixture's layout; rows that its preparation dropped leave it."""
    if ID_COLUMN not in dataset.column_names:
        raise DataError(
            f"the trainer's dataset has no {ID_COLUMN} column: pass build_mixture(...).dataset as "
            "train_dataset"
        )
    ids = np.asarray(dataset[ID_COLUMN], dtype=np.int64)
    if len(ids) == mixture.num_examples and (np.diff(ids) == 1).all():
        return mixture, dataset
    order = np.argsort(ids, kind="stable")
    kept = ids[order]
    if kept.max(initial=-1) >= mixture.num_examples:
        raise DataError(
            f"the trainer's dataset has a row {kept[-1]}, and the mixture {mixture.num_examples} "
            "rows: it is another mixture's, or not packed as this one is; pass this one's own"
        )
    counts = np.bincount(mixture.cell_of(kept), minlength=mixture.sizes.size)
    sizes = counts.reshape(mixture.sizes.shape)
    tokens = None if mixture.mean_tokens is None else np.where(sizes > 0, mixture.mean_tokens, 0.0)
    kept_hash = hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    table = Mixture(mixture.names, sizes, f"{mixture.data_fingerprint}:{kept_hash}", tokens)
    aligned = dataset.select(order).remove_columns(ID_COLUMN)
    return table, aligned.add_column(ID_COLUMN, np.arange(len(kept)))
