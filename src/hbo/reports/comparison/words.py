"""What a comparison came to, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbo.reports.text import number, percent, probability, signed
from hbo.statistics import SIGNIFICANT, smallest_p

Numbers = Mapping[str, Any]


def ranked(numbers: Numbers) -> list[str]:
    """The policies, lowest macro loss first."""
    policies = numbers["policies"]
    return sorted(policies, key=lambda name: policies[name]["macro_loss"]["mean"])


def spread(value: Numbers | None, digits: int = 3) -> str:
    """A mean with its interval.

    Example:
        >>> spread({"mean": 1.1111, "low": 1.05, "high": 1.17})
        '1.111 [1.050, 1.170]'
    """
    if value is None:
        return number(None)
    low, high = number(value["low"], digits), number(value["high"], digits)
    return f"{number(value['mean'], digits)} [{low}, {high}]"


def share_spread(value: Numbers | None) -> str:
    """An accuracy with its interval.

    Example:
        >>> share_spread({"mean": 0.305, "low": 0.21, "high": 0.4})
        '30.5% [21.0, 40.0]'
    """
    if value is None:
        return number(None)
    low, high = number(100 * value["low"], 1), number(100 * value["high"], 1)
    return f"{percent(value['mean'], 1)} [{low}, {high}]"


def signed_spread(value: Numbers | None, digits: int = 3, times: float = 1.0) -> str:
    """A difference with its interval.

    Example:
        >>> signed_spread({"mean": -0.03, "low": -0.05, "high": 0.01}, 2)
        '−0.03 [−0.05, +0.01]'
    """
    if value is None:
        return number(None)
    mean, low, high = (signed(times * value[key], digits) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def beyond_noise(difference: Numbers | None) -> bool:
    """Whether its interval leaves zero out and the corrected p-value is below 0.05."""
    return (
        difference is not None
        and not difference["low"] <= 0.0 <= difference["high"]
        and difference["p_corrected"] < SIGNIFICANT
    )


def sentences(numbers: Numbers) -> list[str]:
    """The answer, the worst subset, accuracy, and what the words mean.

    Args:
        numbers: The content of ``comparison.json``.
    """
    if not numbers["policies"]:
        return []
    said = [_headline(numbers), _worst(numbers), _accuracy(numbers), _before(numbers)]
    return [sentence for sentence in said if sentence]


def _headline(numbers: Numbers) -> str:
    order = ranked(numbers)
    first, against = order[0], numbers["against"]
    reached = spread(numbers["policies"][first]["macro_loss"])
    if len(order) == 1:
        return f"{first} has a macro loss of {reached}; there is nothing yet to compare it with."
    lowest = f"{first} has the lowest macro loss, {reached}"
    if against not in numbers["policies"]:
        return f"{lowest}; {against}, to compare it with, has no finished run."
    if first == against:
        second = order[1]
        difference = numbers["policies"][second]["difference"]["loss"]
        return (
            f"{lowest}, and the others are compared with it; the next, {second}, differs by "
            f"{_difference(difference, len(order) - 1)}."
        )
    difference = numbers["policies"][first]["difference"]["loss"]
    return f"{lowest}; the difference to {against} is {_difference(difference, len(order) - 1)}."


def _difference(difference: Numbers | None, comparisons: int) -> str:
    if difference is None:
        return "not known, since no seed has both runs"
    return f"{signed_spread(difference)}, {verdict(difference, comparisons)}"


def verdict(difference: Numbers, comparisons: int) -> str:
    """Whether a difference is more than noise, in words.

    Args:
        difference: With ``low``, ``high``, ``p_corrected`` and ``per_seed``.
        comparisons: How many policies are compared with the reference.
    """
    p = f"p = {probability(difference['p_corrected'])}".replace("= <", "<")
    p += ", corrected for the number of policies" if comparisons > 1 else ""
    if beyond_noise(difference):
        return f"which is more than noise ({p})"
    seeds = len(difference["per_seed"])
    if difference["low"] <= 0.0 <= difference["high"]:
        return f"which is not shown to be more than noise ({p})"
    if smallest_p(seeds, comparisons) >= SIGNIFICANT:
        few = "one seed" if seeds == 1 else f"{seeds} seeds"
        return f"whose interval leaves zero out, but {few} cannot show that it is no chance ({p})"
    return f"which is not shown to be more than noise, though its interval leaves zero out ({p})"


def _worst(numbers: Numbers) -> str:
    policies = numbers["policies"]
    if len(policies) < 2:
        return ""
    best = min(policies, key=lambda name: policies[name]["worst_loss"]["mean"])
    row = policies[best]
    text = f"On its worst subset ({', '.join(row['worst_loss']['subsets'])}) the lowest loss is "
    text += f"that of {best}, {spread(row['worst_loss'])}"
    difference = (row["difference"] or {}).get("worst_loss")
    if difference is not None:
        text += f"; the difference to {numbers['against']} is "
        text += _difference(difference, len(policies) - 1)
    return f"{text}."


def _accuracy(numbers: Numbers) -> str:
    policies = numbers["policies"]
    graded = [name for name in policies if policies[name]["macro_accuracy"] is not None]
    if len(graded) < 2:
        return ""
    most = max(policies[name]["macro_accuracy"]["mean"] for name in graded)
    best = [name for name in graded if policies[name]["macro_accuracy"]["mean"] == most]
    row = policies[best[0]]
    reached = share_spread(row["macro_accuracy"])
    if best == graded:
        return f"Macro accuracy is the same with each of them, {reached}."
    text = f"Macro accuracy is highest with {', '.join(best)}, {reached}"
    if numbers["against"] in best:
        return f"{text}."
    difference = (row["difference"] or {}).get("accuracy")
    if difference is not None:
        points = signed_spread(difference, 1, 100)
        text += f"; the difference to {numbers['against']} is {points} points, "
        text += verdict(difference, len(policies) - 1)
    return f"{text}."


def _before(numbers: Numbers) -> str:
    before = numbers["before"]
    if before is None:
        return ""
    text = f"The untouched model has a macro loss of {number(before['macro_loss'])}"
    if before["macro_accuracy"] is not None:
        text += f" and a macro accuracy of {percent(before['macro_accuracy'], 1)}"
    return f"{text}."
