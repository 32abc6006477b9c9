"""Many images of every kind: all good ones done, all bad ones named, and memory stays where it is said to."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aeimg import process, stream
from aeimg.engine import make_task
from aeimg.tasks.options import DecompressOptions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc"),
]

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "PPM", "GIF")
SUFFIXES = dict(zip(FORMATS, ("png", "jpg", "webp", "avif", "tiff", "bmp", "ppm", "gif"), strict=True))
COUNT, LARGE = 800, 4

CHILD = """
import json, sys
import torch
import aeimg


class Same:
    task, halo, label = "denoise", 0, "same-1"

    def __call__(self, x, sigma):
        return x * 0.5


def peak():
    # Not `ru_maxrss`, which a process inherits from the one that has started it.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


aeimg.register("same", Same)
"""


def broken(data: bytes, kind: int) -> bytes:
    """A file spoilt in one of four ways."""
    return (b"", data[: len(data) // 3], b"not an image at all", bytes(200) + data)[kind]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, set[str]]:
    """800 images of 16 to 4,000 pixels in eight formats, and the names of the twentieth of them that is broken."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (250, 250, 3), np.uint8)
    spoilt = set()
    for number in range(COUNT):
        kind = FORMATS[number % len(FORMATS)]
        large = number % (COUNT // LARGE) == 1
        height, width = (4000, 3000) if large else (int(side) for side in 16 + 140 * rng.random(2) ** 2)
        pixels = np.tile(noise, (-(-height // 250), -(-width // 250), 1))[:height, :width]
        buffer = io.BytesIO()
        options = {"speed": 10} if kind == "AVIF" else {"quality": 90} if kind == "JPEG" else {}
        Image.fromarray(pixels).save(buffer, "JPEG" if large else kind, **options)
        name = f"{number % 7}/{number}.{'jpg' if large else SUFFIXES[kind]}"
        data = buffer.getvalue()
        if number % 20 == 7:
            spoilt.add(name)
            data = broken(data, number // 20 % 4)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder, spoilt


def test_hundreds_of_mixed_images_are_done_but_for_the_broken_ones_in_bounded_memory(mixed, tmp_path):
    folder, spoilt = mixed
    code = CHILD + (
        "before = peak()\n"
        "summary = aeimg.process(sys.argv[1], 'denoise', out=sys.argv[2], model='same', sigma=5, memory='256M')\n"
        "print(json.dumps([summary.done, [str(path) for path, _ in summary.failed], peak() - before]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, tmp_path / "out"], capture_output=True, check=True)
    count, failed, grown = json.loads(done.stdout)
    assert count == COUNT - len(spoilt)
    assert {Path(name).relative_to(folder).as_posix() for name in failed} == spoilt
    # The bound, and one tile of a large picture on its way through the model.
    assert grown < 256 + 400
    written = [path for path in (tmp_path / "out").rglob("*.*") if not path.name.startswith(".")]
    assert len(written) == count


def test_six_thousand_small_images_take_no_more_memory_than_the_first_five_hundred():
    code = CHILD + (
        "import numpy as np\n"
        "pictures = (np.full((16 + n % 9, 16, 3), n % 256, np.uint8) for n in range(6_000))\n"
        "for number, _ in enumerate(aeimg.process(pictures, 'denoise', model='same', sigma=5)):\n"
        "    if number == 500:\n"
        "        early = peak()\n"
        "print(number, peak() - early)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    number, grown = done.stdout.split()
    assert int(number) == 5_999
    assert float(grown) < 3  # to keep the results takes 8


MEMORY_MB = 300


@pytest.fixture(scope="module")
def tiny_then_large(tmp_path_factory) -> Path:
    """A folder of eight tiny pictures, then eight large ones."""
    folder = tmp_path_factory.mktemp("order")
    noise = np.random.default_rng(0).integers(100, 156, (250, 250, 3), np.uint8)
    for first, height, width in ((0, 16, 16), (8, 3000, 4000)):
        data = io.BytesIO()
        Image.fromarray(np.tile(noise, (12, 16, 1))[:height, :width]).save(data, "JPEG", quality=90)
        for number in range(first, first + 8):
            (folder / f"{number:02}.jpg").write_bytes(data.getvalue())
    return folder


@pytest.mark.parametrize("task", ["denoise", "compress"])
def test_memory_is_bounded_where_large_pictures_follow_tiny_ones(tiny_then_large, tmp_path, task):
    options = {"denoise": {"model": "same", "sigma": 5, "format": "jpg"}, "compress": {"model": "vanilla"}}[task]
    code = CHILD + (
        "from pathlib import Path\n"
        "task, source, out, jobs, memory, options = json.loads(sys.argv[1])\n"
        "files = sorted(Path(source).glob('*.*'))\n"
        "aeimg.process(files[0], task, out=out + '/warm', **options)\n"
        "before = peak()\n"
        "aeimg.process(files[-1], task, out=out + '/one', jobs=1, **options)\n"
        "one = peak() - before\n"
        "Path('/proc/self/clear_refs').write_text('5')  # from here on, the peak is a new one\n"
        "summary = aeimg.process(source, task, out=out, jobs=jobs, memory=memory, **options)\n"
        "print(json.dumps([summary.done, summary.failed, peak() - before, one]))\n"
    )
    call = [task, str(tiny_then_large), str(tmp_path / "out"), 8, f"{MEMORY_MB}M", options]
    # With the memory that glibc keeps for each thread, as users have it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-c", code, json.dumps(call)]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    count, failed, grown, one = json.loads(done.stdout)
    print(f"{task}: +{grown:.0f} MB, one picture +{one:.0f} MB")
    assert (count, failed) == (16, [])
    # `one` is a picture, and what the model itself takes.
    assert grown < 1.25 * MEMORY_MB + one


def held_bytes(value: object) -> int:
    """How many bytes the arrays and tensors within `value` hold."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.nbytes
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(held_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(held_bytes, value))
    return held_bytes(vars(value)) if type(value).__module__.startswith("aeimg.") and hasattr(value, "__dict__") else 0


@pytest.mark.parametrize("model", ["vanilla", None])
def test_a_latent_holds_no_more_memory_than_is_reserved_for_it(photograph, model):
    """What a codec takes for a moment is much more, so that a whole run would not show it."""
    latent = process(np.tile(photograph, (3, 3, 1)), "compress", model=model, quality=90)
    task = make_task("decompress", None, "cpu", "fp32", DecompressOptions())
    item = task.prepare(latent)
    (raw,) = task.run([item])
    symbols = held_bytes(item.latent.symbols)
    assert symbols > 0
    # What is reserved also holds the copies that reading and writing make.
    assert raw.nbytes + symbols <= item.nbytes <= task.estimate(latent) <= 11 * raw.nbytes


def test_no_result_stays_in_memory_until_the_next_batch_has_run():
    """Large results of a task whose memory lets in one item at a time are gone when the next item is prepared."""
    results, kept = [], []

    class Item:
        nbytes, work = 100, 1

    class One:
        small = True

        def estimate(self, source):
            return 100

        def prepare(self, source):
            ends = time.monotonic() + 5  # a thread may let go of what it has finished a little later
            while any(ref() is not None for ref in results) and time.monotonic() < ends:
                time.sleep(0.01)
            kept.append(sum(ref() is not None for ref in results))
            return Item()

        def key(self, item):
            return 0

        def run(self, items):
            raws = [np.zeros(10) for _ in items]
            results.extend(map(weakref.ref, raws))
            return raws

        def finish(self, item, raw):
            return None

    assert len(list(stream.stream(range(4), One(), jobs=2, memory=1))) == 4
    assert kept == [0, 0, 0, 0]
