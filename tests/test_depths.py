"""Pictures of odd kinds come out as they went in, or a note or an error says what happened."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from aeimg import OutputError, UnsupportedImage, images, metadata, process
from aeimg.pixels import to_sixteen_bits

DEEP = np.random.default_rng(0).integers(0, 65536, (4, 37, 53), np.uint16)


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def read(data: bytes) -> images.Picture:
    return images.read_picture(data, "x")


# -- TIFF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("task", ["denoise", "compress"])
def test_other_depths_of_tiff_stay_as_bright_as_they_were(bits, task):
    values = np.tile(np.linspace(0, (1 << bits) - 1, 64).astype(np.uint16), (48, 1))
    data = tiff(values, photometric="minisblack", bitspersample=bits)
    picture = read(data)
    np.testing.assert_array_equal(picture.pixels[0], to_sixteen_bits(values, bits))
    assert picture.pixels.max() == 65535
    back = process(data, task, **({"quality": 95} if task == "compress" else {"strength": 0}))
    back = process(back, "decompress", kind="bytes", format="tiff") if task == "compress" else back
    assert np.abs(read(back).pixels[0].astype(int) - picture.pixels[0]).max() < 3000


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_is_the_same_picture(bits, byteorder):
    values = DEEP[0] if bits == 16 else (DEEP[0] >> 8).astype(np.uint8)
    negative = tiff(~values, photometric="miniswhite", byteorder=byteorder)
    np.testing.assert_array_equal(read(negative).pixels[0], values)


def test_associated_alpha_of_sixteen_bits_is_undone_and_said():
    alpha = np.maximum(DEEP[3], 20_000)
    colour = np.rint(DEEP[:3] * (alpha / 65535)).astype(np.uint16)
    samples = np.concatenate([colour, alpha[None]]).transpose(1, 2, 0)
    picture = read(tiff(samples, photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(picture.pixels.astype(int) - DEEP[:3]).max() <= 2
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert "associated alpha" in picture.notes[0]
    plain = read(tiff(samples, photometric="rgb", extrasamples=["unassalpha"]))
    np.testing.assert_array_equal(plain.pixels, colour)
    assert plain.notes == ()
    unknown = read(tiff(samples, photometric="rgb", extrasamples=["unspecified"]))
    assert unknown.alpha is None
    assert "does not say what they are" in unknown.notes[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [(DEEP[0].astype(np.int16), "signed integers of 16 bits"),
     (DEEP[:3].astype(np.int16), "signed integers of 16 bits"),
     (DEEP[0].astype(np.uint32) * 9999, "integers of 32 bits"), (DEEP[0].astype(np.int8), "signed integers of 8 bits"),
     (DEEP[:3] / 65535, "floats of 64 bits")],
)  # fmt: skip
def test_what_is_refused_is_named_rightly(values, said):
    values = values if values.ndim == 2 else values.transpose(1, 2, 0)
    with pytest.raises(UnsupportedImage, match=said):
        read(tiff(values, photometric="minisblack" if values.ndim == 2 else "rgb"))


@pytest.mark.parametrize(("bits", "byteorder"), [(12, "<"), (16, "<"), (16, ">")])  # tifffile packs no 12 bits of ">"
def test_tiffs_that_pillow_does_not_open_are_read_with_what_is_in_them(bits, byteorder):
    values = (DEEP[:3] >> (16 - bits)).transpose(1, 2, 0)
    tags = [(34675, 7, 3, b"icc", True), (315, 2, 5, b"Jos\xe9\0", True), (274, 3, 1, 6, True)]
    options = {"byteorder": byteorder, "extratags": tags, "photometric": "rgb"}
    picture = read(tiff(values, bitspersample=bits, **options))
    expected = to_sixteen_bits(values, bits).transpose(2, 0, 1)
    np.testing.assert_array_equal(picture.pixels, np.rot90(expected, -1, (1, 2)))
    assert picture.metadata.icc == b"icc"
    assert metadata.of_exif(picture.metadata.exif).entries[315].data == b"Jos\xe9\0"
    with pytest.raises(UnsupportedImage, match="2 frames or pages"):
        read(tiff(np.stack([values, values]), bitspersample=bits, photometric="rgb", byteorder=byteorder))


def test_thirty_two_bits_that_are_sixteen_are_read_as_such_and_said():
    picture = read(tiff(DEEP[0].astype(np.uint32), photometric="minisblack"))
    np.testing.assert_array_equal(picture.pixels[0], DEEP[0])
    assert picture.notes == ("its integers of 32 bits became 16: none is above 65535",)


@pytest.mark.parametrize("orientation", [1, 6])
def test_heif_of_more_than_8_bits_is_read_whole(ten, orientation):
    heif = pytest.importorskip("pillow_heif", reason="pillow_heif is not installed (an extra)")
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    heif.encode("RGB;16", ten.shape[1::-1], (ten << 6).tobytes(), buffer, quality=-1, chroma=444, exif=exif.tobytes())
    picture = read(buffer.getvalue())
    expected = to_sixteen_bits(ten, 10).transpose(2, 0, 1)
    expected = np.rot90(expected, -1, (1, 2)) if orientation == 6 else expected
    assert picture.pixels.dtype == np.uint16
    assert np.abs(picture.pixels.astype(int) - expected).mean() < 500
    assert np.unique(picture.pixels).size > 256


def test_jpeg_xl_of_more_than_8_bits_is_refused():
    pytest.importorskip("pillow_jxl", reason="pillow_jxl is not installed (an extra)")
    images._readable()
    data = imagecodecs.jpegxl_encode(np.ascontiguousarray(DEEP[:3].transpose(1, 2, 0)), lossless=True)
    with pytest.raises(UnsupportedImage, match="JPEG XL of more than 8 bits"):
        read(data)


def test_one_bit_becomes_eight_and_says_so():
    for photometric in ("miniswhite", "minisblack"):
        picture = read(tiff(DEEP[0] > 9999, photometric=photometric))
        assert picture.notes == ("its 1 bit per pixel became 8",)
        assert set(np.unique(picture.pixels)) == {0, 255}


# -- PNG --------------------------------------------------------------------------------------------------------------


def with_transparency(data: bytes, *values: int) -> bytes:
    body = b"tRNS" + struct.pack(f">{len(values)}H", *values)
    return data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_sixteen_bits_becomes_alpha(channels):
    data = images.encode_picture(images.Picture(DEEP[:channels]), ".png")
    picture = read(with_transparency(data, *(int(value) for value in DEEP[:channels, 3, 5])))
    clear = (DEEP[:channels] == DEEP[:channels, 3:4, 5:6]).all(0)
    np.testing.assert_array_equal(picture.pixels, DEEP[:channels])
    np.testing.assert_array_equal(picture.alpha, np.where(clear, 0, 65535))
    if channels == 1:
        with Image.open(io.BytesIO(with_transparency(data, int(DEEP[0, 3, 5])))) as image:
            np.testing.assert_array_equal(images.from_pil(image).alpha, picture.alpha)


def test_alpha_that_is_opaque_stays_through_latents(small):
    rgba = np.dstack([small, np.full(small.shape[:2], 255, np.uint8)])
    flat = np.full((30, 40, 4), 255, np.uint8)
    for pixels in (rgba, flat):
        back = process(process(Image.fromarray(pixels), "compress"), "decompress")
        assert back.mode == "RGBA"


# -- AVIF and JPEG 2000 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten(small) -> np.ndarray:
    return small.astype(np.uint16) * 4 + 3


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits_is_read_whole(ten, bits):
    values = ten if bits == 10 else ten * 4
    data = imagecodecs.avif_encode(values, level=99, bitspersample=bits)
    picture = read(data)
    assert picture.pixels.dtype == np.uint16
    error = np.abs(picture.pixels.astype(int) - to_sixteen_bits(values, bits).transpose(2, 0, 1))
    assert error.mean() < 1000
    assert np.unique(picture.pixels).size > 256
    with pytest.raises(OutputError, match="AVIF can't hold its 16 bits; use --format png"):
        process(data, "denoise", format="avif")


def test_animated_avif_of_more_than_8_bits_is_refused(ten):
    # The decoder crashed the process when it was asked for one frame of several, except for the last one.
    data = imagecodecs.avif_encode(np.stack([ten, ten // 2, ten // 4]), level=90, bitspersample=10)
    with pytest.raises(UnsupportedImage, match="animated AVIF of 10 bits is not handled; convert it to 8 bits"):
        images.ImageFile(data, "flag.avif").picture(3)


@pytest.mark.parametrize(("primaries", "transfer"), [(9, 16), (9, 18), (12, 13), (1, 13)])
def test_colours_of_avif_beyond_srgb_are_kept_for_png(ten, primaries, transfer):
    data = imagecodecs.avif_encode(ten, level=90, bitspersample=10, primaries=primaries, transfer=transfer, matrix=9)
    asked = () if primaries == 1 else ((b"cICP", bytes([primaries, transfer, 0, 1])),)
    assert read(data).metadata.colour == asked
    latent = process(data, "compress", quality=30)
    assert read(process(latent, "decompress", kind="bytes", format="png")).metadata.colour == asked
    said = images.left_out(read(data), ".tif")
    assert bool(said) == bool(asked)


def test_alpha_of_avif_is_lossless(small):
    alpha = np.random.default_rng(0).integers(0, 256, small.shape[:2], np.uint8)
    picture = images.Picture(small.transpose(2, 0, 1), alpha)
    for quality in (10, None):
        np.testing.assert_array_equal(read(images.encode_picture(picture, ".avif", image_quality=quality)).alpha, alpha)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("colour", [True, False])
def test_jpeg_2000_of_more_than_8_bits_is_read_whole(bits, colour):
    values = (DEEP[:3].transpose(1, 2, 0) if colour else DEEP[0]) >> (16 - bits)
    values = np.ascontiguousarray(values)
    data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits)
    expected = to_sixteen_bits(values, bits)
    np.testing.assert_array_equal(read(data).pixels, expected.transpose(2, 0, 1) if colour else expected[None])


# -- further pictures in a file ---------------------------------------------------------------------------------------


def test_views_and_gain_maps_that_are_not_read_are_said(small):
    buffer = io.BytesIO()
    first = Image.fromarray(small)
    first.save(buffer, "MPO", save_all=True, append_images=[Image.fromarray(255 - small)])
    assert read(buffer.getvalue()).notes == ("only the first of its 2 views was read",)
    buffer = io.BytesIO()
    first.save(buffer, "JPEG", xmp=b'<rdf:Description xmlns:hdrgm="x" hdrgm:Version="1.0"/>')
    assert "gain map was left out" in read(buffer.getvalue()).notes[0]
