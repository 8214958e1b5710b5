"""The pages of the documentation and the blocks of code in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)[ ]*([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: `text` in `language`; `mark` is what follows the language on its line."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """The place of the block, such as ``README.md:12``."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Every block of the documentation in one of the languages."""
    return [
        Block(page, page_text.count("\n", 0, found.start()) + 1, *found.groups())
        for page in PAGES
        for page_text in [page.read_text(encoding="utf-8")]
        for found in FENCE.finditer(page_text)
        if found[1] in languages
    ]
