"""Records made by reasoning-gym's own code, and its verifiers, out of the wheel."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import types

import numpy as np
import pytest

from hbo import assets
from hbo.assets import families
from hbo.assets.catalogue import REASONING, find_asset
from hbo.assets.families import FAMILIES, LEFT_OUT, parse_family
from hbo.assets.reasoning import COLUMN, Library, Verifiers, write_family
from hbo.assets.wheels import fetch
from hbo.errors import ConfigError, DataError

NONSENSE = ("", "I do not know", "nan", "inf", "1e999999999", "9" * 5000, "(" * 3000)


@pytest.fixture(scope="module")
def wheel():
    return fetch(REASONING)


@pytest.fixture
def made(tmp_path, wheel, monkeypatch):
    """Makes a family in an empty cache that has the wheel, and gives its rows."""
    monkeypatch.setenv("HBO_CACHE", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / wheel.name).symlink_to(wheel)

    def make(name):
        file = assets.asset_data_files("reasoning-gym", name)
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    return make


def test_a_family_is_named_with_settings_in_any_order():
    family = parse_family("chain_sum  min_terms=2 max_terms=3 allow_negation=true size=50")
    assert family == parse_family("chain_sum size=50 allow_negation=true max_terms=3 min_terms=2")
    assert str(family) == "chain_sum allow_negation=true max_terms=3 min_terms=2 size=50"
    assert parse_family(str(family)) == family
    assert dict(parse_family("course_schedule p_solvable=0.5").settings) == {"p_solvable": 0.5}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chain_sun", r"no family 'chain_sun' in the asset 'reasoning-gym' \(nearest: 'chain_sum'"),
        ("", "no family ''.*there are ab, aiw, "),
        ("countdown", "'countdown' of reasoning-gym cannot be used: its verifier runs the answer"),
        ("chain_sum size", "'size' in 'chain_sum size' is no setting of a family; write each once"),
        ("basic_arithmetic operators=__import__", "is no setting of a family"),
        ("chain_sum size=1 size=2", "'size=2' in .* is no setting of a family; write each once"),
    ],
)
def test_a_name_that_cannot_be_is_one_line(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_family(name)


def test_no_family_is_both_offered_and_left_out():
    assert not FAMILIES.keys() & LEFT_OUT.keys()
    assert len(families._REASONS) == len(set(LEFT_OUT.values()))


@pytest.mark.asset
def test_the_subset_is_a_file_of_a_thousand_records_unless_its_name_says_otherwise(made):
    rows = made("basic_arithmetic")
    assert len(rows) == 1000
    assert rows[2] == {
        "prompt": [{"role": "user", "content": "Calculate 0 + -2 + -4 * 0 * 3."}],
        "completion": [{"role": "assistant", "content": "-2"}],
        COLUMN: f"reasoning-gym {REASONING.version}: basic_arithmetic #2",
    }
    small = made("basic_arithmetic seed=7 size=20 max_terms=2")
    assert len(small) == 20 and small[0] != rows[0]
    assert small == made("basic_arithmetic max_terms=2 size=20 seed=7")
    assert not [name for name in sys.modules if name.startswith("reasoning_gym")]


@pytest.mark.asset
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "the asset 'reasoning-gym' needs `name`, one of: ab, aiw, "),
        ("gcd max_valeu=9", r"'gcd' has no setting 'max_valeu' \(nearest: 'max_value'\); it has"),
        ("gcd min_value=9 max_value=3", "the family 'gcd max_value=3 min_value=9' cannot be made"),
        (
            "gcd max_value=9.5 size=5",
            "the family 'gcd max_value=9.5 size=5' cannot be made: .*change",
        ),
        ("gcd size=0", "size=0 of the family 'gcd'; allowed are 1 to 100000 records"),
    ],
)
def test_settings_that_the_family_refuses_are_one_line(made, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        made(name)
    assert "\n" not in str(caught.value)


@pytest.mark.asset
def test_every_family_verifies_its_own_answers_and_no_nonsense_and_runs_none(wheel, tmp_path):
    """Numbers 0 to 4 of each; and whatever the order, the same task has the same text."""
    library = Library(wheel)
    program = f"__import__('pathlib').Path({str(tmp_path / 'it ran')!r}).touch()"
    for name in FAMILIES:
        tasks = library.open(parse_family(name))
        rows = [tasks.record(index) for index in range(5)]
        assert rows == [tasks.record(index) for index in range(4, -1, -1)][::-1], name
        assert sum(row is not None for row in rows) >= 4, name
        entry = tasks.entry(0)
        wrong = [text for text in (*NONSENSE, program) if tasks.verify(text, entry)]
        assert not wrong, (name, wrong)
    assert list(tmp_path.iterdir()) == []


SOME = ("chain_sum", "syllogism", "word_sorting", "family_relationships", "letter_counting")
"""Of every kind: numbers, words from the wheel's data, sets and dictionaries of names."""


@pytest.mark.asset
def test_the_bytes_are_those_of_every_machine(wheel, tmp_path):
    """Change the asset's revision with this digest."""
    digest = hashlib.sha256()
    for name in SOME:
        random.seed(1)
        write_family(wheel, parse_family(f"{name} size=100"), tmp_path / name)
        digest.update((tmp_path / name).read_bytes())
    assert find_asset("reasoning-gym").revision == "0.1.25-1"
    assert digest.hexdigest() == DIGEST


DIGEST = "fc168a2e1c56f20862b90c217ac05131358bd9247d5542bcd8c482cb11ae5b3a"

WRITE = """
import sys
from pathlib import Path
from hbo.assets.families import FAMILIES, parse_family
from hbo.assets.reasoning import Library
library = Library(Path(sys.argv[1]))
for name in FAMILIES:
    tasks = library.open(parse_family(name))
    print([tasks.record(index) for index in range(10)])
"""


@pytest.mark.asset
@pytest.mark.process
def test_no_family_depends_on_the_hash_seed_of_its_process(wheel, monkeypatch):
    printed = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = subprocess.run(
            [sys.executable, "-c", WRITE, str(wheel)], capture_output=True, text=True, check=True
        )
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == len(FAMILIES)


@pytest.mark.asset
def test_what_the_process_has_under_the_librarys_name_stays_there(wheel, monkeypatch):
    other = types.ModuleType("reasoning_gym")
    monkeypatch.setitem(sys.modules, "reasoning_gym", other)
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    tasks = Library(wheel).open(parse_family("gsm_symbolic"))
    # Imports when it is first asked for a task, long after the family was opened.
    assert tasks.record(0) is not None
    assert sys.modules["reasoning_gym"] is other
    assert [name for name in sys.modules if name.startswith("reasoning_gym.")] == []
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # noqa: NPY002


@pytest.mark.asset
def test_a_verifier_takes_every_right_form_of_an_answer(wheel):
    verifiers = Verifiers()
    verify = verifiers.of("reasoning-gym 0.1.25: chain_sum #2", "15")
    assert verify is not None
    assert [verify(text) for text in ("15", " 15.0\n", "+15", "16", "15 = 15", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert verifiers.of(None, "15") is None and verifiers.of("by hand", "15") is None


@pytest.mark.asset
@pytest.mark.parametrize(
    ("mark", "response", "message"),
    [
        ("reasoning-gym 0.1.24: chain_sum #2", "15", "verifiers here are those of reasoning-gym 0"),
        ("reasoning-gym 0.1.25: chain_sum", "15", "make the records again, or leave the column"),
        ("reasoning-gym 0.1.25: chain_sum #3", "15", "d.jsonl:9: the answer is not that of"),
        ("reasoning-gym 0.1.25: countdown #3", "15", "cannot be used: its verifier runs"),
        ("reasoning-gym 0.1.25: chain_sum a=1 #3", "15", "has no setting 'a'"),
    ],
)
def test_a_record_of_another_task_is_refused(mark, response, message):
    with pytest.raises(DataError, match=message) as caught:
        Verifiers().of(mark, response, "d.jsonl:9")
    assert caught.value.where == "d.jsonl:9"
