import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from hbo.errors import ConfigError
from hbo.measure.batches import collate
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.gradient_cosines import gradient_cosines
from hbo.measure.gradient_norm import (
    batch_gradient_norm,
    example_gradient_norms,
)
from hbo.measure.probe import PROBED_SIGNALS, Probe
from hbo.measure.uncertainty import SPREADS
from hbo.mixture import Mixture
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    CELL_HIDDEN_COSINE,
    CELL_SIGNALS,
    GRADIENT_COSINE,
    GRADIENT_NORM,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    WHOLE_SIGNALS,
)
from tests.measure.cases import naive_losses, random_examples, random_heldout
from tests.support.tiny import tiny_model

# peft asks Transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

MIXTURE = Mixture(("large", "small", "tiny"), np.array([[6, 6], [3, 2], [1, 0]]))
EXAMPLES = random_examples(MIXTURE.num_examples)
HELDOUT = random_heldout(MIXTURE.num_subsets)
ONE_PASS = PROBED_SIGNALS - SPREADS


def get_examples(ids):
    return [EXAMPLES[index] for index in ids]


def probe(**settings):
    settings = {
        "examples_per_cell": 2,
        "first_loss": lambda ids: 0.01 * ids,
        "heldout": HELDOUT,
        "heldout_examples": 4,
        "learning_rate": lambda: 0.1,
    } | settings
    return Probe(MIXTURE, get_examples, **settings)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 2**63))
def test_every_cell_gives_as_many_different_examples_as_it_has(number, count, seed):
    ids = probe(seed=seed).cell_examples(number, count)
    assert len(set(ids.tolist())) == len(ids)
    found = np.bincount(MIXTURE.cell_of(ids), minlength=6)
    assert found.tolist() == np.minimum(MIXTURE.sizes.ravel(), count).tolist()


def test_choices_depend_on_seed_and_number_alone_and_the_small_is_the_head_of_the_large():
    first = probe(seed=1).cell_examples(5, 4)
    assert np.array_equal(first, probe(seed=1).cell_examples(5, 4))
    assert not np.array_equal(first, probe(seed=2).cell_examples(5, 4))
    assert not np.array_equal(first, probe(seed=1).cell_examples(6, 4))
    for count in range(1, 6):
        small, large = (probe().cell_examples(3, n) for n in (count, count + 1))
        in_first_cell = [ids[MIXTURE.cell_of(ids) == 0].tolist() for ids in (small, large)]
        assert in_first_cell[1][:count] == in_first_cell[0]


def test_over_many_probes_each_example_of_a_cell_is_read_equally_often():
    chosen = np.concatenate([probe().cell_examples(number, 2) for number in range(1500)])
    counts = np.bincount(chosen, minlength=MIXTURE.num_examples)[:6]
    assert counts.sum() == 3000
    # Each is read 500 times on average, with a standard deviation of 18.
    assert np.abs(counts - 500).max() < 5 * 18


def test_a_batch_of_a_subset_is_uniform_over_the_subset_and_apart_from_the_cells():
    batches = [probe(examples_per_subset=3).subset_batch(number, 1) for number in range(2000)]
    assert all(len(set(batch.tolist())) == 3 for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=18)
    assert counts[:12].sum() == 0 and counts[17:].sum() == 0
    assert np.abs(counts[12:17] - 1200).max() < 5 * 22
    assert len(probe(examples_per_subset=99).subset_batch(0, 2)) == 1


def test_per_example_signals_are_those_of_the_examples():
    model = tiny_model()
    values = probe().measure(model, {LOSS, PERPLEXITY, PERPLEXITY_RATIO, GRADIENT_NORM}, 7)
    ids, losses = values.examples[LOSS]
    expected = naive_losses(model, get_examples(ids))
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    np.testing.assert_allclose(values.examples[PERPLEXITY][1], np.exp(expected), rtol=1e-4)
    ratio_ids, ratios = values.examples[PERPLEXITY_RATIO]
    np.testing.assert_allclose(ratios, np.exp(expected - 0.01 * ratio_ids), rtol=1e-4)
    norm_ids, norms = values.examples[GRADIENT_NORM]
    assert np.array_equal(norm_ids, ids)
    np.testing.assert_allclose(norms, example_gradient_norms(model, get_examples(ids)), rtol=1e-6)
    assert (values.forward_examples, values.backward_examples) == (len(ids), len(ids))
    assert not values.whole


def test_whole_signals_are_those_of_the_subsets_batches():
    model, prober = tiny_model(), probe(examples_per_subset=3)
    values = prober.measure(model, {BATCH_GRADIENT_NORM, GRADIENT_COSINE}, 7)
    batches = [get_examples(prober.subset_batch(7, subset)) for subset in range(3)]
    np.testing.assert_allclose(
        values.whole[BATCH_GRADIENT_NORM],
        [batch_gradient_norm(model, batch) for batch in batches],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        values.whole[GRADIENT_COSINE], gradient_cosines(model, batches).mean(axis=1), atol=1e-6
    )
    assert values.backward_examples == 2 * (3 + 3 + 1)
    assert not values.examples


def test_cells_and_subsets_choose_apart():
    one_group = Mixture(("a",), np.array([[18]]))
    prober = Probe(one_group, get_examples, examples_per_cell=6)
    same = [
        np.array_equal(prober.cell_examples(number, 6), prober.subset_batch(number, 0))
        for number in range(5)
    ]
    assert not any(same)


def test_a_subset_without_a_response_token_is_unknown_and_harms_no_other():
    def silent(ids):
        return [
            Encoded(EXAMPLES[i].input_ids, np.full_like(EXAMPLES[i].labels, IGNORED))
            if MIXTURE.subset_of(np.array([i]))[0] == 1
            else EXAMPLES[i]
            for i in ids
        ]

    values = Probe(MIXTURE, silent, examples_per_cell=2).measure(
        tiny_model(), {BATCH_GRADIENT_NORM, GRADIENT_COSINE}, 0
    )
    for found in values.whole.values():
        assert np.isnan(found).tolist() == [False, True, False]


def test_only_what_is_wanted_is_measured():
    values = probe().measure(tiny_model(), {GRADIENT_NORM}, 0)
    assert set(values.examples) == {GRADIENT_NORM}
    assert values.forward_examples == 0
    few = probe(gradient_examples_per_cell=1).measure(tiny_model(), {LOSS, GRADIENT_NORM}, 0)
    assert set(few.examples[GRADIENT_NORM][0]) < set(few.examples[LOSS][0])
    assert len(few.examples[GRADIENT_NORM][0]) == 5


def test_only_the_asked_cells_are_measured():
    cells = np.zeros((3, 2), dtype=bool)
    cells[1, 0] = True
    values = probe().measure(tiny_model(), ONE_PASS, 0, cells=cells)
    assert set(MIXTURE.cell_of(values.examples[LOSS][0])) == {2}
    assert np.isnan(values.whole[BATCH_GRADIENT_NORM]).tolist() == [True, False, True]
    assert values.whole[GRADIENT_COSINE][1] == pytest.approx(1)
    assert np.isnan(values.whole[CELL_HIDDEN_COSINE]).tolist() == [
        [True, True],
        [False, False],
        [True, True],
    ]
    none = probe().measure(tiny_model(), ONE_PASS, 0, cells=np.zeros((3, 2), dtype=bool))
    assert len(none.examples[LOSS][0]) == 0 and none.backward_examples == 0


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_ranks_together_measure_what_one_rank_does(world_size):
    model, prober = tiny_model(dropout=0.2), probe(dropout_passes=2)
    alone = prober.measure(model, PROBED_SIGNALS, 4)
    assert set(alone.whole) == PROBED_SIGNALS & (WHOLE_SIGNALS | CELL_SIGNALS)
    assert sum(np.isfinite(column).all() for column in alone.whole.values()) == 13
    ranks = [
        prober.measure(model, PROBED_SIGNALS, 4, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for name, (ids, values) in alone.examples.items():
        parts = [found.examples[name] for found in ranks]
        together = dict(
            zip(
                np.concatenate([p[0] for p in parts]),
                np.concatenate([p[1] for p in parts]),
                strict=True,
            )
        )
        assert sorted(together) == sorted(ids)
        np.testing.assert_allclose([together[index] for index in ids], values, rtol=1e-5)
    for name, values in alone.whole.items():
        parts = np.stack([found.whole[name] for found in ranks])
        assert np.array_equal(np.isfinite(parts).sum(axis=0), np.isfinite(values))
        together = np.where(np.isfinite(values), np.nansum(parts, axis=0), np.nan)
        np.testing.assert_allclose(together, values, rtol=1e-6)
    for kind in ("forward_examples", "backward_examples"):
        assert sum(getattr(found, kind) for found in ranks) == getattr(alone, kind)


COUNTS = ["examples_per_cell", "gradient_examples_per_cell", "heldout_examples", "dropout_passes"]


@pytest.mark.parametrize("name", COUNTS)
def test_a_budget_below_one_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        probe(**{name: 0})


def test_signals_it_cannot_measure_are_refused():
    with pytest.raises(ConfigError, match="cannot measure 'tokens'; it measures"):
        probe().measure(tiny_model(), {"tokens"}, 0)
    with pytest.raises(ConfigError, match="perplexity_ratio needs the loss"):
        probe(first_loss=None).measure(tiny_model(), {PERPLEXITY_RATIO}, 0)


def lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3)
    return get_peft_model(model, config)


def train(model, probed, *, autocast=False, checkpointing=False):
    """Three steps of AdamW with dropout, two micro-batches each; returns all that a run leaves."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    trace = []
    for step in range(3):
        for micro in range(2):
            batch = collate([EXAMPLES[(2 * step + micro) % 18], EXAMPLES[step]], 0)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                if probed and step == 1:  # also between two micro-batches, gradients half full
                    some = probe(examples_per_cell=1, heldout_examples=2, dropout_passes=2)
                    some.measure(model, PROBED_SIGNALS, step)
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask
                ).logits
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                batch.labels[:, 1:].flatten(),
                ignore_index=IGNORED,
            ).backward()
            trace.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
    trace.append([value.clone() for value in model.state_dict().values()])
    trace.append([torch.get_rng_state(), torch.tensor(np.random.rand(3))])  # noqa: NPY002
    trace.append([torch.tensor([random.random()])])
    trace.append([torch.tensor([module.training for module in model.modules()])])
    return trace


@pytest.mark.parametrize(
    ("wrap", "settings"),
    [
        (lambda model: model, {}),
        (lambda model: model, {"autocast": True}),
        (lambda model: model, {"checkpointing": True}),
        (lora, {}),
    ],
    ids=["plain", "bf16", "checkpointing", "lora"],
)
def test_a_run_with_probes_is_bit_for_bit_the_run_without(wrap, settings):
    model = wrap(tiny_model(dropout=0.3))
    without = train(copy.deepcopy(model), probed=False, **settings)
    with_probes = train(copy.deepcopy(model), probed=True, **settings)
    for left, right in zip(without, with_probes, strict=True):
        for one, other in zip(left, right, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def test_the_oracle_of_the_run_sees_a_single_stray_draw(monkeypatch):
    model = tiny_model(dropout=0.3)
    without = train(copy.deepcopy(model), probed=False)
    monkeypatch.setattr(Probe, "measure", lambda *_args, **_kwargs: torch.rand(1))
    stray = train(copy.deepcopy(model), probed=True)
    assert not torch.equal(without[-4][0], stray[-4][0])
