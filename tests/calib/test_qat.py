"""Training never does harm, depends on its seed alone, and freezes to integers."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from calib import qat
from calib.features import feature_error, forward_features
from calib.fidelity import Fidelity, fidelity, kl_to_teacher
from calib.freeze import freeze
from calib.layers import quantized_layers
from calib.lessons import Lessons
from calib.lsq import learn_steps
from calib.qat import Outcome, train
from calib.quantization import Quantized, quantize
from calib.ranges import calibrate
from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Rounding, Training
from calib.views import Views
from calib.weights import QuantizedWeights
from inversion.errors import NumericalError
from inversion.progress import Progress
from inversion.teacher import Teacher
from tests.small import inserted, small_teacher, sparse_images, views

BASIS = Basis(updates=3)
MAX = Calibration(method="max", leaves=4)
SHORT = Training(updates=8, batch=4, checks=4, crops=False, learning_rate=1e-4, ema=0.0, precision="float32")
HUGE = replace(SHORT, learning_rate=10.0, step_learning_rate=10.0)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


def calibrated(teacher: Teacher, bits: str = "w4a8") -> VisionTransformer:
    student = inserted(teacher, bits)
    calibrate(student, teacher.model, views(6), views(3), MAX)
    return student


def trained(teacher: Teacher, settings: Training, bits: str = "w4a8") -> tuple[VisionTransformer, Outcome]:
    student = calibrated(teacher, bits)
    return student, train(student, teacher.model, views(6), views(3), settings)


def result(teacher: Teacher, settings: Training = SHORT, bits: str = "w4a8") -> Quantized:
    return quantize(teacher, sparse_images(8), QuantScheme.parse(bits), BASIS, MAX, Rounding(), settings)


@pytest.mark.parametrize(
    "settings", [HUGE, replace(HUGE, optimizer="sgd"), replace(HUGE, ema=0.9), replace(SHORT, updates=0)]
)
def test_training_that_does_not_help_changes_nothing(teacher: Teacher, settings: Training) -> None:
    """With a rate that destroys the model, or without updates, the calibrated weights and steps come back."""
    want = calibrated(teacher)
    learn_steps(want)
    student, outcome = trained(teacher, settings)
    assert outcome.best == outcome.calibrated
    assert outcome.best_update == 0
    assert len(outcome.history) == (1 if settings.updates == 0 else 4)
    found = student.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in want.state_dict().items())


def test_training_keeps_the_best(teacher: Teacher) -> None:
    """What is kept has the least KL of the history, and gives it again; held-out KL falls in this case."""
    student, outcome = trained(teacher, SHORT)
    assert outcome.best == min(seen for _, seen in outcome.history)
    assert dict(outcome.history)[outcome.best_update] == outcome.best
    assert outcome.best.kl < outcome.calibrated.kl
    assert fidelity(student, views(3), views(3).logits(teacher.model)) == outcome.best


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_steps_are_positive_at_every_check(teacher: Teacher, optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rate, no step is ever 0 or less."""
    least: list[float] = []

    def recorded(model: VisionTransformer, images: Views, logits: list[torch.Tensor]) -> Fidelity:
        steps = [value for name, value in model.named_parameters() if name.endswith(".step")]
        least.append(min(float(step.detach().min()) for step in steps))
        return fidelity(model, images, logits)

    monkeypatch.setattr(qat, "fidelity", recorded)
    rate = 10.0 if optimizer == "adam" else 1.0  # far too much for either, yet finite
    trained(teacher, replace(HUGE, optimizer=optimizer, learning_rate=rate, patience=9))
    assert len(least) == 5
    assert min(least) > 0


def test_patience_ends_the_training(teacher: Teacher) -> None:
    """So many checks without less KL, and no more updates are made."""
    done: list[int] = []
    student = calibrated(teacher)
    settings = replace(HUGE, patience=2)
    train(student, teacher.model, views(6), views(3), settings, lambda _what, update, *_: done.append(update))
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize("listener", [(), (lambda *_: None,)])
def test_a_loss_that_is_not_finite_stops(teacher: Teacher, listener: tuple[Any, ...]) -> None:
    """The error names the update and the rate, whether or not anybody listens to progress."""
    student = calibrated(teacher)
    student.blocks[0].norm1.weight.data[0] = torch.nan
    with pytest.raises(NumericalError, match=r"^the training loss is not finite at update 1: lower the learning rate"):
        train(student, teacher.model, views(6), views(3), SHORT, *listener)


@pytest.mark.parametrize(("kind", "crops"), [("mosaic", False), ("mixed", True), ("leaves", True), ("sparse", False)])
def test_training_depends_on_its_seed_alone(teacher: Teacher, tmp_path: Path, kind: Any, crops: bool) -> None:
    """The same seed gives the same file, whatever the caller's random state; another seed takes another way."""
    files, ways = [], []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        found = result(teacher, replace(SHORT, updates=2, seed=seed, views=kind, crops=crops))
        found.weights.save(tmp_path / f"{number}")
        files.append((tmp_path / f"{number}").read_bytes())
        ways.append(found.training.history)
    assert files[0] == files[1]
    assert ways[0] == ways[1] != ways[2]


def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib.training_checkpoint.SAVE_EVERY_S", 0.0)
    monkeypatch.setattr("calib.training_checkpoint.LARGEST_SHARE", math.inf)


@pytest.mark.parametrize("stopped", [1, 3, 6])
@pytest.mark.parametrize(("optimizer", "ema", "kind"), [("adam", 0.5, "mixed"), ("sgd", 0.0, "sparse")])
def test_interrupted_training_ends_with_the_same_bytes(
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: int,
    optimizer: Any,
    ema: float,
    kind: str,
) -> None:
    """Stopped in any update and called again, training goes on: the same file, the same history, no range set anew."""
    save_always(monkeypatch)
    shown: dict[str, Any] = {"views": kind, "crops": kind == "mixed"}
    settings = replace(SHORT, optimizer=optimizer, ema=ema, learning_rate=1e-5, patience=9, **shown)
    whole, path = result(teacher, settings), tmp_path / "training.safetensors"

    def again(progress: Progress) -> Quantized:
        return quantize(
            teacher, sparse_images(8), QuantScheme.parse("w4a8"), BASIS, MAX, Rounding(), settings, progress, path
        )

    def stop(phase: str, done: int, _total: int, _kl: float) -> None:
        if phase == "training" and done == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(stop)
    assert path.exists()
    seen: list[tuple[str, int]] = []
    resumed = again(lambda phase, done, *_: seen.append((phase, done)))
    assert seen == [("training", done) for done in range(stopped, settings.updates + 1)]
    assert (resumed.training, resumed.method, resumed.tried) == (whole.training, whole.method, whole.tried)
    assert path.exists()  # until the result is published
    for name, found in (("whole", whole), ("resumed", resumed)):
        found.weights.save(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "resumed").read_bytes()


def test_the_checkpoint_of_another_training_is_not_taken_up(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings, other images or half a file: everything starts anew, and nothing is lost or refused."""
    save_always(monkeypatch)
    path, kept = tmp_path / "training.safetensors", tmp_path / "kept"

    def starts(settings: Training, images: int = 8) -> bool:
        seen: list[tuple[str, int]] = []

        def stop(phase: str, done: int, _total: int, _kl: float) -> None:
            seen.append((phase, done))
            if (phase, done) == ("training", 2):
                raise KeyboardInterrupt

        scheme = QuantScheme.parse("w4a8")
        with pytest.raises(KeyboardInterrupt):
            quantize(teacher, sparse_images(images), scheme, BASIS, MAX, Rounding(), settings, stop, path)
        return seen[0][0] != "training"

    assert starts(SHORT)
    shutil.copy(path, kept)
    assert not starts(SHORT)
    for settings, images in ((replace(SHORT, seed=1), 8), (SHORT, 9)):
        shutil.copy(kept, path)
        assert starts(settings, images)
    path.write_bytes(kept.read_bytes()[:-9])
    assert starts(SHORT)


def test_the_teacher_is_left_alone(teacher: Teacher) -> None:
    """Quantization trains a copy: the teacher's weights stay, frozen and without gradient."""
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    result(teacher)
    after = teacher.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.model.parameters())


def test_frozen_weights_are_the_modules_own(teacher: Teacher) -> None:
    """Integers x steps equal the fake-quantized weights bit for bit, within the bits; other parameters are copied."""
    student, _ = trained(teacher, SHORT)
    frozen = freeze(student, teacher, QuantScheme.parse("w4a8"))
    for name, layer in quantized_layers(student).items():
        assert torch.equal(frozen.float_weight(name), layer.weight_quantizer(layer.weight).detach())
        integers = frozen.tensors[f"{name}.weight"]
        assert integers.shape == layer.weight.shape
        edge = name in ("patch_embed.proj", "head")
        assert bool((integers.abs() > 8).any()) == edge
        assert edge or (int(integers.min()) >= -8 and int(integers.max()) <= 7)
        assert torch.equal(frozen.tensors[f"{name}.input_step"], layer.input_quantizer.step.detach())
        assert frozen.tensors[f"{name}.weight_step"].shape == (layer.weight.shape[0],)


def test_frozen_file_holds_the_teachers_parameters_and_no_other(teacher: Teacher, tmp_path: Path) -> None:
    """Timm's names, each once; beside them steps; nothing of the library that quantized."""
    frozen = result(teacher).weights
    names = {key for key in frozen.tensors if not key.endswith(("_step",))}
    assert names == set(teacher.model.state_dict())
    assert {key for key in frozen.tensors if key.endswith("_step")} == {
        f"{name}.{step}" for name in frozen.layers for step in ("weight_step", "input_step")
    }
    frozen.save(tmp_path / "q")
    found = QuantizedWeights.load(tmp_path / "q")
    assert all(torch.equal(value, found.tensors[key]) for key, value in frozen.tensors.items())
    assert (found.teacher, found.teacher_sha256) == ("small", "0" * 64)


def test_frozen_weights_answer_as_the_module_does(teacher: Teacher) -> None:
    """Integers x steps in the float model give the module's answers, where inputs stay float."""
    student, _ = trained(teacher, SHORT, "w4a16")
    frozen = freeze(student, teacher, QuantScheme.parse("w4a16"))
    plain = small_teacher().model
    state = {key: value for key, value in frozen.tensors.items() if not key.endswith("_step")}
    plain.load_state_dict({**state, **{f"{name}.weight": frozen.float_weight(name) for name in frozen.layers}})
    for ours, theirs in zip(views(3).logits(plain), views(3).logits(student), strict=True):
        assert torch.equal(ours, theirs)


def test_float_activations_have_no_input_steps(teacher: Teacher) -> None:
    """w8a16 quantizes weights alone, to 8 bits."""
    frozen = result(teacher, bits="w8a16").weights
    assert not any(key.endswith("input_step") for key in frozen.tensors)
    assert {bits.weight for bits in frozen.layers.values()} == {8}


def test_outcome_tells_what_was_tried(teacher: Teacher) -> None:
    """The result names the range method, its fidelity before training, and what training made of it."""
    found = result(teacher)
    assert found.method == "max"
    assert set(found.tried) == {"max"}
    # ranges are judged with float weights
    assert 0 < found.tried["max"].kl < found.training.calibrated.kl


def test_crops_are_new_pictures_with_the_teachers_own_answers(teacher: Teacher) -> None:
    """Every batch shows other crops, and an untouched copy of the teacher has no loss on any."""
    lessons = Lessons(teacher.model, views(4), replace(SHORT, crops=True))
    twin, other = small_teacher().model, small_teacher().model
    seen: list[Tensor] = []
    twin.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses = [float(lessons.next(twin)[0]) for _ in range(3)]
    assert max(losses) < 1e-6
    assert not torch.allclose(seen[0].mean((0, 1)), seen[1].mean((0, 1)))
    other.blocks[0].mlp.fc2.bias.data[::2] += 2
    assert all(float(part) > 0.01 for part in lessons.next(other))


@pytest.mark.parametrize(("crops", "feature_weight", "calls"), [(False, 0.0, 0), (True, 0.0, 3), (False, 1.0, 3)])
def test_the_teacher_answers_unchanged_images_once(
    teacher: Teacher, crops: bool, feature_weight: float, calls: int
) -> None:
    """Where images are shown as they are and logits alone count, no lesson runs the teacher."""
    lessons = Lessons(teacher.model, views(4), replace(SHORT, crops=crops, feature_weight=feature_weight))
    ran: list[int] = []
    hook = teacher.model.norm.register_forward_pre_hook(lambda *_: ran.append(1))
    for _ in range(3):
        lessons.next(small_teacher().model)
    hook.remove()
    assert len(ran) == calls


def test_the_loss_is_kl_and_weighted_features(teacher: Teacher) -> None:
    """KL at the temperature plus the feature error times its weight; what is reported is the KL alone."""
    other = small_teacher().model
    other.blocks[0].mlp.fc2.bias.data += 0.3
    patches, kept = views(4).groups[0]
    settings = replace(SHORT, temperature=2.0, feature_weight=3.0)
    loss, divergence = Lessons(teacher.model, views(4), settings).next(other)
    (answer, ours), (target, theirs) = (forward_features(model, patches, kept) for model in (other, teacher.model))
    torch.testing.assert_close(divergence, kl_to_teacher(answer, target, 2.0))
    torch.testing.assert_close(loss, divergence + 3 * feature_error(ours, theirs))


@pytest.mark.parametrize("averaged", [True, False])
def test_held_out_images_choose_between_last_and_average(
    teacher: Teacher, averaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever judges better is kept, and the outcome says which."""
    judged: list[VisionTransformer] = []

    def prefer(model: VisionTransformer, *_: object) -> Fidelity:
        judged.append(model)
        is_average = len(judged) > 1 and model is not judged[0]
        return Fidelity((1.0 if is_average == averaged else 2.0) if len(judged) > 1 else 3.0, 0.5)

    monkeypatch.setattr(qat, "fidelity", prefer)
    student, outcome = trained(teacher, replace(SHORT, ema=0.5, checks=1))
    assert outcome.averaged == averaged
    average = judged[-1].state_dict()
    found = student.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in average.items()) == averaged


def test_bfloat16_trains_too(teacher: Teacher) -> None:
    """Products in half precision, quantizers in float32: held-out KL falls as well."""
    _, outcome = trained(teacher, replace(SHORT, precision="bfloat16"))
    assert outcome.best.kl < outcome.calibrated.kl


def test_batches_are_full_and_show_every_image(teacher: Teacher) -> None:
    """No batch is smaller for standing at the end of an epoch; larger groups come as often as their size says."""
    lessons = Lessons(teacher.model, views(5, "sparse"), replace(SHORT, views="sparse"))  # groups of 5 and of 10
    drawn = [lessons.draw() for _ in range(60)]
    assert all(len(rows) == 4 and len(set(rows.tolist())) >= 3 for _, rows in drawn)
    for group, size in ((0, 5), (1, 10)):
        rows = torch.cat([rows for number, rows in drawn if number == group])
        assert sorted(rows[:size].tolist()) == list(range(size))
    assert 28 < sum(group for group, _ in drawn) < 52
