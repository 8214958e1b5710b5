"""The paper's released code, called from a checkout: what an update of it measures, and how.

It has no licence: nothing of it is here. Its methods run on an object that has what they read.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import material
import numpy as np
import torch

from hbo import Mixture, make_policy
from hbo.integrations.probing import TOKENS_PER_BATCH
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.probe import Probe
from hbo.signals import GRADIENT_NORM, PERPLEXITY_RATIO

GROUPS = 4
BACKWARD, FORWARD = 8, 16
"""Examples of each group of a subset that the released code measures."""
PLAIN_PROMPT = "{instruction}\n"
"""Where the released code, which has a template of its own, is not given."""

PARTS = ("global reward", "local reward", "actors")
REWARDS = {
    GRADIENT_NORM: "compute_gradnorm_reward",
    PERPLEXITY_RATIO: "compute_diff_ppl_reward",
}
"""Their methods that measure a signal on a batch."""
Parts = dict[str, float]


@dataclass(frozen=True)
class Example:
    """A record as both sides take it.

    Args:
        instruction: Of the prompt.
        output: The response.
        whole: All tokens trained on.
        response: The same tokens, those of the response trained on.
    """

    instruction: str
    output: str
    whole: Encoded
    response: Encoded


@dataclass(frozen=True)
class Samples:
    """What is measured: in every cell the examples of a local reward, and no more.

    Args:
        mixture: Cells of ``FORWARD`` examples.
        examples: By id.
        first_loss: By id, nats.
    """

    mixture: Mixture
    examples: Sequence[Example]
    first_loss: np.ndarray

    def probe(self, labels: str, per_cell: int, made: material.Material) -> Probe:
        """A probe of examples labelled in this way, ``whole`` or ``response``."""
        return Probe(
            self.mixture,
            lambda ids: [getattr(self.examples[int(number)], labels) for number in ids],
            lambda ids: self.first_loss[ids],
            examples_per_cell=per_cell,
            tokens_per_batch=TOKENS_PER_BATCH,
            pad_id=int(made.tokenizer.pad_token_id or 0),
            dtype=made.dtype,
        )

    def measured(self, count: int) -> np.ndarray:
        """(cells, count) ids of the examples that are measured."""
        ids = Probe(self.mixture, lambda _ids: []).cell_examples(0, count)
        return ids.reshape(-1, count)

    def tokens(self, count: int) -> int:
        """Tokens of those."""
        return sum(self.examples[i].whole.num_tokens for i in self.measured(count).ravel())


def records(options: argparse.Namespace) -> dict[str, list[tuple[str, str]]]:
    """Instructions and outputs by subset."""
    if options.quick:
        sums = range(GROUPS * FORWARD)
        return {f"plus {k}": [(f"{n} plus {k}?", str(n + k)) for n in sums] for k in (1, 2)}
    found = {}
    for name, rows in material.of_asset().items():
        pairs = [([m["content"] for m in r["prompt"]], r["completion"][0]["content"]) for r in rows]
        found[name] = [("\n".join(prompt), output) for prompt, output in pairs]
    return found


def samples(options: argparse.Namespace, tokenizer: Any, prompt: str) -> Samples:
    """Records of the measured subsets, grouped by length.

    Args:
        options: The command line.
        tokenizer: The model's.
        prompt: What comes before the output, with a place for the instruction.
    """
    needed, examples, names = GROUPS * FORWARD, [], []
    for name, rows in records(options).items():
        made = [_example(*row, tokenizer, prompt) for row in rows]
        short = [example for example in made if example.whole.num_tokens <= options.max_length]
        if len(short) < needed:
            raise SystemExit(f"{name} has {len(short)} examples of at most {options.max_length}")
        names.append(name)
        examples += sorted(short[:needed], key=lambda example: example.whole.num_tokens)
    measured = min(options.subsets, len(names)) // options.share
    if measured < 2:
        raise SystemExit("at least two subsets are measured; --share is too large for --subsets")
    examples = examples[: measured * needed]
    first_loss = np.random.default_rng(0).uniform(1.0, 3.0, len(examples))
    sizes = np.full((measured, GROUPS), FORWARD)
    return Samples(Mixture(tuple(names[:measured]), sizes), examples, first_loss)


def _example(instruction: str, output: str, tokenizer: Any, prompt: str) -> Example:
    before = prompt.format(instruction=instruction)
    ids = np.array(tokenizer.encode(before + output))
    labels = ids.copy()
    labels[: len(tokenizer.encode(before))] = IGNORED
    return Example(instruction, output, Encoded(ids, ids), Encoded(ids, labels))


class Theirs:
    """The released code's update: its methods, on an object with what they read.

    Args:
        code: Its module.
        taken: What is measured.
        made: Device, clock and tokenizer.
        model: In training.
    """

    def __init__(
        self, code: ModuleType, taken: Samples, made: material.Material, model: Any
    ) -> None:
        self._code, self._taken, self._made, self._model = code, taken, made, model
        self._queues: dict[tuple[str, int], Iterator[dict[str, Any]]] = {}
        self._reward_seconds = 0.0
        self.values = {name: np.full(len(taken.examples), np.nan) for name in REWARDS}
        self._trainer = self._stub()
        with contextlib.redirect_stdout(io.StringIO()):
            self._trainer.pretrain_data_actor()
        self.probabilities = np.empty(taken.mixture.sizes.shape)

    def _stub(self) -> Any:
        names, code = self._taken.mixture.names, self._code
        actors = {name: code.BaseActor(GROUPS) for name in names}
        whole = code.BaseActor(len(names))
        policy: Any = make_policy("hbo-released")
        rate = policy.actor_learning_rate
        stub = SimpleNamespace(
            num_categories=len(names),
            difficulty_levels=GROUPS,
            inter_reward_type="gradnorm",
            intra_reward_type="diff_ppl",
            use_ema="no",
            model_id="model",
            tokenizer=self._made.tokenizer,
            data_optim_steps=policy.inner_steps,
            inter_data_actor=whole,
            inter_data_optimizer=torch.optim.Adam(whole.parameters(), lr=rate),
            intra_data_actors=actors,
            intra_data_optimizers={
                name: torch.optim.Adam(actor.parameters(), lr=rate)
                for name, actor in actors.items()
            },
            train_dataset=SimpleNamespace(
                last_step=0,
                inter_probabilities=OrderedDict.fromkeys(names, 1 / len(names)),
                sample_batch=self._batch,
            ),
        )
        for name, method in vars(code.DynaSampleTrainer).items():
            if callable(method):
                setattr(stub, name, MethodType(method, stub))
        for signal, name in REWARDS.items():
            setattr(stub, name, self._watched(getattr(stub, name), signal))
        return stub

    def _watched(self, reward: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Their reward of a batch as the mean of their rewards of its examples, which are kept."""

        def compute(model: Any, batch: list[dict[str, Any]]) -> Any:
            start = self._made.now()
            rewards = [reward(model, [example]) for example in batch]
            for example, value in zip(batch, rewards, strict=True):
                self.values[name][example["number"]] = float(value)
            self._reward_seconds += self._made.now() - start
            return sum(rewards) / len(rewards)

        return compute

    def _batch(self, size: int, subset: str, group: int) -> list[dict[str, Any]]:
        return [next(self._queues[subset, group]) for _ in range(size)]

    def _hand_out(self, count: int) -> None:
        """Lay out the examples of each cell that the next rewards are measured on."""
        cells = [(name, group) for name in self._taken.mixture.names for group in range(GROUPS)]
        for cell, ids in zip(cells, self._taken.measured(count), strict=True):
            self._queues[cell] = iter([self._row(int(number)) for number in ids])

    def _row(self, number: int) -> dict[str, Any]:
        example = self._taken.examples[number]
        return {
            "number": number,
            "instruction": example.instruction,
            "output": example.output,
            "input_ids": example.whole.input_ids.tolist(),
            "attention_mask": [1] * example.whole.num_tokens,
            "model_ppl": float(np.exp(self._taken.first_loss[number])),
        }

    def update(self) -> Parts:
        """Seconds of each part; ``values`` and ``probabilities`` are those of this update."""
        kind, dtype = self._made.device, self._made.dtype
        with (
            contextlib.redirect_stdout(io.StringIO()),
            torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            self._hand_out(BACKWARD)
            shares, over, over_actors = self._timed(
                lambda: self._trainer.update_inter_probabilities(self._model, 1)
            )
            self._hand_out(FORWARD)
            groups, inside, inside_actors = self._timed(
                lambda: [
                    self._trainer.update_intra_probabilities(self._model, 1, name)
                    for name in self._taken.mixture.names
                ]
            )
        self._model.zero_grad()  # they leave the last example's gradient
        local = np.array([list(law.values()) for law in groups])
        self.probabilities = np.array(list(shares.values()))[:, None] * local
        return dict(zip(PARTS, (over, inside, over_actors + inside_actors), strict=True))

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        """A result, and seconds of its rewards and of the rest."""
        self._reward_seconds, start = 0.0, self._made.now()
        result = work()
        rest = self._made.now() - start - self._reward_seconds
        return result, self._reward_seconds, rest
