"""The shipped denoiser takes noise away, in tiles as in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aeimg import process, zoo
from aeimg.denoise import denoise, estimate_sigma
from aeimg.metrics import psnr

CPU = torch.device("cpu")


def noisy(x: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    return (x / 255 + np.random.default_rng(seed).normal(0, sigma / 255, x.shape)).astype(np.float32)


def score(result: np.ndarray, clean: np.ndarray) -> float:
    return psnr(np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8), clean)


@pytest.mark.parametrize(("sigma", "gain"), [(15, 8.0), (25, 10.0), (50, 14.0)])
@pytest.mark.parametrize("told", [True, False])
def test_white_noise_is_taken_away(photograph, sigma, gain, told):
    x = noisy(photograph, sigma)
    clean = process(x, "denoise", sigma=sigma if told else "auto")
    assert score(clean, photograph) > score(x, photograph) + gain


def test_greyscale_noise_is_taken_away(photograph):
    from PIL import Image

    grey = np.asarray(Image.fromarray(photograph).convert("L"))
    clean = process(noisy(grey, 25), "denoise", sigma=25)
    assert clean.shape == grey.shape
    assert score(clean, grey) > score(noisy(grey, 25), grey) + 8


def test_no_colour_shifts(photograph):
    clean = process(noisy(photograph, 25), "denoise", sigma=25)
    assert np.abs((clean - photograph / 255).mean((0, 1))).max() < 0.5 / 255


def test_strength_scales_from_untouched_to_full(photograph):
    x = noisy(photograph, 25)[:96, :96]
    full = process(x, "denoise", sigma=25)
    np.testing.assert_allclose(process(x, "denoise", sigma=25, strength=0), x, atol=1e-6)
    np.testing.assert_allclose(process(x, "denoise", sigma=25, strength=0.5), (x + full) / 2, atol=1e-5)


def test_tiles_leave_no_seam(photograph):
    model = zoo.get(None, "denoise", CPU)
    x = torch.from_numpy(noisy(photograph, 25)).permute(2, 0, 1)[None]
    sigma = torch.tensor([25.0])
    whole = denoise(model, x, sigma, device=CPU, dtype=torch.float32)
    tiled = denoise(model, x, sigma, device=CPU, dtype=torch.float32, tile=64)
    assert float((whole - tiled).abs().max()) < 1e-5


@pytest.mark.parametrize("sigma", [5, 15, 50])
def test_the_level_of_white_noise_is_found(photograph, sigma):
    x = noisy(photograph, sigma).transpose(2, 0, 1)
    assert estimate_sigma(x) == pytest.approx(sigma, abs=0.5)


def test_tiny_images_are_taken_for_clean_rather_than_guessed_at():
    assert estimate_sigma(np.zeros((3, 5, 5), np.float32)) == 0


@pytest.mark.slow
def test_cbsd68_at_sigma_25_reaches_the_figure_of_the_first_release(data):
    from aeimg.bench import bench_denoise

    figures = bench_denoise(data / "cbsd68", sigmas=(25,), dtype="fp32")
    assert figures["images"] == 68
    assert figures["sigmas"]["25"]["told"] >= 30.8
    assert figures["sigmas"]["25"]["auto"] >= figures["sigmas"]["25"]["told"] - 0.05
