"""A process of an edge install: what such an install lacks can neither be imported nor found."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LESS = """
import json, sys
modules, packages = map(set, json.loads(sys.argv.pop(1)))

class Less:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*context)
        return [each for each in found if each.name.lower().replace("_", "-") not in packages]

sys.meta_path[:] = [Less(finder) for finder in sys.meta_path]
"""
COMMANDS = """
import contextlib, io
from pipeline.__main__ import main

def told(line):
    sys.argv, out, err = ["pipeline", *line], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()

with contextlib.suppress(ImportError):  # how long it is timed changes no promise
    import pipeline.judge.speed
    pipeline.judge.speed.LATENCY_SECONDS = 0.1
print(json.dumps([told(line) for line in json.loads(sys.argv[1])]))
"""


def on_an_edge(commands: list[str], bare: bool = False) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each `pipeline COMMAND`, in one process where an edge install is all there is;
    or, `bare`, nothing but this project."""
    modules, packages = _lacking(bare)
    done = subprocess.run(
        [sys.executable, "-c", LESS + COMMANDS, json.dumps([modules, packages]),
         json.dumps([command.split() for command in commands])],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


@cache
def _lacking(bare: bool) -> tuple[list[str], list[str]]:
    """Modules and packages that are installed here and not there."""
    there = _with_theirs("patch-rebirth", () if bare else PROJECT["optional-dependencies"]["edge"])
    modules, packages = [], set()
    for module, owners in importlib.metadata.packages_distributions().items():
        names = {canonicalize_name(owner) for owner in owners}
        if not names & there and module not in sys.stdlib_module_names:
            modules.append(module)
            packages |= names
    return modules, sorted(packages)


def _with_theirs(project: str, requirements: list[str] | tuple[str, ...]) -> set[str]:
    """Names of the project and of what is asked for, and of what that asks for in turn."""
    found, left = {project}, [Requirement(line) for line in requirements]
    while left:
        asked = left.pop()
        name = canonicalize_name(asked.name)
        if name in found or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        left += [Requirement(line) for line in importlib.metadata.requires(name) or ()]
    return found
