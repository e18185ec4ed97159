"""One real, tiny build of the built-in teacher: every promise of the run folder, and what a second run repeats."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file

from pipeline.record.manifest import StageRecord
from pipeline.run.folder import RunFolder
from tests.deployed import right_of, write_digits
from tests.shell import run

TINY = (
    "--quiet --set inversion.images=32 --set inversion.iterations=24 --set inversion.batch=16 "
    "--set training.updates=4 --set training.batch=4 --set calibration.method=max --set basis.updates=10 "
    "--set validation.pictures=100"
)
W4A8 = f"build --teacher digits_vit --bits w4a8 {TINY}"
EXPORT_FLOAT = "pipeline.run.stages.export.export_float"
STAGES = ["invert", "quantize", "export", "engine", "validate"]
ENGINE = "engine.tensorrt_rtx.sm89.plan"
DEPLOYED = {
    "model.onnx", "preprocess.json", "labels.txt", ENGINE, f"{ENGINE}.json", "README.md", "classify.py", "classify.cpp",
    "classify_tensorrt.cpp", "picture.hpp", "preprocess.hpp",
}  # fmt: skip
"""The graph that engines are built from is not among them: it is 6 MB, and builds nothing here."""
FILES = {
    "manifest.json", "recipe.toml", "images/shard-00000.safetensors", "images/shard-00001.safetensors",
    "quantized.safetensors",
    "model.onnx", "model.int4.onnx", "model.fp32.onnx", "model.tensorrt.onnx", "preprocess.json", "report.html",
    "junit.xml", ENGINE, f"{ENGINE}.json", "run.log", ".lock", "images/progress.safetensors",
    *(f"deploy/{name}" for name in DEPLOYED),
}  # fmt: skip


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def cached(folder: Path) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in manifest(folder)["stages"]}


def outputs(folder: Path) -> dict[str, str]:
    return {output["path"]: output["sha256"] for stage in manifest(folder)["stages"] for output in stage["outputs"]}


def gates(junit: Path) -> dict[str, bool]:
    """Which gates a junit.xml says were passed."""
    return {case.get("name", ""): case.find("failure") is None for case in ET.parse(junit).getroot()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes."""
    folder = tmp_path_factory.mktemp("build") / "deep" / "run"
    assert run(f"{W4A8} --out {folder} --arch sm89 --junit {folder.parent.parent / 'gates.xml'}") == 0
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "run"))


def test_every_file_of_a_run_is_there(built: Path) -> None:
    """Those that DESIGN names, and no other."""
    assert files(built) == FILES
    assert json.loads((built / "preprocess.json").read_text())["tensor"]["shape"] == ["batch", 1, 32, 32]


def test_manifest_is_whole_and_true(built: Path) -> None:
    """Schema 1 with all its keys; each output's hash and size are the file's."""
    found = manifest(built)
    assert found.keys() == {"schema", "recipe", "teacher", "versions", "stages", "validation"}
    assert found["schema"] == 1
    assert found["teacher"].keys() == {"name", "sha256", "num_classes", "input_size"}
    assert (found["teacher"]["num_classes"], found["teacher"]["input_size"]) == (10, [1, 32, 32])
    needed = ("patch_rebirth", "python", "torch", "modelopt", "onnx", "onnxruntime", "tensorrt_rtx")
    assert all(found["versions"][name] for name in needed)
    assert "tensorrt" in found["versions"]
    assert found["recipe"]["inversion"]["images"] == 32
    assert [stage["name"] for stage in found["stages"]] == STAGES
    for stage in found["stages"]:
        assert stage.keys() == {"name", "digest", "seconds", "cached", "outputs", "metrics"}
        assert not stage["cached"]
        for output in stage["outputs"]:
            data = (built / output["path"]).read_bytes()
            assert (output["bytes"], output["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert outputs(built).keys() == FILES - {
        "manifest.json",
        "recipe.toml",
        "report.html",
        "junit.xml",
        "run.log",
        ".lock",
        *(f"deploy/{name}" for name in DEPLOYED),
    }


def test_verdict_is_whole(built: Path) -> None:
    """Gates with value and limit, figures on synthetic and real pictures, and what each runtime did."""
    verdict = manifest(built)["validation"]
    assert verdict.keys() >= {"passed", "gates", "synthetic", "real", "runtimes"}
    assert verdict["passed"] is True
    assert all(gate.keys() == {"name", "value", "limit", "passed"} and gate["passed"] for gate in verdict["gates"])
    names = {"integer_layers", "exact_layers", "synthetic_kl", "engine_graph_kl", "onnx_against_torch_kl"}
    names |= {"real_agreement", "real_top1_drop", "integer_coverage", "integer_coverage_sm89", "float_onnx_kl"}
    names |= {"real_agreement_engine_graph", "real_top1_drop_engine_graph"}
    names |= {"teacher_top1_above_chance", "teacher_top1_for_its_confidence"}
    assert {gate["name"] for gate in verdict["gates"]} == names
    assert verdict["real"]["n"] == 500
    assert verdict["real"]["agreement"] > 0.95  # 99.6 and more at every seed tried
    # two mosaics are held out, and dead leaves beside them; every file answers for all of both
    assert {kind: one["n"] for kind, one in verdict["synthetic"]["kinds"].items()} == {"mosaics": 2, "leaves": 100}
    assert verdict["synthetic"]["n"] == verdict["engine_graph"]["synthetic"]["n"] == 102
    assert verdict["engine_graph"]["real"]["n"] == 500
    assert verdict["float"]["real"]["top1"] == verdict["real"]["teacher_top1"]
    assert verdict["float"]["synthetic"]["kl"] < 1e-9 < verdict["synthetic"]["kl"]
    assert verdict["warnings"] == []
    assert verdict["runtimes"].keys() == {"onnxruntime", "tensorrt"}
    assert verdict["runtimes"]["onnxruntime"]["executed"] is True
    assert gates(built / "junit.xml") == {gate["name"]: True for gate in verdict["gates"]}
    assert (built.parent.parent / "gates.xml").read_bytes() == (built / "junit.xml").read_bytes()


def test_the_basis_is_told(built: Path) -> None:
    """The manifest says in which basis weights were rounded, what that did to their error, and what was left out."""
    stages = {stage["name"]: stage for stage in manifest(built)["stages"]}
    basis = stages["quantize"]["metrics"]["basis"]
    assert (basis["method"], basis["left_out"]) == ("learned", [])
    assert 0 < basis["error"] < basis["error_before"]


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "modelopt", "safetensors"):
    sys.modules[name] = None
from pipeline.cli import main
sys.argv = ["pipeline", *sys.argv[1:]]
main()
"""


def test_engine_verb_needs_no_torch(built: Path, tmp_path: Path) -> None:
    """Two architectures from one command, with torch, timm and ModelOpt blocked, as on the edge device."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "engine", str(built / "model.onnx"), "--arch", "sm86,sm120"]
    done = subprocess.run(
        [*command, "--precision", "bfloat16", "--batch", "1,2,4", "--out", str(tmp_path)],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for arch in ("sm86", "sm120"):
        spec = json.loads((tmp_path / f"engine.tensorrt_rtx.{arch}.plan.json").read_text())
        assert (spec["arch"], spec["inputs"][0]["max"]) == (arch, [4, 1, 32, 32])
        assert spec["kernels"]["share"] == 1


def test_engine_is_built_and_not_called_validated(built: Path) -> None:
    """An engine file with its sidecar; without its GPU it is reported as not executed, in every place."""
    (engine,) = manifest(built)["validation"]["runtimes"]["tensorrt"]
    assert (engine["path"], engine["arch"], engine["executed"]) == (ENGINE, "sm89", False)
    sidecar = json.loads((built / f"{ENGINE}.json").read_text())
    assert sidecar["executed"] is False
    assert sidecar["sha256"] == hashlib.sha256((built / ENGINE).read_bytes()).hexdigest()
    assert sidecar["onnx_sha256"] == outputs(built)["model.tensorrt.onnx"]
    assert "built, not executed" in (built / "report.html").read_text()


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def test_weights_are_four_bit_integers(built: Path) -> None:
    """Each linear of attention and MLP is INT8 within [-8, 7], exactly what was learned; no float copy stays."""
    learned = load_file(built / "quantized.safetensors")
    found = initializers(built / "model.onnx")
    names = [name for name in learned if re.fullmatch(r"blocks\.\d\.(attn|mlp)\.\w+\.weight", name)]
    assert len(names) == 6 * 4
    for name in names:
        assert found[name].data_type == onnx.TensorProto.INT8
        integers = numpy_helper.to_array(found[name])
        assert -8 <= integers.min() < -4  # 4 bits are really used
        assert 4 < integers.max() <= 7
        # torch keeps [out, in], a MatMul takes [in, out]
        np.testing.assert_array_equal(integers, learned[name].T)
    smallest = min(learned[name].size for name in names)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    assert all(np.prod(tensor.dims) < smallest for tensor in found.values() if tensor.data_type in floats)


def test_packed_file_holds_the_same_integers(built: Path) -> None:
    """model.int4.onnx is the same model with each 4-bit weight packed as INT4."""
    plain, packed = (initializers(built / name) for name in ("model.onnx", "model.int4.onnx"))
    fours = [name for name, tensor in packed.items() if tensor.data_type == onnx.TensorProto.INT4]
    assert len(fours) == 6 * 4
    assert plain.keys() - packed.keys() == {f"{name}_zero_point" for name in fours}
    assert packed.keys() <= plain.keys()
    for name in fours:
        np.testing.assert_array_equal(
            numpy_helper.to_array(packed[name]).astype(np.int8), numpy_helper.to_array(plain[name])
        )


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_takes_any_batch(built: Path, batch: int) -> None:
    """`input` [batch, 1, 32, 32] -> `logits` [batch, 10]."""
    session = onnxruntime.InferenceSession(built / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": np.zeros((batch, 1, 32, 32), np.float32)})
    assert logits.shape == (batch, 10)
    assert np.isfinite(logits).all()


def test_what_is_deployed_has_the_top1_of_the_manifest(built: Path, tmp_path: Path) -> None:
    """To the last answer, one picture at a time and in batches, with numpy, Pillow and ONNX Runtime alone."""
    labels = write_digits(tmp_path)
    right = round(manifest(built)["validation"]["real"]["top1"] * 500)
    for flags in ((), ("--batch", "25")):
        assert right_of(built / "deploy", tmp_path, labels, *flags) == right


def test_deployed_files_are_the_runs(built: Path, copy: Path, tmp_path: Path) -> None:
    """`deploy` writes the same files elsewhere, by runtime; what an earlier run left goes, what is others' stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "engine.tensorrt_rtx.sm75.plan").write_text("stale")
    (out / "own.txt").write_text("mine")
    assert run(f"deploy {copy} --to {out}") == 0
    assert files(out) == DEPLOYED | {"own.txt"}
    assert all((out / name).read_bytes() == (built / "deploy" / name).read_bytes() for name in DEPLOYED)
    assert (out / "model.onnx").read_bytes() == (copy / "model.onnx").read_bytes()
    assert (out / "labels.txt").read_text().splitlines() == [str(digit) for digit in range(10)]
    assert json.loads((out / "preprocess.json").read_text())["labels"] == [str(digit) for digit in range(10)]
    assert run(f"deploy {copy} --to {out} --runtime onnxruntime") == 0
    assert files(out) == DEPLOYED - {ENGINE, f"{ENGINE}.json", "classify_tensorrt.cpp"} | {"own.txt"}
    assert run(f"deploy {copy} --to {out} --runtime tensorrt") == 0
    assert files(out) == DEPLOYED - {"model.onnx", "classify.cpp"} | {"own.txt", "model.tensorrt.onnx"}


def test_what_cannot_be_deployed_is_refused(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No run, a file in the way, an unknown runtime, and a model that is not the one that was judged."""
    (tmp_path / "file").touch()
    assert run(f"deploy {tmp_path} --to {tmp_path / 'out'}") == 2
    assert run(f"deploy {copy} --to {tmp_path / 'file'}") == 2
    assert run(f"deploy {copy} --to {tmp_path / 'out'} --runtime abacus") == 2
    with (copy / "model.onnx").open("ab") as model:
        model.write(b"x")
    assert run(f"deploy {copy} --to {tmp_path / 'out'}") == 2
    assert "is not the file that the run made" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_readme_of_what_is_deployed(built: Path) -> None:
    """It has the verdict's figures, the lines that build engines elsewhere, and no line that is too long to read."""
    text = (built / "deploy" / "README.md").read_text()
    engine = json.loads((built / "deploy" / f"{ENGINE}.json").read_text())
    assert engine["build_command"] in text
    assert engine["trtexec_command"] in text
    assert f"{100 * manifest(built)['validation']['real']['top1']:.2f}" in text
    assert engine["labels"] == [str(digit) for digit in range(10)]
    assert any("softmax is not applied" in note for note in engine["notes"])


def test_second_run_is_free(copy: Path, built: Path) -> None:
    """The same command again runs no stage and gives the same files and verdict."""
    assert run(f"{W4A8} --out {copy} --arch sm89") == 0
    assert cached(copy) == dict.fromkeys(STAGES, True)
    assert outputs(copy) == outputs(built)
    assert manifest(copy)["validation"] == manifest(built)["validation"]
    assert files(copy) == FILES


def test_other_architectures_keep_the_model(copy: Path, built: Path) -> None:
    """Changing --arch runs engine and validation again and nothing before; the old engine goes. Of one that only its
    own device builds for, a Jetson's, the line for there is written, and nothing is claimed to be built."""
    assert run(f"{W4A8} --out {copy} --arch sm86,orin") == 0
    assert cached(copy) == {name: name not in ("engine", "validate") for name in STAGES}
    script = "engine.tensorrt.sm87.sh"
    assert files(copy) == {name.replace("sm89", "sm86") for name in FILES} | {
        script, f"deploy/{script}", "deploy/model.tensorrt.onnx",
    }  # fmt: skip
    assert {"model.onnx": outputs(built)["model.onnx"]}.items() <= outputs(copy).items()
    assert (copy / "deploy" / script).read_text().splitlines()[3] == (
        "trtexec --onnx=model.tensorrt.onnx --stronglyTyped --minShapes=input:1x1x32x32 --optShapes=input:8x1x32x32 "
        "--maxShapes=input:32x1x32x32 --timingCacheFile=timing.tensorrt.sm87.cache "
        "--saveEngine=engine.tensorrt.sm87.plan --skipInference"
    )
    assert [engine["arch"] for engine in manifest(copy)["validation"]["runtimes"]["tensorrt"]] == ["sm86"]
    assert script in (copy / "deploy" / "README.md").read_text()


@pytest.mark.parametrize(("flag", "again"), [("--force", STAGES), ("--from quantize", STAGES[1:])])
def test_stages_run_again_on_demand(
    copy: Path, built: Path, monkeypatch: pytest.MonkeyPatch, flag: str, again: list[str]
) -> None:
    """`--force` makes everything anew, `--from` a stage and what follows it; the bytes come out the same."""
    ran: list[str] = []
    stage = RunFolder.stage

    def noted(folder: RunFolder, name: str, *rest: Any) -> StageRecord:
        record = stage(folder, name, *rest)
        return ran.append(name) or record if not record.cached else record  # type: ignore[func-returns-value]

    monkeypatch.setattr(RunFolder, "stage", noted)
    shards = {path: path.stat().st_mtime_ns for path in (copy / "images").iterdir()}
    assert run(f"{W4A8} --out {copy} --arch sm89 {flag}") == 0
    assert ran == again
    assert all((path.stat().st_mtime_ns != time) == ("invert" in again) for path, time in shards.items())
    same = {name: sha256 for name, sha256 in outputs(built).items() if not name.startswith("engine")}
    assert same.items() <= outputs(copy).items()


def test_damaged_shard_is_made_again(copy: Path, built: Path) -> None:
    """One flipped byte in an image: inversion gives the shard's first bytes again, so nothing after it runs."""
    shard = copy / "images" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    assert run(f"{W4A8} --out {copy} --arch sm89") == 0
    assert outputs(copy) == outputs(built)
    assert cached(copy) == {name: name != "invert" for name in STAGES}


def test_a_shard_that_is_not_the_runs_is_neither_read_nor_kept(
    copy: Path, built: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`validate` refuses to judge by it and leaves it there; the next build removes it, and runs nothing again."""
    stray = copy / "images" / "shard-00099.safetensors"
    shutil.copyfile(copy / "images" / "shard-00000.safetensors", stray)
    assert run(f"validate {copy}") == 2
    said = capfd.readouterr().err
    assert said == f"error: {str(stray)!r} is not the file that the run made: run its `pipeline build` again.\n"
    assert stray.exists()
    assert run(f"{W4A8} --out {copy} --arch sm89") == 0
    assert cached(copy) == dict.fromkeys(STAGES, True)
    assert files(copy) == files(built)


def test_interruption_leaves_no_verdict(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bits run quantization and what follows; stopped on the way, no file tells the old verdict."""

    def stopped(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "model.onnx")

    monkeypatch.setattr("pipeline.run.stages.export.export_quantized", stopped)
    assert run(f"{W4A8} --set bits=w8a8 --out {copy} --arch sm89") == 3
    found = manifest(copy)
    assert found["validation"] is None
    assert found["recipe"]["bits"] == "w8a8"
    assert {"quantize": False, "invert": True}.items() <= cached(copy).items()
    assert "export" not in cached(copy)
    assert not {"report.html", "junit.xml"} & files(copy)
    assert run(f"report {copy}") == 2


def test_other_bits_run_quantization_and_all_after(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit weights from the same images: no INT4 file, no stale engine, larger integers."""
    # the float model does not depend on bits, and takes seconds
    monkeypatch.setattr(EXPORT_FLOAT, lambda *_: None)
    assert run(f"{W4A8} --set bits=w8a8 --out {copy} --arch none") == 0
    assert cached(copy) == {name: name == "invert" for name in STAGES}
    gone = {"model.int4.onnx", "model.tensorrt.onnx", ENGINE, f"{ENGINE}.json"}
    assert files(copy) == FILES - gone - {f"deploy/{name}" for name in gone}
    assert manifest(copy)["validation"]["runtimes"]["tensorrt"] is None
    weight = initializers(copy / "model.onnx")["blocks.0.mlp.fc1.weight"]
    assert np.abs(numpy_helper.to_array(weight).astype(int)).max() > 100


def test_a_gate_that_fails_is_exit_code_1(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Everything is written, the verdict is `failed` in manifest, junit.xml, report and on screen."""
    line = f"{W4A8} --out {copy} --arch sm89 --set validation.min_agreement=1 --junit {tmp_path / 'gates.xml'}"
    assert run(line) == 1
    assert cached(copy) == {name: name != "validate" for name in STAGES}
    assert manifest(copy)["validation"]["passed"] is False
    for junit in (copy / "junit.xml", tmp_path / "gates.xml"):
        assert [name for name, passed in gates(junit).items() if not passed] == [
            "real_agreement", "real_agreement_engine_graph",
        ]  # fmt: skip
    assert '<span class="failed">failed</span>' in (copy / "report.html").read_text()
    out, err = capfd.readouterr()
    assert "gate real_agreement: " in out
    assert "FAILED" in out
    assert not err


def test_validate_judges_again(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It really runs, obeys its gates for this once, rewrites verdict, report and junit.xml, touches no model file."""
    before, recipe = outputs(copy), manifest(copy)["recipe"]
    assert run(f"validate {copy} --quiet") == 0
    assert cached(copy)["validate"] is False
    assert run(f"validate {copy} --quiet --set validation.min_agreement=1") == 1
    assert gates(copy / "junit.xml")["real_agreement"] is False
    assert manifest(copy)["recipe"] == recipe
    assert '<span class="failed">failed</span>' in (copy / "report.html").read_text()
    assert outputs(copy) == before
    assert manifest(copy)["validation"]["runtimes"]["tensorrt"][0]["executed"] is False
    assert not capfd.readouterr().err


def test_gates_stay_with_a_run_only_on_request(copy: Path) -> None:
    """What `validate` is given is forgotten after it, unless `--keep` makes it the run's own."""
    strict = f"validate {copy} --quiet --set validation.min_agreement=1"
    assert run(strict) == 1
    assert run(f"validate {copy} --quiet") == 0
    assert run(f"{strict} --keep") == 1
    assert manifest(copy)["recipe"]["validation"]["min_agreement"] == 1
    assert run(f"validate {copy} --quiet") == 1


def test_a_refused_command_leaves_the_verdict_of_before(copy: Path, tmp_path: Path) -> None:
    """Pictures of which the last is broken, gates that mean nothing: nothing is run, and nothing is lost."""
    for digit in range(10):
        (tmp_path / "val" / str(digit)).mkdir(parents=True)
        noise = np.random.default_rng(digit).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "val" / str(digit) / "0.png")
    last = tmp_path / "val" / "9" / "0.png"
    last.write_bytes(last.read_bytes()[:60])
    junit = tmp_path / "gates.xml"
    assert run(f"{W4A8} --out {copy} --arch sm89 --junit {junit}") == 0
    told = {path: path.read_bytes() for path in (copy / "report.html", copy / "junit.xml", junit)}
    for line in (
        f"validate {copy} --val-data {tmp_path / 'val'} --junit {junit}",
        f"validate {copy} --set validation.max_kl=nan --junit {junit}",
        f"validate {copy} --set validation.provider=gpu --junit {junit}",
        f"validate {copy} --set validation.provider=tensorrt --junit {junit}",
        f"{W4A8} --out {copy} --arch sm89 --val-data {tmp_path / 'val'} --junit {junit}",
    ):
        assert run(line) in (2, 3)
        assert {path: path.read_bytes() for path in told} == told
    assert manifest(copy)["validation"]["passed"] is True


def test_a_run_keeps_its_number_of_threads(copy: Path) -> None:
    """It is part of the recipe, as sums are rounded by it; another number runs all that computes with it again."""
    threads = manifest(copy)["recipe"]["threads"]
    assert threads == 1
    assert run(f"{W4A8} --out {copy} --arch none --threads {threads + 1}") == 0
    assert cached(copy)["invert"] is False
    assert manifest(copy)["recipe"]["threads"] == threads + 1
    assert run(f"{W4A8} --out {copy} --arch none") == 0
    assert cached(copy) == dict.fromkeys(STAGES, True)


@pytest.mark.parametrize("name", ["model.onnx", "quantized.safetensors", ENGINE])
def test_validate_refuses_files_that_are_not_the_runs(
    name: str, copy: Path, built: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model that was changed or lost since is no run to judge: exit code 2, and the file is named."""
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run(f"validate {copy}") == 2
    path.unlink()
    assert run(f"validate {copy}") == 2
    changed, lost = capfd.readouterr().err.splitlines()
    assert changed == lost == f"error: {str(path)!r} is not the file that the run made: run its `pipeline build` again."
    assert manifest(copy)["validation"] == manifest(built)["validation"]


def test_validate_refuses_another_teacher(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that changed since the run is another teacher."""
    other = {**manifest(copy), "teacher": {**manifest(copy)["teacher"], "sha256": "0" * 64}}
    (copy / "manifest.json").write_text(json.dumps(other))
    assert run(f"validate {copy}") == 2
    assert "was made from another teacher than 'digits_vit'" in capfd.readouterr().err


def test_report_is_made_again(copy: Path, built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same page from the folder alone; its path on stdout."""
    (copy / "report.html").unlink()
    assert run(f"report {copy}") == 0
    assert capfd.readouterr().out == f"{copy / 'report.html'}\n"
    assert (copy / "report.html").read_bytes() == (built / "report.html").read_bytes()


def test_report_needs_no_network(built: Path) -> None:
    """No script, no address on the net, every picture inside; the six trajectories shown, each with its mosaic."""
    page = (built / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 6 * (4 + 1)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "digits_vit" in page


def test_stages_by_themselves_work_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """invert -> quantize -> export -> engine, each on the files of the one before; all exit codes 0."""
    monkeypatch.chdir(tmp_path)
    # takes seconds, and nothing follows from it
    monkeypatch.setattr(EXPORT_FLOAT, lambda _model, _spec, path, _about, _uint8: path.touch())
    teacher = "--teacher digits_vit --quiet"
    training = "--set training.updates=1 --set training.batch=4 --set calibration.method=max --set basis.updates=10"
    lines = [
        f"invert {teacher} --method pri --division-factor 2 --images 8 --iterations 4 --batch 4 --out images",
        f"quantize {teacher} --images images --bits w4a8 {training} --out made/quantized.safetensors",
        f"export {teacher} --quantized made/quantized.safetensors --out onnx",
        "engine onnx/model.onnx --arch sm86,sm86 --out engines",
    ]
    assert [run(line) for line in lines] == [0, 0, 0, 0]
    assert files(tmp_path) == {
        "images/.lock", "images/shard-00000.safetensors", "images/shard-00001.safetensors",
        "images/progress.safetensors",
        "made/quantized.safetensors",
        "onnx/model.onnx", "onnx/model.int4.onnx", "onnx/model.fp32.onnx", "onnx/preprocess.json",
        "engines/engine.tensorrt_rtx.sm86.plan", "engines/engine.tensorrt_rtx.sm86.plan.json",
        "engines/model.tensorrt.onnx",
    }  # fmt: skip
    out, err = capfd.readouterr()
    assert "built, not executed\n" in out
    assert "integer kernels: 26 of 26 linears" in out
    assert "elsewhere: tensorrt_rtx --onnx=model.tensorrt.onnx --computeCapabilities=86 " in out
    assert err.startswith("warning: the teacher's confidence in its synthetic images")  # of four iterations
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ('scheme.layers={"blocks.9.*"="w8a8"}', 2, "no layer is called 'blocks.9.*'"),
        ("scheme.attention=int4", 2, "attention 'int4' is not understood"),
        ("rounding.method=adaround", 2, "unknown rounding.method 'adaround'"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused_before_any_work(
    override: str, code: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and no run folder."""
    folder = tmp_path / "run"
    assert run(f"build --teacher digits_vit --bits w4a8 --out {folder} --set {shlex.quote(override)}") == code
    assert said in capfd.readouterr().err
    assert not folder.exists()
