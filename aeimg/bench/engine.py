"""`bench engine`: what a run over files loses around its model."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from .. import registry
from ..engine import make_task, process
from ..errors import DataError
from ..loaded import load
from ..paths import find_images
from ..progress import Progress
from ..stream import Task, stream
from ..tasks.options import OPTIONS
from ..tasks.pictures import FileSource, PictureItem, Result
from .setting import Figures

S = TypeVar("S")
M = TypeVar("M")
R = TypeVar("R")


@dataclass
class _Steps(Generic[S, M, R]):
    """Some steps of a task as a task of its own; see `stream.Task`."""

    prepare: Callable[[S], PictureItem]
    """Turns a source into an item."""
    key: Callable[[PictureItem], Hashable]
    """What items of one batch have in common."""
    run: Callable[[list[PictureItem]], Sequence[M]]
    """Turns a batch into raw results."""
    finish: Callable[[PictureItem, M], R]
    """Turns an item and its raw result into what is counted."""
    small: bool = True
    """Whether that is too small to count as memory."""

    def estimate(self, source: S) -> int:
        """Memory is no concern here."""
        return 0


def _timed(sources: Sequence[S], steps: _Steps[S, M, R], shown: Progress) -> tuple[float, list[R]]:
    """Seconds, and the values of what did not fail."""
    began = time.perf_counter()
    outcomes = list(shown.each(stream(sources, steps, memory=64 << 30), lambda _: ""))
    return time.perf_counter() - began, [outcome.result() for outcome in outcomes if outcome.error is None]


def _as_it_is(item: PictureItem) -> PictureItem:
    return item


def _as_they_are(items: list[PictureItem]) -> list[PictureItem]:
    return list(items)


def _raw(item: PictureItem, raw: M) -> M:
    return raw


def _whole_run(paths: Sequence[Path], task: str, device: str, dtype: str) -> float:
    """Seconds that a run over files takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if task == "denoise":
            process(paths, "denoise", out=folder, format="png", if_exists="overwrite", device=device, dtype=dtype)
        else:
            process(paths, "compress", out=folder, if_exists="overwrite", device=device, dtype=dtype)
        return time.perf_counter() - began


def bench_engine(
    data: Path, *, task: str = "denoise", limit: int | None = None, device: str = "auto", dtype: str = "auto",
    progress: bool = False,
) -> Figures:  # fmt: skip
    """How near a run over files comes to what its parts need: 1 is nothing lost.

    `busy`: the time that reading, model and writing take when each is done by itself, for all images in `data` and with
    the same threads, over that of a run that does them at once. `hidden`: how long a model slept that only sleeps, as
    long for all images as twice reading and writing take, over that of the run around it. That run takes the images as
    often as makes a hundred of them: a model has to wait for the first batch to be read and the last to be written,
    which is much of a short run and nothing of a long one. `overhead`: the seconds that a model to hold takes for a
    picture of 64x64 pixels above its bare network.
    """
    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    steps = 3 * len(paths) + len(paths) * _repeats(paths)
    with Progress("bench engine", steps, wanted=progress, item="images", speed=None) as shown:
        return _figures(paths, task, device, dtype, shown)


def _repeats(paths: Sequence[Path]) -> int:
    """How often the images are taken so that they are a hundred."""
    return -(-100 // len(paths))


def _figures(paths: Sequence[Path], task: str, device: str, dtype: str, shown: Progress) -> Figures:
    sources = [FileSource(path, ".png") for path in paths]
    whole: Task[FileSource, PictureItem, object, Result[bytes]] = make_task(task, None, device, dtype, OPTIONS[task]())
    whole.run([whole.prepare(sources[0])])  # loading and warming up is not part of the speed
    reading, items = _timed(sources, _Steps(whole.prepare, whole.key, _as_they_are, _raw), shown)
    running, made = _timed(items, _Steps(_as_it_is, whole.key, whole.run, _raw), shown)
    results = {item.picture.name: result for item, result in zip(items, made, strict=True)}

    def known(batch: list[PictureItem]) -> list[object]:
        return [results[item.picture.name] for item in batch]

    def size(item: PictureItem, raw: object) -> int:
        return len(whole.finish(item, raw).value)

    writing, _ = _timed(items, _Steps(_as_it_is, whole.key, known, size), shown)
    wall = _whole_run(paths, task, device, dtype)
    each = 2 * (reading + writing) / len(items)

    def sleep(batch: list[PictureItem]) -> list[object]:
        time.sleep(each * len(batch))
        return known(batch)

    often = sources * _repeats(paths)
    asleep, done = _timed(often, _Steps(whole.prepare, whole.key, sleep, size), shown)
    return {
        "task": "engine",
        "run": task,
        "images": len(items),
        "seconds": {"reading": reading, "model": running, "writing": writing, "all": wall},
        "busy": (reading + running + writing) / wall,
        "hidden": each * len(done) / asleep,
        "overhead": _overhead(device, dtype),
        "cores": os.cpu_count(),
    }


def _overhead(device: str, dtype: str) -> float:
    """Seconds of this thread that a held denoiser takes for an array of 64x64 above its bare network, sigma given: the
    least of many calls of each, taken in turns. On a GPU they hold no more than the time to start its work."""
    model = load("aeimg-denoise", task="denoise", device=device, dtype=dtype)
    network = registry.get("aeimg-denoise", "denoise", model.device)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    x = torch.rand(1, 3, 64, 64, device=model.device).contiguous(memory_format=torch.channels_last)
    sigma = torch.tensor([25.0], device=model.device)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(x.device.type, model.dtype, enabled=model.dtype != torch.float32):
            network(x, sigma)

    def held() -> None:
        model(picture, sigma=25)

    def seconds(call: Callable[[], None]) -> float:
        began = time.thread_time()
        call()
        return time.thread_time() - began

    times = [(seconds(bare), seconds(held)) for _ in range(40)][3:]
    return min(one for _, one in times) - min(one for one, _ in times)


def table(figures: Figures) -> str:
    """The figures as text."""
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in figures["seconds"].items())
    return "\n".join(
        [
            f"{figures['images']} images, {figures['run']}: {seconds}",
            f"parts one after the other over all at once: {figures['busy']:.2f}",
            f"a model that sleeps over the run around it: {figures['hidden']:.2f}",
            f"a held model above its bare network, 64x64: {1000 * figures['overhead']:.2f} ms",
        ]
    )
