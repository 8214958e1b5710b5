"""Entries of a comparison: what each changes in a configuration, and what none of them may."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hbo.config.document import Document
from hbo.config.explain import shorten, unknown
from hbo.config.load import LoadedConfig, check
from hbo.config.overrides import dotted, split_path
from hbo.config.schema import BalanceSection, PolicyEntry
from hbo.config.secrets import HIDDEN, is_secret, without_secrets
from hbo.errors import ConfigError

SHARED = ("update_interval", "prior_temperature")
"""Fields of ``balance.policy`` that other policies take as well."""
FIXED = ("model", "evaluation", "output_dir", "seed", "policies", "versions")
"""What is the same in all runs of a comparison."""
MOST_CHOICES = 100


@dataclass(frozen=True, eq=False)
class Entry:
    """One policy of a comparison.

    Args:
        name: The user's name for it.
        policy: The policy's name.
        settings: Fields of the policy, and the keys of ``balance`` that the entry gives.
        set: Dotted key -> value of the rest of the configuration.
        of: The entry whose ``choose`` this is a choice of; ``None`` for an entry of its own.
        document: The whole configuration, as a file would have it.
    """

    name: str
    policy: str
    settings: Mapping[str, Any]
    set: Mapping[str, Any]
    of: str | None
    document: Document

    @property
    def group(self) -> str:
        """The name that its results are reported under."""
        return self.name if self.of is None else self.of

    def configured(self, seed: int, output_dir: str, before: bool) -> LoadedConfig:
        """The configuration of one run of it.

        Args:
            seed: Of the run.
            output_dir: Its run directory.
            before: Whether it also measures the untouched model.
        """
        values = copy.deepcopy(self.document.values)
        given = values.get("evaluation") or {}
        values["evaluation"] = {**given, "before": before, "validation": True}
        values |= {"seed": seed, "output_dir": output_dir}
        return check(Document(values, self.document.places))


def names_of(loaded: LoadedConfig) -> list[str]:
    """What is compared where nobody names anything: the block ``policies``, else the policy."""
    return list(loaded.config.policies) or [loaded.config.balance.policy]


def reference_of(entries: Sequence[Entry]) -> str:
    """What the others are compared with where nobody says: proportional sampling, else the first.

    The entry named ``prop`` comes first, then one of that policy that sets nothing else.
    """
    groups = [entry.group for entry in entries]
    plain = [e.group for e in entries if e.policy == "prop" and not e.set and e.of is None]
    return next((name for name in ("prop", *plain) if name in groups), groups[0])


def entries_of(loaded: LoadedConfig, names: Sequence[str]) -> list[Entry]:
    """The entries of these names: of the block ``policies``, else policies as they are.

    An entry with ``choose`` becomes one for each combination of its values.

    Raises:
        ConfigError: A name is unknown, or an entry would be no possible configuration.
    """
    from hbo.policies import POLICIES

    own = loaded.config.policies
    found: list[Entry] = []
    for name in dict.fromkeys(names):
        if name not in own and name not in POLICIES:
            text = unknown(name, [*own, *POLICIES], kind="policy")
            raise ConfigError(text, where="--policies")
        found += _choices(loaded, name, own.get(name, PolicyEntry(policy=name)))
    seen = [entry.name for entry in found]
    twice = next((name for name in seen if seen.count(name) > 1), None)
    if twice is not None:
        raise loaded.error(("policies", twice), "there are two entries of this name; rename one")
    return found


def _choices(loaded: LoadedConfig, name: str, entry: PolicyEntry) -> list[Entry]:
    if not entry.choose:
        return [_entry(loaded, name, entry, {}, None)]
    for key, values in entry.choose.items():
        where = ("policies", name, "choose", key)
        if key in entry.fields or key in entry.set:
            raise loaded.error(where, "is given beside choose as well; keep one of them")
        if any(value in values[:place] for place, value in enumerate(values)):
            raise loaded.error(where, "holds a value twice; keep it once")
    count = math.prod(len(values) for values in entry.choose.values())
    if count > MOST_CHOICES:
        text = f"makes {count} combinations; at most {MOST_CHOICES}; leave some out"
        raise loaded.error(("policies", name, "choose"), text)
    choices = (
        dict(zip(entry.choose, values, strict=True))
        for values in itertools.product(*entry.choose.values())
    )
    return [_entry(loaded, _named(name, choice), entry, choice, name) for choice in choices]


def _named(name: str, choice: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={shorten(value, 30)}" for key, value in choice.items())])


def _entry(
    loaded: LoadedConfig, name: str, entry: PolicyEntry, choice: Mapping[str, Any], of: str | None
) -> Entry:
    """One setting of an entry, checked as the whole configuration that it is."""
    path = ("policies", of or name)
    set_ = {**entry.set, **{key: value for key, value in choice.items() if "." in key}}
    own = {**entry.fields, **{key: value for key, value in choice.items() if "." not in key}}
    balance = loaded.document.values.get("balance") or {}
    inherited = _inherited(balance, entry.policy, own)
    values = copy.deepcopy(loaded.document.values)
    values.pop("policies", None)
    ours = {key: value for key, value in balance.items() if key in _balance_keys()}
    values["balance"] = {"policy": entry.policy, **ours, **inherited, **own}
    document = Document(values, dict(loaded.document.places))
    if path[1] in loaded.config.policies:
        document.places[("balance",)] = loaded.document.place(path) or ""
        for key in ("policy", *own):
            inner = ("choose", key) if key in choice else (key,)
            document.places[("balance", key)] = loaded.document.place((*path, *inner)) or ""
    for key, value in set_.items():
        inner = ("choose", key) if key in choice else ("set", key)
        _put(loaded, document, (*path, *inner), value)
    try:
        check(document)
    except ConfigError as error:
        text = error.message
        if path[1] in loaded.config.policies and text.startswith(("balance.", "balance:")):
            text = dotted(path) + text.removeprefix("balance")
        raise ConfigError(text, where=error.where or None) from None
    return Entry(name, entry.policy, {**inherited, **own}, set_, of, document)


def _balance_keys() -> list[str]:
    return [key for key in BalanceSection.model_fields if key not in {"policy", "fields"}]


def _inherited(balance: Mapping[str, Any], policy: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``balance.policy`` that hold for an entry: all of the same policy, or shared ones.

    A temperature of the prior is left out where the policy has no prior to leave.
    """
    from hbo.policies import POLICIES, make_policy

    keys = set(_balance_keys()) | {"policy"}
    fields = {key: value for key, value in balance.items() if key not in keys and key not in own}
    if policy == balance.get("policy", BalanceSection.model_fields["policy"].default):
        return fields
    takes = POLICIES[policy].fields if policy in POLICIES else {}
    shared = {key: fields[key] for key in SHARED if key in fields and key in takes}
    if "prior_temperature" in shared:
        given = {key: value for key, value in own.items() if key not in keys}
        try:
            make_policy(policy, {**given, "prior_temperature": shared["prior_temperature"]})
        except ConfigError:
            del shared["prior_temperature"]
        except (TypeError, OverflowError):
            pass  # something else is wrong, and is told where all is checked
    return shared


def _put(loaded: LoadedConfig, document: Document, place: tuple[str, ...], value: Any) -> None:
    """Put one value of ``set`` into an entry's configuration.

    Args:
        loaded: The configuration that is compared on.
        document: The entry's.
        place: Where the value was written; its last name is the dotted key.
        value: The value.
    """
    try:
        path, _ = split_path(f"{place[-1]}=")
    except ConfigError:
        raise loaded.error(place, "is no dotted key; write a.b, names with dots quoted") from None
    if path[0] in FIXED or path[0] == "balance":
        text = "is the same for all entries of a comparison; leave it out"
        if path[0] == "balance":
            text = f"belongs to the entry itself: write {dotted(path[1:]) or 'its keys'} beside set"
        raise loaded.error(place, text)
    if is_secret(path[-1]):
        raise loaded.error(place, "is a secret, which is written down nowhere; leave it out")
    here = document.values
    for name in path[:-1]:
        here[name] = here = {**below} if isinstance(below := here.get(name), dict) else {}
    here[path[-1]] = value
    document.places[path] = loaded.document.place(place) or ""


def refuse_secrets(loaded: LoadedConfig) -> None:
    """The configurations of the runs are written down, and secrets never are."""

    def hidden(value: Any, named: bool) -> int:
        return str(without_secrets(value, named=named)).count(HIDDEN) - str(value).count(HIDDEN)

    path: tuple[str, ...] = ()
    here: Any = loaded.document.values
    while isinstance(here, dict):
        named = bool(path) and path[0] in {"tuning", "training"}
        for key, value in here.items():
            trl = named or (not path and key in {"tuning", "training"})
            if hidden({key: value}, trl) > 0:
                path, here = (*path, key), value
                break
        else:
            break
    if path:
        text = "is or holds a secret, and the runs' configurations are written down; log in instead"
        raise loaded.error(path, f"{text} (`hf auth login`), and leave it out")
