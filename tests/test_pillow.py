"""Pillow reads and writes latent files, and so do libraries that read pictures with it."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

import aeimg
import aeimg.pillow
from aeimg import container


def picture(mode: str, small: np.ndarray) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(small[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(small).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(small[..., 1]))
    return image


def saved(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="AEI", **options)
    return buffer.getvalue()


@pytest.fixture
def latent(small) -> bytes:
    return saved(Image.fromarray(small), quality=60)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16"])
def test_pictures_come_back_with_size_and_mode(mode, small, tmp_path):
    image = picture(mode, small)
    image.save(tmp_path / "a.aei", quality=90, effort=2)
    with Image.open(tmp_path / "a.aei") as back:
        assert (back.format, back.mode, back.size) == ("AEI", mode, image.size)
        assert back.get_format_mimetype() == "image/x-aeimg"
        back.load()
        assert (back.mode, back.size) == (mode, image.size)
        peak = 65535 if mode == "I;16" else 255
        difference = np.asarray(back).astype(float) - np.asarray(image)
        assert 0 < np.abs(difference).mean() / peak < 0.02
        assert "A" not in mode or (np.asarray(back)[..., -1] == np.asarray(image)[..., -1]).all()


def test_saving_is_what_compress_does(small, latent):
    assert latent == aeimg.process(Image.fromarray(small), "compress", quality=60, device="cpu")
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(latent))), aeimg.process(latent, "decompress", kind="numpy", device="cpu")
    )
    with pytest.raises(ValueError, match="quality"):
        saved(Image.fromarray(small), quality=0)
    with pytest.raises(OSError, match="AEI"):
        saved(Image.new("F", (9, 9)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_stored_pictures_say_the_size_and_mode_that_they_come_back_with(kind, mode, orientation, small):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image = Image.new(mode, (40, 10))
    (image.convert("RGB") if kind == "JPEG" and mode == "P" else image).save(buffer, kind, exif=exif)
    data = container.write(container.Stored(buffer.getvalue(), "a", kind))
    opened = Image.open(io.BytesIO(data))
    before = opened.mode, opened.size
    opened.load()
    assert (
        before
        == (opened.mode, opened.size)
        == ("L" if mode == "L" else "RGB", (10, 40) if orientation == 6 else (40, 10))
    )


def test_colour_of_16_bits_opens_as_8(small):
    latent = aeimg.process(small.astype(np.uint16) * 257, "compress", device="cpu")
    image = Image.open(io.BytesIO(latent))
    assert (image.mode, image.info["bit_depth"]) == ("RGB", 16)
    deep = aeimg.process(latent, "decompress", kind="numpy", device="cpu")
    assert np.abs(np.asarray(image) - deep / 257).max() <= 0.5


def test_what_came_with_a_picture_is_kept_both_ways(small, tmp_path):
    image = Image.fromarray(small)
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    image.info |= {"icc_profile": b"profile" * 30, "xmp": b"<x:xmpmeta/>", "dpi": (72, 72), "exif": exif.tobytes()}
    for data in (saved(image), saved(Image.fromarray(small), **{**image.info, "exif": exif})):
        back = Image.open(io.BytesIO(data))
        assert {key: back.info[key] for key in ("icc_profile", "xmp", "dpi")} == {
            "icc_profile": b"profile" * 30, "xmp": b"<x:xmpmeta/>", "dpi": (72, 72)
        }  # fmt: skip
        assert back.getexif()[0x010E] == "a cat"
    back = Image.open(io.BytesIO(saved(image, icc_profile=None)))
    assert "icc_profile" not in back.info


def test_opening_reads_the_header_only_and_needs_no_torch(latent, tmp_path):
    (tmp_path / "a.aei").write_bytes(latent)
    code = (
        "import sys, aeimg.pillow\nfrom PIL import Image\nimage = Image.open(sys.argv[1])\n"
        "print(image.size, image.mode, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.aei"], capture_output=True, text=True)
    assert done.stdout.strip() == "(143, 101) RGB False", done.stderr

    class Counted(io.BytesIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            self.count += len(data)
            return data

    file = Counted(latent)
    Image.open(file)
    assert file.count < 400 < len(latent)


def test_opening_a_stored_picture_needs_no_torch(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 10)).save(buffer, "PNG")
    (tmp_path / "a.aei").write_bytes(container.write(container.Stored(buffer.getvalue(), "a", "PNG")))
    code = (
        "import sys, aeimg.pillow\nfrom PIL import Image\nimage = Image.open(sys.argv[1])\n"
        "print(image.size, image.mode, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.aei"], capture_output=True, text=True)
    assert done.stdout.strip() == "(40, 10) RGB False", done.stderr


@pytest.fixture
def seen(monkeypatch) -> list[dict]:
    """What is asked of the codec at each decoding."""
    asked: list[dict] = []
    original = aeimg.LoadedCodec.decode
    monkeypatch.setattr(
        aeimg.LoadedCodec, "decode", lambda self, data, kind, **seen: asked.append(seen) or original(
            self, data, kind, **seen)
    )  # fmt: skip
    return asked


def test_a_thumbnail_decodes_a_smaller_copy(latent, seen):
    whole = Image.open(io.BytesIO(latent)).convert("RGB")
    whole.thumbnail((24, 24))
    small = Image.open(io.BytesIO(latent))
    small.thumbnail((24, 24))
    assert seen[1:] == [{"scale": 1 / 2}]  # 143 pixels, and Pillow keeps a reserve of two times
    assert small.size == whole.size == (24, 17)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).mean() < 2
    drafted = Image.open(io.BytesIO(latent))
    assert drafted.draft(None, (15, 10)) == ("RGB", (0, 0, 143 / 8, 101 / 8))
    assert drafted.draft(None, (1, 1)) is None
    assert drafted.size == (18, 13)
    np.testing.assert_array_equal(
        np.asarray(drafted), aeimg.process(latent, "decompress", kind="numpy", scale=1 / 8, device="cpu")
    )
    assert drafted.draft(None, (1, 1)) is None
    assert Image.open(io.BytesIO(latent)).draft("L", (143, 60)) is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16"])
def test_a_crop_decodes_that_part_alone(mode, small, seen):
    latent = saved(picture(mode, small), quality=60)
    box = (20, 30, 90, 71)
    part = Image.open(io.BytesIO(latent)).crop(box)
    assert seen == [{"crop": (20, 30, 70, 41)}]
    assert (part.mode, part.size) == (mode, (70, 41))
    whole = Image.open(io.BytesIO(latent))
    whole.load()
    np.testing.assert_array_equal(np.asarray(part), np.asarray(whole.crop(box)))
    assert len(seen) == 2  # what is decoded is not decoded again
    beyond = Image.open(io.BytesIO(latent)).crop((-5, 0, 20, 20))
    np.testing.assert_array_equal(np.asarray(beyond), np.asarray(whole.crop((-5, 0, 20, 20))))


def test_verify_finds_damage_and_closes_the_file(latent, tmp_path):
    Image.open(io.BytesIO(latent)).verify()
    broken = bytearray(latent)
    broken[len(broken) // 2] ^= 1
    with pytest.raises(OSError, match="checksum"):
        Image.open(io.BytesIO(broken)).verify()
    with pytest.raises(OSError, match="checksum"):
        Image.open(io.BytesIO(broken)).load()
    (tmp_path / "a.aei").write_bytes(broken)
    with pytest.raises(OSError, match="a.aei"), Image.open(tmp_path / "a.aei") as image:
        image.load()


def test_truncated_files_are_oserrors_wherever_they_end(latent):
    for end in [*range(4, 60), len(latent) - 1]:
        with pytest.raises(OSError, match="."):
            Image.open(io.BytesIO(latent[:end])).load()
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(latent[:3]))


def test_forged_headers_are_oserrors(latent):
    random = np.random.default_rng(0)
    for _ in range(300):
        forged = bytearray(latent[:80] + latent[-40:])
        for place in random.integers(5, len(forged), 3):
            forged[place] = random.integers(256)
        with pytest.raises(OSError, match="."):
            Image.open(io.BytesIO(forged)).load()


def test_use_says_where_pictures_are_decoded(latent):
    with pytest.raises(aeimg.UsageError):
        aeimg.pillow.use("nowhere")
    aeimg.pillow.use("cpu", "fp32")
    try:
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(latent))),
            aeimg.process(latent, "decompress", kind="numpy", device="cpu", dtype="fp32"),
        )
    finally:
        aeimg.pillow.use()


# -- other libraries -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, small):
    for kind in ("cats", "dogs"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        Image.fromarray(small).save(tmp_path / "pictures" / kind / "a.aei", quality=60)
    return tmp_path / "pictures"


def test_torchvision_reads_folders_of_latent_files(folder):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    found = datasets.DatasetFolder(folder, datasets.folder.default_loader, extensions=(".aei",))
    assert [(image.size, kind) for image, kind in found] == [((143, 101), 0), ((143, 101), 1)]
    found = datasets.ImageFolder(folder, is_valid_file=lambda path: path.endswith(".aei"))
    assert len(found) == 2 and found[0][0].mode == "RGB"


def test_imageio_reads_and_writes_latent_files(folder, small, tmp_path):
    iio = pytest.importorskip("imageio.v3", reason="imageio is not installed")
    array = iio.imread(folder / "cats" / "a.aei")
    np.testing.assert_array_equal(array, aeimg.process(folder / "cats" / "a.aei", "decompress", device="cpu"))
    iio.imwrite(tmp_path / "b.aei", small, plugin="pillow", quality=60)
    np.testing.assert_array_equal(iio.imread(tmp_path / "b.aei"), array)


def test_hugging_face_datasets_read_latent_files(folder):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'aeimg[test]'")
    paths = sorted(map(str, folder.rglob("*.aei")))
    found = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    assert [row["image"].size for row in found] == [(143, 101)] * 2
    assert isinstance(found[0]["image"], ImageFile.ImageFile | Image.Image)
