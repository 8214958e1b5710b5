"""Packing on a tiny model: rows are drawn, and every example in them is seen."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import OPTConfig, OPTForCausalLM
from trl import SFTTrainer

from hbo.data.build import BuiltMixture, build_mixture
from hbo.errors import ConfigError, DataError
from hbo.integrations.fit import check_rows
from hbo.integrations.options import BalanceOptions
from hbo.integrations.probing import dataset_probe, mean_first_losses
from hbo.integrations.transformers import attach
from hbo.integrations.trl import BalancedSFTTrainer, pack_rows
from hbo.measure.examples import Encoded
from hbo.measure.gradient_norm import example_gradient_norms
from hbo.measure.response import response_losses
from tests.integrations.conftest import Train, assert_same_weights, sft_config, weights
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer

STRATEGIES = ("bfd", "bfd_split", "wrapped")
LONG, SHORT = 128, 44
"""Tokens of a row: a few examples, and not much more than one."""


def packing(strategy: str = "bfd", max_length: int = LONG) -> dict[str, Any]:
    return {
        "packing": True,
        "packing_strategy": strategy,
        "max_length": max_length,
        "per_device_train_batch_size": 2,
    }


def packed(built: BuiltMixture, folder: Path, *settings: Any) -> BuiltMixture:
    return pack_rows(built, sft_config(folder, **packing(*settings)))


def segments(mixture: BuiltMixture, row: int) -> list[Encoded]:
    """The examples, or parts of examples, in a row."""
    found = mixture.dataset[row]
    ids, labels = np.array(found["input_ids"]), np.array(found["labels"])
    ends = [0, *np.cumsum(found["seq_lengths"]).tolist()]
    return [Encoded(ids[a:b], labels[a:b]) for a, b in pairwise(ends)]


def record(trainer: BalancedSFTTrainer) -> list[Any]:
    """What the observer saw of each step."""
    observer, seen = trainer.engine.observer, []
    flush = observer.flush

    def noted() -> Any:
        seen.append(flush())
        return seen[-1]

    observer.flush = noted  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("width", [LONG, SHORT])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_example_of_a_row_is_seen_as_if_it_were_alone(
    make: Train, built: BuiltMixture, tmp_path: Path, strategy: str, width: int
) -> None:
    # A learning rate of zero: every loss and norm of the training can be measured afterwards.
    model, rows = tiny_model(), packed(built, tmp_path, strategy, width)
    balance = BalanceOptions(measure_every=1)
    settings = {"learning_rate": 0.0, "max_steps": 2, **packing(strategy, width)}
    trainer = make("hbo", model=model, trainer={"balance": balance}, **settings)
    seen = record(trainer)
    trainer.train()
    drawn = trainer.balancer._consumed.at(0).take(8)
    alone = [(int(row), example) for row in drawn for example in segments(rows, int(row))]
    ids = np.concatenate([step.example_ids for step in seen])
    assert ids.tolist() == [row for row, _ in alone]
    examples = [example for _, example in alone]
    tokens = np.array([example.response_tokens for example in examples])
    assert np.concatenate([step.tokens for step in seen]).tolist() == tokens.tolist()
    trained = tokens > 0
    losses = response_losses(model, examples, tokens_per_batch=1, pad_id=0)
    found = np.concatenate([step.loss for step in seen])
    np.testing.assert_allclose(found[trained], losses[trained], rtol=1e-5)
    norms = example_gradient_norms(model, examples, scope="blocks", tokens_per_batch=1, pad_id=0)
    found = np.concatenate([step.norms for step in seen])
    np.testing.assert_allclose(found[trained], norms[trained], rtol=1e-3)
    # The model is the untouched one: what is known of that is what is seen.
    first = np.concatenate([step.first_loss for step in seen])
    whole = np.isfinite(first)
    assert whole.any() if width == LONG else not whole.all()
    np.testing.assert_allclose(first[whole], losses[whole], rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_those_that_trl_packs(tmp_path: Path, strategy: str) -> None:
    one = build_mixture(
        {"one": tiny_records(40)}, difficulty="length", groups=1, tokenizer=tiny_tokenizer()
    )
    config = sft_config(tmp_path, **packing(strategy, 40))
    theirs = SFTTrainer(
        tiny_model(), config, train_dataset=one.dataset, processing_class=tiny_tokenizer()
    ).train_dataset
    ours = pack_rows(one, config).dataset
    # Rows without a trained token are left out of ours.
    kept = [any(label != -100 for label in row["labels"]) for row in theirs]
    for name in ("input_ids", "labels", *(["seq_lengths"] if strategy != "wrapped" else [])):
        assert ours[name][:] == [row for row, keep in zip(theirs[name], kept, strict=True) if keep]


def test_we_only_choose_the_rows(make: Train, built: BuiltMixture, tmp_path: Path) -> None:
    # The same rows in the same order through SFTTrainer itself give the same weights.
    ours = make("prop", **packing())
    ours.train()
    drawn = ours.balancer._consumed.at(0).take(32).tolist()

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return drawn

    plain = InOrder(
        tiny_model(dropout=0.1),
        sft_config(
            tmp_path / "plain", per_device_train_batch_size=2, padding_free=True, max_length=None
        ),
        train_dataset=packed(built, tmp_path).dataset,
        processing_class=tiny_tokenizer(),
    )
    plain.train()
    assert_same_weights(weights(ours), weights(plain))


def test_rows_are_what_is_drawn_and_examples_what_is_rewarded(
    make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    rows = packed(built, tmp_path)
    trainer = make("prop", max_steps=4, **packing())
    trainer.train()
    summary = trainer.balance_summary()
    assert summary["mixture_fingerprint"] == rows.mixture.fingerprint
    assert summary["draws"] == 4 * 4
    found = [subset["examples"] for subset in summary["subsets"].values()]
    assert found == rows.mixture.subset_sizes.tolist()
    assert sum(found) < built.mixture.num_examples / 2
    drawn = trainer.balancer._consumed.at(0).take(16)
    held = sum(len(segments(rows, int(row))) for row in drawn)
    counts = [entry["tokens"] for entry in summary["subsets"].values()]
    assert sum(counts) == summary["tokens"]
    assert held > 2 * 16


def test_what_a_user_gave_stays_as_it_is(make: Train, built: BuiltMixture, tmp_path: Path) -> None:
    config = sft_config(tmp_path, **packing())
    trainer = BalancedSFTTrainer(
        tiny_model(), config, mixture=built, policy="prop", processing_class=tiny_tokenizer()
    )
    assert (config.packing, config.padding_free, config.max_length) == (True, False, LONG)
    assert (trainer.args.packing, trainer.args.padding_free) == (False, True)
    assert "seq_lengths" not in built.dataset.column_names
    again = pack_rows(packed(built, tmp_path), config)  # packed once, and not twice
    assert again.mixture.fingerprint == trainer.balancer.mixture.fingerprint


def test_a_resume_is_no_resume(make: Train, tmp_path: Path) -> None:
    settings = {**packing(), "save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    options = {"trainer": {"balance": BalanceOptions(unit="tokens")}}
    whole = make(folder=tmp_path / "run", **options, **settings)
    whole.train()
    resumed = make(folder=tmp_path / "run", **options, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_same_weights(weights(whole), weights(resumed))
    ours, theirs = resumed.balance_summary(), whole.balance_summary()
    del ours["balance_seconds"], theirs["balance_seconds"]
    assert ours == theirs


def test_what_is_held_out_is_not_packed(make: Train, built: BuiltMixture) -> None:
    held_out = {"copy": built.dataset.select(range(6)), "add": built.dataset.select(range(60, 70))}
    losses = [
        make("prop", model=tiny_model(), trainer={"eval_dataset": held_out}, **settings).evaluate()
        for settings in (packing(), {})
    ]
    for name in ("eval_copy_loss", "eval_add_loss", "eval_mixture_loss"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5)


def test_a_probe_takes_one_example_of_a_row(built: BuiltMixture, tmp_path: Path) -> None:
    rows = packed(built, tmp_path)
    probe = dataset_probe(rows.dataset, rows.mixture, examples_per_subset=8, seed=1, pad_id=0)
    ids = np.array([0, 1, 2, 7])
    first = probe.first_loss(ids)
    for row, example, loss in zip(ids.tolist(), probe.get_examples(ids), first, strict=True):
        inside = [part.input_ids.tolist() for part in segments(rows, row)]
        place = inside.index(example.input_ids.tolist())
        assert loss == rows.dataset[row]["hbo_first_loss"][place]
    alone = response_losses(tiny_model(), probe.get_examples(ids), tokens_per_batch=512, pad_id=0)
    np.testing.assert_allclose(alone, first, rtol=1e-5)
    assert probe.get_examples(np.empty(0, np.int64)) == []
    np.testing.assert_allclose(
        mean_first_losses(rows.dataset, rows.mixture),
        mean_first_losses(built.dataset, built.mixture),
    )


def test_packed_rows_can_be_probed_for_everything(make: Train) -> None:
    probing = {"balance": BalanceOptions(signals="probe")}
    trainer = make(trainer=probing, max_steps=2, **packing())
    trainer.train()
    before = trainer.balancer.observations.state_dict()["before"]
    assert {"gradient_norm", "perplexity_ratio"} <= set(before)
    json.dumps(before, allow_nan=False)


def test_attach_takes_rows_that_are_packed_already(
    make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    own = make("prop", model=tiny_model(), max_steps=2, **packing())
    own.train()
    config = sft_config(
        tmp_path, max_steps=2, per_device_train_batch_size=2, padding_free=True, max_length=None
    )
    rows = packed(built, tmp_path)

    def theirs(mixture: BuiltMixture) -> SFTTrainer:
        return SFTTrainer(
            tiny_model(), config, train_dataset=mixture.dataset, processing_class=tiny_tokenizer()
        )

    with pytest.raises(DataError, match="has a row 92, and the mixture"):
        attach(theirs(built), rows, "prop")
    trainer = attach(theirs(rows), rows, "prop")
    trainer.train()
    assert_same_weights(weights(own), weights(trainer))


def test_rows_that_a_trainer_would_mix_up_are_refused(
    make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="packing=True needs max_length"):
        make(packing=True, max_length=None)
    with pytest.raises(ConfigError, match="eval_packing=True is not supported"):
        make(eval_packing=True)
    padded = make()
    padded.train_dataset = packed(built, tmp_path).dataset
    with pytest.raises(ConfigError, match="which only TRL's padding-free batches keep apart"):
        check_rows(padded)
    theirs = SFTTrainer(
        tiny_model(),
        sft_config(tmp_path, **packing()),
        train_dataset=built.dataset,
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(ConfigError, match="let BalancedSFTTrainer do it"):
        check_rows(theirs)


@pytest.mark.parametrize("settings", [packing(), {"padding_free": True, "max_length": None}])
def test_a_model_whose_examples_would_see_each_other_is_refused(
    make: Train, settings: dict[str, Any]
) -> None:
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = OPTForCausalLM(OPTConfig(vocab_size=259, word_embed_proj_dim=32, **sizes))
    with pytest.raises(ConfigError, match="'opt' models lets the examples of a row see each other"):
        make("prop", model=model, **settings)
    make("prop", model=model)  # padded batches are fine
