"""Write the source tree of README.md: every file of src/hbo with the first line of its docstring.

`python tools/tree.py` writes it between the two markers; `--check` only says whether it is current.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- tree: written by `make tree` -->", "<!-- end of tree -->"
WIDTH = 32  # columns before the text


def summary(path: Path) -> str:
    """Return the first line of a file's docstring, without the full stop at its end."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".").replace("``", "")


def lines(folder: Path, depth: int) -> Iterator[str]:
    """Yield the line of `folder`, then those of the files in it, then those of its folders."""
    init = folder / "__init__.py"
    name = "  " * depth + folder.name + "/"
    yield f"{name:{WIDTH}}{summary(init) if init.exists() else ''}".rstrip()
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            name = "  " * (depth + 1) + path.name
            yield f"{name:{WIDTH}}{summary(path)}".rstrip()
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(child.rglob("*.py")):
            yield from lines(child, depth + 1)


def render() -> str:
    """Return the tree of src/hbo as it stands on the disk."""
    return "\n".join(["```text", *lines(ROOT / "src" / "hbo", 0), "```"])


def rewrite(readme: str) -> str:
    """Return the text of README.md with the current tree between the markers."""
    before, _, rest = readme.partition(START)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"README.md must hold the lines {START!r} and {END!r}")
    return f"{before}{START}\n{render()}\n{END}{after}"


def main() -> int:
    """Rewrite README.md, or with `--check` return 1 when it is out of date."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = rewrite(old)
    if "--check" in sys.argv[1:]:
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
