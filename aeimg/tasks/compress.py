"""The task compress: picture -> the bytes of a latent file.

prepare   reads the picture and codes its alpha
run       a batch through the codec's analysis; several times, where a target stands for the quality
finish    entropy coding, and the latent file; or the stored source, where that is smaller
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import container, registry
from ..contract import Codec, PreparingCodec
from ..errors import UnsupportedImage
from ..images import Picture, encode_lossless
from ..manifest import digest
from ..metrics import SMALLEST_FOR_SSIM, bits_per_pixel, psnr, ssim
from ..pixels import to_array, to_eight_bits
from .options import CompressOptions
from .pictures import CODE_BYTES, COPIES, PictureItem, Result, batch_key, estimate, open_checked, stacked

Array = np.ndarray

PREPARED_PIXELS = 1 << 25
"""A larger picture is analysed anew for each quality that is tried, because its analysis would take much memory."""


@dataclass(frozen=True)
class CompressItem(PictureItem):
    """A picture, and its alpha as the latent file will hold it."""

    alpha: bytes | None
    """A greyscale image file."""

    @property
    def nbytes(self) -> int:
        """The bytes in memory, with those of the codes."""
        return super().nbytes + CODE_BYTES * self.work + len(self.alpha or b"")


@dataclass(frozen=True)
class Fidelity:
    """How near a decoded picture comes to its original."""

    psnr: float | None
    """In dB; None where nothing was lost."""
    ssim: float | None
    """None for pictures that are too small to have one."""


@dataclass(frozen=True)
class Encoded:
    """What the codec makes of one picture."""

    latent: Any
    """The codec's own."""
    quality: int
    """The quality at which it was encoded."""
    fidelity: Fidelity | None
    """What decoding it gives, where that was measured."""


@dataclass(frozen=True, kw_only=True)
class CompressResult(Result[bytes]):
    """A latent file."""

    model: str
    """The label of the codec."""
    quality: int
    """The quality at which the picture was encoded."""
    effort: int
    """The option."""
    stored: bool
    """Whether the file holds the source, or a lossless file of it, instead of a code."""
    bpp: float
    """Bits per pixel of the whole file."""
    fidelity: Fidelity | None
    """What decoding the file gives, where that was measured."""

    def figures(self) -> dict[str, Any]:
        measured = {} if self.fidelity is None else {"psnr": self.fidelity.psnr, "ssim": self.fidelity.ssim}
        return {
            "model": self.model, "quality": self.quality, "effort": self.effort, "stored": self.stored,
            "bpp": round(self.bpp, 5), **measured,
        }  # fmt: skip


class Compress:
    """See the module."""

    small = False

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        device: torch.device,
        dtype: torch.dtype,
        options: CompressOptions,
    ) -> None:
        self.asked, self.device, self.dtype, self.options = model, device, dtype, options
        self.model: Codec = registry.get(model, "compress", device)

    def recipe(self) -> str:
        """Returns what is equal for runs that make the same of the same input: by model and options."""
        o = self.options
        chosen = {
            "quality": o.quality, "target_bpp": o.target_bpp, "target_psnr": o.target_psnr, "max_bytes": o.max_bytes,
            "effort": o.effort,
        }  # fmt: skip
        models = [(self.model.label, self.model.digest.hex())]
        return digest(json.dumps(["Compress", models, chosen, str(self.dtype)], sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by its header."""
        held = estimate(source)
        return held + CODE_BYTES * held // COPIES

    def prepare(self, source: object) -> CompressItem:
        """Reads a picture and codes its alpha."""
        opened = open_checked(source)
        alpha = opened.picture.alpha
        if alpha is None:
            return CompressItem(opened, None)
        plane = alpha if alpha.dtype == np.uint16 else to_eight_bits(alpha)
        return CompressItem(opened, encode_lossless(Picture(plane[None])))

    def key(self, item: CompressItem) -> Hashable:
        """Returns channels, depth and padded size."""
        return batch_key(item.picture, self.model.multiple)

    def run(self, items: list[CompressItem]) -> list[Encoded]:
        """Returns the latent of each picture, at the quality that the options ask for."""
        x = stacked(items, self.model.multiple)
        o = self.options
        if o.target_bpp is not None or o.target_psnr is not None or o.max_bytes is not None:
            return [self._reach_target(item, one) for item, one in zip(items, x[:, None], strict=True)]
        latents = self._encode(x, o.quality)
        if not o.measure:
            return [Encoded(latent, o.quality, None) for latent in latents]
        decoded = self._decode(latents, x, o.quality)
        return [
            Encoded(latent, o.quality, _measure(item.picture, back))
            for item, latent, back in zip(items, latents, decoded, strict=True)
        ]

    def finish(self, item: CompressItem, raw: Encoded) -> CompressResult:
        """Codes the latent, and returns the smallest file that holds the picture."""
        coded = self._file(item, raw.latent, raw.quality)
        strip = container.is_strip(item.picture.width, item.picture.height)
        candidates = [*_stored(item, 1 << 62 if strip else len(coded)), *(() if strip else (coded,))]
        if not candidates:
            raise UnsupportedImage(
                f"{item.label}: is too thin to be coded; give it as a file, or as uint8, to store it"
            )
        data = min(candidates, key=len)
        stored = data is not coded
        limit = self.options.max_bytes
        if limit is not None and len(data) > limit:
            raise UnsupportedImage(
                f"{item.label}: can't be made smaller than {len(data)} bytes (quality {raw.quality}); "
                f"{limit} were asked for"
            )
        lossless = stored and raw.fidelity is not None
        return CompressResult(
            value=data,
            width=item.picture.width,
            height=item.picture.height,
            warnings=item.picture.notes,
            model=self.model.label,
            quality=raw.quality,
            effort=self.options.effort,
            stored=stored,
            bpp=bits_per_pixel(len(data), item.picture.width, item.picture.height),
            fidelity=Fidelity(None, 1.0) if lossless else raw.fidelity,
        )

    # -- one quality -------------------------------------------------------------------------------------------

    def _encode(self, x: Any, quality: int) -> list[Any]:
        return list(self.model.encode(x, quality, self.device, self.dtype, self.options.effort))

    def _decode(self, latents: list[Any], x: Tensor, quality: int) -> Array:
        depth = 16 if x.dtype == torch.uint16 else 8
        shape = (x.shape[1], x.shape[2], x.shape[3])
        decoded: Array = self.model.decode(latents, shape, quality, self.device, self.dtype, depth).numpy()
        return decoded

    def _file(self, item: CompressItem, latent: Any, quality: int) -> bytes:
        picture = item.picture
        return container.write(
            container.Coded(
                width=picture.width,
                height=picture.height,
                channels=picture.pixels.shape[0],
                depth=16 if picture.pixels.dtype == np.uint16 else 8,
                label=self.model.label,
                digest=self.model.digest,
                quality=quality,
                data=self.model.to_bytes(latent, quality),
                alpha=item.alpha,
                metadata=picture.metadata,
                name=picture.name,
                format=picture.format,
            )
        )

    # -- a target instead of a quality -------------------------------------------------------------------------

    def _reach_target(self, item: CompressItem, x: Tensor) -> Encoded:
        """Returns the latent of the one picture `x` at the quality that reaches the target.

        For a size, that is the highest quality that keeps to it; for a PSNR, the lowest one that reaches it. Where none
        does, it is the nearest one: `finish` decides whether that is enough.
        """
        o = self.options
        source: Any = x
        if isinstance(self.model, PreparingCodec) and item.work <= PREPARED_PIXELS:
            source = self.model.prepare(x, self.device, self.dtype)
        latents: dict[int, Any] = {}

        def encode(quality: int) -> Any:
            if quality not in latents:
                (latents[quality],) = self._encode(source, quality)
            return latents[quality]

        def log_size(quality: int) -> float:
            return math.log(len(self._file(item, encode(quality), quality)))

        def fidelity(quality: int) -> float:
            (decoded,) = self._decode([encode(quality)], x, quality)
            return psnr(*_side_by_side(item.picture, decoded))

        if o.target_psnr is not None:
            target = o.target_psnr
            quality = 1 + highest_below(lambda q: fidelity(q) - target, slope=0.15)
        else:
            limit = o.max_bytes if o.max_bytes is not None else int((o.target_bpp or 0) * item.work / 8)
            quality = highest_below(lambda q: log_size(q) - math.log(max(limit, 1)) - 1e-9, slope=0.032)
        quality = min(max(quality, 1), 100)
        latent = encode(quality)
        measured = _measure(item.picture, self._decode([latent], x, quality)[0]) if o.measure else None
        return Encoded(latent, quality, measured)


def highest_below(excess: Callable[[int], float], slope: float) -> int:
    """Returns the highest quality at which `excess`, which rises with it, is below zero; 0 where it is nowhere.

    Regula falsi, bounded by bisection: `slope` is the rise per quality that is expected in the beginning.
    """
    low: tuple[int, float | None] = (0, None)
    high: tuple[int, float | None] = (101, None)
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


# -- comparing with the original -----------------------------------------------------------------------------


def _side_by_side(picture: Picture, decoded: Array) -> tuple[Array, Array]:
    """Returns picture and decoded picture as `[H,W]` or `[H,W,3]`, in the integers that were decoded."""
    decoded = decoded[:, : picture.height, : picture.width]
    pixels = picture.pixels
    if pixels.dtype == np.float32:
        pixels = to_eight_bits(pixels)
    return to_array(pixels), to_array(decoded)


def _measure(picture: Picture, decoded: Array) -> Fidelity:
    pixels, decoded = _side_by_side(picture, decoded)
    similar = ssim(pixels, decoded) if min(pixels.shape[:2]) >= SMALLEST_FOR_SSIM else math.nan
    ratio = psnr(pixels, decoded)
    return Fidelity(
        round(ratio, 3) if math.isfinite(ratio) else None, round(similar, 5) if math.isfinite(similar) else None
    )


# -- storing instead of coding -------------------------------------------------------------------------------


def _stored(item: CompressItem, limit: int) -> Iterator[bytes]:
    """Yields lossless latent files that may be smaller than `limit`: of the source file itself, of the pixels."""
    picture, source = item.picture, item.opened.data
    if source is not None and len(source) < limit:
        yield container.write(container.Stored(source, picture.name, picture.format))
    plain = picture.pixels.dtype == np.uint8 or (picture.mode == "L" and picture.pixels.dtype == np.uint16)
    if plain and _flat(picture.pixels, limit):
        yield container.write(container.Stored(encode_lossless(picture), picture.name, picture.format))


def _flat(pixels: Array, limit: int) -> bool:
    """Returns whether lossless coding may come near `limit` bytes: for tiny images, and where every 16th row deflates
    well."""
    if pixels[0].size <= 64 * 64:
        return True
    rows = np.ascontiguousarray(pixels[:, ::16])
    deflated = len(zlib.compress(np.diff(rows, axis=2).tobytes(), 1))
    return bool(deflated * pixels.shape[1] / rows.shape[1] < 3 * limit)
