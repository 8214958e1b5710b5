"""One whole update, rewards measured and actors moved: ours beside the paper's released code.

    python benchmarks/update.py --released PATH [--quick] [--json FILE] [--model NAME]
        [--tuning full|lora] [--subsets 8] [--share S] [--device cuda]

PATH is a checkout of the code of arXiv 2505.12300 (commit 800fe14). It has no licence: nothing of
it is here, its functions are called from there. Without PATH, ours alone is measured.

Both get the same examples, tokens and labels of one model: of each subset 32 forward and backward
for the global reward (the gradient norm of the loss over prompt and response), and 64 forward only
for the local one (perplexity of the response over a first one, which is made up here). Then the
actors move, 200 Adam steps each. Norms, ratios and the new probabilities have to agree, those of
ours being the policy `hbo-released`. `ours, norms` is the most that an update of `hbo` measures
where it is paid gradient norms: losses and norms come from training, and cells that it showed too
little of are filled up by a probe, here all of them, 8 examples of each subset.

The floor is what operation counts say (forward 1, backward 2, by tokens) at the speed of plain
forward and backward passes over the 32. `--share 4` measures a fourth of the subsets, and takes the
times fourfold. The last line, `update R`, is theirs over ours: the median of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import material
import numpy as np
import torch
from released import load
from released_update import (
    BACKWARD,
    FORWARD,
    GROUPS,
    PARTS,
    PLAIN_PROMPT,
    Parts,
    Samples,
    Theirs,
    samples,
)

from hbo import Balancer, make_policy
from hbo.integrations.options import BalanceOptions
from hbo.integrations.probing import TOKENS_PER_BATCH
from hbo.measure.batches import TokenBudget, collate
from hbo.measure.examples import Encoded
from hbo.measure.forward import token_losses
from hbo.signals import GRADIENT_NORM, PERPLEXITY_RATIO

TOLERANCE, MOVE_TOLERANCE = 1e-3, 0.02
"""Of norms and ratios, relative; of probabilities, over how far the actors have moved one at most.
Theirs are fp32, and Adam makes much of a reward that is nearly what an actor expects.
"""
THEIRS, OURS, NORMS, FLOOR = "released", "ours", "ours, norms", "floor"


class Ours:
    """Our update, with the released code's policy and counts, or ``hbo`` paid gradient norms.

    Args:
        taken: What is measured.
        made: Device, clock and tokenizer.
        model: In training.
    """

    def __init__(self, taken: Samples, made: material.Material, model: Any) -> None:
        self._taken, self._now, self._model = taken, made.now, model
        self._norms = taken.probe("whole", BACKWARD, made)
        self._ratios = taken.probe("response", FORWARD, made)
        options = BalanceOptions()
        few = taken.probe("response", options.probe_examples // GROUPS, made)
        self._few = replace(few, scope=options.scope)
        self.balancer = self._begun(make_policy("hbo-released"))
        self._paid_norms = self._begun(material.paid_norms())
        self.values: dict[str, np.ndarray] = {}

    def _begun(self, policy: Any) -> Balancer:
        balancer = Balancer(self._taken.mixture, policy, seed=0, draws_per_step=64)
        balancer.begin_at(policy.interval)
        return balancer

    def update(self) -> Parts:
        """Seconds of each part; what was measured stays in ``values``, by example."""
        times, found = [self._now()], []
        for probe, name in ((self._norms, GRADIENT_NORM), (self._ratios, PERPLEXITY_RATIO)):
            found.append(probe.measure(self._model, {name}, 0).examples)
            times.append(self._now())
        for columns in found:
            for name, (ids, values) in columns.items():
                self.values[name] = np.full(len(self._taken.examples), np.nan)
                self.values[name][ids] = values
        return self._moved(self.balancer, found, times)

    def _moved(self, balancer: Balancer, found: Sequence[Any], times: list[float]) -> Parts:
        """Take in what was measured and move the actors; seconds of all parts."""
        for columns in found:
            for name, (ids, values) in columns.items():
                balancer.observe(ids, {name: values})
        balancer.update()
        times.append(self._now())
        return dict(zip(PARTS, np.diff(times).tolist(), strict=True))

    def paid_norms(self) -> Parts:
        """Seconds of each part, where training showed too little of every cell."""
        times, found = [self._now()], []
        for name in (GRADIENT_NORM, PERPLEXITY_RATIO):
            found.append(self._few.measure(self._model, {name}, 0).examples)
            times.append(self._now())
        return self._moved(self._paid_norms, found, times)


def plain_passes(made: material.Material, model: Any, examples: Sequence[Encoded]) -> None:
    """What training does with examples, all tokens trained on, up to the optimiser."""
    kind, dtype = made.device, made.dtype
    pad_id = int(made.tokenizer.pad_token_id or 0)

    def step(chosen: list[Encoded]) -> None:
        batch = collate(chosen, pad_id).to(torch.device(kind))
        with torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = token_losses(model, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]

    for _ in TokenBudget(TOKENS_PER_BATCH).run(examples, step):
        pass
    model.zero_grad()


@dataclass
class Bench:
    """Both sides, and the passes that the floor is made of.

    Args:
        ours: Ours.
        theirs: Theirs, where there is a checkout.
        plain: Trains on the examples of the global reward, without an optimiser.
        parts: Filled as it goes: seconds of each part, a measurement each, by side.
    """

    ours: Ours
    theirs: Theirs | None
    plain: Callable[[], float]
    parts: dict[str, list[Parts]]

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Seconds of a whole update, by side."""

        def whole(name: str, update: Callable[[], Parts]) -> Callable[[], float]:
            def measure() -> float:
                self.parts.setdefault(name, []).append(update())
                return sum(self.parts[name][-1].values())

            return measure

        found = {
            OURS: whole(OURS, self.ours.update),
            NORMS: whole(NORMS, self.ours.paid_norms),
            FLOOR: self.plain,
        }
        if self.theirs is not None:
            found = {THEIRS: whole(THEIRS, self.theirs.update)} | found
        return found

    def differences(self) -> dict[str, float]:
        """The largest: relative of norms and ratios; of probabilities over how far they moved."""
        assert self.theirs is not None
        found = {}
        for name, column in self.theirs.values.items():
            ours = self.ours.values[name]
            if not np.array_equal(np.isfinite(ours), np.isfinite(column)):
                raise RuntimeError(f"{name} was not measured on the same examples")
            found[name] = float(np.nanmax(np.abs(ours / column - 1)))
        law, prior = self.theirs.probabilities, 1 / self.theirs.probabilities.size
        gap = np.abs(self.ours.balancer.probabilities - law).max() / np.abs(law - prior).max()
        return found | {"probabilities": float(gap)}


def check(differences: dict[str, float]) -> None:
    """Refuse to compare the speed of sides that compute different things.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    for name, gap in differences.items():
        limit = MOVE_TOLERANCE if name == "probabilities" else TOLERANCE
        if not gap <= limit:
            raise RuntimeError(f"{name} differ from the released code's by {gap:.1e}")


def report(result: dict[str, Any], share: int) -> None:
    """Print the table."""
    rows = []
    for side, parts in result["parts"].items():
        middle = [share * float(np.median([part[name] for part in parts])) for name in PARTS]
        whole = share * float(np.median(result["measured"][side]))
        ratio = result["ratios"][side]
        spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else ""
        cells = [f"{seconds:.3f}" for seconds in (*middle, whole)]
        floor = result["floor"]
        over = f"{whole / (share * floor['whole']):.2f}"
        rows.append([side, *cells, f"{ratio['ratio']:.2f}" if ratio else "", spread, over])
    floor = result["floor"]
    cells = [f"{share * floor[name]:.3f}" for name in PARTS[:2]]
    rows.append([FLOOR, *cells, "", f"{share * floor['whole']:.3f}", "", "", "1"])
    heads = ["update", *(f"{name}, s" for name in (*PARTS, "whole"))]
    common.table([*heads, "released / this", "of the rounds", "this / floor"], rows)
    counts = result["counts"]
    common.say(
        f"{counts['subsets']} subsets: {counts['backward']} examples forward and backward "
        f"({counts['backward_tokens']:,} tokens), {counts['forward']} forward only "
        f"({counts['forward_tokens']:,} tokens)"
    )
    if share > 1:
        common.say(f"measured on one in {share} subsets, and all times taken {share} times")
    for name, gap in result["differences"].items():
        common.say(f"largest difference of {name}: {gap:.1e}")


def ratios(measured: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The released code's time over that of each of ours; empty where it was not measured."""
    found: dict[str, dict[str, float]] = {name: {} for name in (THEIRS, OURS, NORMS)}
    for name in (OURS, NORMS) if THEIRS in measured else ():
        low, high = common.spread(measured[THEIRS], measured[name])
        ratio = common.ratio(measured[THEIRS], measured[name])
        found[name] = {"ratio": ratio, "low": low, "high": high}
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = material.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("--released", type=Path, metavar="PATH", help="its checkout")
    parser.add_argument("--tuning", choices=material.TUNINGS, default="full")
    parser.add_argument("--subsets", type=int, default=8, help="of an update (8)")
    parser.add_argument("--share", type=int, default=1, help="measure one in so many subsets")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    options = parse(argv)
    code = load(options.released) if options.released else None
    made = material.make(options)
    prompt = PLAIN_PROMPT if code is None else code.PROMPT_DICT["prompt_no_input"]
    taken = samples(options, made.tokenizer, prompt)
    model = made.model(options.tuning)
    trained = [taken.examples[i].whole for i in taken.measured(BACKWARD).ravel()]
    theirs = None if code is None else Theirs(code, taken, made, model)
    passes = partial(plain_passes, made, model, trained)
    bench = Bench(Ours(taken, made, model), theirs, lambda: made.seconds(passes), {})
    result = material.facts("update", options, made)
    result["measured"] = measured = common.interleaved(bench.contenders(), options.rounds)
    result["differences"] = {} if theirs is None else bench.differences()
    if made.dtype is None:
        check(result["differences"])
    result |= {"parts": bench.parts, "ratios": ratios(measured)}
    backward, forward = taken.tokens(BACKWARD), taken.tokens(FORWARD)
    plain = float(np.median(measured[FLOOR]))
    floors = {PARTS[0]: plain, PARTS[1]: plain * forward / (3 * backward)}
    result["floor"] = floors | {"whole": sum(floors.values())}
    result["counts"] = {
        "subsets": options.share * taken.mixture.num_subsets,
        "backward": options.share * len(trained),
        "forward": options.share * len(taken.examples),
        "backward_tokens": options.share * backward,
        "forward_tokens": options.share * forward,
    }
    report(result, options.share)
    if options.json:
        common.write(options.json, result)
    if theirs is None:
        common.say("update: not measured; give --released PATH, a checkout of the released code")
    else:
        common.say(f"update {result['ratios'][OURS]['ratio']:.2f}")


if __name__ == "__main__":
    main()
