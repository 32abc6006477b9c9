"""`process()`: folders, files and arrays through a model, as a bounded stream.

    sources ──read──> items ──gather──> batches ──run──> results ──write──> outcomes, in order
             threads          by padded size     caller's          threads
                                                 thread

`stream` knows nothing of pictures: it moves items through the four functions of a `Verb`, never holds more than
`window` of them or, once their sizes are known, more than about `memory` bytes, and turns whatever goes wrong with
one item into that item's outcome. `Denoise`, `Compress` and `Decompress` are the verbs; `process` is the door.
"""

from __future__ import annotations

import os
import time
import zlib
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

from . import container, paths, zoo
from .denoise import denoise, estimate_sigma
from .errors import (
    AeimgError,
    InputError,
    ModelError,
    OutputError,
    UnreadableImage,
    UnsupportedImage,
    UsageError,
    WrongWeights,
)
from .images import WRITABLE, Picture, encode_lossless, encode_picture, from_pil, read_picture, to_pil
from .tiles import pad, padded

Array = np.ndarray
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


# -- the verbs ---------------------------------------------------------------------------------------------------


@dataclass
class _Item:
    """A picture on its way."""

    picture: Picture
    kind: str
    """What the caller wants back: "pil", "numpy", "tensor", "bytes", or "file": the bytes of a file to be written."""
    origin: Any
    """What the caller gave."""
    data: bytes | None = None
    """The source file, if it was one."""
    suffix: str | None = None
    """Of the file to be written; None leaves it to the options."""
    sigma: float = 0.0
    latent: Any = None
    """What a latent file held: a `_Latent`, or None where it stored an image file."""

    @property
    def pixels(self) -> int:
        return self.picture.width * self.picture.height

    @property
    def nbytes(self) -> int:
        # The model's float input and output are alive at the same time as the pixels.
        return self.picture.pixels.nbytes + 2 * 12 * self.pixels


@dataclass(frozen=True)
class _Latent:
    codec: Any
    symbols: Any
    quality: int


def _padded_size(picture: Picture, multiple: int) -> tuple[int, int]:
    return padded(picture.height, multiple), padded(picture.width, multiple)


def _stack(items: list[_Item], height: int, width: int) -> Tensor:
    """The items' pixels as one float batch, padded to one size."""
    return torch.cat([pad(torch.from_numpy(item.picture.as_float())[None], height, width) for item in items])


class _ModelVerb:
    """A verb that runs a model."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, options: Options) -> None:
        self.model, self.device, self.dtype, self.options = model, device, dtype, options
        self.multiple = int(getattr(model, "multiple", 1))


class _PictureVerb(_ModelVerb):
    """What denoising and compression share: reading pictures of any kind, and gathering them by padded size."""

    def read(self, source: Any) -> _Item:
        return open_source(source)

    def key(self, item: _Item) -> Hashable:
        return (item.picture.pixels.shape[0], *_padded_size(item.picture, self.multiple))


class Denoise(_PictureVerb):
    """Picture -> picture."""

    def read(self, source: Any) -> _Item:
        item = super().read(source)
        sigma = self.options.sigma
        item.sigma = estimate_sigma(item.picture.as_float()) if sigma == "auto" else float(sigma)
        return item

    def run(self, items: list[_Item]) -> list[Array]:
        height, width = _padded_size(items[0].picture, self.multiple)
        sigma = torch.tensor([item.sigma for item in items])
        clean = denoise(
            self.model, _stack(items, height, width), sigma, self.options.strength, device=self.device, dtype=self.dtype
        ).numpy()
        pictures = [item.picture for item in items]
        results = [x[:, : p.height, : p.width] for x, p in zip(clean, pictures, strict=True)]
        for index, result in enumerate(results):
            if not np.isfinite(result).all():
                results[index] = InputError("the model's result is not finite")
        return results

    def write(self, item: _Item, result: Array) -> Any:
        return deliver(item.picture.with_float(result), item, self.options)


class Compress(_PictureVerb):
    """Picture -> the bytes of a latent file."""

    def read(self, source: Any) -> _Item:
        item = super().read(source)
        if item.picture.pixels.dtype == np.uint16:
            raise UnsupportedImage(
                f"{item.picture.name or 'the image'}: 16 bits per channel are not handled yet by compress; "
                f"convert it to 8 bits"
            )
        return item

    def run(self, items: list[_Item]) -> list[Any]:
        height, width = _padded_size(items[0].picture, self.multiple)
        x = _stack(items, height, width).clamp(0, 1).expand(-1, 3, -1, -1)
        return list(self.model.encode(x, self.options.quality, self.device, self.dtype))

    def write(self, item: _Item, result: Any) -> bytes:
        picture, quality = item.picture, self.options.quality
        data, crc = self.model.to_bytes(result, quality)
        alpha = None
        if picture.alpha is not None:
            alpha = encode_lossless(Picture(to_eight_bits(picture.alpha)[None]))
        coded = container.write(
            container.Coded(
                picture.width, picture.height, picture.pixels.shape[0], 8, self.model.label, self.model.digest,
                quality, crc, data, alpha, picture.icc, picture.exif, picture.xmp, picture.name, picture.format,
            )
        )  # fmt: skip
        return min((coded, *self._stored(item, len(coded))), key=len)

    def _stored(self, item: _Item, limit: int) -> Iterator[bytes]:
        """What may be smaller than `limit` without loss: the source file itself, and a lossless file of the pixels."""
        picture = item.picture
        if item.data is not None and len(item.data) < limit:
            yield container.write(container.Stored(item.data, picture.name, picture.format))
        if picture.pixels.dtype == np.uint8 and _flat(picture.pixels, limit):
            yield container.write(container.Stored(encode_lossless(picture), picture.name, picture.format))


def _flat(pixels: Array, limit: int) -> bool:
    """Whether lossless coding may come near `limit` bytes: tiny images, and where every 16th row deflates to little."""
    if pixels[0].size <= 64 * 64:
        return True
    rows = np.ascontiguousarray(pixels[:, ::16])
    deflated = len(zlib.compress(np.diff(rows, axis=2).tobytes(), 1))
    return bool(deflated * pixels.shape[1] / rows.shape[1] < 3 * limit)


class Decompress(_ModelVerb):
    """A latent file -> picture."""

    def read(self, source: Any) -> _Item:
        if not isinstance(source, str | os.PathLike | bytes | bytearray):
            raise UsageError(f"decompress takes latent files or their bytes, not {type(source).__name__}")
        if isinstance(source, bytes | bytearray):
            name, data = "the latent file", bytes(source)
        else:
            name, data = str(source), _read_file(source)
        latent = container.read(data, name)
        kind = self.options.kind
        if isinstance(latent, container.Stored):
            return _Item(replace(read_picture(latent.data, name), name=latent.name), kind, source, latent.data)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and latent.width * latent.height > limit:
            raise InputError(f"{name}: declares {latent.width}x{latent.height} pixels, more than is taken for honest")
        codec = self._codec(latent, name)
        try:
            symbols = codec.from_bytes(latent.data, latent.symbols_crc, latent.width, latent.height, latent.quality)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
        # Strides of zero: a place for the pixels that takes no memory before they are there.
        empty = np.broadcast_to(np.uint8(0), (latent.channels, latent.height, latent.width))
        alpha = None if latent.alpha is None else read_picture(latent.alpha, name).pixels[0]
        picture = Picture(empty, alpha, latent.icc, latent.exif, latent.xmp, latent.format, latent.name)
        if alpha is not None and alpha.shape != empty.shape[1:]:
            raise InputError(f"{name}: its alpha has another size than its pixels")
        return _Item(picture, kind, source, latent=_Latent(codec, symbols, latent.quality))

    def _codec(self, latent: container.Coded, name: str) -> Any:
        try:
            codec = self.model or zoo.get(latent.label, "compress", self.device)
        except ModelError as error:
            raise WrongWeights(f"{name}: was made with {latent.label}: {error}") from error
        if (codec.label, codec.digest) != (latent.label, latent.digest):
            raise WrongWeights(
                f"{name}: was made with {latent.label} ({latent.digest.hex()}), and these weights are {codec.label} "
                f"({codec.digest.hex()}); name the right ones with --model FILE"
            )
        return codec

    def key(self, item: _Item) -> Hashable:
        latent = item.latent
        return None if latent is None else (id(latent.codec), latent.quality, *self._size(item))

    @staticmethod
    def _size(item: _Item) -> tuple[int, int]:
        return _padded_size(item.picture, int(getattr(item.latent.codec, "multiple", 1)))

    def run(self, items: list[_Item]) -> list[Any]:
        latents = [item.latent for item in items]
        if latents[0] is None:
            return [None] * len(items)
        height, width = self._size(items[0])
        symbols = [latent.symbols for latent in latents]
        codec, quality = latents[0].codec, latents[0].quality
        return list(codec.decode(symbols, width, height, quality, self.device, self.dtype).numpy())

    def write(self, item: _Item, result: Array | None) -> Any:
        picture = item.picture
        if result is not None:
            x = result[:, : picture.height, : picture.width]
            x = x.mean(0, keepdims=True) if picture.pixels.shape[0] == 1 else x
            picture = picture.with_float(x)
        elif item.kind == "file" and WRITABLE.get(item.suffix or "") == picture.format:
            return item.data  # stored, and wanted in the very format it was stored in
        return deliver(picture, item, self.options)


# -- sources and results ------------------------------------------------------------------------------------------


def to_eight_bits(plane: Array) -> Array:
    """A plane of any of the three dtypes as uint8."""
    if plane.dtype == np.uint8:
        return plane
    if plane.dtype == np.uint16:
        return (plane >> 8).astype(np.uint8)
    return np.asarray(np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8))


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: can't be read ({error.strerror})") from error


def open_source(source: Any) -> _Item:
    """Anything that `process` takes as one picture, as an item. Raises `UsageError` for anything else."""
    if isinstance(source, str | os.PathLike):
        data = _read_file(source)
        return _Item(replace(read_picture(data, str(source)), name=Path(source).name), "pil", source, data)
    if isinstance(source, bytes | bytearray):
        return _Item(read_picture(bytes(source)), "bytes", source, bytes(source))
    if isinstance(source, Image.Image):
        return _Item(from_pil(source), "pil", source)
    if isinstance(source, np.ndarray):
        return _Item(_from_array(source), "numpy", source)
    if isinstance(source, Tensor):
        if source.dim() != 3 or source.shape[0] not in (1, 3, 4) or not source.is_floating_point():
            raise UsageError(f"a tensor must be [C,H,W] or [N,C,H,W] float, C 1, 3 or 4; this is {_shape(source)}")
        values = source.detach().float().cpu().numpy()
        alpha = values[3] if values.shape[0] == 4 else None
        return _Item(Picture(np.ascontiguousarray(values[:3]), alpha), "tensor", source)
    raise UsageError(f"a {type(source).__name__} is not something that aeimg takes as a picture")


def _shape(x: Any) -> str:
    return f"{list(x.shape)} {x.dtype}"


def _from_array(array: Array) -> Picture:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise UsageError(f"an array must be [H,W], [H,W,3] or [H,W,4]; this is {_shape(array)}")
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
    elif array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"an array must be uint8, uint16 or float; this is {_shape(array)}")
    if array.ndim == 2:
        return Picture(np.ascontiguousarray(array[None]))
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    return Picture(planes[:3], planes[3] if array.shape[2] == 4 else None)


def deliver(picture: Picture, item: _Item, options: Options) -> Any:
    """A picture as the kind that the caller wants."""
    if item.kind == "pil":
        return to_pil(picture)
    if item.kind in ("bytes", "file"):
        suffix = item.suffix or options.suffix or _suffix_of(picture.format)
        return encode_picture(picture, suffix, image_quality=options.image_quality)
    planes = picture.pixels if picture.alpha is None else np.concatenate([picture.pixels, picture.alpha[None]])
    if item.kind == "tensor":
        if planes.dtype != np.float32:
            planes = planes.astype(np.float32) / np.float32(np.iinfo(planes.dtype).max)
        result = torch.from_numpy(np.ascontiguousarray(planes))
        return result.to(item.origin.device, item.origin.dtype) if isinstance(item.origin, Tensor) else result
    array = np.ascontiguousarray(planes[0] if planes.shape[0] == 1 else planes.transpose(1, 2, 0))
    if isinstance(item.origin, np.ndarray) and np.issubdtype(item.origin.dtype, np.floating):
        return array.astype(item.origin.dtype)
    return array


def _suffix_of(kind: str) -> str:
    """The suffix of a Pillow format; PNG where aeimg does not write that format."""
    return next((suffix for suffix, name in WRITABLE.items() if name == kind), ".png")


# -- the door ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What `process` and the command line can be told; the words are the same. See `process`."""

    sigma: float | str = "auto"
    strength: float = 1.0
    quality: int = 50
    kind: str = "pil"
    format: str | None = None
    image_quality: int | None = None
    if_exists: str = "skip"
    on_error: str | None = None
    jobs: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        def check(sound: bool, message: str) -> None:
            if not sound:
                raise UsageError(message)

        try:
            sigma = 0.0 if self.sigma == "auto" else float(self.sigma)
        except (TypeError, ValueError):
            sigma = -1.0
        check(0 <= sigma <= 255, f"sigma must be 'auto' or a number of 0..255 (8-bit units), not {self.sigma!r}")
        check(0 <= self.strength <= 1, f"strength must lie in 0..1, not {self.strength!r}")
        check(self.quality in range(1, 101), f"quality must be a whole number of 1..100, not {self.quality!r}")
        kinds = ("pil", "numpy", "tensor", "bytes")
        check(self.kind in kinds, f"kind must be one of {', '.join(kinds)}, not {self.kind!r}")
        known = sorted({suffix.lstrip(".") for suffix in WRITABLE})
        check(self.format in (None, "keep", *known), f"format must be keep or one of {', '.join(known)}")
        check(self.image_quality is None or self.image_quality in range(1, 101), "image_quality must lie in 1..100")
        check(self.if_exists in ("skip", "overwrite", "error"), "if_exists must be skip, overwrite or error")
        check(self.on_error in (None, "continue", "stop"), "on_error must be continue or stop")
        check(self.jobs is None or self.jobs >= 1, "jobs must be at least 1")
        check(self.batch_size >= 1, "batch_size must be at least 1")

    @property
    def suffix(self) -> str | None:
        """The suffix that `format` stands for; None to keep that of the source."""
        return None if self.format in (None, "keep") else f".{self.format}"


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


_VERBS: dict[str, Any] = {"denoise": Denoise, "compress": Compress, "decompress": Decompress}


def _verb(task: str, model: Any, device: str, dtype: str, options: Options) -> Verb:
    place = zoo.pick_device(device)
    precision = zoo.pick_dtype(dtype, place)
    if task != "decompress":
        loaded = zoo.get(model, task, place)
    else:  # each latent file names its own model
        loaded = None if model is None else zoo.get(model, "compress", place)
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
        return _Written(item.origin.source.stat().st_size, len(data))


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
    todo = []
    for job in jobs:
        if options.if_exists != "overwrite" and job.target.exists():
            if options.if_exists == "error":
                raise OutputError(f"{job.target}: is there already; choose another folder, or --if-exists overwrite")
            summary.skipped += 1
        else:
            todo.append(job)
    from tqdm import tqdm

    with tqdm(total=len(todo), unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for outcome in _stream(todo, _ToFiles(verb), options):
            if outcome.error is not None:
                summary.failed.append((outcome.source.source, _reason(outcome.error)))
                if options.on_error == "stop":
                    break
            else:
                summary.done += 1
                summary.pixels += outcome.pixels
                summary.bytes_in += outcome.value.bytes_in
                summary.bytes_out += outcome.value.bytes_out
            bar.update()
            rate = summary.pixels / 1e6 / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{rate:.1f} MP/s" + (f", {len(summary.failed)} failed" if summary.failed else ""))
    summary.seconds = time.monotonic() - began
    return summary


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AeimgError) else f"{type(error).__name__}: {error}"
