"""`process()`: folders, files and arrays through a model, as a bounded stream.

    sources ──read──> items ──gather──> batches ──run──> results ──write──> outcomes, in order
             threads          by padded size     caller's          threads
                                                 thread

`stream` knows nothing of pictures: it moves items through the four functions of a `Verb`, never holds more than
`window` of them or, once their sizes are known, more than about `memory` bytes, and turns whatever goes wrong with
one item into that item's outcome. The verbs are those of `verbs`; `process` is the door.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import paths, zoo
from .errors import AeimgError, OutputError, UsageError
from .images import WRITABLE
from .verbs import Compress, Decompress, Denoise, Options

log = logging.getLogger("aeimg")

TASKS = ("denoise", "compress", "decompress")
BATCH_PIXELS = 4 << 20
"""A batch is not made larger than this, in pixels, unless one image alone is."""


# -- the stream ------------------------------------------------------------------------------------------------


class Verb(Protocol):
    """What is done to each item."""

    def read(self, source: Any) -> Any:
        """In a thread: a source -> an item with `pixels` (how many it has) and `nbytes` (what it holds in memory)."""
        ...

    def key(self, item: Any) -> Hashable:
        """Items of equal key can run as one batch."""
        ...

    def run(self, items: list[Any]) -> list[Any]:
        """In the caller's thread: a batch through the model."""
        ...

    def write(self, item: Any, result: Any) -> Any:
        """In a thread: an item and its result -> what the caller gets."""
        ...


@dataclass
class Outcome:
    """What became of one source: a value or an error."""

    source: Any
    value: Any = None
    error: Exception | None = None
    pixels: int = 0


@dataclass
class _Slot:
    """One item on its way. `future` is its read, then its write; `item` is there in between and while it is written."""

    source: Any
    future: Future[Any] | None = None
    item: Any = None
    outcome: Outcome | None = None

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        if error is not None and not isinstance(error, Exception):
            raise error
        self.outcome = Outcome(self.source, value, error, getattr(self.item, "pixels", 0))
        self.future = self.item = None


def stream(
    sources: Iterable[Any],
    verb: Verb,
    *,
    jobs: int | None = None,
    batch_size: int = 8,
    memory: int = 2 << 30,
) -> Iterator[Outcome]:
    """Moves `sources` through `verb` and yields an `Outcome` for each, in their order.

    `jobs` threads read and write; `batch_size` bounds the items of a batch; reading pauses while the items on their
    way hold more than `memory` bytes. Closing the generator ends the threads.
    """
    jobs = jobs or min(8, os.cpu_count() or 1)
    window = 2 * jobs + 2 * batch_size
    slots: deque[_Slot] = deque()
    upcoming = iter(sources)
    more = True
    largest = 0
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="aeimg")

    def fits(held: int, reading: int) -> bool:
        return not slots or held + (reading + 1) * largest <= memory

    try:
        while True:
            held = sum(slot.item.nbytes for slot in slots if slot.item is not None)
            reading = sum(slot.future is not None and slot.item is None for slot in slots)
            # Until the first is read nobody knows how large they are; as many as there are threads must do.
            while more and len(slots) < window and (fits(held, reading) if largest else reading < jobs):
                try:
                    source = next(upcoming)
                except StopIteration:
                    more = False
                    break
                slots.append(_Slot(source, pool.submit(verb.read, source)))
                reading += 1
            for slot in slots:
                if slot.future is not None and slot.future.done():
                    error = slot.future.exception()
                    if error is not None:
                        slot.settle(error=error)
                    elif slot.item is None:
                        slot.item, slot.future = slot.future.result(), None
                        largest = max(largest, slot.item.nbytes)
                    else:
                        slot.settle(slot.future.result())
            while slots and slots[0].outcome is not None:
                yield slots.popleft().outcome  # type: ignore[misc]
            if not slots:
                if not more:
                    return
                continue
            batch = _gather(slots, verb, batch_size)
            if batch:
                for slot, result in zip(batch, _run(verb, [slot.item for slot in batch]), strict=True):
                    if isinstance(result, Exception):
                        slot.settle(error=result)
                    else:
                        slot.future = pool.submit(verb.write, slot.item, result)
            elif slots[0].outcome is None:
                wait([slot.future for slot in slots if slot.future is not None], return_when=FIRST_COMPLETED)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _gather(slots: Iterable[_Slot], verb: Verb, batch_size: int) -> list[_Slot]:
    """A batch worth running now: a full one; or, when no read is under way that could fill one, the oldest."""
    buckets: dict[Hashable, list[_Slot]] = {}
    reading = False
    for slot in slots:
        if slot.item is None:
            reading |= slot.future is not None
        elif slot.future is None:
            bucket = buckets.setdefault(verb.key(slot.item), [])
            bucket.append(slot)
            if len(bucket) == batch_size or (len(bucket) + 1) * slot.item.pixels > BATCH_PIXELS:
                return bucket
    return next(iter(buckets.values())) if buckets and not reading else []


def _run(verb: Verb, items: list[Any]) -> list[Any]:
    """Runs a batch; where that fails, its items one by one, so that only the guilty one is lost."""
    try:
        return verb.run(items)
    except Exception as error:  # whatever a model raises is this batch's failure, not the run's
        if len(items) == 1:
            return [error]
        return [_run(verb, [item])[0] for item in items]


# -- the door ---------------------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What a run over files did."""

    done: int = 0
    skipped: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Each input that failed and why, by name."""
    pixels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    files: list[dict[str, Any]] = field(default_factory=list)
    """A record for each file: `input`, `output`, `status` ("done", "skipped" or "failed"); then, as it applies, sizes,
    `model`, `quality`, `bpp`, `psnr` (None where nothing was lost), `ssim` (None under 11 pixels), `warnings`,
    `error`."""


_VERBS: dict[str, Any] = {"denoise": Denoise, "compress": Compress, "decompress": Decompress}


def _verb(task: str, model: Any, device: str, dtype: str, options: Options) -> Verb:
    place = zoo.pick_device(device)
    precision = zoo.pick_dtype(dtype, place)
    if model is None and task != "compress":  # chosen for each picture; named by each latent file
        loaded = None
    else:
        loaded = zoo.get(model, "denoise" if task == "denoise" else "compress", place)
    return _VERBS[task](loaded, place, precision, options)  # type: ignore[no-any-return]


def process(
    source: Any,
    task: str,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    **options: Any,
) -> Any:
    """Denoises, compresses or decompresses whatever it is given.

    Args:
        source: a file or folder; a PIL image; a numpy array `[H,W]`, `[H,W,3]` or `[H,W,4]` of uint8, uint16 or float
            in [0,1]; a torch tensor `[C,H,W]` or `[N,C,H,W]`, float in [0,1]; the bytes of an image or of a latent
            file; or any iterable of these. Float input is not clipped.
        task: "denoise", "compress" or "decompress".
        out: a folder to write to; then `source` is a file or folder and a `Summary` comes back.
        model: a registered name, the label of built-in weights or a weights file; None is the default for the task.
        device: "auto", "cpu", "cuda", "mps".
        dtype: "auto", "fp32", "bf16".
        progress: with `out`, show a progress bar on standard error.
        options:
            sigma: noise level in 8-bit units, or "auto" to estimate it (denoise).
            strength: 0 leaves the picture as it is, 1 takes all the noise away (denoise).
            quality: 1..100 (compress).
            target_bpp, max_bytes, target_psnr: instead of a quality, for each picture the highest quality whose file is
                no larger, or the lowest that reaches the PSNR (dB).
            effort: 1..9; from 2 on the encoder refines the latent: slower, a few percent smaller (compress).
            measure: decode what was encoded, for PSNR and SSIM in the summary (compress, with `out`).
            kind: "pil", "numpy", "tensor" or "bytes": what decompress gives back.
            format: suffix of the files written, "keep" for that of the source; decompress writes png by default.
            image_quality: 1..100 for JPEG, WebP and AVIF files that are written; default 95.
            if_exists: "skip" (default), "overwrite" or "error", for output files that are there already.
            on_error: "continue" or "stop". With `out` the default is to continue; with an iterable it is to stop,
                and to continue means that the error stands in the failed item's place.
            jobs: threads that read and write; batch_size: how many images run at once at most.

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
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise UsageError(f"unknown option: {error}") from None
    verb = _verb(task, model, device, dtype, chosen)
    if out is not None:
        if not isinstance(source, str | os.PathLike):
            raise UsageError("with out=, the source must be a file or a folder")
        return _files(Path(source), task, Path(out), verb, chosen, progress)
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        source = paths.find_latents(Path(source)) if task == "decompress" else paths.find_images(Path(source))
    if isinstance(source, Tensor) and source.dim() == 4:
        results = [_value(outcome) for outcome in _stream(source, verb, chosen)]
        return torch.stack(results) if task == "denoise" and results else results
    if isinstance(source, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray | Tensor):
        (outcome,) = _stream([source], verb, chosen)
        return _value(outcome)
    if isinstance(source, Iterable):
        return _generate(source, verb, chosen)
    raise UsageError(f"a {type(source).__name__} is not something that aeimg takes as a picture")


def _stream(sources: Iterable[Any], verb: Verb, options: Options) -> Iterator[Outcome]:
    return stream(sources, verb, jobs=options.jobs, batch_size=options.batch_size)


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


@dataclass
class _Written:
    """What became of one file that was written."""

    bytes_in: int
    bytes_out: int
    about: dict[str, Any]


class _ToFiles:
    """A verb whose sources are `paths.Job`s and whose results are written where they say."""

    def __init__(self, verb: Verb) -> None:
        self.verb = verb
        self.key, self.run = verb.key, verb.run

    def read(self, job: paths.Job) -> Any:
        return replace(self.verb.read(job.source), kind="file", origin=job, suffix=job.target.suffix)

    def write(self, item: Any, result: Any) -> _Written:
        data = self.verb.write(item, result)
        paths.write_atomic(item.origin.target, data)
        about = {"width": item.picture.width, "height": item.picture.height, **item.about}
        warnings = [*item.picture.notes, *about.pop("warnings", ())]
        if warnings:
            about["warnings"] = warnings
        return _Written(item.origin.source.stat().st_size, len(data), about)


def _files(source: Path, task: str, out: Path, verb: Verb, options: Options, progress: bool) -> Summary:
    began = time.monotonic()
    files = paths.find_latents(source) if task == "decompress" else paths.find_images(source)

    def suffix(path: Path) -> str:
        if task == "compress":
            return paths.LATENT_SUFFIX
        kept = path.suffix if path.suffix.lower() in WRITABLE else ".png"
        return options.suffix or kept

    jobs = paths.plan(source, files, out, suffix)
    summary = Summary()

    def record(job: paths.Job, status: str, **about: Any) -> None:
        summary.files.append({"input": str(job.source), "output": str(job.target), "status": status, **about})

    todo = []
    for job in jobs:
        if options.if_exists != "overwrite" and job.target.exists():
            if options.if_exists == "error":
                raise OutputError(f"{job.target}: is there already; choose another folder, or --if-exists overwrite")
            summary.skipped += 1
            record(job, "skipped")
        else:
            todo.append(job)
    from tqdm import tqdm

    with tqdm(total=len(todo), unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for outcome in _stream(todo, _ToFiles(verb), options):
            job, written = outcome.source, outcome.value
            if outcome.error is not None:
                summary.failed.append((job.source, _reason(outcome.error)))
                record(job, "failed", error=_reason(outcome.error))
                if options.on_error == "stop":
                    break
            else:
                summary.done += 1
                summary.pixels += outcome.pixels
                summary.bytes_in += written.bytes_in
                summary.bytes_out += written.bytes_out
                record(job, "done", bytes_in=written.bytes_in, bytes_out=written.bytes_out, **written.about)
                log.debug("%s: %s", job.source, ", ".join(f"{key} {value}" for key, value in written.about.items()))
            bar.update()
            rate = summary.pixels / 1e6 / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{rate:.1f} MP/s" + (f", {len(summary.failed)} failed" if summary.failed else ""))
    summary.seconds = time.monotonic() - began
    return summary


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AeimgError) else f"{type(error).__name__}: {error}"
