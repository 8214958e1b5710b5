"""What balancing adds to training: plain SFTTrainer, fixed weights, hbo observed, hbo probed.

    python benchmarks/overhead.py [--quick] [--json FILE] [--model NAME] [--device cuda]
        [--tuning lora|full] [--batch 64] [--interval 200] [--measured-batch 8] [--steps 4]

All four train the same model on the same examples in the same order (checked), in turn. A whole
interval would take hours on a CPU, so a step and an update are timed apart and put together:

    ratio = (interval x their step + their update) / (interval x plain step)

with a step of ``batch`` examples taken as ``batch / measured-batch`` measured ones: what is ours
in a step then counts that many times, so the ratio errs upwards. A step is the time from the end
of one to the end of the next, loading, logging (each step) and callbacks included. "Own" is what
our own stopwatch counted in a step: watching the losses, taking them in, logging.

``hbo observed`` is the default: losses and gradient norms from training. The norms are timed on
every step, and counted on one step in so many as the default measures (each under LoRA, one in ten
in full fine-tuning). Its update tops up what an interval shows too little of, found by filling the
tables with a whole interval's draws first. ``hbo probed`` measures what the paper's released code
does: 64 examples of each subset forward only, 32 forward and backward. The floor is what operation
counts say of it all (forward 1, backward 2, by tokens). ``--share 8`` measures the probed update on
an eighth of its examples and takes the time eight times. The last three lines: the median ratios.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import common
import material
import numpy as np
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from hbo import BalancedSFTTrainer, Balancer
from hbo.cli.output import quiet_libraries
from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN
from hbo.integrations.observed_norms import steps_apart
from hbo.integrations.options import BalanceOptions
from hbo.integrations.top_up import lacking
from hbo.observations import loss_signals
from hbo.signals import GRADIENT_NORM

SEED = 0
NEVER = 10**6
FORWARD_EXAMPLES, BACKWARD_EXAMPLES = 64, 32
"""Examples of each subset that the released code's probes take."""

PLAIN, STATIC, OBSERVED, PROBED = "plain", "static", "observed", "probed"
OURS = (STATIC, OBSERVED, PROBED)


class Clock(TrainerCallback):
    """When each optimiser step ended, as seen at this place among the callbacks."""

    def __init__(self, now: common.Clock) -> None:
        self.now = now
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(self.now())


class Filling(TrainerCallback):
    """Fills the tables of a balancer at a step, before its update."""

    def __init__(self, bench: Bench, step: int) -> None:
        self.bench = bench
        self.step = step
        self.balancer: Balancer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """If it is time."""
        if self.balancer is not None and state.global_step == self.step:
            self.bench.fill(self.balancer)


@dataclass(frozen=True)
class Bench:
    """Trainers of four kinds on one mixture, and how long they take.

    Args:
        made: Model and data.
        tuning: ``lora`` or ``full``.
        batch: Examples of a measured step.
        steps: Steps of one measurement; one more goes before.
        share: Measured updates of ``PROBED`` take one in so many of its examples.
        whole_batch: Examples of a step that is put together.
        interval: Steps between updates that are put together.
        own: Filled as it goes: wall seconds a step that our code says it took, by kind.
    """

    made: material.Material
    tuning: str
    batch: int
    steps: int
    share: int = 1
    whole_batch: int = 64
    interval: int = 200
    own: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def mixture(self) -> Any:
        """The mixture that all train on."""
        return self.made.mixture()

    @cached_property
    def drawn(self) -> tuple[np.ndarray, str]:
        """Ids that fixed proportional weights draw, and the hash of them."""
        return material.drawn(self.mixture, self.batch, self.steps + 1, SEED)

    def trainer(
        self, kind: str, folder: str, interval: int, callbacks: Sequence[Any] = (), share: int = 1
    ) -> Any:
        """A trainer with a fresh model: ``PLAIN`` without us, reading what we would have drawn."""
        on_cpu = self.made.device == "cpu"
        args = SFTConfig(
            folder,
            max_steps=self.steps + 1,
            per_device_train_batch_size=self.batch,
            learning_rate=1e-5,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            activation_checkpointing=False,
            seed=SEED,
            train_sampling_strategy="sequential" if kind == PLAIN else "random",
        )
        model = self.made.model(self.tuning)
        common_arguments = {"processing_class": self.made.tokenizer, "callbacks": [*callbacks]}
        if kind == PLAIN:
            rows = self.mixture.dataset.select(self.drawn[0]).flatten_indices()
            rows = rows.remove_columns([ID_COLUMN, FIRST_LOSS_COLUMN])
            return SFTTrainer(model, args, train_dataset=rows, **common_arguments)
        trainer = BalancedSFTTrainer(
            model,
            args,
            mixture=self.mixture,
            policy="prop" if kind == STATIC else material.paid_norms(update_interval=interval),
            balance=BalanceOptions(
                signals="probe" if kind == PROBED else "observed",
                measure_every=None if kind == PROBED else 1,
            ),
            **common_arguments,
        )
        if kind == PROBED:
            groups = self.mixture.mixture.num_groups
            trainer.engine.probe = replace(
                trainer.engine.probe,
                examples_per_cell=max(FORWARD_EXAMPLES // groups // share, 1),
                gradient_examples_per_cell=max(BACKWARD_EXAMPLES // groups // share, 1),
            )
        return trainer

    @cached_property
    def every(self) -> int:
        """One step in how many shows its norms, in an interval of whole steps."""
        return steps_apart(self.tuning == "lora", self.interval)

    def fill(self, balancer: Balancer) -> None:
        """Let the tables hold as many values as an interval of whole steps shows."""
        draws = self.whole_batch * self.interval
        ids = np.concatenate(list(balancer.look_ahead(balancer.position, draws)))
        balancer.observe(ids, loss_signals(np.ones(draws), np.ones(draws)))
        measured = ids[: draws // self.every]
        balancer.observe(measured, {GRADIENT_NORM: np.ones(len(measured))})

    def train(self, kind: str, interval: int) -> tuple[Any, Clock, Clock]:
        """Train; the trainer, a clock before our callback and one after it."""
        before, after = Clock(self.made.now), Clock(self.made.now)
        with tempfile.TemporaryDirectory() as folder, quiet_libraries(stdout=True):
            filling = Filling(self, self.steps + 1 if interval <= self.steps + 1 else NEVER)
            trainer = self.trainer(kind, folder, interval, [filling, before], self.share)
            filling.balancer = None if kind != OBSERVED else trainer.balancer
            trainer.add_callback(after)
            trainer.train()
        gc.collect()  # the last trainer's model, which its cycles keep alive
        if kind != PLAIN and trainer.balancer.stream_sha256 != self.drawn[1]:
            raise RuntimeError(f"{kind} trained on other examples than the rest")
        return trainer, before, after

    def step_seconds(self, kind: str) -> float:
        """Mean seconds of a step without an update in it."""
        trainer, _, after = self.train(kind, NEVER)
        if kind != PLAIN:
            own = trainer.balance_summary()["balance_seconds"] / (self.steps + 1)
            self.own.setdefault(kind, []).append(own)
        return (after.times[-1] - after.times[0]) / self.steps

    def update_seconds(self, kind: str) -> float:
        """Seconds of the update at the end of a training."""
        _, before, after = self.train(kind, self.steps + 1)
        taken = after.times[-1] - before.times[-1]
        return taken * self.share if kind == PROBED else taken

    def floor(self, kind: str) -> dict[str, float]:
        """What operation counts say: the passes of an update, and the ratio they come to."""
        with tempfile.TemporaryDirectory() as folder, quiet_libraries():
            trainer = self.trainer(kind, folder, self.interval)
        engine, model = trainer.engine, trainer.model
        probe, wanted = engine.probe, engine.balancer.policy.needs
        todo = [(engine.probed & wanted, None)]
        if kind == OBSERVED:
            self.fill(engine.balancer)
            engine.balancer.observations.gather()
            todo = list(lacking(engine.balancer, probe, model, wanted, engine.options.top_up))
        forward = backward = np.empty(0, np.int64)
        for names, cells in todo:
            if names - {GRADIENT_NORM}:
                forward = probe.cell_examples(0, probe.examples_per_cell, cells)
            if GRADIENT_NORM in names:
                count = probe.gradient_examples_per_cell or probe.examples_per_cell
                backward = probe.cell_examples(0, count, cells)
        lengths = np.array([len(ids) for ids in self.mixture.dataset["input_ids"]])
        trained = lengths[self.drawn[0]].mean()
        work = lengths[forward].sum() + 3 * lengths[backward].sum()
        ratio = 1 + work / (3 * trained * self.whole_batch * self.interval)
        if kind == OBSERVED:
            ratio += norms_share(model, float(trained)) / self.every
        return {
            "forward_examples": len(forward),
            "backward_examples": len(backward),
            "ratio": float(ratio),
        }


def norms_share(model: Any, length: float) -> float:
    """Operations of reading norms off a step, as a share of the step's own.

    Of a matrix of I x O either two Gram matrices of T x T, T^2 (I + O), or the gradient itself,
    T I O, whichever is less; a step makes three products T I O of every matrix.

    Args:
        model: The model in training.
        length: T, tokens of an example.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = sum(min(length * sum(p.shape), p.numel()) for p in matrices if p.requires_grad)
    return float(norms / (3 * sum(p.numel() for p in matrices)))


def combined(
    measured: dict[str, list[float]], scale: float, interval: int, every: int
) -> dict[str, Any]:
    """Ratios to plain of every round, whole intervals of steps of the full batch.

    One step in ``every`` of ``OBSERVED`` is as measured, the others are those of ``STATIC``.
    """
    found = {}
    pairs = zip(measured[OBSERVED], measured[STATIC], strict=True)
    mixed = [still + (shown - still) / every for shown, still in pairs]
    measured = measured | {OBSERVED: mixed}
    for kind in OURS:
        updates = measured.get(f"{kind} update")
        extra = [seconds / (interval * scale) for seconds in updates or [0.0]]
        # Updates may be measured in fewer rounds than steps: then the median update counts.
        update = float(np.median(extra))
        ours = [step + update for step in measured[kind]]
        low, high = common.spread(ours, measured[PLAIN])
        found[kind] = {
            "ratio": common.ratio(ours, measured[PLAIN]),
            "low": low,
            "high": high,
            "step": common.ratio(measured[kind], measured[PLAIN]),
            "update": float(np.median([update / seconds for seconds in measured[PLAIN]])),
            "update_seconds": float(np.median(updates)) if updates else 0.0,
        }
    return found


def measure(bench: Bench, rounds: int, updates: int) -> dict[str, list[float]]:
    """Seconds of steps of all four in turn, and of updates in the first ``updates`` rounds."""
    steps = {kind: lambda kind=kind: bench.step_seconds(kind) for kind in (PLAIN, *OURS)}
    with_updates = steps | {
        f"{kind} update": lambda kind=kind: bench.update_seconds(kind)
        for kind in (OBSERVED, PROBED)
    }
    measured = common.interleaved(with_updates, updates)
    for kind, values in common.interleaved(steps, rounds - updates).items():
        measured[kind] += values
    return measured


def report(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    plain = np.median(result["measured"][PLAIN])
    rows = [[PLAIN, f"{plain:.3f}", "1", "", "", "", "1", "", "1"]]
    for kind in OURS:
        found, floor = result["ratios"][kind], result["floors"].get(kind)
        rows.append(
            [
                kind,
                f"{np.median(result['measured'][kind]):.3f}",
                f"{found['step']:.3f}",
                f"{1000 * np.median(result['own'][kind]):.2f}",
                f"{found['update_seconds']:.2f}",
                f"{found['update']:.4f}",
                f"{found['ratio']:.3f}",
                f"{found['low']:.3f} to {found['high']:.3f}",
                "1" if floor is None else f"{floor['ratio']:.3f}",
            ]
        )
    size = options.measured_batch
    heads = ["trainer", f"step of {size}, s", "step / plain", "own, ms a step", "update, s"]
    heads.append("update / plain interval")
    common.table([*heads, "whole / plain", "of the rounds", "floor"], rows)
    for kind, floor in result["floors"].items():
        common.say(
            f"an update of {kind}: {floor['forward_examples']} examples forward only, "
            f"{floor['backward_examples']} forward and backward"
        )
    common.say(
        f"whole: {options.interval} steps of {options.batch} examples and one update, put together"
        f" from measured steps of {size} and measured updates"
    )
    common.say(f"observed: norms of one step in {result['every']}; timed on each")
    if options.share > 1:
        common.say(
            f"an update of probed was measured on one in {options.share} of its examples, and its"
            f" time taken {options.share} times"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; small numbers for what ``--quick`` is not told."""
    parser = material.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--tuning", choices=material.TUNINGS, default="lora")
    parser.add_argument("--batch", type=int, default=64, help="examples of an optimiser step")
    parser.add_argument("--interval", type=int, default=200, help="steps between updates")
    parser.add_argument("--measured-batch", type=int, help="examples of a measured step (8)")
    parser.add_argument("--steps", type=int, help="steps of one measurement (4)")
    parser.add_argument(
        "--share", type=int, default=1, help="probe one in so many examples, and multiply the time"
    )
    parser.add_argument("--updates", type=int, help="rounds in which updates are measured (all)")
    options = parser.parse_args(argv)
    small = options.quick
    options.measured_batch = options.measured_batch or (4 if small else 8)
    options.steps = options.steps or (2 if small else 4)
    options.rounds = options.rounds or (1 if small else 5)
    options.updates = min(options.updates or options.rounds, options.rounds)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    options = parse(argv)
    made = material.make(options)
    sizes = (options.measured_batch, options.steps, options.share, options.batch, options.interval)
    bench = Bench(made, options.tuning, *sizes)
    result = material.facts("overhead", options, made)
    result["measured"] = measure(bench, options.rounds, options.updates)
    result["own"] = bench.own
    scale = options.batch / options.measured_batch
    result["every"] = bench.every
    result["ratios"] = combined(result["measured"], scale, options.interval, bench.every)
    result["floors"] = {kind: bench.floor(kind) for kind in (OBSERVED, PROBED)}
    report(result, options)
    if options.json:
        common.write(options.json, result)
    for kind in OURS:
        common.say(f"{kind} {result['ratios'][kind]['ratio']:.3f}")


if __name__ == "__main__":
    main()
