"""What a second command does in a folder where a run is finished. Its teacher is thin: what is promised is the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from PIL import Image

from export.edge.registry import find_runtime
from export.edge.runtime import Runtime, open_runtime
from pipeline.record.manifest import StageRecord
from pipeline.run.folder import RunFolder
from pipeline.show.packages import PACKAGES
from tests.edge_install import on_an_edge
from tests.runs import (
    DEPLOYED,
    ENGINE,
    FILES,
    OTHER_WAYS,
    STAGES,
    TINY,
    cached,
    files,
    gates,
    initializers,
    manifest,
    outputs,
)
from tests.shell import run
from tests.small import thin_teacher

EXPORT_FLOAT = "pipeline.run.stages.export.export_float"


@pytest.fixture(scope="module")
def w4a8(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command, but for --out."""
    teacher = thin_teacher(tmp_path_factory.mktemp("teacher") / "thin")
    return f"build --teacher {teacher} --bits w4a8 {TINY}"


@pytest.fixture(scope="module")
def built(w4a8: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes."""
    folder = tmp_path_factory.mktemp("build") / "deep" / "run"
    assert run(f"{w4a8} --out {folder} --arch sm89 --junit {folder.parent.parent / 'gates.xml'}") == 0
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "run"))


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
    assert files(out) == DEPLOYED - {ENGINE, f"{ENGINE}.json", "classify_tensorrt.cpp"} | {"own.txt", "model.ort.onnx"}
    assert run(f"deploy {copy} --to {out} --runtime tensorrt") == 0
    assert files(out) == DEPLOYED - {"model.onnx", "classify.cpp"} | {"own.txt", "model.tensorrt.onnx"}


WORK_OF_AN_EDGE = (
    "inspect {run}/model.onnx --json -",
    "engine {run}/model.onnx --arch sm89,orin --out {out}/engines",
    "deploy {run} --to {out}/device",
    "validate {run}/model.onnx --against {run}/model.fp32.onnx --set validation.pictures=20 --json {out}/v.json "
    "--junit {out}/v.xml --summary-md {out}/v.md",
    "doctor --json -",
    "shards {run}/images",
)
MORE_THAN_AN_EDGE = (
    "build --teacher digits_vit --bits w4a8 --out {out}/run",
    "invert --teacher digits_vit --out {out}/images",
    "quantize --teacher digits_vit --bits w4a8 --images {run}/images --out {out}/q.safetensors",
    "sensitivity --teacher digits_vit --bits w4a8 --images {run}/images --out {out}/sensitivity",
    "distill --teacher digits_vit --student teacher --out {out}/student",
    "export --teacher digits_vit --quantized {run}/quantized.safetensors --out {out}/exported",
    "validate {run}",
    "validate {run}/model.onnx --teacher digits_vit",
    "gallery {run}",
    "reproduce table1 --teacher digits_vit --scale smoke --out {out}/reproduced",
    "bench inversion --teacher digits_vit",
)


def test_an_edge_install_does_its_work(built: Path, tmp_path: Path) -> None:
    """Where torch, timm, ModelOpt and all else that [edge] does not name are not there: engines, inspection, deploying,
    a verdict, doctor. Every other verb says what is missing, in one sentence with the line that installs it."""
    places = {"run": built, "out": tmp_path}
    told = on_an_edge([line.format(**places) for line in (*WORK_OF_AN_EDGE, *MORE_THAN_AN_EDGE)])
    assert [(code, err) for code, _, err in told[: len(WORK_OF_AN_EDGE)] if code] == []
    assert {path.name for path in (tmp_path / "engines").glob("engine*")} > {"engine.tensorrt.sm87.sh", ENGINE}
    assert files(tmp_path / "device") == DEPLOYED
    assert gates(tmp_path / "v.xml").keys() == {"synthetic_kl", "integer_coverage"}
    assert "w4a8" in (tmp_path / "v.md").read_text()
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["synthetic"]["n"] == 20
    assert verdict["runtimes"]["onnxruntime"]["kernels"]["linears"] == {"integer": 10, "all": 10}
    health = json.loads(told[4][1])
    assert health["versions"]["torch"] is None
    missing = {each["package"]: each["install"] for each in health["missing"]}
    assert missing["torch"] == "pip install patch-rebirth"
    assert missing.keys().isdisjoint(each.name for each in PACKAGES if each.part == "edge")
    assert health["inversion"] == health["teacher"] == "needs torch: pip install patch-rebirth"
    assert {each["name"] for each in health["runtimes"] if each["works"]} >= {"runtime cpu"}
    for code, out, err in told[len(WORK_OF_AN_EDGE) :]:
        assert (code, out) == (3, "")
        assert err.startswith("error: torch, torchvision, timm, ")
        assert err.endswith(": pip install patch-rebirth.\n")
        assert len(err.splitlines()) == 1


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


def test_second_run_is_free(w4a8: str, copy: Path, built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same command again runs no stage and gives the same files and verdict; it says so first, and in the end what
    to open and what to copy. With --json - a program has stdout for itself."""
    assert run(f"{w4a8.replace('--quiet', '')} --out {copy} --arch sm89 --json -") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == manifest(built)["validation"]
    assert err.count(", unchanged, is not run again\n") == len(STAGES)
    assert f"run folder: {copy}; open {copy / 'report.html'}, copy {copy / 'deploy'} to the device\n" in err
    assert cached(copy) == dict.fromkeys(STAGES, True)
    assert outputs(copy) == outputs(built)
    assert manifest(copy)["validation"] == manifest(built)["validation"]
    assert files(copy) == FILES


def test_other_architectures_keep_the_model(w4a8: str, copy: Path, built: Path) -> None:
    """Changing --arch runs engine and validation again and nothing before; the old engine goes. Of one that only its
    own device builds for, a Jetson's, the line for there is written, and nothing is claimed to be built."""
    assert run(f"{w4a8} --out {copy} --arch sm86,orin") == 0
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


@pytest.mark.parametrize(("flag", "again"), [("--force", STAGES), ("--from export", STAGES[2:])])
def test_stages_run_again_on_demand(
    w4a8: str, copy: Path, built: Path, monkeypatch: pytest.MonkeyPatch, flag: str, again: list[str]
) -> None:
    """`--force` makes everything anew, `--from` a stage and what follows it; the bytes come out the same."""
    ran: list[str] = []
    stage = RunFolder.stage

    def noted(folder: RunFolder, name: str, *rest: Any) -> StageRecord:
        record = stage(folder, name, *rest)
        return ran.append(name) or record if not record.cached else record  # type: ignore[func-returns-value]

    monkeypatch.setattr(RunFolder, "stage", noted)
    shards = {path: path.stat().st_mtime_ns for path in (copy / "images").iterdir()}
    assert run(f"{w4a8} --out {copy} --arch sm89 {flag}") == 0
    assert ran == again
    assert all((path.stat().st_mtime_ns != time) == ("invert" in again) for path, time in shards.items())
    same = {name: sha256 for name, sha256 in outputs(built).items() if not name.startswith("engine")}
    assert same.items() <= outputs(copy).items()


def test_damaged_shard_is_made_again(w4a8: str, copy: Path, built: Path) -> None:
    """One flipped byte in an image: inversion gives the shard's first bytes again, so nothing after it runs."""
    shard = copy / "images" / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    assert run(f"{w4a8} --out {copy} --arch sm89") == 0
    assert outputs(copy) == outputs(built)
    assert cached(copy) == {name: name != "invert" for name in STAGES}


def test_a_shard_that_is_not_the_runs_is_neither_read_nor_kept(
    w4a8: str, copy: Path, built: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`validate` refuses to judge by it and leaves it there; the next build removes it, and runs nothing again."""
    stray = copy / "images" / "shard-00099.safetensors"
    shutil.copyfile(copy / "images" / "shard-00000.safetensors", stray)
    assert run(f"validate {copy}") == 2
    said = capfd.readouterr().err
    assert said == f"error: {str(stray)!r} is not the file that the run made: run its `pipeline build` again.\n"
    assert stray.exists()
    assert run(f"{w4a8} --out {copy} --arch sm89") == 0
    assert cached(copy) == dict.fromkeys(STAGES, True)
    assert files(copy) == files(built)


def test_interruption_leaves_no_verdict(w4a8: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other bits run quantization and what follows; stopped on the way, no file tells the old verdict."""

    def stopped(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "model.onnx")

    monkeypatch.setattr("pipeline.run.stages.export.export_quantized", stopped)
    assert run(f"{w4a8} --set bits=w8a8 --out {copy} --arch sm89 --force --from quantize") == 3
    found = manifest(copy)
    assert found["validation"] is None
    assert found["recipe"]["bits"] == "w8a8"
    assert {"quantize": False, "invert": True}.items() <= cached(copy).items()
    assert "export" not in cached(copy)
    assert not {"report.html", "junit.xml"} & files(copy)
    assert run(f"report {copy}") == 2


def test_other_bits_run_quantization_and_all_after(w4a8: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit weights from the same images: no INT4 file, no stale engine, larger integers."""
    # the float model does not depend on bits, and takes seconds
    monkeypatch.setattr(EXPORT_FLOAT, lambda *_: None)
    assert run(f"{w4a8} --set bits=w8a8 --out {copy} --arch none --force --from quantize") == 0
    assert cached(copy) == {name: name == "invert" for name in STAGES}
    gone = {"model.int4.onnx", "model.tensorrt.onnx", ENGINE, f"{ENGINE}.json"}
    assert files(copy) == FILES - gone - {f"deploy/{name}" for name in gone}
    assert manifest(copy)["validation"]["runtimes"]["tensorrt"] is None
    weight = initializers(copy / "model.onnx")["blocks.0.mlp.fc1.weight"]
    assert np.abs(numpy_helper.to_array(weight).astype(int)).max() > 100


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, as `ls -l` tells them."""
    return {name: ((folder / name).stat().st_size, (folder / name).stat().st_mtime_ns) for name in files(folder)}


@pytest.mark.parametrize("more", ["", "--from quantize", "--dry-run", "--dry-run --json -"])
def test_another_scheme_replaces_no_run_unasked(
    w4a8: str, copy: Path, capfd: pytest.CaptureFixture[str], more: str
) -> None:
    """Other bits in a folder where a run lies: exit code 2, what would be lost and how to go on; nothing is touched."""
    before = states(copy)
    assert run(f"{w4a8} --set bits=w8a8 --out {copy} {more}") == 2
    assert states(copy) == before
    out, err = capfd.readouterr()
    assert not out
    name = manifest(copy)["teacher"]["name"]
    assert err == (
        f"error: run folder {str(copy)!r} holds {name} w4a8 (passed), and its models and report would be replaced by "
        f"{name} w8a8: give another --out, or --force, --from quantize beside it to keep its images.\n"
    )


def test_another_teacher_replaces_no_run_unasked(w4a8: str, copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its images would go too, also of a run that is not finished; where no stage is done nothing would be lost."""
    found = {**manifest(copy), "teacher": {**manifest(copy)["teacher"], "sha256": "0" * 64}, "validation": None}
    (copy / "manifest.json").write_text(json.dumps({**found, "stages": found["stages"][:1]}))
    assert run(f"{w4a8} --out {copy}") == 2
    assert "(not finished), and its images, models and report would be replaced" in capfd.readouterr().err
    (copy / "manifest.json").write_text(json.dumps({**found, "stages": []}))
    assert run(f"{w4a8} --out {copy} --dry-run") == 0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured less well, which no test minds."""
    for name in ("BUDGET_S", "BATCH_BUDGET_S"):
        monkeypatch.setattr(f"pipeline.run.pace.{name}", 0.01)


@pytest.mark.usefixtures("hasty")
def test_a_dry_run_tells_what_would_run_and_touches_nothing(
    w4a8: str, copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a finished run nothing runs, and with --from a part; the plan is a result, as text or as JSON."""
    before, line = states(copy), f"{w4a8} --out {copy} --arch sm89 --dry-run"
    assert run(f"{line} --json {tmp_path / 'plan.json'}") == 0
    text = capfd.readouterr().out
    assert "stage 1:  invert, unchanged, is not run again" in text
    assert "in all:   about 0 seconds" in text
    assert json.loads((tmp_path / "plan.json").read_text())["seconds"] == 0
    assert run(f"{line} --set bits=W4A8 --json -") == 0  # the same in another spelling
    assert json.loads(capfd.readouterr().out)["seconds"] == 0
    assert run(f"{line} --from engine --json -") == 0
    plan = json.loads(capfd.readouterr().out)
    assert [stage["name"] for stage in plan["stages"] if stage["unchanged"]] == STAGES[:3]
    assert all(stage["seconds"] > 0 for stage in plan["stages"][3:])
    assert states(copy) == before
    assert (plan["bits"], plan["folder"], plan["images"]) == ("w4a8", str(copy), 32)
    assert not plan["disk_bytes"] > plan["disk_free_bytes"]


@pytest.mark.usefixtures("hasty")
def test_a_dry_run_counts_what_an_interrupted_run_left(
    w4a8: str, copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half of the shards cost half; of a new folder all stages run, and it is not made."""
    told = []
    (copy / "manifest.json").unlink()
    for folder in (tmp_path / "new", copy):
        (copy / "images" / "shard-00001.safetensors").unlink(missing_ok=True)
        assert run(f"{w4a8} --out {folder} --arch none --dry-run --json -") == 0
        plan = json.loads(capfd.readouterr().out)
        assert not any(stage["unchanged"] for stage in plan["stages"])
        told.append([stage["seconds"] for stage in plan["stages"]])
    assert not (tmp_path / "new").exists()
    assert told[1][0] < told[0][0]
    assert told[0][3] == 0  # no engine


def test_a_gate_that_fails_is_exit_code_1(
    w4a8: str, copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything is written, the verdict is `failed` in manifest, junit.xml, report and on screen."""
    line = f"{w4a8} --out {copy} --arch sm89 --set validation.max_kl=1e-9 --junit {tmp_path / 'gates.xml'}"
    assert run(line) == 1
    assert cached(copy) == {name: name != "validate" for name in STAGES}
    assert manifest(copy)["validation"]["passed"] is False
    for junit in (copy / "junit.xml", tmp_path / "gates.xml"):
        assert [name for name, passed in gates(junit).items() if not passed] == [
            "synthetic_kl", *(f"synthetic_kl_{way}" for way in OTHER_WAYS), "engine_graph_kl", "onnx_against_torch_kl",
        ]  # fmt: skip
    assert '<span class="failed">failed</span>' in (copy / "report.html").read_text()
    out, err = capfd.readouterr()
    assert "gate synthetic_kl: " in out
    assert "FAILED" in out
    assert not err


def test_validate_judges_again(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It really runs, obeys its gates for this once, rewrites verdict, report and junit.xml, touches no model file.
    With --json - a program has stdout for itself; summaries of several steps stand one behind another."""
    before, recipe = outputs(copy), manifest(copy)["recipe"]
    assert run(f"validate {copy} --quiet --summary-md {tmp_path / 's.md'}") == 0
    assert cached(copy)["validate"] is False
    capfd.readouterr()
    line = f"validate {copy} --quiet --set validation.max_kl=1e-9 --json - --summary-md {tmp_path / 's.md'}"
    assert run(line) == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == manifest(copy)["validation"]
    assert "gate synthetic_kl" in err
    heads = [line for line in (tmp_path / "s.md").read_text().splitlines() if line.startswith("## ")]
    assert [head.partition(" to w4a8: ")[2].partition(",")[0] for head in heads] == ["passed", "failed: synthetic_kl"]
    assert gates(copy / "junit.xml")["synthetic_kl"] is False
    assert manifest(copy)["recipe"] == recipe
    assert '<span class="failed">failed</span>' in (copy / "report.html").read_text()
    assert outputs(copy) == before
    assert manifest(copy)["validation"]["runtimes"]["tensorrt"][0]["executed"] is False
    assert not capfd.readouterr().err


def test_an_engine_that_runs_is_judged_and_timed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU pretended, on which ONNX Runtime stands in for engines: answers, times beside FP16's engine, and gates
    of both."""
    monkeypatch.setattr("pipeline.judge.validation.local_arch", lambda: "sm89")
    opened: list[str] = []

    def open_engine(path: Path) -> Runtime:
        opened.append(path.name)
        return open_runtime(copy / ("model.fp32.onnx" if path.name.startswith("float16") else "model.onnx"))

    monkeypatch.setattr("pipeline.judge.speed.build_float_engine", lambda _, folder, *__: folder / "float16.plan")
    monkeypatch.setattr("pipeline.judge.speed.ENGINE_RUNS", 5)
    monkeypatch.setattr("pipeline.judge.speed.ENGINE_WARM_UP", 0)
    kernels = find_runtime("cpu").kernels(copy / "model.onnx")
    for place in ("validation", "speed"):
        monkeypatch.setattr(f"pipeline.judge.{place}.open_engine", open_engine)
    monkeypatch.setattr("export.edge.tensorrt_backend.TensorRT.kernels", lambda *_: kernels)
    assert run(f"validate {copy} --quiet --set validation.max_engine_ratio=0.01") == 1
    (engine,) = manifest(copy)["validation"]["runtimes"]["tensorrt"]
    assert opened == [ENGINE, "float16.plan"]
    assert engine["executed"] is True
    assert [row["batch"] for row in engine["latency"]] == [1, 8, 32]
    found = gates(copy / "junit.xml")
    assert found["engine_ratio_sm89"] is False
    assert found[f"synthetic_kl_{ENGINE}"] is True


def test_gates_stay_with_a_run_only_on_request(copy: Path) -> None:
    """What `validate` is given is forgotten after it, unless `--keep` makes it the run's own."""
    strict = f"validate {copy} --quiet --set validation.max_kl=1e-9"
    assert run(strict) == 1
    assert run(f"validate {copy} --quiet") == 0
    assert run(f"{strict} --keep") == 1
    assert manifest(copy)["recipe"]["validation"]["max_kl"] == 1e-9
    assert run(f"validate {copy} --quiet") == 1


def test_a_refused_command_leaves_the_verdict_of_before(w4a8: str, copy: Path, tmp_path: Path) -> None:
    """Pictures of which the last is broken, gates that mean nothing: nothing is run, and nothing is lost."""
    for digit in range(10):
        (tmp_path / "val" / str(digit)).mkdir(parents=True)
        noise = np.random.default_rng(digit).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "val" / str(digit) / "0.png")
    last = tmp_path / "val" / "9" / "0.png"
    last.write_bytes(last.read_bytes()[:60])
    junit = tmp_path / "gates.xml"
    assert run(f"{w4a8} --out {copy} --arch sm89 --junit {junit}") == 0
    told = {path: path.read_bytes() for path in (copy / "report.html", copy / "junit.xml", junit)}
    for line in (
        f"validate {copy} --val-data {tmp_path / 'val'} --junit {junit}",
        f"validate {copy} --set validation.max_kl=nan --junit {junit}",
        f"validate {copy} --set validation.provider=gpu --junit {junit}",
        f"validate {copy} --set validation.provider=tensorrt --junit {junit}",
        f"{w4a8} --out {copy} --arch sm89 --val-data {tmp_path / 'val'} --junit {junit}",
    ):
        assert run(line) in (2, 3)
        assert {path: path.read_bytes() for path in told} == told
    assert manifest(copy)["validation"]["passed"] is True


def test_a_run_keeps_its_number_of_threads(w4a8: str, copy: Path) -> None:
    """It is part of the recipe, as sums are rounded by it; another number runs all that computes with it again."""
    threads = manifest(copy)["recipe"]["threads"]
    assert threads == 1
    assert run(f"{w4a8} --out {copy} --arch none --threads {threads + 1}") == 0
    assert cached(copy)["invert"] is False
    assert manifest(copy)["recipe"]["threads"] == threads + 1
    assert run(f"{w4a8} --out {copy} --arch none") == 0
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
    assert "was made from another teacher than 'local-dir:" in capfd.readouterr().err


def test_report_is_made_again(copy: Path, built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same page from the folder alone; its path on stdout."""
    (copy / "report.html").unlink()
    assert run(f"report {copy}") == 0
    assert capfd.readouterr().out == f"{copy / 'report.html'}\n"
    assert (copy / "report.html").read_bytes() == (built / "report.html").read_bytes()


def test_stages_by_themselves_work_together(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """invert -> quantize -> export -> engine, each on the files of the one before; all exit codes 0."""
    monkeypatch.chdir(tmp_path)
    # takes seconds, and nothing follows from it
    monkeypatch.setattr(EXPORT_FLOAT, lambda _model, _spec, path, _about, _uint8: path.touch())
    teacher = f"--teacher {thin_teacher(tmp_path_factory.mktemp('teacher') / 'thin')} --quiet"
    training = "--set training.updates=1 --set training.batch=4 --set calibration.leaves=8 --set basis.updates=10"
    lines = [
        f"invert {teacher} --method pri --division-factor 2 --images 8 --iterations 4 --batch 4 --out images",
        f"quantize {teacher} --images images --bits w4a8 {training} --out made/quantized.safetensors",
        f"export {teacher} --quantized made/quantized.safetensors --out onnx",
        "engine onnx/model.onnx --arch sm86,sm86 --out engines",
    ]
    assert [run(line) for line in lines] == [0, 0, 0, 0]
    assert files(tmp_path) == {
        "images/job.json", "images/shard-00000.safetensors", "images/shard-00001.safetensors",
        "images/progress.safetensors",
        "made/quantized.safetensors",
        "onnx/model.onnx", "onnx/model.ort.onnx", "onnx/model.int4.onnx", "onnx/model.fp32.onnx",
        "onnx/preprocess.json",
        "engines/engine.tensorrt_rtx.sm86.plan", "engines/engine.tensorrt_rtx.sm86.plan.json",
        "engines/model.tensorrt.onnx",
    }  # fmt: skip
    out, err = capfd.readouterr()
    assert "built, not executed\n" in out
    assert "integer kernels: 10 of 10 linears" in out
    assert "elsewhere: tensorrt_rtx --onnx=model.tensorrt.onnx --computeCapabilities=86 " in out
    assert err.startswith("warning: the teacher's confidence in its synthetic images")  # of four iterations
    assert err.count("\n") == 1
