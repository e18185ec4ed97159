"""manifest.json: what scripts rely on, key for key, and what is taken for one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from export.edge.compare import Comparison
from inversion.errors import InputError
from pipeline.recipe.resolve import read_back
from pipeline.record.manifest import (
    JSON_SCHEMA,
    MANIFEST,
    Manifest,
    json_schema,
    load_finished,
    load_manifest,
    of_json,
    read_manifest,
    to_json,
    write_manifest,
)
from pipeline.record.proof import Answered, ExecutedEngine, Fidelity, OnCpu, Verdict
from pipeline.show.display import result_rows

TODAY = Path(__file__).with_name("manifest.json")
"""Of a build before there were types: the contract that scripts rely on."""
RECORDS = Path(__file__).parents[3] / "benchmarks" / "records"


def today() -> Manifest:
    manifest = read_manifest(TODAY)
    assert manifest is not None
    return manifest


def changed(path: Sequence[str | int], value: object) -> bytes:
    """The manifest of `TODAY` with one value changed."""
    whole = json.loads(TODAY.read_bytes())
    place = whole
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return json.dumps(whole).encode()


def test_what_is_written_is_what_was_read() -> None:
    """Byte for byte: every key, in its order, every number as it was."""
    assert write_manifest(today()) == TODAY.read_bytes()


def test_the_schema_is_what_the_types_say() -> None:
    """The file in the package is made from the types; `python -m pipeline.record.manifest` makes it again."""
    assert json.loads(JSON_SCHEMA.read_text()) == json_schema()
    Draft202012Validator.check_schema(json_schema())


def test_the_schema_takes_a_manifest_and_refuses_none() -> None:
    """A real one is valid, with keys of a later version too; a missing key or another type is not."""
    schema = Draft202012Validator(json.loads(JSON_SCHEMA.read_text()))
    schema.validate(json.loads(TODAY.read_bytes()))
    schema.validate(json.loads(changed(["validation", "new"], 1)))
    places: list[list[str | int]] = [["schema"], ["validation", "gates", 0], ["teacher", "sha256"]]
    for place, value in zip(places, (1, {}, None), strict=True):
        assert list(schema.iter_errors(json.loads(changed(place, value))))


def test_values_are_attributes() -> None:
    """A misspelt one fails mypy; here, that they are the file's."""
    manifest, told = today(), json.loads(TODAY.read_bytes())
    verdict, kept = manifest.verdict, told["validation"]
    assert (manifest.teacher.name, manifest.bits) == ("digits_vit", "w4a8")
    assert [stage.name for stage in manifest.stages] == ["invert", "quantize", "export", "engine", "validate"]
    assert manifest.stage("invert").outputs[0].bytes == told["stages"][0]["outputs"][0]["bytes"]
    assert verdict.float32 is not None
    assert verdict.float32.synthetic.kinds["leaves"].kl == kept["float"]["synthetic"]["kinds"]["leaves"]["kl"]
    (engine,) = verdict.runtimes.engines
    assert (engine.arch, engine.inputs[0].max) == ("sm89", (32, 1, 32, 32))
    assert verdict.runtimes.onnxruntime.latency[1].float32.p95_ms > 0
    assert all(verdict.gates)
    assert of_json(Verdict, manifest.stage("validate").metrics) == verdict
    with pytest.raises(InputError, match=r"has not come to its stage 'prove'"):
        manifest.stage("prove")


def test_an_engine_that_ran_tells_more() -> None:
    """Its answers are keys of its own, and are read again; one that did not run has no such keys."""
    manifest = today()
    (engine,) = manifest.verdict.runtimes.engines
    answered = Answered(manifest.verdict.synthetic, None)
    ran = ExecutedEngine.of(engine, engine.kernels, answered)
    runtimes = dataclasses.replace(manifest.verdict.runtimes, tensorrt=(engine, ran))
    verdict = dataclasses.replace(manifest.verdict, runtimes=runtimes)
    before, after = json.loads(json.dumps(to_json(verdict)))["runtimes"]["tensorrt"]
    assert list(after) == [*before, "synthetic", "real", "latency"]
    assert (before["executed"], after["executed"], after["real"]) == (False, True, None)
    assert of_json(Verdict, to_json(verdict)) == verdict


@pytest.mark.parametrize("path", sorted(RECORDS.glob("2026-11-2[4-6]_d*_w*.json")), ids=lambda path: path.stem)
def test_verdicts_of_earlier_versions_are_read(path: Path) -> None:
    """Every one since 24 November: what they told of is kept, what they did not is said to be absent."""
    told = json.loads(path.read_text())["validation"]
    verdict = of_json(Verdict, told)
    assert verdict is not None
    written = json.loads(json.dumps(to_json(verdict)))
    assert written["gates"] == told["gates"]
    assert _without_none(written["runtimes"]) == _without_none(told["runtimes"])
    assert told["synthetic"].items() <= written["synthetic"].items()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def test_other_ways_on_a_cpu_are_told_wherever_runtimes_are() -> None:
    """The file for ONNX Runtime alone, and OpenVINO with the type of its floats: read again from the manifest, rows and
    lines of their own; of OpenVINO's float model too."""
    manifest = today()
    runtime, synthetic = manifest.verdict.runtimes.onnxruntime, manifest.verdict.synthetic
    rows = tuple(dataclasses.replace(row, threads=2) for row in runtime.latency)
    mine = OnCpu(
        "m.ort.onnx", "onnxruntime", "1.31", "float32", runtime.quantized, synthetic, None, rows, (), runtime.kernels
    )
    other = dataclasses.replace(mine, runtime="openvino", version="2026.4", floats="bfloat16", own_latency=rows)
    runtimes = dataclasses.replace(
        manifest.verdict.runtimes,
        onnxruntime=dataclasses.replace(runtime, latency=rows),
        onnxruntime_file=mine,
        openvino=other,
    )
    verdict = dataclasses.replace(manifest.verdict, runtimes=runtimes)
    assert of_json(Verdict, json.loads(json.dumps(to_json(verdict)))) == verdict
    assert runtimes.kernels[:3] == [runtime.kernels] * 3
    found = [tuple(row.values()) for row in result_rows(dataclasses.replace(manifest, validation=verdict))]
    plain, integer = (f"{one.median_ms:.2f} ({one.p95_ms:.2f})" for one in (rows[0].float32, rows[0].quantized))
    at = found.index(("latency (p95), ms, batch 1, 2 threads", plain, integer))
    assert found[at + 1 : at + 3] == [
        ("latency there, ONNX Runtime, m.ort.onnx", "", integer),
        ("latency there, OpenVINO 2026.4, bfloat16 beside the integers", plain, integer),
    ]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["schema"], 3), (["schema"], "2"), (["teacher", "sha256"], 7), (["versions"], []), (["stages"], {}),
        (["stages", 0, "cached"], "no"), (["stages", 0, "seconds"], None), (["stages", 0, "outputs", 0, "bytes"], "3"),
        (["stages", 0, "outputs", 0, "path"], "../model.onnx"), (["stages", 0, "outputs", 0, "path"], "/model.onnx"),
        (["stages", 0, "outputs", 0, "path"], ""), (["stages", 0, "outputs", 0, "path"], "a\0b"),
        (["validation"], 3), (["recipe"], None),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_none(place: list[str | int], value: object, tmp_path: Path) -> None:
    """Types are not stretched, and no output lies outside."""
    (tmp_path / MANIFEST).write_bytes(changed(place, value))
    assert read_manifest(tmp_path / MANIFEST) is None
    with pytest.raises(InputError, match=r"holds no manifest\.json of schema 2: make one with `pipeline build`"):
        load_manifest(tmp_path)


def test_a_run_that_counted_in_shares_is_judged_again(tmp_path: Path) -> None:
    """Of schema 1 every stage but the verdict counts, and a limit that was set keeps its meaning."""
    told = json.loads(changed(["recipe", "validation", "min_agreement"], 0.97))
    (tmp_path / MANIFEST).write_text(json.dumps({**told, "schema": 1}))
    manifest = load_manifest(tmp_path)
    assert (manifest.schema, manifest.validation) == (2, None)
    assert manifest.stages == today().without("validate")
    assert read_back(manifest.recipe).validation.min_agreement == 97
    with pytest.raises(InputError, match="has not reached its verdict: finish it with `pipeline build`"):
        load_finished(tmp_path)


@pytest.mark.parametrize("place", [["new"], ["stages", 0, "new"], ["validation", "new"], ["teacher", "new"]])
def test_keys_that_we_do_not_know_are_no_error(place: list[str | int], tmp_path: Path) -> None:
    """A later version may add some."""
    (tmp_path / MANIFEST).write_bytes(changed(place, {"any": "thing"}))
    assert load_finished(tmp_path) == today()


def test_a_verdict_that_is_not_whole_costs_the_verdict_alone(tmp_path: Path) -> None:
    """The stages before it count; who asks for the verdict is told what is wrong with it."""
    (tmp_path / MANIFEST).write_bytes(changed(["validation", "runtimes", "onnxruntime", "latency"], None))
    assert load_manifest(tmp_path) == dataclasses.replace(today(), validation=None)
    wrong = r"is not as a build writes it \(validation\.runtimes\.onnxruntime\.latency: .*\): finish the run with"
    with pytest.raises(InputError, match=wrong):
        load_finished(tmp_path)
    (tmp_path / MANIFEST).write_bytes(changed(["validation"], None))
    with pytest.raises(InputError, match=r"has not reached its verdict: finish it with `pipeline build`"):
        load_finished(tmp_path)


def test_a_comparison_is_kept_whole() -> None:
    """Its fields are those on disk, in their order: a new one is not lost."""
    names: list[list[str]] = [[field.name for field in dataclasses.fields(kind)] for kind in (Comparison, Fidelity)]
    assert names[0] == names[1]
    one: dict[str, Any] = {"n": 1, "agreement": 1.0, "agreement_interval": (0.2, 1.0), "kl": 0.0, "cosine": 1.0}
    found = Comparison(**one, kl_interval=(0.0, float("inf")), sqnr_db=float("inf"), teacher_confidence=0.5)
    assert Fidelity.of(found).sqnr_db is None
    assert of_json(Fidelity, to_json(today())["validation"]["real"]) == today().verdict.real
