"""What a Hugging Face trainer needs to be balanced: a few overrides, and no loop of ours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback

from hbo.balancer import Balancer
from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN, BuiltMixture
from hbo.integrations.checkpoints import STATE_KEY
from hbo.integrations.engine import Engine
from hbo.integrations.fit import (
    align,
    check_arguments,
    check_evaluated,
    check_parallelism,
    check_rows,
    draws_per_step_of,
    pad_id_of,
)
from hbo.integrations.loader import BalancedSampler, ExampleIdCollator, fit_look_ahead
from hbo.integrations.observed_norms import unmeasurable
from hbo.integrations.options import BalanceOptions
from hbo.integrations.probing import dataset_probe, mean_first_losses
from hbo.integrations.saving import SavingMixin
from hbo.measure.forward import bare_model
from hbo.policies import make_policy
from hbo.policies.base import Policy
from hbo.runlog import RunLog

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerControl, TrainerState, TrainingArguments


class BalancingCallback(TrainerCallback):
    """Tells the engine when training begins, steps, saves and ends."""

    def __init__(self, trainer: BalancingMixin) -> None:
        self._trainer = trainer
        self._saves_late = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the balancer of a resumed run, and watch the model."""
        saved = state.stateful_callbacks.get(STATE_KEY)
        self._trainer.engine.start(
            self._trainer.watched_model, state.global_step, saved, last_step=state.max_steps
        )
        self._trainer.compare_makers(saved)
        self._trainer.forget_a_damaged_best()
        if self._trainer.prefetch_notice and saved is None:  # a resumed run has said it before
            self._trainer.engine.warn("prefetch", self._trainer.prefetch_notice)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the random state before the loader is begun anew."""
        self._trainer.remember_random_state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first step of an epoch or after a resume: set the random state."""
        self._trainer.restore_random_state()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take in what the step showed; decide, if it is time.

        A checkpoint at an epoch's end waits for what else happens there once an epoch: one written
        before the epoch's log or evaluation would never see them after a resume.
        """
        self._trainer.engine.finish_step(self._trainer.watched_model)
        waits = "epoch" in (args.eval_strategy, args.logging_strategy)
        if control.should_save and waits and self._trainer.epoch_ends:
            control.should_save, self._saves_late = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Now the checkpoint that waited: the trainer logs and evaluates before it saves."""
        control.should_save, self._saves_late = control.should_save or self._saves_late, False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what was not logged yet, and leave the model as it was.

        Unless a checkpoint at this very step has yet to say it: a run that goes on from there will.
        """
        if self._trainer.saved_step != state.global_step:
            self._trainer.engine.log_window()
        self._trainer.engine.stop()


class BalancingMixin(SavingMixin):
    """Balance a ``transformers.Trainer``, or any subclass, from the outside.

    Set in front of a trainer class: ``class Balanced(BalancingMixin, Trainer)``. It overrides
    the sampler, the signature columns, ``compute_loss``, ``training_step``, ``log``, ``evaluate``
    and ``_load_rng_state``, and in ``SavingMixin`` what checkpoints need, each by a call of the
    original with a little before or after it.
    """

    prefetch_notice: str | None = None
    """How the loader was made to look less far ahead; said when training begins."""
    _resumed_from: str | None = None
    _random_state: torch.Tensor | None = None

    def balance(
        self,
        mixture: BuiltMixture,
        policy: Policy | str = "hbo",
        options: BalanceOptions | None = None,
        run_log: RunLog | None = None,
    ) -> None:
        """Join a built mixture and a policy to this trainer.

        Args:
            mixture: What ``build_mixture`` gave; the trainer's dataset came from it.
            policy: A policy, or its name with default settings.
            options: Lag, unit, signals, seed.
            run_log: Where the main process writes events; ``None``: nowhere (``log_history`` has
                the numbers still).

        Raises:
            ConfigError: A setting of the trainer that balancing cannot honour, or a policy that
                needs held-out examples of subsets that have none.
            DataError: The trainer's dataset is not the mixture's, or lost a whole subset.
        """
        trainer: Any = self
        options = options or BalanceOptions()
        policy = make_policy(policy) if isinstance(policy, str) else policy
        check_arguments(trainer.args)
        check_parallelism(trainer)
        check_rows(trainer)
        check_evaluated(trainer.eval_dataset)
        table, trainer.train_dataset = align(mixture.mixture, trainer.train_dataset)
        if not isinstance(trainer.data_collator, ExampleIdCollator):
            trainer.data_collator = ExampleIdCollator(trainer.data_collator)
        seed = _seed_of(options, trainer.args)
        self._draws_per_step = draws_per_step_of(trainer)

        def make_balancer() -> Balancer:
            return Balancer(
                table,
                policy,
                seed=seed,
                draws_per_step=self._draws_per_step,
                lag=options.lag,
                limits=mixture.limits,
                weights=mixture.weights,
                unit=options.unit,
            )

        probe = dataset_probe(
            trainer.train_dataset,
            table,
            examples_per_subset=options.probe_examples,
            seed=seed,
            pad_id=pad_id_of(trainer),
            dtype=torch.bfloat16 if trainer.args.bf16 else None,
            notice=lambda text: self.engine.warn("probe-memory", text),
            heldout=mixture.heldout,
            heldout_examples=options.heldout_examples,
            dropout_passes=options.dropout_passes,
            learning_rate=lambda: float(trainer.optimizer.param_groups[0]["lr"]),
        )
        log = run_log if run_log is not None and trainer.is_world_process_zero() else RunLog(None)
        first = mean_first_losses(trainer.train_dataset, table)
        self.engine = Engine(
            make_balancer,
            options,
            probe,
            log,
            first_losses=first,
            unmeasurable=unmeasurable(trainer.args),
        )
        self.engine.probe.check(trainer.model, self.engine.probed)
        self.prefetch_notice = fit_look_ahead(trainer.args, self.engine.balancer.lag)
        trainer._signature_columns = None
        trainer.add_callback(BalancingCallback(self))

    @property
    def balancer(self) -> Balancer:
        """The ring: mixture, policy, stream and their states."""
        return self.engine.balancer

    @property
    def watched_model(self) -> Any:
        """The module whose forward gets the batches, inside any parallel wrapper."""
        trainer: Any = self
        return bare_model(trainer.model)  # FSDP's own wrapper stays: it gathers the parameters

    def balance_summary(self) -> dict[str, Any]:
        """Draws, tokens, passes, losses, probabilities and cost so far, as in summary.json."""
        return self.engine.summary()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> BalancedSampler:
        trainer: Any = self
        return BalancedSampler(
            lambda: self.balancer,
            self._draws_per_epoch,
            lambda: not trainer.args.ignore_data_skip,
            lambda: trainer.is_in_train and trainer.state.global_step >= trainer.state.max_steps,
        )

    @property
    def _draws_per_epoch(self) -> int:
        trainer: Any = self
        steps = math.ceil(len(trainer.train_dataset) / self._draws_per_step)
        return steps * self._draws_per_step

    @property
    def epoch_ends(self) -> bool:
        """Whether the present step is the last of an epoch, or of the training."""
        trainer: Any = self
        whole = self.balancer.step * self._draws_per_step % self._draws_per_epoch == 0
        return whole or trainer.state.global_step >= trainer.state.max_steps

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        self._resumed_from = checkpoint

    def remember_random_state(self) -> None:
        """An epoch begins: what its loader will draw is to be undone."""
        self._random_state = torch.get_rng_state()

    def restore_random_state(self) -> None:
        """At the first step of an epoch or after a resume: as if each epoch began loading once.

        An iterator of a loader draws a number when it is made: once an epoch, but with persistent
        workers in the first epoch only, and once more after a resume in the middle of one. What
        was drawn is undone and, at an epoch's beginning, drawn once, so that neither workers nor a
        stop change what dropout draws.
        """
        state, self._random_state = self._random_state, None
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint is not None:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
        elif state is not None:
            torch.set_rng_state(state)
        else:
            return
        if self.balancer.step * self._draws_per_step % self._draws_per_epoch == 0:
            torch.empty((), dtype=torch.int64).random_()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        columns: list[str] = self._signature_columns  # type: ignore[attr-defined]
        columns += [name for name in (ID_COLUMN, FIRST_LOSS_COLUMN) if name not in columns]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own loss, watched."""
        with self.engine.observer.batch(inputs):
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own step on a micro-batch, forward and backward."""
        try:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.engine.observer.passed()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's own log, with per-subset numbers beside a training loss."""
        if "loss" in logs:
            logs.update(self.engine.log_window())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        """The trainer's own evaluation; over a dict of datasets, with ``eval_mixture_loss`` added.

        Returns:
            The trainer's metrics and the mean over subsets (macro) of their losses.
        """
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset  # type: ignore[attr-defined]
        check_evaluated(datasets)
        # Its loader draws from the random state, which a run resumed before it would not have done.
        before = torch.get_rng_state()
        metrics: dict[str, float] = super().evaluate(  # type: ignore[misc]
            eval_dataset, ignore_keys, metric_key_prefix, **kwargs
        )
        torch.set_rng_state(before)
        if isinstance(datasets, dict):
            names = [f"{metric_key_prefix}_{name}_loss" for name in datasets]
            macro = {
                f"{metric_key_prefix}_mixture_loss": float(
                    np.mean([metrics.get(name, math.nan) for name in names])
                )
            }
            metrics.update(macro)
            self.log(macro)
        return metrics


def _seed_of(options: BalanceOptions, args: TrainingArguments) -> int:
    """Of the draws and probes."""
    given = (options.seed, args.data_seed, args.seed)
    return next(int(seed) for seed in given if seed is not None)
