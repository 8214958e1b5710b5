"""Checks of a policy's settings: type and range, with one clear line where one is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from hbo.errors import ConfigError


def number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    above: bool = False,
    finite: bool = True,
    optional: bool = False,
) -> None:
    """Check that ``value`` is a number in [low, high].

    Args:
        name: Field name, for the message.
        value: What was given.
        low: Smallest allowed value.
        high: Largest allowed value.
        above: ``low`` itself is not allowed.
        finite: Infinity is not allowed.
        optional: ``None`` is allowed.

    Raises:
        ConfigError: It is not.
    """
    if value is None and optional:
        return
    good = isinstance(value, int | float) and not isinstance(value, bool)
    good = good and low <= value <= high and not (above and value == low)
    if not good or (finite and math.isinf(value)):
        floor = f"above {low:g}" if above else f"from {low:g}"
        text = f"a number {floor}" + (f" to {high:g}" if math.isfinite(high) else "")
        text += "" if finite else ", infinity too"
        raise refused(name, value, text, optional)


def whole_number(name: str, value: Any, low: int, *, optional: bool = False) -> None:
    """Check that ``value`` is a whole number >= ``low``; ``ConfigError`` where it is not."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise refused(name, value, f"a whole number from {low}", optional)


def flag(name: str, value: Any) -> None:
    """Check that ``value`` is true or false; ``ConfigError`` where it is not."""
    if not isinstance(value, bool):
        raise refused(name, value, "true, false")


def choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Check that ``value`` is one of the words ``allowed``; ``ConfigError`` where it is not."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(
            f"{name} is {value!r}{nearest(str(value), allowed)}; allowed: {', '.join(allowed)}"
        )


def share_list(name: str, value: Any) -> tuple[float, ...]:
    """Check a list of numbers >= 0 with a sum above 0, and return it as a tuple of floats.

    Raises:
        ConfigError: It is not one.
    """
    plain = isinstance(value, Sequence) and not isinstance(value, str)
    entries = list(value) if plain else []
    for entry in entries:
        number(f"an entry of {name}", entry, 0.0)
    if not entries or math.fsum(entries) <= 0:
        raise refused(name, value, "a list of numbers from 0, one for each subset, not all 0")
    return tuple(float(entry) for entry in entries)


def shared_prior_temperature(value: Any) -> None:
    """Check the key that all policies share, in a policy that does not use it.

    ``balance.prior_temperature`` belongs to the policies that start from a prior and leave it. The
    static ones take its default, so that one configuration serves them all, and nothing else.
    """
    number("prior_temperature", value, 0.0, above=True, finite=False, optional=True)
    if value not in (None, 1, 1.0):
        raise ConfigError(
            f"prior_temperature is {value:g}, but this policy has no prior to leave; allowed: 1 "
            "(the default). For fixed shares ~ n^(1/T) use policy: temp with temperature: T"
        )


def nearest(word: str, allowed: Collection[str]) -> str:
    """'; nearest: X' or nothing."""
    found = get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"; nearest: {found[0]}" if found else ""


def refused(name: str, value: Any, allowed: str, optional: bool = False) -> ConfigError:
    """The error of a setting with a wrong type or out of range."""
    hint = " (it is text: remove the quotes)" if isinstance(value, str) else ""
    return ConfigError(
        f"{name} is {value!r}{hint}; allowed: {allowed}" + (", or nothing" if optional else "")
    )
