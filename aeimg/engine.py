"""`process()`: folders, files and arrays through a model.

    sources ──find, plan──> jobs ──manifest──> what is left to do ──┐
    pictures, arrays, bytes ────────────────────────────────────────┴──stream, with a task──> results, or files

The tasks are those of `tasks`, the stream that of `stream`. Here is the door, and the work on files: which of them
still need a result, what became of each, and how far the run is.
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, Unpack, overload

import numpy as np
from PIL import Image
from torch import Tensor

from . import container, page_runs, pages, paths, shards
from .contract import ImageTask
from .devices import pick_device, pick_dtype
from .errors import AeimgError, InputError, OutputError, UsageError
from .images import WRITABLE, left_out, open_image
from .ledger import Results
from .loaded import TensorTask, process_one, value_of
from .manifest import Manifest, Record, State, digest, record_of, stamp
from .progress import Progress
from .stream import Enclosing, Outcome, Task, stream
from .tasks import declared
from .tasks.compress import Compress
from .tasks.decompress import Decompress
from .tasks.features import Features
from .tasks.options import (
    ColorizeWords,
    CompressOptions,
    CompressWords,
    DecompressWords,
    DenoiseOptions,
    DenoiseWords,
    FileOptions,
    FormatOptions,
    RunOptions,
    RunWords,
    ScoreWords,
    TaskOptions,
    UpscaleWords,
    parse,
)
from .tasks.pictures import Opened, Result, before_and_after, is_one, is_path, suffix_of
from .tasks.residuals import Residual, Residuals
from .tasks.score import Score, Strangeness
from .urls import Status

log = logging.getLogger("aeimg")

Array = np.ndarray
Name = str | os.PathLike[str]


@dataclass
class Summary:
    """What a run over files did; of a dry run, what it would do."""

    done: int = 0
    """How many results were written."""
    skipped: int = 0
    """How many outputs were there already."""
    failed: list[tuple[paths.Place, str]] = field(default_factory=list)
    """Each input that failed, and why."""
    planned: int = 0
    """How many inputs are still to be done: of a dry run, or of one that was interrupted or stopped at an error."""
    expected: dict[str, float] = field(default_factory=dict)
    """Of a dry run: `megapixels`; with `estimate` also `seconds` and `bytes_out`, extrapolated from a few inputs."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """How many files in the folders are none that aeimg takes, by suffix; and how many are links that are not followed,
    as `paths.LINK`. Hidden files, and what `include` and `exclude` pass over, are not counted."""
    pixels: int = 0
    """How many pixels the results hold."""
    bytes_in: int = 0
    """The size of the inputs that are done."""
    bytes_out: int = 0
    """The size of their results."""
    missed: int = 0
    """How many results miss the target that was asked for (bits per pixel, PSNR or SSIMULACRA2)."""
    elsewhere: int = 0
    """How many files other shards take."""
    seconds: float = 0.0
    """How long the run took."""
    files: Results = field(default_factory=Results)
    """A sequence of records, a dictionary for each file: `input`, `output`, `status` ("done", "skipped", "failed" or
    "planned"); then, as it applies, sizes, `seconds`, `model`, `quality`, `bpp`, `target_missed` (what the result has
    instead of the target), `psnr` (None where nothing was lost), `ssim` (None under 11 pixels), `ssimulacra2`,
    `warnings`, `error`. `list(files)` is what JSON takes."""


class Interrupted(KeyboardInterrupt):
    """A run over files was interrupted; `summary` holds what was done by then."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


# -- tasks ---------------------------------------------------------------------------------------------------

AnyTask = Task[Any, Any, Any, Result[Any]]

TASKS: dict[str, type[Any]] = {
    "compress": Compress,
    "decompress": Decompress,
    "features": Features,
    "score": Score,
}
"""Name -> class of each task that is not from picture to picture; those are in `tasks.declared`."""


def writes_files(task: str) -> bool:
    """Returns whether the results of a task can be files."""
    return task in ("compress", "decompress") or declared.find(task) is not None


def make_task(task: str, model: Name | None, device: str, dtype: str, options: TaskOptions) -> Any:
    """Returns the task of that name with its model loaded: aeimg's own, or a plug-in's. Raises `UsageError`,
    `ModelError`."""
    if model is not None and not is_path(model):
        raise UsageError(
            f"model: a {type(model).__name__} is no name of a model and no weights file; "
            "aeimg.register(name, lambda: model, task=...) gives it a name"
        )
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    if task in TASKS:
        return TASKS[task](model, place, precision, options)
    found = declared.find(task)
    if found is None:
        raise UsageError(f"unknown task {task!r}; use one of {', '.join([*TASKS, *declared.names()])}")
    return found.runner_class(found, model, place, precision, options)


# -- the door ------------------------------------------------------------------------------------------------

P = TypeVar("P", Image.Image, Array, Tensor, bytes)
Paths = Iterable[os.PathLike[str]] | list[str] | tuple[str, ...] | Iterator[str]
"""Several paths. A `str` is an iterable of strings as well, and is meant as one path."""
# An array or a tensor is an iterable of anything: the overloads of these overlap with those of iterables.
Sources = Iterable[Image.Image] | Iterable[Array] | Iterable[Tensor] | Iterable[bytes] | Paths


@overload
def process(
    source: Name | Iterable[Name], task: Literal["denoise"], *, out: Name, **options: Unpack[DenoiseWords]
) -> Summary: ...
@overload
def process(
    source: Name | Iterable[Name], task: Literal["compress"], *, out: Name, **options: Unpack[CompressWords]
) -> Summary: ...
@overload
def process(
    source: Name | Iterable[Name], task: Literal["decompress"], *, out: Name, **options: Unpack[DecompressWords]
) -> Summary: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["denoise"], **options: Unpack[DenoiseWords]
) -> Image.Image | Iterator[Image.Image]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: P, task: Literal["denoise"], **options: Unpack[DenoiseWords]
) -> P: ...
@overload
def process(source: Paths, task: Literal["denoise"], **options: Unpack[DenoiseWords]) -> Iterator[Image.Image]: ...
@overload
def process(source: Iterable[P], task: Literal["denoise"], **options: Unpack[DenoiseWords]) -> Iterator[P]: ...
@overload
def process(
    source: Name | Iterable[Name], task: Literal["upscale"], *, out: Name, **options: Unpack[UpscaleWords]
) -> Summary: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["upscale"], **options: Unpack[UpscaleWords]
) -> Image.Image | Iterator[Image.Image]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: P, task: Literal["upscale"], **options: Unpack[UpscaleWords]
) -> P: ...
@overload
def process(source: Paths, task: Literal["upscale"], **options: Unpack[UpscaleWords]) -> Iterator[Image.Image]: ...
@overload
def process(source: Iterable[P], task: Literal["upscale"], **options: Unpack[UpscaleWords]) -> Iterator[P]: ...
@overload
def process(
    source: Name | Iterable[Name], task: Literal["colorize"], *, out: Name, **options: Unpack[ColorizeWords]
) -> Summary: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["colorize"], **options: Unpack[ColorizeWords]
) -> Image.Image | Iterator[Image.Image]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: P, task: Literal["colorize"], **options: Unpack[ColorizeWords]
) -> P: ...
@overload
def process(source: Paths, task: Literal["colorize"], **options: Unpack[ColorizeWords]) -> Iterator[Image.Image]: ...
@overload
def process(source: Iterable[P], task: Literal["colorize"], **options: Unpack[ColorizeWords]) -> Iterator[P]: ...
@overload
def process(source: Any, task: ImageTask, *, out: Name | None = None, **options: Any) -> Any: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["compress"], **options: Unpack[CompressWords]
) -> bytes | Iterator[bytes]: ...
@overload
def process(source: Tensor, task: Literal["compress"], **options: Unpack[CompressWords]) -> bytes | list[bytes]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Image.Image | Array | bytes | memoryview, task: Literal["compress"], **options: Unpack[CompressWords]
) -> bytes: ...
@overload
def process(source: Sources, task: Literal["compress"], **options: Unpack[CompressWords]) -> Iterator[bytes]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["features"], **options: Unpack[RunWords]
) -> Array | Iterator[Array]: ...
@overload
def process(source: Tensor, task: Literal["features"], **options: Unpack[RunWords]) -> Array | list[Array]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Image.Image | Array | bytes | memoryview, task: Literal["features"], **options: Unpack[RunWords]
) -> Array: ...
@overload
def process(source: Sources, task: Literal["features"], **options: Unpack[RunWords]) -> Iterator[Array]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["score"], **options: Unpack[ScoreWords]
) -> Strangeness | Iterator[Strangeness]: ...
@overload
def process(
    source: Tensor, task: Literal["score"], **options: Unpack[ScoreWords]
) -> Strangeness | list[Strangeness]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Image.Image | Array | bytes | memoryview, task: Literal["score"], **options: Unpack[ScoreWords]
) -> Strangeness: ...
@overload
def process(source: Sources, task: Literal["score"], **options: Unpack[ScoreWords]) -> Iterator[Strangeness]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO,
    task: Literal["decompress"],
    *,
    kind: Literal["pil"] = "pil",
    **options: Unpack[DecompressWords],
) -> Image.Image | Iterator[Image.Image]: ...
@overload
def process(
    source: bytes | memoryview,
    task: Literal["decompress"],
    *,
    kind: Literal["pil"] = "pil",
    **options: Unpack[DecompressWords],
) -> Image.Image: ...
@overload
def process(
    source: Iterable[bytes] | Paths,
    task: Literal["decompress"],
    *,
    kind: Literal["pil"] = "pil",
    **options: Unpack[DecompressWords],
) -> Iterator[Image.Image]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["decompress"], *, kind: Literal["numpy"], **options: Unpack[DecompressWords]
) -> Array | Iterator[Array]: ...
@overload
def process(
    source: bytes | memoryview,
    task: Literal["decompress"],
    *,
    kind: Literal["numpy"],
    **options: Unpack[DecompressWords],
) -> Array: ...
@overload
def process(
    source: Iterable[bytes] | Paths,
    task: Literal["decompress"],
    *,
    kind: Literal["numpy"],
    **options: Unpack[DecompressWords],
) -> Iterator[Array]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["decompress"], *, kind: Literal["tensor"], **options: Unpack[DecompressWords]
) -> Tensor | Iterator[Tensor]: ...
@overload
def process(
    source: bytes | memoryview,
    task: Literal["decompress"],
    *,
    kind: Literal["tensor"],
    **options: Unpack[DecompressWords],
) -> Tensor: ...
@overload
def process(
    source: Iterable[bytes] | Paths,
    task: Literal["decompress"],
    *,
    kind: Literal["tensor"],
    **options: Unpack[DecompressWords],
) -> Iterator[Tensor]: ...
@overload
def process(  # type: ignore[overload-overlap]
    source: Name | BinaryIO, task: Literal["decompress"], *, kind: Literal["bytes"], **options: Unpack[DecompressWords]
) -> bytes | Iterator[bytes]: ...
@overload
def process(
    source: bytes | memoryview,
    task: Literal["decompress"],
    *,
    kind: Literal["bytes"],
    **options: Unpack[DecompressWords],
) -> bytes: ...
@overload
def process(
    source: Iterable[bytes] | Paths,
    task: Literal["decompress"],
    *,
    kind: Literal["bytes"],
    **options: Unpack[DecompressWords],
) -> Iterator[bytes]: ...
def process(
    source: Any,
    task: str | ImageTask,
    *,
    out: Name | None = None,
    model: Name | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    dry_run: bool = False,
    estimate: bool = False,
    **options: Any,
) -> Any:
    """Denoises, compresses or decompresses pictures, or returns what an encoder makes of them.

    Args:
        source: A file or folder, or the URL of one; a PIL image; a numpy array `[H,W]`, `[H,W,3]` or `[H,W,4]` of
            uint8, uint16 or float in [0,1]; a torch tensor `[C,H,W]` or `[N,C,H,W]`, uint8 or float in [0,1]; the bytes
            of an image or of a latent file (bytes, bytearray or memoryview); a file that is open for reading bytes, or
            anything else with `read_bytes`, such as a `zipfile.Path`; or any iterable of these. Floats are not clipped:
            noise may take them out of [0,1], but no further than `pixels.FARTHEST`, 8, for values beyond that can't be
            noise.
        task: "denoise", "upscale", "colorize", "compress" or "decompress"; "features" or "score" (of models for
            compress), which return a vector, float32 `[D]`, or a `Strangeness`, for each picture; or the task of a
            plug-in, by its name or as an `ImageTask`.
        out: A folder to write to, or its URL; then a `Summary` is returned, and `source` is a file, a folder, a glob,
            `@list.txt` (a file that lists them), or several of these. For one file, `out` may be the file to write.
        model: A registered name, the label of built-in weights, a weights file, or `spandrel:FILE` for a network of
            another project; None is the default for the task.
        device: "auto", "cpu", "cuda", "mps". A tensor that is on a GPU is processed there, also in an iterable, and
            image-to-image tasks never copy it to the CPU.
        dtype: "auto", "fp32", "bf16".
        progress: With `out`, show a progress bar on standard error, or a line now and then where that is no terminal.
        dry_run: With `out`, write nothing, and return in the summary what would be done.
        estimate: With `dry_run`, process five of the inputs as well, to estimate the time and the bytes.
        options:
            sigma: The level of the noise in 8-bit units, or "auto" to estimate it; or, for noise that differs over the
                picture, a map of it, an array or a tensor `[H,W]` of the size of the pictures (denoise).
            strength: 0 leaves the picture as it is, 1 removes all the noise (denoise); the saturation, 0..2 (colorize).
            chroma_strength: The strength for colours alone, Cb and Cr of BT.601; None for `strength` (denoise).
            residual: A folder that gets a PNG of what was taken away from each picture, stretched around grey (denoise,
                with `out`, on files of this machine, without `shard` and `watch`).
            scale: How many times as wide and as high results are: the model's scale, or a power of it (upscale).
            quality: 1..100 (compress; score, for codecs that can't reconstruct without rounding).
            target_bpp, max_bytes, target_psnr, target_ssimulacra2: Instead of a quality, for each picture the highest
                quality whose file is no larger, or the lowest that reaches the PSNR in dB or the SSIMULACRA2 score
                (needs the package ssimulacra2). A picture for which no quality does gets the nearest one and a
                warning, or, for `max_bytes`, an error (compress).
            effort: 1..9; from 2 on the encoder refines the latent, which takes longer and saves a few percent
                (compress).
            measure: Decode what was encoded, for PSNR, SSIM and, where its package is there, SSIMULACRA2 in the
                summary (compress, with `out`).
            pages: Of files of several pages or frames (TIFF, animations): "all", with `out`, "first", or the number of
                one; None refuses them. `compress` makes a latent file of each, `name-0001.aei` and so on; the others
                write all pages into one file again (image-to-image tasks, compress).
            join: With `out`, the latent files of all pages of a file become one file again: a TIFF, or an animation
                (decompress).
            percentile: Of the errors of the training images; a picture above it counts as strange (score).
            kind: What decompress returns: "pil", "numpy", "tensor" or "bytes".
            crop: (x, y, width, height) of the part that decompress returns, in pixels of the picture: what it holds of
                the whole picture, in time and memory that follow the part.
            scale: "1/2", "1/4" or "1/8", for a smaller copy, of means; with `crop`, of the part (decompress).
            format: The suffix of the files written, "keep" for that of the source (for a latent file, of what was
                compressed; PNG where aeimg does not write that); decompress writes png by default.
            image_quality: 1..100 for the JPEG, WebP and AVIF files written (default 95), or one for each format, as in
                {"jpg": 90, "avif": 70}.
            name: A template of the names of the files written, of {stem}, {name} (the stem with its old suffix),
                {suffix}.
            include, exclude: Patterns for the names, or for the paths below a folder, of files that are taken or
                passed over.
            follow_symlinks: Whether links in folders are followed.
            if_exists: "skip" (the default) keeps outputs that this model and these options would make again, and files
                that aeimg has not written; "overwrite" redoes all; "error" refuses where any output is there.
            on_error: "continue" or "stop". The default is to continue with `out`, and to stop with an iterable, where
                to continue means that the error stands in the place of the failed item.
            report: With `out`, write a page to look at into this file (.html): a table of what became of each file, and
                pictures before and after. What compress has written is measured for it.
            report_size: How many bytes the page has at most (default 20 MiB), as a number or like "20M".
            shard: With `out`, take only a share of the files, as in "3/16"; "auto" reads which from the environment of
                a Slurm array or an indexed job of Kubernetes. `aeimg.distributed.merge_reports` sums up.
            watch: With `out`, go on with files that appear and change, until KeyboardInterrupt, which `Interrupted` is.
            jobs: How many threads read and write.
            batch_size: How many pictures run at once, at most.
            memory: How many bytes the pictures on their way may hold (default 2 GiB), as a number or like "4G". One
                picture is always let in.

    Returns:
        One result for one source; a generator, in order, for an iterable or for a folder without `out`: it holds only a
        bounded number of images at a time. Image-to-image tasks return the kind that came in (a PIL image for a path or
        an open file), `compress` bytes, `decompress` what `kind` names.

    Raises:
        UsageError: The call is wrong.
        InputError: A picture or latent file can't be handled.
        ModelError: A model is missing or broken.
        OutputError: A result can't be written.
    """
    task, own, run, files = checked(task, out, options, dry_run=dry_run, estimate=estimate)
    if device == "auto" and isinstance(source, Tensor) and source.device.type != "cpu":
        device = str(source.device)
    made = make_task(task, model, device, dtype, own)
    if out is not None:
        file_run = _FileRun(task, made, own, run, files)
        return over_files(source, out, file_run, progress=progress, dry_run=dry_run, estimate=estimate)
    if dry_run:
        raise UsageError("a dry run is for files: name their folder with out=")
    if getattr(own, "pages", None) == "all" or getattr(own, "join", False):
        raise UsageError("all pages of a file, and join, are for files: name their folder with out=")
    if isinstance(own, DenoiseOptions) and own.residual is not None:
        raise UsageError("residual is for runs over files: name their folder with out=")
    return _from_memory(source, task, made, run, files)


def checked(
    task: str | ImageTask, out: Name | None, options: Mapping[str, Any], *, dry_run: bool, estimate: bool
) -> tuple[str, TaskOptions, RunOptions, FileOptions]:
    """Returns the name of the task and the options of a call of `process`. Raises `UsageError` where it is wrong."""
    task = task.name if isinstance(task, ImageTask) else task
    if task not in TASKS and declared.find(task) is None:
        raise UsageError(f"unknown task {task!r}; use one of {', '.join([*TASKS, *declared.names()])}")
    if out is not None and not writes_files(task):
        raise UsageError(f"{task} returns a result for each picture and writes no files: leave out `out`")
    if dry_run and options.get("watch"):
        raise UsageError("a dry run ends, and watch does not: leave out one of them")
    if estimate and not dry_run:
        raise UsageError("estimate is for dry runs: add dry_run=True, or --dry-run")
    own, run, files = parse(task, options)
    if files.report is not None:
        _check_report(files, out, dry_run=dry_run)
        own = replace(own, measure=True) if isinstance(own, CompressOptions) else own
    return task, own, run, files


def over_files(
    source: object, out: Name, file_run: _FileRun, *, progress: bool, dry_run: bool, estimate: bool
) -> Summary:
    """Returns what a run over files did or, of a dry run, would do."""
    if not os.fspath(out):
        raise UsageError("out: an empty name is no file or folder")
    names, place = _names(source), paths.located(out)
    paths.check_output(place)
    return file_run.plan(names, place, estimate=estimate) if dry_run else file_run.go(names, place, progress)


def _check_report(files: FileOptions, out: Name | None, *, dry_run: bool) -> None:
    """Raises `UsageError`, `OutputError` where no report can be written."""
    if out is None:
        raise UsageError("a report shows what a run over files has done: name the folder of the results with out=")
    if dry_run:
        raise UsageError("a report shows what a run has done, and a dry run does nothing: leave out dry_run or report")
    place = paths.located(out)
    pages.check_page(Path(files.report or ""), place if isinstance(place, Path) else None)


def _from_memory(source: object, task: str, made: AnyTask, run: RunOptions, files: FileOptions) -> object:
    """Returns what `process` does without `out`."""
    if is_path(source) and paths.is_folder(os.fsdecode(source)):
        source = [one.path for one in paths.find(source, _suffixes(task), files.selection)]
    if isinstance(source, Tensor) and source.dim() == 4 and not isinstance(made, TensorTask):
        return [value_of(outcome.result()) for outcome in _stream(source, made, run)]
    if is_one(source):
        return process_one(made, source, run.batch_size)
    if isinstance(source, Iterable) and not isinstance(source, Mapping):
        return _generate(source, made, run)
    raise UsageError(f"a {type(source).__name__} is not something that aeimg takes as a picture")


S = TypeVar("S")
R = TypeVar("R")


def _stream(
    sources: Iterable[S], task: Task[S, Any, Any, R], run: RunOptions, late: list[Outcome[S, R]] | None = None
) -> Generator[Outcome[S, R], None, None]:
    return stream(sources, task, jobs=run.jobs, batch_size=run.batch_size, memory=run.memory_bytes, late=late)


def _generate(sources: Iterable[object], task: AnyTask, run: RunOptions) -> Iterator[object]:
    for elsewhere, some in itertools.groupby(sources, lambda one: _is_elsewhere(one) and isinstance(task, TensorTask)):
        if elsewhere:
            yield from _generate_there(some, task, run)
            continue
        for outcome in _stream(some, task, run):
            if outcome.error is not None and run.on_error == "continue":
                yield outcome.error
            else:
                yield value_of(outcome.result())


def _is_elsewhere(source: object) -> bool:
    """Whether a source is a tensor on another device than the CPU."""
    return isinstance(source, Tensor) and source.device.type != "cpu"


def _generate_there(tensors: Iterable[object], task: AnyTask, run: RunOptions) -> Iterator[object]:
    """Yields the results of tensors, which stay on their device."""
    for one in tensors:
        try:
            made = process_one(task, one, run.batch_size)
        except Exception as error:  # as the stream has it
            if run.on_error != "continue":
                raise
            made = error
        yield made


# -- files ---------------------------------------------------------------------------------------------------


def _suffixes(task: str) -> Iterable[str]:
    return [paths.LATENT_SUFFIX] if task == "decompress" else paths.IMAGE_SUFFIXES


def _names(source: object) -> list[str]:
    several = isinstance(source, Iterable) and not isinstance(source, Mapping) and not is_one(source)
    names = []
    for one in source if several and isinstance(source, Iterable) else [source]:
        if not is_path(one):
            raise UsageError(
                "with out=, the source must be a file, a folder, a glob, or several of these, "
                f"not a {type(one).__name__}"
            )
        names.append(os.fsdecode(one))
    return names


@dataclass
class _FileItem(Enclosing):
    """A file on its way."""

    job: paths.Job
    """Where it comes from and where its result goes."""
    status: os.stat_result | Status
    """What the file system or the store says of the source."""
    item: Any
    """What the task has prepared."""
    opened: Opened
    """The picture."""
    seconds: float
    """How long the work on it has taken so far."""

    @property
    def label(self) -> str:
        """The name of the file, for people."""
        return self.job.source.name


@dataclass(frozen=True)
class _Written:
    """What became of one file that was written."""

    bytes_in: int
    """The size of the source."""
    bytes_out: int
    """The size of the result."""
    record: dict[str, Any]
    """What the summary says of it."""
    sentence: str
    """The same for people, in a few words."""


class _ToFiles:
    """A task whose sources are `paths.Job`s, and whose results are written where they say, unless it is a `dry` run.

    The manifest, if there is one, gets each record before the file gets its name.
    """

    small = True

    def __init__(
        self,
        task: AnyTask,
        manifest: Manifest | None,
        recipe: str,
        residuals: Residuals | None = None,
        *,
        dry: bool = False,
    ) -> None:
        self.task, self.manifest, self.recipe, self.residuals, self.dry = task, manifest, recipe, residuals, dry
        self.album: pages.Album | None = None

    def estimate(self, job: paths.Job) -> int:
        """Returns what the task estimates."""
        return self.task.estimate(page_runs.source_of(job))

    def prepare(self, job: paths.Job) -> _FileItem:
        """Reads the file and prepares it as the task does."""
        began = time.monotonic()
        try:
            source, status = paths.renewed(job.source)
        except OSError as error:
            raise InputError(f"{job.source}: can't be read ({error.strerror})") from error
        item = self.task.prepare(page_runs.source_of(job, source))
        return _FileItem(job, status, item, item.opened, time.monotonic() - began)

    def key(self, item: _FileItem) -> Hashable:
        """Returns the key of the task."""
        return self.task.key(item.item)

    def run(self, items: list[_FileItem]) -> Sequence[Any]:
        """Runs a batch of the task."""
        began = time.monotonic()
        results = self.task.run([item.item for item in items])
        for item in items:
            item.seconds += (time.monotonic() - began) / len(items)
        return results

    def finish(self, item: _FileItem, raw: Any) -> _Written | Result[Any]:
        """Finishes as the task does, and writes the file, unless it is one page of several that `join` will write."""
        began = time.monotonic()
        job, source = item.job, item.opened.data or b""
        result = self.task.finish(item.item, raw)
        if isinstance(job, page_runs.PartJob):
            if job.number == 1:
                self._show(item, raw, result.record())
            return result
        data: bytes = result.value
        record = {"seconds": 0.0, **result.record()}
        lost = () if data is item.opened.data else left_out(item.opened.picture, job.target.suffix)
        if not self.dry:
            made = record_of(self.recipe, item.status, item.opened.digest or digest(source), data)
            if self.residuals is not None:
                residual: Residual = getattr(result, "residual")  # noqa: B009  # which only denoise has
                written, notes = self.residuals.write(job, made, residual)
                record |= {"residual": str(written), "residual_gain": round(residual.gain, 3)}
                lost = (*lost, *notes)
            self._write(job, made, data)
        if lost:
            record["warnings"] = [*record.get("warnings", ()), *lost]
        record["seconds"] = round(item.seconds + time.monotonic() - began, 4)
        if page := item.opened.picture.page:
            record |= {"page": page.number, "pages": page.count}
        self._show(item, raw, record)
        share = job.count if isinstance(job, page_runs.PageJob) else 1
        return _Written(len(source) // share, len(data), record, result.sentence())

    def join(
        self, job: page_runs.JointJob, task: Task[Any, Any, Any, Any], own: TaskOptions, run: RunOptions
    ) -> Outcome[paths.Job, _Written]:
        """Runs all pages of a job through `task`, which is this one, and writes the file that holds them."""
        began = time.monotonic()
        try:
            source, status = paths.renewed(job.source)
            joined = page_runs.join(replace(job, source=source), task, own, run)
            if not self.dry:
                self._write(job, record_of(job.recipe(self.recipe), status, joined.source, joined.data), joined.data)
        except Exception as error:  # as in `stream`, whatever goes wrong with one job is that job's outcome
            return Outcome(job, error=error)
        record = {"seconds": round(time.monotonic() - began, 4), **joined.record}
        size = page_runs.size_of(job) or 0
        return Outcome(job, _Written(size, len(joined.data), record, joined.sentence), work=joined.pixels)

    def _show(self, item: _FileItem, raw: Any, record: dict[str, Any]) -> None:
        """Puts a picture into the album of the report, if there is one."""
        if self.album is not None:
            self.album.add(str(item.job.target), *before_and_after(item.item, raw), rank=pages.rank(record))

    def _write(self, job: paths.Job, record: Record, data: bytes) -> None:
        """Writes a result, of which the manifest knows before it is there."""
        if self.manifest is not None:
            self.manifest.add(job, record)
        paths.write_atomic(job.target, data)


class _FileRun:
    """One run over files."""

    def __init__(self, name: str, task: Any, own: TaskOptions, run: RunOptions, files: FileOptions) -> None:
        self.name, self.task, self.own, self.run, self.files = name, task, own, run, files
        self.shard = None if files.shard is None else shards.parse(files.shard)
        self.summary = Summary()

    def go(self, sources: list[str], out: paths.Place, progress: bool) -> Summary:
        """Does what is left to do."""
        began = time.monotonic()
        jobs, todo, to_files = self._begin(sources, out, dry=False)
        if self.files.report is not None:
            to_files.album = pages.Album(self.files.report_bytes, len(jobs), maps=self.name == "compress")
        state = "failed"
        self._leave_record(out, "running")
        try:
            if self.files.watch:
                self._watch(sources, out, to_files, progress)
            else:
                self._write(todo, to_files, progress)
            state = "ended"
        except Interrupted:
            state = "interrupted"
            raise
        finally:
            self._end(jobs, began)
            self._leave_record(out, state)
            self._report(to_files.album)
        return self.summary

    def _report(self, album: pages.Album | None) -> None:
        """Writes the page that `report` asks for."""
        if self.files.report is not None:
            about = {"task": self.name, "seconds": self.summary.seconds}
            pages.write_report(Path(self.files.report), self.summary.files, album, about)

    def _leave_record(self, out: paths.Place, state: str) -> None:
        """Writes what is to be known of a shard, for `distributed.merge_reports`."""
        if self.shard is None:
            return
        counts = {one.name: getattr(self.summary, one.name) for one in fields(Summary) if one.name != "failed"}
        bad, others = shards.recorded(self.summary.files)
        counts |= {"files": bad, "others": others}
        shards.write_record(out, self.shard, {"task": self.name, "state": state, "at": time.time(), "summary": counts})

    def _watch(self, sources: list[str], out: paths.Place, to_files: _ToFiles, progress: bool) -> None:
        """Does what is there and what appears, once two looks at a file find it the same. Raises `Interrupted`."""
        seen: dict[paths.Job, object] = {}
        handled: dict[paths.Job, object] = {}
        try:
            while not (self.summary.failed and self.run.on_error == "stop"):
                began = time.monotonic()
                ready = []
                for job in self._jobs_now(sources, out):
                    try:
                        now = stamp(paths.status(job.source))
                    except OSError:  # it is gone again
                        continue
                    if handled.get(job) != now and seen.get(job) == now:
                        handled[job] = now
                        ready.append(job)
                    seen[job] = now
                if ready:
                    assert to_files.manifest is not None
                    to_files.manifest.refresh()
                    if todo := self._left_to_do(ready, to_files, renew=True):
                        self._write(todo, to_files, progress)
                        log.info("%s: %d done so far; waiting for more files", self.name, self.summary.done)
                looked = time.monotonic() - began
                time.sleep(max(LOOK_AGAIN, 10 * looked if not ready else 0.0))
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(self.summary) from None

    def _jobs_now(self, sources: list[str], out: paths.Place) -> list[paths.Job]:
        """Returns the jobs of the files that are there now; none where they can't be listed at this moment."""
        try:
            return self._jobs(sources, out)[0]
        except AeimgError as error:
            log.warning("%s (looking again)", error)
            return []

    def plan(self, sources: list[str], out: paths.Place, *, estimate: bool) -> Summary:
        """Says what `go` would do."""
        began = time.monotonic()
        jobs, todo, to_files = self._begin(sources, out, dry=True)
        self.summary.planned = len(todo)
        for job in todo:
            self._note(job, "planned")
        pixels = self._declared(todo)
        self.summary.expected = {"megapixels": round(sum(pixels.values()) / 1e6, 3)}
        if estimate:
            self.summary.expected |= self._estimated(pixels, to_files)
        self._end(jobs, began)
        return self.summary

    def _begin(
        self, sources: list[str], out: paths.Place, *, dry: bool
    ) -> tuple[list[paths.Job], list[paths.Job], _ToFiles]:
        """Returns all jobs, those that are left to do, and what does them."""
        jobs, alone = self._jobs(sources, out)
        if alone and (self.files.watch or self.shard is not None):
            raise UsageError(f"{out}: watch and shard are for folders, and this is one file")
        if self.files.watch and getattr(self.own, "join", False):
            raise UsageError(
                "join needs all pages of a file, and watch does each latent file as it comes: leave one out"
            )
        manifest = None if alone else Manifest(out, "" if self.shard is None else self.shard.name)
        recipe: str = self.task.recipe()
        to_files = _ToFiles(self.task, manifest, recipe, self._residuals(sources, out, jobs, recipe), dry=dry)
        return jobs, [] if self.files.watch else self._left_to_do(jobs, to_files, renew=not dry), to_files

    def _residuals(self, sources: list[str], out: paths.Place, jobs: list[paths.Job], recipe: str) -> Residuals | None:
        """Returns where the run writes what was taken away; None where nobody asks for it. Raises `UsageError`."""
        if not isinstance(self.own, DenoiseOptions) or self.own.residual is None:
            return None
        if self.own.pages == "all":
            raise UsageError("residual is for files of one page, and pages are to be all: name one page")
        if self.files.watch or self.shard is not None:
            given = "watch" if self.files.watch else "shard"
            raise UsageError(f"residual and {given} do not go together: run with one of them, then with the other")
        return Residuals(
            self.own.residual, sources, out, jobs, recipe, name=self.files.name, if_exists=self.files.if_exists
        )

    def _jobs(self, sources: list[str], out: paths.Place) -> tuple[list[paths.Job], bool]:
        """Returns the jobs of this shard, and whether `out` is the one file to write rather than a folder."""
        passed_over: Counter[str] = Counter()
        jobs, alone, found = _plan(sources, self.name, out, self.own, self.files, passed_over)
        self.summary.passed_over = dict(passed_over.most_common())
        jobs = page_runs.expand(jobs, self.own)
        if self.shard is None or alone:
            return jobs, alone
        # All pages of a file are for one shard; of pages in latent files, the first says which.
        taken = {os.fspath(one.path) for one in found if self.shard.takes(one.relative)}
        mine = [job for job in jobs if os.fspath(job.source) in taken]
        self.summary.elsewhere = len(jobs) - len(mine)
        return mine, alone

    def _end(self, jobs: list[paths.Job], began: float) -> None:
        self.summary.files.arrange(jobs)
        self.summary.seconds = time.monotonic() - began

    def _note(self, job: paths.Job, status: str, **about: Any) -> None:
        self.summary.files.note(job, status, about)

    def _left_to_do(self, jobs: list[paths.Job], to_files: _ToFiles, *, renew: bool) -> list[paths.Job]:
        """Returns the jobs whose output is not there yet, or no longer right, as `if_exists` demands."""
        todo, manifest, residuals = [], to_files.manifest, to_files.residuals
        for job in jobs:
            if manifest is not None:
                one = job.recipe(to_files.recipe) if isinstance(job, page_runs.JointJob) else to_files.recipe
                state = manifest.state(job, one, renew=renew)
            else:
                state = State.FOREIGN if paths.exists(job.target) else State.MISSING
            if self.files.if_exists == "error" and state is not State.MISSING:
                raise OutputError(f"{job.target}: is there already; choose another folder, or --if-exists overwrite")
            lacking = state is State.CURRENT and residuals is not None and residuals.lacks(job)
            if self.files.if_exists == "skip" and state in (State.CURRENT, State.FOREIGN) and not lacking:
                self.summary.skipped += 1
                foreign = {"warnings": ["the output is there already, and aeimg has no record of writing it"]}
                self._note(job, "skipped", **(foreign if state is State.FOREIGN else {}))
            else:
                todo.append(job)
        return todo

    def _write(self, todo: list[paths.Job], to_files: _ToFiles, progress: bool) -> None:
        """Does the jobs. Raises `Interrupted` at Ctrl-C."""
        paths.sweep({job.target.parent for job in todo})
        left = {id(job): job for job in todo}
        late: list[Outcome[paths.Job, _Written]] = []
        shown = Progress(self.name, len(todo), wanted=progress)
        watched = shown.watched(to_files, todo, page_runs.size_of, self.run.jobs)
        outcomes = self._outcomes(todo, to_files, late, watched)
        try:
            for outcome in outcomes:
                self._account(outcome, left)
                shown.step(failed=outcome.error is not None)
                if outcome.error is not None and self.run.on_error == "stop":
                    break
        except KeyboardInterrupt:
            raise Interrupted(self.summary) from None
        finally:
            shown.close()
            outcomes.close()
            for outcome in late:
                self._account(outcome, left)
            self.summary.planned = len(left)
            for job in left.values():
                self._note(job, "planned")

    def _outcomes(
        self,
        todo: list[paths.Job],
        to_files: _ToFiles,
        late: list[Outcome[paths.Job, _Written]] | None = None,
        watched: Task[paths.Job, Any, Any, Any] | None = None,
    ) -> Generator[Outcome[paths.Job, _Written], None, None]:
        """Yields the outcomes of the jobs: first of those of one picture, then of those of several, one by one.

        `watched` is `to_files`, with somebody who looks on.
        """
        page_runs.want(todo)
        alone = [job for job in todo if not isinstance(job, page_runs.JointJob)]
        yield from _stream(alone, watched or to_files, self.run, late)
        for job in todo:
            if isinstance(job, page_runs.JointJob):
                yield to_files.join(job, watched or to_files, self.own, self.run)

    def _account(self, outcome: Outcome[paths.Job, _Written], left: dict[int, paths.Job]) -> None:
        """Enters what became of a job into the summary, once."""
        job, summary = outcome.source, self.summary
        if left.pop(id(job), None) is None:
            return
        if outcome.error is not None:
            summary.failed.append((job.source, _reason(outcome.error)))
            self._note(job, "failed", error=_reason(outcome.error))
            return
        written = outcome.result()
        summary.done += 1
        summary.pixels += outcome.work
        summary.bytes_in += written.bytes_in
        summary.bytes_out += written.bytes_out
        summary.missed += "target_missed" in written.record
        self._note(job, "done", bytes_in=written.bytes_in, bytes_out=written.bytes_out, **written.record)
        log.debug("%s: %s, %.1f s", job.source, written.sentence, written.record["seconds"])

    def _declared(self, jobs: list[paths.Job]) -> dict[paths.Job, int]:
        """Returns the pixels of the sources, by their headers."""
        pixels = {}
        for job in jobs:
            try:
                count = job.count if isinstance(job, page_runs.JointJob) else 1
                pixels[job] = count * _declared(job.source, self.name) * getattr(self.task, "scale", 1) ** 2
            except (AeimgError, OSError):
                continue  # the run will report it
        return pixels

    def _estimated(self, pixels: dict[paths.Job, int], tried: _ToFiles) -> dict[str, float]:
        """Returns the seconds and bytes that the jobs would take, by those of a few, spread evenly."""
        able = list(pixels)
        chosen = [able[index] for index in np.linspace(0, len(able) - 1, min(SAMPLE, len(able))).astype(int)]
        list(self._outcomes(chosen[:1], tried))
        began = time.monotonic()
        outcomes = [one for one in self._outcomes(chosen[1:] or chosen, tried) if one.error is None]
        seconds, seen = time.monotonic() - began, sum(outcome.work for outcome in outcomes)
        scale = sum(pixels.values()) / seen if seen else 0.0
        made = sum(outcome.result().bytes_out for outcome in outcomes)
        return {"seconds": round(scale * seconds, 1), "bytes_out": round(scale * made)}


# -- planning ------------------------------------------------------------------------------------------------


def _kept(path: paths.Place) -> str:
    """Returns the suffix of the picture of which a latent file was made; PNG where the file does not state it, or
    aeimg does not write it."""
    try:
        found = container.sections(container.read_file(path), str(path))
    except (OSError, InputError):
        return ".png"  # the run will report it
    suffix = Path(found.get("n", b"").decode("utf-8", "replace")).suffix
    kind = found.get("f", b"").decode("utf-8", "replace")
    return suffix if WRITABLE.get(suffix.lower()) == kind else suffix_of(kind)


def _plan(
    sources: list[str], task: str, out: paths.Place, own: TaskOptions, files: FileOptions, passed_over: Counter[str]
) -> tuple[list[paths.Job], bool, list[paths.Found]]:
    """Returns the jobs, whether `out` is the one file to write rather than a folder, and otherwise the files that were
    found. Counts what it passes over."""
    latent = paths.LATENT_SUFFIX if task == "compress" else None
    wanted = latent or (own.suffix if isinstance(own, FormatOptions) else None)
    kept = task == "decompress" and isinstance(own, FormatOptions) and own.format == "keep"

    kept_suffix = functools.cache(_kept)  # which reads the file

    def suffix(path: paths.Place) -> str:
        if wanted:
            return wanted
        if kept:
            return kept_suffix(path)
        return path.suffix if path.suffix.lower() in WRITABLE else ".png"

    if len(sources) == 1 and paths.is_file(sources[0]) and not paths.is_folder(out):
        known = [latent] if latent else WRITABLE
        if out.suffix.lower() in known:
            if paths.is_same(out, sources[0]):
                raise UsageError(f"{out}: the output would overwrite the input")
            return [paths.Job(paths.located(sources[0]), out)], True, []
    if paths.is_file(out) or (isinstance(out, Path) and out.exists() and not out.is_dir()):
        raise UsageError(f"{out}: is a file, but the results need a folder; name one as the last argument")
    for folder in paths.folders(sources) if declared.find(task) is not None else ():
        if paths.is_same(folder, out):
            raise UsageError(
                f"{out}: input and output are one folder, in which results would pass for inputs; choose another"
            )
    found = paths.find(sources, _suffixes(task), replace(files.selection, without=out, passed_over=passed_over))

    def stem(path: paths.Place) -> str:  # compressed beside an a.png, a.jpg is in a.jpg.aei, and comes back as a.jpg
        return paths.stem(path).removesuffix(suffix(path)) or paths.stem(path)

    return paths.plan(found, out, suffix, files.name, stem if kept else paths.stem), False, found


LOOK_AGAIN = 2.0
"""How many seconds a run that watches folders waits before it lists them again, at least: a file counts as whole once
two lists agree on it. Where listing takes long, it waits ten times as long as that."""
SAMPLE = 5
"""How many inputs a dry run tries to estimate the rest; the first of them warms up."""


def _declared(path: paths.Place, task: str) -> int:
    """Returns how many pixels a file says that it has. Raises `InputError` or an `OSError`."""
    if task != "decompress":
        with paths.open_regular(path) as file, open_image(file, str(path)) as image:
            return image.width * image.height
    latent = container.read(container.read_file(path), str(path))
    if isinstance(latent, container.Coded):
        return latent.width * latent.height
    with open_image(io.BytesIO(latent.data), str(path)) as image:
        return image.width * image.height


# -- results that are not files ------------------------------------------------------------------------------


def each(
    found: Sequence[paths.Found],
    task: Literal["features", "score"],
    *,
    model: Name | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[paths.Found, Any]]:
    """Yields image files with what `process` makes of each, in order; in the place of a failed one, its error.

    It is for tasks whose results are not files. `options` are those of `process`.
    """
    own, run, _ = parse(task, options or {})
    made: AnyTask = make_task(task, model, device, dtype, own)
    shown = Progress(task, len(found), wanted=progress)
    sources = [one.path for one in found]
    outcomes = _stream(sources, shown.watched(made, sources, paths.known_size, run.jobs), run)
    try:
        for one, outcome in zip(found, outcomes, strict=True):
            shown.step(failed=outcome.error is not None)
            yield one, outcome.result().value if outcome.error is None else outcome.error
            if outcome.error is not None and run.on_error == "stop":
                return
    finally:
        shown.close()
        outcomes.close()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AeimgError) else f"{type(error).__name__}: {error}"
