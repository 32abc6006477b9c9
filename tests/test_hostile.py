"""Files that no camera made: each is refused by a typed error that names it, in little time and memory."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from aeimg import AeimgError, DataError, InvalidLatent, UnreadableImage, container, images, process


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def avif(small) -> bytes:
    return images.encode_picture(images.Picture(small.transpose(2, 0, 1)), ".avif")


# -- what is no regular file, or too large ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["denoise", "compress", "decompress"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder link"])
def test_only_regular_files_are_read(tmp_path, task, kind):
    path = tmp_path / ("x.aei" if task == "decompress" else "x.png")
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "missing")
    began = time.monotonic()
    with pytest.raises(UnreadableImage, match="is no regular file" if kind != "folder link" else "can't be read"):
        process(path, task)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("head", [b"", b"\x89PNG\r\n\x1a\n", "png", "latent"])
def test_sparse_files_are_refused_before_they_are_read(tmp_path, small, png, head):
    path = tmp_path / "x.png"
    data = png(small) if head == "png" else container.write(container.Stored(b"x")) if head == "latent" else head
    with open(path, "wb") as file:
        file.write(data)
        file.truncate((3 << 30) if head == "latent" else 700 << 20)
    before = peak_memory()
    with pytest.raises((UnreadableImage, InvalidLatent), match=r"x\.png: "):
        process(path, "decompress" if head == "latent" else "denoise")
    assert peak_memory() - before < 200 << 20  # the weights of the denoisers are read, the file is not


def test_a_large_tiff_that_is_honest_is_read(tmp_path, small):
    data = images.encode_picture(images.Picture(small.transpose(2, 0, 1)), ".tif")
    path = tmp_path / "x.tif"
    path.write_bytes(data)
    assert images.read_file(path) == data


# -- errors of decoders -----------------------------------------------------------------------------------------------


class _Decoder:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


ERRORS = [RuntimeError("x"), struct.error("x"), IndexError("x"), SyntaxError("x"), MemoryError(), KeyError("x"),
          OverflowError("x"), AssertionError("x"), EOFError("x"), ZeroDivisionError("x"), AttributeError("x"),
          NotImplementedError("x"), zlib.error("x"), RecursionError("x")]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["open", "load"])
def test_every_error_of_a_decoder_is_that_files_error(tmp_path, small, png, monkeypatch, error, where):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(small))
    (tmp_path / "in" / "b.bmp").write_bytes(png(small, "BMP"))
    if where == "open":
        whole = Image.open
        monkeypatch.setattr(
            images.Image, "open",
            lambda file, **options: _Decoder(error)() if file.getvalue()[:2] == b"BM" else whole(file, **options),
        )  # fmt: skip
    else:
        from PIL import BmpImagePlugin

        monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "load", _Decoder(error))
    path = tmp_path / "in" / "b.bmp"
    with pytest.raises(UnreadableImage, match=r"b\.bmp: "):
        images.read_picture(path.read_bytes(), str(path))
    with pytest.raises(AeimgError):
        process(path, "compress")
    summary = process(tmp_path / "in", "compress", out=tmp_path / "out")
    assert (summary.done, len(summary.failed)) == (1, 1)


def test_a_damaged_avif_ends_neither_a_dry_run_nor_training_nor_a_benchmark(tmp_path, small, png, avif):
    from aeimg.bench.setting import images_in
    from aeimg.training.datasets import Photographs, _rgb

    at = avif.index(b"mdat") + 4
    damaged = avif[:at] + bytes(len(avif) - at)
    with pytest.raises(RuntimeError), Image.open(io.BytesIO(damaged)) as image:
        image.load()
    (tmp_path / "a.avif").write_bytes(damaged)
    (tmp_path / "b.png").write_bytes(png(small))
    summary = process(tmp_path, "denoise", out=tmp_path / "out", dry_run=True, estimate=True)
    assert summary.planned == 2
    with pytest.raises(DataError, match=r"a\.avif"):
        _rgb(tmp_path / "a.avif")
    assert len(Photographs(tmp_path, min_side=16).paths) == 2  # its header is sound
    with pytest.raises(UnreadableImage, match=r"a\.avif"):
        images_in(tmp_path, None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_read_or_refused_by_a_typed_error(small, png, kind):
    data = png(small[:24, :32], kind)
    rng = np.random.default_rng(len(kind))
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 3):
            damaged[at] = rng.integers(0, 256)
        cut = bytes(damaged[: rng.integers(1, len(data))] if rng.random() < 0.3 else damaged)
        for file in (cut, bytes(damaged)):
            with contextlib.suppress(AeimgError):
                assert images.read_picture(file, "x").pixels.size


# -- latent files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded(small) -> container.Coded:
    alpha = np.random.default_rng(0).integers(0, 256, small.shape[:2], np.uint8)
    latent = container.read(process(np.dstack([small, alpha]), "compress"))
    assert isinstance(latent, container.Coded)
    return latent


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["large", "deep", "colour", "jpeg"])
def test_the_size_of_alpha_is_checked_before_it_is_decoded(coded, kind):
    buffer = io.BytesIO()
    if kind == "large":
        Image.new("L", (12_000, 12_000)).save(buffer, "PNG")
    elif kind == "jpeg":
        Image.new("L", (coded.width, coded.height)).save(buffer, "JPEG")
    else:
        Image.new("I;16" if kind == "deep" else "RGB", (coded.width, coded.height)).save(buffer, "PNG")
    before = peak_memory()
    with pytest.raises(InvalidLatent, match="alpha has another size or depth"):
        process(container.write(replace(coded, alpha=buffer.getvalue())), "decompress")
    assert peak_memory() - before < 100 << 20


def test_metadata_of_a_latent_is_capped_in_all(coded):
    half = bytes(9 << 20)
    about = replace(coded.metadata, exif=half, xmp=half)
    with pytest.raises(InvalidLatent, match="all metadata more than 16777216 bytes"):
        container.read(container.write(replace(coded, metadata=about)))
    chunks = tuple((b"tEXt", half) for _ in range(2))
    with pytest.raises(InvalidLatent, match="all metadata more than 16777216 bytes"):
        container.read(container.write(replace(coded, metadata=replace(coded.metadata, text=chunks))))


def test_many_sections_are_read_in_linear_time():
    tags = [bytes([tag]) for tag in range(128, 256) if not chr(tag).isupper()]
    assert len(tags) > 60
    body = b"".join(tag + b"\1x" for tag in tags) + b"s" + container._varint(64 << 20) + bytes(64 << 20)
    whole = container.MAGIC + bytes([container.VERSION]) + body
    data = whole + struct.pack("<I", zlib.crc32(whole))
    began = time.process_time()
    zlib.crc32(data[:-4])
    once = time.process_time() - began
    began = time.process_time()
    assert len(container.sections(data)) == len(tags) + 1
    assert time.process_time() - began < 10 * once + 0.1


@pytest.mark.parametrize("body", [b"", b"\x04" + bytes(16), bytes(9)])
def test_a_resolution_that_is_none_is_refused(coded, body):
    whole = container.write(coded)
    data = whole[:-4] + b"r" + bytes([len(body)]) + body
    with pytest.raises(InvalidLatent, match="its resolution is not one"):
        container.read(data + struct.pack("<I", zlib.crc32(data)))


@pytest.mark.parametrize("exif", [b"x", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II+\0" + bytes(40), b"Exif\0\0"])
def test_exif_that_is_none_costs_a_latent_nothing_but_that(tmp_path, coded, exif):
    (tmp_path / "a.aei").write_bytes(container.write(replace(coded, metadata=replace(coded.metadata, exif=exif))))
    assert "exif" not in process(tmp_path / "a.aei", "decompress").info
    for suffix in ("png", "webp", "avif", "tif"):
        summary = process(tmp_path / "a.aei", "decompress", out=tmp_path / suffix, format=suffix)
        assert any("its EXIF data was left out" in said for said in summary.files[0]["warnings"])


@pytest.mark.parametrize("dpi", [(2e9 + 1 / 3, 7.1), (1e-9, 1), (float("nan"), 1), (-3, 3), (72.0090001, 72)])
def test_any_resolution_of_an_image_goes_through(small, dpi):
    image = Image.fromarray(small)
    image.info["dpi"] = dpi
    back = process(process(image, "compress"), "decompress")
    assert back.size == image.size
    if dpi[0] > 0 and dpi[0] == dpi[0] and dpi[1] > 1:
        assert back.info["dpi"] == pytest.approx(dpi, rel=1e-3)
        for suffix in images.WRITABLE:
            images.encode_picture(images.from_pil(back), suffix)
