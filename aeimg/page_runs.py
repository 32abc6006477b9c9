"""Files of several pages in runs over files: which jobs they become, and the files that all their pages go into.

    compress --pages all     a file   ->  a job for each page, `name-0001.aei`, `name-0002.aei`, ...
    denoise --pages all      a file   ->  one job, whose result holds all pages: `JointJob`; the same of every
                             image-to-image task
    decompress --join        latents of the pages of one file  ->  one job

A page of compress is a job like any other: it is skipped, retried and reported alone. The pages of a `JointJob` are
jobs, too, and go through a stream of their own, one by one, into its file, which is written once all of them are done.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from . import container, paths
from .errors import AeimgError
from .images import WRITABLE, Picture
from .manifest import digest, stamp
from .multipage import Page, common
from .paged_files import encode_pages, left_out
from .paths import Job, Place
from .stream import Task, stream
from .tasks.options import (
    CompressOptions,
    DecompressOptions,
    EncodingOptions,
    FormatOptions,
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
class PartJob(Job):
    """A page whose result becomes a part of the file `target`."""

    file: PagedFile | None = field(default=None, kw_only=True, compare=False)
    """The file that has the page; None where `source` is a latent file that holds it."""
    number: int = field(kw_only=True)
    """Which page, from 1."""


@dataclass(frozen=True)
class JointJob(Job):
    """Pages whose results go into one file. `source` is the file that has them or, of latents, that of the first."""

    file: PagedFile | None = field(default=None, kw_only=True, compare=False)
    """The file; None where each page is in a latent file."""
    latents: tuple[tuple[Page, Place], ...] = field(default=(), kw_only=True)
    """The latent files, with their places among the pages of one file, by number."""

    @property
    def count(self) -> int:
        """How many pages there are."""
        return len(self.file.places) if self.file is not None else len(self.latents)

    def parts(self) -> list[PartJob]:
        """Returns a job for each page."""
        if self.file is None:
            return [PartJob(path, self.target, number=page.number) for page, path in self.latents]
        self.file.wanted = self.count
        pages = range(1, self.count + 1)
        return [PartJob(self.source, self.target, file=self.file, number=number) for number in pages]

    def recipe(self, recipe: str) -> str:
        """Returns `recipe` with what else must be equal for an equal result: the latent files, by size and time."""
        if not self.latents:
            return recipe
        stamps = [stamp(paths.status(path)) for _, path in self.latents]
        return digest(repr((recipe, [(size, mtime, version) for size, mtime, _, version in stamps])).encode())


def size_of(job: Job) -> int | None:
    """Returns how many bytes there are to be read for a job; None where nobody knows."""
    if isinstance(job, JointJob) and job.latents:
        sizes = [paths.known_size(path) for _, path in job.latents]
        return sum(size for size in sizes if size is not None) or None
    if isinstance(job, PageJob | PartJob) and job.file is not None:
        return job.file.size // len(job.file.places)
    return paths.known_size(job.source)


# -- planning ---------------------------------------------------------------------------------------------------------


def expand(jobs: list[Job], own: TaskOptions) -> list[Job]:
    """Returns the jobs of a run, those for files of several pages as its options ask for. Raises `UsageError`."""
    if isinstance(own, DecompressOptions):
        return _joined(jobs, own) if own.join else jobs
    if not isinstance(own, EncodingOptions | CompressOptions) or own.pages != "all":
        return jobs
    found: list[Job] = []
    taken = {paths._key(str(job.target)) for job in jobs}
    for job in jobs:
        file = open_pages(job.source)
        if file is None:
            found.append(job)
        elif isinstance(own, EncodingOptions):
            found.append(JointJob(job.source, job.target, file=file))
        else:
            found += _numbered(job, file, taken)
    paths.refuse_overwriting(found)
    return found


def _numbered(job: Job, file: PagedFile, taken: set[str]) -> list[PageJob]:
    """Returns a job for each page, with names that no other job has; as in `paths.plan`, the old suffix tells them from
    others."""
    suffix, number = job.target.suffix, 1
    stem = job.target.name.removesuffix(suffix)
    while True:
        names = [paths._fitted(f"{stem}-{page:04}{suffix}", suffix) for page in range(1, len(file.places) + 1)]
        targets = [job.target.with_name(name) for name in names]
        keys = {paths._key(str(target)) for target in targets}
        if not keys & taken:
            taken |= keys
            return [PageJob(job.source, target, file=file, number=page) for page, target in enumerate(targets, 1)]
        stem = job.source.name if number == 1 else f"{job.source.name}-{number}"
        number += 1


_Key: TypeAlias = tuple[Place, bytes, int, str]
"""What the pages of one file have in common: the folder of their results, `Page.source`, `Page.count` and, where copies
of that file lie beside it, the names of their latent files without the numbers."""


def _joined(jobs: list[Job], own: DecompressOptions) -> list[Job]:
    """Returns the jobs with one in the place of the first page of each file, and none in the place of the others."""
    stated = [(job, _page_in(job)) for job in jobs]
    times = Counter((job.target.parent, page.source, page.count, page.number) for job, page in stated if page)
    copied = {key[:3] for key, many in times.items() if many > 1}
    groups: dict[_Key, list[tuple[Page, Job]]] = {}
    found: list[Job | _Key] = []
    for job, page in stated:
        if page is None:
            found.append(job)
            continue
        file = (job.target.parent, page.source, page.count)
        key = (*file, job.source.stem.removesuffix(f"-{page.number:04}") if file in copied else "")
        if key not in groups:
            found.append(key)
        groups.setdefault(key, []).append((page, job))
    taken = {paths._key(str(job.target)) for job in found if isinstance(job, Job)}
    return [one if isinstance(one, Job) else _joint(groups[one], own, taken) for one in found]


def _page_in(job: Job) -> Page | None:
    """Returns what the latent file of a job states of its page; None where it states nothing or can't be read."""
    try:
        return container.read_page(job.source)
    except (AeimgError, OSError):
        return None  # reading it will report what is wrong


def _joint(members: list[tuple[Page, Job]], own: DecompressOptions, taken: set[str]) -> JointJob:
    members = sorted(members, key=lambda member: member[0].number)
    page, job = members[0]
    suffix = _suffix(page, job, own)
    name = job.target.name.removesuffix(job.target.suffix)
    name = name.removesuffix(f"-{page.number:04}") or name
    number = 1
    target = job.target.with_name(name + suffix)
    while (key := paths._key(str(target))) in taken:
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


def source_of(job: Job, source: Place | None = None) -> FileSource | PageSource:
    """Returns what a task takes for a job that is no `JointJob`. `source` is its source with a newer status."""
    if isinstance(job, PageJob):
        return PageSource(job.file, job.number, job.target.suffix)
    if isinstance(job, PartJob) and job.file is not None:
        return PageSource(job.file, job.number, None)
    return FileSource(source or job.source, None if isinstance(job, PartJob) else job.target.suffix)


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


def join(job: JointJob, task: Task[Job, Any, Any, Result[Any]], own: TaskOptions, run: RunOptions) -> Joined:
    """Runs the pages of a job through the task, whose results are a `Picture` for each `PartJob`, and puts them into
    one file. Raises an `AeimgError` for the first page that fails."""
    if job.latents:
        common([page for page, _ in job.latents])
    results: list[dict[str, Any]] = []
    sentences: list[str] = []
    first: list[Page] = []
    pixels = 0

    def pictures() -> Iterator[Picture]:
        nonlocal pixels
        options = {"jobs": run.jobs, "batch_size": run.batch_size, "memory": run.memory_bytes}
        with contextlib.closing(stream(job.parts(), task, **options)) as outcomes:  # type: ignore[arg-type]
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

    quality = own.quality_of(job.target.suffix) if isinstance(own, FormatOptions) else None
    data = encode_pages(pictures(), job.target.suffix, image_quality=quality)
    notes = dict.fromkeys(warning for record in results for warning in record.get("warnings", ()))
    notes |= dict.fromkeys(left_out(first[0], job.target.suffix))
    record = {**results[0], "pages": len(results), **({"warnings": list(notes)} if notes else {})}
    source = digest(paths.read_bytes(job.source))
    return Joined(data, source, pixels, record, f"{len(results)} pages, of which the first: {sentences[0]}")
