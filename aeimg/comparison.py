"""`compare()`: a few pictures through a task at several settings, and a page on which one sees them side by side.

    settings and pictures ──stream, with the task of each setting──> records, an album ──> means by setting, a page

Nothing but the page is written.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import pages, paths
from .engine import Name, make_task, writes_files
from .errors import AeimgError, UsageError
from .images import WRITABLE
from .progress import Progress
from .stream import Enclosing, Task, stream
from .tasks.options import (
    CompressOptions,
    EncodingOptions,
    FileOptions,
    RunOptions,
    SelectionOptions,
    names_of,
    options_of,
    parse,
)
from .tasks.pictures import FileSource, Result, before_and_after

SAMPLE = 8
"""How many pictures are compared, where nothing else is said."""
WRITES = ("measure", "residual")
"""Options of tasks that change what is measured or written, and not the result."""


@dataclass
class Comparison:
    """What came of a comparison."""

    settings: list[str]
    """What each setting is called, in the order in which they were given."""
    pictures: int
    """How many pictures were compared,"""
    found: int
    """of how many that were found."""
    means: list[dict[str, Any]] = field(default_factory=list)
    """For each setting the means over the pictures that no setting failed for; see `pages.means_by_setting`."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """A record for each picture at each setting, with the fields of those in `engine.Summary.files` but `output`;
    instead, with `setting`, its place `number` in the order, and `picture`, by which the records belong together."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Each picture that failed at a setting, with the setting, and why."""
    seconds: float = 0.0
    """How long it took."""


def comparable(task: str) -> list[str]:
    """Returns the names of the options of a task that can be compared. Raises `UsageError`, `ModelError`."""
    if not writes_files(task) or task == "decompress":
        raise UsageError(f"{task} has no settings to compare; denoise, compress, upscale and colorize have")
    aside = (*names_of(EncodingOptions), *WRITES)
    return ["model", *(name for name in names_of(options_of(task)) if name not in aside)]


def compare(
    source: Name | Iterable[Name],
    task: str,
    settings: Mapping[str, Sequence[Any]],
    *,
    report: Name | None = None,
    sample: int = SAMPLE,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Runs a task over a few pictures once for each setting, keeps no result, and writes a page to compare them on.

    Args:
        source: A file, a folder, a glob, `@list.txt`, or several of these.
        task: "denoise", "compress", "upscale", "colorize", or an image-to-image task of a plug-in.
        settings: The name of an option -> the values to compare, as in `{"quality": [30, 50, 70]}`. "model" is one as
            well. Of several options, each value of one is combined with each value of the others.
        report: The page (.html). Without it, only the figures are returned.
        sample: How many pictures are taken, evenly spread over those that are found.
        progress: Whether a progress bar is shown on standard error, or a line now and then where that is no terminal.
        options: `model`, `device`, `dtype`, `report_size`, which files of a folder are taken, how the run goes, and the
            other options of the task: those of `process`.

    Raises:
        UsageError: The call is wrong.
        ModelError: A model is missing or broken.
        OutputError: The page can't be written.
    """
    began = time.monotonic()
    if not isinstance(sample, int) or sample < 1:
        raise UsageError(f"sample must be a whole number above 0, not {sample!r}")
    parsed = _parsed(task, settings, options, report)
    files, run = parsed[0].files, parsed[0].run
    if files.report is not None:
        pages.check_page(Path(files.report))
    found = [one.path for one in paths.find(_names(source), paths.IMAGE_SUFFIXES, files.selection)]
    chosen = [found[index] for index in np.linspace(0, len(found) - 1, min(sample, len(found))).round().astype(int)]
    runs = [_Run(one, make_task(task, *one.where, one.own)) for one in parsed]
    album = pages.Album(files.report_bytes, max(len(chosen), 1), variants=len(runs), maps=task == "compress")
    compared = Comparison([one.label for one in parsed], len(chosen), len(found))
    through = _Settings(runs, album if files.report is not None else None)
    sources = [(number, path) for number in range(len(runs)) for path in chosen]
    with Progress(f"{task}, compared", len(sources), wanted=progress, item="results") as shown:
        watched = shown.watched(through, sources, lambda one: paths.known_size(one[1]), run.jobs)
        limits: dict[str, Any] = {"jobs": run.jobs, "batch_size": run.batch_size, "memory": run.memory_bytes}
        for outcome in stream(sources, watched, **limits):
            number, path = outcome.source
            record = {**_place(runs[number], number, path), "status": "done"}
            if outcome.error is not None:
                reason = str(outcome.error) if isinstance(outcome.error, AeimgError) else repr(outcome.error)
                compared.failed.append((f"{path} at {runs[number].label}", reason.removeprefix(f"{path}: ")))
                record |= {"status": "failed", "error": reason}
            else:
                record |= outcome.result()
            compared.files.append(record)
            shown.step(failed=outcome.error is not None)
            if outcome.error is not None and run.on_error == "stop":
                break
    compared.means = pages.means_by_setting(compared.files)
    compared.seconds = time.monotonic() - began
    if files.report is not None:
        note = f"{len(chosen):,} of {len(found):,} pictures, evenly chosen" if len(chosen) < len(found) else ""
        about = {"task": task, "seconds": compared.seconds, "note": note}
        pages.write_report(Path(files.report), compared.files, album, about)
    return compared


def _place(run: _Run, number: int, path: paths.Place) -> dict[str, Any]:
    return {"input": str(path), "picture": str(path), "setting": run.label, "number": number}


def _names(source: Name | Iterable[Name]) -> list[str]:
    return [os.fsdecode(one) for one in ([source] if isinstance(source, str | os.PathLike) else source)]


# -- settings ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parsed:
    """A setting, of which no model is loaded yet."""

    label: str
    """What it is called."""
    where: tuple[Any, str, str]
    """Model, device and dtype."""
    own: Any
    """The options of the task."""
    run: RunOptions
    """Those of the run."""
    files: FileOptions
    """Those of files."""


@dataclass(frozen=True)
class _Run:
    """A setting, ready to run."""

    parsed: _Parsed
    """Its options."""
    task: Task[Any, Any, Any, Result[Any]]
    """The task, with its model and these options."""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.parsed.label


def _parsed(
    task: str, settings: Mapping[str, Sequence[Any]], options: Mapping[str, Any], report: Name | None
) -> list[_Parsed]:
    """Returns the settings in their order. Raises `UsageError`, `ModelError`."""
    known = comparable(task)
    for name, values in settings.items():
        if name not in known:
            raise UsageError(
                f"the option {name!r} of {task} can't be compared; these can: {', '.join(map(repr, known))}"
            )
        if isinstance(values, str) or not list(values):
            raise UsageError(f"{name}: give the values to compare as a list with at least one, not {values!r}")
        if any(getattr(value, "ndim", 0) for value in values):
            raise UsageError(f"{name}: numbers and texts can be compared, arrays can't")
        if name in options:
            raise UsageError(f"{name} is compared, so it can't be set as well")
    if not settings:
        raise UsageError(
            f"give an option to compare, as in quality=30,50,70; these can be: {', '.join(map(repr, known))}"
        )
    useless = set(names_of(FileOptions)) - set(names_of(SelectionOptions)) - {"report_size"}
    if kept := sorted((useless | {"out", "dry_run", "estimate", "residual"}) & set(options)):
        raise UsageError(f"a comparison keeps no results anyway: leave out {' and '.join(kept)}")
    choices = [[(name, value) for value in dict.fromkeys(values)] for name, values in settings.items()]
    return [_setting(task, dict(one), options, report) for one in itertools.product(*choices)]


def _setting(task: str, setting: Mapping[str, Any], options: Mapping[str, Any], report: Name | None) -> _Parsed:
    words = {**options, **setting, **({} if report is None else {"report": report})}
    where: dict[str, Any] = {"model": None, "device": "auto", "dtype": "auto"}
    where |= {name: words.pop(name) for name in where if name in words}
    own, run, files = parse(task, words)
    own = replace(own, measure=True) if isinstance(own, CompressOptions) else own
    label = ", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in setting.items())
    return _Parsed(label, (where["model"], where["device"], where["dtype"]), own, run, files)


def _shown(value: Any) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else os.fsdecode(value)
        if isinstance(value, os.PathLike)
        else str(value)
    )


# -- the stream ----------------------------------------------------------------------------------------------


@dataclass
class _Item(Enclosing):
    """A picture on its way at a setting."""

    number: int
    """Which setting."""
    path: paths.Place
    """The file of the picture."""
    item: Any
    """What the task has prepared."""
    seconds: float
    """How long the work on it has taken so far."""

    @property
    def label(self) -> str:
        """The name of the file, for people."""
        return self.path.name


class _Settings:
    """The tasks of all settings as one, whose sources are the number of a setting and a file. Results are records; the
    pictures go into the album."""

    small = True

    def __init__(self, runs: Sequence[_Run], album: pages.Album | None) -> None:
        self.runs, self.album = runs, album

    def _source(self, number: int, path: paths.Place) -> FileSource:
        own = self.runs[number].parsed.own
        if isinstance(own, CompressOptions):
            return FileSource(path, paths.LATENT_SUFFIX)
        return FileSource(path, own.suffix or (path.suffix if path.suffix.lower() in WRITABLE else ".png"))

    def estimate(self, source: tuple[int, paths.Place]) -> int:
        """Returns what the task estimates."""
        return self.runs[source[0]].task.estimate(self._source(*source))

    def prepare(self, source: tuple[int, paths.Place]) -> _Item:
        """Prepares as the task does."""
        began = time.monotonic()
        item = self.runs[source[0]].task.prepare(self._source(*source))
        return _Item(*source, item, time.monotonic() - began)

    def key(self, item: _Item) -> Hashable:
        """Returns the setting and the key of its task."""
        return item.number, self.runs[item.number].task.key(item.item)

    def run(self, items: list[_Item]) -> Sequence[Any]:
        """Runs a batch as the task does."""
        began = time.monotonic()
        results = self.runs[items[0].number].task.run([one.item for one in items])
        for one in items:
            one.seconds += (time.monotonic() - began) / len(items)
        return results

    def finish(self, item: _Item, raw: Any) -> dict[str, Any]:
        """Finishes as the task does, adds the picture to the album, and returns the figures."""
        began = time.monotonic()
        run = self.runs[item.number]
        result = run.task.finish(item.item, raw)
        seconds = round(item.seconds + time.monotonic() - began, 4)
        sizes = {"bytes_in": len(item.item.opened.data or b""), "bytes_out": len(result.value)}
        record = {**sizes, "seconds": seconds, **result.record()}
        if self.album is not None:
            shown = before_and_after(item.item, raw)
            self.album.add(str(item.path), *shown, rank=pages.rank(record), label=run.label)
        return record
