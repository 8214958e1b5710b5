"""Gradient norms read off training's own passes against one backward pass per example."""

import gc
import weakref

import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from trl.trainer.utils import add_fused_lm_head

from hbo.measure.batches import collate
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.gradient_norm import norms_one_by_one
from hbo.measure.taps import NotApplicable
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


def step(
    model, norms=None, loss_of=from_model, scale=1.0, lengths=None, rows=None, batch=BATCH, **extra
):
    """Gradients of one forward and backward pass, and the norms measured on the way."""
    model.zero_grad()
    count = len(batch["input_ids"]) if lengths is None else len(lengths)
    measured = None if norms is None else norms.begin(count, lengths, rows)
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


@pytest.mark.parametrize("make", [lora, tiny_model], ids=["lora", "full"])
def test_the_loss_of_a_trainer_that_lets_the_model_divide_by_the_items_of_its_batch(make):
    assert_read_off(make().train(), "blocks", num_items_in_batch=777)


@pytest.mark.parametrize(
    ("settings", "scope"),
    [
        ({"use_rslora": True, "rank": 8}, "adapters"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "adapters"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "all"),
        ({"target_modules": ["q_proj", "lm_head"]}, "all"),
        ({"bias": "all", "model": family("qwen2")}, "all"),
        ({"model": family("gpt2"), "target_modules": ["c_attn"], "fan_in_fan_out": True}, "all"),
    ],
    ids=["rsLoRA", "saved", "saved, all", "head", "biases", "gpt2"],
)
def test_kinds_of_lora(settings, scope):
    assert_read_off(lora(**settings).train(), scope)


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


def packed(rows, padding=0):
    """A batch of rows that hold several examples each, and their lengths."""
    longest = padding + max(sum(example.num_tokens for example in row) for row in rows)
    batch = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        columns = {
            "input_ids": [example.input_ids for example in row],
            "labels": [np.r_[IGNORED, example.labels[1:]] for example in row],
            "position_ids": [np.arange(example.num_tokens) for example in row],
        }
        for key, parts in columns.items():
            whole = np.concatenate(parts)
            fill = IGNORED if key == "labels" else 0
            batch[key].append(np.pad(whole, (0, longest - len(whole)), constant_values=fill))
    lengths = torch.tensor([example.num_tokens for row in rows for example in row])
    return {key: torch.as_tensor(np.stack(v).astype(np.int64)) for key, v in batch.items()}, lengths


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("loss_of", [from_model, from_log_probs])
@pytest.mark.parametrize("scope", ["all", "blocks"])
def test_several_examples_in_one_row(scope, loss_of, padding):
    model, extra = tiny_model().train(), {}
    batch, lengths = packed([EXAMPLES], padding)
    if loss_of is from_log_probs:
        add_fused_lm_head(model)
        extra["fused_lm_head"] = True
        if scope == "all":
            with pytest.raises(NotApplicable, match="the output head does not run as a module"):
                step(
                    model,
                    TrainingNorms(model, scope),
                    loss_of,
                    lengths=lengths,
                    batch=batch,
                    **extra,
                )
            return
    assert_read_off(model, scope, loss_of=loss_of, lengths=lengths, batch=batch, **extra)


@pytest.mark.parametrize("scope", ["all", "blocks"])
def test_several_examples_in_each_of_several_rows(scope):
    batch, lengths = packed([EXAMPLES[:2], EXAMPLES[2:]])
    rows = torch.tensor([0, 0, 1, 1, 1])
    assert_read_off(tiny_model().train(), scope, batch=batch, lengths=lengths, rows=rows)


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


@pytest.mark.parametrize("loss_of", [from_model, from_logits])
@pytest.mark.parametrize("make", [lora, tiny_model], ids=["lora", "full"])
def test_autocast_to_bf16_is_near(make, loss_of):
    model = make().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = step(model, TrainingNorms(model, "blocks"), loss_of)
    np.testing.assert_allclose(found, norms_one_by_one(model, EXAMPLES, scope="blocks"), rtol=0.04)


@pytest.mark.parametrize("loss_of", [from_model, from_logits])
@pytest.mark.parametrize("make", [lora, tiny_model], ids=["lora", "full"])
def test_weights_in_bf16_are_near(make, loss_of):
    model = make().bfloat16()
    _, found = step(model.train(), TrainingNorms(model, "all"), loss_of)
    alone = norms_one_by_one(model, EXAMPLES, scope="all")
    np.testing.assert_allclose(found, alone, rtol=0.04)
    np.testing.assert_allclose(
        found, norms_one_by_one(model.float(), EXAMPLES, scope="all"), rtol=0.05
    )


def test_logits_that_accelerate_copies_to_fp32_are_not_those_of_the_loss():
    model = tiny_model().train()
    forward = model.forward
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(forward))
    _, found = step(model, TrainingNorms(model, "blocks"))
    model.forward = forward
    np.testing.assert_allclose(found, norms_one_by_one(model, EXAMPLES, scope="blocks"), rtol=0.04)


def test_an_example_without_a_trained_token_has_no_norm():
    model = tiny_model().train()
    silent = Encoded(np.array([1, 2]), np.array([IGNORED, IGNORED]))
    batch = vars(collate([silent, *EXAMPLES], 0))
    _, found = step(model, TrainingNorms(model, "blocks"), batch=batch)
    slow = norms_one_by_one(model, EXAMPLES, scope="blocks")
    np.testing.assert_allclose(found, [np.nan, *slow], rtol=1e-5)


@pytest.mark.parametrize("loss_of", [from_model, from_logits])
def test_a_batch_without_a_trained_token_has_no_norms(loss_of):
    batch = {**BATCH, "labels": torch.full_like(BATCH["labels"], IGNORED)}
    model = tiny_model().train()
    _, found = step(model, TrainingNorms(model, "blocks"), loss_of, batch=batch)
    assert np.isnan(found).all() and len(found) == len(EXAMPLES)


def test_a_loss_scale_that_overflows_gives_no_norms():
    model = tiny_model().train()
    _, found = step(model, TrainingNorms(model, "blocks"), scale=1e38)
    assert np.isnan(found).all()


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
