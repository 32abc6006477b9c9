"""`bench scale`: what a Ray cluster on this machine costs beside the plain engine, and what each of very many files
costs around its picture."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .. import distributed
from ..cluster import connected, package
from ..engine import Summary, process
from ..errors import DataError
from ..manifest import Manifest, State, digest, record_of
from ..paths import IMAGE_SUFFIXES, Found, Job, Selection, find, find_images, plan
from ..shards import Shard
from .setting import Figures

T = TypeVar("T")

LOOK = 0.25
"""How many seconds lie between two looks at the time that processes have taken."""
PER_FOLDER = 1000
"""How many files lie in one folder of a simulation."""


# -- a cluster beside one process ----------------------------------------------------------------------------


class _Spent:
    """The CPU time of this process and of all that it has started, by Linux's /proc, also of those that have ended."""

    def __init__(self) -> None:
        self.spent: dict[tuple[int, str], float] = {}
        self._tick = os.sysconf("SC_CLK_TCK")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def _look_on(self) -> None:
        while not self._ended.wait(LOOK):
            self._look()

    def _look(self) -> None:
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
                began, seconds = found[one]
                self.spent[one, began] = seconds

    def seconds(self) -> float:
        """Returns how much was spent so far."""
        self._look()
        return sum(self.spent.values())

    def close(self) -> None:
        """Ends the thread that looks."""
        self._ended.set()
        self._thread.join()


def bench_scale(
    data: Path, *, task: str = "denoise", limit: int | None = None, device: str = "auto", dtype: str = "auto"
) -> Figures:
    """Files per second, and CPU seconds per megapixel, of the plain engine and of Ray clusters of 1 and 2 workers here.

    `start` is what starting and ending the cluster takes, which `seconds` and `cpu` do not hold: they hold the run with
    the starting of the workers, each of which loads the model. `above` is the CPU time above that of the plain engine,
    as a share of it. Linux only. Raises `DataError`, `UsageError`.
    """
    paths = find_images(Path(data))[:limit]
    if not paths:
        raise DataError(f"{data}: no images to measure on")
    if not os.path.exists("/proc/self/stat"):
        raise DataError("bench scale reads CPU times in /proc, which is Linux's")
    package()
    words: dict[str, Any] = {"device": device, "dtype": dtype, "if_exists": "overwrite", "jobs": 2}
    spent = _Spent()
    rows: dict[str, Figures] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            process(paths[:1], task, out=folder, **words)  # type: ignore[call-overload]  # loading is not part of it
            rows["plain"] = _measured(spent, lambda: process(paths, task, out=folder, **words))  # type: ignore
            for workers in (1, 2):
                rows[f"ray, {workers}"] = _on_a_cluster(spent, workers, paths, task, folder, words)
    finally:
        spent.close()
    for row in rows.values():
        row["above"] = row["cpu_per_megapixel"] / rows["plain"]["cpu_per_megapixel"] - 1
    return {"task": "scale", "run": task, "rows": rows, "cores": len(os.sched_getaffinity(0))}


def _on_a_cluster(
    spent: _Spent, workers: int, paths: list[Path], task: str, folder: str, words: dict[str, Any]
) -> Figures:
    before, began = spent.seconds(), time.perf_counter()
    with connected(workers):
        started, cpu = time.perf_counter() - began, spent.seconds() - before
        row = _measured(spent, lambda: distributed.process(paths, task, out=folder, workers=workers, **words))
        before, began = spent.seconds(), time.perf_counter()
    ended = time.perf_counter() - began
    return {**row, "start": {"seconds": started + ended, "cpu": cpu + spent.seconds() - before}}


def _measured(spent: _Spent, run: Callable[[], Summary]) -> Figures:
    before = spent.seconds()
    summary = run()
    if summary.failed or not summary.pixels:
        raise DataError(f"{summary.failed[0][0] if summary.failed else 'data'}: not all images can be processed")
    cpu, megapixels = spent.seconds() - before, summary.pixels / 1e6
    return {
        "files": summary.done, "megapixels": megapixels, "seconds": summary.seconds, "cpu": cpu,
        "files_per_second": summary.done / summary.seconds, "cpu_per_megapixel": cpu / megapixels,
    }  # fmt: skip


# -- very many files -----------------------------------------------------------------------------------------


def simulate(count: int, folder: Path | None = None) -> Figures:
    """CPU seconds and bytes of memory that each of `count` files costs around its picture, on a disk.

    The files are empty, and lie in folders of 1,000, below a temporary folder in `folder`. Each step is timed by
    itself, then all are done once more, for the memory that each adds and holds to the end.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, out = Path(name, "in"), Path(name, "out")
        for number in range(count):
            if number % PER_FOLDER == 0:
                for top in (source, out):
                    (top / f"{number // PER_FOLDER:06}").mkdir(parents=True)
            place = f"{number // PER_FOLDER:06}/IMG_{number:09}"
            (source / f"{place}.jpg").touch()
            (out / f"{place}.jpg.aei").touch()
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
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip


def _steps(source: Path, out: Path, reading: Callable[[], float]) -> Iterator[tuple[str, float]]:
    """Yields each step of a run over files with what it adds to the `reading`. What it makes is held to the end."""
    last = reading()

    def since() -> float:
        nonlocal last
        now = reading()
        last, before = now, last
        return now - before

    found: list[Found] = find([str(source)], IMAGE_SUFFIXES, Selection())
    yield "find", since()
    shard = Shard(1, 1)
    found = [one for one in found if shard.takes(one.relative)]
    yield "shard", since()
    jobs: list[Job] = plan(found, out, lambda path: ".aei", "{name}{suffix}")
    del found
    yield "plan", since()
    manifest, recipe = Manifest(out), digest(b"recipe")
    if manifest.path.exists():  # type: ignore[union-attr]  # it is local
        manifest.path.unlink()  # type: ignore[union-attr]
        manifest = Manifest(out)
    status = os.stat(source)
    since()
    for job in jobs:
        manifest.add(job, record_of(recipe, status, b"", os.fsencode(job.target.name)[:0]))
    yield "add to the manifest", since()
    del manifest
    since()
    manifest = Manifest(out)
    yield "read the manifest", since()
    for job in jobs:
        assert manifest.state(job, recipe) is not State.MISSING
    yield "compare with the manifest", since()
    summary = Summary()
    for job in jobs:
        summary.files.append({"input": str(job.source), "output": str(job.target), "status": "skipped"})
    order = {str(job.target): number for number, job in enumerate(jobs)}
    summary.files.sort(key=lambda record: order[record["output"]])
    order.clear()
    yield "summary", since()


def table(figures: Figures) -> str:
    """The figures as text."""
    if "simulated" in figures:
        lines = [f"{figures['simulated']:,} files{'us a file':>23}{'bytes a file':>15}"]
        for step, value in figures["seconds"].items():
            lines.append(f"{step:<27}{1e6 * value:>10.1f}{figures['bytes'][step]:>15.0f}")
        return "\n".join([*lines, f"{'all':<27}{1e6 * figures['seconds_per_file']:>10.1f}{'':>15}",
                          f"{'at the peak':<37}{figures['bytes_per_file']:>15.0f}"])  # fmt: skip
    lines = [f"{figures['run']:<10}{'files/s':>9}{'CPU s/MP':>10}{'above':>8}{'start, s':>10}{'start, CPU s':>14}"]
    for name, row in figures["rows"].items():
        start = row.get("start", {"seconds": 0.0, "cpu": 0.0})
        lines.append(f"{name:<10}{row['files_per_second']:>9.2f}{row['cpu_per_megapixel']:>10.3f}"
                     f"{100 * row['above']:>7.0f}%{start['seconds']:>10.1f}{start['cpu']:>14.1f}")  # fmt: skip
    return "\n".join(lines)
