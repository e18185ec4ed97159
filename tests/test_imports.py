"""Imports point one way, and nothing heavy comes before it is needed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = ("inversion", "calib", "export", "pipeline")
"""Each may import itself and those before it."""
HEAVY = (
    "torch",
    "timm",
    "modelopt",
    "onnx",
    "onnxruntime",
    "numpy",
    "sklearn",
    "scipy",
    "matplotlib",
    "pyarrow",
    "tensorrt_rtx",
    "PIL",
    "ray",
)


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add((node.module or "").split(".")[0])
    return found


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 1
    return found


@pytest.mark.parametrize("package", LEVELS)
def test_imports_point_one_way(package: str) -> None:
    """pipeline -> export -> calib -> inversion; levels may be skipped, going back is not allowed."""
    above = set(LEVELS[LEVELS.index(package) + 1 :]) | {"tests", "benchmarks"}
    assert {path.name: imported(path) & above for path in modules(package) if imported(path) & above} == {}


@pytest.mark.parametrize(
    ("package", "foreign"),
    [("inversion", {"modelopt", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "tensorrt"}), ("export", {"modelopt"})],
)
def test_packages_that_a_level_never_needs(package: str, foreign: set[str]) -> None:
    """Inversion runs on a bare GPU host, and export knows quantized weights without the library that made them."""
    assert {path.name: imported(path) & foreign for path in modules(package) if imported(path) & foreign} == {}


def test_one_room_knows_ray() -> None:
    """Everything else works without it."""
    knowing = {path.parent for level in LEVELS for path in modules(level) if "ray" in imported(path)}
    assert knowing == {ROOT / "pipeline" / "cluster"}


def loaded_after(code: str) -> set[str]:
    """Heavy packages that are loaded when `code` ends, in a new process."""
    report = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """The command line answers `--help` without torch or any other large package."""
    code = f"""
import sys
sys.argv = ["pipeline", *{arguments}]
from pipeline.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    assert loaded_after(code) == set()


def test_front_doors_load_nothing_heavy() -> None:
    """What a package offers is loaded when it is asked for."""
    assert loaded_after("import calib, export; dir(calib), dir(export)") == set()


def test_settings_load_nothing_heavy() -> None:
    """A recipe can be read and checked without torch."""
    assert loaded_after("import pipeline.recipe.recipe, inversion.job, calib.settings, calib.scheme") == set()
