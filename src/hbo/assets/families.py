"""The task families of reasoning-gym that records are made of, and what they are called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hbo.errors import ConfigError

_OF_CATEGORY: Mapping[str, tuple[str, ...]] = {
    "algorithmic": (
        "ab", "base_conversion", "binary_alternation", "caesar_cipher", "count_primes",
        "cryptarithm", "group_anagrams", "letter_counting", "letter_jumble", "manipulate_matrix",
        "number_filtering", "number_sorting", "palindrome_generation", "pool_matrix",
        "rotate_matrix", "rotten_oranges", "sentence_reordering", "spell_backward",
        "string_manipulation", "string_splitting", "string_synthesis", "word_sequence_reversal",
        "word_sorting",
    ),
    "arc": ("arc_1d",),
    "arithmetic": (
        "basic_arithmetic", "bitwise_arithmetic", "calendar_arithmetic", "chain_sum", "count_bits",
        "decimal_arithmetic", "decimal_chain_sum", "dice", "fraction_simplification", "gcd", "lcm",
        "leg_counting", "number_format", "power_function", "prime_factorization", "products",
        "gsm_symbolic",
    ),
    "cognition": ("color_cube_rotation", "modulo_grid", "needle_haystack", "rectangle_count"),
    "games": (
        "emoji_mystery", "kakurasu", "mahjong_puzzle", "maze", "mini_sudoku", "survo", "tsumego",
    ),
    "geometry": ("simple_geometry",),
    "graphs": (
        "course_schedule", "family_relationships", "largest_island", "path_star", "shortest_path",
    ),
    "logic": ("aiw", "circuit_logic", "knights_knaves", "self_reference", "syllogism"),
}  # fmt: skip

_OTHER_MODULES = {
    "gsm_symbolic": "gsm_symbolic.gsm_symbolic",
    "mahjong_puzzle": "mahjong",
    "syllogism": "syllogisms",
}

FAMILIES: Mapping[str, str] = {
    family: f"reasoning_gym.{category}.{_OTHER_MODULES.get(family, family)}"
    for category, families in _OF_CATEGORY.items()
    for family in families
}
"""Family -> the module of the wheel that makes and verifies it."""

_REASONS: Mapping[str, tuple[str, ...]] = {
    "its verifier runs the answer as program text": (
        "binary_matrix", "countdown", "intermediate_integration", "n_queens",
        "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix",
        "string_insertion",
    ),
    "it needs packages or files that HBO has not": (
        "acre", "advanced_geometry", "arc_agi", "bf", "codeio", "figlet_font", "game_of_life",
        "game_of_life_halting", "polynomial_equations", "rubiks_cube", "simple_equations",
        "time_intervals", "zebra_puzzles",
    ),
    "its records differ from process to process": (
        "isomorphic_strings", "list_functions", "ransom_note", "word_ladder",
    ),
    "its records have no answer to learn": (
        "boxnet", "graph_color", "propositional_logic", "rush_hour",
    ),
    "it takes 10 to 300 ms or more to make a record": (
        "futoshiki", "jugs", "knight_swap", "number_sequence", "quantum_lock", "rearc", "sokoban",
        "sudoku",
    ),
    "its answers are up to thousands of characters long": (
        "palindrome_partitioning", "tower_of_hanoi",
    ),
    "its verifier may take for ever on a short answer": ("coin_flip",),
    "its verifier takes a wrong answer (nan)": ("complex_arithmetic",),
}  # fmt: skip

LEFT_OUT: Mapping[str, str] = {
    family: reason for reason, families in _REASONS.items() for family in families
}
"""Families that reasoning-gym has and this package does not offer -> why."""

_SETTING = re.compile(r"([a-z][a-z0-9_]*)=(true|false|-?\d+(?:\.\d+)?)")
Settings = tuple[tuple[str, bool | int | float], ...]


@dataclass(frozen=True)
class Family:
    """A family and the settings that differ from its defaults.

    Args:
        name: The family.
        settings: (name, value) of settings, sorted by name.
    """

    name: str
    settings: Settings = ()

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_text(value)}" for key, value in self.settings)])


def parse_family(text: str) -> Family:
    """What a configuration calls a family: its name and, after spaces, settings of its own.

    Numbers and true or false only, so that no text of a configuration or of a record reaches the
    library's code.

    Raises:
        ConfigError: No such family (the nearest and all are named), one that is left out (with the
            reason), or a setting of another form.

    Example:
        >>> str(parse_family("chain_sum  min_terms=2 max_terms=3"))
        'chain_sum max_terms=3 min_terms=2'
    """
    name, *words = text.split() or [""]
    if name not in FAMILIES:
        if name in LEFT_OUT:
            raise ConfigError(
                f"the family {name!r} of reasoning-gym cannot be used: {LEFT_OUT[name]}"
            )
        close = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f" (nearest: {close[0]!r})" if close else ""
        raise ConfigError(
            f"no family {name!r} in the asset 'reasoning-gym'{hint}; there are "
            + ", ".join(sorted(FAMILIES))
        )
    settings: dict[str, bool | int | float] = {}
    for word in words:
        match = _SETTING.fullmatch(word)
        if match is None or match[1] in settings:
            raise ConfigError(
                f"{word!r} in {text!r} is no setting of a family; write each once, as NAME=VALUE "
                "with a number, true or false"
            )
        settings[match[1]] = _value(match[2])
    return Family(name, tuple(sorted(settings.items())))


def _value(text: str) -> bool | int | float:
    if text in ("true", "false"):
        return text == "true"
    return float(text) if "." in text else int(text)


def _text(value: bool | int | float) -> str:
    return str(value).lower()
