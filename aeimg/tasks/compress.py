"""The task compress: picture -> the bytes of a latent file.

prepare   reads the picture and codes its alpha
run       a batch through the codec's analysis; several times, where a target stands for the quality
finish    entropy coding, and the latent file; or the stored source, where that is smaller, or where it costs little and
          the picture is small and would come back badly
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import container, registry
from ..contract import Codec, PreparingCodec
from ..errors import UnsupportedImage, UsageError
from ..images import Picture, encode_lossless
from ..manifest import digest
from ..metrics import SMALLEST_FOR_SSIM, bits_per_pixel, has_ssimulacra2, psnr, ssim, ssimulacra2
from ..pixels import as_float, check_tensor, like_tensor, padded, to_array, to_eight_bits
from .options import CompressOptions
from .pictures import CODE_BYTES, COPIES, PictureItem, Result, batch_key, estimate, open_checked, stacked

Array = np.ndarray

PREPARED_PIXELS = 1 << 25
"""A larger picture is analysed anew for each quality that is tried, because its analysis would take much memory."""

TINY, SMALL = 16 * 16, 64 * 64
"""Up to so many pixels a picture is tiny or small: storing it without loss costs little, and much of what the network
sees of it is padding."""
POOR = 30.0
"""A small picture that would come back with a lower PSNR than this, in dB, or below the target, is stored where that
costs at most twice as many bytes, a tiny one where it costs at most `EXTRA` bytes more."""
EXTRA = 1024


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
    ssimulacra2: float | None
    """None where the package `ssimulacra2` is missing."""

    def figures(self) -> dict[str, Any]:
        """Returns the same for the summary of a run."""
        scored = {} if self.ssimulacra2 is None else {"ssimulacra2": self.ssimulacra2}
        return {"psnr": self.psnr, "ssim": self.ssim, **scored}


@dataclass(frozen=True)
class Encoded:
    """What the codec makes of one picture."""

    latent: Any
    """The codec's own."""
    quality: int
    """The quality at which it was encoded."""
    fidelity: Fidelity | None
    """What decoding it gives, where that was asked for."""
    psnr: float | None = None
    """What decoding a small picture gives, in dB."""
    reached: float | None = None
    """What decoding it gives in the unit of the target, where there is one for the fidelity."""
    decoded: Array | None = None
    """The pixels `[C,H,W]` that decoding it gives, where it was measured."""


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
    """What decoding the file gives, where that was asked for."""
    missed: float | None = None
    """What the file has instead of the target for bits per pixel, PSNR or SSIMULACRA2, where it misses it."""

    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model, "quality": self.quality, "effort": self.effort, "stored": self.stored,
            "bpp": round(self.bpp, 5), **({} if self.fidelity is None else self.fidelity.figures()),
            **({} if self.missed is None else {"target_missed": round(self.missed, 5)}),
        }  # fmt: skip

    def sentence(self) -> str:
        made = "stored without loss" if self.stored else f"quality {self.quality}, {self.model}"
        fidelity = self.fidelity
        measured = "" if fidelity is None or fidelity.psnr is None else f", PSNR {fidelity.psnr:.1f} dB"
        return f"{self.bpp:.2f} bits per pixel, {made}{measured}"


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
        self.asked, self.device, self.dtype, self.options = model, device, dtype, _checked(options)
        self.model: Codec[Any] = registry.get(model, "compress", device)

    def with_options(self, options: CompressOptions) -> Compress:
        """Returns the same task with other options. It shares the codec that is loaded."""
        other = copy.copy(self)
        other.options = _checked(options)
        return other

    def recipe(self) -> str:
        """Returns what is equal for runs that make the same of the same input: by model and options."""
        o = self.options
        chosen: dict[str, Any] = {
            "quality": o.level, "target_bpp": o.target_bpp, "target_psnr": o.target_psnr, "max_bytes": o.max_bytes,
            "target_ssimulacra2": o.target_ssimulacra2, "effort": o.effort,
        }  # fmt: skip
        if o.pages is not None:
            chosen["pages"] = o.pages
        models = [(self.model.label, self.model.digest.hex())]
        return digest(json.dumps(["Compress", models, chosen, str(self.dtype)], sort_keys=True, default=str).encode())

    # -- the three steps ---------------------------------------------------------------------------------------

    def estimate(self, source: object) -> int:
        """Returns how many bytes a picture will hold, by its header."""
        held = estimate(source)
        return held + CODE_BYTES * held // COPIES

    def prepare(self, source: object) -> CompressItem:
        """Reads a picture and codes its alpha."""
        opened = open_checked(source, self.options.page)
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
        if o.target is not None:
            return [self._reach_target(item, one) for item, one in zip(items, x[:, None], strict=True)]
        latents = self._encode(x, o.level)
        if not o.measure and all(item.work > SMALL for item in items):
            return [Encoded(latent, o.level, None) for latent in latents]
        decoded = self._decode(latents, x, o.level)
        return [
            self._compared(item, latent, o.level, back)
            for item, latent, back in zip(items, latents, decoded, strict=True)
        ]

    def finish(self, item: CompressItem, raw: Encoded) -> CompressResult:
        """Codes the latent, and returns the smallest file that holds the picture, or a stored one; see the module."""
        coded = self._file(item, raw.latent, raw.quality)
        strip = container.is_strip(item.picture.width, item.picture.height)
        most = 1 << 62 if strip else self._most_for_storing(item, raw, len(coded))
        stored = min(_stored(item, most), key=len, default=None)
        if strip and stored is None:
            raise UnsupportedImage(
                f"{item.label}: is too thin to be coded; give it as a file, or as uint8, to store it"
            )
        data = coded if stored is None else stored
        limit = self.options.max_bytes
        if limit is not None and len(data) > limit:
            raise UnsupportedImage(
                f"{item.label}: can't be made smaller than {len(data)} bytes (quality {raw.quality}); "
                f"{limit} were asked for"
            )
        bpp = bits_per_pixel(len(data), item.picture.width, item.picture.height)
        missed, warnings = self._missed(bpp, None if stored else raw.reached)
        lossless = stored is not None and raw.fidelity is not None
        return CompressResult(
            value=data,
            width=item.picture.width,
            height=item.picture.height,
            warnings=(*item.picture.notes, *warnings),
            model=self.model.label,
            quality=raw.quality,
            effort=self.options.effort,
            stored=stored is not None,
            bpp=bpp,
            fidelity=Fidelity(None, 1.0, 100.0 if has_ssimulacra2() else None) if lossless else raw.fidelity,
            missed=missed,
        )

    def _most_for_storing(self, item: CompressItem, raw: Encoded, coded: int) -> int:
        """Returns how many bytes a file without loss may have, so that it is taken instead of one of `coded` bytes."""
        o = self.options
        wanted = o.target_psnr if o.target_psnr is not None else o.target_ssimulacra2
        unmet = wanted is not None and raw.reached is not None and raw.reached < wanted
        if raw.psnr is None or not (raw.psnr < POOR or unmet):
            return coded - 1
        most = coded + EXTRA if item.work <= TINY else 2 * coded
        limit = o.size_limit(item.work)
        return most if limit is None else min(most, max(limit, coded - 1))

    def _missed(self, bpp: float, reached: float | None) -> tuple[float | None, tuple[str, ...]]:
        """Returns what a file has in place of its target, where it misses it, and what the user is to know of it."""
        o = self.options
        if o.target_bpp is not None and bpp > o.target_bpp:
            return bpp, (f"the file is larger than the target of {o.target_bpp:g} bits per pixel, even at quality 1",)
        for wanted, unit in ((o.target_psnr, "dB of PSNR"), (o.target_ssimulacra2, "points of SSIMULACRA2")):
            if wanted is not None and reached is not None and reached < wanted:
                return reached, (f"the target of {wanted:g} {unit} is not reached, even at quality 100",)
        return None, ()

    # -- tensors -----------------------------------------------------------------------------------------------

    def round_trip(self, x: Tensor) -> Tensor:
        """Returns what the pictures `x`, `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, uint8 or float in [0,1], become when
        they are compressed at the quality of the options and decompressed, without writing a file of them.

        The result has the shape, dtype, device and type of `x`. A fourth channel is alpha, and stays as it is. Raises
        `UsageError`, `InputError`.
        """
        check_tensor(x)
        with torch.no_grad():
            result = x.detach().as_subclass(Tensor).clone()
            batch = result if result.dim() == 4 else result[None]
            colours = batch[:, :3] if batch.shape[1] == 4 else batch
            if not colours.numel():
                return like_tensor(result, x)
            height, width = (padded(side, self.model.multiple) for side in x.shape[-2:])
            pixels = colours.cpu() if x.dtype == torch.uint8 else colours.float().cpu()
            missing = ((0, 0), (0, 0), (0, height - x.shape[-2]), (0, width - x.shape[-1]))
            pixels = torch.from_numpy(np.pad(pixels.numpy(), missing, mode="edge"))
            latents = self._encode(pixels, self.options.level)
            # The pixels of floats come back in 16 bits.
            shape, depth = (pixels.shape[1], height, width), 8 if x.dtype == torch.uint8 else 16
            decoded = self.model.decode(latents, shape, self.options.level, self.device, self.dtype, depth)
            decoded = decoded[:, :, : x.shape[-2], : x.shape[-1]]
            colours.copy_(decoded if depth == 8 else as_float(decoded))
        return like_tensor(result, x)

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
                page=picture.page,
            )
        )

    # -- a target instead of a quality -------------------------------------------------------------------------

    def _reach_target(self, item: CompressItem, x: Tensor) -> Encoded:
        """Returns the latent of the one picture `x` at the quality that reaches the target.

        For a size, that is the highest quality that keeps to it; for a fidelity, the lowest one that reaches it. Where
        none does, it is the nearest one: `finish` decides whether that is enough.
        """
        o = self.options
        source: Any = x
        if isinstance(self.model, PreparingCodec) and item.work <= PREPARED_PIXELS:
            source = self.model.prepare(x, self.device, self.dtype)
        score = psnr if o.target_psnr is not None else _ssimulacra2
        wanted = o.target_psnr if o.target_psnr is not None else o.target_ssimulacra2
        limit = o.size_limit(item.work)

        @functools.cache
        def encode(quality: int) -> Any:
            (latent,) = self._encode(source, quality)
            return latent

        def decode(quality: int) -> Array:
            (decoded,) = self._decode([encode(quality)], x, quality)
            return decoded

        @functools.cache
        def reached(quality: int) -> float:
            return score(*_side_by_side(item.picture, decode(quality)))

        def log_size(quality: int) -> float:
            return math.log(len(self._file(item, encode(quality), quality)))

        if limit is not None:
            quality = highest_below(lambda q: log_size(q) - math.log(max(limit, 1)) - 1e-9, slope=0.032)
        else:
            slope = 0.15 if o.target_psnr is not None else 0.6
            quality = 1 + highest_below(lambda q: reached(q) - (wanted or 0), slope)
        quality = min(max(quality, 1), 100)
        made = Encoded(encode(quality), quality, None)
        if o.measure or item.work <= SMALL:
            made = self._compared(item, encode(quality), quality, decode(quality))
        return made if limit is not None else replace(made, reached=reached(quality))

    def _compared(self, item: CompressItem, latent: Any, quality: int, decoded: Array) -> Encoded:
        """Returns the latent with what the options and the size of the picture ask for."""
        fidelity = _measure(item.picture, decoded) if self.options.measure else None
        ratio = psnr(*_side_by_side(item.picture, decoded)) if item.work <= SMALL else None
        kept = decoded[:, : item.picture.height, : item.picture.width] if self.options.measure else None
        return Encoded(latent, quality, fidelity, ratio, decoded=kept)


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


def _checked(options: CompressOptions) -> CompressOptions:
    """Returns the options. Raises `UsageError` where their package is missing."""
    if options.target_ssimulacra2 is not None and not has_ssimulacra2():
        raise UsageError("target_ssimulacra2 needs the package ssimulacra2: pip install 'aeimg[metrics]'")
    return options


def _side_by_side(picture: Picture, decoded: Array) -> tuple[Array, Array]:
    """Returns picture and decoded picture as `[H,W]` or `[H,W,3]`, in the integers that were decoded."""
    decoded = decoded[:, : picture.height, : picture.width]
    pixels = picture.pixels
    if pixels.dtype == np.float32:
        pixels = to_eight_bits(pixels)
    return to_array(pixels), to_array(decoded)


def _ssimulacra2(pixels: Array, decoded: Array) -> float:
    return ssimulacra2(to_eight_bits(pixels), to_eight_bits(decoded))


def _measure(picture: Picture, decoded: Array) -> Fidelity:
    pixels, decoded = _side_by_side(picture, decoded)
    similar = ssim(pixels, decoded) if min(pixels.shape[:2]) >= SMALLEST_FOR_SSIM else math.nan
    ratio = psnr(pixels, decoded)
    return Fidelity(
        round(ratio, 3) if math.isfinite(ratio) else None,
        round(similar, 5) if math.isfinite(similar) else None,
        round(_ssimulacra2(pixels, decoded), 3) if has_ssimulacra2() else None,
    )


# -- storing instead of coding -------------------------------------------------------------------------------


def _stored(item: CompressItem, most: int) -> Iterator[bytes]:
    """Yields lossless latent files of at most `most` bytes: of the source file itself, of the pixels."""
    picture = item.picture
    source = None if picture.page is not None else item.opened.data  # which holds the other pages, too
    files: list[bytes] = []
    if source is not None and len(source) <= most:
        files.append(container.write(container.Stored(source, picture.name, picture.format)))
    plain = picture.pixels.dtype == np.uint8 or (picture.mode == "L" and picture.pixels.dtype == np.uint16)
    if plain and _flat(picture.pixels, most + 1):
        pixels = encode_lossless(picture)
        files.append(container.write(container.Stored(pixels, picture.name, picture.format, picture.page)))
    yield from (data for data in files if len(data) <= most)


def _flat(pixels: Array, limit: int) -> bool:
    """Returns whether lossless coding may come near `limit` bytes: for tiny images, and where every 16th row deflates
    well."""
    if pixels[0].size <= SMALL:
        return True
    rows = np.ascontiguousarray(pixels[:, ::16])
    deflated = len(zlib.compress(np.diff(rows, axis=2).tobytes(), 1))
    return bool(deflated * pixels.shape[1] / rows.shape[1] < 3 * limit)
