"""Signals of whole subsets, through a probe: what they read, what they cost, what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hbo.errors import ConfigError
from hbo.measure.gradient_cosines import heldout_cosines
from hbo.measure.gradient_norm import batch_gradient_norm
from hbo.measure.lookahead import lookahead_gain
from hbo.measure.probe import PROBED_SIGNALS, Probe
from hbo.measure.uncertainty import SPREADS, uncertainties
from hbo.measure.whole import WHOLE, measurements
from hbo.mixture import Mixture
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    CELL_HIDDEN_COSINE,
    CELL_SIGNALS,
    HELDOUT_COSINE,
    HELDOUT_ENTROPY,
    HELDOUT_LOSS,
    HELDOUT_SIGNALS,
    HIDDEN_COSINE,
    LOOKAHEAD_GAIN,
    UNCERTAINTIES,
    UNSEEN_LOSS,
    WHOLE_SIGNALS,
)
from tests.measure.cases import naive_loss, random_examples, random_heldout
from tests.measure.test_hidden_states import naive_states
from tests.support.tiny import tiny_model

MIXTURE = Mixture(("large", "small", "tiny"), np.array([[6, 6], [3, 2], [1, 0]]))
EXAMPLES = random_examples(MIXTURE.num_examples)
HELDOUT = random_heldout(MIXTURE.num_subsets)  # 5, 4 and 3
PROBE = Probe(
    MIXTURE,
    lambda ids: [EXAMPLES[index] for index in ids],
    examples_per_cell=2,
    examples_per_subset=3,
    heldout=HELDOUT,
    heldout_examples=4,
    learning_rate=lambda: 0.1,
)
EVERYTHING = frozenset(WHOLE)


def naive_gradient(model, examples):
    """Flat gradient of the mean loss over all response tokens, by autograd, example by example."""
    tokens = sum(example.response_tokens for example in examples)
    loss = sum(naive_loss(model, one) * one.response_tokens for one in examples) / tokens
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).double()


def cosine(one, other):
    return (one @ other / one.norm() / other.norm()).item()


def test_every_whole_signal_has_a_measurement_and_no_other():
    assert set(WHOLE) == WHOLE_SIGNALS | CELL_SIGNALS
    assert set(WHOLE) < PROBED_SIGNALS
    assert len(measurements(UNCERTAINTIES)) == 1
    assert measurements({"loss", HELDOUT_LOSS}) == [WHOLE[HELDOUT_LOSS]]


def test_heldout_cosines_are_those_of_every_pair_by_autograd():
    model = tiny_model()
    found = PROBE.measure(model, {HELDOUT_COSINE}, 5).whole[HELDOUT_COSINE]
    train, dev = (
        [naive_gradient(model, choose(5, subset)) for subset in range(3)]
        for choose in (PROBE.batch, PROBE.heldout_batch)
    )
    expected = [np.mean([cosine(d, t) for d in dev]) for t in train]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(expected) > 0.01


def test_a_batch_without_direction_is_unknown_and_does_not_count():
    model, batches = tiny_model(), [HELDOUT[0], [], HELDOUT[1]]
    expected = heldout_cosines(model, [HELDOUT[0], HELDOUT[1]], [EXAMPLES[:2], EXAMPLES[2:4]])
    found = heldout_cosines(model, batches, [EXAMPLES[:2], [], EXAMPLES[2:4]])
    np.testing.assert_array_equal(found[[0, 2]], expected)
    assert np.isnan(found[1])
    assert np.isnan(heldout_cosines(model, batches, [[]])).all()
    with pytest.raises(ConfigError, match=r"held-out gradient cosines need .* the limit is"):
        heldout_cosines(model, batches, batches, max_bytes=1000)


def test_hidden_cosines_are_those_of_the_subsets_batches_and_of_the_cells():
    model = tiny_model()
    found = PROBE.measure(model, {HIDDEN_COSINE, CELL_HIDDEN_COSINE}, 5).whole
    means = [naive_states(model, PROBE.batch(5, k)).mean(axis=0) for k in range(3)]
    cells = PROBE.cell_examples(5, 2)
    for name, z in (
        (HIDDEN_COSINE, means),
        (
            CELL_HIDDEN_COSINE,
            [
                naive_states(model, PROBE.get_examples(cells[MIXTURE.cell_of(cells) == cell])).mean(
                    axis=0
                )
                for cell in range(5)
            ],
        ),
    ):
        expected = [np.mean([cosine(*map(torch.tensor, (a, b))) for b in z]) for a in z]
        np.testing.assert_allclose(found[name].ravel()[: len(z)], expected, rtol=1e-5)
    assert found[CELL_HIDDEN_COSINE].shape == (3, 2) and np.isnan(found[CELL_HIDDEN_COSINE][2, 1])


def test_the_others_are_those_of_what_they_read():
    model = tiny_model(dropout=0.2)
    prober = replace(PROBE, dropout_passes=3)
    found = prober.measure(model, EVERYTHING, 5).whole
    for k in range(3):
        batch, held = prober.batch(5, k), HELDOUT[k][:4]
        assert found[BATCH_GRADIENT_NORM][k] == pytest.approx(batch_gradient_norm(model, batch))
        gain = lookahead_gain(model, batch, 0.1)
        assert found[LOOKAHEAD_GAIN][k] == pytest.approx(gain, rel=1e-4)
        tokens = [example.response_tokens for example in held]
        losses = [naive_loss(model.eval(), example).item() for example in held]
        mean = np.average(losses, weights=tokens)
        assert found[HELDOUT_LOSS][k] == pytest.approx(mean, rel=1e-5)
        assert found[UNSEEN_LOSS][k] == found[HELDOUT_LOSS][k]
        values = uncertainties(model, held, seeds=prober.dropout_seeds(5, k))
        for name in UNCERTAINTIES:
            assert found[name][k] == pytest.approx(values[name], rel=1e-4), name


def test_held_out_examples_are_the_same_each_time_and_batches_of_them_are_drawn():
    for size, places in ((1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (9, range(5))):
        sample = replace(PROBE, heldout_examples=size, seed=size).heldout_sample(0)
        assert list(map(id, sample)) == [id(HELDOUT[0][place]) for place in places]
    assert [len(PROBE.heldout_sample(k)) for k in range(3)] == [4, 4, 3]
    drawn = [PROBE.heldout_batch(number, 0) for number in range(30)]
    assert all(len(set(map(id, batch))) == 3 for batch in drawn)
    assert {id(one) for batch in drawn for one in batch} == {id(one) for one in HELDOUT[0]}
    again = [PROBE.heldout_batch(number, 0) for number in range(30)]
    assert [list(map(id, b)) for b in drawn] == [list(map(id, b)) for b in again]
    assert len(PROBE.heldout_batch(0, 2)) == 3


def test_seeds_of_passes_are_apart_for_each_probe_subset_and_run():
    prober = replace(PROBE, dropout_passes=4)
    seeds = [
        seed
        for other in (prober, replace(prober, seed=1))
        for number in range(5)
        for subset in range(3)
        for seed in other.dropout_seeds(number, subset)
    ]
    assert len(set(seeds)) == len(seeds) == 120
    assert prober.dropout_seeds(2, 1) == prober.dropout_seeds(2, 1)
    assert prober.dropout_seeds(2, 1)[:2] == replace(PROBE, dropout_passes=2).dropout_seeds(2, 1)
    assert PROBE.dropout_seeds(2, 1) is None


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_the_cost_is_that_of_the_examples_that_run(name):
    model = tiny_model(dropout=0.2)
    prober = replace(PROBE, dropout_passes=2)
    rows = {True: 0, False: 0}  # with gradients, and without

    def count(_model, _args, kwargs):
        rows[torch.is_grad_enabled()] += len(kwargs["input_ids"])

    model.register_forward_pre_hook(count, with_kwargs=True)
    found = prober.measure(model, {name}, 5)
    assert (found.forward_examples, found.backward_examples) == (rows[False], rows[True])
    assert sum(rows.values()) > 0 and set(found.whole) == {name}


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_a_measurement_changes_nothing(name):
    model = tiny_model(dropout=0.2).train()
    model.model.norm.eval()
    naive_loss(model, EXAMPLES[0]).backward()
    parameters = list(model.parameters())
    before = [(p.data_ptr(), p.detach().clone(), p.grad, p.grad.clone()) for p in parameters]
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    replace(PROBE, dropout_passes=2).measure(model, {name}, 5)
    for parameter, (place, value, gradient, numbers) in zip(parameters, before, strict=True):
        assert parameter.data_ptr() == place and torch.equal(parameter, value)
        assert parameter.grad is gradient and torch.equal(gradient, numbers)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(HELDOUT_SIGNALS - {UNSEEN_LOSS}))
@pytest.mark.parametrize("heldout", [None, [HELDOUT[0], [], HELDOUT[2]]])
def test_a_subset_without_held_out_examples_is_refused(name, heldout):
    prober = replace(PROBE, heldout=heldout, dropout_passes=2)
    first = "large" if heldout is None else "small"
    line = rf"{name} is measured on held-out examples, and subset '{first}' has none; give"
    with pytest.raises(ConfigError, match=line):
        prober.measure(tiny_model(dropout=0.2), {name}, 5)


def test_the_unseen_loss_is_unknown_where_nothing_is_held_out():
    model = tiny_model(dropout=0.2)
    some = replace(PROBE, heldout=[HELDOUT[0], [], HELDOUT[2]]).measure(model, {UNSEEN_LOSS}, 5)
    known = PROBE.measure(model, {UNSEEN_LOSS}, 5).whole[UNSEEN_LOSS]
    np.testing.assert_array_equal(some.whole[UNSEEN_LOSS], [known[0], np.nan, known[2]])
    none = replace(PROBE, heldout=None).measure(model, {UNSEEN_LOSS}, 5)
    assert np.isnan(none.whole[UNSEEN_LOSS]).all() and none.forward_examples == 0


def test_what_lacks_its_means_is_refused():
    model = tiny_model(dropout=0.2)
    with pytest.raises(ConfigError, match=r"learning rate; give BalancedLoop\(learning_rate="):
        replace(PROBE, learning_rate=None).measure(model, {LOOKAHEAD_GAIN}, 5)
    for name in SPREADS:
        for passes in (None, 1):
            with pytest.raises(ConfigError, match=r"set balance\.dropout_passes to 2 or more"):
                replace(PROBE, dropout_passes=passes).measure(model, {name}, 5)
    with pytest.raises(ConfigError, match="this model has none"):
        replace(PROBE, dropout_passes=2).check(tiny_model(), {HELDOUT_ENTROPY})
    replace(PROBE, dropout_passes=2).check(tiny_model(), {HELDOUT_LOSS})
