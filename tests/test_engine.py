"""`process` takes anything, gives back its kind, loses nothing and holds little."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import aeimg
from aeimg import (
    InputError,
    InvalidLatent,
    OutputError,
    UnreadableImage,
    UsageError,
    WrongWeights,
    container,
    manifest,
    process,
)
from aeimg.metrics import psnr
from aeimg.stream import stream


def kinds(small: np.ndarray, png, folder):
    path = folder / "a picture.png"
    path.write_bytes(png(small))
    x = torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255
    return {
        "path": path, "str": str(path), "bytes": png(small), "pil": Image.fromarray(small), "uint8": small,
        "uint16": small.astype(np.uint16) * 257, "float32": (small / 255).astype(np.float32), "float64": small / 255,
        "grey": small[:, :, 0], "rgba": np.dstack([small, small[:, :, 0]]), "tensor": x, "batch": torch.stack([x, x]),
        "half": x.half(),
    }  # fmt: skip


KINDS = [
    "path",
    "str",
    "bytes",
    "pil",
    "uint8",
    "uint16",
    "float32",
    "float64",
    "grey",
    "rgba",
    "tensor",
    "batch",
    "half",
]


@pytest.mark.parametrize("kind", KINDS)
def test_denoise_gives_back_the_kind_that_came_in(small, png, tmp_path, kind):
    source = kinds(small, png, tmp_path)[kind]
    result = process(source, "denoise", sigma=5)
    if kind in ("path", "str", "pil"):
        assert isinstance(result, Image.Image)
        assert result.size == (143, 101)
    elif kind == "bytes":
        assert Image.open(io.BytesIO(result)).format == "PNG"
    else:
        assert type(result) is type(source)
        assert result.shape == source.shape
        assert result.dtype == source.dtype
        if kind == "rgba":
            np.testing.assert_array_equal(result[:, :, 3], source[:, :, 3])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("uint16", "batch")])
def test_compress_gives_bytes_that_decompress_to_the_picture(small, png, tmp_path, kind):
    source = kinds(small, png, tmp_path)[kind]
    latent = process(source, "compress", quality=90)
    assert isinstance(container.read(latent), container.Coded)
    result = process(latent, "decompress", kind="numpy")
    expected = small[:, :, 0] if kind == "grey" else np.dstack([small, small[:, :, 0]]) if kind == "rgba" else small
    assert result.shape == expected.shape
    assert result.dtype == np.uint8
    assert psnr(result, expected) > 27
    if kind == "rgba":
        np.testing.assert_array_equal(result[:, :, 3], expected[:, :, 3])


def test_float_input_is_not_clipped():
    x = np.full((32, 32, 3), 1.2, np.float32)
    np.testing.assert_allclose(process(x, "denoise", sigma=0, strength=0.0), x)
    assert process(x, "denoise", sigma=1).mean() > 1.1


def test_decompress_gives_what_kind_names(small):
    latent = process(small, "compress")
    assert isinstance(process(latent, "decompress"), Image.Image)
    assert process(latent, "decompress", kind="tensor").shape == (3, 101, 143)
    assert Image.open(io.BytesIO(process(latent, "decompress", kind="bytes"))).size == (143, 101)


def test_sixteen_bits_are_kept_by_denoise(small):
    deep = small.astype(np.uint16) * 257
    assert len(np.unique(process(deep, "denoise", sigma=5))) > 256


def opened_in_memory(png, small, tmp_path):
    """The same picture as whatever stands for a file, and what denoising then gives back."""
    data = png(small)
    (tmp_path / "a.png").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/a.png", data)
    return [
        (io.BytesIO(data), Image.Image), (open(tmp_path / "a.png", "rb"), Image.Image),
        (zipfile.Path(tmp_path / "a.zip", "sub/a.png"), Image.Image), (memoryview(data), bytes),
        (bytearray(data), bytes), (os.scandir(tmp_path), Image.Image), (Path(tmp_path / "a.png"), Image.Image),
    ]  # fmt: skip


def test_whatever_stands_for_a_file_is_taken_for_one(small, png, tmp_path):
    expected = process(small, "denoise", sigma=5)
    for source, kind in opened_in_memory(png, small, tmp_path):
        if isinstance(source, type(os.scandir(tmp_path))):
            source = next(entry for entry in source if entry.name == "a.png")  # an os.PathLike of another library
        result = process(source, "denoise", sigma=5)
        assert isinstance(result, kind)
        pixels = np.asarray(Image.open(io.BytesIO(result)) if kind is bytes else result)
        np.testing.assert_array_equal(pixels, expected)
        if hasattr(source, "close"):
            source.close()


def test_latent_files_may_be_open_too(small, tmp_path):
    latent = process(small, "compress")
    expected = process(latent, "decompress", kind="numpy")
    for source in (io.BytesIO(latent), memoryview(latent)):
        np.testing.assert_array_equal(process(source, "decompress", kind="numpy"), expected)
    (out,) = process([io.BytesIO(latent)], "decompress", kind="numpy")
    np.testing.assert_array_equal(out, expected)


def test_a_file_that_is_open_is_never_a_list_of_lines(tmp_path, small, png):
    (tmp_path / "a.png").write_bytes(png(small))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.png\n")
    for task in ("denoise", "compress", "decompress", "features"):
        with open(tmp_path / "list.txt") as lines, pytest.raises(UsageError, match="list.txt: is open as text"):
            process(lines, task)
    for mode in ("r", "rb"):
        with open(tmp_path / "list.txt", mode) as lines, pytest.raises(UsageError, match="not a (TextIO|Buffered)"):
            process(lines, "denoise", out=tmp_path / "out")
    with pytest.raises(InputError, match="can't be read"):
        process(lines, "denoise")  # it is closed
    assert not (tmp_path / "out").exists()


def test_tensors_of_bytes_stay_tensors_of_bytes(small):
    x = torch.from_numpy(small.copy()).permute(2, 0, 1)
    result = process(x, "denoise", sigma=5)
    assert (result.dtype, result.shape) == (torch.uint8, x.shape)
    np.testing.assert_array_equal(result.permute(1, 2, 0), process(small, "denoise", sigma=5))
    assert process(torch.stack([x, x]), "denoise", sigma=5).dtype == torch.uint8
    assert container.read(process(x, "compress")) == container.read(process(small, "compress"))


def test_what_stands_for_several_pictures_but_is_no_iterable_of_them_is_refused_by_name(small, tmp_path):
    with pytest.raises(UsageError, match=r"one picture; this is \[2, 101, 143, 3\] uint8: give a batch as list"):
        process(np.stack([small, small]), "denoise")
    assert len(list(process(list(np.stack([small, small])), "denoise"))) == 2
    with pytest.raises(UsageError, match="a dict is not something"):
        process({"a.png": small}, "denoise")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.raises(UsageError, match="a ZipFile is not"):
        process(archive, "denoise")
    with pytest.raises(UsageError, match="not a dict"):
        process({"a.png": 1}, "denoise", out=tmp_path / "out")


def test_a_network_as_model_is_refused_with_words(small):
    with pytest.raises(UsageError, match=r"a Identity is no name of a model .*aeimg\.register"):
        process(small, "denoise", model=torch.nn.Identity())


def test_what_is_no_picture_is_refused(small):
    for wrong in (5, np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), bool), torch.zeros(2, 4, 4), np.zeros((0, 4))):
        with pytest.raises(UsageError):
            process(wrong, "denoise")
    with pytest.raises(UsageError, match="unknown task 'sharpen'"):
        process(small, "sharpen")
    with pytest.raises(UsageError, match="the option 'sigmaa' is unknown; denoise knows .*sigma"):
        process(small, "denoise", sigmaa=3)
    with pytest.raises(UsageError, match="'quality' is an option of compress and score, not of denoise"):
        process(small, "denoise", quality=3)
    with pytest.raises(UsageError, match="strength must lie in 0..1"):
        process(small, "denoise", strength="0.5")


@pytest.mark.parametrize(
    ("task", "option", "value"),
    [("denoise", "sigma", -1), ("denoise", "sigma", "loud"), ("denoise", "strength", 2), ("compress", "quality", 0),
     ("compress", "quality", 50.5), ("compress", "target_bpp", float("inf")), ("compress", "effort", 10),
     ("decompress", "kind", "gif"), ("decompress", "format", "gif"), ("denoise", "image_quality", {"gif": 3}),
     ("score", "percentile", 101), ("features", "jobs", 0), ("features", "batch_size", 0), ("score", "quality", 101),
     ("denoise", "on_error", "pray"), ("denoise", "if_exists", "pray"), ("denoise", "include", "*.png")],
)  # fmt: skip
def test_an_option_out_of_range_is_refused_by_name(small, task, option, value):
    with pytest.raises(UsageError, match=rf"^{option}\b.*(must|takes|does not write)"):
        process(small, task, **{option: value})


@pytest.mark.parametrize("task", ["denoise", "compress", "features", "score"])
def test_pictures_without_pixels_are_refused_and_batches_without_pictures_are_not(task):
    for nothing in (torch.zeros(3, 0, 5), Image.new("RGB", (0, 0))):
        with pytest.raises(InputError, match="has no pixels"):
            process(nothing, task)
    result = process(torch.zeros(0, 3, 8, 8), task)
    assert len(result) == 0
    assert isinstance(result, torch.Tensor) == (task == "denoise")


def test_an_iterable_streams_in_order_and_is_never_far_ahead(small):
    taken = 0

    def source():
        nonlocal taken
        for number in range(500):
            taken += 1
            yield np.full((16 + number % 3, 16, 3), number % 250, np.uint8)

    results = process(source(), "denoise", sigma=0, jobs=2, batch_size=4)
    for number, result in enumerate(itertools.islice(results, 50)):
        assert result.shape[0] == 16 + number % 3
        assert abs(int(result[0, 0, 0]) - number) <= 1
        assert taken - number <= 2 * 2 + 6 * 4 + 1
    before = threading.active_count()
    results.close()
    assert threading.active_count() < before
    assert taken < 90


def test_an_error_in_an_iterable_is_raised_in_its_place_or_given_back(small):
    sources = [small, b"not an image", small]
    results = process(iter(sources), "denoise", sigma=5)
    assert next(results).shape == small.shape
    with pytest.raises(UnreadableImage):
        next(results)
    first, error, last = process(iter(sources), "denoise", sigma=5, on_error="continue")
    assert isinstance(error, UnreadableImage)
    np.testing.assert_array_equal(first, last)


def test_memory_bounds_what_is_on_its_way():
    alive, most = 0, 0
    lock = threading.Lock()

    def prepare(number):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return SimpleNamespace(number=number, nbytes=100, work=1)

    def finish(item, result):
        nonlocal alive
        with lock:
            alive -= 1
        return result

    task = SimpleNamespace(
        estimate=lambda number: 100,
        prepare=prepare,
        key=lambda item: 0,
        run=lambda items: [i.number for i in items],
        finish=finish,
        small=False,
    )
    outcomes = list(stream(range(200), task, jobs=4, batch_size=8, memory=500))
    assert [outcome.value for outcome in outcomes] == list(range(200))
    assert most <= 5


@pytest.mark.parametrize("small_results", [False, True])
def test_results_that_wait_for_their_turn_count_as_memory_unless_they_are_small(small_results):
    first, started = threading.Event(), []

    def prepare(number):
        started.append(number)
        if number == 0:
            first.wait(10)
        return SimpleNamespace(number=number, nbytes=100, work=1)

    task = SimpleNamespace(
        estimate=lambda number: 100, prepare=prepare, key=lambda item: 0,
        run=lambda items: items, finish=lambda item, result: item.number, small=small_results,
    )  # fmt: skip
    ahead = []

    def look():
        ahead.append(len(started))
        first.set()

    timer = threading.Timer(1, look)
    timer.start()
    outcomes = [outcome.value for outcome in stream(range(100), task, jobs=2, batch_size=4, memory=500)]
    assert outcomes == list(range(100))
    assert ahead[0] == 2 * 2 + 6 * 4 if small_results else 2 <= ahead[0] <= 5


def test_a_failing_batch_costs_only_the_guilty_item():
    def run(items):
        if any(item.number == 7 for item in items):
            raise RuntimeError("seven")
        return [item.number for item in items]

    task = SimpleNamespace(
        estimate=lambda number: 1, prepare=lambda number: SimpleNamespace(number=number, nbytes=1, work=1),
        key=lambda item: 0, run=run, finish=lambda item, result: result,
        small=False,
    )  # fmt: skip
    outcomes = list(stream(range(20), task, jobs=2, batch_size=8))
    assert [outcome.source for outcome in outcomes if outcome.error] == [7]
    assert [outcome.value for outcome in outcomes if not outcome.error] == [n for n in range(20) if n != 7]


def test_a_model_that_gives_too_few_results_costs_its_items_and_not_the_run():
    task = SimpleNamespace(
        estimate=lambda number: 1, prepare=lambda number: SimpleNamespace(number=number, nbytes=1, work=1),
        key=lambda item: item.number % 2,
        run=lambda items: items[1:] if items[0].number % 2 else items, finish=lambda item, result: item.number,
        small=False,
    )  # fmt: skip
    outcomes = list(stream(range(8), task, jobs=2, batch_size=2))
    assert [outcome.value for outcome in outcomes if not outcome.error] == [0, 2, 4, 6]
    assert "0 results for 1 items" in str(outcomes[1].error)


def test_a_model_is_not_kept_waiting_for_pictures_that_fit_no_batch():
    """Pictures of many sizes never fill a batch; what is being prepared must not hold up those that are there."""
    ran, slow = threading.Event(), threading.Event()

    def prepare(number):
        if number == 12:  # is prepared only when something has run
            slow.set()
            assert ran.wait(20)
        return SimpleNamespace(number=number, nbytes=1, work=1)

    def run(items):
        if slow.is_set():
            ran.set()
        return [item.number for item in items]

    task = SimpleNamespace(
        estimate=lambda number: 1,
        prepare=prepare,
        key=lambda item: item.number,
        run=run,
        finish=lambda item, result: result,
        small=False,
    )
    outcomes = list(stream(range(30), task, jobs=4, batch_size=4))
    assert [outcome.value for outcome in outcomes] == list(range(30))


def test_items_are_prepared_and_finished_in_threads_while_the_model_runs():
    """The model waits for the next item to be prepared and the last one to be finished: neither may stand still."""
    prepared, finished = threading.Event(), threading.Event()

    def prepare(number):
        if number == 4:
            prepared.set()
        return SimpleNamespace(number=number, nbytes=1, work=1)

    def run(items):
        if items[0].number == 2:
            assert prepared.wait(10)
        if items[0].number == 3:
            assert finished.wait(10)
        return [item.number for item in items]

    def finish(item, result):
        if result == 2:
            finished.set()
        return result

    task = SimpleNamespace(
        estimate=lambda number: 1, prepare=prepare, key=lambda item: 0, run=run, finish=finish, small=False
    )
    outcomes = list(stream(range(8), task, jobs=2, batch_size=1))
    assert [outcome.value for outcome in outcomes] == list(range(8))


def test_the_size_of_an_item_counts_before_it_is_prepared():
    """Eight small ones, then large ones of which only two fit: never are three of them on their way."""
    alive, most = 0, 0
    lock = threading.Lock()

    def prepare(number):
        nonlocal alive, most
        with lock:
            alive += number >= 8
            most = max(most, alive)
        time.sleep(0.01)
        return SimpleNamespace(number=number, nbytes=1 if number < 8 else 100, work=1)

    def finish(item, result):
        nonlocal alive
        with lock:
            alive -= item.number >= 8
        return item.number

    task = SimpleNamespace(
        estimate=lambda number: 1 if number < 8 else 100, prepare=prepare, key=lambda item: 0, run=lambda items: items,
        finish=finish, small=True,
    )  # fmt: skip
    outcomes = list(stream(range(30), task, jobs=8, batch_size=4, memory=250))
    assert [outcome.value for outcome in outcomes] == list(range(30))
    assert most == 2


def test_what_can_not_be_estimated_is_prepared_and_a_task_must_estimate():
    def estimate(number):
        raise OSError(number)

    task = SimpleNamespace(
        estimate=estimate, prepare=lambda number: SimpleNamespace(number=number, nbytes=1, work=1),
        key=lambda item: 0, run=lambda items: items, finish=lambda item, result: item.number, small=True,
    )  # fmt: skip
    assert [outcome.value for outcome in stream(range(9), task, jobs=2, memory=1)] == list(range(9))
    del task.estimate
    with pytest.raises(AttributeError):
        list(stream(range(9), task))


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, small, png):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "a.png").write_bytes(png(small))
    (source / "a.jpg").write_bytes(png(small, "JPEG", quality=92))
    (source / "sub" / "grey.png").write_bytes(png(small[:, :, 0]))
    (source / "sub" / "broken.png").write_bytes(png(small)[:500])
    (source / "sub" / "text.png").write_bytes(b"this is no picture")
    return source


def snapshot(folder):
    """Every file below `folder` but the manifest."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != manifest.NAME)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("task", ["denoise", "compress"])
def test_a_folder_is_done_the_tree_kept_the_broken_named_and_no_input_touched(folder, tmp_path, task):
    before = snapshot(folder)
    summary = process(folder, task, out=tmp_path / "out")
    assert summary.done == 3
    assert sorted(path.name for path, _ in summary.failed) == ["broken.png", "text.png"]
    assert all(str(path) in reason for path, reason in summary.failed)
    expected = {"denoise": ["a.jpg", "a.png", "sub/grey.png"], "compress": ["a.jpg.aei", "a.png.aei", "sub/grey.aei"]}
    assert sorted(snapshot(tmp_path / "out")) == expected[task]
    assert snapshot(folder) == before
    assert summary.pixels == 3 * 101 * 143
    assert summary.bytes_out == sum(map(len, snapshot(tmp_path / "out").values()))


def test_latents_come_back_as_images_of_the_wanted_format(folder, tmp_path):
    process(folder, "compress", out=tmp_path / "latents")
    summary = process(tmp_path / "latents", "decompress", out=tmp_path / "png")
    assert (summary.done, summary.failed) == (3, [])
    assert sorted(snapshot(tmp_path / "png")) == ["a.jpg.png", "a.png.png", "sub/grey.png"]
    assert Image.open(tmp_path / "png/sub/grey.png").mode == "L"
    process(tmp_path / "latents", "decompress", out=tmp_path / "webp", format="webp")
    assert Image.open(tmp_path / "webp/a.png.webp").format == "WEBP"


def test_latents_come_back_in_the_format_that_was_compressed(folder, tmp_path, small):
    Image.fromarray(small).save(folder / "photo.JPG")
    Image.fromarray(small).save(folder / "misnamed.png", "JPEG")
    Image.fromarray(small).convert("P").save(folder / "moving.gif")
    process(folder, "compress", out=tmp_path / "latents")
    (tmp_path / "latents" / "bad.aei").write_bytes(b"no")
    summary = process(tmp_path / "latents", "decompress", out=tmp_path / "back", format="keep")
    assert (summary.done, len(summary.failed)) == (6, 1)
    names = ["a.jpg", "a.png", "misnamed.jpg", "moving.png", "photo.JPG", "sub/grey.png"]
    assert sorted(snapshot(tmp_path / "back")) == names
    for name in names:
        with Image.open(tmp_path / "back" / name) as image:
            assert image.format == {"p": "PNG", "j": "JPEG"}[name.lower()[-3]]
    assert process(tmp_path / "latents", "decompress", out=tmp_path / "back", format="keep").skipped == 6
    (tmp_path / "latents" / "a.aei").write_bytes((tmp_path / "latents" / "a.jpg.aei").read_bytes())
    process(tmp_path / "latents", "decompress", out=tmp_path / "new", format="keep", include=["a.*"])
    assert sorted(snapshot(tmp_path / "new")) == ["a.aei.jpg", "a.jpg.aei.jpg", "a.png"]


def test_done_files_are_skipped_redone_or_refused(folder, tmp_path):
    out = tmp_path / "out"
    process(folder, "compress", out=out)
    again = process(folder, "compress", out=out)
    assert (again.done, again.skipped, len(again.failed)) == (0, 3, 2)
    assert process(folder, "compress", out=out, if_exists="overwrite").done == 3
    with pytest.raises(OutputError, match="is there already"):
        process(folder, "compress", out=out, if_exists="error")


def test_on_error_stop_stops(tmp_path):
    """After the first failure nothing new is begun; what was under way is reported, too."""
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / "in" / f"{number:02}.png").write_bytes(b"broken")
    summary = process(tmp_path / "in", "denoise", out=tmp_path / "out", on_error="stop", jobs=1, batch_size=1)
    assert 1 <= len(summary.failed) <= 8  # the stream's window
    assert summary.planned == 60 - len(summary.failed)


def test_metadata_and_names_travel_through_a_latent_file(small, tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(small).save(path, quality=97, exif=exif, icc_profile=b"not really a profile" * 20)
    latent = container.read(process(path, "compress"))
    assert (latent.name, latent.format, latent.width, latent.height) == ("photo.jpg", "JPEG", 101, 143)
    back = process(process(path, "compress"), "decompress", kind="bytes", format="png")
    image = Image.open(io.BytesIO(back))
    assert image.size == (101, 143)
    assert image.getexif()[0x0110] == "a camera"
    assert image.getexif().get(0x0112, 1) == 1
    assert image.info["icc_profile"] == b"not really a profile" * 20


def test_where_the_network_would_lose_the_source_is_stored(tmp_path, png):
    flat = np.zeros((200, 300, 3), np.uint8)
    flat[50:100, 60:200] = [255, 0, 0]
    path = tmp_path / "flat.png"
    path.write_bytes(png(flat))
    for source in (path, flat):
        latent = process(source, "compress")
        assert isinstance(container.read(latent), container.Stored)
        assert len(latent) <= len(png(flat)) + 64
        np.testing.assert_array_equal(process(latent, "decompress", kind="numpy"), flat)


def test_a_latent_is_never_much_larger_than_its_source(small, png):
    rough = png(small, "JPEG", quality=3)
    latent = process(rough, "compress", quality=100)
    assert len(latent) <= len(rough) + 64


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (17, 3), (64, 64), (65, 127)])
def test_any_size_comes_back(photograph, height, width):
    x = np.ascontiguousarray(photograph[:height, :width])
    for source in (x, (x / 255).astype(np.float32)):
        result = process(process(source, "compress", quality=95), "decompress", kind="numpy")
        assert result.shape == x.shape
        assert process(source, "denoise").shape == x.shape


def test_latent_files_of_other_weights_are_refused_by_name(small):
    latent = container.read(process(small, "compress"))
    from dataclasses import replace

    with pytest.raises(WrongWeights, match="aeimg-codec-77.*not installed"):
        process(container.write(replace(latent, label="aeimg-codec-77")), "decompress")
    with pytest.raises(WrongWeights, match="name the right ones with --model"):
        process(container.write(replace(latent, digest=b"otherone")), "decompress")


def test_a_changed_payload_is_never_a_picture(small):
    from dataclasses import replace

    latent = container.read(process(small, "compress"))
    data = bytearray(latent.data)
    data[len(data) // 2] ^= 1
    with pytest.raises(InvalidLatent):
        process(container.write(replace(latent, data=bytes(data))), "decompress")
    with pytest.raises(InputError):
        process(b"nothing like it", "decompress")


def test_a_result_that_is_not_finite_is_an_error():
    class Broken(torch.nn.Module):
        def forward(self, x, sigma):
            return x / 0

    aeimg.register("broken", Broken, task="denoise")
    with pytest.raises(InputError, match="not finite"):
        process(np.zeros((8, 8, 3), np.uint8), "denoise", model="broken")
