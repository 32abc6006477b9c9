"""The SSIMULACRA2 that gradients pass through is the one that the package measures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from aeimg import metrics
from aeimg.ssimulacra2 import _blur_matrix, ssimulacra2


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_it_agrees_with_the_package_to_within_two_points(photograph, quality):
    distorted = as_jpeg(photograph, quality)
    expected = metrics.ssimulacra2(photograph, distorted)
    assert 30 < expected < 95
    assert float(ssimulacra2(tensor(photograph), tensor(distorted))) == pytest.approx(expected, abs=2)


def test_equal_images_score_a_hundred_and_have_a_finite_slope(small):
    x = tensor(small)
    y = x.clone().requires_grad_()
    score = ssimulacra2(x, y)
    score.sum().backward()
    assert float(score.detach()) > 98.5
    assert torch.isfinite(y.grad).all()


def test_the_slope_leads_to_higher_scores(small):
    x = tensor(small)[:, :, :96, :128]
    y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    before = ssimulacra2(x, y)
    before.sum().backward()
    with torch.no_grad():
        after = ssimulacra2(x, y + 0.02 * y.grad / y.grad.abs().max())
    assert float(after) > float(before.detach()) + 1


def test_black_and_values_outside_the_range_have_finite_slopes():
    x = torch.zeros(2, 3, 64, 64)
    y = torch.full_like(x, -0.2).requires_grad_()
    ssimulacra2(x, y).sum().backward()
    assert torch.isfinite(y.grad).all()


def test_each_image_of_a_batch_is_scored_by_itself(small):
    x = torch.cat([tensor(small)[:, :, :96, :96], tensor(small)[:, :, 5:101, 40:136]])
    y = (x + 0.05).clamp(0, 1)
    both = ssimulacra2(x, y)
    torch.testing.assert_close(
        both, torch.cat([ssimulacra2(x[n : n + 1], y[n : n + 1]) for n in range(2)]), rtol=1e-4, atol=0
    )


def test_it_has_slopes_also_where_it_was_used_first_without(small):
    """`--effort` came after a measurement, and autograd saves no tensors that were made for inference."""
    x = tensor(small)[:, :, :64, :80]
    _blur_matrix.cache_clear()
    with torch.inference_mode():
        ssimulacra2(x.clone(), x.clone())
    y = x.clone().requires_grad_()
    ssimulacra2(x, y).sum().backward()
    assert torch.isfinite(y.grad).all()
