"""TensorRT cannot be loaded here, so its names are looked up in its bindings: none that is used may be missing."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = (
    "export/edge/tensorrt_backend.py",
    "export/edge/tensorrt_build.py",
    "export/edge/tensorrt_log.py",
    "export/edge/engine_session.py",
)
BINDINGS = Path(sys.prefix) / "tensorrt"
RTX_ALONE = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
"""Asked for behind `hasattr`: TensorRT builds for the GPU that is here."""
OWNERS = ("trt", "builder", "network", "config", "parser", "profile", "error", "collector",
          "tensor", "timings", "self._trt", "self._engine", "self._context")  # fmt: skip
OF_PYTHON = {
    "__name__",
    "__version__",
    "__members__",
    "startswith",
    "strip",
    "splitlines",
    "rstrip",
    "forget",
    "messages",
    "raised",
    "complaint",
    "layers",
}


def names_used(module: str) -> set[str]:
    """Attributes of TensorRT's objects: those behind an owner's name, or behind a call or an attribute of one, and
    those that getattr is asked for."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Attribute) and is_tensorrts(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and is_tensorrts(node.args[0]):
            found.add(ast.literal_eval(node.args[1]))
    return found - OF_PYTHON


def is_tensorrts(node: ast.expr) -> bool:
    if ast.unparse(node) in OWNERS:
        return True
    if isinstance(node, ast.Call):
        return is_tensorrts(node.func)
    return isinstance(node, ast.Attribute) and node.attr not in OF_PYTHON and is_tensorrts(node.value)


def names_offered(version: str) -> bytes:
    """All that the bindings' extension and Python file spell out."""
    folder = BINDINGS / version / "tensorrt_bindings"
    if not folder.is_dir():
        pytest.skip(f"TensorRT {version}'s bindings are not installed: `make install` does")
    (extension,) = folder.glob("tensorrt*.so")
    words = re.findall(rb"\w+", (folder / "__init__.py").read_bytes())
    return b"\0".join([extension.read_bytes(), *words, b""])


def test_the_reader_finds_what_is_used() -> None:
    """Names behind a module, an object, a call and a flag: a reader that finds none would let everything pass."""
    found = set().union(*map(names_used, MODULES))
    assert {
        "Builder",
        "create_network",
        "STRONGLY_TYPED",
        "set_shape",
        "node_name",
        "MODEL_DESERIALIZE_FAILED",
    } <= found
    assert {"serialize", "get_engine_information", "execute_async_v3", "deserialize_cuda_engine", "DETAILED"} <= found
    assert len(found) > 40


@pytest.mark.parametrize("version", ["10", "11"])
def test_every_name_is_in_the_bindings(version: str) -> None:
    """What TensorRT-RTX alone has is missing, as is a misspelt name."""
    offered = names_offered(version)
    used = set().union(*map(names_used, MODULES))
    missing = {name for name in used if not has(offered, name)}
    assert missing == RTX_ALONE
    assert not has(offered, "create_netwrok")


def has(offered: bytes, name: str) -> bool:
    """Its last letter is followed by the end of a string; its first need not begin one, since linkers share endings."""
    return name.encode() + b"\0" in offered
