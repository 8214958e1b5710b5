"""The stream of draws beside other samplers: draws a second, memory, and the way to a position.

    python benchmarks/stream.py [--quick] [--json FILE]

Everyone draws from 8 subsets with equal probabilities, in one process and in turn. The last line is
`stream R`: our draws a second over the best other's, ids handed out one by one as to a loader, at
64 draws an optimiser step. A peer that is not installed is left out, and said (torchdata comes with
no extra but `bench`).
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import common
import numpy as np

from hbo.balancer import Balancer
from hbo.integrations.loader import BalancedSampler
from hbo.mixture import Mixture
from hbo.policies import Prior
from hbo.sampling import Stream, StreamDigest

SUBSETS = 8
OURS, ARRAYS = "hbo, ids one by one, steps of 64", "hbo, ids in arrays"
INTERLEAVED_IDS = "datasets.interleave_datasets, map-style: the list of ids"


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        examples: Examples of the mixture that all samplers draw from.
        draws: Draws of one measurement of a fast sampler; slow ones make a fiftieth.
        rounds: Measurements of each.
        many_examples: Examples of the large mixture of 1,000 x 4 cells.
        positions: Where the large stream is resumed.
        cells: Subsets and groups of the mixtures for speed by number of cells.
    """

    examples: int = 10**6
    draws: int = 10**6
    rounds: int = 7
    many_examples: int = 10**9
    positions: tuple[int, ...] = (10**4, 10**6, 10**8)
    cells: tuple[tuple[int, int], ...] = ((8, 1), (1000, 4), (4096, 4))


QUICK = Sizes(20_000, 4_000, 1, 10**6, (10**3, 10**4), ((8, 1), (16, 4)))


def subset_sizes(examples: int, subsets: int = SUBSETS) -> list[int]:
    """Unequal sizes, in proportion to 1, 2, 3, ..., that sum to about ``examples``."""
    whole = subsets * (subsets + 1) // 2
    return [max(1, examples * (k + 1) // whole) for k in range(subsets)]


def cell_sizes(examples: int, subsets: int, groups: int) -> np.ndarray:
    """(K, G) sizes of cells: each subset in equal groups."""
    rows = np.array(subset_sizes(examples, subsets))
    return np.repeat(np.maximum(rows // groups, 1)[:, None], groups, axis=1)


def rate(items: Iterable[object], count: int) -> float:
    """Items a second of the next ``count``."""
    made = 0

    def consume() -> None:
        nonlocal made
        for _ in islice(items, count):
            made += 1

    elapsed = common.seconds(consume)
    if made != count:
        raise RuntimeError(f"a sampler gave {made} of {count} items")
    return count / elapsed


# --- ours ----------------------------------------------------------------------------------------


def sampler(sizes: np.ndarray, draws_per_step: int) -> Iterator[int]:
    """What a loader iterates over: Python integers, one optimiser step after another."""
    mixture = Mixture(tuple(f"subset {k}" for k in range(len(sizes))), sizes)
    balancer = Balancer(
        mixture, Prior(temperature=float("inf")), seed=0, draws_per_step=draws_per_step
    )
    return iter(BalancedSampler(lambda: balancer, 10**12, lambda: False))


def array_rate(stream: Stream, count: int) -> float:
    """Draws a second where ids are taken as one array."""
    return count / common.seconds(lambda: stream.take(count))


def with_laws(sizes: np.ndarray, laws: int, every: int) -> Stream:
    """A stream with caps and a history of random laws, one each ``every`` draws."""
    stream = Stream(sizes, seed=1, max_draws=sizes.sum(axis=1) * 100)
    generator = np.random.default_rng(0)
    for number in range(laws):
        law = generator.dirichlet(np.ones(sizes.size)).reshape(sizes.shape)
        stream.push(number * every, law)
    return stream


# --- others --------------------------------------------------------------------------------------

Contenders = dict[str, Callable[[], float]]


def torch_contenders(sizes: Sizes) -> Contenders:
    """WeightedRandomSampler: a weight for each example, and all the ids of an epoch at once."""
    import torch
    from torch.utils.data import WeightedRandomSampler

    def measure(examples: int) -> Callable[[], float]:
        rows = torch.tensor(subset_sizes(examples))
        weights = (1.0 / rows.double()).repeat_interleave(rows)
        generator = torch.Generator().manual_seed(0)
        made = WeightedRandomSampler(weights, sizes.draws, generator=generator)  # type: ignore[arg-type]
        return lambda: rate(made, sizes.draws)

    return {
        f"torch WeightedRandomSampler, {examples:.0e} examples": measure(examples)
        for examples in (sizes.examples, sizes.examples * 10)
    }


def datasets_contenders(sizes: Sizes) -> Contenders:
    """interleave_datasets of map-style datasets (ids first, then rows) and of iterable ones."""
    import datasets

    rows = subset_sizes(sizes.examples)
    maps = [datasets.Dataset.from_dict({"id": np.arange(n)}) for n in rows]
    streams = [
        datasets.IterableDataset.from_generator(_trivial_rows, gen_kwargs={"count": n})
        for n in rows
    ]

    def mixed(parts: Sequence[Any]) -> Any:
        chances = [1 / SUBSETS] * SUBSETS
        return datasets.interleave_datasets(
            list(parts), probabilities=chances, seed=0, stopping_strategy="all_exhausted"
        )

    def ids() -> float:
        made: list[int] = []
        elapsed = common.seconds(lambda: made.append(len(mixed(maps))))
        return made[0] / elapsed

    few, built = sizes.draws // 50, mixed(maps)
    return {
        INTERLEAVED_IDS: ids,
        "datasets.interleave_datasets, map-style: its rows": lambda: rate(built, few),
        "datasets.interleave_datasets, iterable": lambda: rate(mixed(streams), few),
    }


def _trivial_rows(count: int) -> Iterator[dict[str, int]]:
    for number in range(count):
        yield {"id": number}


def torchdata_contenders(sizes: Sizes) -> Contenders:
    """MultiNodeWeightedSampler over nodes that count."""
    from torchdata.nodes import IterableWrapper, MultiNodeWeightedSampler, StopCriteria

    rows = {str(k): n for k, n in enumerate(subset_sizes(sizes.examples))}
    nodes = {name: IterableWrapper(range(n)) for name, n in rows.items()}
    made = MultiNodeWeightedSampler(nodes, dict.fromkeys(rows, 1.0), StopCriteria.CYCLE_FOREVER)
    made.reset()
    return {"torchdata MultiNodeWeightedSampler": lambda: rate(made, sizes.draws // 4)}


PEERS = {
    "torch": torch_contenders,
    "datasets": datasets_contenders,
    "torchdata": torchdata_contenders,
}


# --- the measurements ----------------------------------------------------------------------------


def speeds(sizes: Sizes) -> tuple[dict[str, list[float]], list[str]]:
    """Draws a second of everyone, and which peers are not installed."""
    cells = cell_sizes(sizes.examples, SUBSETS, 4)
    ids, small_steps = sampler(cells, draws_per_step=64), sampler(cells, draws_per_step=8)
    stream = Stream(cells, seed=0)
    stream.push(0, np.full(cells.shape, 1 / cells.size))
    contenders: Contenders = {
        OURS: lambda: rate(ids, sizes.draws),
        "hbo, ids one by one, steps of 8": lambda: rate(small_steps, sizes.draws),
        ARRAYS: lambda: array_rate(stream, sizes.draws),
    }
    missing = []
    for package, make in PEERS.items():
        try:
            contenders |= make(sizes)
        except ImportError:
            missing.append(package)
    return common.interleaved(contenders, sizes.rounds), missing


def speeds_by_cells(sizes: Sizes) -> dict[str, dict[str, float]]:
    """Our draws a second by number of cells, and by draws of an optimiser step."""
    result = {}
    for subsets, groups in sizes.cells:
        cells = cell_sizes(sizes.many_examples, subsets, groups)
        stream = Stream(cells, seed=0)
        stream.push(0, cells / cells.sum())
        contenders: Contenders = {"arrays": lambda made=stream: array_rate(made, sizes.draws)}
        for batch in (8, 256):
            ids = sampler(cells, batch)
            contenders[f"steps of {batch}"] = lambda made=ids: rate(made, sizes.draws)
        measured = common.interleaved(contenders, (sizes.rounds + 1) // 2)
        result[f"{subsets} x {groups}"] = common.medians(measured)
    return result


def memory(sizes: Sizes) -> dict[str, float]:
    """MiB that a stream of 1,000 x 4 cells takes at its peak, by number of examples."""
    result = {}
    for examples in (sizes.many_examples // 1000, sizes.many_examples):
        cells = cell_sizes(examples, 1000, 4)
        tracemalloc.start()
        stream = Stream(cells, seed=0)
        stream.push(0, cells / cells.sum())
        stream.take(8)
        stream.take(2**16)
        result[f"hbo, {cells.sum():.0e} examples"] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    return result


def torch_start(sizes: Sizes) -> dict[str, dict[str, float]]:
    """Resident MiB and seconds until WeightedRandomSampler gives its first id."""
    import psutil
    import torch
    from torch.utils.data import WeightedRandomSampler

    process, result = psutil.Process(), {}
    for examples in (sizes.examples, sizes.examples * 10):
        rows = torch.tensor(subset_sizes(examples))
        before = process.memory_info().rss
        held: list[object] = []

        def start(rows: Any = rows, examples: int = examples, held: list[object] = held) -> None:
            weights = (1.0 / rows.double()).repeat_interleave(rows)
            ids = iter(WeightedRandomSampler(weights, examples))  # type: ignore[arg-type]
            held.extend((ids, next(ids)))

        elapsed = common.seconds(start)
        mebibytes = (process.memory_info().rss - before) / 2**20
        result[f"{examples:.0e} examples"] = {"MiB": mebibytes, "seconds": elapsed}
    return result


def resumes(sizes: Sizes) -> dict[str, dict[str, float]]:
    """Milliseconds from the text of a saved state to the next id, and seconds of a full replay."""
    cells = cell_sizes(sizes.many_examples, 1000, 4)
    every = max(sizes.positions) // 100
    stream, result = with_laws(cells, 100, every), {}
    for position in sizes.positions:
        stream.skip(position - stream.position)
        state = stream.state_dict()
        text = json.dumps(state)
        steps: Contenders = {
            "write": lambda: common.seconds(lambda: json.dumps(stream.state_dict())),
            "read": lambda text=text: common.seconds(lambda: json.loads(text)),
            "load": lambda state=state: common.seconds(lambda: _load(cells, state)),
        }
        taken = common.medians(common.interleaved(steps, sizes.rounds * 3))
        result[f"{position:.0e}"] = {name: 1000 * taken[name] for name in taken}
    replay = common.seconds(lambda: StreamDigest.replay(stream, stream.position))
    result["replay"] = {"draws": stream.position, "seconds": replay}
    result["state"] = {"MiB": len(text) / 2**20}
    return result


def _load(cells: np.ndarray, state: dict[str, Any]) -> None:
    fresh = Stream(cells, seed=1, max_draws=cells.sum(axis=1) * 100)
    fresh.load_state_dict(state)
    fresh.take(1)


def ratios(measured: dict[str, list[float]]) -> dict[str, float]:
    """Ours over the best other's: ids one by one, and all at once where there is such a peer."""
    others = {name: values for name, values in measured.items() if not name.startswith("hbo")}
    at_once, rates = others.pop(INTERLEAVED_IDS, None), common.medians(others)
    found = {} if at_once is None else {"arrays": common.ratio(measured[ARRAYS], at_once)}
    if rates:
        best = others[max(rates, key=lambda name: rates[name])]
        found["stream"] = common.ratio(measured[OURS], best)
    return found


# --- what is said --------------------------------------------------------------------------------


def report(result: dict[str, Any]) -> None:
    """Print the tables; the ratio last."""
    rates, ours = result["rates"], result["rates"][OURS]
    rows = [[name, f"{value:,.0f}", f"{ours / value:.3g}"] for name, value in rates.items()]
    common.table(["sampler", "draws/s", "hbo, steps of 64 / this"], rows)
    kinds = list(next(iter(result["rates_by_cells"].values())))
    rows = [
        [name, *(f"{value[kind]:,.0f}" for kind in kinds)]
        for name, value in result["rates_by_cells"].items()
    ]
    common.table(["hbo, subsets x groups", *(f"{kind}, draws/s" for kind in kinds)], rows)
    places = {name: value for name, value in result["resume"].items() if "load" in value}
    rows = [[n, *(f"{v[key]:.1f}" for key in ("write", "read", "load"))] for n, v in places.items()]
    heads = ["saved at draw", "write, ms", "read the JSON, ms", "load and first id, ms"]
    common.table(heads, rows)
    replay = result["resume"]["replay"]
    common.say(f"replay of {replay['draws']:,} draws with their hash: {replay['seconds']:.1f} s")
    for name, value in result["memory"].items():
        common.say(f"memory of {name}, 1,000 x 4 cells: {value:.1f} MiB")
    for name, value in result["torch_start"].items():
        common.say(
            f"torch WeightedRandomSampler, an epoch of {name}: {value['MiB']:.0f} MiB and "
            f"{value['seconds']:.2f} s before the first id"
        )
    for package in result["missing"]:
        common.say(f"{package} is {common.NOT_INSTALLED}: left out; pip install {package}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the JSON file if asked for."""
    options = common.arguments(str(__doc__).partition("\n")[0], argv)
    sizes = QUICK if options.quick else Sizes()
    result: dict[str, Any] = {
        "benchmark": "stream",
        "quick": options.quick,
        **common.where("hbo", "numpy", "torch", "datasets", "torchdata"),
    }
    measured, result["missing"] = speeds(sizes)
    result["measured"], result["rates"] = measured, common.medians(measured)
    result["rates_by_cells"] = speeds_by_cells(sizes)
    result["memory"] = memory(sizes)
    result["torch_start"] = torch_start(sizes) if "torch" not in result["missing"] else {}
    result["resume"] = resumes(sizes)
    result["ratios"] = ratios(measured)
    report(result)
    if options.json:
        common.write(options.json, result)
    for name, value in result["ratios"].items():
        common.say(f"{name} {value:.3g}")


if __name__ == "__main__":
    main()
