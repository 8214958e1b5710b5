"""``BalancedSFTTrainer``: TRL's SFTTrainer on a balanced mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

from hbo.errors import ConfigError
from hbo.integrations.engine import BalanceOptions
from hbo.integrations.fit import check_mixture
from hbo.integrations.mixin import BalancingMixin

if TYPE_CHECKING:
    from hbo.data.assemble import BuiltMixture
    from hbo.policies.base import Policy
    from hbo.runlog import RunLog


class BalancedSFTTrainer(BalancingMixin, SFTTrainer):
    """``trl.SFTTrainer``, drawing its examples as a policy says.

    Everything of SFTTrainer works as documented there: full fine-tuning and PEFT, completion-only
    and assistant-only loss, accumulation, checkpointing, bf16, loader workers, callbacks, trackers.
    ``log_history`` gains ``mixture/<subset>/{loss,tokens,share,probability,passes}``; evaluating a
    dict of datasets gains ``eval_mixture_loss``, their mean, for ``metric_for_best_model``.

    Args:
        model: As in SFTTrainer.
        args: ``SFTConfig``.
        mixture: What ``build_mixture`` gave; takes the place of ``train_dataset``.
        policy: A policy or the name of one (``hbo.POLICIES``).
        balance: Lag, unit, signals, seed.
        run_log: Where updates and steps are written; ``None``: nowhere but ``log_history``.
        **kwargs: The rest of SFTTrainer's arguments.

    Raises:
        ConfigError: A setting that balancing cannot honour, with what to use instead.

    Example:
        >>> mixture = build_mixture(
        ...     {"arabic": ds_ar, "german": ds_de}, model=model
        ... )  # doctest: +SKIP
        >>> trainer = BalancedSFTTrainer(model, args, mixture=mixture)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        mixture: BuiltMixture,
        policy: Policy | str = "hbo",
        balance: BalanceOptions | None = None,
        run_log: RunLog | None = None,
        **kwargs: Any,
    ) -> None:
        check_mixture(mixture)
        if kwargs.get("train_dataset") is not None:
            raise ConfigError("mixture takes the place of train_dataset; give only one of them")
        kwargs["train_dataset"] = mixture.dataset
        super().__init__(model, args, **kwargs)
        self.balance(mixture, policy, balance, run_log)
