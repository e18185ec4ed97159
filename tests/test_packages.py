"""What is installed: the lists agree, and what is missing is said."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import cli
from pipeline.show import packages
from pipeline.show.packages import OPTIONAL, PACKAGES, install_line, missing_sentence
from tests.edge_install import PROJECT, ROOT, on_an_edge

EDGE = [Requirement(line) for line in PROJECT["optional-dependencies"]["edge"]]
GPU = "onnxruntime-gpu"
OF_DEVELOPERS = ("dev", "docs", "browser")


def test_an_edge_install_is_part_of_the_default_one() -> None:
    """Word for word: whoever asks for the extra on top of the rest gets no second ONNX Runtime."""
    assert set(PROJECT["optional-dependencies"]["edge"]) < set(PROJECT["dependencies"])


def test_what_pip_takes_for_an_edge_install_is_the_extra() -> None:
    """But for ONNX Runtime, which is the small one everywhere."""
    lines = (ROOT / "requirements-edge.txt").read_text().splitlines()
    listed = {Requirement(line) for line in lines if not line.startswith("#")}
    small = next(each for each in EDGE if each.name == "onnxruntime")
    small.marker = None
    assert listed == {each for each in EDGE if each.name not in (GPU, "onnxruntime")} | {small}


def asked(*parts: str) -> set[str]:
    """Names of the packages that the default install, as `dependencies`, and the extras ask for."""
    lines = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    return {str(canonicalize_name(Requirement(line).name)) for part in parts for line in lines[part]} - {GPU}


def test_every_package_is_known() -> None:
    """Doctor tells what each dependency and each extra's package would bring, and which are an edge install's."""
    named = {part: {each.name for each in PACKAGES if each.part == part} for part in ("edge", "default", "added")}
    extras = PROJECT["optional-dependencies"].keys() - {"edge", *OF_DEVELOPERS}
    assert named["edge"] == asked("edge")
    assert named["default"] == asked("dependencies") - asked("edge") - {"pyarrow"}
    assert named["added"] >= asked(*extras) | {"pyarrow"}


def test_lines_that_install() -> None:
    """With the version that is asked for; what the default install alone brings comes as a whole."""
    named = {each.name: each for each in PACKAGES}
    assert install_line([named["onnx"], named["rich"]]) == "pip install 'onnx>=1.18' 'rich>=14'"
    assert install_line([named["onnx"], named["timm"]]) == "pip install patch-rebirth"
    assert install_line([named["ray"]]) == "pip install 'ray[train]>=2.50'"


def test_the_line_for_everything_leaves_one_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge install's ONNX Runtime goes where the one for GPUs would lie on top of it, and nowhere else."""
    torch = next(each for each in PACKAGES if each.name == "torch")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.31.1")
    monkeypatch.setattr(sys, "platform", "linux")
    for machine, line in (("x86_64", "pip uninstall -y onnxruntime && pip install patch-rebirth"),
                          ("aarch64", "pip install patch-rebirth")):  # fmt: skip
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert install_line([torch]) == line


def test_lines_name_packages_where_the_project_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout on the path: without versions, which stand in its metadata."""

    def none(_: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", none)
    assert install_line([PACKAGES[0]]) == "pip install typer"


def test_a_missing_package_is_the_machines_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 and a line for any package, also one that we do not name; a module of our own is a fault of ours."""
    explain = cli._explain
    sentence, code = explain(ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet"))
    assert (code, sentence) == (3, "pyarrow is not installed: pip install 'pyarrow>=18'.")
    assert explain(ModuleNotFoundError("No module named 'sympy'", name="sympy"))[1] == 3
    assert explain(ModuleNotFoundError("No module named 'export.nothing'", name="export.nothing"))[1] == 70
    assert explain(RuntimeError("operator torchvision::nms does not exist"))[1] == 3
    monkeypatch.setattr(packages.Package, "missing", True)
    everything = missing_sentence("onnx") or ""
    assert all(each.name in everything for each in PACKAGES if each.part == "edge" and each.name not in OPTIONAL)
    assert "torch" not in everything


def test_with_nothing_installed_it_is_said_what_to_install() -> None:
    """No traceback: every package of an edge install in one line, whatever the verb."""
    ((code, out, err),) = on_an_edge(["inspect model.onnx"], bare=True)
    assert (code, out) == (3, "")
    assert err.startswith("error: typer, rich, ")
    assert "are not installed: pip install 'typer>=0.16' 'rich>=14'" in err
    assert len(err.splitlines()) == 1
