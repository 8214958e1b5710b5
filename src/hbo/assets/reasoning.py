"""Records of reasoning-gym and their verifiers, run straight out of its pinned wheel.

The wheel is not installed: it would bring a dozen packages, some of which need a compiler. Its
modules are imported one family at a time, from inside the file, without the packages' own
``__init__`` modules that import all families at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbo.assets.catalogue import REASONING, find_asset
from hbo.assets.families import FAMILIES, Family, parse_family
from hbo.assets.wheels import Progress, fetch
from hbo.errors import ConfigError, DataError

SIZE, SEED = 1000, 42
"""Records of a family, and their seed, where its name says nothing else."""

COLUMN = "verifier"
"""The column of a record that says who verifies its answer."""

MOST_RECORDS = 100_000
_LIBRARY = "reasoning_gym"
_MARK = re.compile(r"reasoning-gym (?P<version>\S+): (?P<family>.+) #(?P<index>\d+)")


class Library:
    """The modules of the wheel, kept apart from whatever the process has under their names.

    Args:
        wheel: The fetched file.
    """

    def __init__(self, wheel: Path) -> None:
        categories = {module.rpartition(".")[0] for module in FAMILIES.values()}
        packages = {_LIBRARY, *categories} - {f"{_LIBRARY}.arithmetic.gsm_symbolic"}
        self._modules = {name: _empty_package(name, wheel) for name in packages}

    def open(self, family: Family) -> Tasks:
        """The tasks of one family.

        Raises:
            ConfigError: It has no such setting, or not such a value.
        """
        with self.importing():
            # First, as `factory` and `coaching` import each other.
            importlib.import_module(f"{_LIBRARY}.coaching")
            importlib.import_module(FAMILIES[family.name])
            registered = importlib.import_module(f"{_LIBRARY}.factory").DATASETS
            make, configure = registered[family.name]
            settings = {"size": SIZE, "seed": SEED, **dict(family.settings)}
            _check_settings(family, settings, configure)
            try:
                return Tasks(family, self, make(configure(**settings)), int(settings["size"]))
            except Exception as error:
                raise _cannot_be_made(family, error) from None

    @contextmanager
    def importing(self) -> Iterator[None]:
        """While open, the wheel's modules are the ones that `import` finds."""
        hidden = _take_away()
        sys.modules.update(self._modules)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its source text: old escape sequences
                yield
        finally:
            self._modules.update(_take_away())
            sys.modules.update(hidden)


@dataclasses.dataclass(frozen=True, eq=False)
class Tasks:
    """The numbered tasks of a family: each a function of settings, seed and number.

    Args:
        family: Whose.
        library: Where its code is.
        dataset: The library's own object.
        size: How many there are to be.
    """

    family: Family
    library: Library
    dataset: Any
    size: int

    def entry(self, index: int) -> dict[str, Any]:
        """`question`, `answer` and `metadata` of one task.

        Raises:
            ConfigError: The library cannot make it with these settings.
        """
        with self.library.importing():
            try:
                found: dict[str, Any] = self.dataset[index]
            except Exception as error:  # of any kind: not every family checks its settings
                raise _cannot_be_made(self.family, error) from None
            return found

    def verify(self, answer: str, entry: Mapping[str, Any]) -> bool:
        """Whether the family's own verifier gives the answer full marks.

        It is code that parses: where a text makes it fail, the text is no answer.
        """
        with self.library.importing():
            try:
                return bool(self.dataset.score_answer(answer, entry) == 1.0)
            except Exception:
                return False

    def record(self, index: int) -> dict[str, Any] | None:
        """One task in TRL's format; ``None`` where its own answer does not get full marks."""
        entry = self.entry(index)
        answer = entry["answer"].strip() if isinstance(entry["answer"], str) else ""
        if not answer or not self.verify(answer, entry):
            return None
        return {
            "prompt": [{"role": "user", "content": entry["question"]}],
            "completion": [{"role": "assistant", "content": answer}],
            COLUMN: f"reasoning-gym {REASONING.version}: {self.family} #{index}",
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Verifier:
    """Says whether an answer to one task is right.

    Args:
        tasks: The family.
        index: The task's number.
    """

    tasks: Tasks
    index: int

    def __call__(self, answer: str) -> bool:
        """Whether the answer gets full marks, white space around it aside."""
        return self.tasks.verify(answer.strip(), self.tasks.entry(self.index))


class Verifiers:
    """Verifiers of records, by what their column says; each family is opened once.

    Args:
        progress: As in `hbo.assets.pull`, should the wheel have to be fetched.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._library: Library | None = None
        self._opened: dict[str, Tasks] = {}

    def of(self, mark: object, response: str, where: str | None = None) -> Verifier | None:
        """The verifier that a record's column names; ``None`` where it names none of ours.

        Args:
            mark: What the record has in the column `COLUMN`.
            response: Its answer, compared with the task's: a record that was edited, or made by
                another version of the library, must not be graded by the wrong task.
            where: The record's place.

        Raises:
            DataError: The record does not belong to the task that it names.
            EnvironmentProblem: The wheel cannot be fetched.
        """
        if not isinstance(mark, str) or not mark.startswith("reasoning-gym "):
            return None
        match = _MARK.fullmatch(mark)
        if match is None or match["version"] != REASONING.version:
            raise DataError(
                f"`{COLUMN}` is {mark[:80]!r}, but verifiers here are those of reasoning-gym "
                f"{REASONING.version}: make the records again, or leave the column out",
                where=where,
            )
        try:
            tasks = self._tasks(match["family"])
            found = tasks.record(int(match["index"]))
        except ConfigError as error:
            raise DataError(f"`{COLUMN}`: {error.message}", where=where) from None
        if found is None or found["completion"][0]["content"] != response.strip():
            raise DataError(
                f"the answer is not that of `{COLUMN}` ({mark}); make the records again, or leave "
                "the column out",
                where=where,
            )
        return Verifier(tasks, int(match["index"]))

    def _tasks(self, text: str) -> Tasks:
        if text not in self._opened:
            if self._library is None:
                wheel = find_asset("reasoning-gym").wheels[0]
                self._library = Library(fetch(wheel, self._progress))
            self._opened[text] = self._library.open(parse_family(text))
        return self._opened[text]


def write_family(wheel: Path, family: Family, target: Path) -> None:
    """Make a family's records and write them as JSONL, in the order of their numbers.

    Args:
        wheel: The fetched wheel.
        family: What to make.
        target: The file to write.

    Raises:
        ConfigError: A setting that the family does not have, or no usable record.
    """
    tasks = Library(wheel).open(family)
    records = (tasks.record(index) for index in range(tasks.size))
    lines = [json.dumps(record, ensure_ascii=False) for record in records if record is not None]
    if not lines:
        raise ConfigError(f"the family {str(family)!r} makes no record with an answer")
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _cannot_be_made(family: Family, error: Exception) -> ConfigError:
    reason = str(error) or type(error).__name__
    return ConfigError(f"the family {str(family)!r} cannot be made: {reason}; change its settings")


def _check_settings(family: Family, settings: Mapping[str, Any], configure: Any) -> None:
    known = {field.name for field in dataclasses.fields(configure)}
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (nearest: {close[0]!r})" if close else ""
            raise ConfigError(
                f"the family {family.name!r} has no setting {name!r}{hint}; it has "
                + ", ".join(sorted(known))
            )
    if not 1 <= settings["size"] <= MOST_RECORDS:
        raise ConfigError(
            f"size={settings['size']} of the family {family.name!r}; allowed are 1 to "
            f"{MOST_RECORDS} records"
        )


def _empty_package(name: str, wheel: Path) -> types.ModuleType:
    """A package whose modules are found in the wheel, and whose `__init__` is not run."""
    package = types.ModuleType(name)
    package.__path__ = [str(wheel / name.replace(".", "/"))]
    return package


def _take_away() -> dict[str, types.ModuleType]:
    """Remove the library from the imported modules, and return what was there."""
    names = [name for name in sys.modules if name.partition(".")[0] == _LIBRARY]
    return {name: sys.modules.pop(name) for name in names}
