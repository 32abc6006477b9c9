"""Pictures without noise stay as they are; maps of sigma; pictures of what was taken away."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import aeimg
from aeimg import InputError, ModelError, OutputError, UsageError, process
from aeimg.cli import main
from aeimg.metrics import psnr
from aeimg.noise import measure_noise
from aeimg.tasks.denoise import SMALLEST, choose

# -- drawings --------------------------------------------------------------------------------------------------------


def checkerboard(cell: int, one: tuple[int, ...], other: tuple[int, ...]) -> np.ndarray:
    rows, columns = np.mgrid[:128, :160] // cell
    return np.where(((rows + columns) % 2)[..., None] == 0, one, other).astype(np.uint8)


def shapes(seed: int, count: int, *, smooth: bool, ground: tuple[int, int, int]) -> np.ndarray:
    """Rectangles, discs and lines, with smooth edges or without."""
    rng, scale = np.random.default_rng(seed), 4 if smooth else 1
    image = Image.new("RGB", (256 * scale, 192 * scale), ground)
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        (left, top), (width, height) = rng.integers(0, 192, 2), rng.integers(5, 100, 2)
        box = [int(value) * scale for value in (left, top, left + width, top + height)]
        colour = tuple(rng.integers(0, 256, 3).tolist())
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle(box, fill=colour)
        elif kind == 1:
            draw.ellipse(box, fill=colour, outline=(0, 0, 0), width=2 * scale)
        else:
            draw.line(box, fill=colour, width=3 * scale)
    return np.asarray(image.resize((256, 192), Image.Resampling.LANCZOS) if smooth else image)


def page(ink: tuple[int, int, int], paper: tuple[int, int, int]) -> Image.Image:
    rng, image = np.random.default_rng(1), Image.new("RGB", (320, 240), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for top in range(5, 240, 14):
        draw.text((5, top), "".join(rng.choice(list("abcdefgh ijkl mnop"), 50)), fill=ink, font=font)
    return image


def screenshot() -> np.ndarray:
    image = page((20, 20, 20), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 320, 20), fill=(50, 90, 160))
    draw.rectangle((0, 20, 70, 240), fill=(225, 228, 235))
    slope = np.linspace(100, 200, 90).astype(np.uint8)
    image.paste(Image.fromarray(np.stack([np.tile(slope, (70, 1))] * 3, 2)), (200, 60))
    return np.asarray(image)


def drawings() -> dict[str, np.ndarray]:
    found = {"screenshot": screenshot(), "page": np.asarray(page((0, 0, 0), (255, 255, 255)))}
    for cell in (1, 2, 3, 5, 8):
        found[f"black and white {cell}"] = checkerboard(cell, (0, 0, 0), (255, 255, 255))
        found[f"coloured {cell}"] = checkerboard(cell, (200, 40, 60), (30, 160, 90))
    for seed in range(3):
        found[f"shapes {seed}"] = shapes(seed, 25, smooth=False, ground=(240, 240, 235))
        found[f"smooth shapes {seed}"] = shapes(seed, 25, smooth=True, ground=(40, 60, 80))
        found[f"icon {seed}"] = shapes(seed, 5, smooth=True, ground=(255, 255, 255))[::2, ::2]
    with Image.fromarray(shapes(4, 12, smooth=True, ground=(250, 250, 250))) as image:
        found["shadows"] = np.asarray(Image.blend(image, image.filter(ImageFilter.GaussianBlur(5)), 0.5))
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (8, 3))
    found["pixel art"] = colours[rng.integers(0, 8, (32, 40))].repeat(6, 0).repeat(6, 1).astype(np.uint8)
    found["white"] = np.full((96, 96, 3), 255, np.uint8)
    rows, columns = np.mgrid[:192, :256]
    found["gradient"] = np.stack([columns * 200 / 256, rows * 255 / 192, 255 - columns], 2).round().astype(np.uint8)
    return found


@pytest.fixture(scope="module", params=drawings().items(), ids=lambda one: one[0])
def drawing(request) -> np.ndarray:
    return request.param[1]


def test_no_drawing_is_damaged(drawing):
    result = process(drawing, "denoise")
    assert np.array_equal(result, drawing) or psnr(result, drawing) > 45


def test_a_drawing_in_grey_and_in_sixteen_bits_stays_too():
    deep = screenshot().astype(np.uint16) * 257
    assert np.array_equal(process(deep, "denoise"), deep)
    grey = screenshot()[..., 1]
    assert np.array_equal(process(grey, "denoise"), grey)


@pytest.mark.parametrize("sigma", [2, 5, 25])
def test_noisy_pictures_do_not_pass(photograph, sigma):
    rng = np.random.default_rng(0)
    noisy = np.rint(np.clip(photograph + rng.normal(0, sigma, photograph.shape), 0, 255)).astype(np.uint8)
    framed = np.full((450, 620, 3), (16, 16, 16), np.uint8)
    framed[75:375, 85:536] = noisy
    drawn = np.rint(np.clip(screenshot() + rng.normal(0, sigma, (240, 320, 3)), 0, 255)).astype(np.uint8)
    grey = np.repeat(noisy[..., :1], 3, 2)
    red = noisy * np.array([1, 0, 0], np.uint8)
    clipped = np.clip(noisy.astype(int) * 2, 0, 255).astype(np.uint8)
    for picture in (noisy, drawn, grey, red, clipped):
        assert not measure_noise(picture.transpose(2, 0, 1)).nothing
    assert measure_noise(framed[64:384, 64:560].transpose(2, 0, 1)).repeated < 0.1


def test_a_frame_or_a_photograph_among_drawings_does_not_decide(photograph):
    """The quartile over cells decides, not the mean."""
    inside = np.array(screenshot())
    inside[100:200, 150:250] = photograph[100:200, 150:250]
    assert measure_noise(inside.transpose(2, 0, 1)).nothing
    noisy = photograph + np.random.default_rng(0).normal(0, 5, photograph.shape)
    strip = np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
    strip[-56:] = (16, 16, 16)
    assert not measure_noise(strip.transpose(2, 0, 1)).nothing


def test_real_noisy_pictures_do_not_pass(data):
    found = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((data / "polyu" / "noisy").iterdir())[::9]]
    assert len(found) > 5
    assert not any(measure_noise(x.transpose(2, 0, 1)).nothing for x in found)


def test_small_pictures_stay_unless_a_level_or_a_model_is_given(photograph):
    thumbnail = photograph[100 : 100 + SMALLEST - 1, 100:240]
    assert np.array_equal(process(thumbnail, "denoise"), thumbnail)
    assert not np.array_equal(process(thumbnail, "denoise", sigma=25), thumbnail)
    assert not np.array_equal(process(thumbnail, "denoise", model="aeimg-denoise-blind"), thumbnail)
    larger = photograph[100 : 100 + SMALLEST, 100:240]
    assert not np.array_equal(process(larger, "denoise"), larger)


def test_a_given_level_denoises_a_drawing():
    assert not np.array_equal(process(screenshot(), "denoise", sigma=25), screenshot())


# -- tensors ---------------------------------------------------------------------------------------------------------


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def squares_from(noisy_share: float) -> np.ndarray:
    """uint8 `[224,256,3]`: squares that occur again, but for a share of noise on the right."""
    x = np.tile(np.random.default_rng(1).integers(0, 256, (4, 32, 3)), (56, 8, 1))
    right = int(256 * (1 - noisy_share))
    x[:, right:] = np.random.default_rng(2).integers(0, 256, (224, 256 - right, 3))
    return x.astype(np.uint8)


def both_kinds(photograph: np.ndarray) -> list[np.ndarray]:
    noisy = np.rint(np.clip(photograph + np.random.default_rng(0).normal(0, 5, photograph.shape), 0, 255))
    shares = [squares_from(share) for share in (0.1, 0.5, 0.7, 0.72, 0.74, 0.76, 0.78, 0.8, 0.9)]
    return [*drawings().values(), photograph, noisy.astype(np.uint8), *shares]


def test_a_tensor_and_an_array_of_a_picture_get_the_same_decision(photograph):
    decisions = set()
    for picture in both_kinds(photograph):
        for pixels in (as_tensor(picture), as_tensor(picture) / 255, as_tensor(picture)[:1]):
            array, tensor = measure_noise(pixels.numpy()), measure_noise(pixels)
            assert tensor.repeated == array.repeated
            assert tensor.nothing == array.nothing
            chosen = [choose(one, "auto", free=True).untouched for one in (pixels.numpy(), pixels)]
            assert chosen[0] == chosen[1]
            decisions.add(chosen[0])
    assert decisions == {"", "no noise"}


def test_zeros_of_either_sign_are_one_value():
    drawn = np.zeros((1, 64, 64), np.float32)
    drawn[:, ::4] = 0.5
    signed = drawn * np.where(np.random.default_rng(0).random(drawn.shape) < 0.5, -1, 1).astype(np.float32)
    signed = np.where(drawn == 0, signed, drawn)
    for pixels in (signed, torch.from_numpy(signed)):
        assert measure_noise(pixels).repeated == measure_noise(drawn).repeated == 1


def untouched_and_noisy(device: str) -> torch.Tensor:
    drawn = as_tensor(screenshot())
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    return torch.stack([drawn, (drawn + 20 * noise).clamp(0, 255).round().to(torch.uint8)]).to(device)


def test_a_batch_of_tensors_keeps_what_holds_no_noise():
    batch, held = untouched_and_noisy("cpu"), aeimg.load("denoise", device="cpu")
    for result in (held(batch), process(batch, "denoise", device="cpu")):
        assert torch.equal(result[0], batch[0])
        assert not torch.equal(result[1], batch[1])
    thumbnail = batch[1, :, : SMALLEST - 1]
    assert torch.equal(held(thumbnail), thumbnail)
    assert not torch.equal(held(thumbnail, sigma=20), thumbnail)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_a_gpu_keeps_what_holds_no_noise():
    batch = untouched_and_noisy("cuda")
    result = aeimg.load("denoise", device="cuda")(batch)
    assert torch.equal(result[0], batch[0])
    assert not torch.equal(result[1], batch[1])
    for one in batch:
        assert measure_noise(one).repeated == measure_noise(one.cpu().numpy()).repeated


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, photograph) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    with Image.fromarray(checkerboard(8, (200, 40, 60), (30, 160, 90))) as image:
        image.save(folder / "board.png", compress_level=1)
        image.save(folder / "board.jpg", quality=83)
    noisy = photograph[:128, :160] + np.random.default_rng(0).normal(0, 20, (128, 160, 3))
    Image.fromarray(np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)).save(folder / "noisy.png")
    return folder


def run(folder: Path, out: Path, *options: str) -> tuple[str, dict[str, dict]]:
    done = CliRunner().invoke(main, ["denoise", str(folder), str(out), "--json", f"{out}.json", *options])
    assert done.exit_code == 0, done.output
    files = json.loads(Path(f"{out}.json").read_text())["files"]
    return done.output, {Path(record["input"]).name: record for record in files}


def test_an_untouched_file_is_copied_and_the_run_says_so(folder, tmp_path):
    said, records = run(folder, tmp_path / "out")
    assert "2 left untouched" in said
    for name in ("board.png", "board.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
        assert records[name]["untouched"] is True
        assert records[name]["model"] is None
        assert records[name]["sigma"] is None
        assert records[name]["why"] == "left untouched: no noise was measured"
    assert records["noisy.png"]["untouched"] is False


def test_verbose_says_in_words_that_a_file_is_untouched(folder, tmp_path, caplog):
    Image.new("RGB", (32, 32)).save(folder / "icon.png")
    run(folder, tmp_path / "out", "--strength", "0.5", "-v")
    said = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    for start in ("board.png: no noise, left untouched, ",
                  "icon.png: too small to measure its noise, left untouched, "):  # fmt: skip
        assert any(re.search(re.escape(start) + r"\d+\.\d s$", line) for line in said), said


def test_an_untouched_file_of_another_format_or_quality_has_its_pixels(folder, tmp_path):
    run(folder, tmp_path / "out", "--format", "png", "--image-quality", "90")
    for name, written in (("board.png", "board.png.png"), ("board.jpg", "board.jpg.png")):
        with Image.open(folder / name) as before, Image.open(tmp_path / "out" / written) as after:
            assert np.array_equal(np.asarray(before), np.asarray(after))
    run(folder, tmp_path / "small", "--image-quality", "30")
    assert (tmp_path / "small" / "board.jpg").stat().st_size < (folder / "board.jpg").stat().st_size


def test_untouched_bytes_come_back_as_they_are(folder):
    data = (folder / "board.jpg").read_bytes()
    assert process(data, "denoise") == data
    assert process(data, "denoise", format="png")[:4] == b"\x89PNG"


# -- maps of sigma ---------------------------------------------------------------------------------------------------


def test_a_map_of_sigma_is_followed(photograph):
    x = (photograph[:256, :320] / 255).astype(np.float32)
    sigma = np.tile(np.linspace(5, 45, 320), (256, 1))
    noisy = (x + np.random.default_rng(0).normal(size=x.shape) * sigma[..., None] / 255).astype(np.float32)
    mapped, level = (process(noisy, "denoise", sigma=one, dtype="fp32") for one in (sigma, float(sigma.mean())))
    assert np.square(mapped - x).mean() < 0.85 * np.square(level - x).mean()


def test_a_constant_map_is_as_good_as_a_level(photograph):
    x = (photograph[:101, :143] / 255).astype(np.float32)
    for picture in (x, x[..., 0]):
        mapped, level = (
            process(picture, "denoise", sigma=sigma, dtype="fp32") for sigma in (np.full((101, 143), 20), 20.0)
        )
        np.testing.assert_allclose(mapped, level, atol=1e-6)


def test_tiles_see_their_part_of_the_map(photograph):
    from aeimg import registry
    from aeimg.tasks.denoise import run_denoiser

    model = registry.get(None, "denoise", torch.device("cpu"))
    x = torch.from_numpy(np.tile(photograph, (2, 2, 1))[:512, :512].copy()).permute(2, 0, 1)[None].float() / 255
    sigma = torch.linspace(5, 50, 512).view(1, 1, 1, -1).expand(1, 1, 512, 512)
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    whole, tiled = (run_denoiser(model, x, sigma, tile=tile, **options) for tile in (512, 256))
    assert float((whole - tiled).abs().max()) < 1 / 255


def test_a_held_model_takes_a_map_as_an_array_or_a_tensor(photograph):
    held = aeimg.load("denoise", device="cpu", dtype="fp32")
    noisy = np.rint(np.clip(photograph[:77, :93] + np.random.default_rng(0).normal(0, 20, (77, 93, 3)), 0, 255))
    picture = noisy.astype(np.uint8)
    sigma = np.tile(np.linspace(1, 40, 93), (77, 1))
    expected = process(picture, "denoise", sigma=sigma, device="cpu", dtype="fp32")
    assert not np.array_equal(expected, held(picture, sigma=float(sigma.mean())))
    for given in (sigma, torch.from_numpy(sigma), torch.from_numpy(sigma).float().requires_grad_()):
        np.testing.assert_array_equal(held(picture, sigma=given), expected)
        assert torch.equal(held(as_tensor(picture), sigma=given), as_tensor(expected))
    assert held(as_tensor(picture), sigma=torch.from_numpy(sigma).bfloat16()).shape == (3, 77, 93)
    for one in (picture, as_tensor(picture)):
        with pytest.raises(InputError, match="has 93x77 pixels, and the map of sigma 77x93"):
            held(one, sigma=sigma.T)
        with pytest.raises(ModelError, match="takes no map of sigma"):
            aeimg.load("aeimg-denoise-blind", task="denoise", device="cpu")(one, sigma=sigma)


def test_a_map_that_does_not_fit_is_refused(photograph):
    with pytest.raises(InputError, match="has 451x300 pixels, and the map of sigma 300x451"):
        process(photograph, "denoise", sigma=np.ones((451, 300)))
    with pytest.raises(ModelError, match="takes no map of sigma"):
        process(photograph, "denoise", sigma=np.ones((300, 451)), model="aeimg-denoise-blind")
    for wrong in (np.ones((3, 300, 451)), np.full((300, 451), -1.0), np.full((300, 451), np.nan), np.array([["a"]])):
        with pytest.raises(UsageError, match="a map of sigma"):
            process(photograph, "denoise", sigma=wrong)


def test_another_map_makes_another_result(photograph, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(photograph[:96, :96]).save(tmp_path / "in" / "a.png")
    first, second = np.full((96, 96), 5.0), np.full((96, 96), 5.0)
    second[50, 50] = 6
    for sigma, done in ((first, 1), (first.copy(), 0), (second, 1)):
        assert process(tmp_path / "in", "denoise", out=tmp_path / "out", sigma=sigma).done == done


# -- chroma ----------------------------------------------------------------------------------------------------------


def ycbcr(x: np.ndarray) -> np.ndarray:
    """Y, Cb and Cr of BT.601 `[H,W,3]` of RGB in [0,1]."""
    y = x @ np.array([0.299, 0.587, 0.114])
    return np.stack([y, (x[..., 2] - y) / 1.772, (x[..., 0] - y) / 1.402], 2)


def test_chroma_has_a_strength_of_its_own(photograph):
    x = (photograph[:96, :112] / 255).astype(np.float32)
    noisy = (x + np.random.default_rng(0).normal(0, 20 / 255, x.shape)).astype(np.float32)

    def taken(**options) -> np.ndarray:
        return ycbcr(noisy) - ycbcr(process(noisy, "denoise", sigma=20, dtype="fp32", device="cpu", **options))

    full = taken()
    np.testing.assert_allclose(taken(strength=0.4, chroma_strength=0.9), full * [0.4, 0.9, 0.9], atol=1e-5)
    np.testing.assert_allclose(taken(chroma_strength=0), full * [1, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(taken(strength=0.4, chroma_strength=0.4), taken(strength=0.4))
    tensor = torch.from_numpy(noisy).permute(2, 0, 1)
    held = aeimg.load("denoise", device="cpu", dtype="fp32")(tensor, sigma=20, strength=0.4, chroma_strength=0.9)
    np.testing.assert_allclose(ycbcr(tensor.permute(1, 2, 0).numpy()) - ycbcr(held.permute(1, 2, 0).numpy()),
                               full * [0.4, 0.9, 0.9], atol=1e-5)  # fmt: skip


def test_in_grey_pictures_the_strength_of_chroma_does_nothing(photograph):
    grey = photograph[:96, :112, 1]
    one, other = (process(grey, "denoise", sigma=20, strength=0.4, chroma_strength=value) for value in (0, None))
    np.testing.assert_array_equal(one, other)


def test_the_strength_of_chroma_is_part_of_what_a_result_is(folder, tmp_path):
    out = tmp_path / "out"
    for options, done in (({"strength": 0.4}, 3), ({"strength": 0.4, "chroma_strength": 0.4}, 0)):
        assert process(folder, "denoise", out=out, **options).done == done
    _, records = run(folder, out, "--strength", "0.4", "--chroma-strength", "1")
    assert (records["noisy.png"]["strength"], records["noisy.png"]["chroma_strength"]) == (0.4, 1)
    with pytest.raises(UsageError, match="chroma_strength must lie in 0..1"):
        process(folder, "denoise", out=out, chroma_strength=1.5)


# -- residuals -------------------------------------------------------------------------------------------------------


def test_residuals_show_what_was_taken_away(folder, tmp_path):
    _, records = run(folder, tmp_path / "out", "--residual", str(tmp_path / "res"))
    shown = np.asarray(Image.open(tmp_path / "res" / "noisy.png"))
    assert records["noisy.png"]["residual"] == str(tmp_path / "res" / "noisy.png")
    before, after = (np.asarray(Image.open(path / "noisy.png")).astype(float) for path in (folder, tmp_path / "out"))
    gain = records["noisy.png"]["residual_gain"]
    assert gain > 1
    expected = np.clip(128 + gain * (before - after), 0, 255)
    assert np.abs(shown - expected).max() <= 1
    for name in ("board.png.png", "board.jpg.png"):  # the names of two boards would be equal
        assert np.unique(np.asarray(Image.open(tmp_path / "res" / name))).tolist() == [128]


def test_residuals_keep_the_tree_and_are_made_where_they_are_missing(folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "noisy.png").rename(folder / "sub" / "noisy.png")
    out, there = tmp_path / "out", tmp_path / "res"
    assert process(folder, "denoise", out=out).done == 3
    assert process(folder, "denoise", out=out, residual=there).done == 3
    assert (there / "sub" / "noisy.png").is_file()
    assert process(folder, "denoise", out=out, residual=there).done == 0
    assert process(folder / "sub" / "noisy.png", "denoise", out=tmp_path / "one.png", residual=tmp_path / "r").done == 1
    assert (tmp_path / "r" / "noisy.png").is_file()


def test_no_file_of_other_origin_is_overwritten_by_a_residual(folder, tmp_path):
    there = tmp_path / "res"
    there.mkdir()
    (there / "noisy.png").write_bytes(b"mine")
    summary = process(folder, "denoise", out=tmp_path / "out", residual=there)
    assert (there / "noisy.png").read_bytes() == b"mine"
    (record,) = (record for record in summary.files if record["input"].endswith("noisy.png"))
    assert "no record of writing it" in record["warnings"][-1]
    with pytest.raises(OutputError, match="is there already"):
        process(folder, "denoise", out=tmp_path / "new", residual=there, if_exists="error")


def test_residuals_have_a_folder_of_their_own(folder, tmp_path):
    for wrong in (folder, folder / "res", tmp_path / "out", tmp_path / "out" / "res"):
        with pytest.raises(UsageError, match="residuals would pass for pictures"):
            process(folder, "denoise", out=tmp_path / "out", residual=wrong)
    with pytest.raises(UsageError, match="runs over files"):
        process(io.BytesIO((folder / "noisy.png").read_bytes()), "denoise", residual=tmp_path / "res")


@pytest.mark.parametrize("given", [{"watch": True}, {"shard": "1/2"}])
def test_residuals_go_with_neither_shards_nor_watching(folder, tmp_path, given):
    with pytest.raises(UsageError, match=r"residual and \w+ do not go together: run with one of them"):
        process(folder, "denoise", out=tmp_path / "out", residual=tmp_path / "res", **given)
    assert not (tmp_path / "res").exists()


def test_residuals_are_for_files_of_this_machine(folder, tmp_path):
    inside, here = "memory://untouched/in/a.png", str(folder / "noisy.png")
    with fsspec.open(inside, "wb") as file:
        file.write((folder / "noisy.png").read_bytes())
    there = tmp_path / "res"
    for source, out, residual in (
        (inside, tmp_path / "out", there), ("memory://untouched/in", tmp_path / "out", there),
        (here, "memory://untouched/out", there), (here, tmp_path / "out", "memory://untouched/res"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="residual is for files and folders of this machine, not for URLs"):
            process(source, "denoise", out=out, residual=residual)
    assert not there.exists()


def test_an_untouched_file_at_a_url_is_copied(folder):
    with fsspec.open("memory://copied/in/board.png", "wb") as file:
        file.write((folder / "board.png").read_bytes())
    assert process("memory://copied/in", "denoise", out="memory://copied/out").done == 1
    with fsspec.open("memory://copied/out/board.png") as file:
        assert file.read() == (folder / "board.png").read_bytes()


def test_a_dry_run_writes_no_residuals(folder, tmp_path):
    process(folder, "denoise", out=tmp_path / "out", residual=tmp_path / "res", dry_run=True, estimate=True)
    assert not (tmp_path / "res").exists()
    assert aeimg.process(folder, "denoise", out=tmp_path / "out", residual=tmp_path / "res").done == 3
