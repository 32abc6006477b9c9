"""A tiled result is that of the whole image."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from aeimg.tiles import grid, run_tiled


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 37), (16, 200), (65, 129)])
def test_tiles_cover_every_pixel_once_and_stay_inside(height, width):
    seen = torch.zeros(height, width)
    for tile in grid(height, width, 32, 8):
        tile.kept(seen).add_(1)
        assert tile.inner(tile.cut(seen)).shape == tile.kept(seen).shape
        assert tile.bottom <= height and tile.right <= width
    assert (seen == 1).all()


def test_a_halo_as_large_as_the_reach_leaves_no_seam():
    kernel = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    x = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(1))

    def network(part):
        return F.conv2d(part, kernel, padding=4)

    torch.testing.assert_close(run_tiled(network, x, 32, 8), network(x), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(run_tiled(network, x, 32, 0), network(x), atol=1e-2)
