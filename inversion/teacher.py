"""A trained timm Vision Transformer with frozen weights, and what its input looks like."""

from __future__ import annotations

import difflib
import math
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from inversion.checkpoint import first_line, read_checkpoint, weights_sha256
from inversion.errors import InputError, MachineError

ALIASES = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
}
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
    """

    model: VisionTransformer
    spec: InputSpec
    name: str
    sha256: str

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
    name: str, checkpoint: Path | str | None = None, *, random_weights: bool = False, device: str = "cpu"
) -> Teacher:
    """The teacher `name`: an alias, `digits_vit`, or any timm plain ViT.

    Weights come from `checkpoint` (safetensors, or a .pth that holds plain tensors), else from the package
    (`digits_vit`) or timm's pretrained ones. Class count and input size follow the checkpoint's tensors.

    Raises `InputError` for a name, architecture or checkpoint that cannot be used, `MachineError` where
    pretrained weights cannot be fetched.
    """
    if name == DIGITS_VIT:
        return _freeze(name, _load_digits_vit(checkpoint, random_weights), device)
    timm_name = timm_name_of(name)
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        model = create_model(timm_name, **_shape_from_state(timm_name, state))
        require_plain_vit(model, name)
        load_state(model, state, name, checkpoint)
    else:
        model = create_model(timm_name)
        require_plain_vit(model, name)
        if not random_weights:
            model = create_pretrained(timm_name, name, "--checkpoint FILE")
    return _freeze(name, model, device)


def digits_vit() -> VisionTransformer:
    """The architecture of the built-in teacher: 32x32 grey pictures, patch 4, 64 patches, 10 classes."""
    model = VisionTransformer(img_size=32, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=6, num_heads=3)
    model.pretrained_cfg = model.default_cfg = {
        "mean": (0.5,), "std": (0.5,), "interpolation": "bicubic", "crop_pct": 1.0,
        "input_size": (1, 32, 32), "architecture": DIGITS_VIT,
    }  # fmt: skip
    return model


def require_plain_vit(model: nn.Module, name: str) -> None:
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


def _freeze(name: str, model: VisionTransformer, device: str) -> Teacher:
    model = model.eval().requires_grad_(False).to(device)
    return Teacher(model, input_spec(model), name, weights_sha256(model.state_dict()))


def input_spec(model: VisionTransformer) -> InputSpec:
    """What timm's configuration of `model` and its own shapes say of its input."""
    cfg = model.pretrained_cfg
    size = tuple(model.patch_embed.img_size)
    return InputSpec(
        size=size,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg.get("interpolation") or "bicubic",
        # a checkpoint at another size was not fitted to the timm default's crop
        crop=float(cfg.get("crop_pct") or 1.0) if size == tuple(cfg["input_size"][1:]) else 1.0,
        num_classes=model.num_classes,
    )


def _load_digits_vit(checkpoint: Path | str | None, random_weights: bool) -> VisionTransformer:
    model = digits_vit()
    if not random_weights:
        path = checkpoint or DIGITS_WEIGHTS
        state = {key: value.float() for key, value in read_checkpoint(path).items()}
        load_state(model, state, DIGITS_VIT, path)
    return model


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


def create_model(timm_name: str, **kwargs: Any) -> VisionTransformer:
    """timm's model with random weights; `InputError` where it cannot be built so."""
    try:
        return timm.create_model(timm_name, pretrained=False, **kwargs)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
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


def _shape_from_state(timm_name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Class count and square input size that the checkpoint's own tensors imply."""
    kwargs: dict[str, Any] = {}
    with torch.device("meta"):
        probe = create_model(timm_name)
    # a tensor of another width fits no such model, and its length must not size one
    width = getattr(probe, "embed_dim", None)
    head, positions = (state.get(key, torch.empty(0)) for key in ("head.weight", "pos_embed"))
    if head.ndim == 2 and head.shape[1] == width:
        kwargs["num_classes"] = head.shape[0]
    if isinstance(probe, VisionTransformer) and probe.pos_embed is not None and positions.ndim == 3:
        prefix = 0 if probe.no_embed_class else probe.num_prefix_tokens
        found = positions.shape[1] - prefix if positions.shape[2] == width else 0
        side = math.isqrt(max(found, 0))
        if found != probe.patch_embed.num_patches and side > 0 and side * side == found:
            kwargs["img_size"] = side * probe.patch_embed.patch_size[0]
    return kwargs


def load_state(
    model: VisionTransformer, state: dict[str, Tensor], name: str, path: Path | str, absent: Collection[str] = ()
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
