"""Checkpoints of a balanced Hugging Face trainer: written whole, gone on from only if whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hbo.errors import StateError
from hbo.integrations.checkpoints import (
    STATE_KEY,
    check_checkpoint,
    fault_of,
    kept_until_sealed,
    newest_checkpoint,
    rotate,
    seal,
    unseal,
)
from hbo.integrations.engine import Engine
from hbo.integrations.events import about_state
from hbo.integrations.ranks import check_same_on_all_ranks, weights_are_finite
from hbo.measure.fingerprints import tokenizer_fingerprint


class SavingMixin:
    """The part of ``BalancingMixin`` that saves, loads and passes over checkpoints.

    It overrides ``train``, ``_load_best_model`` and ``_save_checkpoint`` of a trainer.
    """

    engine: Engine
    saved_step: int | None = None
    """Optimiser step of the last checkpoint."""

    @cached_property
    def _made_with(self) -> dict[str, Any]:
        """What wrote a checkpoint: for people, and for a word of warning."""
        trainer: Any = self
        return {
            "package": version("hbo"),
            "tokenizer": tokenizer_fingerprint(trainer.processing_class),
        }

    def compare_makers(self, saved: Mapping[str, Any] | None) -> None:
        """Warn where another version or tokenizer wrote the state that this run goes on from."""
        for name, ours in self._made_with.items():
            theirs = (saved or {}).get(name, ours)
            if theirs != ours:
                what = f"version {theirs} of hbo" if name == "package" else f"another {name}"
                self.engine.warn(f"other-{name}", f"the checkpoint was written with {what}")

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's own training; a damaged checkpoint is passed over, or refused by name.

        Args:
            resume_from_checkpoint: As in Trainer; ``True``: the newest checkpoint of ``output_dir``
                that is whole.
            *args: As in Trainer.
            **kwargs: As in Trainer.

        Raises:
            StateError: The named checkpoint is damaged, or all are.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_checkpoint()
        elif resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint))
        name = Path(resume_from_checkpoint).name if isinstance(resume_from_checkpoint, str) else ""
        check_same_on_all_ranks(
            np.frombuffer(name.encode(), np.uint8).astype(np.float64),
            "checkpoints to resume from: put output_dir on a disk that all share",
        )
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.engine.stop()

    def _newest_checkpoint(self) -> str | bool:
        trainer: Any = self
        found, damaged = newest_checkpoint(Path(trainer.args.output_dir))
        for text in damaged:
            self.engine.warn("damaged-checkpoint", text)
        if found is None and damaged:
            raise StateError(
                "no checkpoint is whole; train without resume_from_checkpoint",
                where=str(trainer.args.output_dir),
            )
        return True if found is None else str(found.path)  # of none at all the Trainer complains

    def forget_a_damaged_best(self) -> bool:
        """Let another checkpoint become the best where the best one is damaged; say so."""
        state: Any = self.state  # type: ignore[attr-defined]
        best = state.best_model_checkpoint
        fault = fault_of(Path(best)) if best and Path(best).is_dir() else None
        if fault is None:
            return False
        text = f"{Path(best).name}, the best so far, is damaged ({fault}) and passed over"
        self.engine.warn("damaged-checkpoint", text)
        state.best_model_checkpoint = state.best_metric = state.best_global_step = None
        return True

    def _load_best_model(self) -> None:
        if not self.forget_a_damaged_best():  # else the last weights stay
            super()._load_best_model()  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The state of record is trainer_state.json, which the trainer writes in here. Only when all
        # is written and sealed do older checkpoints go.
        trainer: Any = self
        args, state = trainer.args, trainer.state
        if state.global_step >= state.max_steps:
            self.engine.log_window()  # nothing goes on from here that could say it later
        self.saved_step = state.global_step
        saved = self.engine.state_dict() | self._made_with
        state.stateful_callbacks[STATE_KEY] = saved
        run_folder = trainer._get_output_dir(trial=trial)
        folder = Path(run_folder) / f"checkpoint-{state.global_step}"
        if args.should_save:
            unseal(folder)
        with kept_until_sealed(args):
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        trainer.accelerator.wait_for_everyone()  # every rank has written its part
        whole = weights_are_finite(trainer.model)
        if args.should_save:
            seal(
                folder,
                about_state(self.engine.balancer) | self._made_with | {"finite_weights": whole},
            )
            if whole:  # else what is older may be all that can be gone on from
                rotate(folder, args.save_total_limit, state.best_model_checkpoint)
        if args.push_to_hub:
            trainer._push_from_checkpoint(str(folder))
