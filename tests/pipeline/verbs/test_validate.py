"""`pipeline validate`, and what a run's models carry: labels, digests, preprocessing, bytes at the entrance."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from calib.freeze import freeze
from calib.lsq import learn_steps
from calib.ranges import calibrate, insert_quantizers
from calib.scheme import QuantScheme
from calib.settings import Calibration
from calib.views import dense_views
from export.edge.latency import Latency
from export.edge.registry import OPENVINO, available
from export.edge.runtime import open_runtime
from export.pixels import to_pixels
from inversion.errors import InputError
from inversion.leaves import dead_leaves
from inversion.teacher import InputSpec, Teacher, load_teacher
from pipeline.judge.against import bits_of
from pipeline.judge.speed import Speed
from pipeline.pictures.labels import known_labels
from pipeline.pictures.prepared import leaves, steps_of
from pipeline.pictures.preprocess import preprocess_steps
from pipeline.pictures.valdata import digits_split
from pipeline.recipe.resolve import make_recipe
from pipeline.run.folder import file_sha256
from pipeline.run.job import Job, Places
from pipeline.run.stages.export import Export
from pipeline.show.display import Display
from tests.deployed import right_of, write_digits
from tests.runs import GATES_OF_A_WAY
from tests.shell import run

FEW, FEWER = ("--quiet --set validation.pictures=" + count for count in ("100", "20"))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


@pytest.fixture(scope="module")
def folder(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a w8a8 model that takes bytes, with its quantized weights."""
    made = tmp_path_factory.mktemp("bytes")
    scheme = QuantScheme.parse("w8a8")
    views = dense_views(dead_leaves(teacher.spec, 8, 0), teacher.patch_size)
    student = insert_quantizers(teacher.model, scheme)
    calibrate(student, teacher.model, views, views, Calibration(method="max"))
    learn_steps(student)
    freeze(student, teacher, scheme).save(made / "quantized.safetensors")
    recipe = make_recipe({"teacher": "digits_vit", "export": {"uint8_input": True}}, verb="export")
    Export().run(Job(recipe, teacher, Places.run(made), Display(quiet=True)))
    return made


def test_models_carry_what_they_are(teacher: Teacher, folder: Path) -> None:
    """Teacher, scheme, digests, labels and preprocessing stand in the ONNX file itself."""
    found = {prop.key: prop.value for prop in onnx.load(folder / "model.onnx").metadata_props}
    assert found["teacher"] == "digits_vit"
    assert found["scheme"] == "w8a8"
    assert found["teacher_sha256"] == teacher.sha256
    assert found["quantized_sha256"] == file_sha256(folder / "quantized.safetensors")
    assert json.loads(found["labels"]) == [str(digit) for digit in range(10)]
    steps = json.loads((folder / "preprocess.json").read_text())
    assert json.loads(found["preprocess"]).items() <= steps.items()


def test_a_model_of_bytes_answers_as_the_weights_say(teacher: Teacher, folder: Path) -> None:
    """uint8 [batch, H, W, C] at the entrance, which preprocess.json says; the graph scales and normalises."""
    steps = json.loads((folder / "preprocess.json").read_text())
    assert (steps["tensor"]["dtype"], steps["tensor"]["layout"]) == ("uint8", "NHWC")
    assert steps["tensor"]["shape"] == ["batch", 32, 32, 1]
    assert "normalise" not in steps
    images = dead_leaves(teacher.spec, 16, 1)
    with open_runtime(folder / "model.onnx") as runtime:
        logits = runtime.run({"input": to_pixels(images, teacher.spec).numpy()})["logits"]
    with torch.inference_mode():
        expected = teacher.model(images).numpy()
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_a_file_is_judged_against_its_teacher(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real digits and leaves judge, kernels are counted, both models are timed; JSON and JUnit hold the verdict.

    What is deployed has the same top-1, to the last answer, also where the model takes bytes."""
    places = f"--json {tmp_path / 'v.json'} --junit {tmp_path / 'v.xml'}"
    line = f"validate {folder / 'model.onnx'} --teacher digits_vit {places} --quiet --set validation.pictures=100"
    assert run(line) == 0
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["real"]["n"] == 500
    assert verdict["real"]["agreement"] > 0.97
    assert verdict["runtimes"]["onnxruntime"]["kernels"]["linears"] == {"integer": 26, "all": 26}
    assert [row["batch"] for row in verdict["runtimes"]["onnxruntime"]["latency"] if row["threads"] == 1] == [1, 8]
    assert verdict["layers"] is None
    pictures, device = tmp_path / "pictures", tmp_path / "device"
    pictures.mkdir()
    labels = write_digits(pictures)
    shutil.copytree(folder, device)
    (device / "classify.py").write_text(resources.files("pipeline.deploy").joinpath("classify.py").read_text())
    assert right_of(device, pictures, labels) == round(verdict["real"]["top1"] * 500)
    assert {case.get("name") for case in ET.parse(tmp_path / "v.xml").iter("testcase")} == {
        "synthetic_kl", "float_onnx_kl", "real_agreement", "real_top1_drop", "integer_coverage",
        "teacher_top1_above_chance", "teacher_top1_for_its_confidence",
        *(f"{gate}_{OPENVINO}" for gate in GATES_OF_A_WAY if available(OPENVINO)),
    }  # fmt: skip
    assert "integer kernels: 26 of 26 linears" in capsys.readouterr().out


def turn_around(model: Path, out: Path) -> None:
    """`model` with the integers of its last layer negated."""
    changed = onnx.load(model)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == "head.weight")
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(changed, out)


@pytest.mark.usefixtures("few_digits")
def test_corrupt_weights_are_noticed(folder: Path, tmp_path: Path) -> None:
    """Integers of the last layer turned around: its answers are no longer the teacher's, and gates say so; with exit
    code 1, as of a latency ratio that nothing reaches."""
    turn_around(folder / "model.onnx", tmp_path / "m.onnx")
    slow = f"--set validation.max_latency_ratio=0.0001 --json {tmp_path / 'v.json'}"
    assert run(f"validate {tmp_path / 'm.onnx'} --teacher digits_vit {FEW} {slow}") == 1
    gates = json.loads((tmp_path / "v.json").read_text())["gates"]
    failed = {gate["name"] for gate in gates if not gate["passed"]}
    assert failed == {"synthetic_kl", "real_agreement", "real_top1_drop", "latency_ratio"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{folder}/model.onnx", "add --teacher"),
        ("{folder}/model.fp32.onnx --teacher digits_vit", "has no quantized weights"),
        ("{folder}/preprocess.json --teacher digits_vit", "is not an ONNX file"),
        ("{folder}/no.onnx --teacher digits_vit", "does not exist: give a run folder, or a model.onnx"),
        ("{folder}/model.onnx --teacher digits_vit --val-data {folder}/no", "does not exist"),
        ("{folder}/model.onnx --teacher digits_vit --set validation.provider=tpu", "unknown validation.provider 'tpu'"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names what was wrong, exit code 2."""
    assert run(f"validate {line.format(folder=folder)} --quiet") == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_model_of_another_teacher_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other classes than the teacher's."""
    model = onnx.load(folder / "model.onnx")
    for name in ("head.weight", "head.bias", "head.weight_step", "head.weight_zero_point"):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., :7].copy(), name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "m.onnx")
    assert run(f"validate {tmp_path / 'm.onnx'} --teacher digits_vit {FEW}") == 2
    assert "answers for 7 classes, 'digits_vit' has 10" in capsys.readouterr().err


@pytest.fixture
def not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a process for each file, a second each."""

    def speed(models: Iterable[str], _: int | None) -> Speed:
        return Speed({(1, 1): dict.fromkeys(models, Latency(1, 1, 1, (1,)))}, dict.fromkeys(models, 1))

    monkeypatch.setattr("pipeline.judge.against.onnx_speed", speed)


def write_pictures(folder: Path, names: list[str]) -> Path:
    """A digit of each of ten classes, a file of each of `names`, with its number in it."""
    _, _, pictures, labels = digits_split()
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[labels.tolist().index(number)]).save(folder / name)
    return folder


CLASSES = [f"{number}/picture.png" for number in range(10)]
LOOSE = [f"{number}.png" for number in range(10)]


@pytest.mark.parametrize(
    ("names", "kinds", "real", "code"), [(CLASSES, ["leaves"], 10, 1), (LOOSE, ["leaves", "pictures"], None, 0)]
)
@pytest.mark.usefixtures("not_timed")
def test_a_float_file_judges_in_its_teachers_place(
    names: list[str], kinds: list[str], real: int | None, code: int, folder: Path, tmp_path: Path
) -> None:
    """On dead leaves, and on pictures by class, of which ten prove too little, or loose ones; also of a model of bytes.
    The same gates and files as of any verdict."""
    pictures = f"--val-data {write_pictures(tmp_path / 'pictures', names)}"
    places = f"--json {tmp_path / 'v.json'} --junit {tmp_path / 'v.xml'}"
    assert run(f"validate {folder}/model.onnx --against {folder}/model.fp32.onnx {pictures} {places} {FEWER}") == code
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert list(verdict["synthetic"]["kinds"]) == kinds
    assert verdict["synthetic"]["n"] == 20 + 10 * (len(kinds) - 1)
    assert verdict["synthetic"]["agreement"] > 0.9
    assert (verdict["real"] and verdict["real"]["n"]) == real
    if verdict["real"]:
        assert verdict["real"]["teacher_top1"] >= 0.9
        assert verdict["real"]["agreement"] >= 0.9
    gates = {gate["name"]: gate["passed"] for gate in verdict["gates"]}
    assert gates.keys() >= {"synthetic_kl", "integer_coverage"}
    assert {case.get("name") for case in ET.parse(tmp_path / "v.xml").getroot().iter("testcase")} == gates.keys()


@pytest.mark.usefixtures("not_timed")
def test_corrupt_weights_are_noticed_by_the_float_file(folder: Path, tmp_path: Path) -> None:
    """As by the teacher; the limits are those of the bits that the file itself names."""
    broken = tmp_path / "m.onnx"
    turn_around(folder / "model.onnx", broken)
    assert bits_of(broken) == "w8a8"
    assert run(f"validate {broken} --against {folder}/model.fp32.onnx {FEWER}") == 1


def test_leaves_of_a_device_are_leaves() -> None:
    """Drawn without torch, of the same kind: valid pixels, each by its number alone, normalised as the model asks."""
    steps = preprocess_steps(InputSpec((24, 24), (0.5,) * 3, (0.25,) * 3, "bilinear", 0.875, 10))
    whole, half = (np.concatenate(list(leaves(steps, count, 0).batches())) for count in (30, 15))
    assert whole.shape == (30, 3, 24, 24)
    np.testing.assert_array_equal(whole[:15], half)
    assert -2 <= whole.min() < whole.max() <= 2
    as_bytes = next(iter(leaves({key: steps[key] for key in ("colour", "resize", "crop")}, 3, 0).batches()))
    assert (as_bytes.dtype, as_bytes.shape) == (np.uint8, (3, 24, 24, 3))
    np.testing.assert_allclose(as_bytes.transpose(0, 3, 1, 2) / 255, whole[:3] * 0.25 + 0.5, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{folder} --against {folder}/model.fp32.onnx", "--against judges an ONNX file"),
        ("{folder}/model.onnx --against {folder}/no.onnx", "no.onnx' does not exist: give an ONNX file"),
        ("{folder}/model.onnx --against {folder}/preprocess.json", "preprocess.json' is not an ONNX file"),
        ("{folder}/model.fp32.onnx --against {folder}/model.fp32.onnx", "has no quantized weights"),
        ("{folder}/model.onnx --against {folder}/model.fp32.onnx --teacher digits_vit", "leave teacher out"),
        ("{folder}/model.onnx --against {folder}/model.fp32.onnx --val-data {folder}/no", "no' does not exist: give a"),
        ("{folder}/model.onnx --against {other}", "float file that it was made from"),
        ("{silent} --against {folder}/model.fp32.onnx", "does not say how pictures enter it: put the preprocess.json"),
    ],
)
def test_what_no_float_file_can_judge_is_refused(
    line: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit code 2; a float file of other pictures, and a model that does not say what it takes, too."""
    silent, other = onnx.load(folder / "model.onnx"), onnx.load(folder / "model.fp32.onnx")
    del silent.metadata_props[:]
    other.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    places = {"folder": folder, "silent": tmp_path / "silent.onnx", "other": tmp_path / "other.onnx"}
    onnx.save(silent, places["silent"])
    onnx.save(other, places["other"])
    assert run(f"validate {line.format(**places)} --quiet") == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("resize", "shorter_side", 10**9),
        ("resize", "interpolation", "magic"),
        ("crop", "height", 0),
        ("colour", "mode", "CMYK"),
    ],
)
def test_a_files_words_on_pictures_are_checked(
    section: str, key: str, value: object, folder: Path, tmp_path: Path
) -> None:
    """They are a stranger's: no side that fills the memory, nothing that cannot be prepared."""
    model, path = onnx.load(folder / "model.onnx"), tmp_path / "m.onnx"
    told = next(entry for entry in model.metadata_props if entry.key == "preprocess")
    steps = json.loads(told.value)
    steps[section][key] = value
    told.value = json.dumps(steps)
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"m\.onnx' does not say how pictures enter it"):
        steps_of(path)


def test_labels_are_what_is_known(teacher: Teacher, tmp_path: Path) -> None:
    """The class map's lines in class order, ImageNet's numbers in words; nothing for a checkpoint of one's own."""
    assert known_labels(teacher, "own.safetensors", None) is None
    names = tmp_path / "map.txt"
    names.write_text("\n".join(f"class{number}" for number in range(10)))
    assert known_labels(teacher, "own.safetensors", names) == [f"class{number}" for number in range(10)]
    names.write_text("n01443537\nn99999999\n\nn01440764\n")
    words = ["goldfish, Carassius auratus", "n99999999", "", "tench, Tinca tinca", *[""] * 6]
    assert known_labels(teacher, "own.safetensors", names) == words
