"""From a file and its ``--set`` overrides to a checked ``Config``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hbo.config.document import Document
from hbo.config.explain import config_error, shorten, unknown
from hbo.config.extends import load_extended
from hbo.config.overrides import apply_override, dotted
from hbo.config.schema import Config, PolicySection
from hbo.errors import ConfigError


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and the places its values came from."""

    config: Config
    document: Document

    def error(self, path: tuple[str, ...], text: str) -> ConfigError:
        """A ``ConfigError`` about the value at ``path``, with its file and line."""
        return ConfigError(f"{dotted(path)}: {text}", where=self.document.place(path))


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> LoadedConfig:
    """Read and check a configuration file; nothing but NumPy and pydantic is needed for it.

    Fields of TRL's dataclasses are checked by ``hbo.config.trl.check_trl``, which imports TRL.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file.
        overrides: ``a.b=value`` texts of ``--set``, applied in order.

    Raises:
        ConfigError: ``FILE:LINE: dotted.path: what is wrong, what is allowed``.
    """
    document = load_extended(path)
    for text in overrides:
        apply_override(document, text)
    document.values.setdefault("output_dir", f"runs/{Path(path).stem}")
    return check(document)


def check(document: Document) -> LoadedConfig:
    """A ``Config`` from plain values; see ``load_config``."""
    try:
        config = Config.model_validate(document.values)
    except ValidationError as error:
        raise config_error(error, document) from None
    loaded = LoadedConfig(config, document)
    check_policy(loaded, ("balance",), config.balance)
    check_shares(loaded)
    if config.policies:
        from hbo.config.entries import entries_of

        entries_of(loaded, list(config.policies))
    return loaded


def check_policy(loaded: LoadedConfig, path: tuple[str, ...], section: PolicySection) -> None:
    """Name and fields of a policy; an error names the field's own line."""
    from hbo.policies import POLICIES, make_policy

    if section.policy not in POLICIES:
        text = unknown(section.policy, POLICIES, kind="policy")
        raise loaded.error((*path, "policy"), text)
    known = POLICIES[section.policy].fields
    for key in section.fields:
        if key not in known:
            ours = [name for name in type(section).model_fields if name != "fields"]
            raise loaded.error((*path, key), unknown(key, [*ours, *known]))
    try:
        make_policy(section.policy, section.fields)
    except ConfigError as error:
        raise loaded.error(*_culprit(path, section, error)) from None
    except TypeError as error:
        # A required field of a dataclass that was not given.
        raise loaded.error(path, f"policy {section.policy}: {error}") from None
    except OverflowError:
        raise loaded.error(path, f"policy {section.policy}: a number is too large") from None


def _culprit(
    path: tuple[str, ...], section: PolicySection, error: ConfigError
) -> tuple[tuple[str, ...], str]:
    """The field of a policy that its factory refuses; the section itself where it is several."""
    from hbo.policies import make_policy

    for key, value in section.fields.items():
        try:
            make_policy(section.policy, {key: value})
        except ConfigError as alone:
            text = alone.message.removeprefix(f"policy {section.policy}: ")
            return (*path, key), text.removeprefix(f"{key} ")
        except (TypeError, OverflowError):
            continue
    return path, error.message


def check_shares(loaded: LoadedConfig) -> None:
    """Floors and ceilings of all subsets together must leave a mixture."""
    subsets = loaded.config.datasets
    floors = sum(subset.min_share for subset in subsets.values())
    ceilings = sum(subset.max_share for subset in subsets.values())
    if floors > 1 + 1e-9:
        last = [name for name, subset in subsets.items() if subset.min_share > 0][-1]
        raise loaded.error(
            ("datasets", last, "min_share"),
            f"the min_share of all datasets sum to {floors:.4g}; at most 1 is possible; lower some",
        )
    if ceilings < 1 - 1e-9:
        last = [name for name, subset in subsets.items() if subset.max_share < 1][-1]
        raise loaded.error(
            ("datasets", last, "max_share"),
            f"the max_share of all datasets sum to {ceilings:.4g}; it takes at least 1; raise some",
        )


def from_mapping(values: Mapping[str, Any]) -> LoadedConfig:
    """A configuration given in Python instead of a file."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"a configuration is a mapping, not {shorten(values)}")
    return check(Document({"output_dir": "runs/hbo", **values}))
