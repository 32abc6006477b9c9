"""Files of several pages: each page is taken, once, and all of them come back in one file."""

from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageSequence

import aeimg
from aeimg import InvalidLatent, UnsupportedImage, UsageError, container, images, multipage, progress
from aeimg.cli import main
from aeimg.multipage import Page

SIZES = [(40, 24), (24, 40), (33, 17)]


class Half(torch.nn.Module):
    """Halves all values."""

    task, halo, label, digest = "denoise", 0, "half-1", b"half"

    def forward(self, x, sigma):
        return x * 0.5


@pytest.fixture
def half():
    aeimg.register("half", Half)
    return {"model": "half", "sigma": 5}


def pixels(number: int, size: tuple[int, int] = (40, 24)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)


def smooth(number: int) -> np.ndarray:
    """A picture that lossy formats keep well."""
    y, x = np.mgrid[:24, :40]
    return np.stack([6 * x, 10 * y, np.full_like(x, 40 + 5 * number)], 2).astype(np.uint8)


def tiff(path: Path, sizes=SIZES, **options) -> list[np.ndarray]:
    """Writes a TIFF of pages that differ in size, and returns them."""
    made = [pixels(number, size) for number, size in enumerate(sizes)]
    first, *rest = map(Image.fromarray, made)
    first.save(path, save_all=True, append_images=rest, **options)
    return made


def animation(path: Path, count: int = 4, alpha: bool = False, **options) -> list[np.ndarray]:
    made = [smooth(number) for number in range(count)]
    if alpha:
        made = [np.dstack([one, pixels(9 + n)[..., 0]]) for n, one in enumerate(made)]
    first, *rest = map(Image.fromarray, made)
    first.save(path, save_all=True, append_images=rest, duration=[40 * (n + 1) for n in range(count)], **options)
    return made


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [
            np.asarray(frame.convert("RGBA" if "A" in frame.mode else "RGB")) for frame in ImageSequence.Iterator(image)
        ]


def durations(path: Path) -> list[int]:
    with Image.open(path) as image:
        found = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            found.append(round(frame.info["duration"]))
        return found


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_several_pages_are_refused_by_name_with_what_to_do(tmp_path, half):
    tiff(tmp_path / "a.tif")
    with pytest.raises(UnsupportedImage, match=r"a\.tif: 3 frames or pages; .*--pages all"):
        aeimg.process(tmp_path / "a.tif", "denoise", **half)


@pytest.mark.parametrize(("wanted", "number"), [("first", 0), (2, 1)])
def test_one_page_can_be_chosen_and_a_note_says_so(tmp_path, half, wanted, number):
    made = tiff(tmp_path / "a.tif")
    back = aeimg.process(tmp_path / "a.tif", "denoise", pages=wanted, strength=0, **half)
    assert (np.asarray(back) == made[number]).all()
    summary = aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "out", pages=wanted)
    (record,) = summary.files
    assert record["warnings"] == [f"only the page {number + 1} of 3 was read"]
    assert Path(record["output"]).name == "a.aei"


def test_a_page_that_is_not_there_is_that_file_s_error(tmp_path):
    tiff(tmp_path / "a.tif")
    summary = aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "out", pages=4)
    assert "has 3 pages, and none of number 4" in summary.failed[0][1]


@pytest.mark.parametrize("pages", ["some", 0, -1, True, 1.5, "2"])
def test_other_words_are_refused(pages):
    with pytest.raises(UsageError, match="pages must be"):
        aeimg.process(np.zeros((8, 8, 3), np.uint8), "compress", pages=pages)


def test_all_pages_are_for_files(tmp_path, half):
    tiff(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="are for files"):
        aeimg.process(tmp_path / "a.tif", "denoise", pages="all", **half)


def with_thumbnail(first: bool) -> bytes:
    """A TIFF of a picture and its thumbnail, in one order or the other."""
    kinds = [(1, (10, 6)), (0, (40, 24))] if first else [(0, (40, 24)), (1, (10, 6))]
    parts = []
    for kind, size in kinds:
        directory, strip = images.tiff_page(images.from_pil(Image.fromarray(pixels(kind, size))))
        directory.put(254, 4, kind)
        parts.append((directory, strip))
    return aeimg.metadata.tiff_file(parts)


@pytest.mark.parametrize("first", [False, True])
def test_a_thumbnail_is_no_page(first):
    picture = images.read_picture(with_thumbnail(first))
    assert (np.moveaxis(picture.pixels, 0, 2) == pixels(0)).all()
    assert picture.page is None


def test_a_raw_file_whose_picture_lies_below_is_refused_by_name():
    directory, strip = images.tiff_page(images.from_pil(Image.fromarray(pixels(0, (10, 6)))))
    directory.put(254, 4, 1)
    directory.put(330, 4, 8)
    with pytest.raises(UnsupportedImage, match="raw picture"):
        images.read_picture(aeimg.metadata.tiff_file([(directory, strip)]))


def test_directories_in_a_circle_are_an_error():
    data = bytearray(with_thumbnail(False))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    with pytest.raises(aeimg.UnreadableImage, match="circle"):
        images.read_picture(bytes(data))


# -- denoise -----------------------------------------------------------------------------------------------------------


def test_a_tiff_comes_back_with_all_its_pages_and_their_metadata(tmp_path, half):
    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, 3), np.uint16)
    parts = [images.tiff_page(images.Picture(*aeimg.pixels.from_array(array), page=Page(n, 2)))
             for n, array in enumerate([pixels(0), deep], 1)]  # fmt: skip
    for number, (directory, _) in enumerate(parts):
        directory.put_bytes(270, 2, f"page {number}\0".encode())
        directory.put_bytes(34675, 7, b"profile %d" % number)
    (tmp_path / "a.tif").write_bytes(aeimg.metadata.tiff_file(parts))
    summary = aeimg.process(tmp_path, "denoise", out=tmp_path / "out", pages="all", strength=0, **half)
    assert (summary.done, summary.failed) == (1, [])
    assert summary.files[0]["pages"] == 2
    with images.contextlib.closing(images.ImageFile((tmp_path / "out/a.tif").read_bytes())) as file:
        one, two = file.picture(1), file.picture(2)
    assert (np.moveaxis(one.pixels, 0, 2) == pixels(0)).all()
    assert two.pixels.dtype == np.uint16
    assert (np.moveaxis(two.pixels, 0, 2) == deep).all()
    assert b"page 0" in one.metadata.exif
    assert b"page 1" in two.metadata.exif
    assert (one.metadata.icc, two.metadata.icc) == (b"profile 0", b"profile 1")


@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_without_metadata_follow_the_byte_order_of_the_first(order):
    about = images.Picture(pixels(0).transpose(2, 0, 1), page=Page(1, 2))
    first, strip = images.tiff_page(about, order)
    second = images.tiff_page(images.Picture(pixels(1).transpose(2, 0, 1), page=Page(2, 2)), first.order)
    file = images.ImageFile(aeimg.metadata.tiff_file([(first, strip), second]))
    assert (file.picture(2).pixels == pixels(1).transpose(2, 0, 1)).all()
    assert file.data[:2] == {"<": b"II", ">": b"MM"}[order]


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.avif"])
def test_an_animation_comes_back_with_its_frames_and_durations(tmp_path, half, name, alpha):
    options = {} if name == "a.avif" else {"loop": 3}
    options |= {"lossless": True, "exact": True} if name == "a.webp" else {}
    animation(tmp_path / name, alpha=alpha, **options)
    sources = frames(tmp_path / name)
    summary = aeimg.process(
        tmp_path / name, "denoise", out=tmp_path / "out", pages="all", strength=0, image_quality=100, **half
    )
    assert summary.failed == []
    back = frames(tmp_path / "out" / name)
    assert len(back) == len(sources) == 4
    assert durations(tmp_path / "out" / name) == durations(tmp_path / name) == [40, 80, 120, 160]
    for frame, source in zip(back, sources, strict=True):
        if name == "a.png":
            assert (frame == source).all()
        else:
            seen = source[..., 3:] > 200 if alpha else True
            assert np.abs((frame[..., :3].astype(int) - source[..., :3]) * seen).mean() < 3
            assert not alpha or (frame[..., 3] == source[..., 3]).all()
    if options:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.info["loop"] == 3


def test_a_gif_becomes_an_animated_png_of_the_same_frames(tmp_path, half):
    animation(tmp_path / "a.gif", loop=2)
    aeimg.process(tmp_path / "a.gif", "denoise", out=tmp_path / "out", pages="all", strength=0, **half)
    for frame, source in zip(frames(tmp_path / "out/a.png"), frames(tmp_path / "a.gif"), strict=True):
        assert (frame[..., :3] == source[..., :3]).all()
    assert durations(tmp_path / "out/a.png") == [40, 80, 120, 160]


def test_frames_of_several_modes_become_one_animation():
    grey, colour = images.Picture(pixels(0).transpose(2, 0, 1)[:1]), images.Picture(pixels(1).transpose(2, 0, 1))
    clear = images.Picture(colour.pixels, pixels(2)[..., 0])
    parts = [images.replace(one, page=Page(n, 3, 10_000)) for n, one in enumerate([grey, colour, clear], 1)]
    from aeimg.paged_files import encode_pages

    for suffix in (".png", ".webp", ".avif"):
        with Image.open(io.BytesIO(encode_pages(parts, suffix))) as image:
            assert (image.n_frames, image.mode) == (3, "RGBA"), suffix


@pytest.mark.parametrize(("name", "suffix"), [("a.tif", "png"), ("a.tif", "jpg"), ("a.gif", "bmp")])
def test_a_format_that_can_t_hold_them_is_an_error_by_name(tmp_path, half, name, suffix):
    (tiff if name == "a.tif" else animation)(tmp_path / name)
    summary = aeimg.process(tmp_path / name, "denoise", out=tmp_path / "out", pages="all", format=suffix, **half)
    assert "can't hold its" in summary.failed[0][1]
    assert list((tmp_path / "out").glob("a.*")) == []


def test_one_damaged_page_is_the_error_of_its_file_and_nothing_is_written(tmp_path, half):
    tiff(tmp_path / "a.tif", compression="tiff_deflate")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    place = multipage.places(None, bytes(data), "a")[1].at
    entry = next(at for at in range(place + 2, len(data), 12) if struct.unpack_from("<H", data, at) == (273,))
    (strip,) = struct.unpack_from("<I", data, entry + 8)
    data[strip : strip + 60] = bytes(60)
    (tmp_path / "a.tif").write_bytes(data)
    (tmp_path / "b.png").write_bytes(
        (lambda b: (Image.fromarray(pixels(0)).save(b, "PNG"), b.getvalue())[1])(io.BytesIO())
    )
    summary = aeimg.process(tmp_path, "denoise", out=tmp_path / "out", pages="all", **half)
    assert summary.done == 1
    assert summary.failed[0][1].startswith("page 2: ")
    assert not (tmp_path / "out/a.tif").exists()


def test_a_second_run_does_nothing_and_another_choice_does_all(tmp_path, half):
    tiff(tmp_path / "in.tif")

    def run(pages):
        summary = aeimg.process(tmp_path / "in.tif", "denoise", out=tmp_path / "out", pages=pages, **half)
        return summary.done, summary.skipped

    assert [run("all"), run("all"), run(2), run(2)] == [(1, 0), (0, 1), (1, 0), (0, 1)]


# -- compress and decompress -------------------------------------------------------------------------------------------


def test_each_page_is_a_latent_file_and_they_become_one_file_again(tmp_path):
    made = tiff(tmp_path / "a.tif")
    summary = aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "latents", pages="all")
    names = ["a-0001.aei", "a-0002.aei", "a-0003.aei"]
    assert [Path(record["output"]).name for record in summary.files] == names
    read = [container.read_page(tmp_path / "latents" / name) for name in names]
    assert [(page.number, page.count, page.duration) for page in read] == [(1, 3, None), (2, 3, None), (3, 3, None)]
    assert len({page.source for page in read}) == 1
    joined = aeimg.process(tmp_path / "latents", "decompress", out=tmp_path / "joined", join=True)
    assert (joined.done, joined.failed) == (1, [])
    back = frames(tmp_path / "joined/a.tif")
    assert [one.shape for one in back] == [one.shape for one in made]
    alone = aeimg.process(tmp_path / "latents", "decompress", out=tmp_path / "alone")
    assert alone.done == 3
    for number, one in enumerate(back, 1):
        assert (one == np.asarray(Image.open(tmp_path / f"alone/a-000{number}.png"))).all()
    again = aeimg.process(tmp_path / "latents", "decompress", out=tmp_path / "joined", join=True)
    assert (again.done, again.skipped) == (0, 1)


def test_an_animation_goes_through_latents(tmp_path):
    animation(tmp_path / "a.webp", loop=5)
    aeimg.process(tmp_path / "a.webp", "compress", out=tmp_path / "latents", pages="all", quality=90)
    for suffix in ("png", "webp"):
        aeimg.process(tmp_path / "latents", "decompress", out=tmp_path / suffix, join=True, format=suffix)
        with Image.open(tmp_path / suffix / f"a.{suffix}") as image:
            assert (image.n_frames, image.info["loop"]) == (4, 5)
        assert durations(tmp_path / suffix / f"a.{suffix}") == [40, 80, 120, 160]


def test_a_missing_page_is_an_error_that_names_it(tmp_path):
    tiff(tmp_path / "a.tif")
    aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "latents", pages="all")
    (tmp_path / "latents/a-0002.aei").unlink()
    summary = aeimg.process(tmp_path / "latents", "decompress", out=tmp_path / "joined", join=True)
    assert "of its 3 pages these are missing: 2" in summary.failed[0][1]


def test_a_page_that_is_stored_does_not_store_the_whole_file(tmp_path):
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green")]
    flat[0].save(tmp_path / "a.tif", save_all=True, append_images=flat[1:], compression="tiff_deflate")
    aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "latents", pages="all")
    latent = container.read((tmp_path / "latents/a-0002.aei").read_bytes())
    assert isinstance(latent, container.Stored)
    back = aeimg.process(tmp_path / "latents/a-0002.aei", "decompress", kind="numpy")
    assert (back == np.asarray(flat[1])).all()


def test_names_of_pages_meet_no_other_file_s_name(tmp_path):
    tiff(tmp_path / "a.tif", SIZES[:2])
    animation(tmp_path / "a-0001.gif", count=1)
    Image.fromarray(pixels(0)).save(tmp_path / "a-0001.png")
    summary = aeimg.process(tmp_path, "compress", out=tmp_path / "out", pages="all")
    names = sorted(Path(record["output"]).name for record in summary.files)
    assert summary.failed == []
    assert len(set(names)) == len(names) == 4
    assert {"a-0001.aei"} & set(names) or {"a-0001.png.aei", "a-0001.gif.aei"} <= set(names)


def test_pages_are_skipped_one_by_one(tmp_path):
    tiff(tmp_path / "a.tif")
    aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "out", pages="all")
    (tmp_path / "out/a-0002.aei").unlink()
    dry = aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "out", pages="all", dry_run=True, estimate=True)
    assert (dry.planned, dry.skipped) == (1, 2)
    summary = aeimg.process(tmp_path / "a.tif", "compress", out=tmp_path / "out", pages="all")
    assert (summary.done, summary.skipped) == (1, 2)


def test_frames_are_right_whatever_the_threads_do(tmp_path):
    made = animation(tmp_path / "a.png", count=40)
    aeimg.process(tmp_path / "a.png", "compress", out=tmp_path / "out", pages="all", model="vanilla", jobs=8)
    for number in range(1, 41):
        page = container.read_page(tmp_path / f"out/a-{number:04}.aei")
        assert (page.number, page.count) == (number, 40)
    file = aeimg.tasks.pictures.open_pages(tmp_path / "a.png")
    file.wanted = 40
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(file.read, range(1, 41)))
    for (picture, _, _), source in zip(read, made, strict=True):
        assert (np.moveaxis(picture.pixels, 0, 2) == source).all()
    assert file._open is None


def test_copies_of_a_file_are_joined_apart(tmp_path):
    made = tiff(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes())
    aeimg.process([tmp_path / "a.tif", tmp_path / "b.tif"], "compress", out=tmp_path / "out", pages="all")
    summary = aeimg.process(tmp_path / "out", "decompress", out=tmp_path / "back", join=True)
    assert (summary.done, summary.failed) == (2, [])
    assert [frame.shape for frame in frames(tmp_path / "back/b.tif")] == [one.shape for one in made]
    assert len(frames(tmp_path / "back/a.tif")) == 3
    latents = sorted((tmp_path / "out").glob("*.aei"))
    latents[3].rename(tmp_path / "out/c.aei")  # its name no longer says of which copy it is
    summary = aeimg.process(tmp_path / "out", "decompress", out=tmp_path / "again", join=True)
    assert len(summary.failed) == 2
    assert all("missing: " in why for _, why in summary.failed)


def test_the_command_line_takes_them(tmp_path):
    tiff(tmp_path / "a.tif", SIZES[:2])
    run = CliRunner().invoke
    done = run(main, ["compress", str(tmp_path / "a.tif"), str(tmp_path / "l"), "--pages", "all", "-q"])
    assert done.exit_code == 0, done.output
    done = run(main, ["decompress", str(tmp_path / "l"), str(tmp_path / "o"), "--join", "-q"])
    assert done.exit_code == 0, done.output
    assert len(frames(tmp_path / "o/a.tif")) == 2
    assert run(main, ["compress", "a", "b", "--pages", "0"]).exit_code == 2


# -- every task, and every kind of run ---------------------------------------------------------------------------------


class Doubled(torch.nn.Module):
    """Each pixel four times."""

    scale, halo, label = 2, 0, "doubled-1"

    def forward(self, x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Flat(torch.nn.Module):
    """No colour anywhere."""

    label, side, multiple = "flat-1", 16, 8

    def forward(self, luma):
        return torch.zeros(len(luma), 2, *luma.shape[2:])


@pytest.fixture
def models():
    aeimg.register("doubled", Doubled, task="upscale")
    aeimg.register("flat", Flat, task="colorize")
    yield
    aeimg.unregister("doubled")
    aeimg.unregister("flat")


@pytest.mark.usefixtures("models")
def test_upscale_takes_all_pages_or_one(tmp_path):
    made = tiff(tmp_path / "a.tif")
    words = ["upscale", str(tmp_path / "a.tif"), "--model", "doubled", "-q", "--pages"]
    assert CliRunner().invoke(main, [*words, "all", str(tmp_path / "all")]).exit_code == 0
    for frame, source in zip(frames(tmp_path / "all/a.tif"), made, strict=True):
        assert (frame == source.repeat(2, 0).repeat(2, 1)).all()
    assert CliRunner().invoke(main, [*words, "2", str(tmp_path / "one")]).exit_code == 0
    (frame,) = frames(tmp_path / "one/a.tif")
    assert (frame == made[1].repeat(2, 0).repeat(2, 1)).all()


@pytest.mark.usefixtures("models")
def test_colorize_takes_all_frames(tmp_path):
    animation(tmp_path / "a.png")
    summary = aeimg.process(tmp_path / "a.png", "colorize", out=tmp_path / "out", pages="all", model="flat")
    assert (summary.done, summary.files[0]["pages"]) == (1, 4)
    assert durations(tmp_path / "out/a.png") == [40, 80, 120, 160]


class Inverse(aeimg.ImageRunner):
    """Negatives."""

    def apply(self, x):
        return 1 - x


def test_a_task_of_a_plug_in_takes_all_pages(tmp_path):
    made = tiff(tmp_path / "a.tif")
    aeimg.register_task(aeimg.ImageTask("negate", "Negate.", aeimg.EncodingOptions, Inverse, needs_model=False))
    try:
        aeimg.process(tmp_path / "a.tif", "negate", out=tmp_path / "out", pages="all")
    finally:
        aeimg.unregister_task("negate")
    for frame, source in zip(frames(tmp_path / "out/a.tif"), made, strict=True):
        assert (frame == 255 - source).all()


@pytest.mark.parametrize("task", ["features", "score", "decompress"])
def test_tasks_that_write_no_images_know_no_pages(tmp_path, task):
    with pytest.raises(UsageError, match="is an option of"):
        aeimg.process(tmp_path, task, pages="all")


def test_pages_at_urls_are_taken_and_joined(tmp_path, half):
    store = fsspec.filesystem("memory")
    store.store.clear()
    made = tiff(tmp_path / "a.tif")
    animation(tmp_path / "b.png")
    for name in ("a.tif", "b.png"):
        store.pipe(f"/in/{name}", (tmp_path / name).read_bytes())
    summary = aeimg.process("memory://in", "denoise", out="memory://out", pages="all", strength=0, **half)
    assert (summary.done, summary.failed) == (2, [])
    assert [record["bytes_in"] for record in summary.files] == [store.size("/in/a.tif"), store.size("/in/b.png")]
    (tmp_path / "back.tif").write_bytes(store.cat("/out/a.tif"))
    for frame, source in zip(frames(tmp_path / "back.tif"), made, strict=True):
        assert (frame == source).all()
    summary = aeimg.process("memory://in", "compress", out="memory://latents", pages="all")
    assert (summary.done, summary.failed) == (7, [])
    for done, skipped in ((2, 0), (0, 2)):
        summary = aeimg.process("memory://latents", "decompress", out="memory://joined", join=True)
        assert (summary.done, summary.skipped, summary.failed) == (done, skipped, [])
    assert {name.rpartition("/")[2] for name in store.find("/joined") if "manifest" not in name} == {"a.tif", "b.png"}


@pytest.mark.parametrize("task", ["denoise", "compress", "decompress"])
def test_all_pages_of_a_file_are_for_one_shard(tmp_path, half, task):
    (tmp_path / "in").mkdir()
    for number in range(6):
        tiff(tmp_path / f"in/{number}.tif", SIZES[:2])
    source, options = tmp_path / "in", {"pages": "all"}
    options |= half if task == "denoise" else {}
    if task == "decompress":
        aeimg.process(source, "compress", out=tmp_path / "latents", pages="all")
        source, options = tmp_path / "latents", {"join": True}
    shares = [aeimg.process(source, task, out=tmp_path / "out", shard=f"{n}/2", **options) for n in (1, 2)]
    inputs = [{Path(record["input"]).name for record in summary.files} for summary in shares]
    assert all(inputs) and not inputs[0] & inputs[1]
    assert sum(summary.done for summary in shares) == (12 if task == "compress" else 6)
    assert [summary.elsewhere for summary in shares] == [summary.done for summary in reversed(shares)]
    assert not any(summary.failed for summary in shares)


def test_watch_takes_pages_and_refuses_join(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    tiff(tmp_path / "in/a.tif", SIZES[:2])
    monkeypatch.setattr(aeimg.engine, "LOOK_AGAIN", 0)
    looks = iter(range(3))
    real = aeimg.engine._FileRun._jobs_now

    def jobs_now(self, sources, out):
        if next(looks, None) is None:
            raise KeyboardInterrupt
        return real(self, sources, out)

    monkeypatch.setattr(aeimg.engine._FileRun, "_jobs_now", jobs_now)
    with pytest.raises(aeimg.engine.Interrupted) as error:
        aeimg.process(tmp_path / "in", "compress", out=tmp_path / "out", watch=True, pages="all")
    assert error.value.summary.done == 2
    with pytest.raises(UsageError, match="join needs all pages"):
        aeimg.process(tmp_path / "out", "decompress", out=tmp_path / "back", watch=True, join=True)


def test_a_report_shows_pages(tmp_path, half):
    (tmp_path / "in").mkdir()
    tiff(tmp_path / "in/a.tif", [(40, 24)] * 2)
    page, seen = tmp_path / "r.html", []
    for task, source, options in (
        ("denoise", "in", {"pages": "all", **half}),
        ("compress", "in", {"pages": "all"}),
        ("decompress", "compress", {"join": True}),
    ):
        aeimg.process(tmp_path / source, task, out=tmp_path / task, report=page, **options)
        text = page.read_text("utf-8")
        data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)[1])
        seen.append((len(data["rows"]), [set(gallery["crops"]) for gallery in data["galleries"]]))
    both = [{"before", "after"}]
    assert seen == [(1, both), (2, 2 * both), (1, [{"after"}])]


@pytest.mark.parametrize("task", ["denoise", "decompress"])
def test_progress_counts_the_pages_of_a_file_as_they_are_done(tmp_path, half, monkeypatch, task):
    made = tiff(tmp_path / "a.tif", [(40, 24)] * 8)
    source, options = tmp_path / "a.tif", {"pages": "all", **half}
    if task == "decompress":
        aeimg.process(source, "compress", out=tmp_path / "latents", pages="all")
        source, options = tmp_path / "latents", {"join": True}
    shares = []
    real = progress.Watched._tell

    def tell(self, *arguments):
        real(self, *arguments)
        shares.append(self.progress.meter.share)

    monkeypatch.setattr(progress.Watched, "_tell", tell)
    monkeypatch.setattr(progress.Progress, "shown", True)
    aeimg.process(source, task, out=tmp_path / "out", jobs=1, batch_size=1, **options)
    assert shares[-1] == pytest.approx(1)
    assert len([share for share in shares if 0.1 < share < 0.9]) > len(made)


# -- the section -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [Page(1, 2, source=bytes(8)), Page(300, 70_000, 2**32 - 1, 65_535, b"12345678")])
def test_the_section_comes_back(page, tmp_path):
    data = container.write(container.Stored(b"x", page=page))
    assert container.read(data).page == page
    (tmp_path / "a").write_bytes(data)
    assert container.read_page(tmp_path / "a") == page


@pytest.mark.parametrize("packed", [b"", b"1234567", b"12345678", bytes(8) + b"\0\1", bytes(8) + b"\3\2",
                                    bytes(8) + b"\1\2\0", bytes(8) + b"\1\xff\xff\xff\xff\x0f"])  # fmt: skip
def test_a_forged_section_is_an_error(packed):
    with pytest.raises(InvalidLatent):
        container._unpacked_page(packed, "x")
