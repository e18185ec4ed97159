"""Shift and flip as index maps: patches arrive where their pixels do."""

import pytest
import torch
from torch import Generator, Tensor

from inversion.augment import draw_offsets, pixels_of, shift_positions, shifted_pixels
from inversion.sparse import patchify, take

SIZE, PATCH, GRID = (24, 32), (8, 8), (3, 4)
WHOLE = [(0, 0), (8, 0), (0, 8), (-8, 16), (16, -24), (24, 32), (-48, 8)]
FRACTIONS = [(1, 0), (0, -1), (3, 3), (4, 4), (-4, -4), (5, -5), (-3, 7), (9, 12), (-13, 2)]


def coded_image() -> Tensor:
    """[1, 1, H, W] in which every pixel has its own number."""
    return torch.arange(SIZE[0] * SIZE[1]).view(1, 1, *SIZE)


def offset(down: int, right: int, flip: bool) -> Tensor:
    return torch.tensor([down, right, int(flip)])


def everywhere() -> Tensor:
    return torch.arange(GRID[0] * GRID[1]).unsqueeze(0)


def rolled(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """`image` with each pixel carried by itself."""
    height, width = SIZE
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            column = (x + right) % width
            out[..., (y + down) % height, width - 1 - column if flip else column] = image[..., y, x]
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("down", "right"), WHOLE + FRACTIONS)
def test_every_pixel_moves_by_the_shift(down: int, right: int, flip: bool) -> None:
    """Each patch holds what a roll of the whole picture by (down, right), then a mirror left and right, puts there."""
    image = coded_image()
    source = shifted_pixels(everywhere(), offset(down, right, flip), GRID, PATCH)
    assert torch.equal(image.flatten()[source].view(1, 12, -1), patchify(rolled(image, down, right, flip), PATCH))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("down", "right"), FRACTIONS)
def test_some_patches_see_the_whole_picture(down: int, right: int, flip: bool) -> None:
    """The pixels of a subset are those that it has among all patches, each image by itself."""
    some = torch.tensor([[7, 0, 5], [1, 11, 2]])
    source = shifted_pixels(some, offset(down, right, flip), GRID, PATCH).view(2, 3, -1)
    whole = shifted_pixels(everywhere(), offset(down, right, flip), GRID, PATCH).view(12, -1)
    assert torch.equal(source, whole[some])


def test_without_a_shift_a_patch_holds_its_own_pixels() -> None:
    """`pixels_of` lists each patch's pixels in order, rows of the picture apart by its width."""
    own = pixels_of(everywhere(), GRID, PATCH)
    assert torch.equal(own.view(12, -1), patchify(coded_image(), PATCH)[0])
    assert own[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 32]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("down", "right"), WHOLE)
def test_whole_patches_arrive_at_their_new_positions(down: int, right: int, flip: bool) -> None:
    """After a shift by whole patches, each patch's new position holds exactly its pixels."""
    moved = shift_positions(everywhere(), offset(down, right, flip), GRID, PATCH)
    arrived = take(patchify(rolled(coded_image(), down, right, flip), PATCH), moved)
    left = patchify(coded_image(), PATCH).view(1, -1, *PATCH)
    assert torch.equal(arrived.view_as(left), left.flip(3) if flip else left)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("down", "right"), FRACTIONS)
def test_a_fraction_of_a_patch_goes_to_the_nearest(down: int, right: int, flip: bool) -> None:
    """A patch's new position is the one that holds most of its pixels."""
    moved = shift_positions(everywhere(), offset(down, right, flip), GRID, PATCH)[0]
    owner = everywhere().unsqueeze(-1).expand(1, -1, PATCH[0] * PATCH[1]).view(1, *GRID, *PATCH)
    owner = owner.permute(0, 1, 3, 2, 4).reshape(1, 1, *SIZE)
    seen = patchify(rolled(owner, down, right, flip), PATCH)[0]
    for patch, position in enumerate(moved.tolist()):
        share = (seen == patch).sum(1)
        assert share[position] == share.max()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("down", "right"), WHOLE + FRACTIONS)
def test_positions_stay_distinct(down: int, right: int, flip: bool) -> None:
    """No two patches of an image land on one position, and none leaves the grid."""
    kept = torch.tensor([[0, 3, 4, 11], [1, 2, 6, 9]])
    moved = shift_positions(kept, offset(down, right, flip), GRID, PATCH)
    assert moved.shape == kept.shape
    assert int(moved.min()) >= 0
    assert int(moved.max()) < 12
    assert all(len(row.unique()) == 4 for row in moved)


def test_rectangular_patches_move_by_their_own_sides() -> None:
    """Rows count in patch heights, columns in patch widths."""
    assert shift_positions(torch.tensor([[0]]), offset(4, 4, False), (8, 4), (4, 8)).tolist() == [[1 * 4 + 1]]
    assert shift_positions(torch.tensor([[0]]), offset(4, 3, False), (8, 4), (4, 8)).tolist() == [[1 * 4 + 0]]


def test_offsets_reach_an_eighth_of_each_side() -> None:
    """Every shift up to side/8 in both directions occurs, none beyond; about half of the draws are mirrored."""
    down, right, flip = draw_offsets(4000, (32, 48), Generator().manual_seed(0)).T
    assert down.unique().tolist() == list(range(-4, 5))
    assert right.unique().tolist() == list(range(-6, 7))
    assert flip.unique().tolist() == [0, 1]
    # six standard errors of 4000 fair draws
    assert 0.45 < flip.float().mean() < 0.55


def test_offsets_follow_the_generator() -> None:
    """The same seed gives the same offsets, another seed others."""
    draws = [draw_offsets(20, (32, 32), Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
