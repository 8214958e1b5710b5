"""What is prepared of a configuration before any model is loaded."""

from pathlib import Path

import pytest

from hbo.config import load_config
from hbo.run.plan import plan_of
from hbo.run.prepare import prepare
from tests.support.workspace import make_workspace


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: load_config("config.yaml", overrides)


def prompts(part) -> list[tuple[int, ...]]:
    return [example.input_ids.tobytes() for example in part.encoded.encoded]


def test_a_share_of_the_training_data_leaves_what_is_held_out_as_it_is(loaded):
    whole, half = (prepare(loaded(f"train_share={share}")) for share in (1.0, 0.5))
    for all_of_it, part in zip(whole.parts, half.parts, strict=True):
        assert len(prompts(part)) == -(-len(prompts(all_of_it)) // 2)
        assert set(prompts(part)) < set(prompts(all_of_it))
        assert len(part.test) == len(all_of_it.test)
        assert part.overlap == all_of_it.overlap == 0


def test_a_plan_counts_what_dropping_the_easiest_leaves(loaded):
    whole, half = (plan_of(prepare(loaded(f"difficulty.drop_easiest={s}"))) for s in (0.0, 0.5))
    assert (half.mixture.subset_sizes == -(-whole.mixture.subset_sizes // 2)).all()


def test_the_fingerprint_is_of_the_training_examples_and_not_of_their_groups(loaded):
    whole = prepare(loaded()).fingerprint
    assert prepare(loaded("difficulty.groups=3", "difficulty.metric=loss")).fingerprint == whole
    assert prepare(loaded("train_share=0.5")).fingerprint != whole
