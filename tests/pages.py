"""What makes an HTML page hard to use, found without a browser."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

VOID = {"meta", "img", "br", "link", "input", "hr"}
"""Elements of HTML that have no end."""
DRAWN = {"line", "rect", "circle", "polyline"}


@dataclass
class Element:
    """With what it holds: its elements in order, and all text in it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, *tags: str) -> list[Element]:
        """Every element of these `tags` in it, in order."""
        found = [self] if self.tag in tags else []
        return found + [deep for each in self.inside for deep in each.all(*tags)]


class Reader(HTMLParser):
    """Keeps a tree; an element that is not closed where it should be is a flaw."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.flaws: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))
        if tag not in DRAWN:
            self.flaws.append(f"<{tag}/> is no element that ends itself")

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag != tag:
            self.flaws.append(f"</{tag}> ends <{self.open[-1].tag}>")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read_page(page: str) -> tuple[Element, list[str]]:
    """The tree of a page, and where its elements are not nested."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    unclosed = [f"<{element.tag}> has no end" for element in reader.open[1:]]
    return reader.root, reader.flaws + unclosed


def flaws_of(page: str, folder: Path | None = None) -> list[str]:
    """A sentence for each; with the `folder` where the page lies, files that links name must be there."""
    root, found = read_page(page)
    ids = Counter(element.attributes["id"] for element in _every(root) if "id" in element.attributes)
    found += [f"id {name!r} stands {count} times" for name, count in ids.items() if count > 1]
    found += _structure(root) + _pictures(root) + _tables(root)
    for element in _every(root):
        for name in ("aria-labelledby", "aria-describedby"):
            found += [
                f"{name} {each!r} is nothing" for each in element.attributes.get(name, "").split() if each not in ids
            ]
    for link in root.all("a"):
        target = link.attributes.get("href", "")
        if target.startswith("#"):
            found += [] if target[1:] in ids else [f"link to {target!r}, which is nothing"]
        elif ":" in target or target.startswith(("/", "..")):
            found.append(f"link out of the folder: {target!r}")
        elif folder and not (folder / unquote(target)).exists():
            found.append(f"link to {target!r}, which is not there")
    return found


def _every(element: Element) -> list[Element]:
    return [element] + [deep for each in element.inside for deep in _every(each)]


def _structure(root: Element) -> list[str]:
    """Language, title, one main part that can be skipped to, headings in order, and nothing from elsewhere."""
    found = [] if root.all("html")[0].attributes.get("lang") else ["no language"]
    found += [] if root.all("title")[0].text.strip() else ["no title"]
    found += [f"{len(root.all(tag))} of <{tag}>" for tag in ("main", "header", "nav", "h1") if len(root.all(tag)) != 1]
    first = root.all("body")[0].inside[0]
    main = root.all("main")[0].attributes.get("id")
    found += [] if first.attributes.get("href") == f"#{main}" else ["nothing skips to the main part"]
    levels = [int(heading.tag[1]) for heading in root.all("h1", "h2", "h3", "h4")]
    found += [f"h{before} is followed by h{after}" for before, after in pairwise(levels) if after > before + 1]
    found += [
        f"an empty {each.tag}" for each in root.all("h1", "h2", "h3", "a", "summary", "title") if not each.text.strip()
    ]
    found += [f"<{each.tag}> is there" for each in root.all("script", "link", "iframe", "object", "form")]
    handlers = [name for each in _every(root) for name in each.attributes if name.startswith("on")]
    return found + [f"{name} is a script" for name in handlers]


def _pictures(root: Element) -> list[str]:
    """Each has a size, words for who does not see it, and lies in the page."""
    found = [
        f"<{each.tag}> shows {each.attributes.get('alt')!r}"
        for each in root.all("img")
        if not each.attributes.get("alt", "").strip()
    ]
    found += [
        f"<img> from {each.attributes['src'][:40]!r}"
        for each in root.all("img")
        if not each.attributes["src"].startswith("data:image/")
    ]
    found += ["<img> without a size" for each in root.all("img") if not {"width", "height"} <= each.attributes.keys()]
    for drawing in root.all("svg"):
        if "role" in drawing.attributes:
            told = [each for each in drawing.inside if each.tag in ("title", "desc") and each.text.strip()]
            found += [] if len(told) == 2 and drawing.attributes["role"] == "img" else ["a drawing without words"]
        elif drawing not in [
            deep for outer in root.all("svg") if "role" in outer.attributes for deep in outer.all("svg")
        ]:
            found.append("a drawing without a role")
    return found


def _tables(root: Element) -> list[str]:
    """Each has a caption, and heads that say of what."""
    found = []
    for table in root.all("table"):
        captions = table.all("caption")
        found += [] if captions and captions[0].text.strip() else ["a table without a caption"]
        found += [
            f"<th>{each.text}</th> without scope"
            for each in table.all("th")
            if each.attributes.get("scope") not in ("row", "col")
        ]
        widths = {len(row.all("th", "td")) for row in table.all("tr")}
        found += [] if len(widths) == 1 else [f"rows of {sorted(widths)} cells under {captions[0].text!r}"]
    return found
