"""What the classes are called, where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from inversion.teacher import DIGITS_VIT, HF_HUB, LOCAL_DIR, Teacher
from pipeline.pictures.folders import read_class_map


def known_labels(teacher: Teacher, checkpoint: Path | str | None, class_map: Path | str | None) -> Sequence[str] | None:
    """A name for each class, in class order, or None.

    Lines of the class map where there is one, ImageNet's numbers of classes (n01443537) in words; those of the
    teacher's config.json; the digits; ImageNet-1k's words for timm's own weights of 1000 classes. A `checkpoint` of
    one's own says nothing of its classes, whatever their number.
    """
    count = teacher.spec.num_classes
    if class_map is not None:
        names = read_class_map(Path(class_map), count)
        by_class = {number: name for name, number in names.items()}
        return _in_words([by_class.get(number, "") for number in range(count)])
    if teacher.labels is not None:
        return teacher.labels
    if checkpoint is not None or teacher.name.startswith((LOCAL_DIR, HF_HUB)):
        return None
    if teacher.name == DIGITS_VIT:
        return [str(digit) for digit in range(count)]
    return list(ImageNetInfo("imagenet-1k").label_descriptions()) if count == 1000 else None


def _in_words(names: list[str]) -> list[str]:
    """ImageNet's words where all names are its numbers of classes; else the names as they are."""
    if not all(name.startswith("n") and name[1:].isdecimal() for name in names if name) or not any(names):
        return names
    imagenet = ImageNetInfo("imagenet-22k")
    known = set(imagenet.label_names())
    return [imagenet.label_name_to_description(name) if name in known else name for name in names]
