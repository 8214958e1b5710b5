"""Fetched once, checked, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from hbo import assets
from hbo.assets import cache as cache_module
from hbo.assets import models, wheels
from hbo.errors import ConfigError, EnvironmentProblem
from tests.assets.fake import write_wheel


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_mixture_is_fetched_once_and_written_in_trls_format(index):
    told = []
    folder = assets.pull("fake", told.append)
    assert [file.name for file in folder.iterdir()] == ["sums.jsonl"]
    assert len(rows(folder / "sums.jsonl")) == 20
    assert rows(folder / "sums.jsonl")[0].keys() == {"prompt", "completion"}
    assert told[0].startswith("fetching fakeevals-1.0")
    assert assets.is_cached("fake")
    assert assets.pull("fake") == assets.path("fake") == folder
    assert index.asked == ["fakeevals==1.0"]
    assert index.leftovers() == []


def test_another_asset_of_the_same_wheel_downloads_nothing(index):
    assets.pull("fake")
    assert assets.asset_data_files("all", "sums").name == "sums.jsonl"
    assert index.asked == ["fakeevals==1.0"]


def test_other_bytes_than_the_pinned_ones_are_refused(index, tmp_path):
    good = index.file
    index.file = tmp_path / "other.whl"
    index.file.write_bytes(b"not the wheel")
    with pytest.raises(EnvironmentProblem, match=r"fakeevals-1.0.*SHA-256 is .*, not") as caught:
        assets.pull("fake")
    assert "\n" not in str(caught.value)
    assert not assets.is_cached("fake")
    assert not wheels.wheel_path(index.wheel).exists()
    assert index.leftovers() == []
    index.file = good
    assets.pull("fake")


def test_a_damaged_wheel_in_the_cache_is_fetched_again(index):
    assets.pull("fake")
    shutil.rmtree(assets.pull("fake"))
    wheels.wheel_path(index.wheel).write_bytes(b"torn")
    assets.pull("fake")
    assert len(index.asked) == 2


def test_a_failure_in_the_middle_leaves_nothing_and_the_next_pull_goes_on(index, monkeypatch):
    def torn(_asset, _wheel, folder):
        (folder / "sums.jsonl").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "build_mixture_folder", torn)
        with pytest.raises(KeyboardInterrupt):
            assets.pull("fake")
    assert not assets.is_cached("fake")
    assert index.leftovers() == []
    assert len(rows(assets.asset_data_files("fake", "sums"))) == 20
    assert len(index.asked) == 1  # the wheel was complete


def test_what_a_killed_process_left_is_cleared_away(index):
    dead = [
        index.cache / "mixtures" / ".partial-fake-1-abc",
        index.cache / "wheels" / f".partial-{index.wheel.filename}-abc",
    ]
    for folder in dead:
        folder.mkdir(parents=True)
        (folder / "half").write_text("")
    assets.pull("fake")
    assert index.leftovers() == []


def test_a_killed_single_dataset_is_written_again(index, monkeypatch):
    def torn(_wheel, _member, target):
        target.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(assets, "write_subset", torn)
        with pytest.raises(EnvironmentProblem, match="No space left on device; set HBO_CACHE"):
            assets.asset_data_files("all", "sums")
    assert len(rows(assets.asset_data_files("all", "sums"))) == 20


def test_names_that_do_not_exist_name_the_nearest(index):
    with pytest.raises(ConfigError, match=r"no asset 'fale' \(nearest: 'fake'\); there are: fake"):
        assets.pull("fale")
    with pytest.raises(ConfigError, match=r"no subset 'sum' in the asset 'fake' \(nearest: 'sums"):
        assets.asset_data_files("fake", "sum")
    with pytest.raises(ConfigError, match=r"needs `name`, one of: sums"):
        assets.asset_data_files("fake")
    with pytest.raises(ConfigError, match=r"no subset 'two/c' in the asset 'all'.*there are the 3"):
        assets.asset_data_files("all", "two/c")
    assert index.asked == ["fakeevals==1.0"]  # only the open mixture has to look


def test_models_and_mixtures_are_not_mixed_up():
    with pytest.raises(ConfigError, match="'exams' is a mixture, not a model"):
        assets.resolve_model("exams")
    with pytest.raises(ConfigError, match="'smollm2-135m' is a model, not a mixture"):
        assets.asset_data_files("smollm2-135m", "x")
    with pytest.raises(ConfigError, match="nearest asset: 'smollm2-135m'"):
        assets.resolve_model("smolm2-135m")
    for other in ("gpt2", "owner/smollm2-135m", "./smollm2"):
        assert assets.resolve_model(other) == other


def test_a_full_disk_is_seen_before_the_download(index, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _path: usage(0, 0, 0))
    with pytest.raises(EnvironmentProblem, match=r"needs 0 MB of disk, 0 MB are free; make room"):
        assets.pull("fake")
    assert index.asked == []


def test_a_cache_that_cannot_be_written_is_one_line(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HBO_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="cannot write the asset 'fake' to the cache: "):
        assets.pull("fake")


def test_tiny_llama_is_the_tests_own_model_and_needs_no_network(cache, monkeypatch, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.support.tiny import save_tiny

    monkeypatch.setattr(wheels, "run_pip", None)
    folder = assets.resolve_model("tiny-llama")
    expected = save_tiny(tmp_path / "expected")
    ours = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(expected).state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    tokenizer, other = (AutoTokenizer.from_pretrained(path) for path in (folder, expected))
    chat = [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "ß"}]
    assert tokenizer.apply_chat_template(chat) == other.apply_chat_template(chat)


def test_the_global_random_state_is_left_alone(tmp_path):
    import torch

    before = torch.get_rng_state()
    models.build_tiny_llama(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


PULL = """
import sys
from hbo.assets import catalogue, pull
from tests.assets.fake import mixture
asset = mixture(catalogue.Wheel("fakeevals", "1.0", sys.argv[1], 1))
catalogue.ASSETS = {"fake": asset}
print(pull("fake", lambda text: print(text, file=sys.stderr)))
"""


@pytest.mark.process
def test_two_processes_share_one_download_through_real_pip(cache, tmp_path, monkeypatch):
    _, wheel = write_wheel(tmp_path)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", PULL, wheel.sha256]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    # stdout is the folder and nothing else, whatever pip says.
    assert {out for out, _ in outputs} == {f"{cache / 'mixtures' / 'fake-1'}\n"}
    assert sum("fetching" in err for _, err in outputs) == 1
    assert len(rows(cache / "mixtures" / "fake-1" / "sums.jsonl")) == 20


@pytest.mark.process
def test_no_network_is_one_line_with_pips_reason(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(EnvironmentProblem, match=r"cannot fetch evals==.*ERROR: .*check the") as it:
        assets.pull("exams")
    assert "\n" not in str(it.value)
    assert not assets.is_cached("exams")
