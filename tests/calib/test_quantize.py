"""What a quantization learns from, and what only judges."""

import math
from itertools import groupby

import torch

from calib.quantization import JUDGES, material, quantize
from calib.settings import Basis, Calibration, Training
from inversion.sparse import unpatchify
from tests.small import small_teacher, sparse_images


def test_leaves_that_judge_are_learned_from_nowhere() -> None:
    """With dead leaves, others of the same seed judge, none of which is shown; no inverted image is among them."""
    show, judge = material(small_teacher(), sparse_images(8), Calibration(leaves=5))
    ((patches, kept),) = judge.groups
    assert patches.shape[:2] == (JUDGES, 16)
    assert torch.equal(kept[0], torch.arange(16))
    shown = show("mixed").groups[0][0]
    assert len(shown) == 6 + 5
    assert not any(bool((patches == one).flatten(1).all(1).any()) for one in shown)
    judges = {tuple(picture.flatten()[:4].tolist()) for picture in unpatchify(patches, (4, 4), (8, 8))}
    assert len(judges) == JUDGES


def test_without_leaves_the_mosaics_that_were_held_out_judge() -> None:
    """A quarter of the trajectories, and nothing that was drawn."""
    images = sparse_images(8)
    show, judge = material(small_teacher(), images, Calibration(leaves=0))
    assert (len(show("mixed")), len(judge)) == (6, 2)
    found = unpatchify(judge.groups[0][0], (4, 4), (8, 8))
    assert torch.equal(found, images.mosaics()[[3, 7]])


def test_progress_is_told_in_one_shape() -> None:
    """What is being done, steps done and in all, and a value or NaN: each part counts up to its own total."""
    told: list[tuple[str, int, int, float]] = []
    quantize(
        small_teacher(), sparse_images(8), "w4a8", Basis(updates=3), Calibration(leaves=4),
        training=Training(updates=2, batch=4), progress=lambda *one: told.append(one),
    )  # fmt: skip
    parts = {what: list(lines) for what, lines in groupby(told, key=lambda one: one[0])}
    assert list(parts) == ["basis", "ranges", "saliency", "rounding", "training"]
    for what, lines in parts.items():
        counts, totals = [one[1] for one in lines], {one[2] for one in lines}
        assert counts == sorted(set(counts)), what
        assert totals == {counts[-1]}, what
        assert all(math.isnan(one[3]) for one in lines) == (what not in ("basis", "training"))
