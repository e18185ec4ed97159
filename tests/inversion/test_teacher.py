"""Teachers: which are accepted, what is read from a checkpoint, and how the others are refused."""

import os
import pickle
import re
import socket
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from inversion import teacher
from inversion.checkpoint import read_checkpoint
from inversion.errors import InputError, MachineError
from inversion.teacher import ALIASES, InputSpec, Teacher, digits_vit, load_teacher, require_plain_vit, weights_sha256
from pipeline.pictures.valdata import digits_held_out

TINY = {"embed_dim": 48, "depth": 1, "num_heads": 3}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> str:
    """A DeiT-Tiny/16 at 224 with one thin block, so that checkpoints are small: its timm name."""
    create = timm.create_model

    def create_narrow(name: str, pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        return create(name, pretrained=pretrained, **{**TINY, **kwargs})

    monkeypatch.setattr(timm, "create_model", create_narrow)
    return "deit_tiny_patch16_224"


def vit(**kwargs: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{"img_size": 224, "patch_size": 16, **TINY, **kwargs})


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def refusal(name: str, checkpoint: Path | None = None) -> str:
    """The one sentence with which this teacher is refused."""
    with pytest.raises(InputError) as caught:
        load_teacher(name, checkpoint)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def digits() -> Teacher:
    return load_teacher("digits_vit")


def test_digits_vit_knows_real_digits(digits: Teacher) -> None:
    """The shipped teacher reads at least 97.5% of 500 handwritten digits that it never saw."""
    data = digits_held_out(digits.spec)
    correct = sum(int((digits.logits(images).argmax(1) == labels).sum()) for images, labels in data)
    assert correct >= 0.975 * data.count == 487.5


def test_digits_vit_as_documented(digits: Teacher) -> None:
    """The shipped teacher is what the package says: its grid, its input, its precision, its size on disk."""
    assert digits.spec == InputSpec((32, 32), (0.5,), (0.5,), "bicubic", 1.0, 10)
    assert (digits.grid, digits.patch_size, digits.num_patches) == ((8, 8), (4, 4), 64)
    assert teacher.DIGITS_WEIGHTS.stat().st_size <= 2_000_000
    assert {value.dtype for value in read_checkpoint(teacher.DIGITS_WEIGHTS).values()} == {torch.float16}
    assert digits.model.pos_embed.dtype == torch.float32


def test_teacher_is_frozen(digits: Teacher) -> None:
    """No weight of a teacher asks for a gradient, and dropout and the like are off."""
    assert not digits.model.training
    assert not any(weight.requires_grad for weight in digits.model.parameters())
    assert str(digits.device) == "cpu"


def test_logits_do_not_depend_on_the_batch(digits: Teacher) -> None:
    """Splitting into batches loses and reorders nothing."""
    images = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = digits.logits(images)
    assert logits.shape == (5, 10)
    # matrix products of another height may sum in another order
    torch.testing.assert_close(digits.logits(images, batch=2), logits, rtol=1e-4, atol=1e-4)


def test_pixel_bounds_are_black_and_white() -> None:
    """The valid range of normalised pixels is what black and white become, channel by channel."""
    low, high = InputSpec((8, 8), (0.5, 0.25), (0.5, 0.125), "bicubic", 1.0, 2).pixel_bounds()
    assert low.tolist() == [-1.0, -2.0]
    assert high.tolist() == [1.0, 6.0]


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
@pytest.mark.usefixtures("narrow")
def test_alias_is_the_timm_model(alias: str, name: str, tmp_path: Path) -> None:
    """Each short name is timm's DeiT/16 at 224, and the teacher keeps the name it was asked for."""
    path = saved(tmp_path / "a.safetensors", vit().state_dict())
    short, full = load_teacher(alias, path), load_teacher(name, path)
    assert (short.name, full.name) == (alias, name)
    assert short.sha256 == full.sha256
    assert short.spec == full.spec
    assert short.spec == InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, 1000)


def test_random_weights_need_no_file(narrow: str) -> None:
    """`random_weights` makes a teacher with no checkpoint and no download."""
    assert load_teacher(narrow, random_weights=True).spec.num_classes == 1000


@pytest.mark.usefixtures("narrow")
def test_class_count_and_size_follow_the_checkpoint(tmp_path: Path) -> None:
    """A fine-tuned checkpoint needs no flags: its head gives the classes, its positions the input size."""
    model = vit(img_size=112, num_classes=7)
    loaded = load_teacher("deit_tiny", saved(tmp_path / "a.safetensors", model.state_dict()))
    assert loaded.spec.num_classes == 7
    assert loaded.spec.size == (112, 112)
    assert loaded.spec.crop == 1.0
    assert loaded.grid == (7, 7)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema"])
@pytest.mark.usefixtures("narrow")
def test_sha256_does_not_depend_on_the_file_format(wrapper: str | None, tmp_path: Path) -> None:
    """The same weights have the same sha256 from safetensors, from a .pth and from a training checkpoint."""
    state = vit().state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "a.pth")
    first = load_teacher("deit_tiny", saved(tmp_path / "a.safetensors", state))
    assert load_teacher("deit_tiny", tmp_path / "a.pth").sha256 == first.sha256 == weights_sha256(state)


def test_sha256_sees_every_weight() -> None:
    """One changed number, name, type or shape is another sha256."""
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 1.0000001)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(1)},
    ]
    assert len({weights_sha256(value) for value in [state, *others]}) == 5
    assert weights_sha256(dict(reversed(state.items()))) == weights_sha256(state)


@pytest.mark.usefixtures("narrow")
def test_data_parallel_prefix_is_dropped(tmp_path: Path) -> None:
    """A checkpoint saved from DataParallel loads as any other."""
    state = vit().state_dict()
    path = saved(tmp_path / "a.safetensors", {f"module.{key}": value for key, value in state.items()})
    assert load_teacher("deit_tiny", path).sha256 == weights_sha256(state)


@pytest.mark.parametrize(
    ("name", "nearest"), [("deit_tinny", "deit_tiny"), ("digit_vit", "digits_vit"), ("vit_bas_patch16_224", "vit_base")]
)
def test_unknown_name(name: str, nearest: str) -> None:
    """A mistyped name is answered with the names that it resembles."""
    text = refusal(name)
    assert text.startswith(f"unknown teacher {name!r}: the nearest names are ")
    assert nearest in text


def test_unknown_name_that_resembles_none() -> None:
    """A name like no other is answered with the short names."""
    assert refusal("zzzz") == f"unknown teacher 'zzzz': the nearest names are {', '.join([*ALIASES, 'digits_vit'])}."


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_resnet", "it is a ResNet"),
        ("test_convnext", "it is a ConvNeXt"),
        ("vit_tiny_r_s16_p8_224", "its patches are embedded by a HybridEmbed"),
        ("vit_base_patch16_siglip_224", "it pools with attention"),
    ],
)
def test_other_families_are_refused(name: str, reason: str) -> None:
    """A convolutional network, a hybrid or a SigLIP is refused with what it is and which kinds work."""
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(InputError, match="cannot be inverted") as caught:
        require_plain_vit(model, name)
    assert reason in str(caught.value)
    assert "DeiT-III" in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"num_classes": 0}, "it has no classifier"),
        ({"pos_embed": "none"}, "it has no absolute position embedding"),
        ({"global_pool": "max"}, "its pooling is 'max'"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "its blocks are not the plain ones"),
        ({"attn_layer": "diff"}, "its blocks are not the plain ones"),
    ],
)
def test_other_vits_are_refused(kwargs: dict[str, object], reason: str) -> None:
    """A ViT that the sparse forward would compute differently is refused."""
    with pytest.raises(InputError, match=f"teacher 'mine' cannot be inverted: {reason}"):
        require_plain_vit(vit(**kwargs), "mine")


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"global_pool": "avg", "class_token": False}, {"reg_tokens": 4}, {"init_values": 1e-6}, {"pre_norm": True}],
)
def test_plain_vits_are_accepted(kwargs: dict[str, object]) -> None:
    """Class token, average pooling, register tokens, layer scale (DeiT-III) and CLIP's first norm are all plain."""
    require_plain_vit(vit(**kwargs), "mine")


def test_checkpoint_missing(tmp_path: Path) -> None:
    """A checkpoint that is not there is named, for the built-in teacher too."""
    for name in ("deit_tiny", "digits_vit"):
        assert "none.pth' does not exist: give the path of a .safetensors or .pth file" in refusal(
            name, tmp_path / "none.pth"
        )


def test_checkpoint_truncated(tmp_path: Path) -> None:
    """Half a file is refused as such, in either format."""
    state = vit().state_dict()
    torch.save(state, tmp_path / "a.pth")
    saved(tmp_path / "a.safetensors", state)
    for path, words in ((tmp_path / "a.pth", "is truncated"), (tmp_path / "a.safetensors", "not a whole safetensors")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert words in refusal("digits_vit", path)


@pytest.mark.usefixtures("narrow")
def test_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    """Weights of another model are refused with the first tensor that differs, never loaded in part."""
    convolutional = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8))
    other = saved(tmp_path / "r.safetensors", convolutional.state_dict())
    assert "is not a checkpoint of 'deit_tiny'" in refusal("deit_tiny", other)
    wider = saved(tmp_path / "w.safetensors", vit(embed_dim=96).state_dict())
    assert "size mismatch for " in refusal("deit_tiny", wider)
    scalar = saved(tmp_path / "s.safetensors", vit().state_dict() | {"head.weight": torch.tensor(1.0)})
    assert "size mismatch for head.weight" in refusal("deit_tiny", scalar)
    deeper = saved(tmp_path / "d.safetensors", vit(depth=2).state_dict())
    assert re.search(r"'blocks\.1\.[a-z0-9.]+' is not expected and 11 more differ", refusal("deit_tiny", deeper))
    headless = {key: value for key, value in vit().state_dict().items() if key != "norm.bias"}
    assert "'norm.bias' is missing; it is not" in refusal("deit_tiny", saved(tmp_path / "h.safetensors", headless))


def test_digits_vit_with_another_checkpoint(tmp_path: Path) -> None:
    """The built-in teacher takes a checkpoint of its own architecture and no other."""
    state = digits_vit().state_dict()
    assert load_teacher("digits_vit", saved(tmp_path / "a.safetensors", state)).sha256 == weights_sha256(state)
    other = saved(tmp_path / "b.safetensors", vit().state_dict())
    assert "is not a checkpoint of 'digits_vit'" in refusal("digits_vit", other)


class Shell:
    """Unpickled, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["torch.save", "bare pickle"])
def test_malicious_pickle_is_not_executed(legacy: bool, tmp_path: Path) -> None:
    """A .pth that carries a command is refused and the command never runs."""
    mark = tmp_path / "executed"
    payload = {"model": Shell(f"touch {mark}")}
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(payload, protocol=2)) if legacy else torch.save(payload, path)
    assert "holds more than plain tensors, so it was not read" in refusal("deit_tiny", path)
    assert not mark.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_non_finite_numbers(value: float, tmp_path: Path) -> None:
    """A diverged checkpoint is refused with the tensor's name."""
    path = saved(tmp_path / "a.safetensors", {"norm.weight": torch.tensor([1, value])})
    assert "has non-finite numbers in 'norm.weight'" in refusal("digits_vit", path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_checkpoint_in_another_number_format(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights that are quantized already, or complex, are refused: loaded as floats they would be wrong."""
    path = saved(tmp_path / "a.safetensors", {"norm.weight": torch.zeros(4).to(dtype)})
    assert f"has 'norm.weight' as torch.strided {dtype}: save its weights as float32" in refusal("digits_vit", path)


def test_checkpoint_beyond_float32(tmp_path: Path) -> None:
    """A float64 weight that float32 cannot hold counts as non-finite."""
    path = saved(tmp_path / "a.safetensors", {"norm.weight": torch.full((4,), 1e300, dtype=torch.float64)})
    assert "has non-finite numbers in 'norm.weight'" in refusal("digits_vit", path)


@pytest.mark.usefixtures("narrow")
def test_unknown_pretrained_tag(tmp_path: Path) -> None:
    """A timm name with a tag that timm does not know is refused, with a checkpoint too."""
    path = saved(tmp_path / "a.safetensors", vit().state_dict())
    assert "Invalid pretrained tag (nope)" in refusal("deit_tiny_patch16_224.nope", path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], {1: torch.zeros(1)}])
def test_pth_without_weights(content: object, tmp_path: Path) -> None:
    """A .pth that holds no state_dict is refused, with what to save."""
    torch.save(content, tmp_path / "a.pth")
    assert "holds no state_dict: save model.state_dict()" in refusal("deit_tiny", tmp_path / "a.pth")


@pytest.mark.usefixtures("narrow")
def test_pretrained_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, pretrained weights end in exit code 3 and the way out, at once."""

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    create = timm.create_model

    def create_offline(name: str, pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        if pretrained:
            assert huggingface_hub.constants.HF_HUB_OFFLINE, "ten retries would follow"
            raise RuntimeError("the hub cannot be reached.\nmore lines")
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_offline)
    with pytest.raises(MachineError) as caught:
        load_teacher("deit_tiny")
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "the pretrained weights of 'deit_tiny' cannot be fetched (no network): "
        "give them with --checkpoint FILE (.safetensors or .pth)."
    )


def test_a_hub_that_answers_no_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network, the first line of what the hub said stands in the sentence."""
    create = timm.create_model

    def refused(name: str, pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        if pretrained:
            raise RuntimeError("404 for deit_tiny.\nmore lines")
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(teacher, "_hub_resolves", lambda: True)
    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(MachineError, match=r"cannot be fetched \(404 for deit_tiny\): give them with --checkpoint"):
        load_teacher("deit_tiny")


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    """A compressed archive of zeros, and one number shown as a million: neither fills the memory."""
    torch.save({"head.weight": torch.zeros(1000, 100)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"bomb\.pth' unpacks to \d+ bytes, more than it has"):
        load_teacher("digits_vit", tmp_path / "bomb.pth")
    torch.save({"head.weight": torch.zeros(1).expand(1000, 1000)}, tmp_path / "wide.pth")
    with pytest.raises(InputError, match=r"claims more numbers in 'head.weight' than it holds"):
        load_teacher("digits_vit", tmp_path / "wide.pth")


@pytest.mark.parametrize(("key", "shape"), [("head.weight", (10**7, 1)), ("pos_embed", (1, 3001**2, 1))])
def test_a_tensor_of_another_width_sizes_no_model(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Ten million classes or a picture of 48,000 pixels would be gigabytes; the checkpoint just does not fit."""
    save_file({key: torch.zeros(shape)}, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="does not fit"):
        load_teacher("deit_tiny", tmp_path / "t.safetensors")


def test_an_archive_that_cannot_be_looked_through_is_refused(tmp_path: Path) -> None:
    """torch would read it, and with it whatever its sizes hide."""
    torch.save({"head.weight": torch.zeros(10, 4)}, tmp_path / "t.pth")
    data = bytearray((tmp_path / "t.pth").read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 255  # the version that unpacking needs
    (tmp_path / "t.pth").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.pth' is truncated or holds more than plain tensors"):
        load_teacher("digits_vit", tmp_path / "t.pth")
