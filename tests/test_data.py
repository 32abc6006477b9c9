"""What training data is made of: crops, pairs, and each degradation by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as images
from skimage.filters import gaussian

from aeimg import DataError
from aeimg.training.datasets import Pairs, Photographs
from aeimg.training.degradations import (
    CURVES,
    add_blotches,
    add_sensor_noise,
    chroma_softened,
    colour_of,
    demosaic,
    mosaic,
    photographed,
    resized,
    saved_as_jpeg,
    sharpened,
    softened,
    source_side,
    through_jpeg,
    through_jpegs,
    to_linear,
    to_srgb,
    turn_grey,
)

POSITIONS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def face():
    return torch.from_numpy(images.astronaut()[:192, 128:320].copy()).permute(2, 0, 1)[None].float() / 255


def generator():
    return torch.Generator().manual_seed(0)


def db(x, y):
    return float(-10 * torch.log10((x - y).square().mean()))


def test_linear_light_and_back_is_the_same_and_half_of_it_is_the_known_grey(face):
    assert (to_srgb(to_linear(face)) - face).abs().max() < 1e-5
    assert float(to_srgb(torch.tensor(0.5))) == pytest.approx(0.7354, abs=1e-4)


def test_sensor_noise_grows_with_light_as_stated():
    levels = torch.tensor([0.0, 0.1, 0.8])
    light = levels.repeat_interleave(256 * 256).view(1, 1, 3 * 256, 256).expand(1, 3, -1, -1)
    noisy = add_sensor_noise(light, torch.tensor([0.1]), torch.tensor([0.02]), generator())
    seen = (noisy - light).view(3, 3, -1).var(2).mean(0)
    torch.testing.assert_close(seen, 0.1**2 * levels + 0.02**2, rtol=0.02, atol=0)
    assert abs(float((noisy - light).mean())) < 1e-3


@pytest.mark.parametrize("red", POSITIONS)
def test_a_mosaic_keeps_one_colour_of_each_pixel(face, red):
    seen = mosaic(face, red)[:, 0]
    row, column = red
    torch.testing.assert_close(seen[:, row::2, column::2], face[:, 0, row::2, column::2])
    torch.testing.assert_close(seen[:, 1 - row :: 2, 1 - column :: 2], face[:, 2, 1 - row :: 2, 1 - column :: 2])
    torch.testing.assert_close(seen[:, row::2, 1 - column :: 2], face[:, 1, row::2, 1 - column :: 2])


@pytest.mark.parametrize("red", POSITIONS)
def test_demosaicing_is_exact_on_flat_colour_and_near_on_a_photograph(face, red):
    flat = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(demosaic(mosaic(flat, red), red), flat, rtol=0, atol=1e-5)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    good = db(demosaic(mosaic(face, red), red)[inner], face[inner])
    other = (1 - red[0], red[1])
    assert good > 32
    assert db(demosaic(mosaic(face, red), other)[inner], face[inner]) < good - 5


def test_a_mosaic_ties_the_noise_of_neighbours_together():
    grey = torch.full((1, 3, 128, 128), 0.5)
    white = add_sensor_noise(grey, torch.tensor([0.0]), torch.tensor([0.05]), generator())
    after = demosaic(mosaic(white, (0, 0)), (0, 0))

    def correlation(x):
        x = x - x.mean()
        return float((x[..., 1:] * x[..., :-1]).mean() / x.square().mean())

    assert abs(correlation(white)) < 0.02
    assert correlation(after[:, 0]) > 0.2


def test_sharpening_lifts_edges_and_leaves_flat_areas(face):
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(sharpened(flat, torch.tensor([1.0]), torch.tensor([1.0])), flat)
    step = (torch.arange(8) >= 4).float().expand(1, 3, 8, 8) * 0.5 + 0.25
    lifted = sharpened(step, torch.tensor([1.0]), torch.tensor([0.8]))
    assert float(lifted.max()) > 0.75
    assert float(lifted.min()) < 0.25
    torch.testing.assert_close(sharpened(face, torch.tensor([0.0]), torch.tensor([0.8])), face)


def test_a_large_radius_draws_halos_far_from_the_edge():
    step = (torch.arange(32) >= 16).float().expand(1, 3, 32, 32) * 0.5 + 0.25
    narrow, wide = (sharpened(step, torch.tensor([1.0]), torch.tensor([radius]))[0, 0, 16] for radius in (0.6, 2.0))
    assert float(narrow[18]) == pytest.approx(0.75, abs=2e-3)
    assert float(wide[18]) > 0.79


@pytest.mark.parametrize("name", CURVES)
def test_tone_curves_lead_to_linear_light_and_back(face, name):
    to_raw, from_raw = CURVES[name]
    assert (from_raw(to_raw(face)) - face).abs().max() < 2e-3
    light = to_raw(torch.linspace(0, 1, 50))
    assert (light.diff() > 0).all()


def test_tone_curves_differ_in_how_noisy_they_leave_the_dark():
    light = torch.full((1, 3, 64, 64), 0.02)
    noisy = add_sensor_noise(light, torch.tensor([0.02]), torch.tensor([0.001]), generator())
    spread = {name: float(from_raw(noisy.clamp(min=1e-6)).std()) for name, (_, from_raw) in CURVES.items()}
    assert spread["srgb"] > 1.3 * spread["flat"]
    assert spread["srgb"] > 1.3 * spread["film"]


def correlations(x: torch.Tensor) -> list[float]:
    """The correlation of `x` `[...,H,W]` with itself, 1 to 4 pixels to the side."""
    x = x - x.mean()
    return [float((x[..., lag:] * x[..., :-lag]).mean() / x.square().mean()) for lag in (1, 2, 3, 4)]


def test_blotches_are_broad_and_have_no_luma(face):
    blotched = add_blotches(face.expand(2, -1, -1, -1), torch.tensor([0.0, 6.0]), 6, generator())
    torch.testing.assert_close(blotched[0], face[0])
    added = blotched[1:] - face
    assert float(added.square().mean().sqrt()) * 255 == pytest.approx(6, abs=0.01)
    torch.testing.assert_close(colour_of(added), added, atol=1e-6, rtol=0)
    assert correlations(added)[3] > 0.4
    narrow = add_blotches(face, torch.tensor([6.0]), 2, generator()) - face
    assert correlations(narrow)[3] < 0.1


def test_chroma_softening_keeps_luma_and_ties_colours_together(face):
    noisy = face + torch.randn(face.shape, generator=generator()) * 0.05
    after = chroma_softened(noisy, torch.tensor([1.5]))
    torch.testing.assert_close(after - colour_of(after), noisy - colour_of(noisy), atol=1e-5, rtol=0)
    noise = colour_of(after) - colour_of(chroma_softened(face, torch.tensor([1.5])))
    assert correlations(noise)[0] > 0.8
    assert float(noise.std()) < 0.4 * float(colour_of(noisy - face).std())


def test_enlarging_ties_the_noise_of_neighbours_together():
    noise = resized(torch.randn(1, 3, 96, 96, generator=generator()) * 0.1, 160, "bicubic")
    assert correlations(noise)[0] > 0.5


def test_generations_of_jpeg_add_up_and_leave_what_is_to_be_untouched(face):
    batch = face.expand(4, -1, -1, -1)
    untouched = np.array([True, False, False, False])
    results = [through_jpegs(batch, np.random.default_rng(seed), untouched) for seed in range(24)]
    assert all(torch.equal(result[0], face[0]) for result in results)
    times = [int(np.random.default_rng(seed).choice([1, 2, 3], p=[0.7, 0.2, 0.1])) for seed in range(24)]
    once, more = (
        np.mean([db(result[1:], batch[1:]) for result, n in zip(results, times, strict=True) if (n > 1) == several])
        for several in (False, True)
    )
    assert once > more + 0.5


def test_the_noise_of_synthetic_cameras_is_tied_together_as_that_of_real_ones():
    """Of real pairs (PolyU), neighbours correlate by 0.62 in luma and by 0.91 in chroma, and chroma over 4 pixels by
    0.56."""
    grey = torch.full((4, 3, 128, 128), 0.4)
    luma, chroma = [], []
    for seed in range(16):
        clean, noisy = photographed(grey, np.random.default_rng(seed), side=128, clean=0, white=0)
        noise = noisy - clean
        luma.append(correlations((noise - colour_of(noise))[:, :1]))
        chroma.append(correlations(colour_of(noise)))
    (first_luma, *_), (first_chroma, *_, last_chroma) = np.mean(luma, 0), np.mean(chroma, 0)
    assert 0.3 < first_luma < 0.75
    assert 0.7 < first_chroma < 0.95
    assert last_chroma > 0.2


def test_resizing_keeps_the_mean_and_thins_the_noise():
    noise = torch.randn(1, 3, 128, 128, generator=generator()) * 0.1 + 0.5
    for kind in ("bilinear", "bicubic"):
        small = resized(noise, 64, kind)
        assert small.shape == (1, 3, 64, 64)
        assert float(small.mean()) == pytest.approx(0.5, abs=2e-3)
        assert float(small.std()) < 0.07


def test_softened_pictures_are_blurred_by_the_gaussian_of_each(face):
    sharp, soft, softest = softened(face.expand(3, -1, -1, -1), torch.tensor([0.0, 0.7, 2.0]))
    assert torch.equal(sharp, face[0])
    for blurred, sigma in ((soft, 0.7), (softest, 2.0)):
        expected = gaussian(face[0].numpy(), sigma, mode="mirror", truncate=3.0, channel_axis=0)
        np.testing.assert_allclose(blurred.numpy(), expected, atol=2e-3)


def test_jpeg_is_that_of_each_image_and_less_quality_is_further_away(face):
    batch = face.expand(4, -1, -1, -1)
    best, good, poor, untouched = through_jpeg(batch, [95, 75, 30, None], [0, 2, 2, 2])[:, None]
    assert torch.equal(untouched, face)
    assert db(best, face) > db(good, face) + 1 > db(poor, face) + 2
    full, half = through_jpeg(batch[:2], [90, 90], [0, 2])[:, None]
    assert db(full, face) > db(half, face)


def test_photographs_are_registered_repeatable_and_sometimes_clean(face):
    crops = face.expand(8, -1, -1, -1)
    untouched = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        clean, noisy = photographed(crops, rng, side=96, clean=0.3)
        assert clean.shape == noisy.shape == (8, 3, 96, 96)
        assert torch.isfinite(noisy).all()
        again = photographed(crops, np.random.default_rng(seed), side=96, clean=0.3)
        assert torch.equal(again[0], clean)
        assert torch.equal(again[1], noisy)
        difference = (noisy - clean).abs().flatten(1).max(1).values
        untouched += int((difference < 0.02).sum())
        # Nothing moves: the difference is of high frequency, so that blurred pictures agree.
        blurred = torch.nn.functional.avg_pool2d(noisy - clean, 16).abs().mean()
        assert float(blurred) < 0.05
    assert 12 < untouched < 50  # of 96
    assert crops.untyped_storage().data_ptr() == face.untyped_storage().data_ptr()
    assert torch.equal(crops[0], face[0])


def test_pictures_that_jpeg_has_marked_lie_on_its_steps(face):
    """At quality 75 at the finest: the levels of a frequency in luma are multiples of its step, clean pictures' too."""
    seen = set()
    for seed in range(6):
        noisy = saved_as_jpeg(face.expand(8, -1, -1, -1), np.random.default_rng(seed))
        luma = ((noisy * 255 * torch.tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1) - 128).numpy()
        blocks = luma.reshape(8, 24, 8, 24, 8).transpose(0, 1, 3, 2, 4)
        wave = np.cos(np.pi * (2 * np.arange(8) + 1) / 16) / 32**0.5  # the first horizontal frequency of the DCT
        first = (blocks * wave).sum((-1, -2)).reshape(8, -1)
        for levels in first:
            levels = levels[abs(levels) > 8]
            fits = {step: np.cos(2 * np.pi * levels / step).mean() for step in range(2, 20)}
            seen.add(max(fits, key=lambda step: (fits[step] > 0.5) * step))
    assert len(seen) >= 4
    assert seen <= set(range(2, 13))  # of quality 92 and 50


def test_sources_come_in_even_sides_of_half_to_twice():
    rng = np.random.default_rng(0)
    sides = [source_side(96, rng) for _ in range(500)]
    assert all(side % 2 == 0 and 48 <= side <= 192 for side in sides)
    assert 150 < sides.count(96) < 260


def test_turning_grey_leaves_the_rest_alone(face):
    torch.testing.assert_close(turn_grey(face, np.random.default_rng(0), share=0.0), face)
    grey = turn_grey(face, np.random.default_rng(0), share=1.0)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


@pytest.fixture
def taken_twice(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
        for folder, x in (("clean", pixels), ("noisy", 255 - pixels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(x).save(tmp_path / folder / f"{number}.png")
    return tmp_path


def test_pairs_are_cropped_and_turned_together(taken_twice):
    pairs = Pairs(taken_twice, min_side=32)
    crops = pairs.crops(np.random.default_rng(0), 5, 32)
    assert crops.shape == (5, 6, 32, 32)
    assert torch.equal(crops[:, 3:], 255 - crops[:, :3])


def test_a_pair_without_a_partner_or_of_two_sizes_is_named(taken_twice):
    Image.new("RGB", (40, 40)).save(taken_twice / "noisy" / "1.png")
    with pytest.raises(DataError, match=r"1\.png.*another size"):
        Pairs(taken_twice, min_side=32)
    (taken_twice / "noisy" / "1.png").unlink()
    with pytest.raises(DataError, match=r"clean/1\.png: has no partner"):
        Pairs(taken_twice, min_side=32)


def test_photographs_count_what_is_usable(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="0 usable images"):
        Photographs(tmp_path, min_side=32)
