"""``BalancedTrainer``, the Transformers Trainer on a mixture; ``attach`` for any trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from transformers import Trainer

from hbo.data.assemble import ID_COLUMN
from hbo.errors import ConfigError
from hbo.integrations.fit import check_mixture
from hbo.integrations.mixin import BalancingMixin
from hbo.integrations.options import BalanceOptions

if TYPE_CHECKING:
    from hbo.data.assemble import BuiltMixture
    from hbo.policies.base import Policy
    from hbo.runlog import RunLog

TrainerType = TypeVar("TrainerType", bound=Trainer)


class BalancedTrainer(BalancingMixin, Trainer):
    """``transformers.Trainer``, drawing its examples as a policy says.

    The mixture must hold tokenised rows (``build_mixture`` with a tokenizer), and the collator must
    pad ``labels`` too: ``DataCollatorForSeq2Seq``, or the default one given here.

    Args:
        model: As in Trainer.
        args: ``TrainingArguments``.
        mixture: What ``build_mixture`` gave; takes the place of ``train_dataset``.
        policy: A policy or the name of one (``hbo.POLICIES``).
        balance: Lag, unit, signals, seed.
        run_log: Where updates and steps are written; ``None``: nowhere but ``log_history``.
        **kwargs: The rest of Trainer's arguments.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        mixture: BuiltMixture,
        policy: Policy | str = "hbo",
        balance: BalanceOptions | None = None,
        run_log: RunLog | None = None,
        **kwargs: Any,
    ) -> None:
        check_mixture(mixture)
        if kwargs.get("data_collator") is None and kwargs.get("processing_class") is None:
            raise ConfigError(
                "rows of different lengths need padding: give processing_class (a tokenizer), or a "
                "data_collator that pads input_ids and labels"
            )
        if kwargs.get("train_dataset") is not None:
            raise ConfigError("mixture takes the place of train_dataset; give only one of them")
        kwargs["train_dataset"] = mixture.dataset
        if kwargs.get("data_collator") is None and kwargs.get("processing_class") is not None:
            from transformers import DataCollatorForSeq2Seq

            kwargs["data_collator"] = DataCollatorForSeq2Seq(kwargs["processing_class"])
        super().__init__(model, args, **kwargs)
        self.balance(mixture, policy, balance, run_log)


def attach(
    trainer: TrainerType,
    mixture: BuiltMixture,
    policy: Policy | str = "hbo",
    *,
    balance: BalanceOptions | None = None,
    run_log: RunLog | None = None,
) -> TrainerType:
    """Balance a trainer that somebody else made, in place.

    The trainer becomes an instance of a subclass of its own class, with the same few overrides as
    ``BalancedSFTTrainer``; its own overrides stay in force beneath them. Call it before ``train``.

    Args:
        trainer: Any ``transformers.Trainer``; its dataset is replaced by the mixture's unless it
            came from there already.
        mixture: What ``build_mixture`` gave, with tokenised rows.
        policy: A policy or the name of one.
        balance: Lag, unit, signals, seed.
        run_log: Where updates and steps are written.

    Returns:
        The same trainer.

    Raises:
        ConfigError: It is balanced already, or set up in a way that balancing cannot honour.
    """
    if isinstance(trainer, BalancingMixin):
        raise ConfigError("this trainer is balanced already")
    kind = type(trainer)
    own = trainer.train_dataset
    if ID_COLUMN not in (getattr(own, "column_names", None) or ()):
        trainer.train_dataset = mixture.dataset
    trainer.__class__ = type(f"Balanced{kind.__name__}", (BalancingMixin, kind), {})
    trainer.balance(mixture, policy, balance, run_log)
    return trainer
