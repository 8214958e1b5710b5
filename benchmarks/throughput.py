"""Tokens a second of training: BalancedSFTTrainer against TRL's SFTTrainer in the same mode.

    python benchmarks/throughput.py [--quick] [--json FILE] [--model NAME] [--device cuda]
        [--tuning lora|full] [--batch 8] [--row 512] [--steps 4] [--clock cpu]

Three modes: padded batches, padding-free ones, and packed rows (TRL's ``bfd``, packed inside each
cell by ours). In each mode both train the same model on the same rows in the same order (the stream
of fixed proportional weights, checked), in turn: TRL, ours, TRL, ours. What is measured are the
steps after the first, from the end of one to the end of the next: loading, collating, logging (each
step) and callbacks included. Tokens are those that are not padding. ``--row`` is how many a packed
row holds; a step of packed rows takes as many of them as come nearest to ``--batch`` examples.
"Own" is what our own stopwatch counted in a step. The last three lines are ours / TRL's: the median
over all pairs of the same step in the same round; more is better.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import common
import material
import numpy as np
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from hbo import BalancedSFTTrainer
from hbo.cli.output import quiet_libraries
from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN
from hbo.integrations.trl import pack_rows

SEED = 0
PADDED, PADDING_FREE, PACKING = "padded", "padding_free", "packing"
MODES = (PADDED, PADDING_FREE, PACKING)
TRL, OURS = "trl", "ours"


class Clock(TrainerCallback):
    """When each optimiser step ended; the last of the callbacks, so that all is counted."""

    def __init__(self, now: common.Clock) -> None:
        self.now = now
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.times.append(self.now())


@dataclass(frozen=True)
class Bench:
    """Two trainers of one mode on the same rows.

    Args:
        made: Model and data.
        mode: One of ``MODES``.
        tuning: ``lora`` or ``full``.
        batch: Examples of a step, about.
        row: Tokens of a packed row.
        steps: Measured steps of one training; one more goes before.
        seconds: Filled as it goes: of each measured step, by kind.
        own: Filled as it goes: wall seconds a step that our code says it took.
    """

    made: material.Material
    mode: str
    tuning: str
    batch: int
    row: int
    steps: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {TRL: [], OURS: []})
    own: list[float] = field(default_factory=list)

    @cached_property
    def mixture(self) -> Any:
        """The rows that are drawn."""
        mixture = self.made.mixture()
        return pack_rows(mixture, self.arguments("unused")) if self.mode == PACKING else mixture

    @cached_property
    def rows_per_step(self) -> int:
        """Rows of a step: as many as hold ``batch`` examples, about."""
        rows, examples = self.mixture.mixture.num_examples, self.made.mixture().mixture.num_examples
        return max(round(self.batch * rows / examples), 1)

    @cached_property
    def drawn(self) -> tuple[np.ndarray, str]:
        """Ids that fixed proportional weights draw, and the hash of them."""
        return material.drawn(self.mixture, self.rows_per_step, self.steps + 1, SEED)

    @cached_property
    def tokens(self) -> int:
        """Tokens of the measured steps."""
        measured = self.drawn[0][self.rows_per_step :].tolist()
        return sum(len(ids) for ids in self.mixture.dataset[measured]["input_ids"])

    def arguments(self, folder: str, **settings: Any) -> Any:
        """What both trainers are told."""
        on_cpu = self.made.device == "cpu"
        if self.mode == PACKING:
            settings |= {"packing": True, "max_length": self.row}
        else:
            settings |= {"padding_free": self.mode == PADDING_FREE, "max_length": None}
        return SFTConfig(
            folder,
            max_steps=self.steps + 1,
            learning_rate=1e-5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            activation_checkpointing=False,
            seed=SEED,
            **settings,
        )

    def trainer(self, kind: str, folder: str) -> Any:
        """A trainer with a fresh model: TRL's own reads what ours draws, in its order."""
        size = {"per_device_train_batch_size": self.rows_per_step}
        model, tokenizer = self.made.model(self.tuning), self.made.tokenizer
        if kind == OURS:
            args = self.arguments(folder, **size)
            return BalancedSFTTrainer(
                model, args, mixture=self.mixture, policy="prop", processing_class=tokenizer
            )
        args = self.arguments(folder, train_sampling_strategy="sequential", **size)
        if self.mode == PACKING:  # its rows are packed already
            args.packing, args.padding_free, args.max_length = False, True, None
        rows = self.mixture.dataset.select(self.drawn[0]).flatten_indices()
        rows = rows.remove_columns([ID_COLUMN, FIRST_LOSS_COLUMN])
        return SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)

    def rate(self, kind: str) -> float:
        """Tokens a second."""
        clock = Clock(self.made.now)
        with tempfile.TemporaryDirectory() as folder, quiet_libraries(stdout=True):
            trainer = self.trainer(kind, folder)
            trainer.add_callback(clock)
            trainer.train()
        gc.collect()  # the last trainer's model, which its cycles keep alive
        if kind == OURS:
            if trainer.balancer.stream_sha256 != self.drawn[1]:
                raise RuntimeError("ours trained on other rows than TRL's")
            self.own.append(trainer.balance_summary()["balance_seconds"] / (self.steps + 1))
        self.seconds[kind] += np.diff(clock.times).tolist()
        return self.tokens / (clock.times[-1] - clock.times[0])


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Rates of both in turn, and what they come to."""
    contenders = {kind: lambda kind=kind: bench.rate(kind) for kind in (TRL, OURS)}
    measured = common.interleaved(contenders, rounds)
    low, high = common.spread(measured[OURS], measured[TRL])
    return {
        "measured": measured,
        "seconds": bench.seconds,
        "own": bench.own,
        "rows": bench.rows_per_step,
        "tokens": bench.tokens,
        "ratio": common.ratio(bench.seconds[TRL], bench.seconds[OURS]),
        "low": low,
        "high": high,
    }


def report(found: dict[str, dict[str, Any]], steps: int) -> None:
    """Print the table."""
    heads = ["mode", "rows a step", "tokens a step", "TRL, tokens/s", "ours, tokens/s"]
    rows = []
    for mode, result in found.items():
        rates = common.medians(result["measured"])
        rows.append(
            [
                mode,
                str(result["rows"]),
                f"{result['tokens'] / steps:.0f}",
                f"{rates[TRL]:.1f}",
                f"{rates[OURS]:.1f}",
                f"{result['ratio']:.3f}",
                f"{result['low']:.3f} to {result['high']:.3f}",
                f"{1000 * np.median(result['own']):.2f}",
            ]
        )
    common.table([*heads, "ours / TRL", "of the rounds", "own, ms a step"], rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; small numbers for what ``--quick`` is not told."""
    parser = material.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--tuning", choices=material.TUNINGS, default="lora")
    parser.add_argument("--batch", type=int, default=8, help="examples of a step")
    parser.add_argument("--row", type=int, default=512, help="tokens of a packed row")
    parser.add_argument("--steps", type=int, help="measured steps of one training (4)")
    parser.add_argument("--mode", choices=MODES, action="append", help="only this one")
    options = parser.parse_args(argv)
    options.steps = options.steps or (2 if options.quick else 4)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.mode = options.mode or list(MODES)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    options = parse(argv)
    made = material.make(options)
    result = material.facts("throughput", options, made)
    result["modes"] = {
        mode: measure(
            Bench(made, mode, options.tuning, options.batch, options.row, options.steps),
            options.rounds,
        )
        for mode in options.mode
    }
    report(result["modes"], options.steps)
    if options.json:
        common.write(options.json, result)
    for mode, found in result["modes"].items():
        common.say(f"{mode} {found['ratio']:.3f}")


if __name__ == "__main__":
    main()
