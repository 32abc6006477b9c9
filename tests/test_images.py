"""What must survive a file survives, and what can't is refused by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from aeimg import OutputError, UnreadableImage, UnsupportedImage, images

ALPHA = np.linspace(0, 255, 101 * 143).reshape(101, 143).astype(np.uint8)


def reread(picture: images.Picture, suffix: str) -> images.Picture:
    return images.read_picture(images.encode_picture(picture, suffix))


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp", ".bmp", ".ppm", ".jpg", ".avif"])
def test_colour_comes_back_from_every_format(small, png, suffix):
    picture = reread(images.read_picture(png(small)), suffix)
    assert picture.pixels.shape == (3, 101, 143)
    error = np.abs(picture.pixels.astype(int) - small.transpose(2, 0, 1))
    assert error.mean() < (3 if suffix in (".jpg", ".webp", ".avif") else 1e-9)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_mode_and_alpha_come_back(small, mode):
    image = Image.fromarray(small).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(ALPHA))
    picture = reread(images.from_pil(image), ".png")
    assert picture.mode == mode
    if mode.endswith("A"):
        np.testing.assert_array_equal(picture.alpha, ALPHA)


def test_sixteen_bit_grey_keeps_every_bit(tmp_path):
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    for suffix in (".png", ".tiff"):
        picture = reread(images.Picture(values[None]), suffix)
        assert picture.pixels.dtype == np.uint16
        np.testing.assert_array_equal(picture.pixels[0], values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_removed(small, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "PNG", exif=exif)
    picture = images.read_picture(buffer.getvalue())
    flipped, turned = small[:, ::-1], small[::-1, ::-1]
    upright = (
        small, flipped, turned, small[::-1],
        small.transpose(1, 0, 2), np.rot90(small, -1), turned.transpose(1, 0, 2), np.rot90(small),
    )[orientation - 1]  # fmt: skip
    np.testing.assert_array_equal(picture.pixels.transpose(1, 2, 0), upright)
    again = Image.open(io.BytesIO(images.encode_picture(picture, ".png")))
    assert again.getexif().get(0x0112, 1) == 1
    assert again.getexif()[0x010F] == "a camera"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".avif"])
def test_icc_exif_and_xmp_survive(small, suffix):
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0110] = "model"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>hello</x:xmpmeta>"
    picture = images.Picture(small.transpose(2, 0, 1), icc=icc, exif=exif.tobytes(), xmp=xmp)
    again = reread(picture, suffix)
    assert again.icc == icc
    assert b"hello" in (again.xmp or b"")
    loaded = Image.Exif()
    loaded.load(again.exif)
    assert loaded[0x0110] == "model"


def test_what_is_not_handled_is_refused_by_name(small, png):
    deep = b"\x89PNG\r\n\x1a\n" + bytes([0, 0, 0, 13]) + b"IHDR"
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(24) for _ in range(4)))

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    deep = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(UnsupportedImage, match="deep.png: colour with 16 bits per channel is not handled"):
        images.read_picture(deep, "deep.png")
    ppm = b"P6\n# a comment\n2 2\n65535\n" + bytes(24)
    with pytest.raises(UnsupportedImage, match="16 bits"):
        images.read_picture(ppm)
    buffer = io.BytesIO()
    Image.fromarray(small).convert("LAB").save(buffer, "TIFF")
    with pytest.raises(UnsupportedImage, match="mode LAB"):
        images.read_picture(buffer.getvalue())
    frames = [Image.fromarray(small), Image.fromarray(255 - small)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImage, match="2 frames or pages"):
        images.read_picture(buffer.getvalue())


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_unreadable(data):
    with pytest.raises(UnreadableImage, match="x: not an image"):
        images.read_picture(data, "x")


def test_a_cut_file_is_unreadable(small, png):
    with pytest.raises(UnreadableImage, match="damaged or incomplete"):
        images.read_picture(png(small)[:2000])


def test_a_declared_gigapixel_is_refused_before_it_is_decoded():
    data = b"P6\n40000 40000\n255\n"
    with pytest.raises(UnreadableImage):
        images.read_picture(data)


def test_a_format_that_would_lose_something_is_refused(small):
    rgba = images.Picture(small.transpose(2, 0, 1), ALPHA, name="a.png")
    with pytest.raises(OutputError, match="can't hold its transparency"):
        images.encode_picture(rgba, ".jpg")
    deep = images.Picture(np.zeros((1, 8, 8), np.uint16))
    with pytest.raises(OutputError, match="can't hold its 16 bits"):
        images.encode_picture(deep, ".jpg")
