"""What the benchmarks of a model measure on: the model, and a mixture of real short examples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from hbo import HBO, Balancer, make_policy
from hbo.assets import path, resolve_model
from hbo.cli.output import quiet_libraries
from hbo.data.build import BuiltMixture, assemble
from hbo.data.readers import Record
from hbo.data.rendering import Renderer
from hbo.data.subset import EncodedSubset, encode_subset, load_subset
from hbo.measure.examples import Encoded

PACKAGES = ("hbo", "torch", "transformers", "trl", "peft", "numpy")
QUICK_MODEL = "tiny-llama"
TUNINGS = ("lora", "full")

RECORDS = {
    "quartz": 256,
    "food": 192,
    "soc_codes": 160,
    "smiles_to_formula": 128,
    "cissp-study-questions": 96,
    "medmcqa": 80,
    "moral_exceptQA": 64,
    "product-matching": 64,
}
"""Eight subsets of the asset ``evals-demo``, and how many records of each are taken at most."""


def paid_norms(**fields: Any) -> HBO:
    """``hbo`` paid gradient norms, the dearest signal that training shows (the default: losses)."""
    return HBO(global_reward="gradient-norm", update_at_start=False, **fields)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that the benchmarks of a model share."""
    made = common.parser(description)
    made.add_argument("--model", default="smollm2-135m", help="asset name, folder or hub id")
    made.add_argument("--device", default="cpu", help="cpu, or cuda (bf16 autocast)")
    made.add_argument("--max-length", type=int, default=192, help="longer examples are left out")
    made.add_argument("--clock", choices=sorted(common.CLOCKS), default="wall")
    made.add_argument("--rounds", type=int, help="measurements of each contender")
    return made


@dataclass(frozen=True)
class Material:
    """A model to load, and encoded examples of several subsets.

    Args:
        folder: Of the checkpoint.
        device: ``cpu`` or ``cuda``.
        clock: A name in ``common.CLOCKS``.
        subsets: Encoded examples by name.
    """

    folder: str
    device: str
    clock: str
    subsets: Mapping[str, EncodedSubset]

    @property
    def dtype(self) -> torch.dtype | None:
        """What the benchmarks autocast to."""
        return None if self.device == "cpu" else torch.bfloat16

    @property
    def device_name(self) -> str | None:
        """The accelerator in words; ``None`` on a CPU."""
        return None if self.device == "cpu" else torch.cuda.get_device_name()

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def now(self) -> float:
        """Seconds on the chosen clock, once an accelerator is done with what it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return common.CLOCKS[self.clock]()

    def seconds(self, work: Callable[[], object]) -> float:
        """Time of one call."""
        return common.seconds(work, self.now)

    def model(self, tuning: str = "full") -> Any:
        """A fresh copy of the model, fp32 weights, whole or under LoRA adapters."""
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        with quiet_libraries():
            model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
            if tuning == "lora":
                targets = ["q_proj", "v_proj"]
                model = get_peft_model(model, LoraConfig(r=16, target_modules=targets))
        return model.to(self.device)

    def examples(self, count: int) -> list[Encoded]:
        """Examples of all subsets in turn, over again where there are too few."""
        queues = [list(subset.encoded) for subset in self.subsets.values()]
        rows = max(len(queue) for queue in queues)
        mixed = [queue[row] for row in range(rows) for queue in queues if row < len(queue)]
        return [mixed[number % len(mixed)] for number in range(count)]

    def mixture(self) -> BuiltMixture:
        """Four difficulty groups in each subset, by length; the first losses are made up."""
        scores = {
            name: np.array([float(example.num_tokens) for example in subset.encoded])
            for name, subset in self.subsets.items()
        }
        losses = {name: np.full(len(column), 2.0) for name, column in scores.items()}
        return assemble(self.subsets, scores, groups=4, first_losses=losses)


def make(options: argparse.Namespace) -> Material:
    """What the options name; with ``--quick``, a random model over bytes and made-up records."""
    if options.quick:
        folder, records = str(path(QUICK_MODEL)), made_up()
    else:
        folder, records = resolve_model(options.model), of_asset()
    from transformers import AutoTokenizer

    renderer = Renderer(AutoTokenizer.from_pretrained(folder), max_length=None)
    subsets = {
        name: _encode(name, rows, renderer, options.max_length) for name, rows in records.items()
    }
    return Material(folder, options.device, options.clock, subsets)


def drawn(mixture: BuiltMixture, per_step: int, steps: int, seed: int) -> tuple[np.ndarray, str]:
    """Ids that fixed proportional weights draw in so many steps, and the hash of them."""
    balancer = Balancer(
        mixture.mixture,
        make_policy("prop"),
        seed=seed,
        draws_per_step=per_step,
        limits=mixture.limits,
    )
    ids = np.concatenate([balancer.advance() for _ in range(steps)])
    return ids, balancer.stream_sha256


def facts(benchmark: str, options: argparse.Namespace, made: Material) -> dict[str, Any]:
    """What a result begins with: options, and where it was measured, which is printed too."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    found = {"benchmark": benchmark, **plain, "threads": torch.get_num_threads()}
    where = common.where(*PACKAGES, device_name=made.device_name)
    if options.clock == "cpu":
        common.say("seconds are processor time of this process, not wall time\n")
    return found | where


def _encode(
    name: str, rows: Sequence[dict[str, Any]], renderer: Renderer, max_length: int
) -> EncodedSubset:
    records = [Record(None, row, f"{name}: row {number}") for number, row in enumerate(rows)]
    whole = encode_subset(load_subset(name, records), renderer)
    short = [example for example in whole.encoded if example.num_tokens <= max_length]
    return EncodedSubset(tuple(short), np.arange(len(short)), np.array([], dtype=np.int64))


def of_asset() -> dict[str, list[dict[str, Any]]]:
    """The records of ``RECORDS``, by subset."""
    folder, found = path("evals-demo"), {}
    for name, count in RECORDS.items():
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [json.loads(line) for line in lines[:count]]
    return found


def made_up() -> dict[str, list[dict[str, Any]]]:
    """The records of ``--quick``, by subset."""

    def record(number: int, times: int) -> dict[str, Any]:
        question, answer = f"{number} times {times}?", str(number * times)
        return {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }

    return {f"times {k}": [record(n, k) for n in range(24 // k)] for k in (1, 2, 3)}
