"""A page taken apart by the standard library's parser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "hr", "input", "path", "use", "rect"}


@dataclass
class Element:
    """One start tag."""

    tag: str
    attributes: dict[str, str]


@dataclass
class Page:
    """What the parser saw: every start tag, all text that is shown, and whether tags balance."""

    elements: list[Element] = field(default_factory=list)
    text: str = ""
    unbalanced: list[str] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Every element of a kind."""
        return [element for element in self.elements if element.tag == tag]

    def values(self, attribute: str) -> list[str]:
        """Every value of an attribute, anywhere."""
        return [e.attributes[attribute] for e in self.elements if attribute in e.attributes]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.stack = Page(), []

    def handle_starttag(self, tag, attrs):
        self.page.elements.append(Element(tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.page.elements.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.stack or self.stack.pop() != tag:
            self.page.unbalanced.append(tag)

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in {"style", "script"}:
            self.page.text += data


def parse(html: str) -> Page:
    """Take a page apart."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    parser.page.unbalanced += parser.stack
    return parser.page
