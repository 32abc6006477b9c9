"""The figures mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aeimg import UsageError, metrics
from aeimg.metrics import bd_rate, bits_per_pixel, ms_ssim, psnr, ssim

CURVE = [(0.2, 27.0), (0.4, 30.0), (0.8, 33.0), (1.6, 36.5)]


def test_psnr_of_a_known_error(photograph):
    assert psnr(photograph, photograph) == math.inf
    off = np.clip(photograph.astype(int) + 1, 0, 255).astype(np.uint8)
    assert psnr(off[off < 255], photograph[off < 255]) == pytest.approx(20 * math.log10(255))


def test_ssim_is_that_of_scikit_image(photograph):
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    noisy = np.clip(photograph + rng.normal(0, 20, photograph.shape), 0, 255).astype(np.uint8)
    theirs = structural_similarity(
        photograph, noisy, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(photograph, noisy) == pytest.approx(theirs, abs=2e-3)
    assert 0 < ms_ssim(photograph, noisy) < ms_ssim(photograph, photograph) == pytest.approx(1)


def test_half_the_bits_at_every_quality_is_minus_fifty_percent():
    assert bd_rate(CURVE, [(bpp / 2, quality) for bpp, quality in CURVE]) == pytest.approx(-50)
    assert bd_rate(CURVE, CURVE) == pytest.approx(0)


def test_bd_rate_agrees_with_the_published_points_of_webp_against_jpeg():
    jpeg = [
        (0.268, 26.67),
        (0.458, 29.15),
        (0.615, 30.49),
        (0.865, 32.17),
        (1.193, 33.92),
        (1.504, 35.37),
        (2.207, 38.03),
    ]
    webp = [
        (0.155, 26.98),
        (0.274, 28.93),
        (0.476, 31.23),
        (0.673, 33.01),
        (0.877, 34.48),
        (1.154, 36.18),
        (1.930, 39.45),
    ]
    assert bd_rate(jpeg, webp) == pytest.approx(-34.0, abs=1.0)


def test_curves_that_do_not_meet_or_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="no common quality"):
        bd_rate(CURVE, [(bpp, quality + 20) for bpp, quality in CURVE])
    with pytest.raises(ValueError, match="different quality"):
        bd_rate(CURVE, [(0.1, 30.0), (0.2, 30.0)])


def test_bits_per_pixel_counts_the_whole_file():
    assert bits_per_pixel(1000, 100, 80) == 1.0


def test_the_metrics_of_the_eye_agree_on_what_is_worse(photograph):
    rng = np.random.default_rng(0)
    slightly, badly = (
        np.clip(photograph + rng.normal(0, sigma, photograph.shape), 0, 255).astype(np.uint8) for sigma in (3, 20)
    )
    assert metrics.ssimulacra2(photograph, photograph) == 100
    assert metrics.ssimulacra2(photograph, slightly) > metrics.ssimulacra2(photograph, badly) + 20
    assert metrics.ms_ssim_db(photograph, slightly) > metrics.ms_ssim_db(photograph, badly) + 5
    if not metrics.has_butteraugli():
        pytest.skip("butteraugli_main of libjxl is not installed")
    assert metrics.butteraugli(photograph, slightly) < metrics.butteraugli(photograph, badly)


def test_what_measures_is_named_where_it_is_missing(photograph, monkeypatch):
    monkeypatch.setattr(metrics, "has_ssimulacra2", lambda: False)
    with pytest.raises(UsageError, match="aeimg\\[metrics\\]"):
        metrics.ssimulacra2(photograph, photograph)
    monkeypatch.setattr(metrics, "BUTTERAUGLI", "no-such-program")
    assert not metrics.has_butteraugli()
    with pytest.raises(UsageError, match="no-such-program"):
        metrics.butteraugli(photograph, photograph)
