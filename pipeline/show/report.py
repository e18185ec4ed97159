"""report.html and junit.xml of a run folder, made from its manifest alone (and its images, for pictures)."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from PIL import Image
from torch import Tensor

from export.edge.kernels import sentences
from inversion.checkpoint import first_line
from inversion.errors import InputError
from inversion.images import SparseImages, load_images
from inversion.publish import publish
from pipeline.record.lock import require_no_way_out
from pipeline.record.manifest import load_manifest
from pipeline.show.display import result_rows

SHOWN = 6  # trajectories


def write_report(manifest: dict[str, Any], folder: Path) -> Path:
    """`report.html`: self-contained, no script, no network."""
    templates = Environment(loader=PackageLoader("pipeline.show"), autoescape=True, undefined=StrictUndefined)
    runtimes = manifest["validation"]["runtimes"]
    kernels = [sentences(one["kernels"]) for one in (runtimes["onnxruntime"], *(runtimes["tensorrt"] or []))]
    warnings = [sentence for stage in manifest["stages"] for sentence in stage["metrics"].get("warnings", [])]
    page = templates.get_template("report.html").render(
        manifest=manifest,
        rows=result_rows(manifest),
        runtimes=kernels,
        warnings=warnings,
        trajectories=_pictures(folder / "images"),
    )
    path = folder / "report.html"
    publish(path, page.encode())
    return path


def rewrite_report(folder: Path) -> Path:
    """`report.html` of a finished run again; `InputError` where its manifest does not hold a whole verdict."""
    manifest = load_manifest(folder)
    require_no_way_out(folder)
    if manifest["validation"] is None:
        raise InputError(f"the run in {str(folder)!r} has not reached its verdict: finish it with `pipeline build`.")
    try:
        return write_report(manifest, folder)
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise InputError(
            f"the manifest in {str(folder)!r} is not as a build writes it ({first_line(error)}): "
            "finish the run with `pipeline build`."
        ) from error


def write_junit(manifest: dict[str, Any], path: Path) -> None:
    """The gates as test cases, for CI systems."""
    gates = manifest["validation"]["gates"]
    failed = sum(not gate["passed"] for gate in gates)
    suite = ET.Element("testsuite", name="patch-rebirth", tests=str(len(gates)), failures=str(failed), errors="0")
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname=f"gates.{manifest['teacher']['name']}", name=gate["name"])
        if not gate["passed"]:
            ET.SubElement(case, "failure", message=f"{gate['value']:.6g} misses the limit {gate['limit']:.6g}")
    publish(path, ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def _pictures(folder: Path) -> list[dict[str, Any]]:
    """The first trajectories: each detachment's sparse image, then the mosaic, as PNG data addresses."""
    try:
        images = load_images(folder)
    except InputError:
        return []
    shown = []
    for trajectory in images.trajectory.unique()[:SHOWN]:
        rows = images[images.trajectory == trajectory]
        pictures = [*rows.dense(), *rows.mosaics()]
        shown.append({"label": int(rows.labels[0]), "pictures": [_png(picture, images) for picture in pictures]})
    return shown


def _png(picture: Tensor, images: SparseImages) -> str:
    mean, std = (
        torch.tensor([float(part) for part in images.metadata[key].split()]).view(-1, 1, 1) for key in ("mean", "std")
    )
    pixels = ((picture * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    data = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
