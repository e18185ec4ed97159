"""A trained timm Vision Transformer with frozen weights, and what its input looks like."""

from __future__ import annotations

import copy
import difflib
import math
import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from inversion.checkpoint import first_line, read_weights, weights_file, weights_sha256
from inversion.config import CONFIG, Config, GivenInput, Interpolation, read_config
from inversion.errors import InputError, MachineError
from inversion.names import as_timm
from inversion.plainvit import PATCH_EMBED, PlainViT

ALIASES = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
}
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
KERNEL = f"{PATCH_EMBED}.weight"
DIGITS_VIT = "digits_vit"
DIGITS_WEIGHTS = Path(__file__).parent / "weights" / "digits_vit.safetensors"
PLAIN_VIT = (
    "a plain Vision Transformer works: DeiT, DeiT-distilled, DeiT-III, ViT augreg, CLIP ViT, "
    "with class token or average pooling"
)


@dataclass(frozen=True)
class InputSpec:
    """What a picture must look like before it enters the teacher.

    `size` is (height, width) in pixels; `mean` and `std` are per channel, for pixels in 0..1; `crop` is the
    share of the resized picture's side that the centre crop keeps.

        >>> from inversion import InputSpec
        >>> InputSpec((32, 32), (0.5,), (0.25,), "bicubic", 1.0, 10).pixel_bounds()
        (tensor([-2.]), tensor([2.]))
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float
    num_classes: int

    @property
    def channels(self) -> int:
        return len(self.mean)

    def pixel_bounds(self) -> tuple[Tensor, Tensor]:
        """Normalised values of a black and of a white pixel, each [C]: the valid range of real images."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (0 - mean) / std, (1 - mean) / std


@dataclass(frozen=True)
class Teacher:
    """A timm plain `VisionTransformer` in eval mode whose weights never get a gradient.

    `sha256` covers names, types, shapes and bytes of the weights, so it does not depend on the file's format.
    `labels` are the classes' names where a config.json says them; `notes` what was assumed or left out, in sentences.

        >>> from inversion import load_teacher
        >>> teacher = load_teacher("digits_vit")
        >>> teacher.name, teacher.grid, teacher.spec.num_classes
        ('digits_vit', (8, 8), 10)
    """

    model: PlainViT
    spec: InputSpec
    name: str
    sha256: str
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_model(
        cls,
        model: Any,
        name: str | None = None,
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        crop: float | None = None,
        interpolation: Interpolation | None = None,
    ) -> Teacher:
        """A teacher of a live timm plain ViT: a frozen float32 copy where `model` is, which is left as it was.

        How pictures enter it follows `model.pretrained_cfg`, unless it is given here (`mean` and `std` for pixels in
        0..1). Raises `InputError` for another kind of model, and where mean and std are not known.

            >>> import timm
            >>> from inversion import Teacher
            >>> live = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64)
            >>> Teacher.from_model(live).spec.size
            (64, 64)
        """
        given = GivenInput(tuple(mean), tuple(std), crop, interpolation)
        cfg = getattr(model, "pretrained_cfg", None) or {}
        name = name or cfg.get("architecture") or type(model).__name__
        require_plain_vit(model, name)
        if missing := sorted({"mean", "std"} - cfg.keys() - given.settings().keys()):
            told = " and ".join(missing)
            raise InputError(f"teacher {name!r} does not say its {told}: give them for pixels in 0..1, as in (0.5,).")
        copied: PlainViT = copy.deepcopy(model).float()
        size = (copied.patch_embed.proj.in_channels, *copied.patch_embed.img_size)
        copied.pretrained_cfg = {"input_size": size, **cfg}
        return _freeze(name, copied, str(copied.pos_embed.device), given)

    @property
    def patch_size(self) -> tuple[int, int]:
        return self.model.patch_embed.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.model.patch_embed.grid_size

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        return self.model.pos_embed.device

    @torch.inference_mode()
    def logits(self, images: Tensor, batch: int = 64) -> Tensor:
        """Logits [M, num_classes] of dense normalised images [M, C, H, W], on the CPU."""
        return torch.cat([self.model(part.to(self.device)).float().cpu() for part in images.split(batch)])


def load_teacher(
    name: str,
    checkpoint: Path | str | None = None,
    *,
    checkpoint_key: str | None = None,
    given: GivenInput | None = None,
    random_weights: bool = False,
    device: str = "cpu",
) -> Teacher:
    """The teacher `name`: an alias, `digits_vit`, any timm plain ViT, `local-dir:/path`, or `hf-hub:org/name`.

    Weights come from `checkpoint` (safetensors, or a .pth that holds plain data; `checkpoint_key` where it holds
    several sets), else from the package (`digits_vit`) or timm's pretrained ones. Class count, channels, pooling and
    input size follow the checkpoint's tensors; preprocessing what is `given`, a config.json beside the weights, and
    timm's settings for the name, in this order.

    Raises `InputError` for a name, architecture or checkpoint that cannot be used, `MachineError` where
    pretrained weights cannot be fetched.

        >>> from inversion import load_teacher
        >>> load_teacher("deit_tiny", random_weights=True).num_patches
        196
    """
    given = given or GivenInput()
    if checkpoint_key is not None and checkpoint is None and not name.startswith(LOCAL_DIR):
        raise InputError(f"--checkpoint-key {checkpoint_key!r} chooses in a file: add --checkpoint.")
    if name.startswith(LOCAL_DIR):
        return _from_folder(name, checkpoint, checkpoint_key, given, device)
    if name == DIGITS_VIT:
        model, notes = _load_digits_vit(checkpoint, random_weights, checkpoint_key)
        config = config_beside(checkpoint, name) if checkpoint is not None else None
        return _freeze(name, model, device, given, config, notes)
    hub = name.startswith(HF_HUB)
    timm_name = name if hub else timm_name_of(name)
    if checkpoint is not None:
        if hub:
            raise InputError(f"teacher {name!r} brings its own weights: leave --checkpoint out, or name timm's model.")
        config = config_beside(checkpoint, timm_name)
        return _from_file(name, timm_name, checkpoint, checkpoint_key, config, given, device)
    if not hub:
        model = create_model(timm_name)
        require_plain_vit(model, name)
    if hub or not random_weights:
        model = create_pretrained(timm_name, name, "--checkpoint FILE")
        require_plain_vit(model, name)
    return _freeze(name, model, device, given)


def _from_folder(name: str, checkpoint: Path | str | None, key: str | None, given: GivenInput, device: str) -> Teacher:
    """A folder that holds config.json and weights, as timm and `pipeline distill` write it."""
    folder = Path(name.removeprefix(LOCAL_DIR))
    if checkpoint is not None:
        raise InputError(f"teacher {name!r} brings its own weights: leave --checkpoint out.")
    config = read_config(folder) if folder.is_dir() else None
    if config is None or config.architecture is None:
        raise InputError(f"teacher {name!r} is no folder with a {CONFIG} as timm writes it: name timm's model instead.")
    if config.architecture == DIGITS_VIT:
        model, notes = _load_digits_vit(folder, False, key)
        return _freeze(name, model, device, given, config, notes)
    return _from_file(name, timm_name_of(config.architecture), folder, key, config, given, device)


def _from_file(
    name: str, timm_name: str, checkpoint: Path | str, key: str | None, config: Config | None, given: GivenInput,
    device: str,
) -> Teacher:  # fmt: skip
    state, notes = read_weights(checkpoint, key)
    told = config.model_args if config else {}
    with torch.device("meta"):
        probe = create_model(timm_name, **told)
    require_plain_vit(probe, name)
    state, left_out = as_timm(state, probe.state_dict().keys())
    shape = _shape_from_state(probe, state, name, checkpoint)
    if config and config.pool and config.pool != shape.get("global_pool", probe.global_pool):
        # two poolings of one set of tensors: only the config tells which
        shape |= {"global_pool": config.pool, "fc_norm": "fc_norm.weight" in state}
    model = create_model(timm_name, **told | shape)
    require_same_heads(model, config, name, checkpoint)
    require_plain_vit(model, name)
    load_state(model, state, name, checkpoint)
    said = (*notes, *left_out)
    settings = (config.settings if config else {}) | given.settings()
    if not {"mean", "std"} <= settings.keys():
        cfg = model.pretrained_cfg
        said += (
            f"{str(checkpoint)!r} does not say how pictures enter it: mean {tuple(cfg['mean'])}, std "
            f"{tuple(cfg['std'])} of {timm_name} are taken; give others with --mean and --std.",
        )
    return _freeze(name, model, device, given, config, said)


def config_beside(checkpoint: Path | str, timm_name: str) -> Config | None:
    """What stands beside a checkpoint; `InputError` where it is of another architecture than `timm_name`."""
    config = read_config(weights_file(checkpoint).parent)
    if config and config.architecture not in (None, timm_name.split(".")[0]):
        raise InputError(
            f"{str(checkpoint)!r} is a {config.architecture} by its {CONFIG}, not a {timm_name}: name its own "
            "architecture with --teacher."
        )
    return config


def require_same_heads(model: PlainViT, config: Config | None, name: str, path: Path | str) -> None:
    """The tensors do not tell how many heads their attention has, so that none other would be noticed."""
    heads = model.blocks[0].attn.num_heads
    if config and config.heads not in (None, heads):
        raise InputError(
            f"{str(path)!r} has {config.heads} heads by its {CONFIG}, {name!r} has {heads}: name its own architecture."
        )


def digits_vit() -> PlainViT:
    """The architecture of the built-in teacher: 32x32 grey pictures, patch 4, 64 patches, 10 classes."""
    model = VisionTransformer(img_size=32, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=6, num_heads=3)
    model.pretrained_cfg = model.default_cfg = {
        "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic", "crop_pct": 1.0,
        "input_size": (1, 32, 32), "architecture": DIGITS_VIT,
    }  # fmt: skip
    return model


def require_plain_vit(model: object, name: str) -> None:
    """Refuse whatever the sparse forward would compute differently from timm."""
    reason = None
    if not isinstance(model, VisionTransformer):
        reason = f"it is a {type(model).__name__}"
    elif model.pos_embed is None:
        reason = "it has no absolute position embedding"
    elif model.dynamic_img_size:
        reason = "its input size is dynamic"
    elif model.attn_pool is not None:
        reason = "it pools with attention"
    elif model.global_pool not in ("token", "avg"):
        reason = f"its pooling is {model.global_pool!r}"
    elif model.num_classes < 1:
        reason = "it has no classifier"
    elif model.num_classes < 2:
        reason = f"it answers for {model.num_classes} class, and answers are compared as softmax over classes"
    elif model.global_pool == "token" and model.cls_token is None:
        reason = "it has no class token"
    elif type(model.patch_embed).__name__ != "PatchEmbed":
        reason = f"its patches are embedded by a {type(model.patch_embed).__name__}"
    elif not all(_is_plain_block(block) for block in model.blocks):
        reason = f"its blocks are not the plain ones ({type(model.blocks[0]).__name__})"
    if reason:
        raise InputError(f"teacher {name!r} cannot be inverted: {reason}; {PLAIN_VIT}.")


def _is_plain_block(block: nn.Module) -> bool:
    if type(block).__name__ != "Block" or type(block.attn).__name__ != "Attention":
        return False
    return getattr(block.attn, "gate", None) is None


def _freeze(
    name: str,
    model: PlainViT,
    device: str,
    given: GivenInput,
    config: Config | None = None,
    notes: tuple[str, ...] = (),
) -> Teacher:
    settings = (config.settings if config else {}) | given.settings()
    channels = model.patch_embed.proj.in_channels
    cfg = {**model.pretrained_cfg, **settings}
    for what in ("mean", "std"):
        if len(cfg[what]) != channels:
            raise InputError(
                f"teacher {name!r} takes {channels} channels and has {len(cfg[what])} numbers of {what}: "
                f"give --{what} with {channels}."
            )
    model.pretrained_cfg = cfg
    model = model.eval().requires_grad_(False).to(device)
    spec = input_spec(model)
    if given.crop is not None:
        spec = replace(spec, crop=given.crop)
    labels = config.labels if config else None
    if labels and len(labels) != spec.num_classes:
        raise InputError(f"the {CONFIG} of {name!r} names {len(labels)} classes, the teacher has {spec.num_classes}.")
    if config and config.classes not in (None, spec.num_classes):
        raise InputError(
            f"the {CONFIG} of {name!r} is for {config.classes} classes, its weights are for {spec.num_classes}."
        )
    return Teacher(model, spec, name, weights_sha256(model.state_dict()), labels, notes)


def input_spec(model: PlainViT) -> InputSpec:
    """What timm's configuration of `model` and its own shapes say of its input."""
    cfg = model.pretrained_cfg
    height, width = model.patch_embed.img_size
    return InputSpec(
        size=(height, width),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg.get("interpolation") or "bicubic",
        # a checkpoint at another size was not fitted to the timm default's crop
        crop=float(cfg.get("crop_pct") or 1.0) if (height, width) == tuple(cfg["input_size"][1:]) else 1.0,
        num_classes=model.num_classes,
    )


def _load_digits_vit(
    checkpoint: Path | str | None, random_weights: bool, key: str | None
) -> tuple[PlainViT, tuple[str, ...]]:
    model = digits_vit()
    if random_weights:
        return model, ()
    path = checkpoint or DIGITS_WEIGHTS
    state, notes = read_weights(path, key)
    state, left_out = as_timm(state, model.state_dict().keys())
    load_state(model, {name: value.float() for name, value in state.items()}, DIGITS_VIT, path)
    return model, (*notes, *left_out)


def timm_name_of(name: str) -> str:
    """timm's name for an alias or a name of timm's; `InputError` with the nearest names for another."""
    timm_name = ALIASES.get(name, name)
    if not timm.is_model(timm_name.split(".")[0]):
        known = [
            *ALIASES,
            DIGITS_VIT,
            *timm.list_models(module="vision_transformer"),
            *timm.list_models(module="deit"),
        ]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or [*ALIASES, DIGITS_VIT]
        raise InputError(f"unknown teacher {name!r}: the nearest names are {', '.join(near)}.")
    return timm_name


def create_model(timm_name: str, **kwargs: Any) -> PlainViT:
    """timm's model with random weights; `InputError` where it cannot be built so."""
    try:
        return timm.create_model(timm_name, pretrained=False, **kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError, LookupError, AttributeError) as error:
        raise InputError(f"timm cannot build {timm_name!r}: {first_line(error)}.") from error


def create_pretrained(timm_name: str, name: str, flag: str, **kwargs: Any) -> Any:
    """timm's model with its pretrained weights; raises `MachineError`, naming `flag` as the mend, without them."""
    reachable = _hub_resolves()
    if not reachable:  # weights in the local cache still load; others fail at once, not after ten retries
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    # timm and its hub raise a different class for every way a download can fail
    try:
        return timm.create_model(timm_name, pretrained=True, **kwargs)
    except Exception as error:
        why = first_line(error) if reachable else "no network"
        raise MachineError(
            f"the pretrained weights of {name!r} cannot be fetched ({why}): "
            f"give them with {flag} (.safetensors or .pth)."
        ) from error


def _hub_resolves() -> bool:
    if any(os.environ.get(proxy) for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _shape_from_state(probe: PlainViT, state: dict[str, Tensor], name: str, path: Path | str) -> dict[str, Any]:
    """Class count, channels, pooling and square input size that the checkpoint's own tensors imply.

    Raises `InputError` for what timm would repair in silence, so that the model were another.
    """
    kwargs: dict[str, Any] = {}
    file = f"checkpoint {str(path)!r}"
    require_alike(probe, state, name, path)
    # a tensor of another width fits no such model, and its length must not size one
    width = probe.embed_dim
    head, kernel = (state.get(key, torch.empty(0)) for key in ("head.weight", KERNEL))
    if head.ndim == 2 and head.shape[1] == width:
        kwargs["num_classes"] = head.shape[0]
    elif "head.weight" not in state and KERNEL in state:
        raise InputError(f"{file} has no classifier ('head.weight'): a feature extractor cannot be inverted.")
    if kernel.ndim == 4 and len(kernel) == width and kernel.shape[1] != probe.patch_embed.proj.in_channels:
        kwargs["in_chans"] = kernel.shape[1]
    tokens = probe.num_prefix_tokens
    if "fc_norm.weight" in state and "norm.weight" not in state and probe.global_pool == "token":
        kwargs["global_pool"] = "avg"
        if "cls_token" not in state and probe.cls_token is not None:
            kwargs["class_token"] = False
            tokens -= 1
    if _is_one_register(probe, state):
        kwargs["reg_tokens"] = 1
        tokens += 1
    found = patches_of(probe, state, name, path, tokens)
    if found is not None and found != probe.patch_embed.num_patches:
        kwargs["img_size"] = math.isqrt(found) * probe.patch_embed.patch_size[0]
    return kwargs


def patches_of(
    model: PlainViT, state: dict[str, Tensor], name: str, path: Path | str, tokens: int | None = None
) -> int | None:
    """For how many patches the checkpoint has positions, beside those of `tokens`; None where that is not to be told.

    Raises `InputError` for another grid than the model's that is no square: it would be resampled as one.
    """
    positions, ours = state.get("pos_embed"), model.pos_embed
    if positions is None or ours is None or positions.ndim != 3 or positions.shape[2] != ours.shape[2]:
        return None
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens if tokens is None else tokens
    found = positions.shape[1] - prefix
    if found != model.patch_embed.num_patches and (found < 1 or math.isqrt(found) ** 2 != found):
        raise InputError(
            f"checkpoint {str(path)!r} has positions for {found} patches, which is no square grid, {name!r} for "
            f"{model.patch_embed.num_patches}: name its own architecture; other grids are not taken."
        )
    return found


def _is_one_register(model: PlainViT, state: dict[str, Tensor]) -> bool:
    """Whether the checkpoint has one token more than `model`, with a position of its own, which no answer is read from:
    the distillation token of a DeiT that was fine-tuned without its second head."""
    lacks = "reg_token" in state and model.reg_token is None and not model.no_embed_class
    return lacks and state["reg_token"].shape == (1, 1, model.embed_dim)


def require_alike(model: PlainViT, state: dict[str, Tensor], name: str, path: Path | str) -> None:
    """Raises `InputError` for what timm would repair or drop: patches of another size, pixels in an order of their own,
    a layer before the classifier, tokens."""
    kernel = state.get(KERNEL, model.patch_embed.proj.weight)
    if kernel.ndim != 4:
        raise InputError(
            f"checkpoint {str(path)!r} has {kernel.ndim} dimensions in {KERNEL!r}, which does not tell the order of "
            "its pixels: save it as the kernel of a convolution."
        )
    if any(key.startswith("pre_logits.") for key in state):
        raise InputError(
            f"checkpoint {str(path)!r} has a layer before its classifier ('pre_logits'), which timm leaves out: "
            "give weights without it."
        )
    if tuple(kernel.shape[2:]) != tuple(model.patch_embed.patch_size):
        theirs, ours = ("x".join(map(str, size)) for size in (kernel.shape[2:], model.patch_embed.patch_size))
        raise InputError(
            f"checkpoint {str(path)!r} has patches of {theirs} pixels, {name!r} of {ours}: name its own architecture "
            "with --teacher."
        )
    for token, kind in (("dist_token", "distilled"), ("reg_token", "with registers")):
        if token in state and getattr(model, token, None) is None and not _is_one_register(model, state):
            raise InputError(
                f"checkpoint {str(path)!r} is of a ViT {kind} ({token!r}), {name!r} is none: name its own architecture."
            )


def load_state(
    model: PlainViT, state: dict[str, Tensor], name: str, path: Path | str, absent: Collection[str] = ()
) -> None:
    """Load the tensors of a checkpoint, positions resampled to the model's grid; those `absent` keep their values.

    Raises `InputError` for a checkpoint of another architecture.
    """
    mend = f"it is not a checkpoint of {name!r}: name its own architecture with --teacher."
    try:
        state = checkpoint_filter_fn(dict(state), model)
        missing, unexpected = model.load_state_dict(state, strict=False)
        missing = [key for key in missing if key not in absent]
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise InputError(f"checkpoint {str(path)!r} does not fit: {_mismatch(error)}; {mend}") from error
    if missing or unexpected:
        what = f"{missing[0]!r} is missing" if missing else f"{unexpected[0]!r} is not expected"
        more = len(missing) + len(unexpected) - 1
        raise InputError(
            f"checkpoint {str(path)!r} does not fit: {what}{f' and {more} more differ' if more else ''}; {mend}"
        )


def _mismatch(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return (lines[0].rstrip(".") if lines else first_line(error)) or type(error).__name__
