"""What is done to each picture: the verbs that `engine` streams items through, the items, and the words for options.

    open_source ──> Item ──> Denoise, Compress or Decompress: read, key, run, write ──> deliver

`read` and `write` run in threads, `run` in the caller's thread with a batch of items of equal `key`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import container, registry
from .errors import InputError, ModelError, UnreadableImage, UnsupportedImage, UsageError, WrongWeights
from .images import (
    LOSSY,
    WRITABLE,
    Picture,
    encode_lossless,
    encode_picture,
    from_pil,
    pixel_limit,
    read_picture,
    to_eight_bits,
    to_pil,
)
from .manifest import digest
from .metrics import SMALLEST_FOR_SSIM, bits_per_pixel, psnr, ssim
from .noise import TILE, check, denoise, estimate_sigma, measure_noise
from .paths import TEMPLATE, Selection, check_template
from .stream import MEMORY, out_of_memory
from .tiles import padded

Array = np.ndarray

log = logging.getLogger("aeimg")


@dataclass(frozen=True)
class Options:
    """What `process` and the command line can be told; the words are the same. See `process`."""

    sigma: float | str = "auto"
    strength: float = 1.0
    quality: int = 50
    target_bpp: float | None = None
    target_psnr: float | None = None
    max_bytes: int | None = None
    effort: int = 1
    percentile: float = 99.0
    measure: bool = False
    kind: str = "pil"
    format: str | None = None
    image_quality: int | Mapping[str, int] | None = None
    name: str = TEMPLATE
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    follow_symlinks: bool = False
    if_exists: str = "skip"
    on_error: str | None = None
    jobs: int | None = None
    batch_size: int = 8
    memory: int | str = MEMORY

    def __post_init__(self) -> None:
        def check(sound: bool, message: str) -> None:
            if not sound:
                raise UsageError(message)

        try:
            sigma = 0.0 if self.sigma == "auto" else float(self.sigma)
        except (TypeError, ValueError):
            sigma = -1.0
        check(0 <= sigma <= 255, f"sigma must be 'auto' or a number of 0..255 (8-bit units), not {self.sigma!r}")
        if self.sigma != "auto":  # "25" and 25 are one option
            object.__setattr__(self, "sigma", sigma)
        check(0 <= self.strength <= 1, f"strength must lie in 0..1, not {self.strength!r}")
        check(self.quality in range(1, 101), f"quality must be a whole number of 1..100, not {self.quality!r}")
        targets = {name: getattr(self, name) for name in ("target_bpp", "target_psnr", "max_bytes")}
        given = [name for name, value in targets.items() if value is not None]
        check(len(given) <= 1, f"only one of {', '.join(targets)} can be aimed at, not {' and '.join(given)}")
        for name in given:
            check(0 < targets[name] < math.inf, f"{name} must be a number above 0, not {targets[name]!r}")
        check(0 <= self.percentile <= 100, f"percentile must lie in 0..100, not {self.percentile!r}")
        check(self.effort in range(1, 10), f"effort must be a whole number of 1..9, not {self.effort!r}")
        kinds = ("pil", "numpy", "tensor", "bytes")
        check(self.kind in kinds, f"kind must be one of {', '.join(kinds)}, not {self.kind!r}")
        known = sorted({suffix.lstrip(".") for suffix in WRITABLE})
        check(self.format in (None, "keep", *known), f"format must be keep or one of {', '.join(known)}")
        levels = self.image_quality if isinstance(self.image_quality, Mapping) else {"jpg": self.image_quality}
        for suffix, level in levels.items():
            check(f".{suffix}" in WRITABLE, f"image_quality: {suffix} is no format that aeimg writes")
            check(level is None or level in range(1, 101), f"image_quality must lie in 1..100, not {level!r}")
        check_template(self.name)
        for field_name in ("include", "exclude"):
            patterns = getattr(self, field_name)
            check(not isinstance(patterns, str), f"{field_name} takes a list of patterns, not {patterns!r}")
        check(self.memory_bytes >= 1, f"memory must be a number of bytes, or like 500M or 4G, not {self.memory!r}")
        check(self.if_exists in ("skip", "overwrite", "error"), "if_exists must be skip, overwrite or error")
        check(self.on_error in (None, "continue", "stop"), "on_error must be continue or stop")
        check(self.jobs is None or self.jobs >= 1, "jobs must be at least 1")
        check(self.batch_size >= 1, "batch_size must be at least 1")

    @property
    def memory_bytes(self) -> int:
        """What `memory` stands for; 0 where it is not understood."""
        units = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(self.memory).strip(), re.IGNORECASE)
        return int(float(found[1]) * 2 ** units[found[2].upper()]) if found else 0

    @property
    def selection(self) -> Selection:
        """Which files below folders are taken."""
        return Selection(self.include, self.exclude, self.follow_symlinks)

    def quality_of(self, suffix: str) -> int | None:
        """`image_quality` for files of that suffix."""
        if not isinstance(self.image_quality, Mapping):
            return self.image_quality
        kinds = {WRITABLE[f".{name}"]: level for name, level in self.image_quality.items()}
        return kinds.get(WRITABLE.get(suffix.lower(), ""))

    @property
    def suffix(self) -> str | None:
        """The suffix that `format` stands for; None to keep that of the source."""
        return None if self.format in (None, "keep") else f".{self.format}"


SMALLEST_TILE = 256
"""Of a denoiser that lacks memory, in pixels."""
PREPARED_PIXELS = 1 << 25
"""Larger pictures are analysed anew for each quality that is tried, rather than kept analysed."""


# -- the verbs ---------------------------------------------------------------------------------------------------


@dataclass
class Item:
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
    choice: Any = None
    """Which denoiser it gets: a `Choice`."""
    alpha: bytes | None = None
    """The alpha of a picture to be compressed, as it will be stored."""
    latent: Any = None
    """What a latent file held: a `Latent`, or None where it stored an image file."""
    held: bytes | None = None
    """That image file."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the verb has to say of it: model, quality, figures, warnings."""

    @property
    def pixels(self) -> int:
        return self.picture.width * self.picture.height

    @property
    def nbytes(self) -> int:
        # The result is as large, and so is a copy that is padded; floats are made tile by tile.
        return 3 * self.picture.pixels.nbytes + len(self.data or b"")


@dataclass(frozen=True)
class Latent:
    codec: Any
    symbols: Any
    quality: int


def _multiple(model: Any) -> int:
    """What `model` wants heights and widths to be multiples of."""
    return int(getattr(model, "multiple", 1))


def _padded_size(picture: Picture, multiple: int) -> tuple[int, int]:
    return padded(picture.height, multiple), padded(picture.width, multiple)


def stacked(items: list[Item], multiple: int, *, mirrored: bool = False) -> Tensor:
    """The pixels of items of equal padded size as one batch; see `tiles.pad` and `tiles.mirror`."""
    height, width = _padded_size(items[0].picture, multiple)
    pixels = [_continued(item.picture.pixels, height, width, "reflect" if mirrored else "edge") for item in items]
    # One large picture is not copied; one that may only be read must be, torch knows no such arrays.
    alone = len(pixels) == 1 and pixels[0].flags.writeable
    return torch.from_numpy(pixels[0][None] if alone else np.stack(pixels))


class _ModelVerb:
    """A verb that runs a model."""

    options_used: tuple[str, ...] = ()
    """The options that decide what a result holds."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, options: Options) -> None:
        self.model, self.device, self.dtype, self.options = model, device, dtype, options
        self.asked = ""
        """The name of the model that was asked for, if one was."""

    @property
    def running(self) -> list[Any]:
        """The models that results may come from; empty where the input names its own."""
        return [] if self.model is None else [self.model]

    def recipe(self) -> str:
        """Equal for runs that make the same of the same input: by task, models and options."""
        models = [
            # Of models that state no digest, one function is as good as another: then their names tell them apart.
            (getattr(model, "label", type(model).__qualname__), getattr(model, "digest", b"").hex() or self.asked)
            for model in self.running
        ]
        chosen = {name: getattr(self.options, name) for name in self.options_used}
        about = [type(self).__name__, models, chosen, str(self.dtype)]
        return digest(json.dumps(about, sort_keys=True, default=str).encode())


class PictureVerb(_ModelVerb):
    """What denoising and compression share: reading pictures of any kind, and gathering them by padded size."""

    def read(self, source: Any) -> Item:
        item = open_source(source)
        pixels = item.picture.pixels
        if not item.pixels:
            raise InputError(f"{item.picture.name or 'the image'}: has no pixels")
        if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
            raise InputError(f"{item.picture.name or 'the image'}: holds values that are not finite")
        return item

    def model_of(self, item: Item) -> Any:
        """The model that `item` goes through."""
        return self.model

    def key(self, item: Item) -> Hashable:
        pixels = item.picture.pixels
        return (pixels.shape[0], pixels.dtype, *_padded_size(item.picture, _multiple(self.model_of(item))))


@dataclass(frozen=True)
class Choice:
    """Which denoiser a picture gets, told which level, and why."""

    model: str | None
    """None: the one that was asked for."""
    sigma: float
    why: str


def choose(picture: Picture, sigma: float | str, *, free: bool) -> Choice:
    """The denoiser for `picture`, told `sigma` or "auto"; `free` where no model was asked for.

    A told level means white noise of that level. Without one, strong noise on which JPEG has left marks is for the
    model that knows such; noise that measures as white (more strictly so in a file of a format that loses something)
    is for what `registry.DEFAULTS` names; everything else, where no level could be trusted, is for the blind model.
    """
    if sigma != "auto":
        return Choice(registry.WHITE if free else None, float(sigma), "told sigma")
    if not free:
        return Choice(None, estimate_sigma(picture.pixels), "asked for")
    noise = measure_noise(picture.pixels)
    lossy = picture.format in LOSSY
    if noise.marked:
        return Choice(registry.JPEG, noise.sigma, f"JPEG has left marks on strong noise (steps of {noise.step:g})")
    if noise.white(strictly=lossy):
        return Choice(registry.WHITE, noise.sigma, f"white noise of sigma {noise.sigma:.1f}")
    return Choice(
        registry.BLIND, noise.sigma, "no white noise found" + (f" in this {picture.format} file" if lossy else "")
    )


class Denoise(PictureVerb):
    """Picture -> picture."""

    options_used = ("sigma", "strength", "format", "image_quality")

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, options: Options) -> None:
        super().__init__(model, device, dtype, options)
        self.tile = TILE
        # By name; None is the one that was asked for, if there was one.
        self.models = {None: model} if model is not None else {
            name: registry.get(registry.BUILTINS[name][1], "denoise", device) for name in registry.CHOICES
        }  # fmt: skip

    def read(self, source: Any) -> Item:
        item = super().read(source)
        item.choice = choose(item.picture, self.options.sigma, free=None not in self.models)
        return item

    @property
    def running(self) -> list[Any]:
        return list(self.models.values())

    def model_of(self, item: Item) -> Any:
        return self.models[item.choice.model]

    def key(self, item: Item) -> Hashable:
        return (item.choice.model, *super().key(item))  # type: ignore[misc]

    def run(self, items: list[Item]) -> list[Array]:
        model = self.model_of(items[0])
        x = stacked(items, _multiple(model), mirrored=True)
        sigma = torch.tensor([item.choice.sigma for item in items])
        clean = self._in_tiles(model, x, sigma, alone=len(items) == 1).numpy()
        pictures = [item.picture for item in items]
        return [x[:, : p.height, : p.width] for x, p in zip(clean, pictures, strict=True)]

    def _in_tiles(self, model: Any, x: Tensor, sigma: Tensor, *, alone: bool) -> Tensor:
        """The batch denoised; where a single picture lacks memory, in tiles of half the side from there on."""
        while True:
            try:
                return denoise(
                    model, x, sigma, self.options.strength, device=self.device, dtype=self.dtype, tile=self.tile
                )
            except Exception as error:
                if not (alone and out_of_memory(error)):
                    raise  # of a batch: to be tried in halves
                if self.tile <= SMALLEST_TILE or getattr(model, "halo", None) is None:
                    raise InputError(f"memory does not suffice, not even in tiles of {self.tile} pixels") from error
                self.tile //= 2
                log.info("memory does not suffice: going on in tiles of %d pixels", self.tile)

    def write(self, item: Item, result: Array) -> Any:
        seen, model = check(item.picture.pixels, result), self.model_of(item)
        item.about |= {
            "model": getattr(model, "label", type(model).__name__), "why": item.choice.why,
            "sigma": None if getattr(model, "blind", False) else round(item.choice.sigma, 2),
            "strength": self.options.strength,
            "noise_before": round(seen.noise_before, 2), "noise_after": round(seen.noise_after, 2),
            "shift": [round(value, 3) for value in seen.shift], "structure": round(seen.structure, 3),
        }  # fmt: skip
        warnings = seen.warnings(self.options.strength)
        if warnings:
            item.about["warnings"] = warnings
        return deliver(replace(item.picture, pixels=result), item, self.options)


class Compress(PictureVerb):
    """Picture -> the bytes of a latent file."""

    options_used = ("quality", "target_bpp", "target_psnr", "max_bytes", "effort")

    def read(self, source: Any) -> Item:
        item = super().read(source)
        alpha = item.picture.alpha
        if alpha is not None:
            plane = alpha if alpha.dtype == np.uint16 else to_eight_bits(alpha)
            item.alpha = encode_lossless(Picture(plane[None]))
        return item

    def run(self, items: list[Item]) -> list[Any]:
        x = stacked(items, _multiple(self.model))
        if self._aims:
            return [self._aim(item, one) for item, one in zip(items, x[:, None], strict=True)]
        quality = self.options.quality
        latents = self._encode(x, quality)
        if self.options.measure:
            for item, decoded in zip(items, self._decode(latents, x, quality), strict=True):
                self._measure(item, decoded)
        return [(latent, quality) for latent in latents]

    def write(self, item: Item, result: Any) -> bytes:
        latent, quality = result
        coded = self._file(item, latent, quality)
        data = min((coded, *self._stored(item, len(coded))), key=len)
        stored = data is not coded
        item.about |= {
            "model": self.model.label, "quality": quality, "effort": self.options.effort, "stored": stored,
            "bpp": round(bits_per_pixel(len(data), item.picture.width, item.picture.height), 5),
        }  # fmt: skip
        if stored:  # without loss
            item.about |= {name: value for name, value in (("psnr", None), ("ssim", 1.0)) if name in item.about}
        limit = self.options.max_bytes
        if limit is not None and len(data) > limit:
            raise UnsupportedImage(
                f"{item.picture.name or 'the image'}: can't be made smaller than {len(data)} bytes "
                f"(quality {quality}); {limit} were asked for"
            )
        return data

    # -- one quality ------------------------------------------------------------------------------------------

    def _encode(self, x: Any, quality: int) -> list[Any]:
        return list(self.model.encode(x, quality, self.device, self.dtype, self.options.effort))

    def _decode(self, latents: list[Any], x: Tensor, quality: int) -> Array:
        depth = 16 if x.dtype == torch.uint16 else 8
        shape = (x.shape[1], x.shape[2], x.shape[3])
        return self.model.decode(latents, shape, quality, self.device, self.dtype, depth).numpy()  # type: ignore[no-any-return]

    @staticmethod
    def _against(item: Item, decoded: Array) -> tuple[Array, Array]:
        """Picture and decoded picture `[H,W]` or `[H,W,3]`, in the integers that were decoded."""
        picture = item.picture
        decoded = decoded[:, : picture.height, : picture.width]
        pixels = picture.pixels
        if pixels.dtype == np.float32:
            pixels = to_eight_bits(pixels)
        return np.squeeze(pixels.transpose(1, 2, 0), 2) if len(pixels) == 1 else pixels.transpose(1, 2, 0), (
            decoded[0] if len(decoded) == 1 else decoded.transpose(1, 2, 0)
        )

    def _measure(self, item: Item, decoded: Array) -> None:
        pixels, decoded = self._against(item, decoded)
        similar = ssim(pixels, decoded) if min(pixels.shape[:2]) >= SMALLEST_FOR_SSIM else math.nan
        figures = {"psnr": round(psnr(pixels, decoded), 3), "ssim": round(similar, 5)}
        item.about |= {name: value if math.isfinite(value) else None for name, value in figures.items()}

    def _file(self, item: Item, latent: Any, quality: int) -> bytes:
        picture = item.picture
        depth = 16 if picture.pixels.dtype == np.uint16 else 8
        return container.write(
            container.Coded(
                picture.width, picture.height, picture.pixels.shape[0], depth, self.model.label, self.model.digest,
                quality, self.model.to_bytes(latent, quality), item.alpha, picture.icc, picture.exif, picture.xmp,
                picture.name, picture.format,
            )
        )  # fmt: skip

    def _stored(self, item: Item, limit: int) -> Iterator[bytes]:
        """What may be smaller than `limit` without loss: the source file itself, and a lossless file of the pixels."""
        picture = item.picture
        if item.data is not None and len(item.data) < limit:
            yield container.write(container.Stored(item.data, picture.name, picture.format))
        plain = picture.pixels.dtype == np.uint8 or (picture.mode == "L" and picture.pixels.dtype == np.uint16)
        if plain and _flat(picture.pixels, limit):
            yield container.write(container.Stored(encode_lossless(picture), picture.name, picture.format))

    # -- a quality to be found --------------------------------------------------------------------------------

    @property
    def _aims(self) -> bool:
        o = self.options
        return o.target_bpp is not None or o.target_psnr is not None or o.max_bytes is not None

    def _aim(self, item: Item, x: Tensor) -> tuple[Any, int]:
        """The latent, and the quality, of the one picture `x` that does what the options ask for.

        For a size, the highest quality that keeps to it; for a PSNR, the lowest that reaches it. Where none does,
        the nearest there is: `write` decides whether that will do.
        """
        o = self.options
        source: Any = x
        if hasattr(self.model, "prepare") and item.pixels <= PREPARED_PIXELS:
            source = self.model.prepare(x, self.device, self.dtype)
        latents: dict[int, Any] = {}

        def size(quality: int) -> float:
            (latents[quality],) = self._encode(source, quality)
            return math.log(len(self._file(item, latents[quality], quality)))

        def fidelity(quality: int) -> float:
            (latents[quality],) = self._encode(source, quality)
            (decoded,) = self._decode([latents[quality]], x, quality)
            return psnr(*self._against(item, decoded))

        if o.target_psnr is not None:
            quality = 1 + _highest(lambda q: fidelity(q) - o.target_psnr, slope=0.15)  # type: ignore[operator]
        else:
            limit = o.max_bytes if o.max_bytes is not None else int(o.target_bpp * item.pixels / 8)  # type: ignore[operator]
            quality = _highest(lambda q: size(q) - math.log(max(limit, 1)) - 1e-9, slope=0.032)
        quality = min(max(quality, 1), 100)
        if quality not in latents:
            (latents[quality],) = self._encode(source, quality)
        if o.measure:
            self._measure(item, self._decode([latents[quality]], x, quality)[0])
        return latents[quality], quality


def _highest(excess: Callable[[int], float], slope: float) -> int:
    """The highest quality at which `excess`, which rises with it, is below zero; 0 where it is nowhere.

    By bisection that guesses along a line: `slope` is what to expect of it in the beginning.
    """
    low, high = (0, None), (101, None)  # type: tuple[int, float | None], tuple[int, float | None]
    guess = 50
    while high[0] - low[0] > 1:
        guess = min(max(guess, low[0] + 1), high[0] - 1)
        value = excess(guess)
        if value < 0:
            low = (guess, value)
        else:
            high = (guess, value)
        if low[1] is not None and high[1] is not None:
            slope = max((high[1] - low[1]) / (high[0] - low[0]), 1e-6)
        guess = round(guess - value / slope)
    return low[0]


def _continued(pixels: Array, height: int, width: int, how: Literal["edge", "reflect"]) -> Array:
    """`pixels` `[C,h,w]` continued downwards and to the right."""
    missing = (height - pixels.shape[1], width - pixels.shape[2])
    return np.pad(pixels, ((0, 0), (0, missing[0]), (0, missing[1])), mode=how) if any(missing) else pixels


def _flat(pixels: Array, limit: int) -> bool:
    """Whether lossless coding may come near `limit` bytes: tiny images, and where every 16th row deflates to little."""
    if pixels[0].size <= 64 * 64:
        return True
    rows = np.ascontiguousarray(pixels[:, ::16])
    deflated = len(zlib.compress(np.diff(rows, axis=2).tobytes(), 1))
    return bool(deflated * pixels.shape[1] / rows.shape[1] < 3 * limit)


class Decompress(_ModelVerb):
    """A latent file -> picture."""

    options_used = ("format", "image_quality")

    def read(self, source: Any) -> Item:
        if not isinstance(source, str | os.PathLike | bytes | bytearray):
            raise UsageError(f"decompress takes latent files or their bytes, not {type(source).__name__}")
        if isinstance(source, bytes | bytearray):
            name, data = "the latent file", bytes(source)
        else:
            name, data = str(source), _read_file(source)
        latent = container.read(data, name)
        kind = self.options.kind
        if isinstance(latent, container.Stored):
            return Item(
                replace(read_picture(latent.data, name), name=latent.name), kind, source, data, held=latent.data
            )
        if latent.width * latent.height > pixel_limit():
            raise InputError(f"{name}: declares {latent.width}x{latent.height} pixels, more than is taken for honest")
        codec = self._codec(latent, name)
        try:
            symbols = codec.from_bytes(latent.data, latent.width, latent.height, latent.quality)
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error
        # Strides of zero: a place for the pixels that takes no memory before they are there.
        zero = np.uint8(0) if latent.depth == 8 else np.uint16(0)
        empty = np.broadcast_to(zero, (latent.channels, latent.height, latent.width))
        alpha = None if latent.alpha is None else read_picture(latent.alpha, name).pixels[0]
        picture = Picture(empty, alpha, latent.icc, latent.exif, latent.xmp, latent.format, latent.name)
        if alpha is not None and (alpha.shape, alpha.dtype) != (empty.shape[1:], empty.dtype):
            raise InputError(f"{name}: its alpha has another size or depth than its pixels")
        return Item(picture, kind, source, data, latent=Latent(codec, symbols, latent.quality))

    def _codec(self, latent: container.Coded, name: str) -> Any:
        try:
            codec = self.model or registry.get(latent.label, "compress", self.device)
        except ModelError as error:
            raise WrongWeights(f"{name}: was made with {latent.label}: {error}") from error
        if (codec.label, codec.digest) != (latent.label, latent.digest):
            raise WrongWeights(
                f"{name}: was made with {latent.label} ({latent.digest.hex()}), and these weights are {codec.label} "
                f"({codec.digest.hex()}); name the right ones with --model FILE"
            )
        return codec

    def key(self, item: Item) -> Hashable:
        latent = item.latent
        if latent is None:
            return None
        pixels = item.picture.pixels
        return (id(latent.codec), latent.quality, pixels.shape[0], pixels.dtype, *self._size(item))

    @staticmethod
    def _size(item: Item) -> tuple[int, int]:
        return _padded_size(item.picture, _multiple(item.latent.codec))

    def run(self, items: list[Item]) -> list[Any]:
        latents = [item.latent for item in items]
        if latents[0] is None:
            return [None] * len(items)
        pixels = items[0].picture.pixels
        shape = (pixels.shape[0], *self._size(items[0]))
        codec, quality, depth = latents[0].codec, latents[0].quality, 8 * pixels.itemsize
        symbols = [latent.symbols for latent in latents]
        return list(codec.decode(symbols, shape, quality, self.device, self.dtype, depth).numpy())

    def write(self, item: Item, result: Array | None) -> Any:
        picture = item.picture
        if result is not None:
            item.about |= {"model": item.latent.codec.label, "quality": item.latent.quality}
            picture = replace(picture, pixels=result[:, : picture.height, : picture.width])
        elif item.kind == "file" and WRITABLE.get(item.suffix or "") == picture.format:
            return item.held  # stored, and wanted in the very format it was stored in
        return deliver(picture, item, self.options)


# -- sources and results ------------------------------------------------------------------------------------------


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path}: can't be read ({error.strerror})") from error


def open_source(source: Any) -> Item:
    """Anything that `process` takes as one picture, as an item. Raises `UsageError` for anything else."""
    if isinstance(source, str | os.PathLike):
        data = _read_file(source)
        return Item(replace(read_picture(data, str(source)), name=Path(source).name), "pil", source, data)
    if isinstance(source, bytes | bytearray):
        return Item(read_picture(bytes(source)), "bytes", source, bytes(source))
    if isinstance(source, Image.Image):
        return Item(from_pil(source), "pil", source)
    if isinstance(source, np.ndarray):
        return Item(_from_array(source), "numpy", source)
    if isinstance(source, Tensor):
        if source.dim() != 3 or source.shape[0] not in (1, 3, 4) or not source.is_floating_point():
            raise UsageError(f"a tensor must be [C,H,W] or [N,C,H,W] float, C 1, 3 or 4; this is {_shape(source)}")
        values = source.detach().float().cpu().numpy()
        alpha = values[3] if values.shape[0] == 4 else None
        return Item(Picture(np.ascontiguousarray(values[:3]), alpha), "tensor", source)
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


def deliver(picture: Picture, item: Item, options: Options) -> Any:
    """A picture as the kind that the caller wants."""
    if item.kind == "pil":
        return to_pil(picture)
    if item.kind in ("bytes", "file"):
        suffix = item.suffix or options.suffix or suffix_of(picture.format)
        return encode_picture(picture, suffix, image_quality=options.quality_of(suffix))
    planes = picture.planes
    if item.kind == "tensor":
        if planes.dtype != np.float32:
            planes = planes.astype(np.float32) / np.float32(np.iinfo(planes.dtype).max)
        result = torch.from_numpy(np.ascontiguousarray(planes))
        return result.to(item.origin.device, item.origin.dtype) if isinstance(item.origin, Tensor) else result
    array = np.ascontiguousarray(planes[0] if planes.shape[0] == 1 else planes.transpose(1, 2, 0))
    if isinstance(item.origin, np.ndarray) and np.issubdtype(item.origin.dtype, np.floating):
        return array.astype(item.origin.dtype)
    return array


def suffix_of(kind: str) -> str:
    """The suffix of a Pillow format; PNG where aeimg does not write that format."""
    return next((suffix for suffix, name in WRITABLE.items() if name == kind), ".png")
