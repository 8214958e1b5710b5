"""Whether rewards observed in training rank subsets and groups as probed ones do.

    python benchmarks/signals.py [CONFIG] [--quick] [--json FILE] [--set KEY=VALUE ...]

Trains a configuration (the demo, with an update each 16 steps) by ``signals: observed``. At each
update, before anything is topped up, two independent probes measure the same rewards on
examples chosen evenly over the cells, as ``signals: probe`` would. Per update it prints, for the
global reward over subsets and the local reward over cells, Spearman's rank correlation

- *observed*: of observed and probed rewards (both probes together);
- *probes*: of one probe with the other: what noise alone leaves of the agreement, for probes of
  half the size;

and the median relative standard error of each. At the end, by subset, observed over probed global
rewards and how often its examples had been trained on. Observed rewards are of the weights during
the interval, with dropout, each example just before it is trained on again; probed ones of the
weights at its end, without, of any examples. The last line, ``signals R``, is the median over the
updates of the observed correlation of the local rewards; before it come ``subsets R`` for the
global ones, and the same of the probes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from hbo.assets import path
from hbo.cli.output import quiet_libraries
from hbo.config import load_config
from hbo.integrations import engine as engine_module
from hbo.integrations.top_up import lacking
from hbo.observations import Observations
from hbo.rewards import GLOBAL_REWARDS, LOCAL_REWARDS
from hbo.rewards.reward import Measured
from hbo.run.stop import listening
from hbo.run.train import train_run

DEMO = common.ROOT / "configs" / "demo.yaml"
LONGER = ("training.max_steps=96", "balance.update_interval=16", "evaluation.before=false")
QUICK = (
    "model=tiny-llama",
    "training.max_length=1024",
    "difficulty.metric=length",
    "training.max_steps=8",
    "balance.update_interval=4",
    "evaluation.max_examples=2",
)
PAID = ("balance.global_reward=gradient-norm", "balance.update_at_start=false")
"""The subsets' reward that has to be observed: the default, losses, is known of every example."""
PACKAGES = ("hbo", "torch", "transformers", "trl", "peft", "numpy")
LEVELS = ("global", "local")


class Watch:
    """Stands in for ``lacking``: first measures what a probe says, then lets the run go on.

    Args:
        examples: Examples of a cell in each of the two probes.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.updates: list[dict[str, Any]] = []

    def __call__(
        self, balancer: Any, probe: Any, model: Any, observed: frozenset[str], share: float
    ) -> Iterator[Any]:
        """Measure, compare, and give what ``lacking`` gives."""
        seen = self._rewards(balancer, balancer.observations)
        both = Observations(balancer.mixture)
        halves = []
        for number in (1, 2):
            half = Observations(balancer.mixture)
            other = replace(probe, examples_per_cell=self.examples, seed=probe.seed + number)
            found = other.measure(model, observed - {"tokens", "first_loss"}, balancer.step)
            for name, (ids, values) in found.examples.items():
                half.observe(ids, {name: values})
                both.observe(ids, {name: values})
            half.gather()
            halves.append(self._rewards(balancer, half))
        both.gather()
        probed = self._rewards(balancer, both)
        passes = balancer.draws.sum(axis=1) / balancer.mixture.subset_sizes
        rewards = {"passes": passes, "observed": seen["global"][0], "probed": probed["global"][0]}
        columns = zip(balancer.mixture.names, *rewards.values(), strict=True)
        self.updates.append(
            {"step": balancer.step, **compared(seen, probed, *halves)}
            | {"subsets": {name: dict(zip(rewards, row, strict=True)) for name, *row in columns}}
        )
        common.say(row_of(self.updates[-1]))
        yield from lacking(balancer, probe, model, observed, share)

    def _rewards(self, balancer: Any, observations: Observations) -> dict[str, Measured]:
        signals = observations.signals(balancer.step, balancer.draws)
        tables = zip(LEVELS, (GLOBAL_REWARDS, LOCAL_REWARDS), strict=True)
        names = (balancer.policy.global_reward, balancer.policy.local_reward)
        return {
            level: table[name].compute(signals)
            for (level, table), name in zip(tables, names, strict=True)
        }


def compared(
    seen: dict[str, Measured],
    probed: dict[str, Measured],
    one: dict[str, Measured],
    other: dict[str, Measured],
) -> dict[str, dict[str, float]]:
    """Rank correlations and errors, by level."""
    return {
        level: {
            "observed": spearman(seen[level][0], probed[level][0]),
            "probes": spearman(one[level][0], other[level][0]),
            "seen": float(np.isfinite(seen[level][0]).mean()),
            "observed_error": relative_error(seen[level]),
            "probed_error": relative_error(probed[level]),
        }
        for level in LEVELS
    }


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation over the entries that both know; ties share their mean rank.

    Example:
        >>> spearman(np.array([1.0, 2, 3, np.nan]), np.array([1.0, 4, 9, 0]))
        1.0
    """
    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < 3:
        return float("nan")
    return float(np.corrcoef(_ranks(one[known]), _ranks(other[known]))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def relative_error(measured: Measured) -> float:
    """Median standard error of a reward, as a share of it."""
    values, errors = measured
    known = np.isfinite(values) & np.isfinite(errors) & (values > 0)
    return float(np.median(errors[known] / values[known])) if known.any() else float("nan")


def row_of(update: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [str(update["step"])]
    for level in LEVELS:
        found = update[level]
        cells += [f"{found[key]:.2f}" for key in ("observed", "probes", "seen")]
        cells += [f"{found['observed_error']:.2f} / {found['probed_error']:.2f}"]
    return f"| {' | '.join(cells)} |"


def say_subsets(updates: Sequence[dict[str, Any]]) -> None:
    """By subset and update: observed over probed global reward, and passes."""
    rows = []
    for name in updates[0]["subsets"]:
        found = [update["subsets"][name] for update in updates]
        ratios = [f"{x['observed'] / x['probed']:.2f} ({x['passes']:.1f})" for x in found]
        rows.append([name, *ratios])
    common.say()
    heads = [f"step {update['step']}" for update in updates]
    common.table(["observed / probed (passes)", *heads], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, compare at each update, print, and write the JSON file if asked for."""
    parser = common.parser(str(__doc__).partition("\n")[0])
    parser.add_argument("config", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--examples", type=int, default=4, help="of a cell, in each probe (4)")
    options = parser.parse_args(argv)
    if options.quick:
        path("tiny-llama")
    result: dict[str, Any] = {"benchmark": "signals", "config": options.config.name}
    result |= {"set": options.set, "examples": options.examples, "threads": torch.get_num_threads()}
    result |= common.where(*PACKAGES)
    watch = Watch(2 if options.quick else options.examples)
    heads = "observed | probes | seen | errors"
    common.say(f"| step | subsets: {heads} | cells: {heads} |")
    common.say("|" + "---|" * 9)
    engine_module.lacking = watch
    with tempfile.TemporaryDirectory() as folder:
        changes = [*PAID, *LONGER, *(QUICK if options.quick else ()), f"output_dir={folder}/run"]
        loaded = load_config(options.config, [*changes, *options.set])
        try:
            with listening("") as stop, quiet_libraries(stdout=False):
                train_run(loaded, resume=False, overwrite=False, stop=stop)
        finally:
            engine_module.lacking = lacking
    result["updates"] = watch.updates
    medians = {
        level: {
            key: float(np.nanmedian([update[level][key] for update in watch.updates]))
            for key in watch.updates[0][level]
        }
        for level in LEVELS
    }
    result["medians"] = medians
    say_subsets(watch.updates)
    if options.json:
        common.write(options.json, result)
    common.say()
    for level, name in zip(LEVELS, ("subsets", "cells"), strict=True):
        common.say(f"probes of {name} {medians[level]['probes']:.3f}")
    common.say(f"subsets {medians['global']['observed']:.3f}")
    common.say(f"signals {medians['local']['observed']:.3f}")


if __name__ == "__main__":
    main()
