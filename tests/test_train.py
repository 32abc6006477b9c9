"""Training learns, resumes exactly, and what it writes runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from aeimg import DataError, InvalidWeights, UsageError, data, process, zoo
from aeimg import train as module
from aeimg.metrics import psnr
from aeimg.train import train

TINY = {
    "denoise": {"config": {"channels": (8, 16), "blocks": (1, 1), "blocks_up": (1,)},
                "recipe": {"crop": 32, "batch": 4, "late_crop": 32, "late_batch": 4, "warmup": 5, "rate": 3e-3}},
    "compress": {"config": {"codes": 32, "width8": 8, "width16": 16, "hyper": 4, "features": 8, "context": 8},
                 "recipe": {"crop": 64, "batch": 2, "late_crop": 64, "late_batch": 2, "warmup": 5}},
}  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    from skimage import data as images

    folder = tmp_path_factory.mktemp("photographs")
    astronaut = images.astronaut()
    for number in range(12):
        top, left = 90 * (number // 4), 90 * (number % 4)
        Image.fromarray(astronaut[top : top + 160, left : left + 160]).save(folder / f"{number}.png")
    return folder


def run(task, photographs, out, **options):
    lines = []
    header = train(task, photographs, out, dtype="fp32", device="cpu", log=lines.append, **TINY[task], **options)
    return header, lines


def test_a_denoiser_learns_and_its_card_says_how(photographs, tmp_path, small):
    header, _ = run("denoise", photographs, tmp_path / "mine.safetensors", steps=400)
    assert (header.label, header.task, header.card["steps"]) == ("mine-1", "denoise", 400)
    assert header.card["data"].startswith("12 images")
    noisy = (small / 255 + np.random.default_rng(0).normal(0, 25 / 255, small.shape)).astype(np.float32)
    clean = process(noisy, "denoise", model=tmp_path / "mine.safetensors", sigma=25)
    before, after = (psnr(np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8), small) for x in (noisy, clean))
    assert after > before + 3


def test_a_codec_trained_for_a_few_steps_codes_and_decodes(photographs, tmp_path, small):
    weights = tmp_path / "mine.safetensors"
    run("compress", photographs, weights, steps=6)
    latent = process(small, "compress", model=weights, quality=60)
    result = process(latent, "decompress", model=weights, kind="numpy")
    assert result.shape == small.shape
    assert psnr(result, small) > 20


@pytest.mark.parametrize("task", ["denoise", "compress"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(photographs, tmp_path, monkeypatch, task):
    whole, half, resumed = (tmp_path / f"{name}.safetensors" for name in ("whole", "half", "resumed"))
    run(task, photographs, whole, steps=20)
    original = module.OBJECTIVES[task].loss
    seen = 0

    def interrupted(self, *arguments):
        nonlocal seen
        seen += 1
        if seen == 11:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module.OBJECTIVES[task], "loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(task, photographs, half, steps=20)
    _, lines = run(task, photographs, resumed, steps=20, resume=tmp_path / "half.safetensors.checkpoint")
    assert "at step 10" in lines[0]
    a, b = (zoo.load_tensors(path)[1] for path in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_wrong_calls_and_too_little_data_are_refused_by_name(photographs, tmp_path):
    out = tmp_path / "w.safetensors"
    with pytest.raises(UsageError, match="unknown task"):
        train("sharpen", photographs, out, steps=1)
    with pytest.raises(DataError, match="empty: 0 usable images, at least 10.*both sides of 96 pixels"):
        (tmp_path / "empty").mkdir()
        train("denoise", tmp_path / "empty", out, steps=1)
    (tmp_path / "no.checkpoint").write_bytes(b"nothing")
    with pytest.raises(InvalidWeights, match=r"no\.checkpoint: not a checkpoint"):
        run("denoise", photographs, out, steps=1, resume=tmp_path / "no.checkpoint")


def test_crops_are_the_same_for_the_same_seed_and_turn_every_way(photographs):
    images = data.Photographs(photographs, min_side=32)
    a, b = (images.crops(np.random.default_rng(5), 6, 32) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (6, 3, 32, 32)
    held_out = images.split(3)
    assert len(held_out) == 3


def test_noise_has_the_level_that_was_asked_for():
    clean = torch.full((2, 3, 128, 128), 0.5)
    noisy = data.add_white_noise(clean, torch.tensor([10.0, 50.0]), torch.Generator().manual_seed(0))
    measured = (noisy - clean).flatten(1).std(1) * 255
    torch.testing.assert_close(measured, torch.tensor([10.0, 50.0]), rtol=0.02, atol=0)


def test_varied_colours_are_permutations_or_grey():
    x = torch.rand(40, 3, 4, 4)
    varied = data.vary_colours(x, np.random.default_rng(0), greyscale=0.5)
    grey = (varied[:, 0] == varied[:, 1]).flatten(1).all(1)
    assert 5 < int(grey.sum()) < 35
    torch.testing.assert_close(varied[~grey].sort(1).values, x[~grey].sort(1).values)


@pytest.fixture
def taken_twice(tmp_path, photographs):
    rng = np.random.default_rng(0)
    for kind, sigma in (("clean", 0), ("noisy", 20)):
        (tmp_path / "twice" / kind).mkdir(parents=True)
        for path in photographs.iterdir():
            pixels = np.asarray(Image.open(path))
            noisy = np.clip(np.rint(pixels + rng.normal(0, sigma, pixels.shape)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "twice" / kind / path.name)
    return tmp_path / "twice"


def test_a_blind_denoiser_learns_without_being_told_a_level_and_from_pairs(photographs, taken_twice, tmp_path, small):
    weights = tmp_path / "blind.safetensors"
    header, _ = run("denoise", photographs, weights, steps=300, pairs=taken_twice)
    assert header.config["assumed_sigma"] is not None
    assert header.card["data"].endswith("12 pairs of twice/")
    assert header.card["held_out"]["pairs"] > 1
    noisy = np.clip(np.rint(small + np.random.default_rng(0).normal(0, 20, small.shape)), 0, 255).astype(np.uint8)
    clean = process(noisy, "denoise", model=weights)
    assert psnr(clean, small) > psnr(noisy, small) + 2
    np.testing.assert_array_equal(process(noisy, "denoise", model=weights, sigma=3), clean)


def test_a_blind_denoiser_may_start_from_one_that_was_told(photographs, tmp_path):
    run("denoise", photographs, tmp_path / "told.safetensors", steps=3)
    header, _ = run(
        "denoise", photographs, tmp_path / "blind.safetensors", steps=3, blind=True, start=tmp_path / "told.safetensors"
    )
    assert header.card["start"].startswith("told-1")
    with pytest.raises(UsageError, match="another network"):
        run("compress", photographs, tmp_path / "c.safetensors", steps=1, start=tmp_path / "told.safetensors")
    with pytest.raises(UsageError, match="for the task denoise"):
        run("compress", photographs, tmp_path / "c.safetensors", steps=1, blind=True)
