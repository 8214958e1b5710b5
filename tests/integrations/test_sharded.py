"""Two real ranks that share a model, or hold copies of it, measure what one rank does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbo.data.build import BuiltMixture
from hbo.measure.gradient_norm import norms_one_by_one
from hbo.signals import GRADIENT_NORM, LOSS
from tests.integrations import sharded_script
from tests.support.tiny import tiny_model

ROOT = Path(__file__).parents[2]

# peft asks Transformers by a name that is on its way out.
pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks wrote; one launch for the whole file."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "tests.integrations.sharded_script", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def assert_same_values(found: Any, expected: Any) -> None:
    """Numbers in nested lists and dicts, to 1e-4; ``None`` and NaN where they are expected."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_values(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same_values(one, other)
    elif isinstance(expected, float | int):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    else:
        assert found == expected


def put_together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Values that two ranks handed in: signal -> values in order of ids, or of subsets."""
    together: dict[str, Any] = {}
    for name in parts[0]:
        columns = [part[name] for part in parts]
        if isinstance(columns[0][0], list):
            ids, values = (np.concatenate(pair) for pair in zip(*columns, strict=True))
            assert len(set(ids.tolist())) == len(ids)
            together[name] = values[np.argsort(ids)].tolist()
        else:
            known = np.isfinite(np.array(columns, dtype=float))
            assert (known.sum(axis=0) <= 1).all()
            whole = np.where(known, columns, 0.0).sum(axis=0)
            together[name] = np.where(known.any(axis=0), whole, np.nan).tolist()
    return together


@pytest.mark.parametrize(
    ("engine", "run"),
    [(engine, run) for engine, runs in sharded_script.ENGINES.items() for run in runs],
)
def test_rewards_and_laws_are_those_of_one_rank(
    ranks: list[dict[str, Any]], built: BuiltMixture, engine: str, run: str
) -> None:
    first, second = (rank["runs"][engine][run] for rank in ranks)
    assert [step["law"] for step in first] == [step["law"] for step in second]
    alone = sharded_script.train(built, lambda model: model, **sharded_script.RUNS[run])
    assert alone[0]["law"] != alone[-1]["law"] and alone[1]["rewards"] is not None
    assert_same_values(first, json.loads(json.dumps(alone)))


@pytest.mark.parametrize("make", sharded_script.MODELS)
def test_every_signal_of_a_sharded_model_is_that_of_the_whole_model(
    ranks: list[dict[str, Any]], make: str
) -> None:
    expected = sharded_script.values(sharded_script.MODELS[make](tiny_model()))
    together = put_together([rank["probes"][make] for rank in ranks])
    assert_same_values(together, put_together([expected]))
    if make == "full":
        assert_same_values(
            put_together([rank["micro-batches"] for rank in ranks]), put_together([expected])
        )


@pytest.mark.parametrize("make", sharded_script.MODELS)
@pytest.mark.parametrize("engine", ["fsdp2", "ddp"])
def test_norms_of_training_on_two_ranks_are_those_of_each_example_alone(
    ranks: list[dict[str, Any]], engine: str, make: str
) -> None:
    model = sharded_script.MODELS[make](tiny_model())
    for number, rank in enumerate(ranks):
        examples = [x for last in (0, 1) for x in sharded_script.norm_examples(number, bool(last))]
        found = rank["norms of training"][engine][make]
        alone = norms_one_by_one(model, examples, scope="all")
        np.testing.assert_allclose(found["norms"], alone, rtol=1e-5)
        assert np.ptp(alone) > 0 and found["same gradients"]


def test_one_rank_hands_in_what_all_measured(ranks: list[dict[str, Any]]) -> None:
    assert len(ranks[0]["probes"]["full"][GRADIENT_NORM][0]) == 9
    assert len(ranks[1]["probes"]["full"][GRADIENT_NORM][0]) == 0


def test_a_sharded_run_with_probes_is_bit_for_bit_the_run_without(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert rank["undisturbed"] == {"fsdp2": True, "ddp": True}
        assert rank["sharded again"]


def test_gradients_that_fsdp2_would_not_average_are_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        hooked, divided, waiting, _step = rank["refused"]
        assert "hooks run after each gradient" in hooked
        assert "set_gradient_divide_factor" in divided
        assert "at the end of an optimiser step" in waiting


def test_a_step_on_sharded_parameters_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        step = rank["refused"][3]
        assert "takes a step on whole parameters, and FSDP2 (fully_shard) shards them" in step


def test_no_rank_shrinks_a_shared_batch_alone(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "cannot shrink it alone: lower max_length" in rank["out of memory"]


def test_probes_under_ddp_reduce_nothing_and_are_dealt(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["ddp probes"]["reductions"] == 0
        assert rank["ddp probes"]["of a training step"] > 0
        assert len(rank["ddp probes"]["values"][LOSS][0]) in (4, 5)
    expected = sharded_script.values(tiny_model(), sharded_script.ONE_PASS)
    together = put_together([rank["ddp probes"]["values"] for rank in ranks])
    assert_same_values(together, put_together([expected]))


@pytest.mark.parametrize("number", [0, 1])
def test_fsdp1_gives_losses_and_refuses_gradients(ranks: list[dict[str, Any]], number: int) -> None:
    expected = sharded_script.values(tiny_model(), sharded_script.FORWARD)
    together = put_together([rank["fsdp1 probes"][number]["values"] for rank in ranks])
    assert_same_values(together, put_together([expected]))
    for rank in ranks:
        assert "cannot be probed under FSDP1" in rank["fsdp1 probes"][number]["gradient"]
        assert "pass the wrapper" in rank["fsdp1 probes"][number]["inside"]
