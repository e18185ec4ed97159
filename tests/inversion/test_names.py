"""Checkpoints as trainers write them: whatever stands before, around and between the names, the weights are found."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calib.distillation.student import load_student
from inversion.checkpoint import read_checkpoint
from inversion.config import GivenInput
from inversion.errors import InputError, MachineError
from inversion.names import as_timm
from inversion.teacher import load_teacher, require_plain_vit

NAME = "vit_tiny_patch16_224"


def model(name: str = NAME, **changes: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{"depth": 2, "num_classes": 10, "img_size": 32, **changes}).eval()


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every timm model has two blocks here: names are what is tested."""
    whole = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **rest: whole(name, **{"depth": 2, **rest}))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model().state_dict().items()}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def hugging_face(state: dict[str, Tensor], prefix: str = "vit.") -> dict[str, Tensor]:
    """The names of ViTForImageClassification, written down apart from the code that reads them."""
    found = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "blocks":
            layer, rest = f"{prefix}encoder.layer.{parts[1]}.", ".".join(parts[2:])
            if rest.startswith("attn.qkv"):
                for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[f"{layer}attention.attention.{name}.{parts[-1]}"] = part
                continue
            names = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
                     "norm1": "layernorm_before", "norm2": "layernorm_after"}  # fmt: skip
            found[f"{layer}{names[rest.rpartition('.')[0]]}.{parts[-1]}"] = value
        else:
            names = {"cls_token": "embeddings.cls_token", "dist_token": "embeddings.distillation_token",
                     "pos_embed": "embeddings.position_embeddings",
                     "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
                     "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
                     "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias"}  # fmt: skip
            found[f"classifier.{parts[-1]}" if parts[0] == "head" else prefix + names[key]] = value
    return found


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "backbone.",
            "student.", "_forward_module.model._orig_mod.", "my_wrapper.vit."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_all_names_begin_with_goes(prefix: str, state: dict[str, Tensor]) -> None:
    """Any prefix, nested in any order, and what FSDP puts between the parts."""
    found, notes = as_timm(prefixed(state, prefix), state.keys())
    assert found.keys() == state.keys()
    assert notes == ()
    middle = {
        prefix + key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): value for key, value in state.items()
    }
    assert as_timm(middle, state.keys())[0].keys() == state.keys()


@pytest.mark.parametrize("prefix", ["vit.", "deit.", "model.vit."])
def test_hugging_face_names_are_translated(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Query, key and value become one; the teacher is the same to the last bit."""
    outer, _, inner = prefix[:-1].rpartition(".")
    named = hugging_face(state, f"{inner}.")
    torch.save(prefixed(named, f"{outer}." if outer else ""), tmp_path / "hf.bin")
    save_file(state, tmp_path / "timm.safetensors")
    theirs, ours = (load_teacher(NAME, tmp_path / name) for name in ("hf.bin", "timm.safetensors"))
    assert theirs.sha256 == ours.sha256


def test_tensors_of_a_loss_are_left_out_and_said(state: dict[str, Tensor]) -> None:
    """A Lightning module with more than the model."""
    found, (note,) = as_timm({**prefixed(state, "model."), "criterion.weight": torch.ones(3)}, state.keys())
    assert found.keys() == state.keys()
    assert note == "1 tensors beside 'model' were left out, as 'criterion.weight'; --checkpoint-key takes others."


def test_the_model_goes_before_its_moving_average(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Side by side in one state_dict, or under keys of which the average's are the more usual ones."""
    average = {key: value + 1 for key, value in state.items()}
    both = {**prefixed(average, "ema_model.module."), **prefixed(state, "model.")}
    found, _ = as_timm(both, state.keys())
    assert torch.equal(found["norm.bias"], state["norm.bias"])
    save_file({key: value.clone() for key, value in both.items()}, tmp_path / "b.safetensors")
    torch.save({"state_dict": both}, tmp_path / "b.pth")
    for name in ("b.safetensors", "b.pth"):
        chosen = load_teacher(NAME, tmp_path / name, checkpoint_key="ema_model")
        assert torch.equal(chosen.model.state_dict()["norm.bias"], average["norm.bias"])
    with pytest.raises(InputError, match="--checkpoint-key 'ema' chooses in a file: add --checkpoint"):
        load_teacher(NAME, checkpoint_key="ema")
    torch.save({"ema": {"model": average}, "network": state}, tmp_path / "a.pth")
    taken = load_teacher(NAME, tmp_path / "a.pth")
    assert torch.equal(taken.model.state_dict()["norm.bias"], state["norm.bias"])
    assert "'network' was taken" in taken.notes[0]


@pytest.mark.parametrize(
    "beside",
    [np.array(["a"]), np.str_("a"), np.bool_(True), collections.defaultdict(list, {"a": [1]}),
     collections.defaultdict(int), datetime.datetime(2026, 1, 1), datetime.timedelta(3),
     np.random.RandomState(0).get_state(), np.dtype("float32"), types.SimpleNamespace(a=1), {1, 2}, 1j],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
def test_whatever_data_stands_beside_the_weights(
    beside: Any, archive: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Also where a class of its own comes along, as a number type of NumPy or what fills a defaultdict."""
    content = {"args": beside, "log": [{"more": beside}], "state_dict": state}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    assert read_checkpoint(tmp_path / "a.pth").keys() == state.keys()


def test_torchscript_is_called_so(tmp_path: Path) -> None:
    """It is a program, and nothing of it runs."""
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "a.pth")
    with pytest.raises(InputError, match="is a TorchScript program, which is not run: save its state_dict"):
        read_checkpoint(tmp_path / "a.pth")


def stepped_optimizer() -> dict[str, Any]:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


WRAPPINGS = {
    "timm": lambda s: {"epoch": 1, "arch": NAME, "state_dict": s, "args": argparse.Namespace(lr=1e-3, out=Path("x"))},
    "deit": lambda s: {"model": s, "epoch": np.int64(3), "args": argparse.Namespace(lr=np.float32(0.1))},
    "tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": stepped_optimizer()},
    "nested": lambda s: {"checkpoint": {"model": prefixed(s, "module.")}, "log": np.arange(3.0)},
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "callbacks": collections.defaultdict(dict)},
    "ordered": lambda s: collections.OrderedDict(s),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_what_trainers_save_is_read(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Arguments, numbers, paths and optimizers beside the weights are plain data, and left alone."""
    torch.save(WRAPPINGS[kind](state), tmp_path / "a.pth")
    torch.save(state, tmp_path / "plain.pth")
    assert load_teacher(NAME, tmp_path / "a.pth").sha256 == load_teacher(NAME, tmp_path / "plain.pth").sha256


def test_of_several_sets_one_is_taken_and_said(state: dict[str, Tensor], tmp_path: Path) -> None:
    """The trained model, or what --checkpoint-key names; where neither is clear, both are named."""
    average = {key: value + 1 for key, value in state.items()}
    torch.save({"model_ema": average, "model": state}, tmp_path / "a.pth")
    taken, chosen = (load_teacher(NAME, tmp_path / "a.pth", checkpoint_key=key) for key in (None, "model_ema"))
    assert torch.equal(taken.model.state_dict()["norm.bias"], state["norm.bias"])
    assert torch.equal(chosen.model.state_dict()["norm.bias"], average["norm.bias"])
    assert "holds 'model_ema', 'model': 'model' was taken; --checkpoint-key takes another" in taken.notes[0]
    with pytest.raises(InputError, match=r"--checkpoint-key 'ema' is not in .*: it holds 'model_ema', 'model'"):
        load_teacher(NAME, tmp_path / "a.pth", checkpoint_key="ema")
    torch.save({"student": state, "teacher": average}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"several sets of weights \('student', 'teacher'\): choose one with"):
        load_teacher(NAME, tmp_path / "b.pth")


class Unknown:
    """No plain data."""


def test_what_is_no_plain_data_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    """The class that stands in the way, and nothing of it runs."""
    torch.save({"model": state, "config": Unknown()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"holds more than plain .*: a [\w.]*test_names\.Unknown is no plain data"):
        load_teacher(NAME, tmp_path / "a.pth")


def changed(state: dict[str, Tensor], **tensors: Tensor) -> dict[str, Tensor]:
    return {**state, **{key.replace("__", "."): value for key, value in tensors.items()}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_embed__proj__weight": torch.zeros(192, 3, 32, 32)}, "has patches of 32x32 pixels, .* of 16x16"),
        ({"patch_embed__proj__weight": torch.zeros(192, 3, 8, 8)}, "has patches of 8x8 pixels, .* of 16x16"),
        ({"patch_embed__proj__weight": torch.zeros(192, 3, 16, 8)}, "has patches of 16x8 pixels"),
        ({"pos_embed": torch.zeros(1, 281, 192)}, "has positions for 280 patches, which is no square grid"),
        ({"patch_embed__proj__weight": torch.zeros(192, 1, 16, 16)}, "takes 1 channels and has 3 numbers of mean"),
        ({"dist_token": torch.zeros(1, 1, 192)}, "is of a ViT distilled"),
        ({"reg_token": torch.zeros(1, 4, 192)}, "is of a ViT with registers"),
        ({"patch_embed__proj__weight": torch.zeros(192, 768)}, "does not tell the order of its pixels"),
        ({"pre_logits__fc__weight": torch.zeros(192, 192)}, r"a layer before its classifier \('pre_logits'\)"),
        ({"head__weight": torch.zeros(1, 192), "head__bias": torch.zeros(1)}, "answers for 1 class, .* softmax"),
    ],
)
def test_what_would_be_another_function_is_refused(
    change: dict[str, Tensor], said: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """timm would resample kernels and positions, add channels up, or leave tokens out, without a word."""
    save_file(changed(state, **change), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said):
        load_teacher(NAME, tmp_path / "a.safetensors")


def test_a_feature_extractor_is_called_one(state: dict[str, Tensor], tmp_path: Path) -> None:
    """No head in the file: there is nothing to invert for."""
    save_file({key: value for key, value in state.items() if "head" not in key}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"has no classifier .*: a feature extractor cannot be inverted"):
        load_teacher(NAME, tmp_path / "a.safetensors")


def test_average_pooling_and_channels_follow_the_weights(tmp_path: Path) -> None:
    """`fc_norm` in place of `norm`; one channel, with its own mean and std."""
    save_file(model(global_pool="avg", in_chans=1).state_dict(), tmp_path / "a.safetensors")
    teacher = load_teacher(NAME, tmp_path / "a.safetensors", given=GivenInput((0.25,), (0.5,)))
    assert (teacher.model.global_pool, teacher.spec.channels, teacher.spec.mean) == ("avg", 1, (0.25,))


def test_average_pooling_without_a_class_token(tmp_path: Path) -> None:
    """The grid is counted without it, and the answers are the model's own."""
    mine = model(global_pool="avg", class_token=False)
    save_file(mine.state_dict(), tmp_path / "a.safetensors")
    picture = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_teacher(NAME, tmp_path / "a.safetensors").logits(picture), mine(picture).detach())


def test_hugging_face_deit_without_its_teachers_head(tmp_path: Path) -> None:
    """Its distillation token is read by no classifier, and by attention all the same."""
    mine = model(reg_tokens=1)
    nn.init.normal_(mine.reg_token)
    theirs = hugging_face({k.replace("reg_token", "dist_token"): v for k, v in mine.state_dict().items()}, "deit.")
    assert "deit.embeddings.distillation_token" in theirs
    save_file(theirs, tmp_path / "a.safetensors")
    picture = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_teacher(NAME, tmp_path / "a.safetensors").logits(picture), mine(picture).detach())


def test_one_output_is_refused() -> None:
    """Of a model as of a file."""
    with pytest.raises(InputError, match="answers for 1 class"):
        require_plain_vit(model(num_classes=1), "mine")


def folder(root: Path, state: dict[str, Tensor], **about: Any) -> Path:
    root.mkdir(exist_ok=True)
    save_file(state, root / "model.safetensors")
    settings = {
        "mean": [0.25] * 3,
        "std": [0.5] * 3,
        "crop_pct": 0.75,
        "interpolation": "bilinear",
        "input_size": [3, 32, 32],
    }
    config = {"architecture": NAME, "num_classes": 10, "pretrained_cfg": settings, **about}
    (root / "config.json").write_text(json.dumps(config))
    return root


def test_a_config_beside_the_weights_is_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Preprocessing and labels, by --checkpoint FILE, by its folder, and as local-dir:."""
    names = [f"class {number}" for number in range(10)]
    path = folder(tmp_path / "mine", state, label_names=names)
    for teacher in (
        load_teacher(NAME, path / "model.safetensors"), load_teacher(NAME, path), load_teacher(f"local-dir:{path}"),
    ):  # fmt: skip
        spec = teacher.spec
        assert (spec.mean, spec.std, spec.crop, spec.interpolation) == ((0.25,) * 3, (0.5,) * 3, 0.75, "bilinear")
        assert teacher.labels == tuple(names)
        assert teacher.notes == ()
    given = load_teacher(NAME, path, given=GivenInput(crop=1.0, mean=(0.5,) * 3))
    assert (given.spec.crop, given.spec.mean, given.spec.std) == (1.0, (0.5,) * 3, (0.5,) * 3)


def test_what_is_assumed_is_said(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Weights of one's own with nothing beside them take the settings of the name."""
    save_file(state, tmp_path / "a.safetensors")
    (note,) = load_teacher(NAME, tmp_path / "a.safetensors").notes
    assert "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5) of vit_tiny_patch16_224 are taken" in note
    assert load_teacher(NAME, tmp_path / "a.safetensors", given=GivenInput((0.25,) * 3, (0.5,) * 3)).notes == ()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"architecture": "vit_small_patch16_224"}, "is a vit_small_patch16_224 by its config.json, not a vit_tiny"),
        ({"problem_type": "multi_label_classification"}, "multi-label teacher, whose answers are no softmax"),
        ({"label_names": ["one"]}, "names 1 classes, the teacher has 10"),
        ({"pretrained_cfg": {"mean": ["a"]}}, "has mean \\['a'\\]: it must be a list of numbers"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std 0,0,0 is not above 0"),
        ({"pretrained_cfg": {"interpolation": "nearest"}}, "unknown input.interpolation 'nearest': take one of"),
        ({"pretrained_cfg": {"interpolation": 3}}, "has interpolation 3: it must be as timm writes it"),
        ({"pretrained_cfg": {"crop_pct": "0.9"}}, "has crop_pct '0.9': it must be as timm writes it"),
        ({"pretrained_cfg": {"mean": [True] * 3}}, "has mean .* it must be a list of numbers"),
        ({"num_classes": 7}, "is for 7 classes, its weights are for 10"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, r"has model_args \['checkpoint_path'\]: only a model of"),
        ({"model_args": [1]}, r"has model_args \[1\]: only a model of"),
        ({"model_args": {"num_heads": 0}}, "timm cannot build"),
        ({"model_args": {"depth": "two"}}, "timm cannot build"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    about: dict[str, Any], said: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """By the value that is wrong."""
    with pytest.raises(InputError, match=said):
        load_teacher(NAME, folder(tmp_path / "mine", state, **about))


@pytest.mark.parametrize(
    "changes",
    [{"num_heads": 6}, {"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg"}, {"init_values": 1e-5},
     {"qkv_bias": False}, {"mlp_ratio": 2}],
    ids=str,
)  # fmt: skip
def test_a_config_tells_what_the_tensors_cannot(changes: dict[str, Any], tmp_path: Path) -> None:
    """The number of heads, and the pooling where there is no norm to tell it by: the answers are the model's own."""
    mine = model(**changes)
    args = {**changes, "drop_path_rate": 0.1}
    path = folder(tmp_path / "mine", mine.state_dict(), model_args=args, global_pool=mine.global_pool)
    picture = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_teacher(NAME, path).logits(picture), mine(picture).detach())


def test_a_config_of_timm_tells_the_pooling_without_arguments(tmp_path: Path) -> None:
    """global_pool stands in every config.json that timm writes."""
    mine = model(global_pool="avg", fc_norm=False)
    path = folder(tmp_path / "mine", mine.state_dict(), global_pool="avg")
    picture = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_teacher(NAME, path).logits(picture), mine(picture).detach())


def test_labels_may_be_a_table(state: dict[str, Tensor], tmp_path: Path) -> None:
    """From each class's number to its name, in any order."""
    table = {str(number): f"class {number}" for number in reversed(range(10))}
    path = folder(tmp_path / "mine", state, label_names=table)
    assert load_teacher(NAME, path).labels == tuple(f"class {number}" for number in range(10))


HUGGING_FACE_CONFIG = {"model_type": "vit", "num_attention_heads": 3, "hidden_act": "gelu", "image_size": 32}
PICTURES = {"image_mean": [0.25] * 3, "image_std": [0.5] * 3, "resample": 2, "size": {"height": 32, "width": 32}}


def hugging_face_folder(root: Path, state: dict[str, Tensor], pictures: dict[str, Any], **about: Any) -> Path:
    torch.save(hugging_face(state), root / "pytorch_model.bin")
    (root / "config.json").write_text(json.dumps(HUGGING_FACE_CONFIG | about))
    (root / "preprocessor_config.json").write_text(json.dumps(pictures))
    return root


@pytest.mark.parametrize(
    ("change", "crop", "interpolation"),
    [({}, 1.0, "bilinear"), ({"resample": 3, "size": 40, "crop_size": 32, "do_center_crop": True}, 0.8, "bicubic"),
     ({"size": {"shortest_edge": 64}, "crop_size": {"height": 32}, "do_center_crop": True}, 0.5, "bilinear")],
)  # fmt: skip
def test_a_folder_of_hugging_face_is_read(
    change: dict[str, Any], crop: float, interpolation: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """Weights, classes and preprocessing, so that nothing is assumed."""
    labels = {str(number): f"class {number}" for number in range(10)}
    teacher = load_teacher(NAME, hugging_face_folder(tmp_path, state, PICTURES | change, id2label=labels))
    spec = teacher.spec
    assert (spec.mean, spec.std, spec.crop, spec.interpolation) == ((0.25,) * 3, (0.5,) * 3, crop, interpolation)
    assert (teacher.labels, teacher.notes) == (tuple(labels.values()), ())
    unnamed = {str(number): f"LABEL_{number}" for number in range(10)}
    assert load_teacher(NAME, hugging_face_folder(tmp_path, state, PICTURES, id2label=unnamed)).labels is None


@pytest.mark.parametrize(
    ("pictures", "about", "said"),
    [
        ({}, {"num_attention_heads": 6}, "has 6 heads by its config.json, .* has 3: name its own"),
        ({}, {"hidden_act": "relu"}, "has the activation 'relu': only a teacher with 'gelu'"),
        ({}, {"problem_type": "multi_label_classification"}, "multi-label teacher"),
        ({"rescale_factor": 1 / 127.5}, {}, "does not scale pixels to 0..1"),
        ({"resample": 0}, {}, "has interpolation 0: it must be"),
        ({"image_std": [0, 1, 1]}, {}, "std 0,1,1 is not above 0"),
    ],
)
def test_what_hugging_face_does_otherwise_is_refused(
    pictures: dict[str, Any], about: dict[str, Any], said: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """By the value that is in the way."""
    with pytest.raises(InputError, match=said):
        load_teacher(NAME, hugging_face_folder(tmp_path, state, PICTURES | pictures, **about))


def test_students_are_read_as_teachers_are(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Wrappers, the choice among several sets, and what stands beside the file."""
    save_file(state, tmp_path / "a.safetensors")
    teacher = load_teacher(NAME, tmp_path / "a.safetensors")
    path = folder(tmp_path / "mine", state) / "b.pth"
    torch.save(
        {"model_ema": {key: value + 1 for key, value in state.items()}, "model": prefixed(state, "module.")}, path
    )
    student = load_student(NAME, teacher, path)
    assert torch.equal(student.model.state_dict()["norm.bias"], state["norm.bias"])
    assert (student.spec.mean, student.spec.std) == ((0.25,) * 3, (0.5,) * 3)
    assert "'model' was taken" in student.notes[0]
    (path.parent / "config.json").write_text('{"architecture": "vit_small_patch16_224", "pretrained_cfg": {}}')
    with pytest.raises(InputError, match=r"is a vit_small_patch16_224 by its config\.json, not a vit_tiny"):
        load_student(NAME, teacher, path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mean": (128.0,)}, "mean 128 is not within 0..1"),
        ({"std": (0.0,)}, "std 0 is not above 0"),
        ({"crop": 0.0}, "crop 0.0 must be above 0"),
        ({"crop": float("nan")}, "input.crop must be finite, not nan"),
        ({"interpolation": "area"}, "unknown input.interpolation 'area': take one of bicubic"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    """In one sentence, before anything is loaded."""
    with pytest.raises(InputError, match=said):
        GivenInput(**given)


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    """It exists, and holds no weights."""
    with pytest.raises(InputError, match=r"is a folder without model\.safetensors"):
        load_teacher(NAME, tmp_path)
    with pytest.raises(InputError, match=r"is no folder with a config\.json"):
        load_teacher(f"local-dir:{tmp_path}")


def test_a_hub_without_network_is_the_machines_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for other pretrained weights."""
    monkeypatch.setattr("inversion.teacher._hub_resolves", lambda: False)
    with pytest.raises(MachineError, match=r"weights of 'hf-hub:some/vit' cannot be fetched \(no network\)"):
        load_teacher("hf-hub:some/vit")
