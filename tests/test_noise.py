"""The shipped denoiser takes noise away, in tiles as in one piece."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data as images

from aeimg import InputError, contract, process, registry
from aeimg.metrics import psnr
from aeimg.noise import check, estimate_sigma, measure_noise
from aeimg.tasks.declared import DENOISE
from aeimg.tasks.denoise import Denoise, run_denoiser
from aeimg.tasks.options import DenoiseOptions
from aeimg.training.degradations import demosaic, mosaic, resized, through_jpeg

CPU = torch.device("cpu")


def noisy(x: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    return (x / 255 + np.random.default_rng(seed).normal(0, sigma / 255, x.shape)).astype(np.float32)


def score(result: np.ndarray, clean: np.ndarray) -> float:
    return psnr(np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8), clean)


@pytest.mark.parametrize(("sigma", "gain"), [(15, 8.0), (25, 10.0), (50, 14.0)])
@pytest.mark.parametrize("known", [True, False])
def test_white_noise_is_taken_away(photograph, sigma, gain, known):
    x = noisy(photograph, sigma)
    clean = process(x, "denoise", sigma=sigma if known else "auto")
    assert score(clean, photograph) > score(x, photograph) + gain


def test_greyscale_noise_is_taken_away(photograph):
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
    np.testing.assert_array_equal(process(x, "denoise", sigma=25, strength=0), x)
    np.testing.assert_allclose(process(x, "denoise", sigma=25, strength=0.5), (x + full) / 2, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_come_back_as_integers_of_the_same_depth(photograph, dtype):
    peak = np.iinfo(dtype).max
    x = np.rint(np.clip(noisy(photograph[:96, :96], 15), 0, 1) * peak).astype(dtype)
    clean = process(x, "denoise", sigma=15, dtype="fp32")
    assert clean.dtype == dtype
    np.testing.assert_array_equal(process(x, "denoise", sigma=15, strength=0), x)
    floats = process((x / peak).astype(np.float32), "denoise", sigma=15, dtype="fp32")
    assert np.abs(clean / peak - np.clip(floats, 0, 1)).max() <= 0.51 / peak + 1e-6


class Scaled(contract.Denoiser):
    """Stands for a network: halves what it gets, where that is not out of its depth."""

    multiple, halo = 4, 0

    def __init__(self, safe: torch.dtype | None) -> None:
        self.safe = safe
        self.precisions: list[torch.dtype] = []

    def __call__(self, x, sigma):
        enabled = torch.is_autocast_enabled("cpu")
        precision = torch.get_autocast_dtype("cpu") if enabled else torch.float32
        self.precisions.append(precision)
        return x / 2 if precision == self.safe else x / 0


def test_a_tile_that_is_not_finite_is_computed_again_in_fp32():
    model = Scaled(torch.float32)
    x = torch.full((1, 3, 8, 8), 0.5)
    result = run_denoiser(model, x, torch.tensor([5.0]), device=CPU, dtype=torch.bfloat16, tile=4)
    assert model.precisions == [torch.bfloat16, torch.float32] * 4
    assert float(result.max()) == 0.25


def test_bf16_loses_nothing_of_bright_pixels(photograph):
    """Between a half and one, bf16 has no finer steps than 8 bits do."""
    bright = (0.5 + photograph[:256, :256] / 510).astype(np.float32)
    x = bright + noisy(np.zeros_like(bright), 5)
    bf16, fp32 = (np.square(process(x, "denoise", sigma=5, dtype=dtype) - bright).mean() for dtype in ("bf16", "fp32"))
    assert bf16 < 1.005 * fp32


def test_a_model_runs_in_fp32_where_it_does_not_state_the_precision():
    for stated, expected in (((torch.float32,), torch.float32), ((torch.float32, torch.bfloat16), torch.bfloat16)):
        model = Scaled(expected)
        model.dtypes = stated
        run_denoiser(model, torch.ones(1, 3, 8, 8), torch.tensor([5.0]), device=CPU, dtype=torch.bfloat16)
        assert model.precisions == [expected]


def test_what_is_not_finite_in_fp32_either_is_reported():
    with pytest.raises(InputError, match="not finite"):
        run_denoiser(Scaled(None), torch.ones(1, 3, 8, 8), torch.tensor([5.0]), device=CPU, dtype=torch.bfloat16)


def test_an_image_with_values_that_are_not_finite_is_refused_by_itself(small):
    broken = (small / 255).astype(np.float32)
    broken[0, 0] = np.nan
    good = (small / 255).astype(np.float32)
    results = list(process([broken, good], "denoise", sigma=5, on_error="continue"))
    assert isinstance(results[0], InputError)
    assert results[1].shape == good.shape


def test_a_model_without_a_halo_is_never_tiled():
    seen = []

    def whole(x, sigma):
        seen.append(x.shape[2:])
        return x

    x = torch.rand(1, 3, 50, 40)
    model = contract.complete(whole, "denoise")
    assert torch.equal(run_denoiser(model, x, torch.tensor([1.0]), device=CPU, dtype=torch.float32, tile=16), x)
    assert seen == [(50, 40)]


@pytest.mark.parametrize("name", registry.CHOICES)
def test_tiles_differ_from_the_whole_by_nothing_that_shows(photograph, name):
    model = registry.get(name, "denoise", CPU)
    big = np.tile(photograph, (3, 2, 1))[:800, :800]
    x = torch.from_numpy(np.clip(noisy(big, 25), 0, 1)).permute(2, 0, 1)[None]
    sigma = torch.tensor([25.0])
    whole = run_denoiser(model, x, sigma, device=CPU, dtype=torch.float32)
    tiled = run_denoiser(model, x, sigma, device=CPU, dtype=torch.float32, tile=256)
    difference = (whole - tiled).abs() * 255
    assert float(difference.max()) <= 1
    assert float(difference.mean()) <= 0.01


# -- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [5, 15, 50])
def test_the_level_of_white_noise_is_found(photograph, sigma):
    x = noisy(photograph, sigma).transpose(2, 0, 1)
    assert estimate_sigma(x) == pytest.approx(sigma, abs=0.5)
    assert measure_noise(x).white()


def test_integers_are_measured_as_floats_are(photograph):
    x = np.clip(noisy(photograph, 10), 0, 1).transpose(2, 0, 1)
    for dtype in (np.uint8, np.uint16):
        peak = np.iinfo(dtype).max
        assert estimate_sigma(np.rint(x * peak).astype(dtype)) == pytest.approx(estimate_sigma(x), abs=0.1)


def test_tiny_images_are_taken_for_clean_rather_than_guessed_at():
    assert estimate_sigma(np.zeros((3, 5, 5), np.float32)) == 0


def test_noise_that_has_been_through_something_is_not_taken_for_white(photograph):
    x = torch.from_numpy(noisy(photograph, 25)).permute(2, 0, 1)[None]
    square = x[:, :, :256, :256].clamp(0, 1)
    assert not measure_noise(through_jpeg(square, [90], [2])[0].numpy()).white()
    assert not measure_noise(resized(square, 384, "bicubic")[0].numpy()).white()
    mosaiced = demosaic(mosaic(square, (0, 0)), (0, 0))
    assert not measure_noise(mosaiced[0].numpy()).white()
    light = torch.from_numpy(images.astronaut()[:300, :300] / 255).permute(2, 0, 1)[None].float()
    sensor = light + light.sqrt() * 0.15 * torch.randn(light.shape, generator=torch.Generator().manual_seed(0))
    assert not measure_noise(sensor[0].numpy()).white()
    assert not measure_noise(photograph.transpose(2, 0, 1)).white()


def jpeg_step(pixels: np.ndarray) -> float:
    return measure_noise(pixels).step


@pytest.mark.parametrize("sigma", [0, 25])
@pytest.mark.parametrize(("quality", "step"), [(85, 4), (75, 6), (50, 12), (30, 21)])
def test_the_steps_of_jpeg_are_found(photograph, sigma, quality, step):
    x = torch.from_numpy(noisy(photograph, sigma)).permute(2, 0, 1)[None].float().clamp(0, 1)
    coded = through_jpeg(x, [quality], [2])
    assert jpeg_step(coded[0].numpy()) == pytest.approx(step, abs=1.5)
    eight = (coded[0] * 255).round().byte().numpy()
    assert jpeg_step(eight) == jpeg_step(coded[0].numpy())
    luma = (coded[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    assert jpeg_step(luma.numpy()) == pytest.approx(step, abs=1.5)


def test_no_steps_are_found_where_there_are_none(photograph):
    x = torch.from_numpy(noisy(photograph, 10)).permute(2, 0, 1)[None].float().clamp(0, 1)
    coded = through_jpeg(x, [75], [2])
    untouched, off_the_grid, resized_since = x, coded[:, :, 3:, 5:], resized(coded[:, :, :400, :400], 384, "bicubic")
    fine = through_jpeg(x, [95], [0])
    for picture in (untouched, off_the_grid, resized_since, fine, coded[:, :, :7], coded[:, :, :8, :8]):
        assert jpeg_step(picture[0].numpy()) < 3
    assert jpeg_step(np.full((3, 64, 64), 128, np.uint8)) == 0


# -- which model -----------------------------------------------------------------------------------------------------


def chosen(folder, tmp_path, **options):
    summary = process(folder, "denoise", out=tmp_path / "out", if_exists="overwrite", **options)
    return {Path(record["input"]).name: record for record in summary.files}


@pytest.fixture
def mixed(tmp_path, photograph):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.rint(np.clip(noisy(photograph, 20), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "white.png")
    Image.fromarray(pixels).save(folder / "phone.jpg", quality=90)
    Image.fromarray(pixels).save(folder / "sent.jpg", quality=75)
    Image.open(folder / "sent.jpg").save(folder / "saved again.png")
    Image.fromarray(photograph).save(folder / "clean.png")
    return folder


def test_each_picture_gets_the_model_that_its_noise_asks_for_and_is_told_why(mixed, tmp_path):
    records = chosen(mixed, tmp_path)
    white, blind, jpeg = (
        registry.get(name, "denoise", CPU).label for name in (registry.WHITE, registry.BLIND, registry.JPEG)
    )
    assert {name: record["model"] for name, record in records.items()} == {
        "white.png": white, "phone.jpg": blind, "clean.png": blind, "sent.jpg": jpeg, "saved again.png": jpeg,
    }  # fmt: skip
    assert "steps of 6" in records["sent.jpg"]["why"]
    assert records["white.png"]["why"].startswith("white noise of sigma")
    assert records["white.png"]["sigma"] == pytest.approx(20, abs=1.5)
    assert "JPEG" in records["phone.jpg"]["why"]
    assert records["phone.jpg"]["sigma"] is None


def test_a_given_level_or_a_named_model_leaves_nothing_to_choose(mixed, tmp_path):
    white = registry.get(None, "denoise", CPU).label
    assert {record["model"] for record in chosen(mixed, tmp_path, sigma=20).values()} == {white}
    named = chosen(mixed, tmp_path, model=registry.BLIND)
    assert {record["why"] for record in named.values()} == {"the model was given"}
    assert len({record["model"] for record in named.values()} - {white}) == 1


def test_only_the_denoisers_that_a_run_needs_are_loaded(photograph, monkeypatch):
    loaded = []
    load = registry.load_model
    monkeypatch.setattr(registry, "load_model", lambda path, task: loaded.append(path.stem) or load(path, task))
    labels = {name: registry.BUILTINS[name][1] for name in registry.CHOICES}

    def new(clean, **options):
        monkeypatch.setattr(registry, "_loaded", registry._Loaded())
        loaded.clear()
        process(clean[:96, :96], "denoise", **options)
        return loaded

    assert new(photograph, sigma=20) == [labels[registry.WHITE]]
    assert new(photograph) == [labels[registry.BLIND]]
    assert new(noisy(photograph, 20)) == [labels[registry.WHITE]]


def test_the_recipe_covers_every_denoiser_whichever_are_loaded(photograph, monkeypatch):
    monkeypatch.setattr(registry, "load_model", lambda *_: pytest.fail("a recipe needs no network"))
    monkeypatch.setattr(registry, "_loaded", registry._Loaded())
    auto = Denoise(DENOISE, None, CPU, torch.float32, DenoiseOptions())
    before = auto.recipe()
    assert before == Denoise(DENOISE, None, CPU, torch.float32, DenoiseOptions()).recipe()
    assert before != Denoise(DENOISE, None, CPU, torch.float32, DenoiseOptions(strength=0.5)).recipe()
    other = {**registry.BUILTINS, registry.JPEG: ("denoise", registry.BUILTINS[registry.BLIND][1])}
    monkeypatch.setattr(registry, "BUILTINS", other)
    assert before != Denoise(DENOISE, None, CPU, torch.float32, DenoiseOptions()).recipe()


# -- what came of it -------------------------------------------------------------------------------------------------


def test_a_good_result_gives_no_warning_and_its_figures_tell_of_it(mixed, tmp_path):
    record = chosen(mixed, tmp_path)["white.png"]
    assert "warnings" not in record
    assert record["noise_before"] > 3 * record["noise_after"]
    assert max(map(abs, record["shift"])) < 0.5
    assert record["structure"] < 0.3


def test_a_colour_shift_a_blur_and_noise_that_stays_are_warned_of(photograph):
    clean = photograph.transpose(2, 0, 1)
    grainy = np.rint(np.clip(noisy(photograph, 20), 0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
    assert not check(clean, clean).warnings()
    greener = np.clip(clean.astype(int) + np.array([0, 2, 0])[:, None, None], 0, 255).astype(np.uint8)
    (shift,) = check(clean, greener).warnings()
    assert "colours may have shifted" in shift
    (left,) = check(grainy, grainy).warnings()
    assert "some noise may be left" in left
    assert not check(grainy, grainy).warnings(strength=0)
    with Image.fromarray(photograph) as image:
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(2))).transpose(2, 0, 1)
    (detail,) = check(clean, blurred).warnings()
    assert "some detail may be gone" in detail


def test_noise_that_was_clipped_shifts_no_colours_and_hides_no_shift(photograph):
    dark = photograph // 3
    grainy = np.clip(dark + np.random.default_rng(2).normal(0, 50, dark.shape), 0, 255).astype(np.uint8)
    half = photograph.shape[1] // 2
    before, clean = (np.concatenate([x[:, :half], y[:, half:]], 1) for x, y in (
        (grainy, np.clip(photograph + np.random.default_rng(3).normal(0, 50, dark.shape), 0, 255).astype(np.uint8)),
        (dark, photograph)))  # fmt: skip
    assert abs(clean.astype(float) - before).mean() > 10
    assert max(abs((clean.astype(float) - before).mean((0, 1)))) > 3
    assert "colours" not in check(before.transpose(2, 0, 1), clean.transpose(2, 0, 1)).notes()
    tinted = np.clip(clean.astype(int) + np.array([0, 0, 3]), 0, 255).astype(np.uint8)
    assert "colours" in check(before.transpose(2, 0, 1), tinted.transpose(2, 0, 1)).notes()


def _noisy_file(path, sigma, seed):
    clean = np.asarray(Image.open(path).convert("RGB"))[:256, :256]
    rng = np.random.default_rng((seed, sigma))
    return np.clip(np.rint(clean + rng.normal(0, sigma, clean.shape)), 0, 255).astype(np.uint8)


def _warnings(before, **options):
    after = np.asarray(process(before, "denoise", **options))
    return check(before.transpose(2, 0, 1), after.transpose(2, 0, 1)).warnings()


def test_few_good_results_are_warned_of(data):
    """docs/guide/denoise.md has the rates on all pictures; these are a few of them."""
    paths = sorted((data / "cbsd68").glob("*.png"))
    chosen = np.random.default_rng(18).permutation(len(paths))[:10]
    good = [_warnings(_noisy_file(paths[index], sigma, index)) for index in chosen for sigma in (0, 15)]
    assert sum(map(bool, good)) <= 0.05 * len(good)
    for pair in sorted((data / "polyu" / "noisy").glob("*.jpg"))[::15] if (data / "polyu").is_dir() else ():
        assert not _warnings(np.asarray(Image.open(pair).convert("RGB"))), pair.name


def test_most_bad_results_are_warned_of(data):
    paths = sorted((data / "cbsd68").glob("*.png"))
    chosen = np.random.default_rng(18).permutation(len(paths))[:6]
    noise_left = [_warnings(_noisy_file(paths[index], 25, index), sigma=8) for index in chosen]
    assert sum("some noise may be left" in " ".join(found) for found in noise_left) >= 5
    gone = []
    for index in chosen:
        image = Image.open(paths[index]).convert("RGB")
        planes = [np.asarray(x).transpose(2, 0, 1) for x in (image, image.filter(ImageFilter.MedianFilter(5)))]
        gone += [any("some detail may be gone" in line for line in check(*planes).warnings())]
    assert sum(gone) >= 5


def test_tiny_and_grey_pictures_are_checked_too(photograph):
    tiny = photograph[:5, :7].transpose(2, 0, 1)
    assert not check(tiny, tiny).warnings()
    grey = photograph[:, :, :1].transpose(2, 0, 1)
    assert len(check(grey, grey).shift) == 1
    assert not check(grey, grey).warnings()
    grainy = np.clip(grey + np.random.default_rng(0).normal(0, 25, grey.shape), 0, 255).astype(np.uint8)
    (left,) = check(grainy, grainy).warnings()
    assert "some noise may be left" in left


@pytest.mark.slow
def test_cbsd68_at_sigma_25_reaches_the_published_figure(data):
    clean = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((data / "cbsd68").glob("*.png"))]
    assert len(clean) == 68
    inputs = [noisy(x, 25, seed) for seed, x in enumerate(clean)]
    known = list(map(score, process(iter(inputs), "denoise", sigma=25), clean))
    auto = list(map(score, process(iter(inputs[::4]), "denoise"), clean[::4]))
    published = json.loads((Path(__file__).parents[1] / "docs" / "bench-denoise.json").read_bytes())
    assert np.mean(known) == pytest.approx(published["sigmas"]["25"]["known"], abs=0.05)
    assert np.mean(auto) >= np.mean(known[::4]) - 0.05
