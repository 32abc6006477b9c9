"""`bench scale`: what a Ray cluster on this machine costs beside the plain engine, and what each of very many files
costs around its picture."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .. import distributed
from ..cluster import connected, loads, package
from ..engine import Summary, _FileRun, _ToFiles, _Written, process
from ..errors import DataError
from ..manifest import Manifest, digest, record_of
from ..paths import find_images
from ..progress import Progress
from ..stream import Outcome
from ..tasks.options import parse
from .setting import Figures

T = TypeVar("T")

LOOK = 1.0
"""How many seconds lie between two looks at the time that processes have taken."""
ROUNDS = 2
"""How often each engine is measured."""
PER_FOLDER = 1000
"""How many files lie in one folder of a simulation."""


# -- a cluster beside one process ----------------------------------------------------------------------------


class _Spent:
    """The CPU time of this process and of all that it has started, by Linux's /proc, also of those that have ended.

    What looking itself takes does not count.
    """

    def __init__(self) -> None:
        self.spent: dict[tuple[int, str], float] = {}
        self.looks = 0.0
        self._tick = os.sysconf("SC_CLK_TCK")
        self._ended, self._looking = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def _look_on(self) -> None:
        while not self._ended.wait(LOOK):
            with self._looking:
                self._look()

    def _look(self) -> None:
        began = time.thread_time()
        children: dict[int, list[int]] = {}
        found: dict[int, tuple[str, float]] = {}
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    # The name of the program, in brackets, may hold anything.
                    parts = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
                    children.setdefault(int(parts[1]), []).append(int(name))
                    found[int(name)] = parts[19], (int(parts[11]) + int(parts[12])) / self._tick
        waiting = [os.getpid()]
        while waiting:
            one = waiting.pop()
            waiting += children.get(one, [])
            if one in found:
                when, seconds = found[one]
                self.spent[one, when] = seconds
        self.looks += time.thread_time() - began

    def by_process(self) -> dict[int, float]:
        """Returns how much each process has spent so far."""
        with self._looking:
            self._look()
            return {process: seconds for (process, _), seconds in self.spent.items()}

    def seconds(self) -> float:
        """Returns how much was spent so far."""
        with self._looking:
            self._look()
            return sum(self.spent.values()) - self.looks

    def here(self) -> float:
        """Returns how much this process has spent so far."""
        with self._looking:
            return time.process_time() - self.looks

    def close(self) -> None:
        """Ends the thread that looks."""
        self._ended.set()
        self._thread.join()


def bench_scale(
    data: Path,
    *,
    task: str = "denoise",
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
) -> Figures:
    """Files per second, and CPU seconds per megapixel, of the plain engine and of Ray clusters of 1 and 2 workers here.

    `cpu` is the CPU time of all processes during the run, `above` how much more of it a megapixel takes than with the
    plain engine, as a share of that. Two costs, which do not grow with the pictures, are stated apart: `start`, what
    starting and ending the cluster takes, with one picture to begin with, and `loading`, the CPU time in which the
    workers import torch and load the model. `seconds` is the time of the run with `loading` and without `start`.

    The three take turns, `ROUNDS` times. The figures are those of the round with the least CPU time of each: what else
    runs on a machine makes caches cold, and only adds. `rounds` holds those of all.

    Linux only. Raises `DataError`, `UsageError`.
    """
    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    if not os.path.exists("/proc/self/stat"):
        raise DataError("bench scale reads CPU times in /proc, which is Linux's")
    package()
    words: dict[str, Any] = {"device": device, "dtype": dtype, "if_exists": "overwrite", "jobs": 2}
    rows: dict[str, list[Figures]] = {"plain": [], "ray, 1": [], "ray, 2": []}
    spent = _Spent()
    try:
        with tempfile.TemporaryDirectory() as folder:
            words["out"] = folder
            process(paths[:1], task, **words)  # type: ignore[call-overload]  # it loads the model
            began, before = time.perf_counter(), spent.seconds()
            with connected(2), Progress("scale", ROUNDS * 3, wanted=progress, item="runs", speed=None) as shown:
                distributed.process(paths[:1], task, workers=1, **words)  # Ray Data starts actors of its own for it
                start = {"seconds": time.perf_counter() - began, "cpu": spent.seconds() - before}
                for _, (name, found) in shown.each(
                    list(itertools.product(range(ROUNDS), rows.items())), lambda turn: turn[1][0]
                ):
                    workers = 0 if name == "plain" else int(name[-1])
                    found.append(_with_workers(spent, workers, paths, task, words) if workers else
                                 _measured(spent.here, lambda: process(paths, task, **words)))  # type: ignore  # fmt: skip
                began, before = time.perf_counter(), spent.seconds()
            start["seconds"] += time.perf_counter() - began
            start["cpu"] += spent.seconds() - before
    finally:
        spent.close()
    best = {name: min(found, key=lambda row: row["cpu_per_megapixel"]) for name, found in rows.items()}
    for name, row in best.items():
        row["rounds"] = [one["cpu_per_megapixel"] for one in rows[name]]
        row["above"] = row["cpu_per_megapixel"] / best["plain"]["cpu_per_megapixel"] - 1
    return {"task": "scale", "run": task, "rows": best, "start": start, "cores": len(os.sched_getaffinity(0))}


def _with_workers(spent: _Spent, workers: int, paths: list[Path], task: str, words: dict[str, Any]) -> Figures:
    loaded: dict[int, float] = {}
    token = loads.set(loaded)
    earlier = spent.by_process()  # Ray may have started the processes of workers already
    try:
        row = _measured(spent.seconds, lambda: distributed.process(paths, task, workers=workers, **words))
    finally:
        loads.reset(token)
    row["loading"] = sum(seconds - earlier.get(one, 0.0) for one, seconds in loaded.items())
    row["cpu"] -= row["loading"]
    row["cpu_per_megapixel"] = row["cpu"] / row["megapixels"]
    return row


def _measured(spent: Callable[[], float], run: Callable[[], Summary]) -> Figures:
    before = spent()
    summary = run()
    if summary.failed or not summary.pixels:
        raise DataError(f"{summary.failed[0][0] if summary.failed else 'data'}: not all images can be processed")
    cpu, megapixels = spent() - before, summary.pixels / 1e6
    return {
        "files": summary.done, "megapixels": megapixels, "seconds": summary.seconds, "cpu": cpu,
        "files_per_second": summary.done / summary.seconds, "cpu_per_megapixel": cpu / megapixels,
    }  # fmt: skip


# -- very many files -----------------------------------------------------------------------------------------


RECORD: dict[str, Any] = {
    "seconds": 6.4637, "width": 768, "height": 512, "model": "aeimg-denoise-blind-3", "why": "no white noise found",
    "untouched": False, "sigma": None, "strength": 1.0, "chroma_strength": 1.0, "noise_before": 5.52,
    "noise_after": 5.44, "shift": [0.059, -0.068, 0.044], "structure": 0.684,
}  # fmt: skip
"""What a run says of a picture that was denoised: of the tasks that ship, denoise says most."""


def simulate(count: int, folder: Path | None = None) -> Figures:
    """CPU seconds and bytes of memory that each of `count` files costs around its picture, on a disk.

    The files are empty, and lie in folders of 1,000, below a temporary folder in `folder`. Each step of a run that
    denoises them is timed by itself, except those that read and write pictures. Then all are done once more, for the
    memory that each adds and holds to the end.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, out = Path(name, "in"), Path(name, "out")
        for number in range(count):
            if number % PER_FOLDER == 0:
                for top in (source, out):
                    (top / f"{number // PER_FOLDER:06}").mkdir(parents=True)
            for top in (source, out):
                (top / f"{number // PER_FOLDER:06}" / f"IMG_{number:09}.jpg").touch()
        seconds = dict(_steps(source, out, time.process_time))
        tracemalloc.start()
        try:
            held = dict(_steps(source, out, lambda: tracemalloc.get_traced_memory()[0]))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return {
        "task": "scale", "simulated": count,
        "seconds": {step: value / count for step, value in seconds.items()},
        "bytes": {step: value / count for step, value in held.items()},
        "seconds_per_file": sum(seconds.values()) / count, "bytes_per_file": peak / count,
    }  # fmt: skip


class _Denoise:
    """Stands for the task: nothing runs."""

    def recipe(self) -> str:
        """Returns a recipe like any other."""
        return digest(b"recipe")


def _steps(source: Path, out: Path, reading: Callable[[], float]) -> Iterator[tuple[str, float]]:
    """Yields each step of a run over files with what it adds to the `reading`. What it makes is held to the end."""
    last = reading()

    def since() -> float:
        nonlocal last
        now = reading()
        last, before = now, last
        return now - before

    run, recipe = _FileRun("denoise", _Denoise(), *parse("denoise", {"shard": "1/1"})), _Denoise().recipe()
    jobs, _ = run._jobs([str(source)], out)
    yield "find and plan", since()
    manifest = Manifest(out)
    if manifest.path.exists():  # type: ignore[union-attr]  # it is local
        manifest.path.unlink()  # type: ignore[union-attr]
        manifest = Manifest(out)
    for job in jobs:
        manifest.add(job, record_of(recipe, os.stat(job.source), digest(os.fsencode(job.source.name)), b""))
    yield "add to the manifest", since()
    del manifest
    since()
    manifest = Manifest(out)
    yield "read the manifest", since()
    assert not run._left_to_do(jobs, _ToFiles(run.task, manifest, recipe), renew=False)
    yield "compare with the manifest", since()
    run.summary, left = Summary(), {id(job): job for job in jobs}
    for job in jobs:
        written = _Written(736501, 785884, dict(RECORD), "")
        run._account(Outcome(job, written, work=RECORD["width"] * RECORD["height"]), left)
    run._end(jobs, time.monotonic())
    assert run.summary.done == len(jobs)
    yield "summary", since()


def table(figures: Figures) -> str:
    """The figures as text."""
    if "simulated" in figures:
        lines = [f"{figures['simulated']:,} files{'us a file':>23}{'bytes a file':>15}"]
        for step, value in figures["seconds"].items():
            lines.append(f"{step:<27}{1e6 * value:>10.1f}{figures['bytes'][step]:>15.0f}")
        return "\n".join([*lines, f"{'all':<27}{1e6 * figures['seconds_per_file']:>10.1f}{'':>15}",
                          f"{'at the peak':<37}{figures['bytes_per_file']:>15.0f}"])  # fmt: skip
    lines = [f"{figures['run']:<10}{'files/s':>9}{'CPU s/MP':>10}{'above':>8}{'loading, CPU s':>16}"]
    for name, row in figures["rows"].items():
        lines.append(f"{name:<10}{row['files_per_second']:>9.2f}{row['cpu_per_megapixel']:>10.3f}"
                     f"{100 * row['above']:>7.0f}%{row.get('loading', 0.0):>16.1f}")  # fmt: skip
    start = figures["start"]
    return "\n".join([*lines, f"start and end of the cluster: {start['seconds']:.1f} s, {start['cpu']:.1f} CPU s"])
