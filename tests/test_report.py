"""The demonstration and the benchmarks tell the truth about real pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg import DataError, bench, explore, registry, report
from aeimg.cli import main
from aeimg.weights import find_weights, load_tensors


def test_the_demo_denoises_compresses_leaves_pictures_and_touches_nothing_that_was_there(tmp_path):
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "mine.txt").write_text("keep me")
    text = report.run_demo(tmp_path)
    rows = [line.split() for line in text.splitlines() if line.split() and line.split()[0] in report.PHOTOGRAPHS]
    assert len(rows) == 2 * len(report.PHOTOGRAPHS)
    for _, noisy, denoised in rows[: len(report.PHOTOGRAPHS)]:
        assert float(denoised) > float(noisy) + 6
    assert Image.open(tmp_path / "comparison.png").width > 1000
    for kind in ("original", "noisy", "denoised", "decompressed"):
        assert len(list((tmp_path / kind).glob("*.png"))) == len(report.PHOTOGRAPHS)
    assert (tmp_path / "original" / "mine.txt").read_text() == "keep me"


def test_benchmarks_measure_whole_files_beside_the_usual_codecs(tmp_path, photograph):
    Image.fromarray(photograph[:192, :256]).save(tmp_path / "a.png")
    figures = bench.bench_compress(tmp_path, qualities=(10, 40, 70, 95))
    codecs = figures["codecs"]
    assert {"aeimg", "jpeg", "webp", "avif", "avif444"} <= set(codecs)
    assert {"ssimulacra2", "ms_ssim", "psnr"} <= set(figures["metrics"])
    assert set(codecs) | set(figures["not_measured"]) >= {"jxl"}
    for metric in figures["metrics"]:
        assert codecs["jpeg"]["bd_rate"][metric]["jpeg"] == pytest.approx(0)
        assert codecs["avif"]["bd_rate"][metric]["jpeg"] < -10
    text = bench.table(figures)
    assert "BD-rate (SSIMULACRA2) against" in text
    assert "megapixels/s" in text


def test_a_codec_of_ones_own_is_measured_beside_the_one_that_ships(tmp_path, photograph):
    Image.fromarray(photograph[:128, :128]).save(tmp_path / "a.png")
    figures = bench.bench_compress(tmp_path, model="aeimg-codec", qualities=(10, 40, 70, 95), peers=("jpeg", "avif"))
    assert "ms_ssim" in figures["not_measured"]  # the image is too small
    rates = figures["codecs"]["aeimg"]["bd_rate"]["psnr"]
    assert set(rates) == {"shipped", "jpeg", "avif"}
    assert rates["shipped"] == pytest.approx(0)
    assert "shipped" in bench.table(figures)


def test_the_denoising_benchmark_reports_every_level(tmp_path, photograph):
    Image.fromarray(photograph[:96, :128]).save(tmp_path / "a.png")
    figures = bench.bench_denoise(tmp_path, sigmas=(25,), side=128)
    row = figures["sigmas"]["25"]
    assert row["known"] > row["noisy"] + 6
    assert np.isfinite([row["auto"], row["grey"], *figures["one_thread_mps"].values()]).all()
    assert figures["jpeg75"]["auto"] > figures["jpeg75"]["noisy"] + 3
    assert figures["clean"]["psnr"] > 35
    assert figures["times_dncnn"] > 1
    text = bench.table(figures)
    assert "megapixels/s on one thread" in text
    assert "25, JPEG 75" in text
    path = tmp_path / "copy.safetensors"
    path.write_bytes(find_weights(registry.BUILTINS["aeimg-denoise"][1]).read_bytes())
    before = load_tensors(path)
    bench.write_card(path, tmp_path, figures)
    header, _, digest = load_tensors(path)
    assert header.card["figures"][tmp_path.name]["25"]["known"] == round(row["known"], 2)
    assert header.card.items() >= {key: value for key, value in before[0].card.items() if key != "figures"}.items()
    assert digest == before[2]  # old latent files still find their weights


def test_pairs_are_reported_by_camera(tmp_path, photograph):
    noise = np.random.default_rng(0).normal(0, 12, photograph.shape)
    noisy = np.clip(np.rint(photograph + noise), 0, 255).astype(np.uint8)
    for kind, pixels in (("clean", photograph), ("noisy", noisy)):
        (tmp_path / kind).mkdir()
        for name in ("one_a", "one_b", "two_a"):
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.png")
    figures = bench.bench_denoise(tmp_path)
    assert {camera: row["pairs"] for camera, row in figures["cameras"].items()} == {"all": 3, "one": 2, "two": 1}
    assert figures["cameras"]["all"]["gain"] > 3
    assert "two" in bench.table(figures)


def test_a_denoiser_of_ones_own_is_measured_beside_those_that_ship(tmp_path, photograph):
    class Idle(torch.nn.Module):
        task, multiple, halo, label = "denoise", 1, 0, "idle-1"

        def forward(self, x, sigma):
            return x

    aeimg.register("idle", Idle)
    Image.fromarray(photograph[:64, :64]).save(tmp_path / "a.png")
    figures = bench.bench_denoise(tmp_path, model="idle", sigmas=(25,), side=64)
    mine, shipped = figures["sigmas"]["25"], figures["shipped"]["sigmas"]["25"]
    assert mine["noisy"] == shipped["noisy"] and shipped["known"] > mine["known"] + 6
    rows = [line.split() for line in bench.table(figures).splitlines()]
    assert [f"{shipped['known']:.2f}" in row for row in rows if row[:1] == ["shipped"]][:2] == [True, False]
    bench.write_plot(figures, tmp_path / "p.svg")
    for kind, rows_of in (("clean", slice(0, 64)), ("noisy", slice(1, 65))):
        (tmp_path / kind).mkdir()
        Image.fromarray(photograph[rows_of, :64]).save(tmp_path / kind / "one_a.png")
    figures = bench.bench_denoise(tmp_path, model="idle")
    assert figures["cameras"]["one"]["gain"] == 0
    rows = [line.split() for line in bench.table(figures).splitlines()]
    assert [row[0] for row in rows[2:]] == ["all", "shipped", "one", "shipped"]


def test_the_engine_is_measured_against_its_parts(tmp_path, photograph):
    for number in range(4):
        Image.fromarray(np.roll(photograph, number, 0)[:80, :100]).save(tmp_path / f"{number}.png")
    figures = bench.bench_engine(tmp_path)
    assert figures["images"] == 4
    assert min(figures["busy"], figures["hidden"], *figures["seconds"].values()) > 0
    assert "a model that sleeps" in bench.table(figures)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="no images to measure on"):
        bench.bench_denoise(tmp_path)


def test_a_folder_is_a_table_that_sorts(tmp_path, small):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)  # so small and so bad that it is stored
    for name, pixels, quality in (("a", small, 20), ("b", small, 90), ("c", noise, 50)):
        (tmp_path / f"{name}.aei").write_bytes(aeimg.process(pixels, "compress", quality=quality))

    def order(sort: str) -> list[str]:
        lines = CliRunner().invoke(main, ["info", str(tmp_path), "--sort", sort]).stdout.splitlines()
        assert lines[0].split()[:3] == ["bytes", "bpp", "quality"] and "3 latent files, 1 of them stored" in lines[-1]
        return [Path(line.split()[-1]).stem for line in lines[1:-1]]

    assert order("file") == ["a", "b", "c"]
    assert order("bytes")[0] == "b" and order("quality") == ["b", "a", "c"]
    assert order("mode") == ["a", "b", "c"] and order("bpp")[0] == "c"


def test_a_sheet_holds_all_samples(tmp_path):
    own = explore.sample(tmp_path, model="variational", count=5)
    (sheet,) = explore.sample(tmp_path, model="variational", count=5, sheet="digits.png")
    side = Image.open(own[0]).width
    with Image.open(sheet) as image:
        assert sheet == tmp_path / "digits.png" and image.size == (3 * side + 4, 2 * side + 2)
        fifth = np.asarray(image)[side + 2 :, side + 2 : 2 * side + 2]
    assert np.array_equal(fifth, np.asarray(Image.open(own[4])))
    for words in ({"sheet": "../a.png"}, {"sheet": "a.xyz"}, {"sheet": "a.png", "grid": 3}):
        with pytest.raises(aeimg.UsageError):
            explore.sample(tmp_path, model="variational", **words)
