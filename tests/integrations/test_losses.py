"""Settings that change what a training forward computes or shows: they work, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from hbo.data.build import BuiltMixture
from hbo.errors import ConfigError
from hbo.integrations.fit import check_rows
from hbo.integrations.options import BalanceOptions
from hbo.integrations.transformers import BalancedTrainer
from hbo.integrations.trl import BalancedSFTTrainer
from tests.integrations.conftest import Train
from tests.integrations.test_packing import record
from tests.support.tiny import tiny_model, tiny_tokenizer


def seen(make: Train, **settings: Any) -> tuple[BalancedSFTTrainer, np.ndarray, float]:
    """Losses of the examples of one step of a model that does not move, and the trainer's own."""
    own = {"learning_rate": 0.0, "max_steps": 1, "logging_steps": 1}
    trainer = make("prop", model=tiny_model(), **(own | settings))
    steps = record(trainer)
    trainer.train()
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return trainer, steps[0].loss, loss


LIBRARIES = ("ignore::FutureWarning", "ignore::DeprecationWarning")
"""Of TRL and torch over settings that they will drop."""
EXACT = {
    "dft": {"loss_type": "dft"},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "selective checkpointing": {
        "activation_checkpointing": True,
        "gradient_checkpointing_kwargs": {"selective": True},
    },
    "own normalisation": {"average_tokens_across_devices": False},
}


@pytest.mark.filterwarnings("ignore")  # torch compiles with many
@pytest.mark.parametrize("case", EXACT)
def test_losses_are_seen_whatever_is_trained_on(make: Train, case: str) -> None:
    _, plain, trained = seen(make)
    _, found, other = seen(make, **EXACT[case])
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    changed = case in ("dft", "label smoothing")
    assert (other != pytest.approx(trained, rel=1e-3)) == changed


def test_the_noise_of_neftune_is_in_the_losses_that_are_seen(make: Train) -> None:
    _, plain, _ = seen(make)
    _, found, trained = seen(make, neftune_noise_alpha=5.0)
    assert not np.allclose(found, plain, rtol=1e-3)
    np.testing.assert_allclose(found, plain, rtol=0.2)
    assert trained == pytest.approx(found.mean(), rel=0.1)


@pytest.mark.filterwarnings(*LIBRARIES)
@pytest.mark.parametrize("case", ["dft", "label smoothing"])
def test_norms_of_another_loss_than_that_of_the_examples_are_unknown(
    make: Train, case: str
) -> None:
    settings = {"max_steps": 1, "trainer": {"balance": BalanceOptions(measure_every=1)}}
    for extra, known in (({}, True), (EXACT[case], False)):
        trainer = make("hbo", **settings, **extra)
        steps = record(trainer)
        trainer.train()
        assert np.isfinite(steps[0].norms).all() == known


def liger_that_notes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Put a note in the place of Liger's patches, which need a GPU."""
    configs: list[Any] = []
    monkeypatch.setattr(
        "transformers.trainer.apply_liger_kernel", lambda _, config: configs.append(config)
    )
    return configs


@pytest.mark.filterwarnings(*LIBRARIES)
def test_liger_keeps_the_loss_that_shows_its_examples(
    make: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = liger_that_notes(monkeypatch)
    _, plain, _ = seen(make)
    _, found, _ = seen(make, use_liger_kernel=True)
    assert configs == [{"fused_linear_cross_entropy": False}]
    np.testing.assert_allclose(found, plain, rtol=1e-6)


@pytest.mark.parametrize("config", [None, {"fused_linear_cross_entropy": True}])
def test_ligers_fused_loss_is_refused_before_training(
    built: BuiltMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    liger_that_notes(monkeypatch)

    def trainer(config: Any) -> BalancedTrainer:
        args = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            use_liger_kernel=True,
            liger_kernel_config=config,
        )
        model, tokenizer = tiny_model(), tiny_tokenizer()
        return BalancedTrainer(
            model, args, mixture=built, policy="prop", processing_class=tokenizer
        )

    with pytest.raises(ConfigError, match=r"fused_linear_cross_entropy.*"):
        check_rows(trainer(config))
    without = trainer({"fused_linear_cross_entropy": False})
    check_rows(without)
    without.train()
    assert without.balance_summary()["tokens"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assistant_only_loss": True}, r"Renderer\(tokenizer, assistant_only=True\)"),
        ({"completion_only_loss": False}, r"Renderer\(tokenizer, completion_only=False\)"),
        ({"activation_offloading": True}, "there is no accelerator here"),
    ],
)
def test_settings_that_come_too_late_or_need_an_accelerator_are_refused(
    make: Train, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        make(**settings)
