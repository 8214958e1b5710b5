"""``BalancedSFTTrainer``: TRL's SFTTrainer on a balanced mixture."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets
from trl import SFTTrainer, pack_dataset

from hbo.data.packing import is_packed, pack_mixture
from hbo.errors import ConfigError
from hbo.integrations.fit import (
    align,
    check_arguments,
    check_labels,
    check_mixture,
)
from hbo.integrations.mixin import BalancingMixin
from hbo.integrations.options import BalanceOptions

if TYPE_CHECKING:
    from hbo.data.assemble import BuiltMixture
    from hbo.policies.base import Policy
    from hbo.runlog import RunLog


class BalancedSFTTrainer(BalancingMixin, SFTTrainer):
    """``trl.SFTTrainer``, drawing its examples as a policy says.

    Everything of SFTTrainer works as documented there: full fine-tuning and PEFT, completion-only
    and assistant-only loss, accumulation, checkpointing, bf16, loader workers, callbacks, trackers,
    packing (cell by cell: ``pack_rows``).
    ``log_history`` gains ``mixture/<subset>/{loss,tokens,share,probability,passes}``; evaluating a
    dict of datasets gains ``eval_mixture_loss``, their mean, for ``metric_for_best_model``.

    Args:
        model: As in SFTTrainer.
        args: ``SFTConfig``.
        mixture: What ``build_mixture`` gave; takes the place of ``train_dataset``.
        policy: A policy or the name of one (``hbo.POLICIES``).
        balance: Lag, unit, signals, seed.
        run_log: Where updates and steps are written; ``None``: nowhere but ``log_history``.
        **kwargs: The rest of SFTTrainer's arguments.

    Raises:
        ConfigError: A setting that balancing cannot honour, with what to use instead.

    Example:
        >>> mixture = build_mixture(
        ...     {"arabic": ds_ar, "german": ds_de}, model=model
        ... )  # doctest: +SKIP
        >>> trainer = BalancedSFTTrainer(model, args, mixture=mixture)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    labelled_tokens_only: bool = False
    """On a CPU, keep TRL's head to the tokens that have a label: the same loss up to rounding, and
    a shorter step. ``hbo train`` does; by default a training is SFTTrainer's to the last bit."""

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        mixture: BuiltMixture,
        policy: Policy | str = "hbo",
        balance: BalanceOptions | None = None,
        run_log: RunLog | None = None,
        **kwargs: Any,
    ) -> None:
        check_mixture(mixture)
        if kwargs.get("train_dataset") is not None:
            raise ConfigError("mixture takes the place of train_dataset; give only one of them")
        if args is not None:  # before anything is built
            check_arguments(args)
            check_labels(args)
        if getattr(args, "packing", False):
            mixture, args = pack_rows(mixture, args), _without_packing(args)
        kwargs["train_dataset"] = mixture.dataset
        super().__init__(model, args, **kwargs)
        self.balance(mixture, policy, balance, run_log)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """SFTTrainer's own loss; see ``labelled_tokens_only``."""
        only = self.labelled_tokens_only and self.args.device.type == "cpu"
        with _labelled_tokens_only() if only else nullcontext():
            return super().compute_loss(*args, **kwargs)


@contextmanager
def _labelled_tokens_only() -> Iterator[None]:
    """Let TRL's fused head skip tokens without a label, as it does where it has Triton.

    Elsewhere it computes the logits of every token and throws away those of prompts, since a number
    of tokens that changes from batch to batch makes some accelerators recompile. A CPU does not
    compile, and there most of a step can go into them: prompts are long, answers are short, and the
    vocabulary is large. The loss is the same.
    """
    from trl.trainer import utils

    before = getattr(utils, "_use_triton", None)
    if before is None:  # another TRL: its own way, then
        yield
        return
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = before


def pack_rows(mixture: BuiltMixture, args: Any) -> BuiltMixture:
    """A mixture as ``SFTConfig`` wants its rows: where it says ``packing``, packed cell by cell.

    TRL's own ``pack_dataset`` packs the examples of one cell (subset and difficulty group) at a
    time, so that a row can be drawn as one thing. The trainer then needs ``packing=False``,
    ``padding_free=True`` and ``max_length=None``; ``BalancedSFTTrainer`` sees to that itself.

    Args:
        mixture: What ``build_mixture`` gave.
        args: ``SFTConfig``; ``packing``, ``packing_strategy`` and ``max_length`` are read.

    Returns:
        The mixture itself where nothing is to be packed, or all is already.

    Raises:
        ConfigError: ``max_length`` is not set.
    """
    if not args.packing or is_packed(mixture.dataset):
        return mixture
    if args.max_length is None:
        raise ConfigError("packing=True needs max_length, the tokens of a row; set it")
    table, rows = align(mixture.mixture, mixture.dataset)
    pack = partial(pack_dataset, seq_length=args.max_length, strategy=args.packing_strategy)
    with _quiet_maps():  # one for each cell
        return pack_mixture(replace(mixture, mixture=table, dataset=rows), pack)


def _without_packing(args: Any) -> Any:
    """The same arguments for rows that are packed already; the caller's own stay as they are."""
    args = copy.copy(args)
    args.packing, args.padding_free, args.max_length = False, True, None
    return args


@contextmanager
def _quiet_maps() -> Iterator[None]:
    """No progress bars of the datasets library inside."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
