"""Scoring beside a bare forward pass over the same tokens without padding.

    python benchmarks/scoring.py [--quick] [--json FILE] [--model NAME] [--device cuda]
        [--released PATH]

The limit is what the model takes for those tokens and nothing else: its layers, and its head on the
states before response tokens, no padding, no mask, no losses, all inputs ready on the device.
There are two ways to leave padding out, and the faster counts:

- *equal*: examples of equal length side by side, the very same tokens;
- *even*: the batches that scoring makes, with all rows cut or filled to the batch's mean length:
  as many tokens (to half a row) in batches as large as scoring's.

`score_examples` is timed without a cache, for the loss given the prompt (one pass) and for IFD (a
second pass over the responses alone). These examples are of eight subsets in turn, which share no
more than the template's first tokens. `one subset` is the loss of as many examples of one subset,
as `hbo score` passes them: it runs the beginning that they share once, where the bare pass runs all
of it.

Memory is the most that a process of its own held after scoring some examples, and eight times as
many. With `--released`, a checkout of the code of arXiv 2505.12300, its three scores of the same
tokens are measured as well, and have to agree with ours: `released R` is theirs over ours. The last
line, `scoring R`, is IFD's ratio to its two bare passes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import common
import material
import numpy as np
import released
import torch

from hbo.difficulty.metrics import ResponseStatistics, difficulty_scores
from hbo.measure.batches import batch_cost_on, plan_batches
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.response import alone_examples
from hbo.measure.scoring import SHARD_SIZE, score_examples

PASSES = {
    "one subset": ("one subset",),
    "loss": ("given the prompt",),
    "ifd": ("given the prompt", "alone"),
}
"""The bare passes that each measurement needs."""
MEMORY_SHARD, MEMORY_TIMES = 32, (1, 8)
"""Examples of a shard, and how many shards are scored, where memory is measured."""
THEIRS, OURS = "three scores, released", "three scores, ours"


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
        lengths = [example.num_tokens for example in shard]
        for batch in plan_batches(lengths, tokens, batch_cost_on(torch.device(device))):
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

    def score(
        self, examples: Sequence[Encoded], alone: bool, shard_size: int = SHARD_SIZE
    ) -> ResponseStatistics:
        """Score without a cache."""
        pad = self.made.tokenizer.pad_token_id or 0
        options: dict[str, Any] = {"tokens_per_batch": self.tokens, "dtype": self.made.dtype}
        options["shard_size"] = shard_size
        return score_examples(self.model, examples, alone=alone, pad_id=pad, **options)

    def parts(self, count: int) -> dict[str, list[Encoded]]:
        """What a pass runs: examples of all subsets, their responses alone, and one subset."""
        examples = self.made.examples(count)
        one = next(iter(self.made.subsets.values())).encoded[:count]
        return {
            "given the prompt": examples,
            "alone": alone_examples(examples),
            "one subset": list(one),
        }

    def contenders(self, parts: dict[str, list[Encoded]]) -> dict[str, Callable[[], float]]:
        """Scoring by metric, and the bare passes by kind and layout."""

        def timed(work: Callable[[], object]) -> Callable[[], float]:
            return lambda: self.made.seconds(work)

        examples, one = parts["given the prompt"], parts["one subset"]
        found = {
            "score loss": timed(lambda: self.score(examples, alone=False)),
            "score one subset": timed(lambda: self.score(one, alone=False)),
            "score ifd": timed(lambda: self.score(examples, alone=True)),
        }
        for name, part in parts.items():
            asked = [example for example in part if example.response_tokens]
            for layout, make in {"equal": equal_rows, "even": even_rows}.items():
                batches = make(asked, self.tokens, self.made.device)
                found[f"bare {name}, {layout}"] = timed(
                    lambda batches=batches: bare(self.model, batches, self.made.dtype)
                )
        return found

    def against(self, options: argparse.Namespace) -> dict[str, Any]:
        """Seconds of the three scores, ours and the released code's, which must agree."""
        code, tokenizer = released.load(options.released), self.made.tokenizer
        pairs = released.pairs(code, texts(options.quick), tokenizer, options.max_length)
        pairs = pairs[: options.examples]
        found: dict[str, Any] = {}

        def theirs() -> None:
            found["theirs"] = released.scores(code, pairs, self.model, tokenizer, self.made.dtype)

        def ours() -> None:
            found["ours"] = self.score([pair.ours for pair in pairs], alone=True)
            for metric in released.METRICS:
                difficulty_scores(metric, found["ours"])

        contenders = {
            THEIRS: lambda: self.made.seconds(theirs),
            OURS: lambda: self.made.seconds(ours),
        }
        measured = common.interleaved(contenders, options.rounds)
        return {
            "measured": measured,
            "examples": len(pairs),
            "ratio": common.ratio(measured[THEIRS], measured[OURS]),
            "difference": released.difference(found["ours"], found["theirs"], self.made.dtype),
        }

    def peak(self, times: int) -> float:
        """MiB at the highest after scoring so many shards of the same lengths."""
        shard = self.made.examples(MEMORY_SHARD)
        examples = [_copy(example) for _ in range(times) for example in shard]
        self.score(examples, alone=True, shard_size=MEMORY_SHARD)
        return peak_mebibytes(self.made.device)


def texts(quick: bool) -> list[tuple[str, str]]:
    """Instruction and output of records of all subsets in turn."""
    subsets = (material.made_up() if quick else material.of_asset()).values()
    queues = [[(_last(row["prompt"]), _last(row["completion"])) for row in s] for s in subsets]
    rows = range(max(map(len, queues)))
    return [queue[row] for row in rows for queue in queues if row < len(queue)]


def _last(messages: Sequence[dict[str, str]]) -> str:
    return messages[-1]["content"]


def _copy(example: Encoded) -> Encoded:
    """The same example in memory of its own."""
    fields = (example.input_ids, example.labels, example.alone_ids, example.alone_labels)
    return Encoded(*(None if field is None else field.copy() for field in fields))


def bytes_of_an_example(examples: Sequence[Encoded]) -> float:
    """Memory that one encoded example takes."""
    tracemalloc.start()
    held = [_copy(example) for example in examples]
    found = tracemalloc.get_traced_memory()[0] / len(held)
    tracemalloc.stop()
    return found


def peaks(bench: Bench, options: argparse.Namespace) -> list[float]:
    """MiB by number of shards, each in a new process; with ``--quick`` one after another in this.

    What one process has held says nothing of what it needs: the allocator keeps what it had.
    """
    if options.quick:
        return [bench.peak(times) for times in MEMORY_TIMES]
    found = []
    for times in MEMORY_TIMES:
        words = [sys.executable, __file__, "--peak", str(times), "--model", options.model]
        words += ["--device", options.device, "--max-length", str(options.max_length)]
        words += ["--tokens", str(options.tokens)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found.append(float(done.stdout))
    return found


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
        for name in {name for names in PASSES.values() for name in names}
    }
    return {
        metric: [sum(parts) for parts in zip(*(measured[best[n]] for n in names), strict=True)]
        for metric, names in PASSES.items()
    }


def padding(examples: Sequence[Encoded], tokens: int, device: str) -> float:
    """Padded tokens of scoring's batches over real ones, where no beginning is shared."""
    cost = batch_cost_on(torch.device(device))
    padded = real = 0
    for start in range(0, len(examples), SHARD_SIZE):
        lengths = np.array([e.num_tokens for e in examples[start : start + SHARD_SIZE]])
        real += int(lengths.sum())
        padded += sum(len(b) * int(lengths[b].max()) for b in plan_batches(lengths, tokens, cost))
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
    once, often = result["peak_mebibytes"]
    few, many = (MEMORY_SHARD * times for times in MEMORY_TIMES)
    common.say(f"peak memory: {once:,.0f} MiB for {few} examples, {often:,.0f} MiB for {many}")
    common.say(f"an example in memory: {result['bytes_of_an_example']:,.0f} bytes")
    if "scores_of_both" in result:
        found = result["scores_of_both"]
        times = ", ".join(f"{n} {s:.3f} s" for n, s in common.medians(found["measured"]).items())
        common.say(f"{found['examples']} examples: {times}; {found['difference']:.1g} apart")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    parser = material.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--examples", type=int, help="examples that are scored (256)")
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens of a batch")
    parser.add_argument("--released", type=Path, metavar="PATH", help="a checkout of that code")
    parser.add_argument("--peak", type=int, metavar="SHARDS", help="print peak memory, no more")
    options = parser.parse_args(argv)
    options.examples = options.examples or (16 if options.quick else 256)
    options.rounds = options.rounds or (1 if options.quick else 5)
    made = material.make(options)
    bench = Bench(made, made.model().eval(), options.tokens)
    if options.peak:
        common.say(str(bench.peak(options.peak)))
        return
    result = material.facts("scoring", options, made)
    parts = bench.parts(options.examples)
    result["peak_mebibytes"] = peaks(bench, options)
    result["bytes_of_an_example"] = bytes_of_an_example(parts["given the prompt"])
    result["measured"] = measured = common.interleaved(bench.contenders(parts), options.rounds)
    result["ratios"] = {}
    for metric, limit in limits(measured).items():
        low, high = common.spread(measured[f"score {metric}"], limit)
        ratio = common.ratio(measured[f"score {metric}"], limit)
        result["ratios"][metric] = {"ratio": ratio, "low": low, "high": high}
    result["tokens"] = {n: sum(e.num_tokens for e in part) for n, part in parts.items()}
    result["padding"] = {
        n: padding(part, options.tokens, options.device) for n, part in parts.items()
    }
    if options.released:
        result["scores_of_both"] = bench.against(options)
    report(result)
    if options.json:
        common.write(options.json, {**result, "tokens_per_batch": options.tokens})
    if "scores_of_both" in result:
        common.say(f"released {result['scores_of_both']['ratio']:.2f}")
    for metric, found in result["ratios"].items():
        common.say(f"{'scoring' if metric == 'ifd' else metric} {found['ratio']:.3f}")


if __name__ == "__main__":
    main()
