"""More than one machine: `process()` on a Ray cluster, and what several shards of one run have done, as one.

Without a cluster, each machine runs `aeimg ... --shard I/N` with the same folders. `merge_reports` then reads what the
shards have left in the output folder.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import pages, paths
from .cluster import STALLED, Bytes, ClusterRun, Plan, package, pool
from .contract import ImageTask
from .devices import pick_device, pick_dtype
from .engine import Name, Summary, _suffixes, checked, make_task, over_files
from .errors import OutputError, UsageError
from .paths import is_folder, located
from .shards import read_records
from .tasks.options import RunOptions, TaskOptions


def process(
    source: Any,
    task: str | ImageTask,
    *,
    out: Name | None = None,
    workers: int | None = None,
    stall_timeout: float = STALLED,
    model: Name | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    dry_run: bool = False,
    estimate: bool = False,
    **options: Any,
) -> Any:
    """Does what `aeimg.process` does with files on a cluster, by Ray Data.

    The cluster is the one that the process is connected to, or that RAY_ADDRESS names, or one that is started on this
    machine and ended afterwards. Its machines need aeimg, and the files under the same names.

    Args:
        source: Files, folders, globs, `@list.txt`, URLs, or several of these; or, without `out`, a `ray.data.Dataset`
            with a column `bytes`, such as `ray.data.read_binary_files(paths, include_paths=True)` returns.
        task: "denoise", "upscale", "colorize", "compress", "decompress", or the task of a plug-in that is installed on
            all machines.
        out: The folder to write to, or its URL. None for a Dataset.
        workers: How many actors hold the model; None for one for each GPU, or for each CPU but one.
        stall_timeout: After how many seconds without any progress the run ends with a `ClusterError`.
        model: See `aeimg.process`.
        device: "auto" is what this process would take. "cuda" works on a driver without a GPU, too, with `dtype`.
        dtype: See `aeimg.process`.
        progress: See `aeimg.process`.
        dry_run: See `aeimg.process`. A dry run needs no cluster.
        estimate: See `aeimg.process`; it is done on this machine.
        options: The options of `aeimg.process`, without `watch`, `residual`, `join` and all pages of files. `jobs`
            (default 2) and `memory` are for each worker.

    Returns:
        A `Summary` with `out`. Otherwise a Dataset, to go on with, of what the source holds (`path` and `bytes`), with
        the results in the place of `bytes`; `record`, what a summary says of each result, as JSON; and `error`, which
        is empty where there is none. It is lazy, and does its work where it is read.

    Raises:
        UsageError: The call is wrong, or the package ray is missing.
        ModelError: A model is missing or broken, or not that of the driver.
        ClusterError: There is no cluster, it has failed, or it has not gone on for `stall_timeout` seconds.
    """
    name, own, run, files = checked(task, out, options, dry_run=dry_run, estimate=estimate)
    if files.watch:
        raise UsageError("watch is for one machine: leave out the engine ray")
    if getattr(own, "pages", None) == "all" or getattr(own, "join", False) or getattr(own, "residual", None):
        raise UsageError("all pages of a file, join and residual are for one machine: leave out the engine ray")
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, not {workers}")
    package()
    made, plan = _plan(name, model, device, dtype, own, run)
    if out is not None:
        file_run = ClusterRun(name, made, own, run, files)
        file_run.plan_of_workers, file_run.workers, file_run.patience = plan, workers, stall_timeout
        return over_files(source, out, file_run, progress=progress, dry_run=dry_run, estimate=estimate)
    if dry_run:
        raise UsageError("a dry run is for files: name their folder with out=")
    if not hasattr(source, "map_batches"):
        found = paths.find(source, _suffixes(name), files.selection)
        source = _read([os.fspath(one.path) for one in found])
    return _dataset(source, plan, workers)


def _plan(
    task: str, model: Name | None, device: str, dtype: str, own: TaskOptions, run: RunOptions
) -> tuple[Any, Plan]:
    """Returns the task of the driver, and what the workers have to know of it."""
    elsewhere = device.startswith("cuda") and not torch.cuda.is_available()
    if elsewhere and dtype == "auto":
        raise UsageError("dtype: there is no GPU here that could say what is fast on those of the workers; name one")
    place = pick_device("cpu" if elsewhere else device)
    precision = str(pick_dtype(dtype, place)).removeprefix("torch.")
    made = make_task(task, model, str(place), precision, own)
    name = None if model is None else os.fspath(model)
    if name is not None and os.path.isfile(name):
        name = os.path.abspath(name)
    return made, Plan(task, name, "cuda" if elsewhere else str(place), precision, own, run, made.recipe())


def _read(names: list[str]) -> Any:
    """Returns files as a Dataset of `path` and `bytes`."""
    return package().data.read_binary_files(names, include_paths=True)


def _dataset(source: Any, plan: Plan, workers: int | None) -> Any:
    """Returns the Dataset of what a task makes of another one."""
    ray = package()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.ERROR)
    count, need = pool(ray, workers, plan.device)
    return source.map_batches(
        Bytes,
        batch_size=plan.run.batch_size,
        compute=ray.data.ActorPoolStrategy(size=count),
        fn_constructor_args=[plan],
        # A picture at which an actor dies each time must end.
        ray_remote_args_fn=lambda: {"max_task_retries": 3},
        **need,
    )


@dataclass
class Merged:
    """What the shards of one run have done."""

    summary: Summary
    """The sum of theirs; `seconds` is the time of the slowest; `files` holds only what failed or has warnings."""
    task: str
    """The name of the task."""
    count: int
    """How many shards there are."""
    unfinished: list[tuple[int, str]] = field(default_factory=list)
    """Each shard that has not ended, and what is known of it."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """For a page: of all files that failed or have warnings, and of each shard's first `shards.RECORDED` others."""

    @property
    def exit_code(self) -> int:
        """0 where every shard has ended, no file failed and there were any; otherwise 1."""
        return int(bool(self.unfinished or self.summary.failed or self.summary.planned or not self._files))

    @property
    def _files(self) -> int:
        return self.summary.done + self.summary.skipped


def merge_reports(out: str | os.PathLike[str], *, report: Name | None = None) -> Merged:
    """Returns what the shards have done whose results lie in the folder `out`, or at its URL, and writes one page of it
    to the file `report` (.html): the table of a run's report, without pictures, which each shard's own report has.

    Where there are records of runs with different numbers of shards, those of the latest one count. Raises `UsageError`
    where there are none, `OutputError` where one can't be read or the page can't be written.
    """
    if report is not None:
        pages.check_page(Path(report))
    folder = located(out)
    records = read_records(folder) if is_folder(folder) else []
    if not records:
        raise UsageError(f"{folder}: holds no records of shards; `--shard I/N` leaves them in the output folder")
    count = max(records, key=lambda record: record["at"])["shard"][1]
    records = [record for record in records if record["shard"][1] == count]
    merged = Merged(Summary(), str(records[0].get("task")), count)
    known = {record["shard"][0]: record for record in records}
    for index in range(1, count + 1):
        record = known.get(index)
        if record is None:
            merged.unfinished.append((index, "has left no record: it has not begun"))
            continue
        if record["state"] != "ended":
            merged.unfinished.append((index, STATES.get(record["state"], record["state"])))
        try:
            _add(merged.summary, record.get("summary", {}))
            merged.records += [one for key in ("files", "others") for one in record.get("summary", {}).get(key, ())]
        except (TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{folder}: the record of shard {index} of {count} is damaged ({error})") from error
    if report is not None:
        about = {"task": merged.task, "seconds": merged.summary.seconds, "note": _note(merged)}
        pages.write_report(Path(report), merged.records, None, about)
    return merged


def _note(merged: Merged) -> str:
    """Returns what the page of several shards has to say beside its table."""
    summary, sentences = merged.summary, [f"This page is of {merged.count} shards."]
    sentences += [f"Shard {index} {what}." for index, what in merged.unfinished]
    files = summary.done + summary.skipped + summary.planned + len(summary.failed)
    if files > len(merged.records):
        sentences.append(
            f"The table and its figures are of {len(merged.records):,} of {files:,} files, all among them that failed "
            f"or have a warning. In all {summary.done:,} are done, {summary.skipped:,} were there already and "
            f"{len(summary.failed):,} failed."
        )
    return " ".join(sentences)


STATES = {
    "running": "is running, or was killed",
    "interrupted": "was interrupted",
    "failed": "has stopped with an error",
}
"""What to say of a shard that has not ended."""


def _add(total: Summary, one: dict[str, Any]) -> None:
    """Adds what one shard did."""
    for key in ("done", "skipped", "planned", "pixels", "bytes_in", "bytes_out", "missed"):
        setattr(total, key, getattr(total, key) + int(one.get(key, 0)))
    total.seconds = max(total.seconds, float(one.get("seconds", 0)))
    # Each shard has seen all files that are passed over.
    for kind, number in one.get("passed_over", {}).items():
        total.passed_over[kind] = max(total.passed_over.get(kind, 0), int(number))
    files = list(one.get("files", ()))
    for record in files:
        total.files.append(record)
    total.failed += [(located(record["input"]), record["error"]) for record in files if record["status"] == "failed"]
