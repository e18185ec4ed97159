"""report.html: a page for everyone, of every run, which says nothing that was not measured."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from inversion.confidence import target_confidence
from inversion.images import SparseImages
from pipeline.record.manifest import Manifest, Output, StageRecord, read_manifest
from pipeline.record.proof import Disputed, Gate, LatencyRow, OnCpu, Runtimes
from pipeline.show.page.album import SHOWN, Labels, picture_of, shown_of
from pipeline.show.page.findings import MEANS, meaning, sentence, tiles
from pipeline.show.page.glossary import CONCEPTS, WORDS, read_words, words_of
from pipeline.show.page.page import page_of
from pipeline.show.page.svg import Line, Mark, bars, curve, intervals, ticks
from tests.pages import flaws_of, read_page
from tests.pipeline.show.test_report import manifest
from tests.small import small_teacher, sparse_images

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & '</style>"
CSS = WORDS.with_name("report.css")
LEARNED = {
    "basis": {"method": "learned", "error_before": 0.0135, "error": 0.0092}, "range_method": "fisher",
    "ranges_tried": {"max": {"kl": 0.1, "agreement": 0.9}, "fisher": {"kl": 0.05, "agreement": 0.95}},
    "kept": "training", "best_update": 10,
    "history": [{"update": update, "kl": 0.05 - 0.001 * update, "agreement": 0.95} for update in (0, 10, 20)],
}  # fmt: skip
INVERTED = {
    "images": 24, "confidence": [0.2, 0.9, 0.95], "between": [[0.1, 0.4], [0.5, 1.0], [0.9, 1.0]],
    "warnings": [HOSTILE],
    "shown": [{"trajectory": 0, "label": 1, "confidence": [0.25, 0.75, 1.0], "mosaic": 0.5}],
}  # fmt: skip


def with_stages(found: Manifest, *paths: str) -> Manifest:
    """A run whose stages tell of images, ranges, training, and of files at `paths`."""
    outputs = tuple(Output(path, "c" * 64, 1_234_567) for path in paths)
    stages = (
        StageRecord("invert", "d" * 64, 61.0, False, (), INVERTED),
        StageRecord("quantize", "e" * 64, 5.0, True, outputs, LEARNED),
    )
    return dataclasses.replace(found, stages=stages)


def judged(found: Manifest, **values: Any) -> Manifest:
    return dataclasses.replace(found, validation=dataclasses.replace(found.verdict, **values))


def in_folder(folder: Path, images: SparseImages, labels: list[str], method: str = "pri") -> Path:
    """A run folder with shards and the names of classes."""
    (folder / "images").mkdir(parents=True)
    about = {"mean": "0.5 0.5 0.5", "std": "0.25 0.25 0.25", "method": method, "format": "patch-rebirth.images/1"}
    channels = images.metadata["channels"]
    about |= {"mean": "0.5", "std": "0.25"} if channels == "1" else {}
    dataclasses.replace(images, metadata={**images.metadata, **about}).save(
        folder / "images" / "shard-00000.safetensors"
    )
    (folder / "preprocess.json").write_text(json.dumps({"labels": labels}))
    return folder


DISPUTED = Disputed("leaves", 70, 0.5, 1, 0.75, 2, 0.5), Disputed("mosaics", 1, 0.25, 3, 0.5, 3, 0.25)


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize(("real", "engines"), [(True, True), (False, False)])
def test_every_run_has_a_page_for_everyone(passed: bool, real: bool, engines: bool, tmp_path: Path) -> None:
    """Headings in order, words for pictures and drawings, captions and scopes, links that lead somewhere; bare or full,
    passed or failed."""
    bare = manifest(real, engines, passed)
    assert flaws_of(page_of(bare, tmp_path)) == []
    runtimes = dataclasses.replace(
        bare.verdict.runtimes, onnxruntime=dataclasses.replace(bare.verdict.runtimes.onnxruntime, latency=())
    )
    assert flaws_of(page_of(judged(bare, runtimes=runtimes), tmp_path)) == []
    folder = in_folder(tmp_path / "run", sparse_images(8), ["a", "b", "c", "d", "e"])
    square = dataclasses.replace(bare, teacher=dataclasses.replace(bare.teacher, input_size=(1, 32, 32)))
    page = page_of(judged(with_stages(square, "model.onnx"), disputed=DISPUTED), folder)
    assert flaws_of(page) == []
    assert page.count("<img") == 2 + 4  # both disputes; three images and their mosaic
    assert ("What failed" in page) is not passed


@pytest.mark.parametrize("method", ["smi", "dmi"])
def test_a_method_of_one_image_has_a_page(method: str, tmp_path: Path) -> None:
    """A picture a trajectory, and no mosaic of it."""
    images = sparse_images(8)
    folder = in_folder(tmp_path / "run", images[images.stage == 1], ["a", "b", "c", "d", "e"], method)
    page = page_of(manifest(), folder)
    assert flaws_of(page) == []
    assert page.count("<img") == SHOWN
    assert f">{method.upper()}</a>" in page


def test_an_older_run_has_a_page(tmp_path: Path) -> None:
    """Of a manifest as the first version wrote it."""
    found = read_manifest(Path(__file__).parents[1] / "record" / "manifest.json")
    assert found is not None
    page = page_of(found, tmp_path)
    assert flaws_of(page) == []
    assert "KL to the teacher while training" in page


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    """Of teacher, classes, files, gates, layers and stages: no markup, no template, no link out of the folder."""
    found = judged(manifest(name=HOSTILE, path="engine/" + HOSTILE + ".plan"), disputed=DISPUTED)
    found = dataclasses.replace(found, recipe={"bits": HOSTILE}, versions={HOSTILE: HOSTILE})
    found = judged(found, gates=(Gate(HOSTILE, 1, 2, False),), warnings=(HOSTILE,))
    found = with_stages(found, "javascript:alert(1)", HOSTILE)
    folder = in_folder(tmp_path / "run", sparse_images(3), [HOSTILE] * 5)
    layers = [{"name": HOSTILE, "bits": HOSTILE, "weight_kl": 0.1}]
    damage = {"teacher": {"sha256": found.teacher.sha256}, "pictures": 9, "layers": layers}
    (folder / "sensitivity.json").write_text(json.dumps(damage))
    page = page_of(found, folder)
    assert flaws_of(page) == []
    assert "49" not in re.findall(r"\{\{[^}]*\}\}|49(?= &amp; )", page)
    assert "Layers that few bits hurt most" in page


def test_a_thousand_classes_stay_under_two_megabytes(tmp_path: Path) -> None:
    """Even of noise, which no format makes small, at 224 pixels in colour; and with more shards than one could list."""
    count, stages, patches = 2 * SHOWN, 7, 28
    images = SparseImages(
        patches=torch.randn(count * stages, patches, 768).half(),
        kept=torch.rand(count, stages * patches).argsort(1).view(-1, patches).short(),
        labels=torch.arange(0, 1000, 1000 // count)[:count].repeat_interleave(stages).int(),
        stage=torch.arange(1, stages + 1).repeat(count).to(torch.int8),
        trajectory=torch.arange(count).repeat_interleave(stages).int(),
        metadata={"grid": "14x14", "patch_size": "16", "channels": "3", "teacher_sha256": "0" * 64},
    )  # fmt: skip
    folder = in_folder(tmp_path / "run", images, [f"a rather long name of class {number}" for number in range(1000)])
    shards = tuple(Output(f"images/shard-{number:05}.safetensors", "c" * 64, 1_000) for number in range(20_000))
    far = tuple(Disputed("mosaics", each % count, 0.1, 998, 0.5, 999, 0.5) for each in range(8))
    found = dataclasses.replace(manifest(), stages=(StageRecord("invert", "d" * 64, 61.0, False, shards, {}),))
    page = page_of(judged(found, disputed=far), folder)
    assert page.count("<img") == 8 + SHOWN * (stages + 1)
    assert "20000 files of synthetic images" in page
    assert len(page.encode()) < 2e6


@pytest.mark.parametrize(
    ("small", "quick", "told"),
    [
        (250, 5.0, "4.0 times smaller, 2.0 times faster on ONNX Runtime (CPU, batch 1)"),
        (1000, 20.0, "as large, 2.0 times slower on"),
        (4000, 10.2, "4.0 times larger, as fast on"),
        (0, 0.0, "as large, as fast on"),
    ],
)
def test_the_verdict_in_one_sentence(small: int, quick: float, told: str) -> None:
    """What was measured and what it is against; a ratio the right way round."""
    found = manifest()
    runtime = found.verdict.runtimes.onnxruntime
    row = dataclasses.replace(
        runtime.latency[0], float32=dataclasses.replace(runtime.latency[0].float32, median_ms=10.0),
        quantized=dataclasses.replace(runtime.latency[0].quantized, median_ms=quick),
    )  # fmt: skip
    runtime = dataclasses.replace(
        runtime, provider="CPUExecutionProvider", latency=(runtime.latency[1], row),
        float32=dataclasses.replace(runtime.float32, bytes=1000),
        quantized=dataclasses.replace(runtime.quantized, bytes=small),
    )  # fmt: skip
    found = judged(found, runtimes=dataclasses.replace(found.verdict.runtimes, onnxruntime=runtime))
    assert sentence(found).startswith(
        f"Against the float ONNX of the same teacher on ONNX Runtime, the w4a8 model is {told}"
    )
    assert sentence(found).endswith("it gives the teacher's answer to 99.8% of 50000 real pictures.")
    assert [tile.figure for tile in tiles(found)][2:] == ["99.8%", "2 of 2"]
    without = dataclasses.replace(runtime, latency=())
    unmeasured = judged(found, real=None, runtimes=dataclasses.replace(found.verdict.runtimes, onnxruntime=without))
    assert not re.search("fast|slow", sentence(unmeasured))
    assert "100.0% of 406 synthetic pictures" in sentence(unmeasured)


def test_other_ways_on_a_cpu_are_told(tmp_path: Path) -> None:
    """A file for ONNX Runtime alone and OpenVINO: bars at each batch and number of threads, fidelity, kernels, and the
    quickest way of each runtime in the verdict."""
    found = manifest()
    runtimes = found.verdict.runtimes
    times = runtimes.onnxruntime.latency[0].quantized

    def rows(factor: float) -> tuple[LatencyRow, ...]:
        quick = dataclasses.replace(times, median_ms=times.median_ms * factor)
        return tuple(LatencyRow(batch, times, quick, factor, threads) for threads in (1, 2) for batch in (1, 8))

    def way(name: str, file: str, factor: float, own: tuple[LatencyRow, ...]) -> OnCpu:
        of_it = dataclasses.replace(runtimes.onnxruntime.kernels, runtime=f"{name} of {file}")
        model = runtimes.onnxruntime.quantized
        return OnCpu(file, name, "2026.4", "bfloat16", model, found.verdict.synthetic, None, rows(factor), own, of_it)

    here = dataclasses.replace(runtimes.onnxruntime, latency=rows(0.6))
    ways = way("onnxruntime", "model.ort.onnx", 0.5, ()), way("openvino", "model.onnx", 0.25, rows(0.25))
    page = page_of(judged(found, runtimes=Runtimes(here, runtimes.tensorrt, *ways)), tmp_path)
    assert flaws_of(page) == []
    assert "2.0 times faster on ONNX Runtime and 4.0 times faster on OpenVINO (CPU, batch 1, 2 threads)" in page
    assert "1.52 ms (model.onnx on OpenVINO), float 6.08 ms on ONNX Runtime, batch 1, 2 threads" in page
    for title in ("batch 1, 1 thread", "batch 8, 2 threads"):
        (plot,) = re.findall(rf"<strong>Latency, {title}</strong>.*?</figure>", page, re.DOTALL)
        assert re.findall(r'class="name"[^>]*>([^<]*)<', plot) == [
            "FP32, model.fp32.onnx", "w4a8, model.onnx", "w4a8, model.ort.onnx", "FP32, OpenVINO", "w4a8, OpenVINO",
        ]  # fmt: skip
    assert "leaves (400), OpenVINO" in page


def test_gates_are_explained() -> None:
    """Each by the longest name that it begins with."""
    assert meaning(Gate("real_agreement_engine_graph", 1, 1, True)) == MEANS["real_agreement"]
    assert meaning(Gate("engine_graph_kl", 1, 1, True)) == MEANS["engine_graph_kl"]
    assert meaning(Gate("unheard of", 1, 1, True)) == ""


def test_words_are_those_of_the_docs() -> None:
    """One source: made again with `python -m pipeline.show.page.glossary`. They are read without markup or links."""
    assert read_words() == words_of(CONCEPTS.read_text())
    asked = re.findall(r'term\("([^"]*)"', WORDS.with_name("report.html").read_text())
    assert len(asked) > 20
    assert set(asked) <= read_words().keys()
    text = "### Q/DQ\n\nA [pair](x.md) of `nodes`\n([why](y.md)).\n\n## Group\n\n### Next\n\nMore.\n"
    assert words_of(text) == {"qdq": ("Q/DQ", "A pair of nodes."), "next": ("Next", "More.")}


def test_drawings_are_to_scale() -> None:
    """Bars from 0, intervals between the ends of their scale, curves from corner to corner; words are escaped."""
    marks = [Mark("a<b", 50, "50 ms", "plain", high=100), Mark("c", 25, "25 ms")]
    (drawing,) = read_page(bars("x", "T", marks))[0].all("svg")
    assert [each.attributes["width"] for each in drawing.all("rect")] == ["50.00%", "25.00%"]
    assert [(each.attributes["x1"], each.attributes["x2"]) for each in drawing.all("line")] == [("50.00%", "100.00%")]
    assert drawing.all("desc")[0].text == "a<b: 50 ms; c: 25 ms"
    (drawing,) = read_page(intervals("x", "T", [Mark("a", 95, "95%", "small", 92, 200)], "%", 90, 100))[0].all("svg")
    assert drawing.all("circle")[0].attributes["cx"] == "50.00%"
    (line,) = [each for each in drawing.all("line") if "interval" in each.attributes["class"]]
    assert (line.attributes["x1"], line.attributes["x2"]) == ("20.00%", "100.00%")
    assert [each.text for each in drawing.all("text")][:3] == ["90%", "92.5%", "95%"]
    (drawing, _) = read_page(curve("x", "T", Line([(0, 2), (5, 1), (10, 3)], (5, 1)), "update", "falls"))[0].all("svg")
    assert drawing.all("polyline")[0].attributes["points"] == "2.00,50.00 50.00,100.00 98.00,0.00"
    assert drawing.all("circle")[-1].attributes["class"] == "dot best"


@pytest.mark.parametrize("ends", [(0, 1), (0, 0.0516), (85, 100), (3, 3), (1, 0), (0, float("inf"))])
def test_ticks_are_few_round_and_inside(ends: tuple[float, float]) -> None:
    """From any scale, also from one that is none."""
    found = ticks(*ends)
    assert len(found) <= 7
    assert all(ends[0] <= tick <= ends[1] for tick in found)
    assert found or not 0 < ends[1] - ends[0] < float("inf")


def test_pictures_are_shown_as_they_are() -> None:
    """Small ones to the last bit, large ones smaller; see-through exactly where a patch is absent."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    def decoded(address: str) -> Any:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))

    pixels = torch.rand(1, 32, 24)
    held = torch.zeros(32, 24, dtype=torch.bool)
    held[:16] = True
    small = picture_of(pixels, held, "alt", "")
    assert (small.width, small.height, small.tiny) == (24, 32, True)
    found = decoded(small.address)
    assert np.array_equal(found[..., 3] > 0, held.numpy())
    assert np.array_equal(found[:16, :, 0], (pixels[0, :16] * 255).round().byte().numpy())
    large = picture_of(torch.rand(3, 448, 224), None, "alt", "")
    assert (large.width, large.height, large.tiny) == (80, 160, False)


def test_the_album_is_of_many_classes(tmp_path: Path) -> None:
    """The first trajectory of each, with the teacher's confidence image by image; class names where there are some."""
    teacher, images = small_teacher(), sparse_images(12)
    images = dataclasses.replace(images, labels=(images.trajectory // 2 % 5).int())
    found = shown_of(teacher, images[torch.randperm(len(images))])
    assert [each.trajectory for each in found] == [0, 1, 2, 4, 6, 8]
    assert [each.label for each in found] == [0, 0, 1, 2, 3, 4]
    assert all(len(each.confidence) == 3 and 0 <= each.mosaic <= 1 for each in found)
    rows = images[images.trajectory == 4]
    assert found[3].confidence == pytest.approx(target_confidence(teacher, rows).tolist(), abs=1e-4)
    mosaic = rows.mosaics()
    assert found[3].mosaic == pytest.approx(float(teacher.logits(mosaic).softmax(1)[0, 2]), abs=1e-4)
    (tmp_path / "preprocess.json").write_text(json.dumps({"labels": ["tench, Tinca tinca", "1"]}))
    labels = Labels(tmp_path)
    assert [labels(number) for number in range(3)] == ["tench (class 0)", "class 1", "class 2"]


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG defines it."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("number", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_have_contrast(number: int) -> None:
    """WCAG AA: 4.5 for words, 3 for what is drawn, on both backgrounds of each scheme."""
    palette = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)[number]))
    for names, least in ((("ink", "quiet", "accent", "good", "bad"), 4.5), (("plain", "small", "engine"), 3.0)):
        for name in names:
            for under in ("paper", "raised"):
                pair = sorted((luminance(palette[name]), luminance(palette[under])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, under)
