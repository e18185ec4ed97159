"""Weights from files of others: tensors and nothing else, checked before use."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inversion.errors import InputError

ARCHIVE = b"PK\x03\x04"
"""How a file begins that torch takes for a zip archive."""
NOT_PLAIN = "truncated or holds more than plain tensors, so it was not read: save its state_dict as safetensors."
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


def read_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a .pth/.pt that is read with `weights_only=True`.

    A training checkpoint's weights are found under `model`, `state_dict` or `model_ema`. Every tensor must be
    finite. Nothing in the file is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {str(path)!r} does not exist: give the path of a .safetensors or .pth file.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    for key, value in state.items():
        if value.layout is not torch.strided or value.dtype not in READABLE:
            raise InputError(
                f"checkpoint {str(path)!r} has {key!r} as {value.layout} {value.dtype}: save its weights as float32."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"checkpoint {str(path)!r} claims more numbers in {key!r} than it holds: save its weights as they are."
            )
        # as float32, which is what the teacher computes in: a float64 can leave its range
        if not bool(torch.isfinite(value.float()).all()):
            raise InputError(
                f"checkpoint {str(path)!r} has non-finite numbers in {key!r}: it cannot be a trained teacher."
            )
    return {key.removeprefix("module."): value for key, value in state.items()}


def weights_sha256(state: dict[str, Tensor]) -> str:
    """sha256 over sorted names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"checkpoint {str(path)!r} is not a whole safetensors file ({first_line(error)}): copy it again."
        ) from error


def _read_pth(path: Path) -> dict[str, Tensor]:
    _require_stored(path)
    # torch raises whatever its zip reader or unpickler raises: all of them mean "not plain tensors"
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"checkpoint {str(path)!r} is {NOT_PLAIN}") from error
    for key in ("model", "state_dict", "model_ema"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(map(_is_named_tensor, loaded.items())):
        raise InputError(f"checkpoint {str(path)!r} holds no state_dict: save model.state_dict() as safetensors.")
    return loaded


def _require_stored(path: Path) -> None:
    """Raises `InputError` for an archive that unpacks to more than its own size, as torch's never do, or that cannot be
    looked through; torch's older format is none."""
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"checkpoint {str(path)!r} is {NOT_PLAIN}") from error
    if unpacked > path.stat().st_size:
        raise InputError(
            f"checkpoint {str(path)!r} unpacks to {unpacked} bytes, more than it has: save it with torch.save."
        )


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ")[:200] if lines else type(error).__name__
