"""Gradient norms of single examples beside one backward pass each, and beside plain training.

    python benchmarks/norms.py [--quick] [--json FILE] [--model NAME] [--device cuda]

The same examples go through `example_gradient_norms`, through `norms_one_by_one` (the slow,
obvious way) and through a plain forward and backward pass in the same batches, which leaves
gradients in the parameters as training does, without an optimiser step. Under LoRA and with all
weights trained, in turn; the first two have to agree. The last line, `norms R`, is the cost of
the norms over that of the plain passes, of the worse of the two tunings.
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
from hbo.measure.forward import token_losses
from hbo.measure.gradient_norm import example_gradient_norms, norms_one_by_one

NORMS, ONE_BY_ONE, PLAIN = "norms", "one by one", "plain"
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
    """

    made: material.Material
    model: Any
    examples: Sequence[Encoded]
    tokens: int

    @property
    def pad_id(self) -> int:
        """Any id of the vocabulary."""
        return int(self.made.tokenizer.pad_token_id or 0)

    def norms(self) -> np.ndarray:
        """The fast way."""
        return example_gradient_norms(
            self.model,
            self.examples,
            tokens_per_batch=self.tokens,
            pad_id=self.pad_id,
            dtype=self.made.dtype,
        )

    def one_by_one(self) -> np.ndarray:
        """The slow way."""
        return norms_one_by_one(self.model, self.examples, dtype=self.made.dtype)

    def plain(self) -> None:
        """What training does with the same batches, up to the optimiser."""
        self.model.train()
        kind, dtype = self.made.device, self.made.dtype

        def step(examples: list[Encoded]) -> None:
            batch = collate(examples, self.pad_id).to(torch.device(kind))
            with torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = token_losses(self.model, batch).mean()
            loss.backward()  # type: ignore[no-untyped-call]

        for _ in TokenBudget(self.tokens).run(self.examples, step):
            pass
        self.model.zero_grad()

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Seconds of each way."""
        works = {NORMS: self.norms, ONE_BY_ONE: self.one_by_one, PLAIN: self.plain}
        return {name: lambda work=work: self.made.seconds(work) for name, work in works.items()}

    def difference(self) -> float:
        """The largest relative difference between the fast way and the slow."""
        fast, slow = self.norms(), self.one_by_one()
        return float(np.max(np.abs(fast - slow) / slow))


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Seconds, ratios and the difference of one tuning; the difference comes first, to warm up."""
    difference = bench.difference()
    if bench.made.dtype is None and difference > TOLERANCE:
        raise RuntimeError(f"norms differ by {difference:.1e} from one backward pass each")
    measured = common.interleaved(bench.contenders(), rounds)
    low, high = common.spread(measured[NORMS], measured[PLAIN])
    return {
        "measured": measured,
        "difference": difference,
        "ratio": common.ratio(measured[NORMS], measured[PLAIN]),
        "low": low,
        "high": high,
        "faster": common.ratio(measured[ONE_BY_ONE], measured[NORMS]),
    }


def report(result: dict[str, Any]) -> None:
    """Print the table."""
    rows = []
    for tuning, found in result["tunings"].items():
        middle = common.medians(found["measured"])
        seconds = [f"{middle[name]:.3f}" for name in (PLAIN, NORMS, ONE_BY_ONE)]
        spread = f"{found['low']:.3f} to {found['high']:.3f}"
        ratios = [f"{found['ratio']:.3f}", spread, f"{found['faster']:.2f}"]
        rows.append([tuning, *seconds, *ratios, f"{found['difference']:.1e}"])
    heads = ["tuning", "plain, s", "norms, s", "one by one, s", "norms / plain", "of the rounds"]
    common.table([*heads, "one by one / norms", "largest difference"], rows)
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
        bench = Bench(made, made.model(tuning), examples, options.tokens_per_batch)
        result["tunings"][tuning] = measure(bench, options.rounds)
    report(result)
    if options.json:
        common.write(options.json, result)
    for tuning, found in result["tunings"].items():
        common.say(f"{tuning} {found['ratio']:.3f}")
    common.say(f"norms {max(found['ratio'] for found in result['tunings'].values()):.3f}")


if __name__ == "__main__":
    main()
