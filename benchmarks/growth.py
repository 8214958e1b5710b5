"""How the cost of balancing grows: with subsets, with the model's size, with sequence length.

    python benchmarks/growth.py [--quick] [--json FILE] [--parts subsets,model,length]
        [--device cuda] [--memory 16]

- *subsets*: 4 to 4,096 subsets of four groups, without a model. A step is all of ours in it: the
  loader's draws, watching the losses of a batch of 64, taking them in. An update chooses examples
  to fill up the cells that training showed too little of, takes in made-up values and moves the
  actors: no example is run. State is that of a checkpoint after the updates.
- *model*: a training step without an optimiser (which would make the ratio smaller), beside the
  same step with the gradient norm of each of its examples, on random Llamas of 10 M parameters to
  the largest whose weights and gradients fit in `--memory` GiB of fp32; 4 examples of 128 tokens.
- *length*: the same two on a model of 30 M parameters, fully trained, with 4,096 tokens a step in
  examples of 128 to 4,096 tokens; and a probe of the norms of those examples.

The last lines: `step_ms_1000 X`, milliseconds of ours a step with 1,000 subsets; `norms_largest R`,
the ratio of the two steps on the largest model, of the worse tuning; `norms_longest R`, that of the
longest examples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import material
import numpy as np
import torch
from torch import nn

from hbo import Balancer, Mixture
from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN
from hbo.integrations.engine import Engine
from hbo.integrations.options import BalanceOptions
from hbo.measure.examples import Encoded
from hbo.measure.gradient_norm import example_gradient_norms
from hbo.measure.probe import Probe, ProbeValues
from hbo.measure.training_norms import TrainingNorms
from hbo.runlog import RunLog
from hbo.signals import GRADIENT_NORM

PARTS = ("subsets", "model", "length")
GROUPS, BATCH, INTERVAL, UPDATES, CHECKPOINTS = 4, 64, 200, 4, 5
CELL = 256
"""Examples of each group of a subset."""

SIZES = {
    "10 M": (256, 10),
    "30 M": (384, 15),
    "100 M": (640, 19),
    "360 M": (1024, 28),
    "1 B": (1792, 26),
    "3 B": (3072, 28),
}
"""Width and layers of a Llama with about so many parameters."""
QUICK_SIZES = {"tiny": (64, 1), "small": (128, 1)}
VOCABULARY = 8192
PLAIN, NORMS, PROBE = "plain", "norms", "probe"


@dataclass(frozen=True, eq=False)
class MadeUp(Probe):
    """Chooses examples as a probe does, and makes up what it would measure on them.

    Args:
        passes: Filled as it goes: forward passes that each measurement would take, a backward pass
            counting as two.
    """

    passes: list[int] = field(default_factory=list)

    def measure(
        self, model: nn.Module, wanted: Any, number: int, *, cells: Any = None, **ranks: Any
    ) -> ProbeValues:
        """Values of the wanted signals."""
        ids = self.cell_examples(number, self.examples_per_cell, cells)
        self.passes.append(len(ids) * (3 if GRADIENT_NORM in wanted else 1))
        values = np.random.default_rng(number).lognormal(size=len(ids))
        return ProbeValues(dict.fromkeys(wanted, (ids, values)), {}, 0, len(ids))


class Shown(nn.Module):
    """A model that shows the log-probabilities of a batch, as TRL's forward does."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(1, 1)
        generator = torch.Generator().manual_seed(0)
        self.log_probs = -torch.rand(BATCH, 64, generator=generator)

    def forward(self) -> Any:
        """The same for every batch."""
        mask = torch.ones_like(self.log_probs, dtype=torch.bool)
        return SimpleNamespace(log_probs=self.log_probs, label_mask=mask)


class Toy:
    """A training without a model.

    Args:
        subsets: How many.
        clock: Of its times.
        folder: For the run log.
    """

    def __init__(self, subsets: int, clock: common.Clock, folder: str) -> None:
        names = tuple(f"subset-{number:04}" for number in range(subsets))
        mixture = Mixture(names, np.full((subsets, GROUPS), CELL))
        self._mixture, self._clock = mixture, clock
        self._log = RunLog(Path(folder) / "run.jsonl")
        self.passes: list[int] = []
        self.model, self.engine = Shown(), self.fresh()
        self.engine.start(self.model, 0, None)
        self._reader = self.engine.balancer.look_ahead(0, BATCH * INTERVAL * (UPDATES + 1))
        self._generator = np.random.default_rng(0)

    def fresh(self) -> Engine:
        """Its engine before the first step."""
        policy, mixture = material.paid_norms(update_interval=INTERVAL), self._mixture
        # Norms come with a backward pass, and there is none: they are handed in.
        options = BalanceOptions(measure_every=INTERVAL * (UPDATES + 1))
        few = options.probe_examples // GROUPS
        return Engine(
            lambda: Balancer(mixture, policy, seed=0, draws_per_step=BATCH),
            options,
            MadeUp(mixture, lambda _ids: [], np.ones_like, few, passes=self.passes),
            self._log,
            first_losses=np.ones(mixture.num_subsets),
        )

    def step(self) -> float:
        """Seconds of ours in one optimiser step."""
        start = self._clock()
        ids = next(self._reader)
        batch = {ID_COLUMN: torch.from_numpy(ids), FIRST_LOSS_COLUMN: torch.ones(BATCH)}
        with self.engine.observer.batch(batch):
            self.model()
        watched = self._clock() - start
        norms = self._generator.lognormal(size=BATCH)
        self.engine.balancer.observe(ids, {GRADIENT_NORM: norms})
        return watched + common.seconds(lambda: self.engine.finish_step(self.model), self._clock)

    def checkpoint(self) -> tuple[dict[str, float], int]:
        """Seconds of saving and resuming, part by part, and characters of the state."""
        times = [self._clock()]
        state = self.engine.state_dict()
        times.append(self._clock())
        text = json.dumps(state)
        times.append(self._clock())
        again = json.loads(text)
        times.append(self._clock())
        self.fresh().start(self.model, self.engine.balancer.step, again)
        times.append(self._clock())
        parts = np.diff(times).tolist()
        return dict(zip(("state", "write", "read", "load"), parts, strict=True)), len(text)


def subsets_row(subsets: int, clock: common.Clock) -> dict[str, float]:
    """Milliseconds of everything that is ours, the size of the state, and what is topped up."""
    names = ("step", "update", "log", "state", "write", "read", "load")
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        toy = Toy(subsets, clock, folder)
        for _ in range(UPDATES):
            steps = [toy.step() for _ in range(INTERVAL - 1)]
            taken["step"] += steps
            taken["log"].append(common.seconds(toy.engine.log_window, clock))
            taken["update"].append(toy.step() - float(np.median(steps)))
        for _ in range(CHECKPOINTS):
            parts, characters = toy.checkpoint()
            for name, seconds in parts.items():
                taken[name].append(seconds)
        work = sum(toy.passes) / (3 * BATCH * INTERVAL * UPDATES)
    found = {name: 1000 * float(np.median(values)) for name, values in taken.items()}
    return found | {"bytes": characters, "topped_up": work}


@dataclass(frozen=True)
class Steps:
    """Training steps of one model on one batch, without an optimiser.

    Args:
        made: Device and clock.
        model: In training mode.
        ids: (B, T) tokens, all of them trained on.
    """

    made: material.Material
    model: Any
    ids: torch.Tensor

    def _forward(self) -> Any:
        self.model.zero_grad()
        dtype = self.made.dtype
        with torch.autocast(
            self.made.device, dtype=dtype or torch.bfloat16, enabled=dtype is not None
        ):
            return self.model(input_ids=self.ids, labels=self.ids, use_cache=False)

    def plain(self) -> None:
        """Forward and backward."""
        self._forward().loss.backward()

    def norms(self) -> None:
        """The same, and the norm of each example's gradient read off."""
        norms = TrainingNorms(self.model, "blocks")
        measured = norms.begin(len(self.ids))
        output = self._forward()
        measured.watch(output, self.ids)
        output.loss.backward()
        norms.release()
        if not measured.norms().isfinite().all():
            raise RuntimeError("a gradient norm is not finite")

    def probe(self) -> None:
        """A probe of the same examples."""
        examples = [Encoded(row, row) for row in self.ids.cpu().numpy()]
        example_gradient_norms(self.model, examples, dtype=self.made.dtype)

    def measure(self, names: Sequence[str], rounds: int) -> dict[str, Any]:
        """Seconds of each in turn, and ratios to plain; each runs once before, to warm up."""
        works: dict[str, Callable[[Steps], None]] = {
            PLAIN: Steps.plain,
            NORMS: Steps.norms,
            PROBE: Steps.probe,
        }
        contenders = {}
        for name in names:
            works[name](self)  # memory that a first pass asks the system for is no cost of a step
            contenders[name] = lambda work=works[name]: self.made.seconds(lambda: work(self))
        measured = common.interleaved(contenders, rounds)
        self.model.zero_grad()
        ratios = {name: common.ratio(measured[name], measured[PLAIN]) for name in names}
        low, high = common.spread(measured[NORMS], measured[PLAIN])
        return {"measured": measured, "ratios": ratios, "low": low, "high": high}


def llama(size: tuple[int, int], tuning: str, device: str) -> Any:
    """A random Llama in training mode, fp32, whole or under LoRA adapters."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = size
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    if tuning == "lora":
        model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))
    return model.train().to(device)


def parameters(size: tuple[int, int]) -> int:
    """Of that model, near enough."""
    width, layers = size
    return VOCABULARY * width + 12 * layers * width**2


def tokens(examples: int, length: int, device: str) -> torch.Tensor:
    """Random ids."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (examples, length), generator=generator).to(device)


def model_rows(options: argparse.Namespace, made: material.Material) -> list[dict[str, Any]]:
    """Steps with and without norms, by size and tuning."""
    rows, sizes = [], QUICK_SIZES if options.quick else SIZES
    for name, size in sizes.items():
        for tuning in material.TUNINGS:
            copies = 2 if tuning == "full" else 1
            if 4 * copies * parameters(size) > options.memory * 2**30:
                continue
            ids = tokens(4, 16 if options.quick else 128, made.device)
            steps = Steps(made, llama(size, tuning, made.device), ids)
            found = steps.measure((PLAIN, NORMS), options.rounds)
            count = sum(p.numel() for p in steps.model.parameters())
            rows.append({"model": name, "parameters": count, "tuning": tuning, **found})
    return rows


def length_rows(options: argparse.Namespace, made: material.Material) -> list[dict[str, Any]]:
    """The same by length, and a probe."""
    total = 64 if options.quick else 4096
    size = QUICK_SIZES["tiny"] if options.quick else SIZES["30 M"]
    model, rows = llama(size, "full", made.device), []
    for length in (16, 64) if options.quick else (128, 256, 512, 1024, 2048, 4096):
        steps = Steps(made, model, tokens(total // length, length, made.device))
        found = steps.measure((PLAIN, NORMS, PROBE), options.rounds)
        rows.append({"length": length, "examples": total // length, **found})
    return rows


def report_subsets(rows: Sequence[dict[str, float]]) -> None:
    """Print the table of the first part."""
    names = ("step", "update", "log", "state", "write", "read", "load")
    lines = []
    for row in rows:
        cells = [f"{row[name]:.3g}" for name in names]
        size, top_up = f"{row['bytes'] / 2**20:.3f}", f"{row['topped_up']:.4f}"
        lines.append([f"{row['subsets']:,}", *cells, size, top_up])
    heads = ["step", "update", "log_window", "state_dict", "to JSON", "from JSON", "load"]
    units = [f"{head}, ms" for head in heads]
    common.table(["subsets x 4", *units, "JSON, MiB", "topped up / trained"], lines)
    common.say(
        f"{UPDATES} updates, {INTERVAL} steps of {BATCH} apart; topped up / trained: what probes "
        "would add to training, by operation counts"
    )


def report_model(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of the second part."""
    lines = []
    for row in rows:
        middle = common.medians(row["measured"])
        cells = [f"{middle[name]:.3f}" for name in (PLAIN, NORMS)]
        spread = f"{row['low']:.3f} to {row['high']:.3f}"
        size = f"{row['parameters'] / 1e6:,.0f} M"
        lines.append([size, row["tuning"], *cells, f"{row['ratios'][NORMS]:.3f}", spread])
    heads = ["parameters", "tuning", "plain, s", "with norms, s", "norms / plain"]
    common.table([*heads, "of the rounds"], lines)


def report_length(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of the third part."""
    lines = []
    for row in rows:
        middle, count, ratios = common.medians(row["measured"]), row["examples"], row["ratios"]
        each = [f"{middle[name] / count:.3f}" for name in (PLAIN, NORMS, PROBE)]
        spread = f"{row['low']:.3f} to {row['high']:.3f}"
        cells = [f"{ratios[NORMS]:.3f}", spread, f"{ratios[PROBE]:.3f}"]
        lines.append([f"{row['length']:,}", f"{count}", *each, *cells])
    heads = ["tokens an example", "examples", "plain, s an example", "with norms", "probe"]
    common.table([*heads, "norms / plain", "of the rounds", "probe / plain"], lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas (all)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (bf16 autocast)")
    parser.add_argument("--clock", choices=sorted(common.CLOCKS), default="wall")
    parser.add_argument("--rounds", type=int, help="measurements of each contender")
    parser.add_argument("--memory", type=float, default=16, help="GiB of weights and gradients")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    options = parse(argv)
    made = material.Material("", options.device, options.clock, {})
    result, last = material.facts("growth", options, made), []
    if "subsets" in options.parts:
        clock, counts = common.CLOCKS[options.clock], (4, 16, 64, 256, 1000, 4096)
        rows: list[dict[str, Any]] = [
            {"subsets": count, **subsets_row(count, clock)}
            for count in ((4, 1000) if options.quick else counts)
        ]
        result["subsets"] = rows
        report_subsets(rows)
        step = next(row["step"] for row in rows if row["subsets"] == 1000)
        last.append(f"step_ms_1000 {step:.3f}")
    if "model" in options.parts:
        result["model"] = rows = model_rows(options, made)
        report_model(rows)
        largest = [row for row in rows if row["model"] == rows[-1]["model"]]
        last.append(f"norms_largest {max(row['ratios'][NORMS] for row in largest):.3f}")
    if "length" in options.parts:
        result["length"] = rows = length_rows(options, made)
        report_length(rows)
        last.append(f"norms_longest {rows[-1]['ratios'][NORMS]:.3f}")
    if options.json:
        common.write(options.json, result)
    for line in last:
        common.say(line)


if __name__ == "__main__":
    main()
