"""Safetensors files whose bytes depend on their content alone, published whole or not at all."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inversion.errors import InputError
from inversion.publish import publish


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write under a temporary name, then rename: `path` never holds half a file."""
    data = save({key: value.contiguous() for key, value in tensors.items()}, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    # safetensors keeps metadata in a hash map: sorted, the same content gives the same bytes
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    publish(path, struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


def read_tensors(path: Path, file_format: str, mend: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `write_tensors` made; `InputError` ends with `mend` for any other."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{str(path)!r} is not a whole safetensors file ({error}): {mend}") from error
    if metadata.get("format") != file_format:
        raise InputError(f"{str(path)!r} is not of the format {file_format}: {mend}")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file that was read before."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
