"""What must survive a file survives, and what can't is refused by name."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from aeimg import OutputError, UnreadableImage, UnsupportedImage, images
from aeimg.metadata import Metadata

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


DEEP = np.random.default_rng(0).integers(0, 65536, (4, 37, 53), np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_sixteen_bits_keep_every_bit(suffix, channels, alpha):
    picture = images.Picture(DEEP[:channels], DEEP[3] if alpha else None)
    if (suffix, channels, alpha) == (".tiff", 1, True):
        with pytest.raises(OutputError, match="can't hold grey with alpha"):
            images.encode_picture(picture, suffix)
        return
    back = reread(picture, suffix)
    np.testing.assert_array_equal(back.pixels, picture.pixels)
    assert (back.alpha is None) is not alpha
    if alpha:
        np.testing.assert_array_equal(back.alpha, picture.alpha)


@pytest.mark.parametrize("options", [{"compression": "lzw"}, {"planarconfig": "separate"}, {"byteorder": ">"}])
def test_sixteen_bit_tiffs_of_other_programs_are_read(options):
    tifffile = pytest.importorskip("tifffile")
    values = DEEP[:3] if "planarconfig" in options else DEEP[:3].transpose(1, 2, 0)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb", **options)
    np.testing.assert_array_equal(images.read_picture(buffer.getvalue()).pixels, DEEP[:3])


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_colour_keeps_its_metadata_and_is_whole_to_others(suffix):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = images.Picture(DEEP[:3], metadata=Metadata(icc, exif.tobytes(), xmp))
    data = images.encode_picture(picture, suffix)
    back = images.read_picture(data)
    assert (back.metadata.icc, back.metadata.xmp) == (icc, xmp)
    again = Image.Exif()
    again.load(back.metadata.exif)
    assert again[0x010F] == "a camera"
    assert again.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
    with Image.open(io.BytesIO(data)) as image:  # cut to 8 bits, but whole
        np.testing.assert_array_equal(np.asarray(image)[:, :, 0], DEEP[0] >> 8)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jpg", ".webp"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_what_a_camera_says_is_kept_by_every_format(mode, suffix):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    exif.get_ifd(0x8825)[1] = "N"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    planes = (DEEP >> 8).astype(np.uint8)
    pixels = planes[:3] if "RGB" in mode else planes[:1]
    alpha = planes[3] if "A" in mode else None
    if alpha is not None and suffix == ".jpg":
        return
    picture = images.Picture(pixels, alpha, metadata=Metadata(icc, exif.tobytes(), xmp))
    back = images.read_picture(images.encode_picture(picture, suffix))
    again = Image.Exif()
    again.load(back.metadata.exif)
    assert (again[0x010F], again.get_ifd(0x8769)[0x9003]) == ("a camera", "2026:01:02 03:04:05")
    assert again.get_ifd(0x8825)[1] == "N"
    assert (back.metadata.icc, back.metadata.xmp) == (icc, xmp)
    if suffix in (".png", ".tiff"):
        np.testing.assert_array_equal(back.planes, picture.planes)


def test_a_layout_that_exif_tells_of_is_not_that_of_the_file_written():
    exif = Image.Exif()
    for tag, value in ((258, 4), (259, 7), (266, 2), (278, 1), (317, 2), (322, 16), (339, 3)):
        exif[tag] = value
    for pixels in (DEEP[:3], (DEEP[:3] >> 8).astype(np.uint8)):
        data = images.encode_picture(images.Picture(pixels, metadata=Metadata(exif=exif.tobytes())), ".tif")
        np.testing.assert_array_equal(images.read_picture(data).pixels, pixels)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the same damage
@pytest.mark.parametrize("pixels", [DEEP[:3], (DEEP[:3] >> 8).astype(np.uint8)], ids=["16 bits", "8 bits"])
def test_damaged_exif_is_a_damaged_image_by_name(pixels):
    exif = Image.Exif()
    exif[0x010F], exif[0x011A] = "a camera", 72.0
    whole = exif.tobytes()
    for at in range(6, len(whole)):
        for value in (0, 1, 77, 255):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            data = images.encode_picture(images.Picture(pixels[:, :4, :4]), ".png")
            body = b"eXIf" + damaged.removeprefix(b"Exif\0\0")
            chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
            with contextlib.suppress(UnreadableImage):
                images.read_picture(data[:33] + chunk + data[33:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_sixteen_bit_colour_is_that_of_eight(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = images.encode_picture(images.Picture(DEEP[:3], metadata=Metadata(exif=exif.tobytes())), ".png")
    buffer = io.BytesIO()
    Image.fromarray((DEEP[:3] >> 8).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "PNG", exif=exif)
    shallow = images.read_picture(buffer.getvalue())
    np.testing.assert_array_equal(images.read_picture(deep).pixels >> 8, shallow.pixels)
    assert images.read_picture(deep).metadata.exif is None


def test_a_cut_file_of_sixteen_bit_colour_is_unreadable():
    for suffix in (".png", ".tiff"):
        data = images.encode_picture(images.Picture(DEEP[:3]), suffix)
        with pytest.raises(UnreadableImage, match="damaged or incomplete"):
            images.read_picture(data[: len(data) * 2 // 3], "cut")


@pytest.mark.parametrize(("module", "kind"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_formats_of_plug_ins_are_read_where_those_are_installed(photograph, module, kind):
    pytest.importorskip(module, reason=f"{module} is not installed (an extra)")
    images._readable()
    buffer = io.BytesIO()
    Image.fromarray(photograph).save(buffer, kind, quality=95)
    picture = images.read_picture(buffer.getvalue())
    assert picture.format == kind
    assert np.abs(picture.pixels.astype(int) - photograph.transpose(2, 0, 1)).mean() < 4


@pytest.mark.parametrize(
    ("data", "extra"), [(b"\0\0\0\x18ftypheic" + bytes(99), "heic"), (b"\xff\x0a" + bytes(99), "jxl")]
)
def test_a_missing_plug_in_is_named(data, extra, monkeypatch):
    monkeypatch.setattr(images, "_readable", lambda: images.READABLE)
    with pytest.raises(UnreadableImage, match=rf"pip install 'aeimg\[{extra}\]'"):
        images.read_picture(data)


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
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0110] = "model"
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>hello</x:xmpmeta>"
    picture = images.Picture(small.transpose(2, 0, 1), metadata=Metadata(icc, exif.tobytes(), xmp))
    again = reread(picture, suffix)
    assert again.metadata.icc == icc
    assert b"hello" in (again.metadata.xmp or b"")
    loaded = Image.Exif()
    loaded.load(again.metadata.exif)
    assert loaded[0x0110] == "model"


def test_what_is_not_handled_is_refused_by_name(small, png):
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
