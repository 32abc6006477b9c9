"""`bench` of image-to-image tasks, such as `bench upscale`: a task's `Evaluation` says how inputs are made of good
pictures, and by which figures results are compared with these."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ..engine import make_task, process
from ..errors import UsageError
from ..progress import Progress
from ..tasks import declared
from ..tasks.image import Evaluation, ImageRunner
from ..tasks.options import options_of
from .setting import Chosen, Figures, circumstances, images_in


def bench_images(
    task: str, data: Path, *, model: str | None = None, limit: int | None = None, device: str = "auto",
    dtype: str = "auto", progress: bool = False,
) -> Figures:  # fmt: skip
    """Figures of an image-to-image task on the images in `data`, beside what needs no network.

    `rows` maps the task and each baseline to the mean of each metric; `original` has what the metrics say of the good
    pictures themselves; `mps` is the speed in megapixels of results per second. Raises `UsageError` for a task that
    states no evaluation.
    """
    found = declared.find(task)
    runner = make_task(task, model, device, dtype, options_of(task)()) if found is not None else None
    if not isinstance(runner, ImageRunner) or runner.evaluation is None:
        raise UsageError(f"the task {task!r} states no evaluation")
    how: Evaluation = runner.evaluation
    by = how.reduction(runner)
    originals = [x[: x.shape[0] // by * by, : x.shape[1] // by * by] for _, x in images_in(data, limit)]
    inputs = [how.degrade(x, by) for x in originals]
    chosen = Chosen(model=model, device=device, dtype=dtype)
    with Progress(f"bench {task}", len(inputs), wanted=progress, speed=None) as shown:
        _run(task, inputs[:1], chosen)  # loading and warming up is not part of the speed
        began = time.perf_counter()
        results = _run(task, inputs, chosen, shown)
        seconds = time.perf_counter() - began
    pixels = sum(x.shape[0] * x.shape[1] for x in results)
    made = {task: results, **{name: [run(x, by) for x in inputs] for name, run in how.baselines.items()}}
    return {
        "task": task,
        "kind": "images",
        "images": len(originals),
        "reduction": by,
        "rows": {name: _means(how, originals, row) for name, row in made.items()},
        "original": {
            name: value for name, value in _means(how, originals, originals).items() if name in how.of_originals
        },
        "mps": pixels / 1e6 / seconds,
        **(circumstances(task, model, device, dtype) if runner.task.needs_model else {}),
    }


def _run(task: str, inputs: list[np.ndarray], chosen: Chosen, shown: Progress | None = None) -> list[np.ndarray]:
    found = declared.find(task)
    assert found is not None
    results = process(inputs, found, **chosen)
    if shown is not None:
        results = shown.each(results, lambda _: "")
    return [np.broadcast_to(np.atleast_3d(x), (*x.shape[:2], 3)) for x in results]


def _means(how: Evaluation, originals: list[np.ndarray], results: list[np.ndarray]) -> dict[str, float]:
    """The mean of each metric; infinite PSNR counts as 100 dB."""
    pairs = list(zip(originals, results, strict=True))
    return {
        name: float(np.mean([min(measure(a, b), 100.0) for a, b in pairs])) for name, measure in how.metrics.items()
    }


def table(figures: Figures) -> str:
    """The figures as text."""
    rows = figures["rows"]
    names = list(next(iter(rows.values())))
    lines = [
        f"{figures['images']} images; means"
        + (f"; reduced {figures['reduction']} times before" if figures["reduction"] > 1 else "")
    ]
    lines.append(f"{'':12}" + "".join(f"{name:>18}" for name in names))
    for name, row in [*rows.items(), *([("original", figures["original"])] if figures["original"] else [])]:
        lines.append(f"{name:12}" + "".join(f"{row[key]:18.3f}" if key in row else f"{'':18}" for key in names))
    lines.append(f"megapixels/s: {figures['mps']:.2f}")
    return "\n".join(lines)
