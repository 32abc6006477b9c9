"""What comes with a picture survives, or a note says that it does not; `docs/metadata.md` says which."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from aeimg import container, images, metadata, process
from aeimg.metadata import HOLDS, NAMES, Chunk, Metadata, Resolution

PAGE = Path(__file__).parents[1] / "docs" / "metadata.md"
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>hello</x:xmpmeta>"
IPTC = b"\x1c\x02\x78\x00\x05Jos\xc3\xa9\x1c\x02\x74\x00\x02me"
NAME = "José".encode("latin-1")


def exif_of(order: str = "<", orientation: int | None = None) -> bytes:
    """EXIF data as a camera writes it: a name in Latin-1, a directory below, a maker's note."""
    below = metadata.Directory(order)
    below.entries[0x9003] = metadata.Entry(2, 20, b"2026:01:02 03:04:05\0")
    below.entries[0x927C] = metadata.Entry(7, 9, b"maker\0\xff\x80\x01")
    whole = metadata.Directory(order, below={0x8769: below})
    whole.entries[0x010F] = metadata.Entry(2, 9, b"a camera\0")
    whole.entries[0x013B] = metadata.Entry(2, 5, NAME + b"\0")
    if orientation is not None:
        whole.put(0x0112, 3, orientation)
    data = metadata.as_exif(whole)
    assert data is not None
    return data


FULL = Metadata(
    ICC, exif_of(), XMP, IPTC, (b"a comment", "José".encode()), Resolution(Fraction(300), Fraction(150), "inch"),
    ((b"tEXt", b"Title\0a title of " + NAME), (b"zTXt", b"Description\0\0" + zlib.compress(b"long"))),
    ((b"cICP", bytes([9, 16, 0, 1])), (b"gAMA", struct.pack(">I", 100_000)),
     (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))),
)  # fmt: skip


@pytest.fixture(scope="module")
def pixels(small) -> np.ndarray:
    return np.ascontiguousarray(small[:40, :56].transpose(2, 0, 1))


# -- which field survives where ---------------------------------------------------------------------------------------

SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "BMP": ".bmp",
    "PPM": ".ppm",
}
ALPHA, SIXTEEN = "alpha", "16 bits"


def survives(picture: images.Picture, suffix: str, through) -> dict[str, bool]:
    """For each field that a file of the format held, whether it is there after `through`."""
    before = images.read_picture(images.encode_picture(picture, suffix))
    after = through(before)

    def same(name: str) -> bool:
        if name == "resolution":
            pair = before.metadata.any_resolution, after.metadata.any_resolution
            return None not in pair and all(
                abs(a - b) < 0.01 for a, b in zip(pair[0].per("inch"), pair[1].per("inch"), strict=True)
            )
        if name == "exif":
            found = after.metadata.exif and metadata.of_exif(after.metadata.exif)
            asked = metadata.of_exif(FULL.exif)
            return (
                bool(found)
                and all(found.entries.get(tag) == entry for tag, entry in asked.entries.items())
                and (found.below[0x8769].entries == asked.below[0x8769].entries)
            )
        return bool(getattr(before.metadata, name)) and getattr(before.metadata, name) == getattr(after.metadata, name)

    return {name: same(name) for name in NAMES}


def denoised(suffix: str):
    return lambda picture: images.read_picture(
        process(images.encode_picture(picture, suffix), "denoise", format=suffix[1:])
    )


def compressed(suffix: str):
    def through(picture: images.Picture) -> images.Picture:
        latent = process(images.encode_picture(picture, suffix), "compress", quality=20)
        assert isinstance(container.read(latent), container.Coded)
        return images.read_picture(process(latent, "decompress", kind="bytes", format=suffix[1:]))

    return through


def holds(pixels: np.ndarray, suffix: str, what: str) -> bool:
    """Whether the format brings alpha or 16 bits back as they were."""
    rng = np.random.default_rng(0)
    if what == ALPHA:
        picture = images.Picture(pixels, rng.integers(0, 256, pixels.shape[1:], np.uint8))
    else:
        picture = images.Picture(rng.integers(0, 65536, pixels.shape, np.uint16))
    try:
        back = images.read_picture(images.encode_picture(picture, suffix))
    except images.OutputError:
        return False
    return np.array_equal(back.alpha, picture.alpha) if what == ALPHA else np.array_equal(back.pixels, picture.pixels)


def table(rows: dict[str, dict[str, bool]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {kind} | {' | '.join('yes' if row[name] else '-' for name in columns)} |" for kind, row in rows.items()
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("heading", "way"), [("Through denoise", denoised), ("Through compress and decompress", compressed)]
)
def test_the_page_says_what_survives(pixels, heading, way):
    rows = {}
    noise = np.random.default_rng(0).integers(-40, 40, pixels.shape)
    noisy = np.clip(np.tile(pixels, (1, 4, 4)) + np.tile(noise, (1, 4, 4)), 0, 255).astype(np.uint8)
    for kind, suffix in SUFFIXES.items():
        kept = survives(images.Picture(noisy, metadata=FULL), suffix, way(suffix))
        rows[kind] = {NAMES[name]: value for name, value in kept.items()}
        rows[kind] |= {what: holds(pixels, suffix, what) for what in (ALPHA, SIXTEEN)}
        assert {name for name, value in kept.items() if value} == set(HOLDS[kind])
    assert f"## {heading}\n\n{table(rows)}\n" in PAGE.read_text()


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_what_a_format_can_not_hold_is_said(pixels, suffix):
    kind = images.WRITABLE[suffix]
    said = " ".join(images.left_out(images.Picture(pixels, metadata=FULL), suffix))
    assert {name for name in NAMES if NAMES[name] in said} == set(NAMES) - set(HOLDS[kind])
    assert images.left_out(images.Picture(pixels), suffix) == ()


def test_the_summary_says_it_too(tmp_path, pixels):
    (tmp_path / "a.png").write_bytes(images.encode_picture(images.Picture(pixels, metadata=FULL), ".png"))
    summary = process(tmp_path / "a.png", "denoise", out=tmp_path / "out", format="webp")
    assert any("WEBP can't hold its IPTC data" in said for said in summary.files[0]["warnings"])


def test_a_stored_picture_keeps_everything(pixels):
    about = replace(FULL, exif=None)
    flat = images.Picture(np.full_like(pixels, 9), np.full(pixels.shape[1:], 255, np.uint8), about)
    back = images.read_picture(images.encode_lossless(flat))
    assert back.mode == "RGBA"
    assert replace(back.metadata, resolution=None) == replace(about, resolution=None)


# -- byte for byte ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_text_that_is_not_ascii_is_kept_byte_for_byte(pixels, suffix, order):
    data = images.encode_picture(images.Picture(pixels, metadata=Metadata(exif=exif_of(order))), suffix)
    back = images.read_picture(data).metadata.exif
    again = images.read_picture(images.encode_picture(images.read_picture(data), suffix)).metadata.exif
    for exif in (back, again):
        found = metadata.of_exif(exif)
        assert found.entries[0x013B].data == NAME + b"\0"
        assert found.below[0x8769].entries[0x927C].data == b"maker\0\xff\x80\x01"
    if suffix != ".tif":
        assert again == exif_of(order)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x013B] == "José"


@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_orientation_is_cut_out(pixels, order):
    whole = exif_of(order, orientation=6)
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", exif=whole)
    exif = images.read_picture(buffer.getvalue()).metadata.exif
    assert len(exif) == len(whole)
    found, asked = metadata.of_exif(exif), metadata.of_exif(whole)
    del asked.entries[0x0112]
    assert found == asked
    at = whole.index(b"maker")
    assert exif[at:] == whole[at:]  # all else stays in its place


@pytest.mark.parametrize("orientation", range(2, 9))
def test_avif_that_keeps_its_orientation_apart_is_turned_and_keeps_its_text(pixels, orientation):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    data = buffer.getvalue()
    upright = images.UPRIGHT[orientation](pixels)
    picture = images.read_picture(data)
    assert np.abs(picture.pixels.astype(int) - upright).mean() < 2
    assert picture.metadata.exif is None
    raw = metadata._with_orientation(exif_of(), orientation)
    assert metadata.of_exif(raw).number(0x0112) == orientation
    assert metadata.of_exif(raw).entries[0x013B].data == NAME + b"\0"


def test_a_thumbnail_of_another_picture_goes_and_the_rest_stays_in_its_place(pixels):
    thumbnail = b"\xff\xd8" + bytes(range(256)) * 20 + b"\xff\xd9"
    whole = exif_of()
    tiff = bytearray(whole[6:])
    second = metadata.Directory("<")
    second.put(513, 4, len(tiff) + 30)
    second.put(514, 4, len(thumbnail))
    struct.pack_into("<I", tiff, 8 + 2 + 12 * 3, len(tiff))
    buffer = io.BytesIO()
    data = bytes(tiff) + metadata.lay_out(second, len(tiff)) + thumbnail
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", exif=b"Exif\0\0" + data)
    exif = images.read_picture(buffer.getvalue()).metadata.exif
    assert thumbnail not in exif
    assert len(exif) < len(whole) + 40
    assert metadata.of_exif(exif) == metadata.of_exif(whole)


def test_a_resolution_is_added_behind_everything_else(pixels):
    about = Metadata(exif=exif_of(">"), resolution=Resolution(Fraction(118), Fraction(118), "centimetre"))
    exif = metadata.exif_with_resolution(about)
    assert metadata.exif_resolution(exif) == about.resolution
    found = metadata.of_exif(exif)
    for tag in (0x011A, 0x011B, 0x0128):
        del found.entries[tag]
    assert found == metadata.of_exif(about.exif)
    assert exif[14 : len(about.exif)] == about.exif[14:]
    assert metadata.exif_with_resolution(Metadata(exif=exif, resolution=about.resolution)) == exif


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".jpg", {"dpi": (300, 150)}), (".png", {"dpi": (300, 150)}), (".bmp", {"dpi": (300, 150)}),
     (".tif", {"dpi": (300, 150)})],
)  # fmt: skip
@pytest.mark.parametrize("target", [".jpg", ".png", ".bmp", ".tif", ".webp", ".avif"])
def test_resolution_goes_from_each_format_to_each(pixels, suffix, options, target):
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, images.WRITABLE[suffix], **options)
    data = images.encode_picture(images.read_picture(buffer.getvalue()), target)
    if target in (".webp", ".avif"):
        found = images.read_picture(data).metadata.any_resolution.per("inch")
    else:
        with Image.open(io.BytesIO(data)) as image:
            found = image.info["dpi"]
    assert [float(value) for value in found] == pytest.approx([300, 150], abs=0.02)


def test_resolution_turns_with_the_picture(pixels):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG", dpi=(300, 150), exif=exif)
    x, y = images.read_picture(buffer.getvalue()).metadata.resolution.per("inch")
    assert (round(x), round(y)) == (150, 300)


def test_a_ratio_without_a_unit_is_kept(pixels):
    for suffix in (".jpg", ".png"):
        ratio = Resolution(Fraction(2), Fraction(1), "")
        data = images.encode_picture(images.Picture(pixels, metadata=Metadata(resolution=ratio)), suffix)
        assert images.read_picture(data).metadata.resolution == ratio


def test_iptc_is_what_other_programs_read(pixels):
    from PIL import IptcImagePlugin

    for suffix in (".jpg", ".tif"):
        data = images.encode_picture(images.Picture(pixels, metadata=Metadata(iptc=IPTC)), suffix)
        with Image.open(io.BytesIO(data)) as image:
            assert IptcImagePlugin.getiptcinfo(image)[2, 120] == "José".encode()


# -- to and from Pillow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["denoise", "compress"])
@pytest.mark.parametrize("kind", ["path", "pil"])
def test_pictures_come_back_with_what_they_came_with(tmp_path, pixels, task, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(images.encode_picture(images.Picture(pixels, metadata=replace(FULL, text=(), colour=())), ".jpg"))
    source = path if kind == "path" else Image.open(path)
    back = process(source, task)
    back = process(back, "decompress") if task == "compress" else back
    assert back.info["icc_profile"] == ICC
    assert back.info["xmp"] == XMP
    assert back.info["exif"] == exif_of()
    assert back.info["dpi"] == (300, 150)
    assert back.getexif()[0x010F] == "a camera"
    again = io.BytesIO()
    back.save(again, "PNG", dpi=back.info["dpi"], exif=back.info["exif"])
    assert images.read_picture(again.getvalue()).metadata.icc == ICC


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_callers_image_is_not_changed(pixels, suffix):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, suffix, exif=exif)
    with Image.open(buffer) as image:
        if suffix in ("TIFF", "WEBP"):
            image.load()  # this turns it, and adds to its info, in Pillow
        before = (dict(image.info), dict(image.getexif()), image.size)
        first, second = (process(image, "denoise", strength=0) for _ in range(2))
        assert (dict(image.info), dict(image.getexif()), image.size) == before
    assert first.size == second.size == (40, 56)
    assert first.tobytes() == second.tobytes()


def test_what_pillow_says_of_colours_comes_along(pixels):
    about = replace(FULL, icc=None)
    image = images.to_pil(images.Picture(pixels, metadata=about))
    assert image.info["gamma"] == 1.0
    assert image.info["Title"] == "a title of José"
    assert sorted(images.from_pil(image).metadata.colour) == sorted(about.colour)


# -- damage -----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_exif(pixels: np.ndarray, suffix: str, exif: bytes) -> bytes:
    """A file that holds EXIF data that no encoder would take."""
    same = bytes(exif_of()[:6]) + b"II*\0\x08\0\0\0" + bytes(len(exif) - 14)
    data = images.encode_picture(images.Picture(pixels, metadata=Metadata(exif=same)), suffix)
    for part in (same, same[6:]):
        if part in data:
            data = data.replace(part, exif[-len(part) :])
            break
    else:
        raise AssertionError("not found")
    if suffix == ".png":
        at = data.index(b"eXIf")
        length = int.from_bytes(data[at - 4 : at], "big")
        data = data[: at - 4] + chunk(b"eXIf", data[at + 4 : at + 4 + length]) + data[at + 8 + length :]
    return data


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the same damage
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif"])
def test_damaged_exif_is_left_out_and_said(pixels, suffix):
    whole = exif_of(orientation=6)
    for at in range(6, len(whole), 3):
        for value in (0, 77, 255):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            data = with_exif(pixels, suffix, damaged)
            picture = images.read_picture(data)
            assert picture.pixels.size == pixels.size
            images.read_picture(images.encode_picture(picture, suffix))
    picture = images.read_picture(with_exif(pixels, suffix, whole[:6] + b"II*\0\xff\xff\0\0" + whole[14:]))
    assert picture.metadata.exif is None
    assert any("EXIF data was left out: it is damaged" in note for note in picture.notes)


def test_one_bad_field_costs_no_other(pixels):
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    image.info |= {"icc_profile": ICC, "gamma": -1.0, "Raw profile type exif": "exif\n\n\nxyz", "dpi": ("a", None)}
    picture = images.from_pil(image)
    assert picture.metadata == Metadata(icc=ICC)
    assert len(picture.notes) == 2
    assert all("it is damaged" in note for note in picture.notes)


@pytest.mark.filterwarnings("ignore")
def test_damaged_entries_are_cut_out_and_the_rest_stays_in_its_place(pixels):
    whole = bytearray(exif_of(orientation=6))
    for tag in (0x010F, 0x9003):  # one in each directory leads behind the data
        at = whole.index(struct.pack("<HH", tag, 2))
        struct.pack_into("<I", whole, at + 8, 1 << 20)
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", exif=bytes(whole))
    picture = images.read_picture(buffer.getvalue())
    assert picture.notes == ("of its EXIF data 2 entries were left out: they are damaged",)
    assert (picture.width, picture.height) == (40, 56)
    found, exif = metadata.of_exif(picture.metadata.exif), picture.metadata.exif
    assert (set(found.entries), set(found.below[0x8769].entries)) == ({0x013B}, {0x927C})
    assert not found.damaged
    assert exif.index(b"maker\0") == whole.index(b"maker\0")


def test_a_comment_of_jpeg_that_ends_in_nul_is_a_text_in_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", comment=b"a text\0")
    picture = images.read_picture(buffer.getvalue())
    assert picture.metadata.comments == (b"a text\0",)
    assert images.read_picture(images.encode_picture(picture, ".jpg")).metadata.comments == (b"a text\0",)
    with Image.open(io.BytesIO(images.encode_picture(picture, ".png"))) as image:
        assert image.text["Comment"] == "a text"


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_directory_of_a_tiff_costs_what_is_damaged_alone(pixels):
    data = images.encode_picture(images.Picture(pixels, metadata=Metadata(exif=exif_of())), ".tif")
    at = data.index(struct.pack("<HHI", 0x8769, 4, 1)) + 8
    picture = images.read_picture(data[:at] + b"\xf0\xff\xff\x7f" + data[at + 4 :])
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert metadata.of_exif(picture.metadata.exif).entries[0x013B].data == NAME + b"\0"
    assert any("1 entries were left out" in note for note in picture.notes)


@pytest.mark.parametrize("xmp", [b"\xff\xfe\x00", b"<x:xmpmeta", b"\0" * 9])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_bad_xmp_refuses_no_picture(pixels, suffix, xmp):
    data = images.encode_picture(images.Picture(pixels, metadata=Metadata(xmp=xmp)), suffix)
    assert images.read_picture(data).pixels.shape == pixels.shape


def test_metadata_beyond_the_cap_is_left_out_the_largest_first_and_said(pixels, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_METADATA", 4000)
    big: tuple[Chunk, ...] = ((b"tEXt", b"Title\0" + bytes(5000)),)
    data = images.encode_picture(images.Picture(pixels, metadata=replace(FULL, text=big)), ".png")
    picture = images.read_picture(data)
    assert picture.metadata.text == ()
    assert picture.metadata.icc == ICC
    assert picture.notes == (
        "its texts (5006 bytes) was left out: metadata of more than 4000 bytes in all is not kept",
    )


def test_pillow_reads_what_is_written(pixels):
    data = images.encode_picture(images.Picture(pixels, metadata=FULL), ".png")
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.text["Description"] == "long"
        assert image.text["Comment"] == "José"
    data = images.encode_picture(images.Picture(pixels, metadata=FULL), ".tif")
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        assert image.info["icc_profile"] == ICC
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"
