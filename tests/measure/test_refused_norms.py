"""Where gradient norms cannot be read off training: said with the reason, and training goes on."""

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from hbo.errors import ConfigError
from hbo.measure.taps import NotApplicable
from hbo.measure.training_norms import TrainingNorms
from tests.measure.families import family
from tests.measure.test_batched_norms import lora
from tests.measure.test_sharding import fsdp1_inside, zero3
from tests.measure.test_training_norms import (
    BATCH,
    EXAMPLES,
    assert_read_off,
    from_log_probs,
    packed,
    step,
)
from tests.support.tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]


def assert_refused(model, reason, scope="blocks", **settings):
    """The reason comes only once the pass is over, whose gradients are the same bits."""
    plain, _ = step(model.train(), **settings)
    norms = TrainingNorms(model, scope)
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(NotApplicable, match=reason) as raised:
        step(model, norms, **settings)
    assert seen and isinstance(raised.value, ConfigError)
    hook.remove()
    norms.release()
    gradients, _ = step(model, **settings)
    for one, other in zip(plain, gradients, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_in_one_tensor_are_refused_at_once_and_adapters_beside_them_are_not(name):
    with pytest.raises(NotApplicable, match=r"(Router|Experts); set balance\.signals to probe"):
        TrainingNorms(family(name), "blocks")
    model = lora(model=family(name), target_modules=["q_proj", "v_proj"]).train()
    assert_read_off(model, "all", output_router_logits=False)
    assert_refused(model, "an auxiliary loss", output_router_logits=True)


@pytest.mark.parametrize("mark", [fsdp1_inside, zero3])
def test_parameters_in_buffers_of_their_own_are_refused_at_once(mark):
    with pytest.raises(NotApplicable, match=r"buffers of their own under (FSDP1|DeepSpeed)"):
        TrainingNorms(mark(tiny_model()), "blocks")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_models_are_refused_at_once():
    whole, part = tiny_model(), tiny_model()
    part.model.layers[0].compile()
    for model in (torch.compile(whole), part):
        with pytest.raises(NotApplicable, match="the model is compiled"):
            TrainingNorms(model, "blocks")


def test_dora_is_refused_at_once():
    with pytest.raises(NotApplicable, match="a part of DoraLinearLayer"):
        TrainingNorms(lora(use_dora=True), "adapters")


def test_adapters_of_an_embedding_are_refused_at_once():
    with pytest.raises(NotApplicable, match=r"no rule for .*lora_embedding_A"):
        TrainingNorms(lora(target_modules=["q_proj", "embed_tokens"]), "adapters")


def test_virtual_tokens_are_refused():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert_refused(get_peft_model(tiny_model(), config), "not one row an example", "all")


@pytest.mark.parametrize("tied", [False, True])
def test_a_fused_head_is_refused_where_the_head_counts(tied):
    model = family("llama", tied)
    add_fused_lm_head(model)
    settings = {"loss_of": from_log_probs, "fused_lm_head": True}
    assert_refused(model, "the output head does not run as a module", "all", **settings)
    assert_read_off(model.train(), "blocks", **settings)


def twice(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp
    return model


def with_a_word_more(model):
    """A norm that is called with something beside its input."""

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

        def forward(self, states, more=None):
            return states * self.weight * (1 if more is None else more)

    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = Norm()

        def forward(self, states):
            return self.norm(states, 2.0)

    model.model.norm = Caller()
    return model


def with_a_norm_that_looks_at_its_parameters(model):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(32))

        def forward(self, states):
            if not self.weight.all():
                raise ValueError("a weight is zero")
            return states * self.weight

    model.model.norm = Norm()
    return model


def with_a_norm_of_whole_rows(model):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(32)

        def forward(self, states):
            return states + self.norm(states[:, 0])[:, None]

    model.model.norm = Pooled()
    return model


def flattened(model):
    """A layer that sees the tokens of all rows in one."""
    layer = model.model.layers[0].mlp.down_proj

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, states):
            return self.inner(states.flatten(0, 1)).unflatten(0, states.shape[:2])

    model.model.layers[0].mlp.down_proj = Flat()
    return model


def idle(model):
    model.spare = nn.Linear(2, 2)
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (twice, "runs more than once"),
        (with_a_word_more, "is not called with one tensor"),
        (with_a_norm_that_looks_at_its_parameters, r"other parameters \(a weight is zero\)"),
        (with_a_norm_of_whole_rows, "is fed a tensor of 2 dimensions"),
        (flattened, "not one row an example"),
        (idle, r"\(Linear\) did not run"),
    ],
)
def test_a_layer_that_is_called_in_another_way_is_refused(change, reason):
    assert_refused(change(tiny_model()), reason)


def test_a_layer_that_runs_twice_inside_a_checkpoint_is_refused():
    model = twice(tiny_model())
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    assert_refused(model, "2 gradients from the pass")


def smoothed(model, output, batch):
    logits, labels = output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)


def first_example_doubled(model, output, batch):
    weights = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    logits, labels = output.logits[:, :-1].mT, batch["labels"][:, 1:]
    return (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum()


def own_term_beside_the_model_s(model, output, batch):
    return output.loss + output.logits.square().mean()


@pytest.mark.parametrize("loss_of", [smoothed, first_example_doubled, own_term_beside_the_model_s])
def test_another_loss_is_noticed_at_the_logits(loss_of):
    assert_refused(tiny_model(), "the loss is another", loss_of=loss_of)


def of_probabilities(model, output, batch):
    """TRL's `loss_type: dft`."""
    return -(output.log_probs.exp().detach() * output.log_probs).sum()


def example_by_example(model, output, batch):
    return -(output.log_probs * torch.arange(1.0, 6.0)[:, None]).sum()


def test_tokens_of_an_example_may_not_weigh_differently_and_examples_may():
    model = tiny_model()
    add_fused_lm_head(model)
    assert_refused(model, "weighs the tokens", loss_of=of_probabilities, fused_lm_head=True)
    assert_read_off(model, "blocks", loss_of=example_by_example, fused_lm_head=True)


def test_a_first_token_that_the_example_before_predicts_is_refused():
    batch, lengths = packed([EXAMPLES])
    batch["labels"][0, lengths[0]] = 5
    assert_refused(tiny_model(), "the first token of an example", batch=batch, lengths=lengths)


def test_embeddings_that_are_not_looked_up_are_refused():
    model = family("llama", tied=True).train()
    states = model.get_input_embeddings()(BATCH["input_ids"]).detach()
    batch = {**BATCH, "inputs_embeds": states}
    norms = TrainingNorms(model, "all")
    measured = norms.begin(len(EXAMPLES))
    output = model(inputs_embeds=states, labels=batch["labels"])
    measured.watch(output, batch["labels"])
    output.loss.backward()
    norms.release()
    with pytest.raises(NotApplicable, match="shares the head's matrix did not run"):
        measured.norms()


def test_outputs_without_what_is_needed_are_refused():
    model = tiny_model().train()
    norms = TrainingNorms(model, "blocks")
    measured = norms.begin(len(EXAMPLES))
    for output in (object(), None, model(**BATCH).loss):
        with pytest.raises(NotApplicable, match="no log_probs, and no logits beside labels"):
            measured.watch(output, BATCH["labels"])
    measured = norms.begin(len(EXAMPLES))
    output = model(**BATCH)
    with pytest.raises(NotApplicable, match="no logits beside labels"):
        measured.watch(output)
    with pytest.raises(NotApplicable, match="not one row of the vocabulary for each label"):
        measured.watch(output, BATCH["labels"][:, 1:])
    measured = norms.begin(len(EXAMPLES))
    with torch.no_grad(), pytest.raises(NotApplicable, match="that a gradient flows back to"):
        measured.watch(model(**BATCH), BATCH["labels"])
    norms.release()


def test_norms_need_a_backward_pass_and_one_alone():
    model = tiny_model().train()
    norms = TrainingNorms(model, "blocks")
    measured = norms.begin(len(EXAMPLES))
    with pytest.raises(NotApplicable, match="did not run"):
        measured.norms()
    output = model(**BATCH)
    measured.watch(output, BATCH["labels"])
    with pytest.raises(NotApplicable, match="no backward pass came"):
        measured.norms()
    output.loss.backward(retain_graph=True)
    assert np.isfinite(measured.norms().numpy()).all()
    output.loss.backward()
    with pytest.raises(NotApplicable, match="2 gradients from the pass"):
        measured.norms()
    norms.release()
