"""The ring: mixture -> policy -> stream of draws -> signals -> policy; no rank, no framework."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.errors import ConfigError, StateError
from hbo.identity import SCHEMA, check_identity, plain
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.observations import Observations, Reduce, alone
from hbo.policies.base import Policy, PolicyState
from hbo.sampling.digest import StreamDigest
from hbo.sampling.limits import Limits
from hbo.sampling.state import checked_law, sizes_hash
from hbo.sampling.stream import Stream

UNITS = ("examples", "tokens")
DEFAULT_LAG = 8


@dataclass(frozen=True, eq=False)
class Update:
    """One change of the sampling probabilities.

    Args:
        step: Optimiser steps done when it was decided.
        effective_draw: First draw made from ``after``.
        before: (K, G) probabilities in force until then.
        after: (K, G) probabilities from then on.
        proposed: The (K, G) probabilities that the policy asked for before and after, in its own
            unit and before floors and caps: what the policy ``replay`` needs.
        explanation: What the policy saw (``Policy.explain``).
    """

    step: int
    effective_draw: int
    before: FloatArray
    after: FloatArray
    proposed: tuple[FloatArray, FloatArray]
    explanation: Mapping[str, Any]


@dataclass(eq=False)
class _Reader:
    """One look-ahead: its stream, and why it must not be read on, if so."""

    stream: Stream
    stale: str | None = None


class Balancer:
    """Decides which example is drawn next, and learns from what was measured.

    A training loop does four things with it: read draws (``draws``), hand in what it measured
    (``observe``), say that an optimiser step is done (``advance``) and, when ``due``, let it decide
    (``update``). New probabilities take effect ``lag * draws_per_step`` draws later: a number of
    the configuration, so a loader may look ahead up to ``lag`` steps without changing the run.

    Args:
        mixture: The subsets and their difficulty groups.
        policy: The rule; ``hbo.policies.POLICIES`` has them all.
        seed: Seed of the stream of draws.
        draws_per_step: Examples of one optimiser step, all ranks and accumulation steps together.
        lag: Optimiser steps between an update and the first draw made from it; ``None``:
            ``min(8, policy.interval)``.
        limits: Floors and caps of the subsets, applied to whatever the policy says.
        weights: (K,) shares that the user gave; they replace the sizes as prior.
        unit: ``"examples"`` or ``"tokens"``: what shares, weights and limits count.

    Raises:
        ConfigError: A setting is out of range, or limits are impossible.
    """

    def __init__(
        self,
        mixture: Mixture,
        policy: Policy,
        *,
        seed: int,
        draws_per_step: int,
        lag: int | None = None,
        limits: Limits | None = None,
        weights: FloatArray | None = None,
        unit: str = "examples",
    ) -> None:
        self.mixture = mixture
        self.policy = policy
        self.seed = seed
        self.draws_per_step = draws_per_step
        self.lag = min(DEFAULT_LAG, policy.interval) if lag is None else lag
        self.limits = Limits.none(mixture.num_subsets) if limits is None else limits
        self.unit = unit
        self._weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self._check()
        self._draws_per_unit = self._unit_factors()
        self.observations = Observations(mixture)
        self.step = 0
        self.state: PolicyState = policy.init(self._unit_sizes(), weights)
        self._consumed = Stream(
            mixture.sizes, seed, max_draws=self.limits.max_draws(mixture.subset_sizes)
        )
        self._consumed.push(0, self._law(policy.probabilities(self.state)))
        self._readers: list[_Reader] = []
        self._digest: StreamDigest | None = StreamDigest()

    def _check(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"balance.unit is {self.unit!r}; allowed: {', '.join(UNITS)}")
        if self.lag < 1:
            raise ConfigError(f"balance.lag is {self.lag}; it counts optimiser steps, at least 1")
        if self.draws_per_step < 1:
            raise ConfigError(f"a step needs at least one draw, got {self.draws_per_step}")
        if self.unit == "tokens" and self.mixture.mean_tokens is None:
            raise ConfigError("balance.unit is tokens but the mixture does not know its tokens")
        self.limits.check(self.mixture.names)

    def _unit_factors(self) -> FloatArray:
        """(K, G) draws that one unit of the policy's currency buys; 0 where a cell is empty."""
        if self.unit == "examples":
            return (self.mixture.sizes > 0).astype(np.float64)
        tokens = np.asarray(self.mixture.mean_tokens, dtype=np.float64)
        return np.divide(1.0, tokens, out=np.zeros_like(tokens), where=tokens > 0)

    def _unit_sizes(self) -> IntArray:
        if self.unit == "examples":
            return self.mixture.sizes
        tokens = np.asarray(self.mixture.mean_tokens, dtype=np.float64) * self.mixture.sizes
        return np.ceil(tokens).astype(np.int64)

    def _law(self, proposed: FloatArray) -> FloatArray:
        """(K, G) draw probabilities: what a policy proposed, within the limits, in draws."""
        shares = self.limits.apply(proposed, self._unit_sizes())
        draws = shares * self._draws_per_unit
        return self._of_the_rest(draws / draws.sum())

    def _of_the_rest(self, law: FloatArray) -> FloatArray:
        """A law without the subsets that have reached their ``max_passes``; all, if all have."""
        left = np.where(self._consumed.exhausted[:, None], 0.0, law)
        return left / left.sum() if left.any() else law

    @property
    def probabilities(self) -> FloatArray:
        """(K, G) the newest draw probabilities, in force from the last update's effective draw.

        A subset that has reached its ``max_passes`` has 0.
        """
        return self._of_the_rest(self._consumed.history[-1].probabilities)

    @property
    def position(self) -> int:
        """Number of the next draw to be consumed: the first of the next optimiser step."""
        return self._consumed.position

    @property
    def draws(self) -> IntArray:
        """(K, G) draws consumed so far."""
        return self._consumed.counts

    @property
    def stream_sha256(self) -> str:
        """SHA-256 of the consumed example ids, little-endian int64, in draw order."""
        if self._digest is None:
            # A running SHA-256 cannot be saved: after a resume the recorded history is replayed.
            self._digest = StreamDigest.replay(self._consumed, self._consumed.position)
        return self._digest.hexdigest()

    def look_ahead(self, start: int, count: int) -> Iterator[IntArray]:
        """Example ids of draws ``start .. start + count``, one optimiser step at a time.

        For the loader, which may be up to ``lag`` steps ahead of ``advance``.

        Args:
            start: First draw number; not before what was consumed.
            count: How many draws.

        Several may be open at once (someone peeks into the loader while it trains).

        Yields:
            (n,) example ids; n is ``draws_per_step``, less at the ends.

        Raises:
            ExhaustedError: ``max_passes`` leaves no draws for the next of these steps.
            StateError: New probabilities came for draws that were made here already.
        """
        reader = _Reader(self._consumed.copy())
        stream = reader.stream
        stream.skip(start - stream.position)
        self._readers.append(reader)
        try:
            end = start + count
            while (position := stream.position) < end:
                if reader.stale is not None:
                    raise StateError(reader.stale)
                into_step = (position - self.position) % self.draws_per_step
                yield stream.take(min(self.draws_per_step - into_step, end - position))
        finally:
            self._readers = [other for other in self._readers if other is not reader]

    def observe(self, example_ids: IntArray, values: Mapping[str, FloatArray]) -> None:
        """Add per-example measurements of this rank: see ``Observations.observe``."""
        self.observations.observe(example_ids, values)

    def observe_whole(self, name: str, values: FloatArray) -> None:
        """Add values measured on whole subsets: see ``Observations.observe_whole``."""
        self.observations.observe_whole(name, values)

    def advance(self) -> IntArray:
        """One optimiser step is done: its draws are consumed.

        Returns:
            (draws_per_step,) the example ids that belong to the step.
        """
        example_ids = self._consumed.take(self.draws_per_step)
        if self._digest is not None:
            self._digest.update(example_ids)
        self.step += 1
        return example_ids

    @property
    def due(self) -> bool:
        """Whether the policy decides after the present step."""
        started = self.step > 0 or self.policy.update_at_start
        return started and self.step % self.policy.interval == 0

    def update(self, reduce: Reduce = alone) -> Update:
        """Let the policy decide from what was observed since the last update.

        Args:
            reduce: Adds an array over all ranks.

        Raises:
            StateError: The loader is further ahead than ``lag`` allows.
        """
        self.observations.gather(reduce)
        signals = self.observations.signals(self.step, self.draws)
        asked = self.policy.probabilities(self.state)
        self.state = self.policy.update(self.state, signals)
        self.observations.close()
        proposed = asked, self.policy.probabilities(self.state)
        before, after = self.probabilities, self._law(proposed[1])
        # A step of fewer draws than before a resume must not overtake an update already decided.
        effective = max(
            self.position + self.lag * self.draws_per_step, self._consumed.history[-1].draw
        )
        self._tell_readers(effective, after)
        self._consumed.push(effective, after)
        explanation = self.policy.explain(self.state)
        return Update(self.step, effective, before, after, proposed, explanation)

    def _tell_readers(self, effective: int, after: FloatArray) -> None:
        """New probabilities for those who look ahead; the latest of them is the one that trains."""
        for reader in self._readers:
            if effective >= reader.stream.position:
                reader.stream.push(effective, after)
                continue
            reader.stale = (
                f"draw {effective} was made before the update that decides it: the loader looks "
                f"further ahead than lag = {self.lag} steps; raise balance.lag or lower prefetch"
            )
            if reader is self._readers[-1]:
                raise StateError(reader.stale)

    def check_draws_left(self, steps: int) -> None:
        """Refuse a run for which ``max_passes`` leaves too few draws.

        Args:
            steps: Optimiser steps still to come.

        Raises:
            ConfigError: They need more draws than are left.
        """
        left, needed = self._consumed.remaining(), steps * self.draws_per_step
        if left is not None and left < needed:
            raise ConfigError(
                f"{steps} more steps draw {needed} examples, and max_passes of all subsets leave "
                f"{left}; train for at most {left // self.draws_per_step} steps or raise max_passes"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly: JSON-safe; call ``observations.gather`` first."""
        return {
            "schema": SCHEMA,
            "identity": self.identity,
            "draws_per_step": self.draws_per_step,
            "step": self.step,
            "policy_state": self.state,
            "stream": self._consumed.state_dict(),
            "observations": self.observations.state_dict(),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a state to be this run's."""
        settings = plain(dataclasses.asdict(self.policy))
        return {
            "subsets": list(self.mixture.names),
            "groups": sizes_hash(self.mixture.sizes),
            "data": self.mixture.data_fingerprint,
            "policy": {"type": type(self.policy).__name__, **settings},
            "seed": self.seed,
            "lag": self.lag,
            "unit": self.unit,
            "weights": None if self._weights is None else self._weights.tolist(),
            "shares": [self.limits.min_share.tolist(), self.limits.max_share.tolist()],
            "max_passes": self.limits.max_draws(self.mixture.subset_sizes).tolist(),
        }

    def begin_at(self, step: int) -> None:
        """Begin balancing in the middle of a training: its first draw is that of the next step.

        Args:
            step: Optimiser steps that were done without us.
        """
        self.step = step

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; on an error nothing is changed.

        Another ``draws_per_step`` is allowed: the stream goes on where it was, with steps of
        another size.

        Raises:
            StateError: The state is of another schema, mixture, policy, seed, lag, unit, weights or
                limits, or is damaged.
        """
        check_identity(state, self.identity)
        try:
            step, policy_state = operator.index(state["step"]), dict(state["policy_state"])
            observations = Observations(self.mixture)
            observations.load_state_dict(state["observations"])
            # A dry run: what is missing or misshapen shows now, and not at the next update.
            later = self.policy.update(policy_state, observations.signals(step, self.draws))
            self.policy.explain(policy_state)
            for known in (policy_state, later):
                checked_law(self.policy.probabilities(known), self.mixture.sizes, draw=0)
        except StateError:
            raise
        except Exception as error:
            # Whatever a damaged state does to the code that reads it.
            raise StateError(
                f"the saved balancing state is damaged ({type(error).__name__}: {error}); "
                "use an earlier checkpoint"
            ) from error
        self._consumed.load_state_dict(state.get("stream", {}))
        self.step, self.state, self.observations = step, policy_state, observations
        for reader in self._readers:
            reader.stale = "another state was loaded; begin a new epoch of the loader"
        self._digest = None
