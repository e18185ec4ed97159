"""Which plots a run gives, each with a scale of its own, a sentence, and a table that says the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.record.manifest import Manifest
from pipeline.record.proof import Answered, ExecutedEngine, Fidelity, Times
from pipeline.show.itinerary import duration
from pipeline.show.page.findings import way_of, where
from pipeline.show.page.svg import Line, Mark, bars, curve, intervals
from pipeline.show.page.told import Damages, Inverted, Learned

LAYERS = 12
"""Layers that a plot of damage shows; its table has all."""
SMALL_KL = 1e-3
"""Below which it is told to one digit more."""
SPANS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""What a scale of shares may leave below 1."""


@dataclass(frozen=True)
class Plot:
    """A drawing, what it is called, what to see in it, and its figures as a table."""

    title: str
    says: str
    drawing: Markup
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def size_plots(manifest: Manifest) -> list[Plot]:
    """Files, memory, and latency by batch and by engine."""
    runtimes, bits = manifest.verdict.runtimes, manifest.bits
    runtime = runtimes.onnxruntime
    models = [("FP32, model.fp32.onnx", runtime.float32, "plain"), (f"{bits}, model.onnx", runtime.quantized, "small")]
    others = [(f"{bits}, {way_of(way)}", way.model, "small") for way in runtimes.others]
    files = [Mark(name, model.bytes / 1e6, _mb(model.bytes), kind) for name, model, kind in models]
    for output in manifest.outputs:
        if output.path in ("model.ort.onnx", "model.int4.onnx"):
            files.append(Mark(f"{bits}, {output.path}", output.bytes / 1e6, _mb(output.bytes)))
    files += [
        Mark(f"{one.backend} {one.arch} engine", one.bytes / 1e6, _mb(one.bytes), "engine") for one in runtimes.engines
    ]
    memory = [
        Mark(name, model.peak_bytes / 1e6, _mb(model.peak_bytes, 0), kind) for name, model, kind in models + others
    ]
    return [
        _plot(bars, "size-file", "File size", "What a device has to store.", files, ("file", "size")),
        _plot(bars, "size-memory", "Peak memory", "Of a process that runs the model.", memory, ("model", "memory")),
        *_latency(manifest),
    ]


def _latency(manifest: Manifest) -> Iterator[Plot]:
    """All models in turn: on the CPU, and where engines ran, beside the FP16 engine."""
    runtimes, bits = manifest.verdict.runtimes, manifest.bits
    says = (
        f"Median, on ONNX Runtime {runtimes.onnxruntime.version} ({where(manifest)}) where nothing else is said; "
        "the thin line ends at the 95th percentile."
    )
    for number, row in enumerate(runtimes.onnxruntime.latency):
        sides = [("FP32, model.fp32.onnx", row.float32, "plain"), (f"{bits}, model.onnx", row.quantized, "small")]
        for way in runtimes.others:
            if number < len(way.own_latency):
                sides.append((f"FP32, {way_of(way)}", way.own_latency[number].float32, "plain"))
            if number < len(way.latency):
                sides.append((f"{bits}, {way_of(way)}", way.latency[number].quantized, "small"))
        yield _times(f"latency-{number}", f"Latency, {row.where}", says, sides)
    executed = [each for each in runtimes.engines if isinstance(each, ExecutedEngine)]
    for number, engine in enumerate(executed):
        for each in engine.latency:
            both = ("FP16 engine", each.float16, "plain"), (f"{bits} engine", each.quantized, "engine")
            low, high = each.ratio_interval
            said = f"On its GPU: {each.ratio:.2f} of the FP16 engine's time ({low:.2f} to {high:.2f})."
            title = f"Latency of {engine.backend} {engine.arch}, batch {each.batch}"
            yield _times(f"engine-{number}-{each.batch}", title, said, both)


def fidelity_plots(manifest: Manifest) -> list[Plot]:
    """Agreement, KL and top-1 by kind of picture and by model, with 95% intervals."""
    found = _answered(manifest)
    agreement, kl = [], []
    top = max(one.kl if one.kl_interval[1] is None else one.kl_interval[1] for _, _, one in found)
    digits = 5 if top < SMALL_KL else 4
    for name, kind, one in found:
        low, high = one.agreement_interval
        said = f"{100 * one.agreement:.1f}% ({100 * low:.1f}\N{EN DASH}{100 * high:.1f})"
        agreement.append(Mark(name, 100 * one.agreement, said, kind, 100 * low, 100 * high))
        least, most = one.kl_interval
        between = "" if most is None else f" ({least:.{digits}f}\N{EN DASH}{most:.{digits}f})"
        kl.append(Mark(name, one.kl, f"{one.kl:.{digits}f}{between}", kind, least, most))
    plots = [
        _plot(
            _up_to_all(agreement), "agreement", "Same answer as the teacher",
            "Share of pictures; the line is the 95% interval. Further right is better.", agreement,
            ("pictures (number), model", "agreement (95% interval)"),
        ),
        _plot(
            _from_to("", 0, top), "kl", "KL to the teacher", "In nats; 0 is equal answers. Further left is better.", kl,
            ("pictures (number), model", "KL, nats (95% interval)"),
        ),
    ]  # fmt: skip
    return plots + _top1(manifest)


def confidence_plots(inverted: Inverted | None) -> list[Plot]:
    """How sure the teacher is of its images, by detachment point."""
    if inverted is None or not inverted.confidence:
        return []
    ends: Sequence[tuple[float, float] | tuple[None, None]] = (
        inverted.between
        if len(inverted.between) == len(inverted.confidence)
        else [(None, None)] * len(inverted.confidence)
    )
    marks = []
    for stage, (mean, (low, high)) in enumerate(zip(inverted.confidence, ends, strict=True), 1):
        spread = "" if low is None or high is None else f" ({100 * low:.0f}\N{EN DASH}{100 * high:.0f})"
        scaled = (None if end is None else 100 * end for end in (low, high))
        marks.append(Mark(f"left at t{stage}", 100 * mean, f"{100 * mean:.0f}%{spread}", "small", *scaled))
    title = "Confidence by detachment point"
    says = (
        f"How sure the teacher is of the class that an image was made for: the mean over {inverted.images} images, and "
        "the line holds 80% of them."
    )
    return [_plot(_from_to("%", 0, 100), "confidence", title, says, marks, ("images", "mean confidence (80% of them)"))]


def learning_plots(learned: Learned | None, damages: Damages | None) -> list[Plot]:
    """The basis, ranges tried, training, and the damage of single layers."""
    found = []
    if learned and learned.basis and learned.basis.error is not None and learned.basis.error_before is not None:
        values = (
            ("as the teacher has them", learned.basis.error_before, "plain"),
            (f"in the {learned.basis.method} basis", learned.basis.error, "small"),
        )
        marks = [Mark(name, value, f"{value:.4f}", kind) for name, value, kind in values]
        says = "Relative error of the weights, rounded to nearest. Shorter is better."
        found.append(
            _plot(bars, "basis", "What rounding costs the weights", says, marks, ("weights", "relative error"))
        )
    if learned and len(learned.ranges_tried) > 1:
        marks = [
            Mark(name, one.kl, f"KL {one.kl:.4f}", "small" if name == learned.range_method else "plain")
            for name, one in learned.ranges_tried.items()
        ]
        says = f"On held-out synthetic pictures; {learned.range_method} was taken."
        found.append(_plot(bars, "ranges", "Ways to set ranges", says, marks, ("ranges", "KL, nats")))
    if learned and len(learned.history) > 1:
        found.append(_training(learned))
    if damages:
        found.append(_damage(damages))
    return found


def time_plots(manifest: Manifest) -> list[Plot]:
    """How long each stage took."""
    marks = [Mark(stage.name, stage.seconds, duration(stage.seconds)) for stage in manifest.stages]
    whole = duration(sum(stage.seconds for stage in manifest.stages))
    rows = [
        (stage.name, f"{stage.seconds:.1f}", str(len(stage.outputs)), stage.digest[:16]) for stage in manifest.stages
    ]
    drawing = bars("time", "Time by stage", marks)
    return [Plot("Time by stage", f"{whole} in all.", drawing, ("stage", "seconds", "files", "digest"), rows)]


def _training(learned: Learned) -> Plot:
    points = [(float(one.update), one.kl) for one in learned.history]
    best = next(((x, y) for x, y in points if x == learned.best_update), None)
    says = f"On held-out synthetic pictures; the ring marks what was kept (update {learned.best_update})."
    title, said = "KL to the teacher while training", f"from {points[0][1]:.4f} to {points[-1][1]:.4f} nats; {says}"
    rows = [(str(one.update), f"{one.kl:.4f}", f"{100 * one.agreement:.1f}%") for one in learned.history]
    drawing = curve("training", title, Line(points, best), "update", said)
    return Plot(title, says, drawing, ("update", "KL, nats", "agreement"), rows)


def _damage(damages: Damages) -> Plot:
    layers = sorted(damages.layers, key=lambda layer: -layer.weight_kl)
    marks = [Mark(f"{each.name}, {each.bits}", each.weight_kl, f"{each.weight_kl:.5f}") for each in layers[:LAYERS]]
    title = "Layers that few bits hurt most"
    says = (
        f"KL to the teacher, in nats, with the weights of one layer rounded to nearest and all else as it was, on "
        f"{damages.pictures} synthetic pictures: the first {len(marks)} of {len(layers)} layers."
    )
    rows = [
        (each.name, each.bits, f"{each.weight_kl:.5f}", "" if each.input_kl is None else f"{each.input_kl:.5f}")
        for each in layers
    ]
    return Plot(
        title, says, bars("damage", title, marks), ("layer", "bits", "KL, weight alone", "KL, input alone"), rows
    )


def _answered(manifest: Manifest) -> list[tuple[str, str, Fidelity]]:
    """What each model gives on each kind of picture: its name, its class of colour, its fidelity."""
    verdict = manifest.verdict
    models: list[tuple[str, str, Answered]] = [("model.onnx", "small", Answered(verdict.synthetic, verdict.real))]
    if way := verdict.runtimes.openvino:  # model.ort.onnx answers as model.onnx does
        models.append(("OpenVINO", "small", Answered(way.synthetic, way.real)))
    if isinstance(verdict.engine_graph, Answered):
        models.append(("engine graph", "engine", verdict.engine_graph))
    models += [
        (f"engine {each.arch}", "engine", Answered(each.synthetic, each.real))
        for each in verdict.runtimes.engines
        if isinstance(each, ExecutedEngine)
    ]
    found = []
    for model, kind, one in models:
        kinds = one.synthetic.kinds or {"synthetic": one.synthetic}
        every = {**({"real": one.real} if one.real else {}), **kinds}
        found += [(f"{name} ({each.n}), {model}", kind, each) for name, each in every.items()]
    return found


def _top1(manifest: Manifest) -> list[Plot]:
    """Right answers on real pictures, where labels say which these are."""
    real = manifest.verdict.real
    if not real or real.top1 is None or real.teacher_top1 is None:
        return []
    low, high = real.teacher_top1_interval or (None, None)
    scaled = (None if end is None else 100 * end for end in (low, high))
    between = "" if low is None or high is None else f" ({100 * low:.1f}\N{EN DASH}{100 * high:.1f})"
    marks = [
        Mark("teacher", 100 * real.teacher_top1, f"{100 * real.teacher_top1:.1f}%{between}", "plain", *scaled),
        Mark(f"{manifest.bits}, model.onnx", 100 * real.top1, f"{100 * real.top1:.1f}%"),
    ]
    lost = ""
    if real.top1_drop is not None and real.top1_drop_interval:
        ends = " to ".join(f"{100 * end:.1f}" for end in real.top1_drop_interval)
        lost = f" Lost: {100 * real.top1_drop:.1f} points ({ends}, paired 95% interval)."
    says = f"Top-1 on {real.n} real pictures, which judged and taught nothing.{lost}"
    return [_plot(_up_to_all(marks), "top1", "Right answers", says, marks, ("model", "top-1"))]


def _times(name: str, title: str, says: str, sides: Sequence[tuple[str, Times, str]]) -> Plot:
    marks = [
        Mark(called, one.median_ms, f"{one.median_ms:.2f} ms (p95 {one.p95_ms:.2f})", kind, high=one.p95_ms)
        for called, one, kind in sides
    ]
    return _plot(bars, name, title, says, marks, ("model", "median (95th percentile)"))


Drawn = Callable[[str, str, Sequence[Mark]], Markup]


def _from_to(unit: str, least: float, most: float) -> Drawn:
    return lambda name, title, marks: intervals(name, title, marks, unit, least, most)


def _up_to_all(marks: Sequence[Mark]) -> Drawn:
    """On a scale of percent that ends at 100 and begins where the marks need it."""
    lowest = min(mark.reach[0] for mark in marks)
    return _from_to("%", 100 - 100 * next((span for span in SPANS if 100 - lowest <= 100 * span + 1e-9), 1.0), 100)


def _plot(draw: Drawn, name: str, title: str, says: str, marks: Sequence[Mark], columns: tuple[str, ...]) -> Plot:
    return Plot(title, says, draw(name, title, marks), columns, [(mark.name, mark.said) for mark in marks])


def _mb(size: int, digits: int = 2) -> str:
    return f"{size / 1e6:.{digits}f} MB"
