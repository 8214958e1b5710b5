"""``hbo train``: plan, score, fine-tune, evaluate, report."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbo.config import LoadedConfig
from hbo.data.assemble import BuiltMixture
from hbo.errors import EnvironmentProblem, StateError
from hbo.evaluation.heldout import HeldoutResult
from hbo.integrations.checkpoints import STATE_KEY, Checkpoint
from hbo.run import folder as files
from hbo.run.budget import policy_of
from hbo.run.environment import versions
from hbo.run.files import disk_is_full, json_text, write_whole
from hbo.run.heldout import Half, evaluate_half, examples_to_json, to_json
from hbo.run.models import load_model
from hbo.run.plan import Plan
from hbo.run.prepare import Prepared
from hbo.run.progress import bar, say
from hbo.run.ranks import on_all_ranks
from hbo.run.resume import (
    alone_in,
    claim,
    finished_summary,
    left_by_clock,
    planned,
    require_same,
    resolved,
)
from hbo.run.scores import build, measured_scores
from hbo.run.stop import StopRequest, steady_workers
from hbo.run.summary import make_summary
from hbo.run.world import is_main
from hbo.runlog import RunLog, finite, read_log, up_to


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Args:
        summary: ``summary.json``'s content.
        prior: Subset -> share of draws before any update.
    """

    summary: dict[str, Any]
    prior: dict[str, float]


@dataclass(eq=False)
class _Run:
    """One training, from its prepared data to its summary; each step of it is a method."""

    prepared: Prepared
    plan: Plan
    folder: Path
    stop: StopRequest
    start: float
    configured: Mapping[str, Any]
    checkpoint: Checkpoint | None
    log: RunLog
    model: Any = None
    loading_seconds: float = 0.0
    scoring_seconds: float = 0.0
    measured: dict[Half, Mapping[str, HeldoutResult]] = field(default_factory=dict)

    @property
    def loaded(self) -> LoadedConfig:
        return self.prepared.loaded

    def load(self) -> Any:
        """The model to be trained, loaded once, on its device."""
        if self.model is None:
            start = time.perf_counter()
            say(f"loading {self.loaded.config.model}")
            self.model = load_model(self.loaded, self.prepared.model, self.prepared.settings)
            self.loading_seconds = time.perf_counter() - start
        return self.model

    def score(self) -> BuiltMixture:
        """Difficulty scores, measured by all ranks together, and the mixture."""
        start = time.perf_counter()
        say("scoring difficulty")
        with bar("scoring") as done:
            scores = measured_scores(self.prepared, done, say, self.load)
        # Any trainer has to load the model: that is no cost of scoring.
        self.scoring_seconds = time.perf_counter() - start - self.loading_seconds
        return build(self.prepared, scores)

    def evaluate(
        self, model: Any, step: int, title: str, half: Half = "test", **more: Any
    ) -> dict[str, Any]:
        """Evaluation on held-out examples: noted in the run log, each of them in ``measured``."""
        say(f"evaluating {title}" + ("" if half == "test" else f" on the {half} half"))
        with bar("evaluating") as done:
            found = evaluate_half(model, self.prepared, half, done)
        self.measured[half] = found
        result = to_json(found)
        self.log.write("evaluation", step=step, split=half, **more, **result)
        return result

    def begin(self, mixture: BuiltMixture) -> None:
        """Write the start of the run: configuration, versions, what the data is, what is amiss."""
        self.write_config()
        self.log.write(
            "start",
            config=resolved(self.loaded, self.plan),
            versions=versions(),
            fingerprint=mixture.mixture.fingerprint,
            scoring_seconds=self.scoring_seconds,
        )
        for part in self.prepared.parts:
            for place, reason in part.skipped:
                self.warn("bad-record", f"{part.name}: {place}: {reason}")
        for warning, text in zip(self.plan.warnings, self.plan.warning_lines, strict=True):
            if warning["code"] != "bad-records":
                self.warn(warning["code"], text)

    def go_on(self) -> None:
        """Say where a resumed run continues, and what is no longer as it was begun."""
        step = self.checkpoint.step if self.checkpoint else 0
        say(f"continuing from step {step}")
        changed = files.changed_keys(resolved(self.loaded, self.plan), self.folder)
        if changed:
            text = f"resumed with other settings than it was begun with: {', '.join(changed)}"
            say(f"notice: {text}")
            self.warn("changed-settings", text, step)
            self.write_config()

    def write_config(self) -> None:
        """Write the resolved configuration, as the run is made from now on."""
        if is_main():
            config = resolved(self.loaded, self.plan)
            files.write_config({**config, "versions": versions()}, self.folder)

    def open_log(self, notes: list[tuple[str, str]]) -> None:
        """Keep what the run log said until the checkpoint, and add what is to be said first."""
        step = 0 if self.checkpoint is None else self.checkpoint.step
        if is_main():
            self.log.open(self.folder / files.LOG, keep=up_to(step))
        for code, text in notes:
            say(f"notice: {text}")
            self.warn(code, text, step)

    def warn(self, code: str, text: str, step: int = 0) -> None:
        """Put a warning into the run log."""
        self.log.write("warning", step=step, code=code, text=text)

    def earlier(self, event: str) -> dict[str, Any] | None:
        """The event of a kind from before the first step, of a run that is resumed."""
        if self.checkpoint is None or not (self.folder / files.LOG).is_file():
            return None
        for entry in read_log(self.folder / files.LOG):
            if entry["event"] == event and not entry.get("step"):
                if entry.get("split") not in {None, "test"}:
                    continue
                return entry
        return None


def train_run(
    loaded: LoadedConfig, *, resume: bool = False, overwrite: bool = False, stop: StopRequest
) -> Outcome:
    """Run a configuration from its data to its report.

    Args:
        loaded: The configuration.
        resume: Go on from the last whole checkpoint in ``output_dir``, or start if there is none.
        overwrite: Replace the run that is in ``output_dir``, once everything else is in order.
        stop: Hears signals; training then ends with a checkpoint.

    Returns:
        The summary, and where the shares began.

    Raises:
        ConfigError: The configuration, or a folder that holds a run already.
        DataError: The data.
        Interrupted: A signal came.
    """
    start = time.perf_counter()
    folder = files.require_free(loaded, resume=resume, overwrite=overwrite)
    found = on_all_ranks(lambda: planned(loaded, folder if resume else None))
    plan, prepared = found.plan, found.plan.prepared
    prior = dict(zip(plan.mixture.names, plan.probabilities.sum(axis=1).tolist(), strict=True))
    finished = finished_summary(folder, plan) if resume else None
    if finished is not None:
        require_same(loaded, plan, folder)
        say(f"{folder}: this run is finished; nothing is left to do")
        _write_missing_report(folder)
        return Outcome(finished, prior)
    for text in (*prepared.settings.notices, *plan.warning_lines):
        say(f"notice: {text}")
    run = _Run(prepared, plan, folder, stop, start, found.configured, None, RunLog(None))
    mixture = run.score()
    training = prepared.settings.training
    try:
        with alone_in(folder):
            run.checkpoint, damaged = claim(folder, training, resume=resume, overwrite=overwrite)
            recut = [] if found.recut is None else [found.recut]
            notes = [("damaged-checkpoint", line) for line in damaged]
            notes += [("other-ranks", line) for line in recut if run.checkpoint is not None]
            return Outcome(_train(run, mixture, notes), prior)
    except Exception as error:
        if not disk_is_full(error):
            raise
        text = "the disk is full; free some space and run again with --resume"
        where = getattr(error, "filename", None) or folder
        raise EnvironmentProblem(text, where=str(where)) from error


def _write_missing_report(folder: Path) -> None:
    from hbo.reports import write_report

    if is_main() and not (folder / files.REPORT).exists():
        write_report(folder)


def _train(run: _Run, mixture: BuiltMixture, notes: list[tuple[str, str]]) -> dict[str, Any]:
    from hbo.run.callbacks import first_of_each

    made = None
    if run.checkpoint is not None:
        # What does not fit is refused before anything is written.
        made = _trainer(run, mixture)
        _check_fits(run, made[0])
    run.open_log(notes)
    begun = run.earlier("start")
    if begun is None:
        run.begin(mixture)
    else:
        run.scoring_seconds += float(begun.get("scoring_seconds") or 0.0)
        run.go_on()
    before: Mapping[str, Any] | None = run.earlier("evaluation")
    if before is None and run.loaded.config.evaluation.before and run.checkpoint is None:
        before = run.evaluate(run.load(), 0, "the untouched model")
    trainer, clock = made or _trainer(run, mixture)
    say(f"training: {run.plan.budget.steps} steps of {run.plan.budget.draws_per_step} examples")
    if is_main():
        run.log.listener = first_of_each()
    run.stop.patient = True
    trainer.train(resume_from_checkpoint=str(run.checkpoint.path) if run.checkpoint else None)
    run.stop.patient = False
    if run.stop.signal_number is not None:
        name = signal.Signals(run.stop.signal_number).name
        run.warn("stopped", f"stopped by {name}", int(trainer.state.global_step))
    steps = int(trainer.state.global_step)
    saved = f"checkpoint at step {steps}" if trainer.saved_step == steps else "no checkpoint"
    run.stop.raise_if_requested(f"{saved} in {run.folder}; run again with --resume")
    from hbo.integrations.ranks import weights_are_finite

    if not weights_are_finite(trainer.watched_model):
        raise StateError(
            "training is lost: the trained weights are not finite; resume with a lower "
            "training.learning_rate (checkpoints with such weights are passed over)",
            where=str(run.folder),
        )
    if run.loaded.config.evaluation.validation:
        trained = {"seconds": clock.training_seconds}
        run.evaluate(trainer.watched_model, steps, "the trained model", "validation", **trained)
    after = run.evaluate(trainer.watched_model, steps, "the trained model")
    summary = make_summary(
        balance=trainer.balance_summary(),
        policy=run.loaded.config.balance.policy,
        data_fingerprint=run.prepared.fingerprint,
        seed=run.loaded.config.seed,
        steps=steps,
        wall_seconds=clock.seconds,
        training_seconds=clock.training_seconds,
        scoring_seconds=run.scoring_seconds,
        before=before,
        after=after,
    )
    _finish(run, trainer, summary)
    return summary


def _check_fits(run: _Run, trainer: Any) -> None:
    """Refuse to go on from a checkpoint that is another run's, or beyond this one's end."""
    assert run.checkpoint is not None
    saved = run.checkpoint.callbacks.get(STATE_KEY)
    if saved is not None and run.loaded.config.balance.resume == "exact":
        try:
            trainer.engine.check_state(saved)
        except (KeyError, TypeError, AttributeError) as error:
            raise StateError(
                "the checkpoint's balancing state is damaged; remove it and go on from an earlier",
                where=str(run.checkpoint.path),
            ) from error
    if run.checkpoint.step > run.plan.budget.steps:
        raise run.loaded.error(
            ("training",),
            f"the run is at step {run.checkpoint.step} already, and this is for "
            f"{run.plan.budget.steps}; set training.max_steps higher, or another output_dir",
        )


def _trainer(run: _Run, mixture: BuiltMixture) -> tuple[Any, Any]:
    """The balanced trainer with our callbacks, and its clock."""
    from transformers import PrinterCallback
    from trl import get_peft_config

    from hbo.integrations.options import BalanceOptions
    from hbo.integrations.trl import BalancedSFTTrainer
    from hbo.run.callbacks import ClockCallback, watch_over

    config, settings = run.loaded.config, run.prepared.settings
    balance = config.balance
    training = settings.training
    # The rows are tokens and labels already: the masks that these two ask for are in the labels.
    training.completion_only_loss, training.assistant_only_loss = None, False
    training.eval_on_start = training.eval_on_start and run.checkpoint is None
    if training.padding_free:
        training.max_length = None  # the rows are cut already; TRL wants that said
    facts = {**run.configured, "draws_per_step": run.plan.budget.draws_per_step}
    clock = ClockCallback(run.start, left_by_clock(run.checkpoint), facts)
    trainer = BalancedSFTTrainer(
        run.load(),
        training,
        mixture=mixture,
        policy=policy_of(run.loaded),
        balance=BalanceOptions(
            signals=balance.signals,
            lag=balance.lag,
            unit=balance.unit,
            probe_examples=balance.probe_examples,
            top_up=balance.top_up,
            measure_every=balance.measure_every,
            norm_scope=balance.norm_scope,
            heldout_examples=balance.heldout_examples,
            dropout_passes=balance.dropout_passes,
            seed=config.seed,
            resume=balance.resume,
        ),
        run_log=run.log,
        processing_class=run.prepared.tokenizer,
        peft_config=get_peft_config(settings.tuning),
        eval_dataset=_validation(run.prepared) if _evaluates(training) else None,
        callbacks=[*_callbacks(run, clock), clock],
    )
    trainer.labelled_tokens_only = True
    trainer.remove_callback(PrinterCallback)
    watch_over(trainer)
    clock.leave_out_evaluations(trainer)
    steady_workers(trainer)
    # TRL's card would overwrite a README.md of the user's in output_dir; ours is in model/.
    trainer.create_model_card = lambda *_args, **_kwargs: None
    return trainer, clock


def _callbacks(run: _Run, clock: Any) -> list[Any]:
    from hbo.run.callbacks import LineCallback, StopCallback, ValidationCallback

    names = [part.name for part in run.prepared.parts]
    return [StopCallback(run.stop), LineCallback(), ValidationCallback(run.log, names, clock)]


def _evaluates(training: Any) -> bool:
    return training.eval_strategy != "no" or bool(training.eval_on_start)


def _validation(prepared: Prepared) -> dict[str, Any]:
    """Validation examples of each subset as the trainer's ``eval_dataset``."""
    from datasets import Dataset

    return {
        part.name: Dataset.from_dict(
            {
                "input_ids": [item.encoded.input_ids.tolist() for item in part.validation],
                "labels": [item.encoded.labels.tolist() for item in part.validation],
            }
        )
        for part in prepared.parts
    }


def _finish(run: _Run, trainer: Any, summary: dict[str, Any]) -> None:
    """Save the model, the summary and the report; the summary last, as it says that all is done."""
    from hbo.reports import write_report
    from hbo.run.card import write_card

    trainer.save_model(str(run.folder / files.MODEL))
    if not is_main():
        return
    # A pickle of the trainer's arguments: config.yaml says the same in plain text.
    (run.folder / files.MODEL / "training_args.bin").unlink(missing_ok=True)
    write_card(run.loaded.config, summary, run.folder / files.MODEL)
    run.log.write("end", step=summary["steps"], summary=finite(summary))
    heldout = examples_to_json(run.prepared, summary["steps"], run.measured)
    write_whole(run.folder / files.HELDOUT, json_text(heldout, indent=None))
    write_whole(run.folder / files.SUMMARY, json_text(summary))
    write_report(run.folder)
