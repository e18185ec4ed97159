"""The pages hold together: links lead somewhere, the menu is whole, and files that are named are there."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import readme
import yaml
from typer.main import get_command

from inversion.shards import Part
from pipeline.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")


def without_code(text: str) -> str:
    """A page's prose: what looks like a link or a heading in code is none."""
    return re.sub(r"^```.*?^```|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of its headings, as mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", re.sub(r"\[([^]]+)\]\([^)]+\)|`", r"\1", heading))
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def relative_links(page: Path) -> Iterator[tuple[Path, str]]:
    """Files that a page links to, each with the anchor behind it."""
    for in_text, image in LINK.findall(without_code(page.read_text())):
        link = in_text or image
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is a file of the repository, and what stands behind # a heading of it."""
    for path, anchor in relative_links(page):
        assert path.is_relative_to(ROOT), f"{page}: {path}"
        assert path.exists(), f"{page}: {path}"
        assert not anchor or anchor in anchors(path), f"{page}: {path.name}#{anchor}"


def test_pages_have_links() -> None:
    """The search for links finds some: README and guide lean on the glossary."""
    for page in (ROOT / "README.md", DOCS / "guide.md"):
        assert sum(path == DOCS / "concepts.md" for path, _ in relative_links(page)) > 5


def test_the_menu_is_whole() -> None:
    """mkdocs.yml names every page of docs/ once, and no other."""
    menu = re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES[1:]} - {"images/README.md"}
    assert sorted(menu) == sorted(pages)


def test_files_that_architecture_names_are_there() -> None:
    """A reader who looks for where to add something finds the file."""
    found = re.findall(r"`([\w/-]+(?:\.py|\.toml|/))`", (DOCS / "architecture.md").read_text())
    rooms = {room.name for room in (ROOT / "pipeline").iterdir() if room.is_dir()}
    named = {ROOT / ("pipeline/" + path if path.split("/")[0] in rooms | {"cli.py"} else path) for path in found}
    assert len(named) > 30
    assert {path for path in named if not path.exists()} == set()


def test_names_that_architecture_gives_stand_in_its_files() -> None:
    """Each step of "Where do I add" gives a name to look for; it stands in the file of the step, or in a named one."""
    text = (DOCS / "architecture.md").read_text().partition("## Where do I add")[2]
    for section in text.split("\n### ")[1:]:
        paths = re.findall(r"`([\w/-]+\.(?:py|toml))`", section)
        code = "".join((ROOT / path).read_text() for path in paths)
        for name in re.findall(r"`([A-Za-z_]+(?:\.[a-z_]+)?)`", section):
            assert all(part in code for part in name.split(".")), f"{section.splitlines()[0]}: {name}"


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "python.md"], ids=lambda page: page.name)
def test_examples_are_python(page: Path) -> None:
    """Every block of Python can be read by Python, and imports from the packages' own front doors."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("inversion", "calib", "export")


def test_the_notebook_is_one() -> None:
    """Its cells are whole, without outputs, and Python can read them."""
    notebook = json.loads((DOCS / "example.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def commands(page: Path) -> Iterator[list[str]]:
    """Words behind `pipeline` of every command in a page's code; what a shell puts in is a 1."""
    code = re.findall(r"^```bash\n(.*?)^```|((?:^    .*\n)+)", page.read_text(), re.DOTALL | re.MULTILINE)
    for block in (fenced or indented for fenced, indented in code):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"(?:^\s*|[\s/(])pipeline ([a-z][^)#]*)", line):
                yield shlex.split(re.sub(r"\$\w+", "1", found[1]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_pages_are_taken(page: Path) -> None:
    """Verbs, flags and kinds of values are those of the command line; a part of a job is one."""
    verbs: Any = get_command(app)
    for verb, *words in commands(page):
        command = verbs.commands[verb]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        values = command.make_context(verb, words).params
        assert values.get("shard") is None or Part.parse(values["shard"])


def test_pages_have_commands() -> None:
    """The search finds them."""
    assert {words[0] for page in PAGES for words in commands(page)} > {"build", "invert", "shards", "plan"}


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_scripts_are_bash() -> None:
    """Bash reads every script of the pages, without running it."""
    scripts = [script for page in PAGES for script in fenced(page, "bash")]
    assert len(scripts) >= 2
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_yaml_is_yaml() -> None:
    """Every file in YAML on the pages can be read."""
    for page in PAGES:
        for text in fenced(page, "yaml"):
            assert yaml.safe_load(text)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(set(DOCS.glob("*.md")) - {DOCS / "recipe.md"})], ids=lambda page: page.name
)
def test_lines_are_short(page: Path) -> None:
    """At most 120 characters, since pages are read as text too; rows of tables, and what comes from records, are as
    wide as they are."""
    prose = [line for line in readme.MARKED.sub("", page.read_text()).splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > 120] == []
