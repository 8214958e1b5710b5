"""Measures on two ranks under FSDP2, DDP and FSDP1, and writes the values (run by test_sharded)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import DataCollatorForSeq2Seq

from hbo.data.build import BuiltMixture, build_mixture
from hbo.errors import HBOError
from hbo.integrations.options import BalanceOptions
from hbo.integrations.ranks import world
from hbo.integrations.torch import BalancedLoop
from hbo.measure.batches import collate
from hbo.measure.examples import Encoded
from hbo.measure.forward import bare_model
from hbo.measure.probe import PROBED_SIGNALS, Probe
from hbo.measure.sharding import GRADIENT_SIGNALS
from hbo.measure.training_norms import TrainingNorms
from hbo.measure.uncertainty import SPREADS
from hbo.mixture import Mixture
from hbo.policies import make_policy
from hbo.signals import GRADIENT_NORM, LOOKAHEAD_GAIN, LOSS
from tests.integrations.conftest import SUBSETS
from tests.measure.cases import random_examples, random_heldout
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer

RUNS: dict[str, dict[str, Any]] = {
    "observed": {"policy": "hbo", "signals": "observed", "global_reward": "relative-perplexity"},
    "probed": {"policy": "hbo", "signals": "probe", "global_reward": "relative-perplexity"},
    "hbo": {"policy": "hbo", "signals": "probe"},
    "hbo-paper": {"policy": "hbo-paper", "signals": "probe"},
}
ENGINES = {
    "fsdp2": ("observed", "hbo", "hbo-paper"),
    "ddp": ("observed", "hbo"),
    "fsdp1": ("observed", "probed"),  # no gradients
}
MIXTURE = Mixture(("large", "small", "tiny"), np.array([[6, 6], [3, 2], [1, 0]]))
EXAMPLES = random_examples(MIXTURE.num_examples)
Wrap = Callable[[Any], nn.Module]


def train(built: BuiltMixture, wrap: Wrap, policy: str, signals: str, **fields: Any) -> list[Any]:
    """Four steps of eight examples over all ranks; the law and the rewards after each."""
    wrapped = wrap(tiny_model())
    world_size = world()[1]
    loop = BalancedLoop(
        bare_model(wrapped),  # inside DDP; FSDP1's wrapper itself
        built,
        make_policy(policy, update_interval=2, **fields),
        steps=4,
        batch_size=8 // world_size,
        options=BalanceOptions(signals=signals, lag=1, probe_examples=4),
    )
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    trace = []
    for batch in loop.loader(DataCollatorForSeq2Seq(tiny_tokenizer())):
        with loop.watch(batch):
            loss = wrapped(**batch).loss
        # The sum over tokens: its mean over ranks is the same wherever the batch was cut.
        tokens = (batch["labels"][:, 1:] != -100).sum()
        (loss * tokens * world_size / 100).backward()
        optimizer.step()
        optimizer.zero_grad()
        update = loop.step()
        rewards = None if update is None else [update.explanation[k] for k in ("global", "local")]
        trace.append({"law": loop.balancer.probabilities.tolist(), "rewards": rewards})
    return trace


def probe(**settings: Any) -> Probe:
    """Two examples of each cell, by random tokens."""
    defaults = {
        "examples_per_cell": 2,
        "first_loss": lambda ids: 0.01 * ids,
        "heldout": random_heldout(MIXTURE.num_subsets),
        "learning_rate": lambda: 0.1,
    }
    return Probe(MIXTURE, lambda ids: [EXAMPLES[i] for i in ids], **(defaults | settings))


ONE_PASS = PROBED_SIGNALS - SPREADS
"""What needs no dropout."""
SHARDED = ONE_PASS - {LOOKAHEAD_GAIN}
"""What a sharded model can be probed for."""
FORWARD = SHARDED - GRADIENT_SIGNALS
"""What takes forward passes only."""


def values(model: nn.Module, wanted: Any = SHARDED, **settings: Any) -> dict[str, Any]:
    """What this rank hands in: signal -> [ids, values], or values of the subsets."""
    rank, size = world()
    found = probe(**settings).measure(model, wanted, 3, rank=rank, world_size=size)
    examples = {name: [part.tolist() for part in pair] for name, pair in found.examples.items()}
    return examples | {name: column.ravel().tolist() for name, column in found.whole.items()}


def lora(model: Any) -> nn.Module:
    """Adapters on two projections."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, config)


def checkpointed(model: Any) -> nn.Module:
    """In train mode, recomputing its layers."""
    model.activation_checkpointing_enable()
    return model.train()


def lean(model: Any) -> nn.Module:
    """With an embedding that no gradient reaches, as in the training of a part of a model."""
    model.model.embed_tokens.requires_grad_(False)
    return model


MODELS: dict[str, Wrap] = {
    "full": lambda model: model,
    "lora": lora,
    "checkpointed": checkpointed,
    "lean": lean,
}


def fsdp2(model: Any) -> nn.Module:
    """Every layer and the root, as everybody does it."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def local(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A copy of this rank's shard."""
    if tensor is None:
        return None
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trained(wrap: Wrap, *, probed: bool) -> list[Any]:
    """All that three steps of AdamW with dropout leave, probed with gradients there or not."""
    everything = SHARDED | SPREADS if wrap is fsdp2 else PROBED_SIGNALS
    torch.manual_seed(world()[0])
    model = wrap(tiny_model(dropout=0.3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trace: list[Any] = []
    for step in range(3):
        ids = torch.as_tensor(EXAMPLES[3 * step + world()[0]].input_ids.astype(np.int64))[None]
        if probed:
            values(model, everything, dropout_passes=2)
        model(input_ids=ids, labels=ids).loss.backward()
        if probed:
            values(model, everything, dropout_passes=2)
            values(model, {LOSS})  # forward alone, and then the weights change
        trace += [local(parameter.grad) for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    trace += [local(value) for value in model.parameters()]
    trace += [local(value) for kept in optimizer.state.values() for value in kept.values()]
    modes = torch.tensor([module.training for module in model.modules()])
    return [*trace, torch.get_rng_state(), modes]


def undisturbed(wrap: Wrap) -> bool:
    """Whether a run with probes is bit for bit the run without."""
    pairs = zip(trained(wrap, probed=False), trained(wrap, probed=True), strict=True)
    return all(type(a) is type(b) and (a is None or torch.equal(a, b)) for a, b in pairs)


def norms_of_training(wrap: Wrap, make: Wrap) -> dict[str, Any]:
    """Norms of this rank's examples, of two micro-batches whose gradients are reduced together."""
    model = wrap(make(tiny_model()).train())
    norms, found, gradients = TrainingNorms(bare_model(model), "all"), [], []
    for measuring in (False, True):
        model.zero_grad()
        for last in (False, True):
            batch = vars(collate(norm_examples(world()[0], last), 0))
            measured = norms.begin(len(batch["input_ids"])) if measuring else None
            synchronise(model, last)
            # Bare would do, but the wrapper's own forward is what trains.
            outputs: list[Any] = []
            hook = bare_model(model).register_forward_hook(
                lambda _model, _args, output, seen=outputs: seen.append(output)
            )
            loss = model(**batch, use_cache=False).loss
            hook.remove()
            if measured is not None:
                measured.watch(outputs[0], batch["labels"])
            (loss * (world()[1] / 7)).backward()
            norms.release()
            if measured is not None:
                found += measured.norms().tolist()
        gradients.append([local(parameter.grad) for parameter in model.parameters()])
    pairs = zip(*gradients, strict=True)
    same = all(a is b is None or torch.equal(a, b) for a, b in pairs)
    return {"norms": found, "same gradients": same}


def norm_examples(rank: int, last: bool) -> list[Encoded]:
    """Examples of one micro-batch of a rank."""
    start = 4 * rank + 2 * last
    return EXAMPLES[start : start + 2]


def synchronise(model: Any, last: bool) -> None:
    """Reduce gradients after the last micro-batch only."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = last  # as in its ``no_sync``
    else:
        model.set_requires_gradient_sync(last)


def refusal(act: Callable[[], object]) -> str:
    """The one line of an error of ours."""
    try:
        act()
    except HBOError as error:
        return str(error)
    return "nothing was refused"


def refusals_of_fsdp2() -> list[str]:
    """Gradients that are not averaged, or not yet, or that set off hooks."""
    hooked, divided, waiting = (fsdp2(tiny_model()) for _ in range(3))
    next(hooked.parameters()).register_post_accumulate_grad_hook(lambda _parameter: None)
    divided.set_gradient_divide_factor(1.0)
    waiting.set_requires_gradient_sync(False)
    return [
        refusal(lambda model=model: values(model, {GRADIENT_NORM}))
        for model in (hooked, divided, waiting)
    ] + [refusal(lambda: values(fsdp2(tiny_model()), {LOOKAHEAD_GAIN}))]


def without_memory() -> str:
    """Memory runs out on every rank, in the first pass."""
    model = fsdp2(tiny_model())

    def refuse(*_args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(refuse, prepend=True)
    return refusal(lambda: values(model, {LOSS}))


def under_ddp() -> dict[str, Any]:
    """Values dealt to the ranks, and the all-reduces that probing set off."""
    model, reductions = DistributedDataParallel(tiny_model()), []

    def count(_state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations as objects
        reductions.append(1)
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, count)
    found = values(model, ONE_PASS)
    probed = len(reductions)
    ids = torch.tensor([[1, 2, 3]])
    model(input_ids=ids, labels=ids).loss.backward()
    return {"values": found, "reductions": probed, "of a training step": len(reductions)}


def fsdp1(model: Any, *, use_orig_params: bool = True) -> FullyShardedDataParallel:
    """The older wrapper, on CPUs."""
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=use_orig_params)


def under_fsdp1(use_orig_params: bool) -> dict[str, Any]:
    """Losses, and refused gradients."""
    model = fsdp1(tiny_model(), use_orig_params=use_orig_params)
    return {
        "values": values(model, FORWARD),
        "gradient": refusal(lambda: values(model, {GRADIENT_NORM})),
        "inside": refusal(lambda: values(model.module, {LOSS})),
    }


def main(folder: str) -> None:
    """Everything, in one launch."""
    distributed.init_process_group("gloo")
    built = mixture()
    wraps: dict[str, Wrap] = {"fsdp2": fsdp2, "ddp": DistributedDataParallel, "fsdp1": fsdp1}
    gathered = fsdp2(tiny_model())
    values(gathered, {LOSS})
    result = {
        "runs": {
            engine: {name: train(built, wraps[engine], **RUNS[name]) for name in names}
            for engine, names in ENGINES.items()
        },
        "probes": {name: values(fsdp2(make(tiny_model()))) for name, make in MODELS.items()},
        "norms of training": {
            engine: {name: norms_of_training(wraps[engine], make) for name, make in MODELS.items()}
            for engine in ("fsdp2", "ddp")
        },
        "micro-batches": values(fsdp2(tiny_model()), tokens_per_batch=50),
        "sharded again": all(isinstance(p, DTensor) for p in gathered.parameters()),
        "undisturbed": {"fsdp2": undisturbed(fsdp2), "ddp": undisturbed(DistributedDataParallel)},
        "refused": refusals_of_fsdp2(),
        "out of memory": without_memory(),
        "ddp probes": under_ddp(),
        "fsdp1 probes": [under_fsdp1(use_orig_params=flat) for flat in (True, False)],
    }
    Path(folder, f"rank-{world()[0]}.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def mixture() -> BuiltMixture:
    """As the fixture ``built``."""
    return build_mixture(
        {name: tiny_records(n, kind=name, layout="chat") for name, n in SUBSETS.items()},
        difficulty="ifd",
        groups=4,
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
    )


if __name__ == "__main__":
    main(sys.argv[1])
