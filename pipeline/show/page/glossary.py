"""The words of docs/concepts.md, for whoever reads a page without the docs.

`words.json` beside the templates is made from that page: `python -m pipeline.show.page.glossary`; a test holds both
to each other.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

CONCEPTS = Path(__file__).parents[3] / "docs" / "concepts.md"
WORDS = Path(__file__).parents[1] / "templates" / "words.json"

Words = dict[str, tuple[str, str]]
"""By the anchor of a heading: what it says, and the text under it."""


def read_words() -> Words:
    """As the package has them."""
    text = files("pipeline.show").joinpath("templates", WORDS.name).read_text("utf-8")
    return {anchor: (name, about) for anchor, (name, about) in json.loads(text).items()}


def words_of(markdown: str) -> Words:
    """A word for each `###` heading, without markup; links to other pages go with their brackets."""
    found: Words = {}
    for part in re.split(r"^### ", markdown, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        text = " ".join(re.split(r"^## ", body, flags=re.MULTILINE)[0].split())
        text = re.sub(r" ?\(\[[^\]]*\]\([^)]*\)\)", "", text)
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")
        found[re.sub(r"[^\w -]", "", name.lower()).strip().replace(" ", "-")] = (name.strip(), text)
    return found


class Glossary:
    """Marks words in a page, and knows at its end which ones it has marked."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.used: set[str] = set()

    def term(self, anchor: str, shown: str | None = None) -> Markup:
        """A link to the word's place in the page's list, which tells what it means when pointed at or focused."""
        name, about = self.words[anchor]
        self.used.add(anchor)
        return Markup('<a class="term" href="#word-{0}" aria-describedby="about-{0}" data-about="{1}">{2}</a>').format(
            anchor, about, shown or name[0].lower() + name[1:]
        )

    def marked(self) -> list[tuple[str, str, str]]:
        """(anchor, name, text) of the words that were marked, by name."""
        return sorted(
            ((anchor, *self.words[anchor]) for anchor in self.used), key=lambda word: (word[1].lower(), word[0])
        )


if __name__ == "__main__":
    made = words_of(CONCEPTS.read_text("utf-8"))
    WORDS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")
