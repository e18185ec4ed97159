"""The page: what its template is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from export.edge.kernels import sentences
from pipeline.record.manifest import Manifest, Output
from pipeline.show.display import result_rows
from pipeline.show.page.album import Labels, album, disputes, images_of
from pipeline.show.page.findings import failed, judge_of, meaning, sentence, tiles
from pipeline.show.page.glossary import Glossary, read_words
from pipeline.show.page.plots import (
    confidence_plots,
    fidelity_plots,
    learning_plots,
    size_plots,
    time_plots,
)
from pipeline.show.page.told import damages_of, inverted_of, learned_of

SHARDS = "images/"
WHAT = {
    "model.onnx": "the quantized model, for ONNX Runtime and OpenVINO",
    "model.ort.onnx": "the same for ONNX Runtime alone, faster on CPUs",
    "model.int4.onnx": "the same numbers, 4-bit weights packed",
    "model.fp32.onnx": "the float model, to compare",
    "model.tensorrt.onnx": "the graph that engines are built from",
    "preprocess.json": "what to do to a picture before it is the input",
    "quantized.safetensors": "integer weights and steps by layer",
}
ENDINGS = {
    ".plan": "TensorRT engine",
    ".plan.json": "what that engine was built for, and how to build it elsewhere",
    ".sh": "builds the engine on its device",
    ".cache": "what TensorRT timed, to build again sooner",
}
"""What a file is for, by its name or its end."""


@dataclass(frozen=True)
class File:
    """A row of the list of files; `path` is relative to the page."""

    path: str
    what: str
    bytes: int
    sha256: str


def page_of(manifest: Manifest, folder: Path) -> str:
    """The HTML of a run that has its verdict and lies in `folder`."""
    templates = Environment(
        loader=PackageLoader("pipeline.show"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    verdict, glossary, labels, images = manifest.verdict, Glossary(read_words()), Labels(folder), images_of(folder)
    inverted, learned = inverted_of(manifest), learned_of(manifest)
    page: str = templates.get_template("report.html").render(
        manifest=manifest,
        verdict=verdict,
        term=glossary.term,
        words=glossary.marked,
        sentence=sentence(manifest),
        tiles=tiles(manifest),
        judged=judge_of(manifest)[1],
        failed=[(gate, meaning(gate)) for gate in failed(verdict.gates)],
        gates=[(gate, meaning(gate)) for gate in verdict.gates],
        warnings=dict.fromkeys([*(each for stage in manifest.stages for each in stage.warnings), *verdict.warnings]),
        rows=result_rows(manifest),
        size=size_plots(manifest),
        fidelity=fidelity_plots(manifest),
        disputes=disputes(manifest, images, _seed(manifest), labels),
        album=album(images, inverted.shown if inverted else (), labels) if images else [],
        confidence=confidence_plots(inverted),
        method=images.metadata.get("method", "").upper() if images else "",
        learning=learning_plots(learned, damages_of(folder, manifest)),
        learned=learned,
        kernels=[(line, reasons) for line, *reasons in (sentences(asdict(one)) for one in verdict.runtimes.kernels)],
        engines=verdict.runtimes.engines,
        files=files_of(manifest),
        shards=[output for output in manifest.outputs if output.path.startswith(SHARDS)],
        time=time_plots(manifest),
    )
    return page


def files_of(manifest: Manifest) -> list[File]:
    """What the stages made, but for the shards, which may be thousands."""
    return [_file(output) for output in manifest.outputs if not output.path.startswith(SHARDS)]


def _file(output: Output) -> File:
    name = output.path
    engine = (
        "TensorRT engine" if name.endswith(".plan") else "what the engine was built for" if "engine." in name else ""
    )
    return File(name, WHAT.get(name, engine), output.bytes, output.sha256)


def _seed(manifest: Manifest) -> int:
    """Of the dead leaves."""
    calibration = manifest.recipe.get("calibration")
    seed = calibration.get("seed") if isinstance(calibration, dict) else None
    return seed if isinstance(seed, int) else 0
