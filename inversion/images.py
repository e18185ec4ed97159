"""Sparse synthetic images in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inversion.errors import InputError
from inversion.sparse import unpatchify
from inversion.teacher import Teacher
from inversion.tensorfile import read_tensors, write_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "patch-rebirth.images/1"
MOST_EMPTY = 100
"""How many times larger than its patches a shard's pictures may be: more is no inversion, and would fill the memory."""
GREY = 0.5
"""What people see where a patch was removed, from black at 0 to white at 1."""
TYPES = {
    "patches": torch.float16,
    "kept": torch.int16,
    "labels": torch.int32,
    "stage": torch.int8,
    "trajectory": torch.int32,
}


@dataclass(frozen=True)
class SparseImages:
    """M sparse images. Padding of rows shorter than the longest: `kept` = -1, `patches` = 0.

    - `patches`    [M, K, C*P*P] normalised pixels
    - `kept`       [M, K] row-major patch positions without prefix tokens
    - `labels`     [M] target class
    - `stage`      [M] detachment point, 1..v; 1 for SMI and DMI
    - `trajectory` [M] which trajectory each came from
    - `metadata`   the shard's string metadata: method, grid, patch size, seed, teacher, ...

        >>> from inversion import Inversion, invert, load_teacher
        >>> images = invert(load_teacher("digits_vit"), Inversion(images=8, iterations=4))
        >>> first = images[images.stage == 1]
        >>> len(first), first.kept.shape, images.grid
        (2, torch.Size([2, 16]), (8, 8))
    """

    patches: Tensor
    kept: Tensor
    labels: Tensor
    stage: Tensor
    trajectory: Tensor
    metadata: dict[str, str]

    def __len__(self) -> int:
        return self.patches.shape[0]

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.metadata["grid"].split("x")
        return int(rows), int(columns)

    @property
    def patch_size(self) -> tuple[int, int]:
        height, _, width = self.metadata["patch_size"].partition("x")
        return int(height), int(width or height)

    def __getitem__(self, index: Tensor) -> SparseImages:
        """The rows of an index or boolean tensor."""
        return replace(self, **{name: getattr(self, name)[index] for name in TYPES})

    def dense(self) -> Tensor:
        """[M, C, H, W] with every absent patch at 0, the mean colour."""
        return self._assemble(torch.arange(len(self)), len(self))

    def mosaics(self) -> Tensor:
        """The images of each trajectory in place: [trajectories, C, H, W], in order of trajectory."""
        unique, inverse = self.trajectory.unique(return_inverse=True)
        return self._assemble(inverse, len(unique))

    def by_count(self) -> Iterator[Tensor]:
        """Indices of rows that hold equally many patches, and can so run as one batch without padding."""
        counts = (self.kept >= 0).sum(1)
        for count in counts.unique():
            yield (counts == count).nonzero().squeeze(1)

    def trimmed(self) -> tuple[Tensor, Tensor]:
        """`patches` and `kept` (int64) without padding; the rows must hold equally many patches."""
        count = int((self.kept[0] >= 0).sum())
        return self.patches[:, :count], self.kept[:, :count].long()

    def to_pil(self, mosaics: bool = False) -> list[Image]:
        """Pictures for people, 8 bits a channel: each image with its removed patches grey, or with `mosaics` the images
        of each trajectory in place. Three channels are colours; of another number, the mean is shown.

            >>> from inversion import Inversion, invert, load_teacher
            >>> images = invert(load_teacher("digits_vit"), Inversion(images=8, iterations=4))
            >>> len(images.to_pil()), images.to_pil(mosaics=True)[0].size
            (8, (32, 32))
        """
        from PIL import Image

        mean, std = (torch.tensor([*map(float, self.metadata[key].split())]).view(-1, 1, 1) for key in ("mean", "std"))
        whole = replace(self, patches=torch.ones_like(self.patches))
        pictures, there = (one.mosaics() if mosaics else one.dense() for one in (self, whole))
        pixels = torch.where(there > 0, (pictures * std + mean).clamp(0, 1), GREY)
        pixels = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True)
        shown = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture) for picture in shown]

    def _assemble(self, canvas_of_row: Tensor, canvases: int) -> Tensor:
        rows, columns = self.grid
        live = self.kept >= 0
        flat = torch.zeros(canvases * rows * columns, self.patches.shape[-1])
        place = canvas_of_row.view(-1, 1) * (rows * columns) + self.kept.long()
        flat[place[live]] = self.patches[live].float()
        return unpatchify(flat.view(canvases, rows * columns, -1), self.grid, self.patch_size)

    def sha256(self) -> str:
        """Of all pixels, positions, labels and metadata."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for name, dtype in TYPES.items():
            digest.update(getattr(self, name).to(dtype).contiguous().numpy())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write one shard, whole or not at all; the same images give the same bytes."""
        tensors = {name: getattr(self, name).to(dtype) for name, dtype in TYPES.items()}
        write_tensors(path, tensors, {**self.metadata, "format": FORMAT})

    @classmethod
    def load(cls, path: Path) -> SparseImages:
        """Raises `InputError` for a file that is not a whole shard."""
        mend = "make it again with `pipeline invert`."
        tensors, metadata = read_tensors(path, FORMAT, mend)
        if {name: tensor.dtype for name, tensor in tensors.items()} != TYPES:
            raise InputError(f"{str(path)!r} does not hold the tensors of a shard: {mend}")
        if wrong := _contradiction(tensors, metadata):
            raise InputError(f"{str(path)!r} is no shard, as {wrong}: {mend}")
        tensors["patches"] = tensors["patches"].float()
        return cls(**tensors, metadata=metadata)


def join(parts: Sequence[SparseImages]) -> SparseImages:
    """All rows of several shards of one inversion, padded to the longest."""
    longest = max(part.patches.shape[1] for part in parts)
    padded = [_pad(part, longest) for part in parts]
    joined = {
        field.name: torch.cat([getattr(part, field.name) for part in padded]) for field in fields(SparseImages)[:-1]
    }
    return SparseImages(**joined, metadata=parts[0].metadata)


def load_images(folder: Path | str) -> SparseImages:
    """Every shard of a folder, in order. Raises `InputError` where there is none or they do not belong together.

    >>> from inversion import Inversion, invert, load_images, load_teacher
    >>> _ = invert(load_teacher("digits_vit"), Inversion(images=8, iterations=4), folder="images")
    >>> len(load_images("images"))
    8
    """
    folder = Path(folder)
    paths = sorted(folder.glob("shard-*.safetensors"))
    if not paths:
        raise InputError(f"{str(folder)!r} holds no shard-*.safetensors: make some with `pipeline invert`.")
    parts = [SparseImages.load(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        for key in ("teacher_sha256", "grid", "patch_size"):
            if part.metadata.get(key) != parts[0].metadata.get(key):
                raise InputError(f"{str(path)!r} has another {key} than the first shard: keep one inversion a folder.")
    return join(parts)


def _contradiction(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str | None:
    """What cannot be in a shard, in words; None for a whole one."""
    sizes = [re.fullmatch(r"(\d{1,4})x(\d{1,4})", metadata.get("grid", "")),
             re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", metadata.get("patch_size", "")),
             re.fullmatch(r"(\d{1,4})", metadata.get("channels", "3"))]  # fmt: skip
    if None in sizes:
        return f"grid {metadata.get('grid')!r} or patch size {metadata.get('patch_size')!r} is none"
    grid, patch, channels = ([int(number) for number in found.groups() if number] for found in sizes if found)
    places, pixels = grid[0] * grid[1], channels[0] * patch[0] * patch[-1]
    patches, kept = tensors["patches"], tensors["kept"]
    images = len(kept) if kept.dim() == 2 else 0
    shapes = {"patches": (*kept.shape, pixels), "labels": (images,), "stage": (images,), "trajectory": (images,)}
    if not kept.numel() or any(tensors[name].shape != shape for name, shape in shapes.items()):
        return "the shapes of its tensors do not agree"
    if not places or int(kept.min()) < -1 or int(kept.max()) >= places:
        return f"patches lie outside the grid of {metadata['grid']}"
    if bool(((kept >= 0).long().diff(dim=1) > 0).any()) or int(tensors["labels"].min()) < 0:
        return "patches stand behind padding, or a class is negative"
    if len(tensors["trajectory"].unique()) * places > MOST_EMPTY * kept.numel():
        return "it is all but empty"
    if not bool(torch.isfinite(patches).all()):
        return "pixels are not finite numbers"
    return None


def require_images_of(teacher: Teacher, images: SparseImages, path: Path) -> None:
    """Raises `InputError` where the images in `path` were not made from `teacher`, or say so and do not fit it."""
    same = images.metadata.get("teacher_sha256") == teacher.sha256
    fits = images.grid == teacher.grid and images.patch_size == teacher.patch_size
    if not same or not fits or int(images.labels.max()) >= teacher.spec.num_classes:
        raise InputError(f"{str(path)!r} was made from another teacher than {teacher.name!r}: give its own checkpoint.")
    for what in ("mean", "std"):
        made, now = images.metadata.get(what), " ".join(map(str, getattr(teacher.spec, what)))
        if made != now:
            raise InputError(
                f"{str(path)!r} was made for pixels of {what} {made}, {teacher.name!r} takes {now}: invert again, or "
                "name the teacher that they were made from."
            )


def _pad(images: SparseImages, count: int) -> SparseImages:
    more = count - images.patches.shape[1]
    return replace(
        images,
        patches=torch.nn.functional.pad(images.patches, (0, 0, 0, more)),
        kept=torch.nn.functional.pad(images.kept, (0, more), value=-1),
    )
