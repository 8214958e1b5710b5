"""Numbers and names as people read them."""

from __future__ import annotations

import math
import unicodedata

MISSING = "–"


def visible(name: str) -> str:
    r"""A name with its control characters and lone surrogates made visible.

    Everything else is kept, right-to-left scripts included; escaping is the caller's business.

    Args:
        name: Any text.

    Returns:
        Text that is safe to encode as UTF-8 and to put on one line.

    Example:
        >>> visible("tab\there")
        'tab␉here'
    """
    return "".join(_visible_character(character) for character in name)


def _visible_character(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode block of pictures for control codes
    if code == 0x7F:
        return "␡"
    category = unicodedata.category(character)
    # Overrides and isolates could turn the text around them; joiners (ZWJ, ZWNJ) belong to words.
    turns = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    if category in {"Cc", "Cs", "Zl", "Zp"} or turns:
        return f"⟨{code:04X}⟩"
    return character


def number(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals, ``–`` where there is no number.

    Example:
        >>> number(1.23456), number(None)
        ('1.235', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """As ``number``, with a sign always.

    Example:
        >>> signed(0.5, 1), signed(-0.5, 1)
        ('+0.5', '−0.5')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int | None = None) -> str:
    """A share as a percentage, with a decimal only where it says something.

    Example:
        >>> percent(0.314), percent(0.0314), percent(0.0004)
        ('31%', '3.1%', '0.04%')
    """
    if share is None or not math.isfinite(share):
        return MISSING
    value = 100 * share
    if digits is None:
        digits = 0 if abs(value) >= 10 or value == 0 else 1 if abs(value) >= 0.95 else 2
    return f"{value:.{digits}f}%".replace("-", "−")


def probability(p: float | None) -> str:
    """A p-value, to two digits that say something.

    Example:
        >>> probability(0.25), probability(0.0137), probability(0.00002), probability(1.0)
        ('0.25', '0.014', '< 0.001', '1')
    """
    if p is None or not math.isfinite(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def count(value: float | None) -> str:
    """A whole number with thin groups of thousands.

    Example:
        >>> count(1234567)
        '1,234,567'
    """
    return MISSING if value is None or not math.isfinite(value) else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(17.94), duration(312), duration(7300)
        ('17.9 s', '5 min 12 s', '2 h 1 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(amount: int, noun: str) -> str:
    """``1 subset``, ``2 subsets``.

    Example:
        >>> plural(1, "subset"), plural(1200, "subset")
        ('1 subset', '1,200 subsets')
    """
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
