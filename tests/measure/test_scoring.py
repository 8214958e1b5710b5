import json

import numpy as np
import pytest
import torch

from hbo.errors import ConfigError, EnvironmentProblem
from hbo.measure import scoring
from hbo.measure.fingerprints import (
    examples_fingerprint,
    model_fingerprint,
    scoring_fingerprint,
)
from hbo.measure.response import response_statistics
from hbo.measure.scoring import score_examples
from tests.measure.cases import random_examples
from tests.support.fake_ranks import on_ranks
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture
def examples():
    return random_examples(10)


class Counting:
    """A scoring model that counts the rows it ran, and can be killed at one."""

    def __init__(self, killed_at=None):
        self.model, self.rows = tiny_model(), 0
        self.killed_at = killed_at
        self.model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _module, _args, kwargs):
        self.rows += len(kwargs["input_ids"])
        if self.killed_at is not None and self.rows >= self.killed_at:
            raise KeyboardInterrupt


def score(model, examples, folder, **settings):
    settings = {"key": "model-a", "shard_size": 4, "alone": True} | settings
    return score_examples(model, examples, cache_dir=folder, **settings)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.loss, expected.loss)
    np.testing.assert_array_equal(found.alone_loss, expected.alone_loss)
    np.testing.assert_array_equal(found.response_tokens, expected.response_tokens)


def test_scores_are_the_response_statistics_with_and_without_a_cache(examples, tmp_path):
    model = tiny_model()
    expected = response_statistics(model, examples, alone=True)
    for found in (score(model, examples, tmp_path), score(model, examples, None)):
        np.testing.assert_allclose(found.loss, expected.loss, atol=1e-6)
        np.testing.assert_allclose(found.alone_loss, expected.alone_loss, atol=1e-6)


def test_the_second_time_nothing_is_run_nor_loaded(examples, tmp_path):
    first = score(tiny_model(), examples, tmp_path)
    calls = []
    again = score(
        lambda: pytest.fail("loaded for nothing"),
        examples,
        tmp_path,
        progress=lambda *call: calls.append(call),
    )
    assert_same(again, first)
    assert calls[-1] == (20, 20)


def test_the_passes_are_kept_apart(examples, tmp_path):
    counting = Counting()
    score(lambda: counting.model, examples, tmp_path, alone=False)
    assert counting.rows == 10
    score(lambda: counting.model, examples, tmp_path, alone=True)
    assert counting.rows == 20


def test_a_kill_loses_one_shard_at_most(examples, tmp_path):
    whole = score(tiny_model(), examples, tmp_path / "whole", tokens_per_batch=1)
    killed = Counting(killed_at=7)
    with pytest.raises(KeyboardInterrupt):
        score(killed.model, examples, tmp_path / "cut", tokens_per_batch=1)
    assert len(list((tmp_path / "cut").iterdir())) == 1
    resumed = Counting()
    found = score(resumed.model, examples, tmp_path / "cut", tokens_per_batch=1)
    assert resumed.rows == 20 - 4
    assert_same(found, whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: json.dumps(json.loads(text) | {"losses": [1.0, 2.0, 3.0, 4.0]}),
        lambda _text: "",
        lambda _text: "[]",
        lambda _text: "null",
        lambda text: json.dumps(json.loads(text) | {"schema": 0}),
        lambda _text: b"\xff\xfe\x00",
        lambda _text: '{"schema": 1, "sha256": 3, "losses": {}}',
    ],
    ids=["cut", "value", "empty", "list", "null", "schema", "bytes", "types"],
)
def test_a_damaged_shard_is_measured_again_with_a_notice(examples, tmp_path, damage):
    first = score(tiny_model(), examples, tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    changed = damage(victim.read_text())
    victim.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    notices, counting = [], Counting()
    found = score(counting.model, examples, tmp_path, notice=notices.append)
    assert_same(found, first)
    assert 0 < counting.rows <= 4
    assert len(notices) == 1 and str(victim) in notices[0] and "scored again" in notices[0]
    score(lambda: pytest.fail("not repaired"), examples, tmp_path)


def test_a_consistent_change_of_value_and_length_is_caught(examples, tmp_path):
    score(tiny_model(), examples, tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    shard = json.loads(victim.read_text())
    losses = shard["losses"][:-1]
    victim.write_text(
        json.dumps({"schema": 1, "losses": losses, "sha256": scoring._checksum(losses)})
    )
    notices = []
    score(tiny_model(), examples, tmp_path, notice=notices.append)
    assert len(notices) == 1


def test_nan_survives_the_cache(tmp_path):
    examples = random_examples(3)
    examples[1].labels[:] = -100
    first = score(tiny_model(), examples, tmp_path, alone=False)
    again = score(lambda: pytest.fail("loaded"), examples, tmp_path, alone=False)
    assert np.isnan(again.loss).tolist() == [False, True, False]
    np.testing.assert_array_equal(again.loss, first.loss)


@pytest.mark.parametrize("change", [{"key": "model-b"}, {"dtype": torch.bfloat16}])
def test_another_key_or_precision_is_another_score(examples, tmp_path, change):
    score(tiny_model(), examples, tmp_path)
    counting = Counting()
    score(counting.model, examples, tmp_path, **change)
    assert counting.rows == 20


def test_of_changed_or_appended_data_only_the_new_shards_are_measured(examples, tmp_path):
    score(tiny_model(), examples[:8], tmp_path, alone=False)
    counting = Counting()
    score(counting.model, examples, tmp_path, alone=False)
    assert counting.rows == 2
    examples[0].labels[-2] = -100
    score(counting.model, examples, tmp_path, alone=False)
    assert counting.rows == 6


def test_a_cache_without_a_key_is_refused(examples, tmp_path):
    with pytest.raises(ValueError, match="key"):
        score(tiny_model(), examples, tmp_path, key="")


def test_a_cache_that_cannot_be_written_stops_before_any_work(examples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write the score cache"):
        score(lambda: pytest.fail("loaded"), examples, tmp_path / "file")


def test_a_full_disk_keeps_the_shards_that_were_done(examples, tmp_path, monkeypatch):
    replace, calls = scoring.os.replace, []

    def full_from_the_second(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        replace(*arguments)

    monkeypatch.setattr(scoring.os, "replace", full_from_the_second)
    with pytest.raises(EnvironmentProblem, match="No space left on device"):
        score(tiny_model(), examples, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def leave_half_a_shard(examples, folder, monkeypatch):
    """What a process leaves behind that is killed in the middle of writing."""
    with monkeypatch.context() as patched:
        patched.setattr(scoring.os, "fsync", lambda _file: (_ for _ in ()).throw(SystemExit))
        patched.setattr(scoring.os, "unlink", lambda _path: None)
        with pytest.raises(SystemExit):
            score(tiny_model(), examples, folder)
    (leftover,) = folder.iterdir()
    return leftover


def test_what_a_kill_left_half_written_is_gone_after_the_next_run(examples, tmp_path, monkeypatch):
    leftover = leave_half_a_shard(examples, tmp_path, monkeypatch)
    foreign = tmp_path / "tmp123.tmp"
    foreign.write_text("not ours")
    score(tiny_model(), examples, tmp_path)
    assert not leftover.exists() and foreign.exists()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".tmp"}


def test_a_shard_whose_half_written_file_another_process_clears_up_is_written_again(
    examples, tmp_path, monkeypatch
):
    replace, cleared = scoring.os.replace, []

    def after_another_process_began(temporary, path):
        if len(cleared) < 2:
            cleared.append(temporary)
            scoring._open(tmp_path)
        replace(temporary, path)

    monkeypatch.setattr(scoring.os, "replace", after_another_process_began)
    first = score(tiny_model(), examples, tmp_path)
    assert len(set(cleared)) == 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"] * 6
    assert_same(score(lambda: pytest.fail("not written"), examples, tmp_path), first)


class Ranked:
    """Scores on several ranks, each with a model and, where asked, a disk of its own."""

    def __init__(self, world_size, folder_of):
        self.world_size, self.folder_of = world_size, folder_of
        self.models = [Counting() for _ in range(world_size)]
        self.loaded = [0] * world_size
        self.notices = [[] for _ in range(world_size)]
        self.calls = [[] for _ in range(world_size)]

    def score(self, examples, **settings):
        def work(ranks):
            def load():
                self.loaded[ranks.rank] += 1
                return self.models[ranks.rank].model

            return score(
                load,
                examples,
                self.folder_of(ranks.rank),
                ranks=ranks,
                notice=self.notices[ranks.rank].append,
                progress=lambda *call: self.calls[ranks.rank].append(call),
                **settings,
            )

        return on_ranks(self.world_size, work)

    @property
    def rows(self):
        return [model.rows for model in self.models]


def same_files(folder, other):
    return {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("disks", ["one", "each"])
def test_any_number_of_ranks_gives_the_same_bits_and_one_complete_cache(
    tmp_path, world_size, disks
):
    examples = random_examples(14)
    examples[5].labels[:] = -100  # NaN
    expected = score(tiny_model(), examples, tmp_path / "alone")
    ranked = Ranked(
        world_size, lambda rank: tmp_path / ("shared" if disks == "one" else f"disk-{rank}")
    )
    for found in ranked.score(examples):
        assert found.loss.tobytes() == expected.loss.tobytes()
        assert found.alone_loss.tobytes() == expected.alone_loss.tobytes()
    # Four shards a pass: 4, 4, 4 and 2 examples, one of them without a response.
    assert sum(ranked.rows) == 13 + 14
    assert ranked.loaded == [1] * min(world_size, 4) + [0] * (world_size - 4)
    assert ranked.calls[0][0] == (0, 28) and ranked.calls[0][-1] == (28, 28)
    done = [call[0] for call in ranked.calls[0]]
    assert done == sorted(done)
    assert same_files(tmp_path / ("shared" if disks == "one" else "disk-0"), tmp_path / "alone")


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_caches_that_differ_by_rank_change_no_score(tmp_path, world_size):
    examples = random_examples(14)
    expected = score(tiny_model(), examples, tmp_path / "whole")
    (tmp_path / "disk-0").mkdir()
    shards = sorted((tmp_path / "whole").iterdir())
    for rank in range(world_size):
        folder = tmp_path / f"disk-{rank}"
        folder.mkdir(exist_ok=True)
        for shard in shards[rank : rank + 5]:
            (folder / shard.name).write_bytes(shard.read_bytes())
    damaged = [tmp_path / f"disk-{rank}" / shards[rank].name for rank in range(world_size)]
    for path in damaged:
        path.write_text("{}")
    ranked = Ranked(world_size, lambda rank: tmp_path / f"disk-{rank}")
    for found in ranked.score(examples):
        assert_same(found, expected)
    missing = [json.loads(path.read_text())["losses"] for path in [shards[0], *shards[5:]]]
    assert sum(ranked.rows) == sum(len(losses) for losses in missing)
    assert [len(lines) for lines in ranked.notices] == [1] + [0] * (world_size - 1)
    assert str(damaged[0]) in ranked.notices[0][0]
    assert same_files(tmp_path / "disk-0", tmp_path / "whole")
    again = Ranked(world_size, lambda rank: tmp_path / f"disk-{rank}")
    again.score(examples)
    assert again.loaded == [0] * world_size


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_stops_all_and_what_was_done_is_kept(tmp_path, failing):
    examples = random_examples(14)
    ranked = Ranked(2, lambda _rank: tmp_path)

    def no_memory(*_arguments):
        raise torch.OutOfMemoryError("no memory")

    ranked.models[failing].model.register_forward_pre_hook(no_memory)
    results = ranked.score(examples)
    assert "out of memory on one example" in str(results[failing])
    assert f"rank {failing} failed; its own message says why" in str(results[1 - failing])
    assert all(isinstance(result, EnvironmentProblem) for result in results)
    assert len(list(tmp_path.iterdir())) == 1
    resumed = Ranked(2, lambda _rank: tmp_path)
    for found in resumed.score(examples):
        assert_same(found, score(tiny_model(), examples, None))
    assert sum(resumed.rows) == 28 - 4


def test_shards_of_like_cost_are_measured_side_by_side_the_longest_first(examples, tmp_path):
    order = sorted(examples, key=lambda example: example.num_tokens)  # the shortest in front
    widths = []
    model = tiny_model()
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: widths.append(inputs["input_ids"].shape[1]),
        with_kwargs=True,
    )
    score(model, order, tmp_path, alone=False, shard_size=2)
    assert len(widths) == 5 and widths == sorted(widths, reverse=True)


def test_a_disk_that_one_rank_cannot_write_stops_all_before_any_work(tmp_path):
    (tmp_path / "disk-1").write_text("")
    ranked = Ranked(3, lambda rank: tmp_path / f"disk-{rank}")
    first, second, third = ranked.score(random_examples(3))
    assert "cannot write the score cache" in str(second)
    assert "rank 1 failed" in str(first) and "rank 1 failed" in str(third)
    assert ranked.loaded == [0, 0, 0]


def test_a_disk_of_rank_0_that_fills_while_it_keeps_what_others_measured_stops_all(
    tmp_path, monkeypatch
):
    replace = scoring.os.replace

    def full_on_rank_0(temporary, path):
        if len(list((tmp_path / "disk-0").glob("*.json"))) == 1 and path.parent.name == "disk-0":
            raise OSError(28, "No space left on device")
        replace(temporary, path)

    monkeypatch.setattr(scoring.os, "replace", full_on_rank_0)
    ranked = Ranked(2, lambda rank: tmp_path / f"disk-{rank}")
    first, second = ranked.score(random_examples(14))
    assert "No space left on device" in str(first)
    assert "rank 0 failed" in str(second)


def test_model_fingerprints_tell_weights_configuration_and_precision_apart():
    first = model_fingerprint(tiny_model())
    assert first == model_fingerprint(tiny_model())
    assert first != model_fingerprint(tiny_model(seed=1))
    assert first != model_fingerprint(tiny_model().bfloat16())
    other = tiny_model()
    other.config.rms_norm_eps = 0.1
    assert first != model_fingerprint(other)
    trained = tiny_model()
    with torch.no_grad():
        trained.model.norm.weight[-1] += 1e-3
    assert first != model_fingerprint(trained)


def test_folder_fingerprints_follow_the_weights_and_not_the_place(tmp_path):
    first = model_fingerprint(save_tiny(tmp_path / "a"))
    assert first == model_fingerprint(str(save_tiny(tmp_path / "b")))
    assert first != model_fingerprint(save_tiny(tmp_path / "c", seed=1))
    (tmp_path / "d").mkdir()
    with pytest.raises(ConfigError, match="no weights"):
        model_fingerprint(tmp_path / "d")


def test_scoring_and_data_fingerprints():
    assert scoring_fingerprint("a", x=1) == scoring_fingerprint("a", x=1)
    assert scoring_fingerprint("a", x=1) != scoring_fingerprint("b", x=1)
    assert scoring_fingerprint("a", x=1) != scoring_fingerprint("a", x=2)
    examples = random_examples(3)
    assert examples_fingerprint(examples) == examples_fingerprint(random_examples(3))
    assert examples_fingerprint(examples) != examples_fingerprint(examples[::-1])
