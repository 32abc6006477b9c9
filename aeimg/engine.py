"""`process()`: folders, files and arrays through a model.

    sources ──find, plan──> jobs ──manifest──> what is left to do ──┐
    pictures, arrays, bytes ────────────────────────────────────────┴──stream, with a verb──> results, or files

The verbs are those of `tasks`, the stream that of `stream`; here is the door, and what it takes to work on files:
which of them still need it, what became of each, and how far it is.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import container, devices, paths, registry
from .errors import AeimgError, InputError, OutputError, UsageError
from .explore import Features, Score
from .images import WRITABLE, open_image
from .manifest import Manifest, Record, State, digest
from .stream import Outcome, Verb, stream
from .tasks import Compress, Decompress, Denoise, Options, suffix_of

log = logging.getLogger("aeimg")

TASKS = ("denoise", "compress", "decompress", "features", "score")


@dataclass
class Summary:
    """What a run over files did; of a dry run, what it would do."""

    done: int = 0
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Each input that failed and why, by name."""
    planned: int = 0
    """Inputs that are still to be done: of a dry run, or of one that was interrupted or stopped at an error."""
    expected: dict[str, float] = field(default_factory=dict)
    """Of a dry run: `megapixels`, `seconds` and `bytes_out`, extrapolated from a few of the inputs."""
    pixels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    files: list[dict[str, Any]] = field(default_factory=list)
    """A record for each file: `input`, `output`, `status` ("done", "skipped", "failed" or "planned"); then, as it
    applies, sizes, `seconds`, `model`, `quality`, `bpp`, `psnr` (None where nothing was lost), `ssim` (None under 11
    pixels), `warnings`, `error`."""


class Interrupted(KeyboardInterrupt):
    """A run over files was interrupted; `summary` tells what was done by then."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


# -- the door ---------------------------------------------------------------------------------------------------------


_VERBS: dict[str, Any] = {
    "denoise": Denoise, "compress": Compress, "decompress": Decompress, "features": Features, "score": Score,
}  # fmt: skip


def _verb(task: str, model: Any, device: str, dtype: str, options: Options) -> Verb:
    place = devices.pick_device(device)
    precision = devices.pick_dtype(dtype, place)
    if model is None and task in ("denoise", "decompress"):  # chosen for each picture; named by each latent file
        loaded = None
    else:
        loaded = registry.get(model, "denoise" if task == "denoise" else "compress", place)
    verb = _VERBS[task](loaded, place, precision, options)
    verb.asked = "" if model is None else os.fspath(model)
    return verb  # type: ignore[no-any-return]


def process(
    source: Any,
    task: str,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Any:
    """Denoises, compresses or decompresses whatever it is given, or says what an encoder makes of it.

    Args:
        source: a file or folder; a PIL image; a numpy array `[H,W]`, `[H,W,3]` or `[H,W,4]` of uint8, uint16 or float
            in [0,1]; a torch tensor `[C,H,W]` or `[N,C,H,W]`, float in [0,1]; the bytes of an image or of a latent
            file; or any iterable of these. Float input is not clipped.
        task: "denoise", "compress" or "decompress"; "features" or "score" (of models for compress), which give back a
            vector, float32 `[D]`, or a `explore.Strangeness`, for each picture.
        out: a folder to write to, and a `Summary` comes back; then `source` is a file, a folder, a glob, `@list.txt` (a
            file that lists them), or several of these. For one file, `out` may be the file to write.
        model: a registered name, the label of built-in weights, a weights file, or `spandrel:FILE` for a network in a
            community layout; None is the default for the task.
        device: "auto", "cpu", "cuda", "mps".
        dtype: "auto", "fp32", "bf16".
        progress: with `out`, show a progress bar on standard error, or a line now and then where that is no terminal.
        dry_run: with `out`, write nothing, and tell in the summary what would be done.
        options:
            sigma: noise level in 8-bit units, or "auto" to estimate it (denoise).
            strength: 0 leaves the picture as it is, 1 takes all the noise away (denoise).
            quality: 1..100 (compress).
            target_bpp, max_bytes, target_psnr: instead of a quality, for each picture the highest quality whose file is
                no larger, or the lowest that reaches the PSNR (dB).
            effort: 1..9; from 2 on the encoder refines the latent: slower, a few percent smaller (compress).
            percentile: of the training images' errors: above it, a picture counts as strange (score).
            measure: decode what was encoded, for PSNR and SSIM in the summary (compress, with `out`).
            kind: "pil", "numpy", "tensor" or "bytes": what decompress gives back.
            format: suffix of the files written, "keep" for that of the source (of a latent file: of what was
                compressed; PNG where aeimg does not write that); decompress writes png by default.
            image_quality: 1..100 for JPEG, WebP and AVIF files that are written (default 95), or one for each format,
                as in {"jpg": 90, "avif": 70}.
            name: a template of the names of files written, of {stem}, {name} (the stem with its old suffix), {suffix}.
            include, exclude: patterns for names, or for paths below a folder, of files that are taken or passed over.
            follow_symlinks: whether links in folders are followed.
            if_exists: "skip" (default) leaves out what has the result that this model and these options would give, and
                files that are not of aeimg; "overwrite" does all anew; "error" refuses where any output is there.
            on_error: "continue" or "stop". With `out` the default is to continue; with an iterable it is to stop,
                and to continue means that the error stands in the failed item's place.
            jobs: threads that read and write; batch_size: how many images run at once at most; memory: bytes that the
                pictures on their way may hold (default 2 GiB), as a number or like "4G". One picture is always let in.

    Returns:
        One thing in, one result out; an iterable (or a folder, without `out`) in, a generator out, in order, which
        holds only a bounded number of images at a time. `denoise` gives back the kind that came in (for a path, a PIL
        image), `compress` bytes, `decompress` what `kind` names.

    Raises:
        UsageError: for a wrong call; InputError: for a picture or latent file that can't be handled; ModelError: for a
            model that can't be had; OutputError: for a result that can't be written.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}; use one of {', '.join(TASKS)}")
    known = [option.name for option in fields(Options)]
    for name in options:
        if name not in known:
            raise UsageError(f"unknown option {name!r}; known: {', '.join(known)}")
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise UsageError(f"an option is of another kind than it must be ({error})") from None
    verb = _verb(task, model, device, dtype, chosen)
    if out is not None and task in ("features", "score"):
        raise UsageError(f"{task} gives one thing for each picture back, and writes no files: leave out= out")
    if out is not None:
        if not os.fspath(out):
            raise UsageError("out: an empty name stands for no file or folder")
        return _files(_names(source), task, Path(out), verb, chosen, progress, dry_run)
    if dry_run:
        raise UsageError("a dry run is for files: say where to with out=")
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        source = [one.path for one in paths.find(source, _suffixes(task), chosen.selection)]
    if isinstance(source, Tensor) and source.dim() == 4:
        results = [_value(outcome) for outcome in _stream(source, verb, chosen)]
        if task == "denoise":
            return torch.stack(results) if results else source.clone()
        return results
    if isinstance(source, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray | Tensor):
        (outcome,) = _stream([source], verb, chosen)
        return _value(outcome)
    if isinstance(source, Iterable):
        return _generate(source, verb, chosen)
    raise UsageError(f"a {type(source).__name__} is not something that aeimg takes as a picture")


def _stream(
    sources: Iterable[Any], verb: Verb, options: Options, late: list[Outcome] | None = None
) -> Iterator[Outcome]:
    return stream(
        sources, verb, jobs=options.jobs, batch_size=options.batch_size, memory=options.memory_bytes, late=late
    )


def _value(outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def _generate(sources: Iterable[Any], verb: Verb, options: Options) -> Iterator[Any]:
    for outcome in _stream(sources, verb, options):
        if outcome.error is not None and options.on_error == "continue":
            yield outcome.error
        else:
            yield _value(outcome)


# -- files -----------------------------------------------------------------------------------------------------------


def _suffixes(task: str) -> Iterable[str]:
    return [paths.LATENT_SUFFIX] if task == "decompress" else paths.IMAGE_SUFFIXES


def _names(source: Any) -> list[str]:
    sources = [source] if isinstance(source, str | os.PathLike) else source
    several = isinstance(sources, Iterable) and not isinstance(sources, bytes | bytearray | np.ndarray | Tensor)
    sources = list(sources) if several else [sources]
    if not all(isinstance(one, str | os.PathLike) for one in sources):
        raise UsageError("with out=, the source must be a file, a folder, a glob, or several of these")
    return [os.fspath(one) for one in sources]


@dataclass
class _Written:
    """What became of one file that was written."""

    bytes_in: int
    bytes_out: int
    about: dict[str, Any]


class _ToFiles:
    """A verb whose sources are `paths.Job`s and whose results are written where they say, unless it is a `dry` run.

    `manifest`, if there is one, is told first.
    """

    small = True

    def __init__(self, verb: Any, manifest: Manifest | None, recipe: str, *, dry: bool = False) -> None:
        self.verb, self.manifest, self.recipe, self.dry = verb, manifest, recipe, dry
        self.key = verb.key

    def read(self, job: paths.Job) -> Any:
        began = time.monotonic()
        try:
            status = os.stat(job.source)
        except OSError as error:
            raise InputError(f"{job.source}: can't be read ({error.strerror})") from error
        item = replace(self.verb.read(job.source), kind="file", origin=(job, status), suffix=job.target.suffix)
        item.about["seconds"] = time.monotonic() - began
        return item

    def run(self, items: list[Any]) -> list[Any]:
        began = time.monotonic()
        results = self.verb.run(items)
        for item in items:
            item.about["seconds"] += (time.monotonic() - began) / len(items)
        return results  # type: ignore[no-any-return]

    def write(self, item: Any, result: Any) -> _Written:
        began = time.monotonic()
        job, status = item.origin
        data = self.verb.write(item, result)
        if not self.dry:
            if self.manifest is not None:
                source = (status.st_size, status.st_mtime_ns, digest(item.data))
                record = Record(self.recipe, *source, len(data), digest(data), status.st_ctime_ns)
                self.manifest.add(job, record)
            paths.write_atomic(job.target, data)
        seconds = round(item.about.pop("seconds") + time.monotonic() - began, 4)
        about = {"width": item.picture.width, "height": item.picture.height, "seconds": seconds, **item.about}
        warnings = [*item.picture.notes, *about.pop("warnings", ())]
        if warnings:
            about["warnings"] = warnings
        return _Written(status.st_size, len(data), about)


def _kept(path: Path) -> str:
    """The suffix of the picture that a latent file was made of; PNG where that is not told, or never written."""
    try:
        found = container.sections(path.read_bytes(), str(path))
    except (OSError, InputError):
        return ".png"  # to be reported when it is done
    suffix = Path(found.get("n", b"").decode("utf-8", "replace")).suffix
    kind = found.get("f", b"").decode("utf-8", "replace")
    return suffix if WRITABLE.get(suffix.lower()) == kind else suffix_of(kind)


def _plan(sources: list[str], task: str, out: Path, options: Options) -> tuple[list[paths.Job], bool]:
    """The jobs, and whether `out` is the one file to write rather than a folder."""
    own = paths.LATENT_SUFFIX if task == "compress" else None

    @functools.cache
    def suffix(path: Path) -> str:
        if own or options.suffix:
            return own or options.suffix  # type: ignore[return-value]
        if task == "decompress" and options.format == "keep":
            return _kept(path)
        return path.suffix if path.suffix.lower() in WRITABLE else ".png"

    if len(sources) == 1 and os.path.isfile(sources[0]) and not os.path.isdir(out):
        known = [own] if own else WRITABLE
        if out.suffix.lower() in known:
            if os.path.realpath(out) == os.path.realpath(sources[0]):
                raise UsageError(f"{out}: the output would overwrite the input")
            return [paths.Job(Path(sources[0]), out)], True
    if os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(f"{out}: is a file, and what is asked for goes to a folder; name one as the last argument")
    for folder in paths.folders(sources) if task == "denoise" else ():
        if os.path.realpath(folder) == os.path.realpath(out):
            raise UsageError(
                f"{out}: input and output are one folder, in which results would pass for inputs; choose another"
            )
    found = paths.find(sources, _suffixes(task), replace(options.selection, without=out))

    def stem(path: Path) -> str:  # compressed beside an a.png, a.jpg is in a.jpg.aei, and comes back as a.jpg
        return paths.stem(path).removesuffix(suffix(path)) or paths.stem(path)

    kept = task == "decompress" and options.format == "keep"
    return paths.plan(found, out, suffix, options.name, stem if kept else paths.stem), False


def _files(
    sources: list[str], task: str, out: Path, verb: Any, options: Options, progress: bool, dry_run: bool
) -> Summary:
    began = time.monotonic()
    jobs, alone = _plan(sources, task, out, options)
    manifest = None if alone else Manifest(out)
    recipe = verb.recipe()
    summary = Summary()

    def record(job: paths.Job, status: str, **about: Any) -> None:
        summary.files.append({"input": str(job.source), "output": str(job.target), "status": status, **about})

    todo = []
    for job in jobs:
        if manifest is not None:
            state = manifest.state(job, recipe, renew=not dry_run)
        else:
            state = State.FOREIGN if os.path.exists(job.target) else State.MISSING
        if options.if_exists == "error" and state is not State.MISSING:
            raise OutputError(f"{job.target}: is there already; choose another folder, or --if-exists overwrite")
        if options.if_exists == "skip" and state in (State.CURRENT, State.FOREIGN):
            summary.skipped += 1
            foreign = {"warnings": ["the output is there already, and not known to be of aeimg"]}
            record(job, "skipped", **(foreign if state is State.FOREIGN else {}))
        else:
            todo.append(job)
    if dry_run:
        summary.planned = len(todo)
        for job in todo:
            record(job, "planned")
        summary.expected = _expected(todo, task, verb, options)
        summary.seconds = time.monotonic() - began
        return summary
    paths.sweep({job.target.parent for job in todo})
    left = {id(job): job for job in todo}
    late: list[Outcome] = []
    outcomes = _stream(todo, _ToFiles(verb, manifest, recipe), options, late)
    shown = _Progress(task, len(todo), progress)

    def account(outcome: Outcome) -> None:
        job, written = outcome.source, outcome.value
        if left.pop(id(job), None) is None:
            return
        if outcome.error is not None:
            summary.failed.append((job.source, _reason(outcome.error)))
            record(job, "failed", error=_reason(outcome.error))
            return
        summary.done += 1
        summary.pixels += outcome.pixels
        summary.bytes_in += written.bytes_in
        summary.bytes_out += written.bytes_out
        record(job, "done", bytes_in=written.bytes_in, bytes_out=written.bytes_out, **written.about)
        log.debug("%s: %s", job.source, ", ".join(f"{key} {value}" for key, value in written.about.items()))

    try:
        for outcome in outcomes:
            account(outcome)
            shown.step(summary)
            if outcome.error is not None and options.on_error == "stop":
                break
    except KeyboardInterrupt:
        raise Interrupted(summary) from None
    finally:
        shown.close()
        outcomes.close()  # type: ignore[attr-defined]
        for outcome in late:
            account(outcome)
        summary.planned = len(left)
        for job in left.values():
            record(job, "planned")
        order = {str(job.target): number for number, job in enumerate(jobs)}
        summary.files.sort(key=lambda about: order[about["output"]])
        summary.seconds = time.monotonic() - began
    return summary


def each(
    found: Sequence[paths.Found],
    task: str,
    *,
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    **options: Any,
) -> Iterator[tuple[paths.Found, Any]]:
    """Image files with what `process` makes of each, in order; of a failed one, its error.

    For tasks whose results are not files. The words are those of `process`.
    """
    chosen = Options(**options)
    verb = _verb(task, model, device, dtype, chosen)
    outcomes = _stream((one.path for one in found), verb, chosen)
    shown = _Progress(task, len(found), progress)
    summary = Summary()
    try:
        for one, outcome in zip(found, outcomes, strict=True):
            summary.pixels += outcome.pixels
            if outcome.error is not None:
                summary.failed.append((one.path, _reason(outcome.error)))
            shown.step(summary)
            yield one, outcome.value if outcome.error is None else outcome.error
            if outcome.error is not None and options.get("on_error") == "stop":
                return
    finally:
        shown.close()
        outcomes.close()  # type: ignore[attr-defined]


SAMPLE = 5
"""How many inputs a dry run tries, the first of them to warm up."""


def _declared(path: Path, task: str) -> int:
    """How many pixels a file says that it has. Raises `InputError` or an `OSError`."""
    if task != "decompress":
        with open(path, "rb") as file, open_image(file, str(path)) as image:
            return image.width * image.height
    latent = container.read(path.read_bytes(), str(path))
    if isinstance(latent, container.Coded):
        return latent.width * latent.height
    with open_image(io.BytesIO(latent.data), str(path)) as image:
        return image.width * image.height


def _expected(jobs: list[paths.Job], task: str, verb: Any, options: Options) -> dict[str, float]:
    """What `jobs` would take: pixels by their headers; seconds and bytes by those of a few, spread evenly."""
    pixels = {}
    for job in jobs:
        try:
            pixels[job] = _declared(job.source, task)
        except (AeimgError, OSError):
            continue  # to be reported when it is done
    able = list(pixels)
    chosen = [able[index] for index in np.linspace(0, len(able) - 1, min(SAMPLE, len(able))).astype(int)]
    tried = _ToFiles(verb, None, "", dry=True)
    list(_stream(chosen[:1], tried, options))
    began = time.monotonic()
    outcomes = [outcome for outcome in _stream(chosen[1:] or chosen, tried, options) if outcome.error is None]
    seconds, seen = time.monotonic() - began, sum(outcome.pixels for outcome in outcomes)
    total = sum(pixels.values())
    scale = total / seen if seen else 0.0
    made = sum(outcome.value.bytes_out for outcome in outcomes)
    return {"megapixels": round(total / 1e6, 3), "seconds": round(scale * seconds, 1), "bytes_out": round(scale * made)}


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    EVERY = 20.0
    """Seconds between lines."""

    def __init__(self, task: str, total: int, wanted: bool) -> None:
        from tqdm import tqdm

        self.task, self.total, self.count = task, total, 0
        self.began = self.told = time.monotonic()
        terminal = sys.stderr.isatty()
        self.lines = wanted and not terminal
        self.bar = tqdm(total=total, unit="image", disable=not (wanted and terminal), dynamic_ncols=True)

    def step(self, summary: Summary) -> None:
        self.count += 1
        now = time.monotonic()
        rate = summary.pixels / 1e6 / max(now - self.began, 1e-9)
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        self.bar.update()
        self.bar.set_postfix_str(f"{rate:.1f} MP/s{failed}")
        if self.lines and now - self.told > self.EVERY:
            left = (now - self.began) / self.count * (self.total - self.count)
            log.info("%s: %d of %d, %.1f MP/s, %.0f s left%s", self.task, self.count, self.total, rate, left, failed)
            self.told = now

    def close(self) -> None:
        self.bar.close()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AeimgError) else f"{type(error).__name__}: {error}"
