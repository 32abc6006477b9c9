"""Files of several pages in runs over files: which jobs they become, and the files that all their pages go into.

    compress --pages all     a file   ->  a job for each page, `name-0001.aei`, `name-0002.aei`, ...
    denoise --pages all      a file   ->  one job, whose result holds all pages: `JointJob`
    decompress --join        latents of the pages of one file  ->  one job

A page of compress is a job like any other: it is skipped, retried and reported alone. The pages of a `JointJob` go
through a stream of their own, one by one, into its file, which is written once all of them are done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import container, paths
from .errors import AeimgError, UsageError
from .images import WRITABLE, Picture
from .manifest import digest
from .paged_files import encode_pages, left_out
from .pages import Page, common
from .paths import Job
from .stream import Task, stream
from .tasks.options import (
    CompressOptions,
    DecompressOptions,
    DenoiseOptions,
    EncodingOptions,
    RunOptions,
    TaskOptions,
)
from .tasks.pictures import FileSource, PagedFile, PageSource, Result, open_pages


@dataclass(frozen=True)
class PageJob(Job):
    """A page of a file, whose result is a file of its own."""

    file: PagedFile = field(kw_only=True, compare=False)
    """The file."""
    number: int = field(kw_only=True)
    """Which page, from 1."""

    @property
    def count(self) -> int:
        """How many pages the file has."""
        return len(self.file.places)


@dataclass(frozen=True)
class JointJob(Job):
    """Pages whose results go into one file. `source` is the file that has them or, of latents, that of the first."""

    file: PagedFile | None = field(default=None, kw_only=True, compare=False)
    """The file; None where each page is in a latent file."""
    latents: tuple[tuple[Page, Path], ...] = field(default=(), kw_only=True)
    """The latent files, with their places among the pages of one file, by number."""

    @property
    def count(self) -> int:
        """How many pages there are."""
        return len(self.file.places) if self.file is not None else len(self.latents)

    def sources(self) -> list[PageSource | FileSource]:
        """Returns the pages, as tasks take them."""
        if self.file is None:
            return [FileSource(path, None) for _, path in self.latents]
        self.file.wanted = self.count
        return [PageSource(self.file, number, None) for number in range(1, self.count + 1)]

    def recipe(self, recipe: str) -> str:
        """Returns `recipe` with what else must be equal for an equal result: the latent files, by size and time."""
        if not self.latents:
            return recipe
        states = [os.stat(path) for _, path in self.latents]
        return digest(repr((recipe, [(state.st_size, state.st_mtime_ns) for state in states])).encode())


# -- planning ---------------------------------------------------------------------------------------------------------


def expand(jobs: list[Job], own: TaskOptions) -> list[Job]:
    """Returns the jobs of a run, those for files of several pages as its options ask for. Raises `UsageError`."""
    if isinstance(own, DecompressOptions):
        return _joined(jobs, own) if own.join else jobs
    if not isinstance(own, DenoiseOptions | CompressOptions) or own.pages != "all":
        return jobs
    found: list[Job] = []
    taken = {paths._key(job.target) for job in jobs}
    for job in jobs:
        file = open_pages(job.source)
        if file is None:
            found.append(job)
        elif isinstance(own, DenoiseOptions):
            found.append(JointJob(job.source, job.target, file=file))
        else:
            found += _numbered(job, file, taken)
    _refuse_inputs(found)
    return found


def _numbered(job: Job, file: PagedFile, taken: set[str]) -> list[PageJob]:
    """Returns a job for each page, with names that no other job has; as in `paths.plan`, the old suffix tells them from
    others."""
    suffix, number = job.target.suffix, 1
    stem = job.target.name.removesuffix(suffix)
    while True:
        names = [paths._fitted(f"{stem}-{page:04}{suffix}", suffix) for page in range(1, len(file.places) + 1)]
        targets = [job.target.with_name(name) for name in names]
        keys = {paths._key(target) for target in targets}
        if not keys & taken:
            taken |= keys
            return [PageJob(job.source, target, file=file, number=page) for page, target in enumerate(targets, 1)]
        stem = job.source.name if number == 1 else f"{job.source.name}-{number}"
        number += 1


def _refuse_inputs(jobs: list[Job]) -> None:
    inputs = {paths._key(os.path.realpath(job.source)) for job in jobs}
    for job in jobs:
        if isinstance(job, PageJob) and paths._key(os.path.realpath(job.target)) in inputs:
            raise UsageError(f"{job.target}: the output would overwrite an input; choose another output folder")


def _joined(jobs: list[Job], own: DecompressOptions) -> list[Job]:
    """Returns the jobs with one in the place of the first page of each file, and none in the place of the others."""
    groups: dict[tuple[Path, bytes, int], list[tuple[Page, Job]]] = {}
    found: list[Job | tuple[Path, bytes, int]] = []
    for job in jobs:
        try:
            page = container.read_page(job.source)
        except (AeimgError, OSError):
            page = None  # reading it will report what is wrong
        if page is None:
            found.append(job)
            continue
        key = (job.target.parent, page.source, page.count)
        if key not in groups:
            found.append(key)
        groups.setdefault(key, []).append((page, job))
    taken = {paths._key(job.target) for job in found if isinstance(job, Job)}
    return [one if isinstance(one, Job) else _joint(groups[one], own, taken) for one in found]


def _joint(members: list[tuple[Page, Job]], own: DecompressOptions, taken: set[str]) -> JointJob:
    members = sorted(members, key=lambda member: member[0].number)
    page, job = members[0]
    suffix = _suffix(page, job, own)
    name = job.target.name.removesuffix(job.target.suffix)
    name = name.removesuffix(f"-{page.number:04}") or name
    number = 1
    target = job.target.with_name(name + suffix)
    while (key := paths._key(target)) in taken:
        number += 1
        target = job.target.with_name(f"{name}-{number}{suffix}")
    taken.add(key)
    return JointJob(job.source, target, latents=tuple((page, job.source) for page, job in members))


def _suffix(page: Page, job: Job, own: DecompressOptions) -> str:
    """Returns the suffix of the file for all pages: that of TIFF, which alone holds pages that are no frames, unless
    the options name another."""
    suffix = job.target.suffix
    free = own.format in (None, "keep") and not page.animated
    return ".tif" if free and WRITABLE.get(suffix.lower()) != "TIFF" else suffix


# -- running ----------------------------------------------------------------------------------------------------------


def source_of(job: Job) -> FileSource | PageSource:
    """Returns what a task takes for a job that is no `JointJob`."""
    if isinstance(job, PageJob):
        return PageSource(job.file, job.number, job.target.suffix)
    return FileSource(job.source, job.target.suffix)


def want(jobs: Sequence[Job]) -> None:
    """Counts the pages that are still to be read of each file, which is in memory until the last of them."""
    for job in jobs:
        if isinstance(job, PageJob):
            job.file.wanted += 1


@dataclass
class Joined:
    """The file that holds the results of all pages of a `JointJob`."""

    data: bytes
    """Its content."""
    source: str
    """The digest of what was read."""
    pixels: int
    """How many pixels all pages hold."""
    record: dict[str, Any]
    """What the summary says: of the first page, and the warnings of all."""
    sentence: str
    """The same of the first page, in words."""


def join(job: JointJob, task: Task[Any, Any, Any, Result[Any]], own: TaskOptions, run: RunOptions) -> Joined:
    """Runs the pages of a job through the task, and puts the results into one file. Raises an `AeimgError` for the
    first page that fails."""
    if job.latents:
        common([page for page, _ in job.latents])
    results: list[dict[str, Any]] = []
    sentences: list[str] = []
    first: list[Page] = []
    pixels = 0

    def pictures() -> Iterator[Picture]:
        nonlocal pixels
        options = {"jobs": run.jobs, "batch_size": run.batch_size, "memory": run.memory_bytes}
        with contextlib.closing(stream(job.sources(), task, **options)) as outcomes:  # type: ignore[arg-type]
            for number, outcome in enumerate(outcomes, 1):
                if isinstance(outcome.error, AeimgError):
                    raise type(outcome.error)(f"page {number}: {outcome.error}") from outcome.error
                result = outcome.result()
                picture: Picture = result.value
                results.append(result.record())
                sentences.append(result.sentence())
                pixels += outcome.work
                if picture.page is not None and not first:
                    first.append(picture.page)
                yield replace(picture, name=job.source.name)

    quality = own.quality_of(job.target.suffix) if isinstance(own, EncodingOptions) else None
    data = encode_pages(pictures(), job.target.suffix, image_quality=quality)
    notes = dict.fromkeys(warning for record in results for warning in record.get("warnings", ()))
    notes |= dict.fromkeys(left_out(first[0], job.target.suffix))
    record = {**results[0], "pages": len(results), **({"warnings": list(notes)} if notes else {})}
    source = digest(job.source.read_bytes())
    return Joined(data, source, pixels, record, f"{len(results)} pages, of which the first: {sentences[0]}")
