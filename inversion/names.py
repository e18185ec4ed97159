"""The names that trainers give to a teacher's tensors, brought back to timm's."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from inversion.checkpoint import AVERAGE
from inversion.errors import InputError

WRAPPING = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "_forward_module"}
"""What compilers and wrappers put into a name, at its beginning or between its parts."""
HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"
RENAMED = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
"""Hugging Face's names behind `vit.` or `deit.`, and timm's."""
PART = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")
UNUSED = ("pooler.", "embeddings.mask_token")
"""Of Hugging Face's models: no part of the classifier."""


def as_timm(state: dict[str, Tensor], names: Collection[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`state` under timm's `names`, as far as it can be told, and a sentence for what was left out.

    One rule: a first part of the name that all tensors share and the model lacks is a wrapper's, and goes, again and
    again. Where only some share it, as beside a loss with weights of its own, the part that holds the model is taken,
    rather than its moving average.
    """
    state = _joined((_without_wrapping(key), value) for key, value in state.items())
    ours = {name.partition(".")[0] for name in names}
    while len(firsts := {key.partition(".")[0] for key in state if "." in key or key in names}) == 1:
        (first,) = firsts
        if first in ours or not all(key.startswith(f"{first}.") for key in state):
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    if any(key.endswith(HUGGING_FACE) for key in state):
        return _from_hugging_face(state), ()
    if state.keys() & set(names):
        return state, ()
    for first in sorted({key.partition(".")[0] for key in state}, key=lambda one: (bool(AVERAGE.search(one)), one)):
        part = {key.removeprefix(f"{first}."): value for key, value in state.items() if key.startswith(f"{first}.")}
        inner, _ = as_timm(part, names) if part else ({}, ())
        if {"pos_embed", "patch_embed.proj.weight"} & inner.keys():
            others = [key for key in state if not key.startswith(f"{first}.")]
            return inner, (
                f"{len(others)} tensors beside {first!r} were left out, as {others[0]!r}; "
                "--checkpoint-key takes others.",
            ) if others else ()
    return state, ()


def _without_wrapping(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPING)


def _joined(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"two tensors of the checkpoint are both called {key!r} once wrappers are taken off.")
        found[key] = value
    return found


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value, which Hugging Face keeps apart, become one tensor.

    A DeiT without its teacher's head still has the distillation token, beside the one that answers: timm's register.
    """
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        bare = re.sub(r"^(?:vit|deit)\.", "", key)
        if bare.startswith(UNUSED):
            continue
        if match := PART.fullmatch(bare):
            block, part, kind = match.groups()
            parts.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[part] = value
            continue
        for pattern, name in RENAMED:
            bare, changed = re.subn(f"^{pattern}", name, bare)
            if changed:
                break
        found[bare] = value
    if "dist_token" in found and "head_dist.weight" not in found:
        found["reg_token"] = found.pop("dist_token")
    for name, three in parts.items():
        if len(three) == 3:
            found[name] = torch.cat([three[part] for part in ("query", "key", "value")])
    return found
