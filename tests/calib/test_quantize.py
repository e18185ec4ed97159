"""What a quantization learns from, and what only judges."""

import torch

from calib.quantization import JUDGES, material
from calib.settings import Calibration
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
