"""Every key of a configuration, its type, its range and its default.

The models are strict (``"4"`` is no number, ``1`` is no truth value) and forbid unknown keys. What
they cannot know (fields of a policy, of TRL's ``SFTConfig`` and ``ModelConfig``) is checked beside
them: ``hbo.config.load`` and ``hbo.config.trl``.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hbo.config.secrets import without_hidden, without_secrets

Name = Annotated[str, Field(min_length=1)]
Split = Annotated[str, Field(min_length=1, max_length=200)]
Files = Annotated[list[Name], Field(min_length=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

MOST = 1_000_000_000
"""No count of a configuration is larger: products of two still fit into 64 bits."""

METRICS = ("ifd", "ifd-loss", "perplexity", "loss", "length")
FRACTION = (
    "'fraction' is TRL's word for taking the first rows of a dataset; here every row stays in play "
    "and 'weight' is the dataset's share of the draws. Use 'weight' (for all datasets or for none)"
)

STREAMING = (
    "'streaming' gives examples one after the other, and difficulty groups and exact draws need "
    "each by its number. Leave it out: files are mapped into memory, not loaded"
)
REFUSED = {"fraction": FRACTION, "streaming": STREAMING}


def _at(key: str, text: str) -> PydanticCustomError:
    """An error of a whole section that one of its keys is to blame for."""
    return PydanticCustomError("of_key", "{text}", {"text": text, "key": key})


class Section(BaseModel):
    """A mapping of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DatasetSection(Section):
    """One subset: where it is (TRL's ``DatasetConfig`` names) and its place in the mixture."""

    path: Name | None = None
    name: str | None = None
    data_dir: Name | None = None
    data_files: Name | Files | dict[str, Name | Files] | None = None
    split: Split = "train"
    columns: Files | None = None
    weight: float | None = Field(None, gt=0, le=MOST)
    max_passes: float | None = Field(None, gt=0, le=MOST)
    min_share: Share = 0.0
    max_share: Share = 1.0
    eval_files: Name | Files | None = None
    eval_split: Split | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_other_meaning(cls, values: Any) -> Any:
        for key in REFUSED.keys() & (values.keys() if isinstance(values, dict) else ()):
            raise _at(key, REFUSED[key])
        return values

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.path is None and self.data_files is None:
            raise ValueError(
                "needs 'path' (an asset, a hub id or a folder) or 'data_files' (local files)"
            )
        if self.eval_files is not None and self.eval_split is not None:
            raise _at("eval_split", "is given beside 'eval_files'; keep one of them")
        if self.min_share > self.max_share:
            text = f"is {self.min_share}, above max_share {self.max_share}; lower it"
            raise _at("min_share", text)
        if self.max_share == 0:
            text = "is 0, so nothing would be drawn; remove the dataset instead"
            raise _at("max_share", text)
        return self


class DifficultySection(Section):
    """How examples are scored and cut into groups."""

    metric: str = "ifd"
    groups: int = Field(4, ge=1, le=1000)
    drop_easiest: float = Field(0.0, ge=0.0, lt=1.0)
    scoring_model: Name | None = None
    tokens_per_batch: int = Field(4096, ge=1, le=MOST)
    cache_dir: Name | None = None

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        column = metric.startswith("column:") and len(metric) > len("column:")
        if metric not in METRICS and not column:
            known = (*METRICS, "column:NAME")
            raise PydanticCustomError("unknown_word", "unknown", {"known": known})
        return metric


class PolicySection(Section):
    """A policy by name; every key that is not ours is a field of the policy."""

    policy: Name = "hbo"
    fields: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        ours = set(cls.model_fields) - {"fields"}
        kept = {key: value for key, value in values.items() if key in ours}
        return {**kept, "fields": {key: v for key, v in values.items() if key not in ours}}


class BalanceSection(PolicySection):
    """The policy and how it is joined to a trainer."""

    lag: int | None = Field(None, ge=1, le=MOST)
    unit: Literal["examples", "tokens"] = "examples"
    signals: Literal["observed", "probe"] = "observed"
    probe_examples: int = Field(8, ge=1, le=MOST)
    top_up: float = Field(0.01, ge=0, le=MOST)
    measure_every: int | None = Field(None, ge=1, le=MOST)
    norm_scope: Literal["all", "blocks", "adapters"] | None = None
    heldout_examples: int = Field(32, ge=1, le=MOST)
    dropout_passes: int | None = Field(None, ge=1, le=MOST)
    resume: Literal["exact", "anew"] = "exact"

    @model_validator(mode="after")
    def _of_use(self) -> Self:
        if self.measure_every is not None and self.signals == "probe":
            text = "is of no use with signals: probe, which reads no norms off training; drop one"
            raise _at("measure_every", text)
        return self


class PolicyEntry(PolicySection):
    """One entry of ``policies``: a policy, and what differs from the rest of the configuration.

    ``fields`` are the policy's fields and keys of ``balance`` alike; ``hbo.config.entries`` knows
    them apart.
    """

    set: dict[Name, Any] = Field(default_factory=dict)
    choose: dict[Name, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)


class HarnessSection(Section):
    """How lm-evaluation-harness runs the benchmarks."""

    files: Name | None = None
    limit: int | None = Field(None, ge=1, le=MOST)
    batch_size: int = Field(8, ge=1, le=MOST)
    apply_chat_template: bool = False


class EvaluationSection(Section):
    """What is kept apart and how it is measured."""

    holdout: float = Field(0.1, gt=0.0, le=0.5)
    before: bool = True
    validation: bool = False
    benchmarks: list[Name] = Field(default_factory=list)
    harness: HarnessSection = Field(default_factory=lambda: HarnessSection())
    tokens_per_batch: int = Field(4096, ge=1, le=MOST)
    max_examples: int | None = Field(None, ge=1, le=MOST)


class Config(Section):
    """A whole configuration."""

    model: Name
    datasets: dict[Name, DatasetSection] = Field(min_length=1)
    difficulty: DifficultySection = Field(default_factory=DifficultySection)
    balance: BalanceSection = Field(default_factory=lambda: BalanceSection())
    policies: dict[Name, PolicyEntry] = Field(default_factory=dict)
    tuning: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: EvaluationSection = Field(default_factory=lambda: EvaluationSection())
    train_share: float = Field(1.0, gt=0.0, le=1.0)
    on_bad_record: Literal["error", "skip"] = "error"
    output_dir: Name = "runs/hbo"
    seed: int = Field(42, ge=0, lt=2**32)
    versions: dict[str, str] | None = None

    @field_validator("policies", mode="before")
    @classmethod
    def _named_after_its_policy(cls, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        return {
            name: {"policy": name, **(entry or {})} if isinstance(entry, dict | None) else entry
            for name, entry in entries.items()
        }

    @field_validator("tuning", "training")
    @classmethod
    def _given(cls, values: dict[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = without_hidden(values)
        return given

    @model_validator(mode="after")
    def _weights(self) -> Self:
        without = [name for name, subset in self.datasets.items() if subset.weight is None]
        if without and len(without) < len(self.datasets):
            text = "has no weight, but other datasets have; give one to all or to none"
            raise PydanticCustomError("elsewhere", text, {"path": ("datasets", without[0])})
        return self

    @property
    def weights(self) -> list[float] | None:
        """Normalised weights in the order of the subsets; ``None`` where none were given."""
        given = [subset.weight for subset in self.datasets.values() if subset.weight is not None]
        total = math.fsum(given)
        return [weight / total for weight in given] if given else None

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as it would be written in a file, ``***`` for each secret."""
        values = self.model_dump(mode="python", exclude_none=True)
        for section in (values["balance"], *values["policies"].values()):
            section.update(section.pop("fields"))
        for entry, key in itertools.product(values["policies"].values(), ("set", "choose")):
            if not entry[key]:
                del entry[key]
        for subset in values["datasets"].values():
            if subset["min_share"] == 0.0:
                del subset["min_share"]
            if subset["max_share"] == 1.0:
                del subset["max_share"]
        values = {key: value for key, value in values.items() if value not in ({}, [])}
        return {
            key: without_secrets(value, named=key in {"tuning", "training"})
            for key, value in values.items()
        }
