"""A hand-written PyTorch loop: a loader over the stream, and the same observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from hbo.balancer import Balancer, Update
from hbo.data.assemble import FIRST_LOSS_COLUMN, ID_COLUMN
from hbo.data.packing import is_packed
from hbo.errors import ConfigError
from hbo.integrations.engine import Engine
from hbo.integrations.loader import ExampleIdCollator
from hbo.integrations.options import BalanceOptions
from hbo.integrations.probing import dataset_probe, mean_first_losses
from hbo.integrations.ranks import world
from hbo.policies import make_policy
from hbo.policies.base import Policy
from hbo.runlog import RunLog

if TYPE_CHECKING:
    from hbo.data.assemble import BuiltMixture


class MixtureSampler(Sampler[int]):
    """This rank's share of the next ``steps`` optimiser steps of a balancer's stream.

    Micro-batch m of rank r holds the draws that follow ``(m * world_size + r) * batch_size``, as in
    Accelerate. It goes on from where the balancer stands.

    Args:
        balancer: The ring.
        steps: Optimiser steps to draw for, counted from the start of the run.
        batch_size: Examples of one micro-batch of one rank.
        rank: This process.
        world_size: How many there are.
    """

    def __init__(
        self, balancer: Balancer, steps: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if balancer.draws_per_step % (batch_size * world_size):
            raise ConfigError(
                f"{balancer.draws_per_step} draws of a step cannot be dealt to {world_size} ranks "
                f"in batches of {batch_size}"
            )
        self.balancer = balancer
        self.steps = steps
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        left = max(self.steps - self.balancer.step, 0)
        return left * self.balancer.draws_per_step // self.world_size

    def __iter__(self) -> Iterator[int]:
        per_step = self.balancer.draws_per_step
        left = max(self.steps - self.balancer.step, 0) * per_step
        share = slice(self.rank, None, self.world_size)
        for ids in self.balancer.look_ahead(self.balancer.position, left):
            yield from ids.reshape(-1, self.batch_size)[share].ravel().tolist()


class BalancedLoop:
    """Balancing for a training loop that you write yourself.

    Three calls: ``loader`` for the batches, ``watch`` round the forward pass, ``step`` after each
    optimiser step. With several ranks every rank makes the same calls; each gets its own share of
    the stream, and all hold the same probabilities.

    Args:
        model: The module that is trained: inside DistributedDataParallel, after ``fully_shard``
            (FSDP2), or FSDP1's wrapper itself. Its output must carry ``logits`` (and the batch
            ``labels``).
        mixture: What ``build_mixture`` gave, with tokenised rows.
        policy: A policy or the name of one (``hbo.POLICIES``).
        steps: Optimiser steps of the whole run.
        batch_size: Examples of one micro-batch of one rank.
        accumulation: Micro-batches of one optimiser step.
        options: Lag, unit, signals, seed (default 0), probe budget.
        pad_id: Any id of the vocabulary, for probes.
        dtype: Autocast type of probes; ``None``: the weights' own.
        run_log: Where events go; only rank 0 should have one.
        learning_rate: Gives the present one; needed by policies that look a step ahead.

    Example:
        >>> loop = BalancedLoop(model, mixture, "hbo", steps=100, batch_size=8)  # doctest: +SKIP
        >>> model.train()  # doctest: +SKIP
        >>> for batch in loop.loader(collate):  # doctest: +SKIP
        ...     with loop.watch(batch):
        ...         loss = model(**batch).loss
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     loop.step()
    """

    def __init__(
        self,
        model: nn.Module,
        mixture: BuiltMixture,
        policy: Policy | str = "hbo",
        *,
        steps: int,
        batch_size: int,
        accumulation: int = 1,
        options: BalanceOptions | None = None,
        pad_id: int = 0,
        dtype: torch.dtype | None = None,
        run_log: RunLog | None = None,
        learning_rate: Callable[[], float] | None = None,
    ) -> None:
        options = options or BalanceOptions()
        if is_packed(mixture.dataset):
            raise ConfigError(
                "the mixture's rows are packed, and a loop's own collator would let the examples of"
                " a row see each other; give it the mixture as build_mixture made it"
            )
        seed = options.seed or 0
        chosen = make_policy(policy) if isinstance(policy, str) else policy
        rank, world_size = world()

        def make_balancer() -> Balancer:
            return Balancer(
                mixture.mixture,
                chosen,
                seed=seed,
                draws_per_step=batch_size * accumulation * world_size,
                lag=options.lag,
                limits=mixture.limits,
                weights=mixture.weights,
                unit=options.unit,
            )

        probe = dataset_probe(
            mixture.dataset,
            mixture.mixture,
            examples_per_subset=options.probe_examples,
            seed=seed,
            pad_id=pad_id,
            dtype=dtype,
            notice=lambda text: self.engine.warn("probe-memory", text),
            heldout=mixture.heldout,
            heldout_examples=options.heldout_examples,
            dropout_passes=options.dropout_passes,
            learning_rate=learning_rate,
        )
        self._model = model
        self._dataset = mixture.dataset
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._steps = steps
        first = mean_first_losses(mixture.dataset, mixture.mixture)
        log = run_log or RunLog(None)
        self.engine = Engine(make_balancer, options, probe, log, first_losses=first)
        self.engine.start(model, 0, None, last_step=steps)
        self.sampler = MixtureSampler(self.balancer, steps, batch_size, rank, world_size)

    @property
    def balancer(self) -> Balancer:
        """The ring: mixture, policy, stream and their states."""
        return self.engine.balancer

    def loader(
        self, collate: Callable[[list[dict[str, Any]]], Any], **kwargs: Any
    ) -> DataLoader[Any]:
        """Batches of this rank, from where the run stands to its last step.

        Args:
            collate: Makes a batch of rows that hold ``input_ids`` and ``labels``.
            **kwargs: More arguments of ``DataLoader``; not its sampler, batch size or collator.

        Raises:
            ConfigError: The workers would look further ahead than the lag.
        """
        workers = kwargs.get("num_workers", 0)
        ahead = workers * (kwargs.get("prefetch_factor") or 2) if workers else 0
        if ahead > self.balancer.lag * self._accumulation:
            raise ConfigError(
                f"{ahead} batches of look-ahead are more than balance.lag = {self.balancer.lag} "
                "steps; use fewer workers, a lower prefetch_factor or a larger lag"
            )
        return DataLoader(
            self._dataset.select_columns(
                [n for n in self._dataset.column_names if n in _ROW_COLUMNS]
            ),
            batch_size=self._batch_size,
            sampler=self.sampler,
            collate_fn=ExampleIdCollator(collate),
            **kwargs,
        )

    def watch(self, batch: dict[str, Any]) -> AbstractContextManager[None]:
        """Take our keys out of a batch and observe the forward pass inside."""
        return self.engine.observer.batch(batch)

    def step(self) -> Update | None:
        """An optimiser step is done; the update, where one was made."""
        update = self.engine.finish_step(self._model)
        if self.balancer.step >= self._steps:
            self.engine.stop()
        return update

    def metrics(self) -> dict[str, float]:
        """Per-subset loss, tokens, share, probability and passes since the last call."""
        return self.engine.log_window()

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe state for a checkpoint; all ranks call it together."""
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; call it before ``loader``."""
        step = int(state["balancer"]["step"])
        self.engine.start(self._model, step, state, last_step=self._steps)
        self.sampler.balancer = self.balancer


_ROW_COLUMNS = frozenset({"input_ids", "labels", ID_COLUMN, FIRST_LOSS_COLUMN})
