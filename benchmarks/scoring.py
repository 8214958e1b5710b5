"""Scoring beside a bare forward pass over the same tokens without padding.

    python benchmarks/scoring.py [--quick] [--json FILE] [--model NAME] [--device cuda]

The limit is what the model takes for those tokens and nothing else: its layers, and its head on the
states before response tokens, no padding, no mask, no losses, all inputs ready on the device.
There are two ways to leave padding out, and the faster counts:

- *equal*: examples of equal length side by side, the very same tokens;
- *even*: the batches that scoring makes, with all rows cut or filled to the batch's mean length:
  as many tokens (to half a row) in batches as large as scoring's.

`score_examples` is timed without a cache, for the loss given the prompt (one pass) and for IFD (a
second pass over the responses alone). The last line, `scoring R`, is IFD's ratio to its two bare
passes.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import common
import material
import numpy as np
import torch

from hbo.measure.batches import plan_batches
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.response import alone_examples
from hbo.measure.scoring import SHARD_SIZE, score_examples

PASSES = {"loss": ("given the prompt",), "ifd": ("given the prompt", "alone")}


@dataclass(frozen=True)
class Rows:
    """Inputs of one bare forward pass.

    Args:
        ids: (B, T) int64, no padding.
        places: (M,) of the B x T states, those that the head sees.
    """

    ids: torch.Tensor
    places: torch.Tensor


def rows_of(examples: Sequence[Encoded], device: str) -> Rows:
    """Examples of one length, as they are."""
    ids = np.stack([example.input_ids for example in examples]).astype(np.int64)
    labels = np.stack([example.labels for example in examples])
    before = np.zeros(ids.shape, dtype=bool)
    before[:, :-1] = labels[:, 1:] != IGNORED
    places = torch.from_numpy(np.flatnonzero(before))
    return Rows(torch.from_numpy(ids).to(device), places.to(device))


def equal_rows(examples: Sequence[Encoded], tokens: int, device: str) -> list[Rows]:
    """All examples, those of equal length side by side."""
    by_length = sorted(examples, key=lambda example: -example.num_tokens)
    found = []
    for length, same in groupby(by_length, key=lambda example: example.num_tokens):
        rows, size = list(same), max(tokens // length, 1)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        found += [rows_of(part, device) for part in parts]
    return found


def even_rows(examples: Sequence[Encoded], tokens: int, device: str) -> list[Rows]:
    """Scoring's own batches, all rows of a batch as long as its mean."""
    found = []
    for start in range(0, len(examples), SHARD_SIZE):
        shard = examples[start : start + SHARD_SIZE]
        for batch in plan_batches([example.num_tokens for example in shard], tokens):
            chosen = [shard[int(index)] for index in batch]
            length = max(round(np.mean([example.num_tokens for example in chosen])), 2)
            found.append(rows_of([_as_long_as(example, length) for example in chosen], device))
    return found


def _as_long_as(example: Encoded, length: int) -> Encoded:
    """Cut at the left, or its prompt's first token repeated: the response stays."""
    more = max(length - example.num_tokens, 0)
    first = np.full(more, example.input_ids[0], dtype=example.input_ids.dtype)
    ids = np.concatenate([first, example.input_ids])[-length:]
    unlabelled = np.full(more, IGNORED, dtype=example.labels.dtype)
    return Encoded(ids, np.concatenate([unlabelled, example.labels])[-length:])


@torch.no_grad()
def bare(model: Any, batches: Sequence[Rows], dtype: torch.dtype | None) -> None:
    """The model's layers on every batch, and its head where a response token is predicted."""
    body, head = model.base_model, model.get_output_embeddings()
    kind = batches[0].ids.device.type
    with torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        for rows in batches:
            states = body(input_ids=rows.ids, use_cache=False).last_hidden_state
            head(states.flatten(0, 1)[rows.places])


@dataclass(frozen=True)
class Bench:
    """One model and its examples.

    Args:
        made: Model and data.
        model: Loaded, in eval mode.
        tokens: Padded tokens of a batch.
    """

    made: material.Material
    model: Any
    tokens: int

    def score(self, examples: Sequence[Encoded], alone: bool) -> None:
        """Score without a cache."""
        pad = self.made.tokenizer.pad_token_id or 0
        options: dict[str, Any] = {"tokens_per_batch": self.tokens, "dtype": self.made.dtype}
        score_examples(self.model, examples, alone=alone, pad_id=pad, **options)

    def contenders(self, examples: Sequence[Encoded]) -> dict[str, Callable[[], float]]:
        """Scoring by metric, and the bare passes by kind and layout."""

        def timed(work: Callable[[], object]) -> Callable[[], float]:
            return lambda: self.made.seconds(work)

        found = {
            "score loss": timed(lambda: self.score(examples, alone=False)),
            "score ifd": timed(lambda: self.score(examples, alone=True)),
        }
        parts = {"given the prompt": list(examples), "alone": alone_examples(examples)}
        for name, part in parts.items():
            asked = [example for example in part if example.response_tokens]
            for layout, make in {"equal": equal_rows, "even": even_rows}.items():
                batches = make(asked, self.tokens, self.made.device)
                found[f"bare {name}, {layout}"] = timed(
                    lambda batches=batches: bare(self.model, batches, self.made.dtype)
                )
        return found

    def memory(self, examples: Sequence[Encoded]) -> list[float]:
        """MiB at the highest after scoring the examples, and after four times as many."""
        peaks = []
        for times in (1, 1, 4):  # the allocator settles in the first
            self.score([example for _ in range(times) for example in examples], alone=False)
            peaks.append(peak_mebibytes(self.made.device))
        return peaks[1:]


def peak_mebibytes(device: str) -> float:
    """The most memory that this process has held so far, on the device that computes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def limits(measured: dict[str, list[float]]) -> dict[str, list[float]]:
    """Seconds of the bare passes that each metric needs, in the layout that is faster for each."""
    middle = common.medians(measured)
    best = {
        name: min(
            (f"bare {name}, {layout}" for layout in ("equal", "even")), key=middle.__getitem__
        )
        for name in PASSES["ifd"]
    }
    return {
        metric: [sum(parts) for parts in zip(*(measured[best[n]] for n in names), strict=True)]
        for metric, names in PASSES.items()
    }


def padding(examples: Sequence[Encoded], tokens: int) -> float:
    """Padded tokens of scoring's batches over real ones."""
    padded = real = 0
    for start in range(0, len(examples), SHARD_SIZE):
        lengths = np.array([e.num_tokens for e in examples[start : start + SHARD_SIZE]])
        real += int(lengths.sum())
        padded += sum(len(b) * int(lengths[b].max()) for b in plan_batches(lengths, tokens))
    return padded / real


def report(result: dict[str, Any]) -> None:
    """Print the tables."""
    middle = common.medians(result["measured"])
    common.table(["what", "s"], [[name, f"{value:.3f}"] for name, value in middle.items()])
    rows = [
        [metric, f"{found['ratio']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"]
        for metric, found in result["ratios"].items()
    ]
    common.table(["metric", "score / bare", "of the rounds"], rows)
    for name, value in result["padding"].items():
        common.say(f"{name}: {result['tokens'][name]:,} tokens, padded tokens / tokens {value:.3f}")
    once, fourfold = result["peak_mebibytes"]
    common.say(
        f"peak memory: {once:,.0f} MiB for {result['examples']} examples, "
        f"{fourfold:,.0f} MiB for {4 * result['examples']}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    parser = material.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--examples", type=int, help="examples that are scored (256)")
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens of a batch")
    options = parser.parse_args(argv)
    options.examples = options.examples or (16 if options.quick else 256)
    options.rounds = options.rounds or (1 if options.quick else 5)
    made = material.make(options)
    bench = Bench(made, made.model().eval(), options.tokens)
    result = material.facts("scoring", options, made)
    examples = made.examples(options.examples)
    result["peak_mebibytes"] = bench.memory(examples)
    result["measured"] = measured = common.interleaved(bench.contenders(examples), options.rounds)
    result["ratios"] = {}
    for metric, limit in limits(measured).items():
        low, high = common.spread(measured[f"score {metric}"], limit)
        ratio = common.ratio(measured[f"score {metric}"], limit)
        result["ratios"][metric] = {"ratio": ratio, "low": low, "high": high}
    parts = {"given the prompt": examples, "alone": alone_examples(examples)}
    result["tokens"] = {n: sum(e.num_tokens for e in part) for n, part in parts.items()}
    result["padding"] = {n: padding(part, options.tokens) for n, part in parts.items()}
    report(result)
    if options.json:
        common.write(options.json, {**result, "tokens_per_batch": options.tokens})
    for metric, found in result["ratios"].items():
        common.say(f"{'scoring' if metric == 'ifd' else metric} {found['ratio']:.3f}")


if __name__ == "__main__":
    main()
