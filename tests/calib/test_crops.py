"""Random crops: parts of the picture, enlarged, mirrored half the time."""

import torch
from torch import Generator

from calib.augment import random_crops


def test_crops_stay_inside_the_picture() -> None:
    """Of a ramp from left to right, a crop is a ramp of half to all of its slope, within its ends."""
    ramp = torch.linspace(-1, 1, 64).expand(200, 1, 64, 64)
    crops = random_crops(ramp, Generator().manual_seed(0))
    assert crops.shape == ramp.shape
    assert float(crops.abs().max()) < 1.1
    slope = (crops[:, 0, 32, 48] - crops[:, 0, 32, 16]) / (ramp[:, 0, 32, 48] - ramp[:, 0, 32, 16])
    assert float(slope.abs().min()) > 0.49
    assert float(slope.abs().max()) < 1.01
    assert 60 < int((slope < 0).sum()) < 140
    torch.testing.assert_close(crops[:, 0, 3], crops[:, 0, 60], atol=1e-4, rtol=0)  # upright: rows are alike
    assert float(slope.abs().square().mean() - 0.625) < 0.05  # areas from 25% to 100%


def test_crops_depend_on_the_generator_alone() -> None:
    """The same draws, the same crops; other draws, others; each picture has its own."""
    picture = torch.randn(1, 3, 32, 32, generator=Generator().manual_seed(1)).expand(2, -1, -1, -1)
    first, again, other = (random_crops(picture, Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])
