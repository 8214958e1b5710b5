"""Blocks of the documentation: Python runs, configurations load, commands and links lead somewhere.

A Python block marked `fragment` is compiled and not run: it shows a part of something larger. The
others of one page run one after the other in one process, in an empty folder, where the asset
`smollm2-135m` is the tests' tiny model: what a reader runs in a minute takes a second here.
A YAML block marked `other` is a file of another tool.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT, Block, blocks

PYTHON = blocks("python")
PAGES_THAT_RUN = sorted({block.page for block in PYTHON if block.mark != "fragment"})
CONFIGURATIONS = [block for block in blocks("yaml") if block.mark != "other"]
COMMANDS = [
    (f"{block.name} {line.strip()}", line.strip())
    for block in blocks("console", "bash", "sh")
    for line in block.text.replace("\\\n", " ").splitlines()
]
PRELUDE = (ROOT / "tests" / "docs" / "prelude.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_is_python(block):
    compile(block.text, block.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.name)
def test_python_runs(page, tmp_path):
    script = "\n".join(b.text for b in PYTHON if b.page == page and b.mark != "fragment")
    (tmp_path / "page.py").write_text(PRELUDE + script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py", str(ROOT)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda block: block.name)
def test_configurations_load(block: Block, tmp_path):
    from hbo.config import load_config

    text = block.text
    if not re.search(r"^model:", text, re.MULTILINE):
        text += "\nmodel: smollm2-135m\n"
    if not re.search(r"^datasets:", text, re.MULTILINE):
        text += "\ndatasets: {german: {data_files: german.jsonl}}\n"
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).config.model


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_demonstrations_load(path):
    from hbo.config import load_config

    assert load_config(path).config.output_dir == f"runs/{path.stem}"


@pytest.fixture(scope="module")
def help_of():
    """Return a function that says what `hbo COMMAND --help` prints, asking once a command."""
    pages: dict[str, str] = {}

    def ask(command: str) -> str:
        if command not in pages:
            words = [sys.executable, "-m", "hbo", *command.split(), "--help"]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, f"there is no `hbo {command}`: {done.stderr}"
            pages[command] = done.stdout
        return pages[command]

    return ask


HBO_COMMANDS = [pytest.param(line, id=name) for name, line in COMMANDS if "hbo " in line]
MAKE_COMMANDS = [pytest.param(line, id=name) for name, line in COMMANDS if line.startswith("make ")]


@pytest.mark.process
@pytest.mark.parametrize("line", HBO_COMMANDS)
def test_commands_exist(line, help_of):
    words = line.partition("hbo ")[2].partition("#")[0].split()
    command = " ".join(words[: 2 if words[0] == "assets" else 1])
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert [option for option in options if option not in help_of(command)] == []


@pytest.mark.parametrize("line", MAKE_COMMANDS)
def test_make_targets_exist(line):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    asked = line.partition("#")[0].split()[1:]
    assert {word for word in asked if "=" not in word} <= targets


LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)#?([^)\s]*)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what `page#...` can point to: the headings, as GitHub spells them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    lost = [
        f"{path}#{anchor}"
        for path, anchor in LINK.findall(text)
        for target in [page.parent / path if path else page]
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert lost == []
