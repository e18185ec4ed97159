"""Dead leaves: pictures from a seed alone, with natural statistics."""

import pytest
import torch
from torch import Tensor

from inversion.leaves import dead_leaves
from inversion.teacher import InputSpec

COLOUR = InputSpec((96, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, 10)
GREY = InputSpec((32, 32), (0.5,), (0.25,), "bicubic", 1.0, 10)


@pytest.mark.parametrize("spec", [COLOUR, GREY])
def test_pictures_are_valid(spec: InputSpec) -> None:
    """Finite, of the teacher's size, within what a real picture can hold, and none like another."""
    pictures = dead_leaves(spec, 4, 0)
    assert pictures.shape == (4, spec.channels, *spec.size)
    assert pictures.dtype == torch.float32
    black, white = (bound.view(-1, 1, 1) for bound in spec.pixel_bounds())
    assert bool((pictures >= black - 1e-6).all())
    assert bool((pictures <= white + 1e-6).all())
    assert all(not torch.allclose(pictures[0], pictures[other]) for other in (1, 2, 3))


def test_a_picture_depends_on_seed_and_number_alone() -> None:
    """Whatever is made beside it, and whatever the caller's random state."""
    torch.manual_seed(1)
    all_at_once = dead_leaves(GREY, 5, 3)
    torch.manual_seed(2)
    assert torch.equal(dead_leaves(GREY, 2, 3, first=3), all_at_once[3:])
    assert not torch.allclose(dead_leaves(GREY, 5, 4), all_at_once)
    assert dead_leaves(GREY, 0, 3).shape == (0, 1, 32, 32)


def neighbours(pictures: Tensor, distance: int) -> float:
    """Correlation of pixels so far apart."""
    centred = pictures - pictures.mean((2, 3), keepdim=True)
    product = (centred[..., distance:] * centred[..., :-distance]).mean()
    return float(product / centred.square().mean())


def test_pixels_relate_as_in_natural_pictures() -> None:
    """Neighbours are alike, less so further apart, channels are alike: noise has none of it."""
    pictures = dead_leaves(COLOUR, 16, 0)
    near, far = neighbours(pictures, 1), neighbours(pictures, 16)
    assert near > 0.75
    assert 0.05 < far < near - 0.2
    flat = pictures.transpose(0, 1).flatten(1)
    assert float(torch.corrcoef(flat)[0, 1:].min()) > 0.5
