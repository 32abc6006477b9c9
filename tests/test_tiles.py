"""A tiled result is that of the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aeimg.tiles import grid, mirror, pad, padded, run_tiled


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


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (1, 4), (5, 2), (7, 7)])
def test_mirroring_is_that_of_numpy(shape):
    x = torch.arange(float(shape[0] * shape[1])).view(1, 1, *shape)
    expected = np.pad(x[0, 0].numpy(), ((0, 8 - shape[0]), (0, 9 - shape[1])), mode="reflect")
    assert mirror(x, 8, 9)[0, 0].tolist() == expected.tolist()
    assert mirror(x, *shape) is x


def test_padding_repeats_the_edge():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad(x, 3, 5)[0, 0].tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5], [3, 4, 5, 5, 5]]
    assert padded(17, 16) == 32
    assert padded(16, 16) == 16
