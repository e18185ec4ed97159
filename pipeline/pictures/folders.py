"""A folder of pictures, one folder a class: what in it is a picture, of which class, and what is left out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from inversion.errors import InputError

SYSTEM = {
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__", "Thumbs.db",
    "desktop.ini",
}  # fmt: skip
"""What systems and tools leave in folders, beside names that begin with a dot."""
CLASS_MAP = "give --class-map FILE with one folder name a line in class order"


@dataclass(frozen=True)
class Folder:
    """`pictures` are (file, class), ordered by path; `left_out` is a sentence for each kind of thing that is no
    picture; `fingerprint` changes when files, classes, or what links lead to do."""

    pictures: tuple[tuple[Path, int], ...]
    left_out: tuple[str, ...]
    fingerprint: str


def read_folder(root: Path, num_classes: int, class_map: Path | None = None) -> Folder:
    """The pictures of `root`, whose folders are the classes; links are followed.

    Without `class_map` the folders are the classes in order of their names, and there must be as many as the teacher
    has. Raises `InputError` where that leaves a picture's class open.
    """
    found = _Finds(root)
    names = [name for name, is_folder in found.entries(root) if is_folder]
    files = {name: list(found.pictures(root / name)) for name in names}
    loose = [name for name, is_folder in found.entries(root) if not is_folder and _is_picture(root / name)]
    if not any(files.values()) and not loose:
        raise InputError(f"folder {str(root)!r} holds no picture: give a folder that holds one folder a class.")
    if loose:
        raise InputError(
            f"picture {str(root / loose[0])!r} lies in no class folder: move it into the folder of its class."
        )
    found.others += [root / name for name, is_folder in found.entries(root) if not is_folder]
    classes = _by_map(files, class_map, num_classes) if class_map else _by_order(root, names, num_classes)
    pictures = sorted((path, classes[name]) for name, paths in files.items() for path in paths)
    empty = [name for name in names if not files[name]]
    digest = hashlib.sha256()
    for path, number in pictures:
        digest.update(f"{path.relative_to(root)} {number} {file_state(path)}\n".encode())
    return Folder(tuple(pictures), (*found.sentences(), *_empty(empty)), digest.hexdigest())


def file_state(path: Path) -> str:
    """Changes when the file behind `path`, links followed, is another or has been written."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def read_class_map(path: Path, num_classes: int) -> dict[str, int]:
    """Folder name -> class. A line's number is its class, so a blank line counts too, as timm counts it."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"class map {str(path)!r} cannot be read as text: give a file with one folder name a line in class order."
        ) from error
    classes: dict[str, int] = {}
    for number, name in enumerate(lines):
        if name in classes:
            raise InputError(f"class map {str(path)!r} names {name!r} twice: give each class one line.")
        if name:
            classes[name] = number
    if not classes or max(classes.values()) >= num_classes:
        raise InputError(
            f"class map {str(path)!r} names {len(classes)} classes, the teacher has {num_classes}: "
            "give the map, or the teacher, that belongs to this data."
        )
    return classes


class _Finds:
    """What a walk through `root` came across."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hidden: list[Path] = []
        self.others: list[Path] = []
        self.seen: dict[Path, list[tuple[str, bool]]] = {}

    def entries(self, folder: Path) -> list[tuple[str, bool]]:
        """(name, whether it is a folder) of all that is neither hidden nor a system's, in order of names."""
        if folder not in self.seen:
            names = sorted(path.name for path in folder.iterdir())
            hidden = [name for name in names if name.startswith(".") or name in SYSTEM]
            self.hidden += [folder / name for name in hidden]
            self.seen[folder] = [(name, (folder / name).is_dir()) for name in names if name not in hidden]
        return self.seen[folder]

    def pictures(self, folder: Path) -> Iterator[Path]:
        """Of one class; refused where some lie deeper, as it is not clear which folder names their class."""
        for name, is_folder in self.entries(folder):
            path = folder / name
            if is_folder:
                inside = self.entries(path)
                deeper = [each for each, folder_too in inside if folder_too or _is_picture(path / each)]
                if deeper:
                    raise InputError(
                        f"{str(path / deeper[0])!r} lies two folders deep, and either may be its class: give a folder "
                        "that holds one folder a class, with the pictures in these."
                    )
                self.others.append(path)
            elif _is_picture(path):
                yield path
            else:
                self.others.append(path)

    def sentences(self) -> Iterator[str]:
        for paths, what in ((self.hidden, "hidden or system files and folders"), (self.others, "that are no pictures")):
            if paths:
                example = str(paths[0].relative_to(self.root))
                yield f"left out of {str(self.root)!r}: {len(paths)} {what}, as {example!r}."


def _empty(names: Sequence[str]) -> list[str]:
    return [f"{len(names)} class folders hold no picture, as {names[0]!r}."] if names else []


def _is_picture(path: Path) -> bool:
    """By its name, or where the name does not tell, by what it holds."""
    if path.suffix.lower() in _suffixes():
        return True
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False


@cache
def _suffixes() -> frozenset[str]:
    """Of the formats that Pillow opens."""
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _by_map(files: dict[str, list[Path]], class_map: Path, num_classes: int) -> dict[str, int]:
    classes = read_class_map(class_map, num_classes)
    unknown = next((name for name, paths in files.items() if paths and name not in classes), None)
    if unknown is not None:
        raise InputError(
            f"class folder {unknown!r} is not in class map {str(class_map)!r}: add its line, or remove the folder."
        )
    return classes


def _by_order(root: Path, names: Sequence[str], num_classes: int) -> dict[str, int]:
    if len(names) != num_classes:
        raise InputError(
            f"{str(root)!r} holds {len(names)} class folders, the teacher has {num_classes} classes: {CLASS_MAP}."
        )
    plain = sorted(names)
    for ours, theirs in zip(plain, sorted(plain, key=_natural), strict=True):
        if ours != theirs:
            raise InputError(
                f"the class folders of {str(root)!r} can be ordered in two ways, {ours!r} before {theirs!r} (plain, as "
                f"torchvision does) or behind it (natural, as timm does): {CLASS_MAP}."
            )
    return {name: number for number, name in enumerate(plain)}


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Numbers in a name count as numbers, capitals as small letters: timm's order."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
