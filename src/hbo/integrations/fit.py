"""What a trainer must be like to be balanced: its arguments, and its dataset's layout."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hbo.data.assemble import ID_COLUMN, BuiltMixture
from hbo.errors import ConfigError, DataError
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
    """Settings that would change which examples are drawn, or how many make a step."""
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
    if getattr(args, "packing", False):
        raise ConfigError(
            "packing=True mixes difficulty groups in a row; use padding_free=True with "
            "max_length=None, or plain padded batches"
        )


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
    counts = np.bincount(mixture.cell_of(kept), minlength=mixture.sizes.size)
    sizes = counts.reshape(mixture.sizes.shape)
    tokens = None if mixture.mean_tokens is None else np.where(sizes > 0, mixture.mean_tokens, 0.0)
    kept_hash = hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
    table = Mixture(mixture.names, sizes, f"{mixture.data_fingerprint}:{kept_hash}", tokens)
    aligned = dataset.select(order).remove_columns(ID_COLUMN)
    return table, aligned.add_column(ID_COLUMN, np.arange(len(kept)))
