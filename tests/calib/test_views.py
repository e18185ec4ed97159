"""Views of images: mosaics or sparse images, in batches, and trajectories that are held out."""

import pytest
import torch

from calib.fidelity import Fidelity, fidelity, kl_to_teacher
from calib.views import make_views, split_held_out
from inversion.errors import InputError
from inversion.sparse import patchify
from tests.small import CPU, small_teacher, sparse_images, views


def test_mosaics_hold_every_patch_in_order() -> None:
    """One image a trajectory, all 16 patches, what the trajectory's images tile."""
    images = sparse_images(3)
    ((patches, kept),) = make_views(images, "mosaic", CPU).groups
    assert kept.tolist() == [list(range(16))] * 3
    assert torch.equal(patches, patchify(images.mosaics(), (8, 8)))


def test_a_mixture_takes_mosaics_and_leaves_in_turn() -> None:
    """One group of dense pictures whose first few hold some of both; each alone where only it is asked for."""
    images, leaves = sparse_images(2), torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 32, 32)
    ((mixed, kept),) = make_views(images, "mixed", CPU, leaves).groups
    mosaics = patchify(images.mosaics(), (8, 8))
    assert kept.tolist() == [list(range(16))] * 7
    assert torch.equal(mixed[[0, 2]], mosaics)
    assert mixed[[1, 3, 4, 5, 6], 0, 0].tolist() == [0, 1, 2, 3, 4]
    ((alone, _),) = make_views(images, "leaves", CPU, leaves).groups
    assert torch.equal(alone, patchify(leaves, (8, 8)))
    for plain in (make_views(images, "mixed", CPU, leaves[:0]), make_views(images, "mosaic", CPU, leaves)):
        assert torch.equal(plain.groups[0][0], mosaics)


def test_sparse_views_hold_the_images_without_padding() -> None:
    """Groups of equal patch counts: 2 patches, and 7."""
    images = sparse_images(3)
    found = make_views(images, "sparse", CPU)
    assert [kept.shape for _, kept in found.groups] == [(3, 2), (6, 7)]
    assert len(found) == len(images) == 9
    assert all(int(kept.min()) >= 0 for _, kept in found.groups)


def test_logits_are_those_of_each_image() -> None:
    """Batches change nothing, and a mosaic's logits are timm's own of the dense picture."""
    model, images = small_teacher().model, sparse_images(5)
    (logits,) = make_views(images, "mosaic", CPU).logits(model)
    # matrix products of another height may sum in another order
    torch.testing.assert_close(logits, model(images.mosaics()), rtol=1e-4, atol=1e-4)
    assert [part.shape for part in views(5, "sparse").logits(model)] == [(5, 5), (10, 5)]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_hold_every_image_once(size: int) -> None:
    """At most `size` rows of one group each, in order."""
    found = views(5, "sparse")
    batches = list(found.batches(size))
    assert all(len(patches) == len(kept) <= size for patches, kept in batches)
    for patches, kept in found.groups:
        ours = [batch for batch in batches if batch[1].shape[1] == kept.shape[1]]
        assert torch.equal(torch.cat([part for part, _ in ours]), patches)
        assert torch.equal(torch.cat([part for _, part in ours]), kept)


def test_first_takes_from_each_group() -> None:
    """At most so many of each group, from its start."""
    some = views(5, "sparse").first(6)
    assert [len(kept) for _, kept in some.groups] == [5, 6]
    assert torch.equal(some.groups[1][0], views(5, "sparse").groups[1][0][:6])


@pytest.mark.parametrize(
    ("trajectories", "share", "held"),
    [(8, 0.25, [3, 7]), (4, 0.5, [1, 3]), (2, 0.25, [1]), (3, 0.1, [2]), (10, 0.1, [9]), (5, 0.5, [1, 3])],
)
def test_whole_trajectories_are_held_out(trajectories: int, share: float, held: list[int]) -> None:
    """No trajectory is on both sides, none is lost, and both sides have some."""
    images = sparse_images(trajectories)
    seen, unseen = split_held_out(images, share)
    assert unseen.trajectory.unique().tolist() == held
    assert seen.trajectory.unique().tolist() == [one for one in range(trajectories) if one not in held]
    assert (len(seen), len(unseen)) == (3 * (trajectories - len(held)), 3 * len(held))


def test_one_trajectory_is_refused() -> None:
    """Nothing could judge."""
    with pytest.raises(InputError, match=r"^one trajectory leaves nothing to hold out: invert more images\.$"):
        split_held_out(sparse_images(1), 0.25)


def test_kl_is_the_textbook_formula() -> None:
    """Mean over images of sum p log(p / q), p the teacher's softmax; 0 for equal answers."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * 3
    p, q = theirs.softmax(1), ours.softmax(1)
    want = sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for i in range(6) for c in range(5)) / 6
    assert float(kl_to_teacher(ours, theirs)) == pytest.approx(want, rel=1e-12)
    assert float(kl_to_teacher(theirs, theirs)) == 0
    assert float(kl_to_teacher(2 * ours, 2 * theirs, 2.0)) == pytest.approx(4 * want, rel=1e-12)
    assert float(kl_to_teacher(ours, theirs)) != pytest.approx(float(kl_to_teacher(theirs, ours)))


def test_fidelity_of_the_teacher_to_itself() -> None:
    """The teacher agrees with itself everywhere; less KL sorts first."""
    model, found = small_teacher().model, views(4, "sparse")
    assert fidelity(model, found, found.logits(model)) == Fidelity(0.0, 1.0)
    other = [-logits for logits in found.logits(model)]
    assert fidelity(model, found, other).agreement < 0.5
    assert Fidelity(0.1, 0.5) < Fidelity(0.2, 0.9)
