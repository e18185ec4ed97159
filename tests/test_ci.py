"""What docs/ci.md gives to copy is what lies in examples/ci, and works as far as that can be told without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dockerfile
import pytest
import yaml

ROOT = Path(__file__).parent.parent
CI = ROOT / "examples" / "ci"


@pytest.mark.parametrize(("name", "language"), [("workflow.yml", "yaml"), ("Dockerfile", "dockerfile")])
def test_the_page_shows_the_files(name: str, language: str) -> None:
    """To the letter."""
    (shown,) = re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert shown == (CI / name).read_text()


@pytest.mark.parametrize("broken", [False, True])
def test_the_workflow_is_one(broken: bool, tmp_path: Path) -> None:
    """By the JSON Schema of GitHub's workflows, which refuses one with a misspelt key."""
    text = (CI / "workflow.yml").read_text()
    (tmp_path / "w.yml").write_text(text.replace("runs-on", "run-on") if broken else text)
    line = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", "w.yml"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == broken, done.stdout


def test_the_workflow_keeps_what_it_makes() -> None:
    """What is uploaded and cached is what its commands write."""
    (job,) = yaml.safe_load((CI / "workflow.yml").read_text())["jobs"].values()
    commands = " ".join(step["run"] for step in job["steps"] if "run" in step)
    paths = [path for step in job["steps"] for path in step.get("with", {}).get("path", "").split()]
    assert len(paths) == 6
    for path in paths:
        assert path in commands or path.removeprefix("runs/ci/") in ("deploy", "report.html", "run.log"), path


def test_the_dockerfile_is_one() -> None:
    """Instructions that Docker knows in an order that works; commands that bash reads; our own command at the door."""
    steps = list(dockerfile.steps((CI / "Dockerfile").read_text()))
    assert steps[0][0] == "FROM"
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in steps} <= known
    for word, rest in steps:
        if word == "RUN":
            subprocess.run(["bash", "-n"], input=rest, text=True, check=True)
        if word in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(part, str) for part in json.loads(rest))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert json.loads(dict(steps)["ENTRYPOINT"])[0] in scripts
