"""`bench engine`: what a run over files loses around its model."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..engine import make_task, process
from ..errors import DataError
from ..paths import find_images
from ..stream import stream
from ..tasks.options import OPTIONS
from ..tasks.pictures import FileSource
from .setting import Figures


@dataclass(frozen=True)
class _Steps:
    """A task, of which single steps can be run over the stream."""

    whole: Any

    def only(self, **parts: Any) -> Any:
        """The task, with nothing left of its steps but those that are given; `prepare` stays unless it is given."""
        nothing = {"run": lambda items: list(items), "finish": lambda item, result: result}
        keep = {"prepare": self.whole.prepare, "estimate": self.whole.estimate, "key": self.whole.key, "small": True}
        return SimpleNamespace(**{**keep, **nothing, **parts})

    def finish(self, item: Any, result: Any) -> int:
        """The size of the file that is made."""
        return len(self.whole.finish(item, result).value)


def _timed(sources: Sequence[Any], task: Any) -> tuple[float, list[Any]]:
    """Seconds, and the values of what did not fail."""
    began = time.perf_counter()
    outcomes = list(stream(sources, task, memory=64 << 30))
    return time.perf_counter() - began, [outcome.value for outcome in outcomes if outcome.error is None]


def _as_it_is(item: Any) -> Any:
    return item


def _whole_run(paths: Sequence[Path], task: str, **options: Any) -> float:
    """Seconds that a run over files takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if task == "denoise":
            process(paths, "denoise", out=folder, format="png", if_exists="overwrite", **options)
        else:
            process(paths, "compress", out=folder, if_exists="overwrite", **options)
        return time.perf_counter() - began


def bench_engine(
    data: Path, *, task: str = "denoise", limit: int | None = None, device: str = "auto", dtype: str = "auto"
) -> Figures:
    """How near a run over files comes to what its parts need: 1 is nothing lost.

    `busy`: the time that reading, model and writing take when each is done by itself, for all images in `data` and with
    the same threads, over that of a run that does them at once. `hidden`: how long a model slept that only sleeps, as
    long for all images as twice reading and writing take, over that of the run around it. That run takes the images as
    often as makes a hundred of them: a model has to wait for the first batch to be read and the last to be written,
    which is much of a short run and nothing of a long one.
    """
    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    sources = [FileSource(path, ".png") for path in paths]
    whole: Any = make_task(task, None, device, dtype, OPTIONS[task]())
    steps = _Steps(whole)
    whole.run([whole.prepare(sources[0])])  # loading and warming up is not part of the speed
    reading, items = _timed(sources, steps.only())
    running, made = _timed(items, steps.only(prepare=_as_it_is, run=whole.run))
    results = {item.picture.name: result for item, result in zip(items, made, strict=True)}

    def known(batch: list[Any]) -> list[Any]:
        return [results[item.picture.name] for item in batch]

    writing, _ = _timed(items, steps.only(prepare=_as_it_is, run=known, finish=steps.finish))
    wall = _whole_run(paths, task, device=device, dtype=dtype)
    each = 2 * (reading + writing) / len(items)

    def sleep(batch: list[Any]) -> list[Any]:
        time.sleep(each * len(batch))
        return known(batch)

    often = sources * -(-100 // len(sources))
    asleep, done = _timed(often, steps.only(run=sleep, finish=steps.finish))
    return {
        "task": "engine",
        "verb": task,
        "images": len(items),
        "seconds": {"reading": reading, "model": running, "writing": writing, "all": wall},
        "busy": (reading + running + writing) / wall,
        "hidden": each * len(done) / asleep,
        "cores": os.cpu_count(),
    }


def table(figures: Figures) -> str:
    """The figures as text."""
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in figures["seconds"].items())
    return "\n".join(
        [
            f"{figures['images']} images, {figures['verb']}: {seconds}",
            f"parts one after the other over all at once: {figures['busy']:.2f}",
            f"a model that sleeps over the run around it: {figures['hidden']:.2f}",
        ]
    )
