"""The benchmarks run, on sizes that say nothing about speed."""

import importlib
import json
import math
from pathlib import Path

import pytest

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
