"""The benchmarks run, on sizes that say nothing about speed."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.workspace import make_workspace, write_config

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a file of benchmarks/ as a script there does: by its bare name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_the_stream_benchmark_says_its_ratio_last(load, monkeypatch, tmp_path, capsys):
    def absent(sizes):
        raise ImportError

    benchmark = load("stream")
    monkeypatch.setattr(benchmark, "PEERS", {**benchmark.PEERS, "torchdata": absent})
    benchmark.main(["--quick", "--json", str(tmp_path / "stream.json")])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "stream.json").read_text(encoding="utf-8"))
    assert printed[-1] == f"stream {result['ratios']['stream']:.3g}"
    assert "torchdata is not installed: left out; pip install torchdata" in printed
    assert result["missing"] == ["torchdata"]
    assert {"device", "commit", "versions"} <= result.keys()
    rates = result["rates"]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates.values())
    others = [r for name, r in rates.items() if not name.startswith("hbo") and "list" not in name]
    assert result["ratios"]["stream"] == pytest.approx(rates[benchmark.OURS] / max(others))


def test_contenders_are_measured_in_turn(load):
    common = load("common")
    calls: list[str] = []

    def contender(name):
        def measure():
            calls.append(name)
            return float(len(calls))

        return measure

    measured = common.interleaved({name: contender(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abcabcabc"
    assert common.medians(measured) == {"a": 4.0, "b": 5.0, "c": 6.0}
    assert common.ratio(measured["b"], measured["a"]) == 5 / 4


def test_a_package_that_is_missing_is_named(load):
    found = load("common").versions("numpy", "no-such-package")
    assert found["no-such-package"] == "not installed"
    assert found["numpy"][0].isdigit()


@pytest.fixture
def quick(load, monkeypatch, tmp_path, capsys):
    """Run a benchmark of a model on a tiny one; its JSON result and the lines that it printed."""
    monkeypatch.setenv("HBO_CACHE", str(tmp_path / "cache"))

    def run(name, *options):
        file = tmp_path / f"{name}.json"
        load(name).main(["--quick", "--json", str(file), *options])
        result = json.loads(file.read_text(encoding="utf-8"))
        assert {"device", "commit", "versions", "threads"} <= result.keys()
        assert result["benchmark"] == name
        return result, capsys.readouterr().out.splitlines()

    return run


def test_the_overhead_benchmark_says_three_ratios_last(quick):
    result, printed = quick("overhead", "--clock", "cpu", "--share", "2")
    ratios = result["ratios"]
    kinds = ["static", "observed", "probed"]
    assert printed[-3:] == [f"{kind} {ratios[kind]['ratio']:.3f}" for kind in kinds]
    assert "seconds are processor time of this process, not wall time" in printed
    assert printed[-4].startswith("an update of probed was measured on one in 2 of its examples")
    floors = result["floors"]
    # Training shows enough of every cell; 32 and 64 of each of three subsets take them all.
    assert [floors["observed"][f"{way}_examples"] for way in ("forward", "backward")] == [0, 0]
    assert [floors["probed"][f"{way}_examples"] for way in ("forward", "backward")] == [44, 44]
    assert 1 < floors["probed"]["ratio"] < 1.01
    assert 1 < floors["observed"]["ratio"] < 1.05  # adapters are a large part of so small a model


def test_an_update_and_a_step_are_put_together_as_the_benchmark_says(load):
    measured = {
        "plain": [1.0, 2.0],
        "static": [1.0, 2.0],
        "observed": [1.5, 3.0],
        "observed update": [80.0],
        "probed": [1.0, 2.0],
        "probed update": [160.0],
    }
    # 200 steps of 8 measured ones: an update of 80 s is 0.05 s a measured step.
    found = load("overhead").combined(measured, scale=8, interval=200, every=1)
    assert found["static"]["ratio"] == 1
    assert found["observed"]["ratio"] == pytest.approx((1.55 + 3.05 / 2) / 2)
    # Norms on one step in ten: a tenth of what an observed step takes beyond a static one.
    tenth = load("overhead").combined(measured, scale=8, interval=200, every=10)
    assert tenth["observed"]["ratio"] == pytest.approx((1.1 + 2.15 / 2) / 2)
    assert (found["probed"]["low"], found["probed"]["high"]) == pytest.approx((1.05, 1.1))
    assert (found["probed"]["step"], found["probed"]["update"]) == (1, pytest.approx(0.075))
    assert found["static"]["update"] == 0


def test_overhead_refuses_to_compare_trainers_that_saw_other_examples(load, quick, monkeypatch):
    benchmark = load("overhead")
    monkeypatch.setattr(benchmark, "OURS", ("observed",))
    monkeypatch.setattr(benchmark.Bench, "drawn", (benchmark.np.arange(12), "another hash"))
    with pytest.raises(RuntimeError, match="observed trained on other examples than the rest"):
        quick("overhead")


def test_the_scoring_benchmark_says_its_ratio_last(quick):
    result, printed = quick("scoring")
    assert printed[-1] == f"scoring {result['ratios']['ifd']['ratio']:.3f}"
    assert printed[-2] == f"loss {result['ratios']['loss']['ratio']:.3f}"
    assert all(value >= 1 for value in result["padding"].values())
    once, fourfold = result["peak_mebibytes"]
    assert 0 < once <= fourfold


def test_bare_passes_run_all_tokens_and_no_padding(load, monkeypatch, tmp_path):
    monkeypatch.setenv("HBO_CACHE", str(tmp_path / "cache"))
    scoring, material = load("scoring"), load("material")
    made = material.make(material.parser("").parse_args(["--quick"]))
    examples = made.examples(44)
    tokens = sum(example.num_tokens for example in examples)
    answers = sum(example.response_tokens for example in examples)
    equal = scoring.equal_rows(examples, 200, "cpu")
    even = scoring.even_rows(examples, 200, "cpu")
    assert sum(rows.ids.numel() for rows in equal) == tokens
    assert sum(rows.ids.numel() for rows in even) == pytest.approx(tokens, rel=0.02)
    assert len(even) == len(scoring.plan_batches([e.num_tokens for e in examples], 200))
    for batches in (equal, even):
        assert sum(len(rows.places) for rows in batches) == answers
        assert all(rows.ids.numel() <= 200 for rows in batches)


def test_the_norms_benchmark_says_the_worse_ratio_last(quick):
    result, printed = quick("norms")
    ratios = {tuning: found["ratio"] for tuning, found in result["tunings"].items()}
    assert set(ratios) == {"lora", "full"}
    assert printed[-1] == f"norms {max(ratios.values()):.3f}"
    assert all(found["difference"] < 1e-4 for found in result["tunings"].values())


def test_the_throughput_benchmark_says_three_ratios_last(quick):
    result, printed = quick("throughput", "--clock", "cpu", "--row", "128")
    modes = result["modes"]
    assert printed[-3:] == [f"{mode} {found['ratio']:.3f}" for mode, found in modes.items()]
    assert list(modes) == ["padded", "padding_free", "packing"]
    assert [found["rows"] for found in modes.values()][:2] == [8, 8]
    assert 1 < modes["packing"]["rows"] < 8
    assert modes["padded"]["tokens"] == modes["padding_free"]["tokens"]


def test_throughput_refuses_to_compare_trainers_that_saw_other_rows(load, quick, monkeypatch):
    benchmark = load("throughput")
    monkeypatch.setattr(benchmark.Bench, "drawn", (benchmark.np.arange(24), "another hash"))
    with pytest.raises(RuntimeError, match="ours trained on other rows than TRL's"):
        quick("throughput", "--mode", "padded")


def test_the_signals_benchmark_says_its_correlations_last(quick):
    result, printed = quick("signals")
    medians = result["medians"]
    assert printed[-1] == f"signals {medians['local']['observed']:.3f}"
    assert printed[-2] == f"subsets {medians['global']['observed']:.3f}"
    assert [update["step"] for update in result["updates"]] == [4, 8]
    for level in ("global", "local"):
        assert all(-1 <= medians[level][key] <= 1 for key in ("observed", "probes"))
        assert medians[level]["probed_error"] > 0


def test_rank_correlation_shares_ranks_among_ties(load):
    one, other = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0, 1.0, 9.0])
    # Ranks 1, 2.5, 2.5, 4 and 2, 3, 1, 4: a product sum of 3 about the means, squares 4.5 and 5.
    assert load("signals").spearman(one, other) == pytest.approx(3.0 / (4.5 * 5) ** 0.5)


RELEASED = """
import math
from collections import OrderedDict

import torch

PROMPT_DICT = {"prompt_no_input": "Q: {instruction} A: "}


class BaseActor(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(size))


class DynaSampleTrainer:
    def pretrain_data_actor(self):
        print("not shown")

    def update_inter_probabilities(self, model, step):
        names = list(self.train_dataset.inter_probabilities)
        rewards = [self.rewards(model, name, 4, self.compute_gradnorm_reward) for name in names]
        pay = torch.tensor([sum(groups) for groups in rewards])
        law = self.moved(self.inter_data_actor, self.inter_data_optimizer, pay)
        return OrderedDict(zip(names, law))

    def update_intra_probabilities(self, model, step, category):
        pay = torch.tensor(self.rewards(model, category, 8, self.compute_diff_ppl_reward))
        optimizer = self.intra_data_optimizers[category]
        return OrderedDict(enumerate(self.moved(self.intra_data_actors[category], optimizer, pay)))

    def rewards(self, model, name, batches, reward):
        sample = self.train_dataset.sample_batch
        return [
            sum(reward(model, sample(2, name, group)) for _ in range(batches))
            for group in range(self.difficulty_levels)
        ]

    def moved(self, actor, optimizer, pay):
        for _ in range(self.data_optim_steps):
            optimizer.zero_grad()
            (-pay * actor.logits.log_softmax(0)).sum().backward()
            optimizer.step()
        return actor.logits.softmax(0).tolist()

    def compute_gradnorm_reward(self, model, sample):
        norms = []
        for example in sample:
            model.zero_grad()
            ids = torch.tensor([example["input_ids"]])
            model(input_ids=ids, labels=ids).loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norms.append(SCALE * torch.nn.utils.get_total_norm(gradients).item())
        return sum(norms) / len(norms)

    def compute_diff_ppl_reward(self, model, sample):
        ratios = []
        for example in sample:
            before = f"Q: {example['instruction']} A: "
            ids = torch.tensor([self.tokenizer.encode(before + example["output"])])
            labels = ids.clone()
            labels[:, : len(self.tokenizer.encode(before))] = -100
            with torch.no_grad():
                loss = model(input_ids=ids, labels=labels).loss.item()
            ratios.append(math.exp(loss) / example["model_ppl"])
        return sum(ratios) / len(ratios)
"""
"""Stands in for the released code, which is not here: the same names, written for this test."""


@pytest.fixture
def released(tmp_path):
    """A checkout with a stand-in; norms times ``scale``."""

    def make(scale=1.0):
        (tmp_path / "utils.py").write_text(RELEASED.replace("SCALE", str(scale)), encoding="utf-8")
        return str(tmp_path)

    return make


def test_the_update_benchmark_compares_the_same_values(quick, released):
    result, printed = quick("update", "--released", released())
    assert printed[-1] == f"update {result['ratios']['ours']['ratio']:.2f}"
    assert not any("not shown" in line for line in printed)
    gaps = result["differences"]
    assert max(gaps["gradient_norm"], gaps["perplexity_ratio"]) < 1e-4
    assert gaps["probabilities"] < 1e-2
    assert (result["counts"]["backward"], result["counts"]["forward"]) == (64, 128)
    for side in ("released", "ours"):
        parts = result["parts"][side][0]
        assert sum(parts.values()) == pytest.approx(result["measured"][side][0])
        assert all(seconds > 0 for seconds in parts.values())


def test_the_update_benchmark_refuses_a_released_code_that_measures_something_else(quick, released):
    with pytest.raises(RuntimeError, match="gradient_norm differ from the released code's"):
        quick("update", "--released", released(scale=1.01))


def test_the_update_benchmark_without_the_released_code_says_so(quick):
    result, printed = quick("update")
    assert printed[-1].startswith("update: not measured; give --released PATH")
    assert result["ratios"] == {"released": {}, "ours": {}, "ours, norms": {}}
    assert set(result["measured"]) == {"ours", "ours, norms", "floor"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--released", "nowhere"], "utils.py is not there"),
        (["--share", "2"], "at least two subsets are measured"),
    ],
)
def test_the_update_benchmark_says_what_it_needs(quick, options, said):
    with pytest.raises(SystemExit, match=said):
        quick("update", *options)


def test_the_growth_benchmark_says_three_numbers_last(quick):
    result, printed = quick("growth")
    ratios = [row["ratios"]["norms"] for row in result["model"][-2:]]
    step = result["subsets"][-1]["step"]
    longest = result["length"][-1]["ratios"]["norms"]
    assert printed[-3:] == [
        f"step_ms_1000 {step:.3f}",
        f"norms_largest {max(ratios):.3f}",
        f"norms_longest {longest:.3f}",
    ]
    few, many = result["subsets"]
    assert (few["subsets"], many["subsets"]) == (4, 1000)
    assert many["bytes"] > 50 * few["bytes"]
    assert [(row["model"], row["tuning"]) for row in result["model"]] == [
        (model, tuning) for model in ("tiny", "small") for tuning in ("lora", "full")
    ]
    assert [row["examples"] * row["length"] for row in result["length"]] == [64, 64]


def test_the_growth_benchmark_refuses_an_unknown_part(load, capsys):
    with pytest.raises(SystemExit):
        load("growth").main(["--parts", "subsets,width"])
    assert "--parts: width; there are subsets, model, length" in capsys.readouterr().err


def test_the_growth_benchmark_leaves_out_what_memory_does_not_hold(quick):
    # 0.57 million parameters of 4 bytes; the same again for gradients, where all are trained.
    result, _ = quick("growth", "--parts", "model", "--memory", "0.003")
    assert [(row["model"], row["tuning"]) for row in result["model"]] == [("tiny", "lora")]


def test_figure_2_is_worked_out_from_the_released_actor(load, tmp_path):
    benchmark = load("figure2")
    benchmark.main(["--quick", "--json", str(tmp_path / "figure2.json")])
    result = json.loads((tmp_path / "figure2.json").read_text(encoding="utf-8"))
    far = [float(row[-1]) for row in result["pace"]]
    assert far[-1] == 0 < min(far[:-1])
    # A sine of 17 points peaks again one period later; noise of one step's memory nowhere.
    wave = np.sin(2 * np.pi * np.arange(86) / 17)
    assert benchmark.first_peak(wave) > 0.6
    assert benchmark.first_peak(np.random.default_rng(0).normal(size=5000)) < 0.1


def test_kept_states_change_no_loss_and_no_gradient(load, tmp_path):
    import torch

    from tests.support.tiny import tiny_model

    kept, model = load("kept"), tiny_model()
    trained = list(model.get_decoder().layers[1].parameters())
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def measure():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        return logits, torch.autograd.grad(logits.logsumexp(dim=-1).sum(), trained)

    plain, plain_gradients = measure()
    runs: list[int] = []
    model.get_decoder().layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):  # computed and written, then read by another process's eyes
        with kept.kept_below(model, 1, kept.States(tmp_path, 32)):
            for _ in range(2):
                found, gradients = measure()
                torch.testing.assert_close(found, plain)
                torch.testing.assert_close(gradients, plain_gradients)
            model(input_ids=ids, attention_mask=mask, use_cache=True)  # runs whole
    assert len(runs) == 1 + 2  # once for the texts, and each time keys and values are wanted
    measure()
    assert len(runs) == 4


@pytest.mark.process
def test_the_quicker_comparison_trains_and_measures_as_hbo_compare_does(tmp_path):
    """Forked processes and kept states change how long it takes, and losses by rounding."""
    make_workspace(tmp_path)
    write_config(
        tmp_path,
        difficulty={"metric": "ifd", "groups": 2, "cache_dir": "scores"},
        tuning={"use_peft": True, "lora_r": 2, "lora_target_modules": [r".*layers\.1\..*_proj"]},
        evaluation={"holdout": 0.3},
    )
    options = ["config.yaml", "--policies", "prop,hbo", "--seeds", "1"]

    def heldout(name, *program):
        places = [f"--set=output_dir={name}", f"--set=difficulty.cache_dir={name}-scores"]
        command = [sys.executable, *program, *options, *places]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
        found = {}
        for path in sorted((tmp_path / name).glob("*/seed-*/heldout.json")):
            splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
            summary = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
            found[path.parent.relative_to(tmp_path / name)] = (splits, summary["stream_sha256"])
        return found

    plain = heldout("plain", "-m", "hbo", "compare")
    quick = heldout("quick", str(FOLDER / "compare.py"), "--jobs", "1", "--below", "1")
    assert plain.keys() == quick.keys() and len(plain) == 2
    for run, (splits, stream) in plain.items():
        measured, same = quick[run]
        assert same == stream, run
        for half, subsets in splits.items():
            for name, subset in subsets.items():
                found = measured[half][name]
                assert found["losses"] == pytest.approx(subset["losses"], abs=1e-4)
                assert found["correct"] == subset["correct"]
    assert (tmp_path / "quick" / "comparison.json").is_file()
    assert any((tmp_path / "build" / "kept").rglob("*"))


def test_headroom_is_that_of_losses_on_straight_lines(load, tmp_path, monkeypatch, capsys):
    """Three fixed policies whose losses are 5 - b ln(draws): the best shares are known."""
    falls = {"steep": 0.6, "flat": 0.2}
    for policy, draws in (("prop", (300, 100)), ("temp", (240, 160)), ("uni", (200, 200))):
        folder = tmp_path / policy / "seed-1"
        folder.mkdir(parents=True)
        losses = {n: 5 - b * math.log(d) for (n, b), d in zip(falls.items(), draws, strict=True)}
        subsets = {n: {"draws": d} for n, d in zip(falls, draws, strict=True)}
        (folder / "summary.json").write_text(json.dumps({"subsets": subsets}))
        test = {n: {"losses": [loss, loss], "tokens": [1, 3]} for n, loss in losses.items()}
        (folder / "heldout.json").write_text(json.dumps({"splits": {"test": test}}))
    benchmark = load("headroom")
    monkeypatch.setattr("sys.argv", ["headroom.py", str(tmp_path)])
    benchmark.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("steep        +0.600 (+-0.000)") and "share 75.0%" in printed[0]
    steep, flat = (5 - b * math.log(400 * p) for b, p in ((0.6, 0.75), (0.2, 0.25)))
    even = sum(5 - b * math.log(200) for b in falls.values())
    assert benchmark.gain(np.array([0.6, 0.2])) == pytest.approx((even - steep - flat) / 2)
    assert printed[2] == f"best fixed shares gain {(even - steep - flat) / 2:.3f} over uniform ones"
    assert benchmark.gain(np.array([0.3, 0.3])) == pytest.approx(0.0)
    assert benchmark.gain(np.array([0.4, -0.1])) == pytest.approx(0.2 * math.log(2))
