"""README and docs say what the records and the command line say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import readme

from pipeline.cli import app
from tests.small import thin_teacher

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("page", "marked"),
    [
        ("README.md", "record: deit_tiny_w4a8_quick"),
        ("README.md", "cost"),
        ("docs/install.md", "record: edge"),
        ("docs/results.md", "record: demo"),
        ("docs/limits.md", "cost"),
        ("docs/reproduction.md", "record: reproduce_digits_tableA3"),
    ],
)
def test_tables_are_the_records(page: str, marked: str) -> None:
    """Every figure in a marked table is the newest record's."""
    assert ROOT / page in readme.PAGES
    text = (ROOT / page).read_text()
    assert f"<!-- {marked} -->" in text
    assert readme.filled(text) == text


def test_no_page_is_left_out() -> None:
    """Whatever page has a marked table is kept up to date."""
    marked = {
        page for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if readme.MARKED.search(page.read_text())
    }
    assert marked == set(readme.PAGES)


def test_every_command_is_documented() -> None:
    """The guide names every verb, and no verb that is not there."""
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {str(group.name) for group in app.registered_groups}
    named = set(re.findall(r"^\| `pipeline ([a-z]+)[a-z ]*`", (ROOT / "docs" / "guide.md").read_text(), re.MULTILINE))
    assert named == verbs


def test_no_host_of_a_registry_and_no_path_of_a_machine() -> None:
    """Constraints name packages and versions only."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), line


def test_the_ten_lines_of_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block of the README, with a tiny inversion and a thin teacher in place of its own."""
    found = re.search(r"<!-- python -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found
    code = found[1]
    thin = thin_teacher(tmp_path / "thin")
    for here, there in (("images=96, iterations=300", "images=8, iterations=8"), ("digits_vit", thin)):
        assert here in code
        code = code.replace(here, there)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert 0 <= float(capsys.readouterr().out) <= 1
    assert (tmp_path / "model.onnx").exists()
