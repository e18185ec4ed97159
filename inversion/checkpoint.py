"""Weights from files of others: tensors and nothing else, checked before use."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inversion.errors import InputError

ARCHIVE = b"PK\x03\x04"
"""How a file begins that torch takes for a zip archive."""
NOT_PLAIN = "truncated or holds more than plain tensors, so it was not read: save its state_dict as safetensors."
FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "student.safetensors")
"""What the weights in a folder are called, the first that is there."""
WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "module", "params")
"""Keys of a trained model, beside which others may hold its moving average."""


AVERAGE = re.compile(r"(^|_)(ema|swa)(_|$)|averag|shadow")
"""Keys and prefixes of a moving average of the weights."""


class Ignored:
    """Stands for an object beside the weights: it takes whatever made it, and keeps and runs nothing."""

    def __new__(cls, *_args: Any) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass


def _empty(*_args: Any) -> dict[Any, Any]:
    return {}


BESIDE = (
    "argparse.Namespace", "types.SimpleNamespace",
    *(f"{module}.{kind}{flavour}Path" for module in ("pathlib", "pathlib._local")
      for kind in ("", "Pure") for flavour in ("", "Posix", "Windows") if kind + flavour),
    # by the names that NumPy 1 and 2 write
    *(f"numpy.{core}.multiarray.{what}" for core in ("core", "_core") for what in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"builtins.{kind}" for kind in ("bool", "int", "float", "str", "list", "tuple", "dict")),
)  # fmt: skip
PLAIN_DATA: list[Any] = [*((Ignored, name) for name in BESIDE), (_empty, "collections.defaultdict")]
"""Arguments, paths, numbers, dates: what a pickle may name beside what torch itself reads. All are stand-ins here."""
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


def read_checkpoint(path: Path | str, key: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a .pth/.pt that is read with `weights_only=True`; of a folder, those of the
    `model.safetensors` or the like in it.

    Weights may stand anywhere in what a trainer saves; where several sets do, `key` chooses, and without it the
    trained model is taken, not its moving average. Every tensor must be finite. Nothing in the file is ever executed.
    """
    return read_weights(path, key)[0]


def read_weights(path: Path | str, key: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The same, with a sentence where one of several sets of weights was taken."""
    path = weights_file(path)
    notes: tuple[str, ...] = ()
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
        if key and not (state := _part(state, key)):
            raise InputError(f"--checkpoint-key {key!r}: {str(path)!r} holds one set of weights, so leave it out.")
    else:
        state, notes = _chosen(_read_pth(path), path, key)
    for name, value in state.items():
        if value.layout is not torch.strided or value.dtype not in READABLE:
            raise InputError(
                f"checkpoint {str(path)!r} has {name!r} as {value.layout} {value.dtype}: save its weights as float32."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"checkpoint {str(path)!r} claims more numbers in {name!r} than it holds: save its weights as they are."
            )
        # as float32, which is what the teacher computes in: a float64 can leave its range
        if not bool(torch.isfinite(value.float()).all()):
            raise InputError(
                f"checkpoint {str(path)!r} has non-finite numbers in {name!r}: it cannot be a trained teacher."
            )
    return state, notes


def weights_file(path: Path | str) -> Path:
    """The file that holds the weights: `path`, or the one in it if it is a folder."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise InputError(
                f"checkpoint {str(path)!r} is a folder without {FILES[0]}: give the path of a .safetensors or "
                ".pth file."
            )
        return found[0]
    if not path.is_file():
        raise InputError(f"checkpoint {str(path)!r} does not exist: give the path of a .safetensors or .pth file.")
    return path


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


def _read_pth(path: Path) -> Any:
    """What is stored, as plain data."""
    _require_stored(path)
    # torch raises whatever its zip reader or unpickler raises: all of them mean "not plain data"
    try:
        with torch.serialization.safe_globals(PLAIN_DATA):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(
                f"checkpoint {str(path)!r} holds more than plain tensors, so it was not read: a {match[1]} is no plain "
                "data; save its state_dict as safetensors."
            ) from error
        raise InputError(f"checkpoint {str(path)!r} is {NOT_PLAIN}") from error


def _chosen(loaded: Any, path: Path, key: str | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    sets = dict(_sets(loaded))
    if not sets:
        raise InputError(f"checkpoint {str(path)!r} holds no state_dict: save model.state_dict() as safetensors.")
    names = ", ".join(map(repr, sets))
    if key is not None:
        if key not in sets and len(sets) == 1 and (part := _part(next(iter(sets.values())), key)):
            return part, ()
        if key not in sets:
            raise InputError(f"--checkpoint-key {key!r} is not in {str(path)!r}: it holds {names}.")
        return sets[key], ()
    if len(sets) == 1:
        return next(iter(sets.values())), ()
    trained = [name for name in sets if _rank(name)[1] < len(WRAPPERS)]
    if not trained:
        raise InputError(
            f"checkpoint {str(path)!r} holds several sets of weights ({names}): choose one with --checkpoint-key."
        )
    taken = min(trained, key=_rank)
    return sets[taken], (f"{str(path)!r} holds {names}: {taken!r} was taken; --checkpoint-key takes another.",)


def _part(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `key`: one of several models side by side."""
    return {name.removeprefix(f"{key}."): value for name, value in state.items() if name.startswith(f"{key}.")}


def _rank(name: str) -> tuple[bool, int]:
    """Trained weights before their moving average, then by the key nearest to them that is a usual one."""
    keys = name.split(".")
    usual = next((WRAPPERS.index(key) for key in reversed(keys) if key in WRAPPERS), len(WRAPPERS))
    return any(map(AVERAGE.search, keys)), usual


def _sets(loaded: Any, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each state_dict in what was loaded, by the keys that lead to it, joined by dots."""
    if not isinstance(loaded, dict):
        return
    if loaded and all(map(_is_named_tensor, loaded.items())):
        # what an optimizer keeps of one tensor is no model
        if not name or any(str(key).endswith(("weight", "weight_orig", "pos_embed")) for key in loaded):
            yield name, loaded
        return
    for key, value in loaded.items():
        if isinstance(key, str):
            yield from _sets(value, f"{name}.{key}" if name else key)


def _require_stored(path: Path) -> None:
    """Raises `InputError` for an archive that unpacks to more than its own size, as torch's never do, or that cannot be
    looked through; torch's older format is none."""
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"checkpoint {str(path)!r} is {NOT_PLAIN}") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise InputError(f"checkpoint {str(path)!r} is a TorchScript program, which is not run: save its state_dict.")
    if (unpacked := sum(entry.file_size for entry in entries)) > path.stat().st_size:
        raise InputError(
            f"checkpoint {str(path)!r} unpacks to {unpacked} bytes, more than it has: save it with torch.save."
        )


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ")[:200] if lines else type(error).__name__
