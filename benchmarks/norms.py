"""What gradient norms of single examples cost: in a training step, and in a probe.

    python benchmarks/norms.py [--quick] [--json FILE] [--model NAME] [--device cuda]

The same batches go, in turn, through a plain training pass (forward and backward, without an
optimiser step), through the same pass with the norms of its examples read off it
(`TrainingNorms`), through a probe (`example_gradient_norms`) and through one backward pass for each
example (`norms_one_by_one`), under LoRA and with all weights trained. In fp32 all norms have to
agree. A norm covers all trained parameters (`all`) or, with all weights trained, all but those of
embeddings and output head as well (`blocks`, what a full fine-tuning reads off by default).

The last line, `norms R`, is a training pass with norms over a plain one, of the worse of LoRA
(`all`) and full fine-tuning (`blocks`). It is what a *measured* step costs: one step in
`measure_every` is. `probe R` before it is the cost of a probe over that of plain passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import material
import numpy as np
import torch

from hbo.measure.batches import TokenBudget, collate
from hbo.measure.examples import Encoded
from hbo.measure.gradient_norm import example_gradient_norms, norms_one_by_one
from hbo.measure.taps import Scope
from hbo.measure.training_norms import TrainingNorms

PLAIN, PROBE, ONE_BY_ONE = "plain", "probe", "one by one"
SCOPES: dict[str, tuple[Scope, ...]] = {"lora": ("all",), "full": ("blocks", "all")}
"""What the norms of a training pass cover; the first one is in the last line."""
TOLERANCE = 1e-3
"""Relative, fp32: a benchmark of wrong numbers says nothing. The tests ask for more."""


@dataclass(frozen=True)
class Bench:
    """One model under one tuning, and its examples.

    Args:
        made: Model and data.
        model: Loaded.
        examples: Whose norms are measured.
        tokens: Padded tokens of a batch.
        scopes: What the norms of a training pass cover.
    """

    made: material.Material
    model: Any
    examples: Sequence[Encoded]
    tokens: int
    scopes: tuple[Scope, ...]

    @property
    def pad_id(self) -> int:
        """Any id of the vocabulary."""
        return int(self.made.tokenizer.pad_token_id or 0)

    def probe(self) -> np.ndarray:
        """All norms, by passes of their own."""
        return example_gradient_norms(
            self.model,
            self.examples,
            tokens_per_batch=self.tokens,
            pad_id=self.pad_id,
            dtype=self.made.dtype,
        )

    def one_by_one(self, scope: Scope = "all") -> np.ndarray:
        """The slow way."""
        return norms_one_by_one(self.model, self.examples, scope=scope, dtype=self.made.dtype)

    def train(self, scope: Scope | None = None) -> np.ndarray:
        """What training does with the same batches, and the norms if a scope is given."""
        self.model.train()
        norms = None if scope is None else TrainingNorms(self.model, scope)
        found = np.zeros(len(self.examples))
        for indices, values in TokenBudget(self.tokens).run(
            self.examples, lambda examples: self._step(examples, norms)
        ):
            found[indices] = values
        self.model.zero_grad()
        return found

    def _step(self, examples: Sequence[Encoded], norms: TrainingNorms | None) -> np.ndarray:
        kind, dtype = self.made.device, self.made.dtype
        batch = collate(examples, self.pad_id).to(torch.device(kind))
        inputs = {key: value for key, value in vars(batch).items() if value is not None}
        measured = None if norms is None else norms.begin(len(examples))
        with torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = self.model(**inputs, use_cache=False)
        if measured is not None:
            measured.watch(output, batch.labels)
        output.loss.backward()
        if norms is None or measured is None:
            return np.zeros(len(examples))
        norms.release()
        return measured.norms().double().cpu().numpy()

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Seconds of each way."""
        works: dict[str, Callable[[], object]] = {PLAIN: self.train}
        works |= {scope: lambda scope=scope: self.train(scope) for scope in self.scopes}
        works |= {PROBE: self.probe, ONE_BY_ONE: self.one_by_one}
        return {name: lambda work=work: self.made.seconds(work) for name, work in works.items()}

    def difference(self) -> float:
        """The largest relative difference of any norm from that of a backward pass of its own."""
        worst = 0.0
        for scope in self.scopes:
            slow = self.one_by_one(scope)
            for fast in (self.train(scope), *([self.probe()] if scope == "all" else [])):
                worst = max(worst, float(np.max(np.abs(fast - slow) / slow)))
        return worst


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Seconds, ratios and the difference of one tuning; the difference comes first, to warm up."""
    difference = bench.difference()
    if bench.made.dtype is None and difference > TOLERANCE:
        raise RuntimeError(f"norms differ by {difference:.1e} from one backward pass each")
    measured = common.interleaved(bench.contenders(), rounds)
    ways = [name for name in measured if name != PLAIN]
    return {
        "measured": measured,
        "difference": difference,
        "ratio": common.ratio(measured[bench.scopes[0]], measured[PLAIN]),
        "ratios": {name: common.ratio(measured[name], measured[PLAIN]) for name in ways},
        "spread": {name: common.spread(measured[name], measured[PLAIN]) for name in ways},
    }


def report(result: dict[str, Any]) -> None:
    """Print the table."""
    rows = []
    for tuning, found in result["tunings"].items():
        middle = common.medians(found["measured"])
        rows.append([tuning, PLAIN, f"{middle[PLAIN]:.3f}", "1", ""])
        for name, ratio in found["ratios"].items():
            low, high = found["spread"][name]
            way = f"plain with norms, {name}" if name in SCOPES[tuning] else name
            span = f"{low:.3f} to {high:.3f}"
            rows.append([tuning, way, f"{middle[name]:.3f}", f"{ratio:.3f}", span])
        common.say(f"{tuning}: largest relative difference {found['difference']:.1e}")
    common.say()
    common.table(["tuning", "passes", "seconds", "over plain", "of the rounds"], rows)
    common.say(f"{result['examples']} examples of {result['tokens']:,} tokens")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    parser = material.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--examples", type=int, help="examples whose norms are measured (32)")
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="padded, of a batch")
    options = parser.parse_args(argv)
    options.examples = options.examples or (8 if options.quick else 32)
    options.rounds = options.rounds or (1 if options.quick else 5)
    made = material.make(options)
    result = material.facts("norms", options, made)
    examples = made.examples(options.examples)
    result["tokens"] = sum(example.num_tokens for example in examples)
    result["tunings"] = {}
    for tuning in material.TUNINGS:
        model = made.model(tuning)
        bench = Bench(made, model, examples, options.tokens_per_batch, SCOPES[tuning])
        result["tunings"][tuning] = measure(bench, options.rounds)
    report(result)
    if options.json:
        common.write(options.json, result)
    tunings = result["tunings"].values()
    for tuning, found in result["tunings"].items():
        common.say(f"{tuning} {found['ratio']:.3f}")
    common.say(f"probe {max(found['ratios'][PROBE] for found in tunings):.3f}")
    common.say(f"norms {max(found['ratio'] for found in tunings):.3f}")


if __name__ == "__main__":
    main()
