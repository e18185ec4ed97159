"""Features: the tokens behind each block, and how far they stray."""

import pytest
import torch

from calib.features import feature_error, forward_features
from inversion.sparse import sparse_forward
from tests.small import small_teacher, views


@pytest.mark.parametrize("kind", ["mosaic", "sparse"])
def test_logits_are_those_of_the_sparse_forward(kind: str) -> None:
    """Bit for bit, with the tokens of every block beside them."""
    model = small_teacher().model
    for patches, kept in views(3, kind).groups:
        logits, behind = forward_features(model, patches, kept)
        assert torch.equal(logits, sparse_forward(model, patches, kept))
        assert [each.shape for each in behind] == [(len(patches), 1 + patches.shape[1], 32)] * 2
        assert torch.equal(model.blocks[1](behind[0]), behind[1])


def test_feature_error_is_relative_to_each_blocks_spread() -> None:
    """Squared error over the teacher's variance, whatever its scale; the mean over blocks; 0 where equal."""
    generator = torch.Generator().manual_seed(0)
    theirs = [torch.randn(2, 3, 4, generator=generator), 100 * torch.randn(2, 3, 4, generator=generator) + 7]
    ours = [theirs[0] + 1, theirs[1]]
    spread = ((theirs[0] - theirs[0].mean((0, 1))) ** 2).sum()
    torch.testing.assert_close(feature_error(ours, theirs), 0.5 * 24 / spread)
    assert float(feature_error(theirs, theirs)) == 0
    scaled = feature_error([50 * each for each in ours], [50 * each for each in theirs])
    torch.testing.assert_close(scaled, feature_error(ours, theirs))
