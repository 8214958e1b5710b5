"""A whole training in one process: a toy model, its ranks, their loaders, and kills; no torch.

Mixture, policy, balancer, observations, stream and run log are the real ones. The toy stands where
a model would: the loss of an example depends on its id and on what was trained on before, not on
how a batch is cut. ``drift`` makes it depend on the cut a little, as losses of real models do.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from hbo.balancer import Balancer
from hbo.integrations.events import update_event
from hbo.mixture import Mixture
from hbo.observations import loss_signals
from hbo.policies import Policy
from hbo.runlog import RunLog, up_to
from hbo.sampling.limits import Limits
from hbo.signals import BATCH_GRADIENT_NORM, GRADIENT_COSINE, GRADIENT_NORM, TOKENS

MIXTURE = Mixture(("a", "b", "c"), np.array([[9, 8, 8], [6, 5, 5], [5, 4, 0]]), "data")
LIMITS = Limits(np.array([0.0, 0.3, 0.0]), np.array([0.4, 1, 1]), np.array([np.inf, np.inf, 3]))
STEPS, EPOCH, LAG, PER_STEP = 24, 7, 5, 8


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut."""

    ranks: int
    per_device: int
    accumulation: int

    @property
    def per_step(self) -> int:
        return self.ranks * self.per_device * self.accumulation


@dataclass(frozen=True)
class Life:
    """One process of a run: until it is killed, ``lost`` steps after its last checkpoint.

    Args:
        cut: Of its batches.
        workers: Of each rank's loader.
        prefetch: Micro-batches that a worker holds ready; ``None``: as many as the lag allows.
        saved: Step of its last checkpoint; ``None``: it lives to the end.
        lost: Steps that it made after it, in vain.
    """

    cut: Cut
    workers: int = 0
    prefetch: int | None = None
    saved: int | None = None
    lost: int = 0

    @property
    def ahead(self) -> int:
        """Micro-batches of a rank drawn before they are trained on: PLATFORM's 1 + w x p."""
        if not self.workers:
            return 1
        room = (LAG * self.cut.accumulation - 1) // self.workers
        return 1 + self.workers * min(room, room if self.prefetch is None else self.prefetch)


class Toy:
    """Losses of a model that gets better at the cells it is trained on."""

    def __init__(self, trained: np.ndarray, drift: float) -> None:
        self.trained = trained
        self.drift = drift

    def losses(self, ids: np.ndarray, step: int) -> np.ndarray:
        cells = MIXTURE.cell_of(ids)
        left = np.exp(-self.trained[cells] / (4.0 + 3.0 * cells))
        wobble = 1.0 + self.drift * np.sin(977.0 * ids + step)
        return (1.5 + np.sin(ids)) * (0.3 + left) * wobble

    def signals(self, ids: np.ndarray, step: int) -> dict[str, np.ndarray]:
        values = loss_signals(self.losses(ids, step), (1.5 + np.sin(ids)) * 1.3)
        return values | {TOKENS: 1.0 + ids % 5}


class Rank:
    """One process of several: its balancer, and a loader that looks ahead."""

    def __init__(self, number: int, balancer: Balancer, life: Life) -> None:
        self.number = number
        self.balancer = balancer
        self.life = life
        self.ready: deque[list[int]] = deque()
        self.batches: Iterator[list[int]] = iter(())

    def _epoch(self) -> Iterator[list[int]]:
        """Every rank runs the whole sampler, and keeps each R-th micro-batch."""
        cut, per_step = self.life.cut, self.balancer.draws_per_step
        left = (EPOCH - self.balancer.step % EPOCH) * per_step
        draws = self.balancer.look_ahead(self.balancer.position, left)
        ids = chain.from_iterable(part.tolist() for part in draws)
        while block := list(islice(ids, cut.ranks * cut.per_device)):
            yield block[self.number * cut.per_device :][: cut.per_device]

    def take(self) -> list[int]:
        """The next micro-batch; leaves ``ahead`` of them ready, but at the end of an epoch."""
        if not self.ready:
            self.batches = self._epoch()
        while len(self.ready) <= self.life.ahead and (batch := next(self.batches, None)):
            self.ready.append(batch)
        return self.ready.popleft()


class World:
    """All ranks of one life, in lock step."""

    def __init__(
        self,
        policy: Policy,
        life: Life,
        *,
        drift: float,
        limits: Limits | None,
        checkpoint: str | None,
        log: RunLog,
    ) -> None:
        saved = json.loads(checkpoint) if checkpoint else None
        trained = np.array(saved["trained"]) if saved else np.zeros(MIXTURE.sizes.size)
        self.toy = Toy(trained, drift * life.cut.per_device)
        self.life, self.log = life, log
        self.ranks = []
        for number in range(life.cut.ranks):
            settings = {"seed": 3, "draws_per_step": life.cut.per_step, "lag": LAG}
            balancer = Balancer(MIXTURE, policy, limits=limits, **settings)
            if saved:
                balancer.load_state_dict(saved["balancer"])
            self.ranks.append(Rank(number, balancer, life))
        self.begins = saved is None and policy.update_at_start

    @property
    def first(self) -> Balancer:
        return self.ranks[0].balancer

    def step(self) -> dict[str, Any]:
        """One optimiser step: what it trained on and, if one was due, its update."""
        started = self._update() if self.begins else None
        self.begins = False
        parts = [[r.take() for r in self.ranks] for _ in range(self.life.cut.accumulation)]
        trained = np.array(list(chain.from_iterable(chain.from_iterable(parts))))
        for rank, batches in zip(self.ranks, zip(*parts, strict=True), strict=True):
            assert (rank.balancer.advance() == trained).all()
            for batch in batches:
                ids = np.array(batch)
                values = self.toy.signals(ids, self.first.step)
                rank.balancer.observations.train(ids, values["loss"], values[TOKENS])
                rank.balancer.observe(ids, values)
        self.toy.trained += np.bincount(MIXTURE.cell_of(trained), minlength=len(self.toy.trained))
        update = self._update() if self.first.due else None
        return {"ids": trained.tolist(), "started": started, "update": update}

    def _update(self) -> dict[str, Any]:
        self._probe()
        total = self._all_reduce()
        updates = [rank.balancer.update(lambda array: array + total) for rank in self.ranks]
        self.log.write("update", **update_event(self.first, updates[0], 0.0))
        told = [
            {
                "effective_draw": update.effective_draw,
                "laws": [law.tolist() for law in (update.before, update.after, *update.proposed)],
                "explanation": update.explanation,
                "policy_state": rank.balancer.state,
                "observations": rank.balancer.observations.state_dict(),
            }
            for rank, update in zip(self.ranks, updates, strict=True)
        ]
        assert all(one == told[0] for one in told)
        return told[0]

    def _probe(self) -> None:
        """Examples of each cell and whole subsets, dealt out to the ranks."""
        step, size = self.first.step, len(self.ranks)
        ids = np.random.default_rng(step).permutation(MIXTURE.num_examples)[:11]
        for rank in self.ranks:
            mine = ids[rank.number :: size]
            norms = np.sqrt(self.toy.losses(mine, step))
            rank.balancer.observe(mine, {GRADIENT_NORM: norms})
            whole = np.bincount(
                MIXTURE.subset_of(np.arange(MIXTURE.num_examples)),
                weights=self.toy.losses(np.arange(MIXTURE.num_examples), step),
            )
            whole[np.arange(MIXTURE.num_subsets) % size != rank.number] = np.nan
            rank.balancer.observe_whole(BATCH_GRADIENT_NORM, whole)
            rank.balancer.observe_whole(GRADIENT_COSINE, whole / 100)

    def _all_reduce(self) -> np.ndarray:
        """The sum of what the ranks hold by themselves; taken from them."""
        sent: list[np.ndarray] = []

        def send(array: np.ndarray) -> np.ndarray:
            sent.append(array)
            return np.zeros_like(array)

        for rank in self.ranks:
            rank.balancer.observations.gather(send)
        return np.sum(sent, axis=0)

    def checkpoint(self) -> str:
        """What survives a kill, as text; all ranks would write the same."""
        total = self._all_reduce()
        for rank in self.ranks:
            rank.balancer.observations.gather(lambda array: array + total)
        states = [json.dumps(rank.balancer.state_dict()) for rank in self.ranks]
        assert len(set(states)) == 1
        return f'{{"trained": {self.toy.trained.tolist()}, "balancer": {states[0]}}}'


def train(
    make_policy: Callable[[], Policy],
    *lives: Life,
    drift: float = 0.0,
    limits: Limits | None = None,
    log: Path | None = None,
    steps: int = STEPS,
) -> dict[str, Any]:
    """A run of one or more lives: its steps, as the survivors know them, and where it ended."""
    trail: list[dict[str, Any]] = []
    checkpoint = None
    for life in lives:
        run_log = RunLog(log, keep=up_to(len(trail)))
        known = {"drift": drift, "limits": limits, "checkpoint": checkpoint, "log": run_log}
        world = World(make_policy(), life, **known)
        until = steps if life.saved is None else life.saved
        trail += [world.step() for _ in range(until - len(trail))]
        checkpoint = world.checkpoint() if until else None  # killed before its first: begins anew
        for _ in range(life.lost):
            world.step()
    end = json.loads(checkpoint or "null")
    del end["balancer"]["identity"]
    sha256 = world.first.stream_sha256
    return {"steps": trail, "end": end, "stream_sha256": sha256}


def ids_of(run: dict[str, Any]) -> list[int]:
    """The stream that a run trained on."""
    return list(chain.from_iterable(step["ids"] for step in run["steps"]))


def laws_of(run: dict[str, Any]) -> Sequence[Any]:
    """The probabilities of a run, update by update, and from which draw on."""
    updates = [u for step in run["steps"] for u in (step["started"], step["update"]) if u]
    return [(update["effective_draw"], update["laws"]) for update in updates]
