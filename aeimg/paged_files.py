"""Several pictures -> one file that holds them all: the pages of a TIFF, the frames of an animated PNG, WebP or AVIF.

    encode_pages    pictures, one at a time  ->  the bytes of the file
    left_out        what that file can't hold of the pages

TIFF, PNG and WebP files are put together here out of files of one picture each, so that only one page is in memory as
pixels. Of AVIF, Pillow's encoder wants all frames at once.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
from PIL import Image

from .errors import OutputError
from .images import WRITABLE, Picture, check_format, encode_picture, read_picture, tiff_page, to_pil
from .metadata import Metadata, exif_with_resolution, png_with_metadata, tiff_file
from .multipage import Page
from .pixels import peak

HOLDS_FRAMES = ("PNG", "WEBP", "AVIF")
"""The formats in which an animation is written, by Pillow's names."""


def encode_pages(pictures: Iterable[Picture], suffix: str, *, image_quality: int | None = None) -> bytes:
    """Returns the file that holds `pictures`, each of which states its `page`, in their order.

    The metadata of a TIFF is that of each page, of an animation that of the first frame. `image_quality` is that of
    `encode_picture`. Raises `OutputError` where the format of `suffix` can't hold them.
    """
    rest = iter(pictures)
    first = next(rest)
    kind, page = WRITABLE.get(suffix.lower(), ""), first.page
    name = first.name or "the image"
    assert page is not None
    if kind == "TIFF":
        order = tiff_page(first)[0].order
        try:
            return tiff_file(tiff_page(one, order) for one in itertools.chain([first], rest))
        except struct.error as error:
            raise OutputError(f"{name}: its pages are more than the 4 GiB that a TIFF holds") from error
    if kind not in HOLDS_FRAMES or not page.animated:
        what, hint = ("frames", "png, webp, avif or tiff") if page.animated else ("pages", "tiff")
        raise OutputError(f"{name}: {kind or suffix} can't hold its {page.count} {what}; use --format {hint}")
    frames = _of_one_size(itertools.chain([first], rest), suffix)
    write = {"PNG": _apng, "WEBP": _webp, "AVIF": _avif}[kind]
    return write(frames, first, page, image_quality)


def left_out(page: Page, suffix: str) -> tuple[str, ...]:
    """Returns notes of what a file of the format that `suffix` names can't hold of an animation."""
    kind = WRITABLE.get(suffix.lower())
    if kind == "TIFF" and page.animated:
        return ("TIFF can't hold for how long its frames are shown: left out",)
    if kind == "AVIF" and page.animated and page.loops:
        return ("AVIF can't hold how many times it is played: left out",)
    return ()


def _of_one_size(frames: Iterable[Picture], suffix: str) -> Iterator[Picture]:
    size: tuple[int, int] | None = None
    for frame in frames:
        check_format(frame, suffix)
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise OutputError(f"{frame.name or 'the image'}: its frames differ in size, so they are no animation")
        yield frame


def _duration(frame: Picture) -> int:
    return (frame.page.duration or 0) if frame.page else 0


def _alone(frame: Picture) -> Picture:
    return replace(frame, metadata=Metadata())


def _widened(picture: Picture, channels: int, *, alpha: bool) -> Picture:
    """Returns the picture with so many channels, and with alpha, opaque where it has none."""
    pixels, found = picture.pixels, picture.alpha
    if len(pixels) < channels:
        pixels = np.repeat(pixels, channels, axis=0)
    if alpha and found is None:
        found = np.full(pixels.shape[1:], peak(pixels.dtype), pixels.dtype)
    return replace(picture, pixels=pixels, alpha=found)


def _alike(frames: list[Picture]) -> list[Picture]:
    channels = max(len(frame.pixels) for frame in frames)
    alpha = any(frame.alpha is not None for frame in frames)
    return [_widened(frame, channels, alpha=alpha) for frame in frames]


# -- animated PNG -----------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def _compressed(png: bytes) -> bytes:
    """Returns the content of the IDAT chunks of a PNG file."""
    found, at = [], 8
    while at + 8 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            found.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(found)


IHDR = slice(8, 33)
"""Where the first chunk of a PNG file lies: size, depth and kind of its pixels."""


def _apng(frames: Iterator[Picture], first: Picture, page: Page, image_quality: int | None) -> bytes:
    files, durations = [], []
    for frame in frames:
        files.append(encode_picture(_alone(frame), ".png"))
        durations.append(_duration(frame))
    if len({file[IHDR] for file in files}) > 1:  # some of them alone have colours, or alpha
        heads = [file[25] for file in files]  # the kind of pixels: bit 1 is colour, bit 2 alpha
        channels, alpha = (3 if any(head & 2 for head in heads) else 1), any(head & 4 for head in heads)
        files = [encode_picture(_widened(read_picture(file), channels, alpha=alpha), ".png") for file in files]
    numbers = itertools.count()
    size = files[0][16:24]

    def control(duration: int) -> bytes:
        exact = Fraction(duration, 1_000_000)
        delay = next(near for most in (65_535, 1000, 10) if (near := exact.limit_denominator(most)).numerator < 65_536)
        return _chunk(b"fcTL", struct.pack(">I", next(numbers)) + size + bytes(8)
                      + struct.pack(">HH", delay.numerator, delay.denominator) + bytes(2))  # fmt: skip

    out = [_chunk(b"acTL", struct.pack(">II", len(files), page.loops))]
    for number, (file, duration) in enumerate(zip(files, durations, strict=True)):
        out.append(control(duration))
        pixels = _compressed(file)
        out.append(_chunk(b"fdAT", struct.pack(">I", next(numbers)) + pixels) if number else _chunk(b"IDAT", pixels))
    whole = files[0][: IHDR.stop] + b"".join(out) + _chunk(b"IEND", b"")
    return png_with_metadata(whole, first.metadata)


# -- animated WebP ----------------------------------------------------------------------------------------------------


def _riff(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)


def _u24(*values: int) -> bytes:
    return b"".join(value.to_bytes(3, "little") for value in values)


def _webp_pixels(webp: bytes) -> bytes:
    """Returns the chunks of a WebP file that hold its pixels."""
    found, at = [], 12
    while at + 8 <= len(webp):
        end = at + 8 + int.from_bytes(webp[at + 4 : at + 8], "little")
        if webp[at : at + 4] in (b"ALPH", b"VP8 ", b"VP8L"):
            found.append(webp[at:end] + bytes(end % 2))
        at = end + end % 2
    return b"".join(found)


NO_BLENDING = b"\x02"
"""Of a frame: it takes the place of the one before, where it is transparent too."""


def _webp(frames: Iterator[Picture], first: Picture, page: Page, image_quality: int | None) -> bytes:
    body, alpha = [], False
    side = _u24(first.width - 1, first.height - 1)
    for frame in frames:
        alpha |= frame.alpha is not None
        webp = encode_picture(_alone(frame), ".webp", image_quality=image_quality)
        shown = min(round(_duration(frame) / 1000), (1 << 24) - 1)
        body.append(_riff(b"ANMF", _u24(0, 0) + side + _u24(shown) + NO_BLENDING + _webp_pixels(webp)))
    about = first.metadata
    exif = (exif_with_resolution(about) or b"").removeprefix(b"Exif\0\0")
    flags = 0x02 | 0x10 * alpha | 0x20 * bool(about.icc) | 0x08 * bool(exif) | 0x04 * bool(about.xmp)
    whole = [_riff(b"VP8X", bytes([flags]) + bytes(3) + side)]
    whole += [_riff(b"ICCP", about.icc)] if about.icc else []
    whole += [_riff(b"ANIM", bytes(4) + struct.pack("<H", page.loops)), *body]
    whole += [_riff(kind, part) for kind, part in ((b"EXIF", exif), (b"XMP ", about.xmp)) if part]
    return _riff(b"RIFF", b"WEBP" + b"".join(whole))


# -- animated AVIF ----------------------------------------------------------------------------------------------------


def _avif(frames: Iterator[Picture], first: Picture, page: Page, image_quality: int | None) -> bytes:
    alike = _alike(list(frames))
    images: list[Image.Image] = [to_pil(_alone(frame)) for frame in alike]
    about = first.metadata
    lossless = {"codec": "aom", "advanced": {"alpha:lossless": "1"}} if alike[0].alpha is not None else {}
    buffer = io.BytesIO()
    options = {"icc_profile": about.icc, "xmp": about.xmp, "exif": exif_with_resolution(about), **lossless}
    try:
        images[0].save(
            buffer, "AVIF", save_all=True, append_images=images[1:],
            quality=95 if image_quality is None else image_quality,
            duration=[round(_duration(frame) / 1000) for frame in alike],
            **{key: value for key, value in options.items() if value is not None},
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise OutputError(f"{first.name or 'the image'}: can't be written as AVIF ({error})") from error
    return buffer.getvalue()
