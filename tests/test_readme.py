"""The README says what the records and the command line say."""

from __future__ import annotations

import re
from pathlib import Path

import readme

from pipeline.cli import app

ROOT = Path(__file__).parent.parent


def test_tables_are_the_records() -> None:
    """Every figure in a marked table is the newest record's."""
    for page, marked in zip(readme.PAGES, ("demo", "reproduce_digits_tableA3"), strict=True):
        text = page.read_text()
        assert f"<!-- record: {marked} -->" in text
        assert readme.filled(text) == text


def test_every_command_is_documented() -> None:
    """The README names every verb, and no verb that is not there."""
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {str(group.name) for group in app.registered_groups}
    named = set(re.findall(r"`pipeline ([a-z]+)[a-z ]*`", (ROOT / "README.md").read_text()))
    assert named == verbs


def test_no_host_of_a_registry_and_no_path_of_a_machine() -> None:
    """Constraints name packages and versions only."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), line
