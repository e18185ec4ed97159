"""What is used of timm's plain `VisionTransformer`, so that a misspelt attribute fails mypy, and names of its parts.

timm's own modules are `Any` to mypy: a model of theirs fits `PlainViT` unseen. Whether it is one at run time,
`inversion.teacher.require_plain_vit` tells. Nothing here is imported to run but the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, overload

import torch
from torch import Tensor, nn

PATCH_EMBED = "patch_embed.proj"
HEADS = ("head", "head_dist")
"""The classifier, and that of a distilled DeiT's second token."""
TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")
"""Parameters [..., D] that are part of the tokens which enter the first block."""


class Module(Protocol):
    """What is used of any `nn.Module`, whose own `__getattr__` would answer for every name."""

    training: bool

    def __call__(self, x: Tensor, /) -> Tensor: ...
    def __hash__(self) -> int: ...
    def eval(self) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def cpu(self) -> Self: ...
    def float(self) -> Self: ...
    def double(self) -> Self: ...
    def bfloat16(self) -> Self: ...
    def to(self, *where: Any, **more: Any) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def get_submodule(self, target: str) -> nn.Module: ...
    def get_parameter(self, target: str) -> nn.Parameter: ...
    def set_submodule(self, target: str, module: nn.Module) -> None: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def register_forward_hook(self, hook: Any) -> torch.utils.hooks.RemovableHandle: ...
    def register_forward_pre_hook(self, hook: Any) -> torch.utils.hooks.RemovableHandle: ...


class PatchEmbed(Module, Protocol):
    """`proj` is a convolution whose stride is its kernel, [D, C, P, P]; `norm` follows it."""

    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_patches: int
    proj: nn.Conv2d
    norm: nn.Module


class Attention(Module, Protocol):
    """`norm` stands between the values and `proj`; `fused_attn`: one kernel instead of plain products."""

    qkv: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    proj: nn.Linear
    num_heads: int
    head_dim: int
    scale: float
    fused_attn: bool


class Mlp(Module, Protocol):
    fc1: nn.Linear
    act: nn.Module
    norm: nn.Module
    fc2: nn.Linear


class Block(Module, Protocol):
    """`ls1` and `ls2` are LayerScales or nothing."""

    norm1: nn.Module
    attn: Attention
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: Mlp
    ls2: nn.Module
    drop_path2: nn.Module


class Blocks(Module, Protocol):
    """The blocks in the order in which they run; a slice of them is called as they are."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Block]: ...
    @overload
    def __getitem__(self, place: int) -> Block: ...
    @overload
    def __getitem__(self, place: slice) -> Blocks: ...


class PlainViT(Module, Protocol):
    """DeiT, DeiT-III, ViT augreg, CLIP's ViT and the like, as timm builds them.

    `num_prefix_tokens` counts class, distillation and register tokens; of `norm` and `fc_norm` one is nothing.
    """

    patch_embed: PatchEmbed
    pos_embed: nn.Parameter
    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    norm_pre: nn.Module
    blocks: Blocks
    norm: nn.Module
    fc_norm: nn.Module
    head: nn.Linear
    num_classes: int
    num_prefix_tokens: int
    no_embed_class: bool
    embed_dim: int
    global_pool: str
    dynamic_img_size: bool
    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    def _pos_embed(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...
    def init_weights(self) -> None: ...


def heads_of(model: PlainViT) -> list[nn.Linear]:
    """Its classifiers: one, or two of a distilled DeiT."""
    return [head for name in HEADS if (head := getattr(model, name, None)) is not None]


def tokens_of(model: PlainViT) -> list[nn.Parameter]:
    """Its `TOKENS`, as far as it has them."""
    return [token for name in TOKENS if (token := getattr(model, name, None)) is not None]
