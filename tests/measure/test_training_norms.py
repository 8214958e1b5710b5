"""Gradient norms read off training's own passes against one backward pass per example."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from trl.trainer.utils import add_fused_lm_head

from hbo.errors import ConfigError
from hbo.measure.batches import collate
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.gradient_norm import norms_one_by_one
from hbo.measure.training_norms import TrainingNorms
from tests.measure.cases import random_examples
from tests.measure.families import COVERED, family
from tests.measure.test_batched_norms import lora
from tests.support.tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]
EXAMPLES = random_examples(5)
BATCH = vars(collate(EXAMPLES, 0))


def from_model(model, output, batch):
    """The loss that a model makes itself, as Transformers' trainer takes it."""
    return output.loss


def from_logits(model, output, batch):
    """A loss that a trainer makes of the logits, over the tokens of a global batch."""
    logits, labels = output.logits[:, :-1], batch["labels"][:, 1:]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"
    )
    return losses / 777


def from_log_probs(model, output, batch):
    """TRL's fused loss over the tokens of a global batch."""
    return -output.log_probs.sum() / 777


def step(model, norms=None, loss_of=from_model, scale=1.0, lengths=None, batch=BATCH, **extra):
    """Gradients of one forward and backward pass, and the norms measured on the way."""
    model.zero_grad()
    count = len(batch["input_ids"]) if lengths is None else len(lengths)
    measured = None if norms is None else norms.begin(count, lengths)
    inputs = {key: value for key, value in batch.items() if value is not None}
    if loss_of is from_logits:
        inputs.pop("labels")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        output = model(**inputs, use_cache=False, **extra)
        if measured is not None:
            measured.watch(output, batch["labels"])
        (loss_of(model, output, batch) * scale).backward()
    if norms is not None:
        norms.release()
    found = None if measured is None else measured.norms().double().numpy()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()], found


def assert_read_off(model, scope, **settings):
    """The norms are right, the gradients the same bits, and nothing is left on the model."""
    plain, _ = step(model, **settings)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    gradients, found = step(model, TrainingNorms(model, scope), **settings)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    for one, other in zip(plain, gradients, strict=True):
        assert one is other is None or torch.equal(one, other)
    slow = norms_one_by_one(model, EXAMPLES, scope=scope)
    np.testing.assert_allclose(found, slow, rtol=1e-5)
    assert np.ptp(slow) > 0


@pytest.mark.parametrize("scope", ["all", "blocks"])
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("name", COVERED)
def test_every_family(name, tied, scope):
    model = family(name, tied).train()
    if (name, scope) == ("gpt2", "all"):
        with pytest.raises(ConfigError, match=r"Embedding\) gives a tensor of shape .* one row an"):
            step(model, TrainingNorms(model, scope))
        return
    assert_read_off(model, scope)


@pytest.mark.parametrize("loss_of", [from_model, from_logits, from_log_probs])
@pytest.mark.parametrize("scale", [1 / 4, 65536.0], ids=["accumulation", "loss scale"])
@pytest.mark.parametrize("make", [lora, tiny_model], ids=["lora", "full"])
def test_what_the_trainer_multiplies_the_loss_by_is_divided_out(make, scale, loss_of):
    model, extra = tiny_model(), {}
    if loss_of is from_log_probs:
        add_fused_lm_head(model)
        extra["fused_lm_head"] = True
    model = lora(model=model) if make is lora else model
    assert_read_off(model.train(), "blocks", loss_of=loss_of, scale=scale, **extra)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [lora, tiny_model], ids=["lora", "full"])
def test_checkpointed_layers(make, reentrant):
    model = make().train()
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    model.enable_input_require_grads()
    calls = []
    model.get_submodule(
        "base_model.model.model.layers.0" if make is lora else "model.layers.0"
    ).mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_read_off(model, "blocks")
    assert len(calls) == 2 + 2 + len(EXAMPLES) * (1 if reentrant else 2)


def test_checkpointed_layers_hold_no_inputs_between_the_passes():
    model = tiny_model().train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    seen = []
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
        lambda _module, args: seen.append(weakref.ref(args[0].untyped_storage()))
    )
    norms = TrainingNorms(model, "blocks")
    measured = norms.begin(5)
    output = model(**BATCH, use_cache=False)
    measured.watch(output, BATCH["labels"])
    gc.collect()
    assert len(seen) == 1 and seen[0]() is None
    output.loss.backward()
    norms.release()
    assert len(seen) == 2 and measured.norms().isfinite().all()


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("loss_of", [from_model, from_log_probs])
@pytest.mark.parametrize("scope", ["all", "blocks"])
def test_several_examples_in_one_row(scope, loss_of, padding):
    model, extra = tiny_model().train(), {}
    lengths = torch.tensor([example.num_tokens for example in EXAMPLES])
    labels = [np.r_[IGNORED, example.labels[1:]] for example in EXAMPLES]
    row = {
        "input_ids": np.concatenate([example.input_ids for example in EXAMPLES]),
        "labels": np.concatenate(labels),
        "position_ids": np.concatenate([np.arange(example.num_tokens) for example in EXAMPLES]),
    }
    fill = {"input_ids": 0, "labels": IGNORED, "position_ids": 0}
    batch = {
        key: torch.as_tensor(np.r_[value, [fill[key]] * padding].astype(np.int64))[None]
        for key, value in row.items()
    }
    if loss_of is from_log_probs:
        add_fused_lm_head(model)
        extra["fused_lm_head"] = True
        if scope == "all":
            with pytest.raises(ConfigError, match="the output head does not run as a module"):
                step(model, TrainingNorms(model, scope), loss_of, 1.0, lengths, batch, **extra)
            return
    assert_read_off(model, scope, loss_of=loss_of, lengths=lengths, batch=batch, **extra)


def test_outputs_that_the_model_changes_in_place():
    model = tiny_model().train()
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.SiLU(inplace=True)
    assert_read_off(model, "blocks")


@pytest.fixture
def one_rank(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_under_distributed_data_parallel(one_rank):
    # Eight: what a trainer multiplies by, because DDP averages over its ranks.
    assert_read_off(DistributedDataParallel(tiny_model()).train(), "all", scale=8.0)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_under_fsdp2(one_rank, checkpointed):
    expected = norms_one_by_one(tiny_model(), EXAMPLES, scope="all")
    model = tiny_model().train()
    if checkpointed:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    for layer in model.model.layers:
        fully_shard(layer, mesh=one_rank)
    fully_shard(model, mesh=one_rank)
    plain, _ = step(model)
    gradients, found = step(model, TrainingNorms(model, "all"))
    for one, other in zip(plain, gradients, strict=True):
        assert torch.equal(one.to_local(), other.to_local())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dropout_is_training_s_own():
    model = lora(lora_dropout=0.5).train()
    plain, _ = step(model)
    gradients, found = step(model, TrainingNorms(model, "adapters"))
    for one, other in zip(plain, gradients, strict=True):
        assert one is other is None or torch.equal(one, other)
    slow = norms_one_by_one(model, EXAMPLES)
    assert np.abs(found / slow - 1).max() > 0.05


@pytest.mark.parametrize("make", [lora, tiny_model], ids=["lora", "full"])
def test_bf16_is_near(make):
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = step(model, TrainingNorms(model, "blocks"))
    np.testing.assert_allclose(found, norms_one_by_one(model, EXAMPLES, scope="blocks"), rtol=0.05)


def test_an_example_without_a_trained_token_has_no_norm():
    model = tiny_model().train()
    silent = Encoded(np.array([1, 2]), np.array([IGNORED, IGNORED]))
    batch = vars(collate([silent, *EXAMPLES], 0))
    _, found = step(model, TrainingNorms(model, "blocks"), batch=batch)
    slow = norms_one_by_one(model, EXAMPLES, scope="blocks")
    np.testing.assert_allclose(found, [np.nan, *slow], rtol=1e-5)


def test_micro_batches_follow_each_other():
    model = tiny_model().train()
    norms = TrainingNorms(model, "blocks")
    first, second = random_examples(2, seed=1), random_examples(3, seed=2)
    slow = [norms_one_by_one(model, part, scope="blocks") for part in (first, second)]
    for examples, expected in zip((first, second), slow, strict=True):
        measured = norms.begin(len(examples))
        batch = vars(collate(examples, 0))
        output = model(**batch)
        measured.watch(output, batch["labels"])
        (output.loss / 2).backward()
        np.testing.assert_allclose(measured.norms().numpy(), expected, rtol=1e-5)
    norms.release()


def test_what_cannot_be_read_off_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"MixtralTopKRouter; set balance\.signals to probe"):
        TrainingNorms(family("mixtral"), "blocks")
    norms = TrainingNorms(tiny_model(), "blocks")
    measured = norms.begin(2)
    with pytest.raises(ConfigError, match="need the log_probs or the logits"):
        measured.watch(object())
    with pytest.raises(ConfigError, match="did not run"):
        measured.norms()
    norms.release()


def test_an_auxiliary_loss_that_joins_examples_is_refused():
    model = lora(model=family("mixtral"), target_modules=["q_proj", "v_proj"]).train()
    assert_read_off(model, "all")
    with pytest.raises(ConfigError, match="an auxiliary loss"):
        step(model, TrainingNorms(model, "all"), output_router_logits=True)
