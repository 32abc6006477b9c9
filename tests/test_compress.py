"""`compress` does what its options say, for every kind of picture, and says what it cost."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageCms

from aeimg import UnsupportedImage, UsageError, container, process
from aeimg.cli import main
from aeimg.metrics import psnr, ssim, ssimulacra2


def quality_of(file: bytes) -> int:
    latent = container.read(file)
    assert isinstance(latent, container.Coded)
    return latent.quality


def fidelity(file: bytes, picture: np.ndarray) -> float:
    return psnr(process(file, "decompress", kind="numpy"), picture)


def test_rate_and_psnr_rise_with_every_step_of_quality(photograph):
    crop = photograph[40:264, 100:388]  # files of smaller ones are so small that their words of 4 bytes count
    files = [process(crop, "compress", quality=quality) for quality in range(1, 101)]
    sizes = [len(file) for file in files]
    fidelities = [fidelity(file, crop) for file in files]
    assert all(a < b for a, b in zip(sizes, sizes[1:], strict=False))
    assert all(a < b for a, b in zip(fidelities, fidelities[1:], strict=False))


@pytest.mark.parametrize("limit", [1500, 4000])
def test_max_bytes_gives_the_highest_quality_that_keeps_to_it(photograph, limit):
    file = process(photograph, "compress", max_bytes=limit)
    assert len(file) <= limit < len(process(photograph, "compress", quality=quality_of(file) + 1))


def test_target_bpp_counts_the_whole_file(photograph):
    height, width = photograph.shape[:2]
    file = process(photograph, "compress", target_bpp=0.5)
    assert 0.48 < 8 * len(file) / (height * width) <= 0.5


def test_target_psnr_gives_the_lowest_quality_that_reaches_it(photograph):
    file = process(photograph, "compress", target_psnr=33.0)
    below = process(photograph, "compress", quality=quality_of(file) - 1)
    assert fidelity(below, photograph) < 33.0 <= fidelity(file, photograph)


def test_target_ssimulacra2_gives_the_smallest_file_that_reaches_the_score(photograph):
    def score(file: bytes) -> float:
        return ssimulacra2(photograph, process(file, "decompress", kind="numpy"))

    reachable = score(process(photograph, "compress", quality=40)) - 0.5
    file = process(photograph, "compress", target_ssimulacra2=reachable)
    below = process(photograph, "compress", quality=quality_of(file) - 1)
    assert score(below) < reachable <= score(file)
    assert quality_of(file) <= 40


def test_target_ssimulacra2_needs_its_package_and_a_score(photograph, monkeypatch):
    with pytest.raises(UsageError, match="target_ssimulacra2 must be"):
        process(photograph, "compress", target_ssimulacra2=101)
    monkeypatch.setattr("aeimg.tasks.compress.has_ssimulacra2", lambda: False)
    with pytest.raises(UsageError, match=r"pip install 'aeimg\[metrics\]'"):
        process(photograph, "compress", target_ssimulacra2=70)


def test_aims_beyond_reach(photograph, caplog):
    with pytest.raises(UnsupportedImage, match="can't be made smaller than .* 60 were asked for"):
        process(photograph, "compress", max_bytes=60)
    assert quality_of(process(photograph, "compress", target_psnr=90.0)) == 100
    assert "the target of 90 dB of PSNR is not reached, even at quality 100 (it has" in caplog.text
    with pytest.raises(UsageError, match="only one of"):
        process(photograph, "compress", max_bytes=60, target_bpp=1.0)


@pytest.mark.parametrize(
    ("target", "key", "quality"), [("target_psnr", "psnr", 100), ("target_ssimulacra2", "ssimulacra2", 100),
                                   ("target_bpp", "bpp", 1)],
)  # fmt: skip
def test_a_target_that_is_missed_is_a_warning_in_the_summary_and_in_the_json(
    tmp_path, png, small, target, key, quality
):
    (tmp_path / "a.png").write_bytes(png(small))
    wanted = 0.001 if key == "bpp" else 99.5
    arguments = [
        "compress",
        str(tmp_path / "a.png"),
        str(tmp_path / "a.aei"),
        "--json",
        str(tmp_path / "j"),
        "--measure",
    ]
    result = CliRunner().invoke(main, [*arguments, "--" + target.replace("_", "-"), str(wanted)])
    assert result.exit_code == 0
    assert "1 miss the target" in result.stderr
    about = json.loads((tmp_path / "j").read_text())
    (record,) = about["files"]
    assert about["missed"] == 1
    assert record["quality"] == quality
    assert record["target_missed"] == pytest.approx(record[key], abs=1e-2)
    assert f"target of {wanted:g}" in record["warnings"][0]


def test_a_target_that_is_reached_is_none(tmp_path, png, small):
    (tmp_path / "a.png").write_bytes(png(small))
    summary = process(tmp_path / "a.png", "compress", out=tmp_path / "a.aei", target_psnr=25)
    assert summary.missed == 0
    assert "target_missed" not in summary.files[0]
    assert "warnings" not in summary.files[0]


def test_a_quality_beside_a_target_is_refused(small, tmp_path):
    for target in ("target_bpp", "target_psnr", "target_ssimulacra2", "max_bytes"):
        with pytest.raises(UsageError, match=f"quality and {target} contradict each other"):
            process(small, "compress", quality=50, **{target: 50})
    arguments = ["compress", str(tmp_path), str(tmp_path / "out"), "--quality", "50", "--target-psnr", "36"]
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_small_graphics_that_would_come_back_badly_are_stored_where_that_costs_little():
    rng = np.random.default_rng(0)
    tiny = rng.integers(0, 256, (10, 10, 3), np.uint8)
    np.testing.assert_array_equal(process(process(tiny, "compress"), "decompress", kind="numpy"), tiny)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)  # storing this would cost much
    assert isinstance(container.read(process(noise, "compress")), container.Coded)
    assert len(process(tiny, "compress", max_bytes=300)) <= 300  # a limit is a limit


def test_small_photographs_are_coded(photograph):
    for side in (16, 32, 64):
        corner = np.ascontiguousarray(photograph[100 : 100 + side, 150 : 150 + side])
        assert isinstance(container.read(process(corner, "compress")), container.Coded)


def test_effort_saves_bits_and_changes_nothing_for_the_decoder(photograph):
    """What effort 4 needs in bits against effort 1 at the same score, by the slope between two qualities."""
    crop = photograph[40:232, 100:292]
    points = {}
    for effort, quality in ((1, 40), (1, 60), (4, 40)):
        file = process(crop, "compress", quality=quality, effort=effort)
        decoded = process(file, "decompress", kind="numpy")
        points[effort, quality] = (np.log(len(file)), ssimulacra2(crop, decoded))
    (rate0, score0), (rate1, score1), (rate, reached) = points.values()
    expected = rate0 + (rate1 - rate0) * (reached - score0) / (score1 - score0)
    assert rate < expected - 0.01


def test_grey_costs_less_than_colour(photograph):
    grey = np.asarray(Image.fromarray(photograph).convert("L"))
    colour, alone = process(photograph, "compress", quality=60), process(grey, "compress", quality=60)
    assert len(alone) < len(colour)
    assert process(alone, "decompress").mode == "L"
    assert psnr(process(alone, "decompress", kind="numpy"), grey) > fidelity(colour, photograph)


@pytest.mark.parametrize("colour", [True, False])
def test_sixteen_bits_stay_sixteen(photograph, colour):
    """What comes back has values between those of 8 bits, and is no worse than what 8 bits would have given."""
    y, x = np.mgrid[0:128, 0:160]
    ramp = 20_000 + 9 * x + 5 * y
    deep = (np.dstack([ramp, ramp + 700, ramp + 1500]) if colour else ramp).astype(np.uint16)
    noise = np.random.default_rng(0).normal(0, 20, deep.shape)  # or the lossless file would be the smaller one
    noisy = np.clip(deep + noise, 0, 65535).astype(np.uint16)
    file = process(noisy, "compress", quality=90)
    latent = container.read(file)
    assert isinstance(latent, container.Coded)
    assert latent.depth == 16
    back = process(file, "decompress", kind="numpy")
    assert back.dtype == np.uint16
    assert back.shape == deep.shape
    assert np.unique(back % 257).size > 200
    eight = process(process(np.rint(noisy / 257).astype(np.uint8), "compress", quality=90), "decompress", kind="numpy")
    assert psnr(back, noisy) > psnr(eight.astype(np.uint16) * 257, noisy)


def test_a_16_bit_grey_file_comes_back_as_one(tmp_path, photograph):
    grey = photograph[:96, :128, 1].astype(np.uint16) * 200 + 77
    Image.fromarray(grey).save(tmp_path / "deep.png")
    process(tmp_path / "deep.png", "compress", out=tmp_path / "out", quality=70)
    process(tmp_path / "out", "decompress", out=tmp_path / "back")
    with Image.open(tmp_path / "back" / "deep.png") as image:
        assert image.mode == "I;16"
        assert psnr(np.asarray(image).astype(np.uint16), grey) > 33


def test_alpha_of_16_bits_is_lossless(small):
    alpha = np.arange(small[:, :, 0].size, dtype=np.uint16).reshape(small.shape[:2]) * 3
    deep = np.dstack([small.astype(np.uint16) * 257, alpha])
    back = process(process(deep, "compress"), "decompress", kind="numpy")
    np.testing.assert_array_equal(back[:, :, 3], alpha)


def test_cmyk_is_converted_and_said(tmp_path, photograph):
    Image.fromarray(photograph).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    result = CliRunner().invoke(main, ["compress", str(tmp_path), str(tmp_path / "out"), "--json", str(tmp_path / "j")])
    assert result.exit_code == 0
    assert "converted from CMYK to RGB without a profile" in result.output
    (record,) = json.loads((tmp_path / "j").read_text())["files"]
    assert record["warnings"] == ["converted from CMYK to RGB without a profile: it has none"]
    assert fidelity((tmp_path / "out" / "print.aei").read_bytes(), photograph) > 27


def test_the_summary_tells_what_each_file_cost(tmp_path, photograph, png):
    (tmp_path / "a.png").write_bytes(png(photograph))
    (tmp_path / "flat.png").write_bytes(png(np.full((64, 64, 3), 9, np.uint8)))
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    file = tmp_path / "summary.json"
    arguments = ["compress", str(tmp_path), str(tmp_path / "out"), "--quality", "30", "--measure", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    about = json.loads(file.read_text())
    assert (about["done"], about["failed"]) == (2, 1)
    records = {os.path.basename(record["input"]): record for record in about["files"]}
    assert records["broken.png"]["status"] == "failed"
    assert "not an image" in records["broken.png"]["error"]
    data = (tmp_path / "out" / "a.aei").read_bytes()
    decoded = process(data, "decompress", kind="numpy")
    record = records["a.png"]
    assert record["bytes_out"] == len(data)
    assert record["bpp"] == pytest.approx(8 * len(data) / photograph[:, :, 0].size, abs=1e-4)
    assert record["psnr"] == pytest.approx(psnr(decoded, photograph), abs=0.02)
    assert record["ssim"] == pytest.approx(ssim(decoded, photograph), abs=1e-3)
    assert record["ssimulacra2"] == pytest.approx(ssimulacra2(photograph, decoded), abs=0.01)
    assert "mean SSIMULACRA2" in result.stderr
    assert records["flat.png"]["stored"] is True
    assert records["flat.png"]["psnr"] is None


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 7), (11, 11), (17, 33)])
def test_any_size_is_coded_measured_and_decoded(tmp_path, png, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(pixels))
    summary = process(tmp_path / "in", "compress", out=tmp_path / "out", measure=True)
    assert (summary.done, summary.failed) == (1, [])
    record = summary.files[0]
    assert (record["ssim"] is None) == (min(size) < 11 and not record["stored"])
    assert process(tmp_path / "out" / "a.aei", "decompress", kind="numpy").shape == pixels.shape


def test_an_unusable_profile_of_a_cmyk_image_is_said(photograph):
    from aeimg.images import read_picture

    # An RGB profile in a CMYK file can't convert it.
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    Image.fromarray(photograph).convert("CMYK").save(buffer, "JPEG", icc_profile=icc)
    picture = read_picture(buffer.getvalue())
    assert picture.metadata.icc is None
    assert "without its profile, which is unusable" in picture.notes[0]
