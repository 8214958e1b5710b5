"""What holds for the repository as a whole: sizes, layers, imports, the tree in the README."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "hbo"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NUMPY_ONLY = next(
    contract["source_modules"]
    for contract in SETTINGS["tool"]["importlinter"]["contracts"]
    if contract["id"] == "numpy-only"
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def python(code: str, *arguments: str) -> str:
    """Run `code` in a new interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "most"), [(SOURCES, 400), (TESTS, 600)], ids=["sources", "tests"]
)
def test_a_file_holds_one_idea(paths, most):
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in paths}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > most} == {}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    docstring = (
        first.end_lineno - first.lineno + 1
        if ast.get_docstring(function, clean=False) is not None
        else 0
    )
    return function.end_lineno - function.lineno + 1 - docstring


def test_a_function_fits_on_a_screen():
    too_long = {
        f"{relative(path)}:{node.lineno} {node.name}": code_lines(node)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > 60
    }
    assert too_long == {}


def test_every_source_file_says_what_it_is():
    silent = [relative(path) for path in SOURCES if not ast.get_docstring(parsed(path))]
    assert silent == []


# --- words --------------------------------------------------------------------------------------

TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jinja", ".css", ".js", ".html", ""}
SKIPPED = {".git", "__pycache__", "runs", "build", "dist", "node_modules"}


def texts(folder: Path) -> Iterator[Path]:
    """Yield every text file that belongs to the repository."""
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.name not in {".ci", ".gitignore"}
        if path.name in SKIPPED or hidden:
            continue
        if path.is_dir():
            yield from texts(path)
        elif path.suffix in TEXT:
            yield path


# Spelled in pieces, so that this file does not hold them.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")
SKIPS = re.compile(r"pytest\." + r"mark\.(skip|xfail)\b|Not" + "ImplementedError")
MACHINE = re.compile(
    "(?<![A-Za-z0-9_.])/(" + "|".join(["tm" + "p/", "wo" + "rk/", "roo" + "t/", "hom" + "e/"]) + ")"
)


@pytest.mark.parametrize(
    "pattern", [UNFINISHED, SKIPS, MACHINE], ids=["unfinished", "skipped", "one machine's path"]
)
def test_nothing_is_left_lying_about(pattern):
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in texts(ROOT)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []


# --- layers -------------------------------------------------------------------------------------

ONLY_NUMPY = """
import importlib, pkgutil, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {"hbo", "numpy"}:
            raise ImportError(f"{name} is behind the wall")

sys.meta_path.insert(0, Wall())
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
print("done")
"""


def test_tables_maths_and_decisions_import_with_numpy_alone():
    assert python(ONLY_NUMPY, *NUMPY_ONLY).split() == ["done"]


def test_the_wall_of_that_test_stands():
    done = subprocess.run(
        [sys.executable, "-c", ONLY_NUMPY, "yaml"], capture_output=True, text=True
    )
    assert "yaml is behind the wall" in done.stderr


THIRD_PARTIES = """
import sys
before = set(sys.modules)
import hbo
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(name for name in new - sys.stdlib_module_names if not name.startswith("__")))
"""


def test_import_hbo_pulls_in_numpy_at_most():
    assert set(python(THIRD_PARTIES).split()) <= {"hbo", "numpy"}


HELP = """
import sys
from hbo.cli import main
assert main(["--help"]) == 0
print("loaded:", *sorted({"torch", "transformers", "trl", "datasets"} & set(sys.modules)))
"""


def test_help_loads_no_heavy_library():
    assert python(HELP).splitlines()[-1].strip() == "loaded:"


def imported_at_the_top(tree: ast.Module) -> set[str]:
    """Names of the modules a file imports when it is itself imported, apart from typing blocks."""
    names: set[str] = set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            pending += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]
    return names


@pytest.mark.parametrize("room", ["data", "measure", "assets"])
def test_models_and_files_load_the_large_libraries_only_when_called(room):
    large = {"datasets", "transformers", "accelerate", "trl", "peft", "gguf", "pandas", "pyarrow"}
    found = {
        relative(path): sorted(heavy)
        for path in SOURCES
        if path.relative_to(PACKAGE).parts[0] == room
        and (heavy := {n.partition(".")[0] for n in imported_at_the_top(parsed(path))} & large)
    }
    assert found == {}


def defines_a_policy(tree: ast.Module) -> bool:
    """Return whether a file has a class, other than a protocol, with the methods of a policy."""
    methods = {"init", "probabilities", "update"}
    return any(
        methods <= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases)
    )


def test_one_policy_knows_no_other():
    trees = {path.stem: parsed(path) for path in (PACKAGE / "policies").glob("*.py")}
    policies = {name for name, tree in trees.items() if defines_a_policy(tree)}
    assert policies
    known = {
        name: {f"hbo.policies.{other}" for other in policies - {name}}
        & imported_at_the_top(trees[name])
        for name in policies
    }
    assert {name: others for name, others in known.items() if others} == {}


# --- papers -------------------------------------------------------------------------------------


def test_the_tree_of_the_readme_is_the_tree_on_the_disk():
    done = subprocess.run([sys.executable, "tools/tree.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run `make tree`"


def test_the_changelog_has_a_heading_for_this_version():
    version = SETTINGS["project"]["version"]
    headings = re.findall(r"^## \[?([^\s\]]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert version in headings


def test_the_distribution_is_typed():
    assert (PACKAGE / "py.typed").exists()
