"""Total variation and its written-out gradient."""

import pytest
import torch
from torch import Tensor

from inversion.variation import variation


def _plain_tv(image: Tensor) -> Tensor:
    """Sum over the four directions of the norm of neighbour differences, pixel by pixel: image [C, H, W]."""
    channels, height, width = image.shape
    total = image.new_zeros(())
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = [
            (image[c, y + down, x + right] - image[c, y, x]) ** 2
            for c in range(channels)
            for y in range(height - down)
            for x in range(max(0, -right), width - max(0, right))
        ]
        total = total + torch.stack(squares).sum().sqrt()
    return total


def test_total_variation_is_the_plain_formula() -> None:
    """Horizontal, vertical and both diagonal differences, a Frobenius norm each, an image by itself."""
    images = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = torch.stack([_plain_tv(image) for image in images])
    # the same float64 squares, summed in another order
    torch.testing.assert_close(variation(images)[0], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["image", "batch"])
def test_gradient_is_autograds(norm: str) -> None:
    """The gradient of the sum over images; of the norms over the whole batch, times B."""
    images = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images.requires_grad_()
    if norm == "image":
        total = torch.stack([_plain_tv(image) for image in images]).sum()
    else:
        wide = images.reshape(1, 6, 5, 7)
        total = 3 * _plain_tv(wide[0])
    (want,) = torch.autograd.grad(total, images)
    found, gradient = variation(images.detach(), norm)
    # the same float64 terms, summed in another order
    torch.testing.assert_close(found.sum(), total.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-12)


def test_a_flat_image_has_no_gradient() -> None:
    """Where all pixels are equal, the norm has a kink and the gradient is 0, not a division by it."""
    total, gradient = variation(torch.full((2, 3, 4, 4), 0.3))
    assert total.tolist() == [0, 0]
    assert not gradient.any()
