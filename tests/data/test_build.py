import numpy as np
import pytest
from datasets import Dataset

from hbo.data.build import assemble, build_mixture
from hbo.data.rendering import Renderer
from hbo.data.scores import needs_model
from hbo.data.subset import EncodedSubset
from hbo.errors import ConfigError, DataError
from hbo.measure.examples import Encoded
from hbo.measure.ranks import ONE_RANK
from hbo.measure.response import response_statistics
from hbo.sampling.limits import Limits
from tests.support.fake_ranks import on_ranks
from tests.support.tiny import save_tiny, tiny_model, tiny_records, tiny_tokenizer


def subsets():
    return {
        "adding": tiny_records(9, kind="add"),
        "copies": Dataset.from_list(tiny_records(6, kind="copy", layout="chat")),
        "tiny": tiny_records(2, kind="noise", layout="messages"),
    }


def build(given=None, **settings):
    settings = {"tokenizer": tiny_tokenizer(), "difficulty": "length", "groups": 4} | settings
    return build_mixture(given or subsets(), **settings)


def test_rows_are_laid_out_by_subset_and_group_and_all_there():
    built = build()
    assert built.mixture.names == ("adding", "copies", "tiny")
    assert built.mixture.sizes.tolist() == [[3, 2, 2, 2], [2, 2, 1, 1], [1, 1, 0, 0]]
    assert built.dataset["hbo_example_id"][:] == list(range(17))
    renderer = Renderer(tiny_tokenizer())
    encoded = {
        name: [renderer.encode(record) for record in records] for name, records in subsets().items()
    }
    cells = built.mixture.cell_of(np.arange(17))
    for example, cell, row in zip(built.dataset, cells, built.rows, strict=True):
        expected = encoded[built.mixture.names[cell // 4]][row]
        assert example["input_ids"] == expected.input_ids.tolist()
        assert example["labels"] == expected.labels.tolist()
    for name, subset in zip(built.mixture.names, range(3), strict=True):
        rows = built.rows[cells // 4 == subset]
        assert sorted(rows.tolist()) == list(range(len(encoded[name])))
        counts = np.array([encoded[name][row].response_tokens for row in rows])
        groups = cells[cells // 4 == subset] % 4
        for group in range(1, groups.max() + 1):
            assert counts[groups == group - 1].max() <= counts[groups == group].min()
    assert np.isnan(built.dataset["hbo_first_loss"][:]).all()


def test_mean_tokens_of_cells_are_those_that_are_trained_on():
    built = build()
    labels = [np.array(row[1:]) for row in built.dataset["labels"]]
    tokens = np.array([(row != -100).sum() for row in labels], dtype=float)
    cells = built.mixture.cell_of(np.arange(17))
    for cell, mean in enumerate(built.mixture.mean_tokens.ravel()):
        assert mean == (tokens[cells == cell].mean() if (cells == cell).any() else 0)


@pytest.mark.parametrize("metric", ["ifd", "ifd-loss", "perplexity", "loss"])
def test_difficulty_and_first_losses_are_the_models(metric):
    model = tiny_model()
    given = {"adding": tiny_records(9, kind="add")}
    built = build(given, difficulty=metric, model=model, groups=3)
    renderer = Renderer(tiny_tokenizer())
    encoded = [renderer.encode(record) for record in given["adding"]]
    expected = response_statistics(model, encoded, alone=True)
    np.testing.assert_allclose(
        built.dataset["hbo_first_loss"][:], expected.loss[built.rows], rtol=1e-5
    )
    score = {
        "ifd": np.exp(expected.loss - expected.alone_loss),
        "ifd-loss": expected.loss / expected.alone_loss,
    }.get(metric, expected.loss)
    groups = np.repeat(np.arange(3), 3)
    ranked = np.empty(9, dtype=int)
    ranked[np.argsort(score)] = groups
    assert ranked[built.rows].tolist() == groups.tolist()


def test_another_scoring_model_measures_difficulty_and_not_the_first_losses():
    given = {"adding": tiny_records(9, kind="add")}
    settings = {"difficulty": "loss", "groups": 9}
    mine = build(given, model=tiny_model(0), **settings)
    other = build(given, model=tiny_model(1), **settings)
    both = build(given, model=tiny_model(0), scoring_model=tiny_model(1), **settings)
    assert both.rows.tolist() == other.rows.tolist() != mine.rows.tolist()

    def by_row(built):
        return np.array(built.dataset["hbo_first_loss"][:])[np.argsort(built.rows)]

    np.testing.assert_allclose(by_row(both), by_row(mine), rtol=1e-5)
    only = build(given, scoring_model=tiny_model(1), **settings)
    assert only.rows.tolist() == other.rows.tolist()
    assert np.isnan(only.dataset["hbo_first_loss"][:]).all()


def test_difficulty_from_a_column():
    records = [r | {"level": 9 - i} for i, r in enumerate(tiny_records(9))]
    built = build({"a": records}, difficulty="column:level", groups=9)
    assert built.rows.tolist() == list(range(8, -1, -1))
    with pytest.raises(DataError, match=r"subset 'b': row 0: .*needs a column 'level'"):
        build({"a": records, "b": tiny_records(3)}, difficulty="column:level")


def test_a_saved_model_by_its_path_and_its_own_tokenizer(tmp_path):
    folder = str(save_tiny(tmp_path / "model"))
    by_path = build(model=folder, tokenizer=None, difficulty="perplexity")
    by_hand = build(model=tiny_model(), difficulty="perplexity")
    assert by_path.mixture.fingerprint == by_hand.mixture.fingerprint
    with pytest.raises(ConfigError, match="no tokenizer at"):
        build(model=str(tmp_path), tokenizer=None)
    with pytest.raises(ConfigError, match="no model can be loaded"):
        build(model=str(tmp_path), difficulty="loss")
    with pytest.raises(ConfigError, match="pass tokenizer="):
        build(tokenizer=None)


def test_scores_are_cached(tmp_path):
    seen = []
    settings = {"model": tiny_model(), "difficulty": "ifd", "cache_dir": tmp_path}
    first = build(**settings)
    again = build(**settings, progress=lambda done, total: seen.append((done, total)))
    assert again.dataset["hbo_first_loss"][:] == first.dataset["hbo_first_loss"][:]
    assert any(tmp_path.iterdir())
    assert seen[-1] == (34, 34)


def test_the_fingerprint_is_the_contents_and_their_order():
    records = tiny_records(8)
    base = build({"a": records})
    assert build({"a": records}).mixture.fingerprint == base.mixture.fingerprint
    everything = Renderer(tiny_tokenizer(), completion_only=False)
    changed = [*records[:-1], records[-1] | {"completion": "other"}]
    fingerprints = {
        base.mixture.data_fingerprint,
        build({"a": changed}).mixture.data_fingerprint,
        build({"a": records[::-1]}).mixture.data_fingerprint,
        build({"a": records}, renderer=everything).mixture.data_fingerprint,
    }
    assert len(fingerprints) == 4


def test_weights_and_limits():
    limits = Limits(np.array([0.0, 0.1, 0]), np.ones(3), np.array([np.inf, np.inf, 4]))
    weights = {"tiny": 2.0, "adding": 1.0, "copies": 1.0}
    built = build(weights=weights, limits=limits)
    assert built.weights.tolist() == [0.25, 0.25, 0.5]
    assert built.limits is limits
    assert build().weights is None
    assert build().limits.min_share.tolist() == [0, 0, 0]


REFUSED = [
    ({"weights": {"adding": 1.0}}, ConfigError, "without a partner: copies, tiny"),
    ({"limits": Limits(np.full(3, 0.5), np.ones(3), np.ones(3))}, ConfigError, "above 1"),
    ({"difficulty": "idf"}, ConfigError, "allowed are ifd, .* and column:NAME"),
    ({"difficulty": "column:"}, ConfigError, "allowed are ifd, .* and column:NAME"),
    ({"difficulty": "ifd"}, ConfigError, "pass model= or scoring_model="),
    ({"groups": 0}, ConfigError, "groups"),
]


@pytest.mark.parametrize(("settings", "kind", "message"), REFUSED)
def test_settings_that_are_refused(settings, kind, message):
    with pytest.raises(kind, match=message):
        build(**settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": []}, "subset 'a' is empty"),
        ({"a": ["text"]}, r"subset 'a': row 0: expected a dict, got str"),
        ({"a": {"train": []}}, r"subset 'a' holds splits \(train\): pass one of them"),
        ({"a": [{"prompt": "x"}]}, "row 0: a record without a response"),
    ],
)
def test_data_that_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        build(given)


def test_no_subset_at_all():
    with pytest.raises(DataError, match="at least one subset"):
        build_mixture({}, difficulty="length", tokenizer=tiny_tokenizer())


def test_text_has_no_ifd():
    with pytest.raises(DataError, match=r"row 0: difficulty\.metric ifd .*use perplexity"):
        build({"a": [{"text": "a"}]}, difficulty="ifd", model=tiny_model())


def test_skipped_and_dropped_are_told():
    lines = []
    records = [{"prompt": "a"}, *tiny_records(3), {"prompt": "x" * 99, "completion": "y"}]
    built = build({"a": records}, on_bad_record="skip", max_length=50, notice=lines.append)
    assert built.dropped == {"a": 1}
    assert built.mixture.num_examples == 3
    assert lines[0].startswith("subset 'a': row 0: skipped: a record without a response")
    assert lines[1] == "subset 'a': 1 examples dropped, as truncation left no response"


def test_assemble_keeps_groups_of_unknown_difficulty_last():
    encoded = tuple(Encoded(np.array([1, token]), np.array([-100, token])) for token in range(2, 6))
    subset = EncodedSubset(encoded, np.array([0, 2, 3, 5]), np.array([1, 4]))
    scores = {"a": np.array([np.nan, 3.0, 1.0, np.inf])}
    built = assemble({"a": subset}, scores, groups=2, first_losses={"a": np.arange(4.0)})
    assert built.rows.tolist() == [2, 3, 0, 5]
    assert built.dataset["hbo_first_loss"][:] == [1, 2, 0, 3]
    assert built.dropped == {"a": 2}


def test_needs_model():
    assert [needs_model(m) for m in ("loss", "length", "column:x")] == [True, False, False]


def test_a_stream_is_refused_with_the_way_out():
    stream = Dataset.from_list([{"prompt": "x", "completion": "y"}] * 4).to_iterable_dataset()
    with pytest.raises(DataError, match=r"subset 'a' is a stream .* use a map-style dataset"):
        build({"a": stream})


def test_ranks_share_the_scoring_and_get_the_same_mixture():
    passes, models = [], [tiny_model(), tiny_model()]  # one for each rank
    given = {name: tiny_records(150, kind=name) for name in ("add", "copy")}
    for rank, model in enumerate(models):
        model.register_forward_hook(lambda *_, rank=rank: passes.append(rank))

    def work(ranks):
        return build(given, difficulty="ifd", model=models[ranks.rank], ranks=ranks)

    alone = work(ONE_RANK)
    needed = len(passes)
    passes.clear()
    for shared in on_ranks(2, work):
        assert shared.mixture.fingerprint == alone.mixture.fingerprint
        assert shared.dataset["hbo_first_loss"][:] == alone.dataset["hbo_first_loss"][:]
    assert len(passes) == needed and set(passes) == {0, 1}


def test_the_easiest_share_of_each_subset_is_left_out():
    encoded = EncodedSubset(
        tuple(Encoded(np.array([1, n]), np.array([-100, n])) for n in range(2, 12)),
        np.arange(10),
        np.array([], dtype=np.int64),
    )
    scores, losses = np.array([5.0, 1, 9, 2, 8, 3, 7, 4, 6, 0]), np.arange(10.0)
    built = assemble(
        {"a": encoded}, {"a": scores}, groups=2, first_losses={"a": losses}, drop_easiest=0.35
    )
    assert built.mixture.sizes.tolist() == [[4, 3]]
    assert built.rows.tolist() == [0, 5, 7, 8, 2, 4, 6]
    assert built.dataset["hbo_first_loss"][:] == built.rows.tolist()


def test_held_out_examples_are_encoded_and_kept_apart_from_what_is_drawn():
    heldout = {
        "copies": tiny_records(3, seed=5, kind="copy", layout="messages"),
        "adding": Dataset.from_list(tiny_records(2, seed=5, kind="add")),
    }
    lines = []
    built = build(heldout=heldout, notice=lines.append)
    without = build()
    assert built.mixture.fingerprint == without.mixture.fingerprint
    assert built.dataset["input_ids"][:] == without.dataset["input_ids"][:]
    assert not without.heldout
    assert set(built.heldout) == set(heldout) and not lines
    renderer = Renderer(tiny_tokenizer())
    for name, records in heldout.items():
        for found, record in zip(built.heldout[name], records, strict=True):
            expected = renderer.encode(record)
            assert found.input_ids.tolist() == expected.input_ids.tolist()
            assert found.labels.tolist() == expected.labels.tolist()


def test_held_out_records_are_checked_as_training_records_are():
    with pytest.raises(ConfigError, match="heldout has 'other', which is no subset; the subsets"):
        build(heldout={"other": tiny_records(1)})
    with pytest.raises(DataError, match="held-out set 'tiny': row 0"):
        build(heldout={"tiny": [{"nothing": 1}]})
    with pytest.raises(DataError, match=r"held-out set 'tiny' holds splits \(train\)"):
        build(heldout={"tiny": {"train": []}})
    lines, long = [], {"prompt": "x" * 99, "completion": "y"}
    built = build(heldout={"tiny": [long, *tiny_records(1)]}, max_length=60, notice=lines.append)
    assert len(built.heldout["tiny"]) == 1
    assert lines == ["held-out set 'tiny': 1 examples dropped, as truncation left no response"]


def test_held_out_prompts_that_are_trained_on_are_told_and_an_empty_set_is_named():
    lines: list[str] = []
    build(heldout={"adding": tiny_records(2, kind="add")}, notice=lines.append)
    assert lines == [
        "held-out set 'adding': 2 of its prompts are trained on as well; what is measured on them"
        " is no validation"
    ]
    with pytest.raises(DataError, match="subset 'heldout of adding' is empty"):
        build(heldout={"adding": []})
    with pytest.raises(ConfigError, match="heldout must be a mapping"):
        build(heldout=[1])
