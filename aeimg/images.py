"""Image file <-> pixels `[C,H,W]`, plus what must survive: EXIF, ICC, XMP, alpha, bit depth, orientation.

Pixels are numpy arrays, 1 channel (grey) or 3 (RGB), uint8, uint16 or float32 in [0,1]; alpha is kept
apart, in the same dtype. The EXIF orientation is applied on reading and removed from the EXIF data.
What Pillow would cut or drop without a word (16-bit colour, several frames) is refused by name; CMYK is converted and
the picture says so.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from .errors import OutputError, UnreadableImage, UnsupportedImage, UsageError

Array = np.ndarray

READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
"""The formats that are opened at all; others (EPS, PSD, ...) are never given to their decoders. MPO comes with JPEG."""

LOSSY = ("JPEG", "WEBP", "AVIF", "GIF", "JPEG2000")
"""Pillow's formats that change pixels when they are saved, or may."""
WRITABLE = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG",
    ".png": "PNG", ".apng": "PNG",
    ".webp": "WEBP", ".avif": "AVIF",
    ".tif": "TIFF", ".tiff": "TIFF",
    ".bmp": "BMP", ".dib": "BMP",
    ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM",
}  # fmt: skip
"""Suffix -> the Pillow format it is written as."""

MAX_WEBP_SIDE = 16383
KEEPS_ALPHA = frozenset({"PNG", "WEBP", "AVIF", "TIFF"})
KEEPS_16_BITS = frozenset({"PNG", "TIFF"})

# Of a TIFF's tags, those that describe the picture; the others describe how that file was laid out.
_TIFF_TAGS = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432)


@dataclass(frozen=True)
class Picture:
    """Pixels and what belongs to them."""

    pixels: Array
    """`[C,H,W]`, C 1 or 3; uint8, uint16, or float32 in [0,1]."""
    alpha: Array | None = None
    """`[H,W]` of the same dtype."""
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    format: str = ""
    """Pillow's name of the format it was read from; empty for pixels that never were a file."""
    name: str = ""
    """Name of the file it was read from, without folders."""
    notes: tuple[str, ...] = ()
    """What reading it changed, for the user to know."""

    @property
    def width(self) -> int:
        return int(self.pixels.shape[2])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def mode(self) -> str:
        """Pillow's name of the mode: L, LA, RGB or RGBA, whatever the depth."""
        return ("L" if self.pixels.shape[0] == 1 else "RGB") + ("A" if self.alpha is not None else "")

    def as_float(self) -> Array:
        """The pixels as float32, 1.0 for the largest integer."""
        if self.pixels.dtype == np.float32:
            return self.pixels
        return self.pixels.astype(np.float32) / np.float32(np.iinfo(self.pixels.dtype).max)

    def with_float(self, pixels: Array) -> Picture:
        """This picture with other pixels `[C,H,W]` (float), brought back to its own dtype; floats are not clipped."""
        if self.pixels.dtype == np.float32:
            return replace(self, pixels=pixels.astype(np.float32))
        peak = np.iinfo(self.pixels.dtype).max
        return replace(self, pixels=np.rint(np.clip(pixels, 0, 1) * peak).astype(self.pixels.dtype))


def pixel_limit() -> float:
    """How many pixels a file may declare: where Pillow calls it an error, at twice `PIL.Image.MAX_IMAGE_PIXELS`."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


# -- reading ----------------------------------------------------------------------------------------------


def read_picture(data: bytes, name: str = "the image") -> Picture:
    """The picture in the bytes of an image file. Raises `UnreadableImage` or `UnsupportedImage`, with `name`."""
    try:
        image = Image.open(io.BytesIO(data), formats=READABLE)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise UnreadableImage(f"{name}: not an image in a format that aeimg reads ({', '.join(READABLE)})") from error
    with image:
        _refuse_deep_colour(name, image, data)
        return from_pil(image, name)


def _refuse_deep_colour(name: str, image: Image.Image, data: bytes) -> None:
    """Pillow cuts colour of more than 8 bits to 8 without a word; we say it instead."""
    deep = False
    if image.format == "PNG" and len(data) > 25:
        deep = data[24] == 16 and data[25] != 0  # IHDR: bit depth, colour type (0 is grey, which is read whole)
    elif image.format == "TIFF" and image.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
        depths = getattr(image, "tag_v2", {}).get(258, (8,))
        deep = max(depths if isinstance(depths, tuple) else (depths,)) > 8
    elif image.format == "PPM" and image.mode == "RGB":
        maxval = re.match(rb"P\d(?:\s+|#[^\n]*\n)*\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)", data)
        deep = maxval is not None and int(maxval[1]) > 255
    if deep:
        raise UnsupportedImage(f"{name}: colour with 16 bits per channel is not handled yet; convert it to 8 bits")


def from_pil(image: Image.Image, name: str = "the image") -> Picture:
    """A Pillow image as a `Picture`, its orientation applied. Raises `UnreadableImage` or `UnsupportedImage`."""
    if image.width * image.height > pixel_limit():
        raise UnreadableImage(
            f"{name}: declares {image.width * image.height / 1e6:.0f} megapixels, more than the "
            f"{pixel_limit() / 1e6:.0f} that are taken for honest; raise PIL.Image.MAX_IMAGE_PIXELS for larger ones"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO is a phone's photo with a preview behind it
        raise UnsupportedImage(f"{name}: {frames} frames or pages are not handled yet; split it first")
    kind = image.format or ""
    try:
        image.load()
        exif = _exif(image)
        xmp = image.info.get("xmp")
        icc = image.info.get("icc_profile")
        turned = ImageOps.exif_transpose(image) if exif is not None else image
        notes: tuple[str, ...] = ()
        if turned.mode == "CMYK":
            turned, note = _from_cmyk(turned, icc)
            notes, icc = (note,), None  # the profile was for CMYK; what is there now is sRGB
        if exif is not None and 0x0112 in exif:
            del exif[0x0112]
            xmp = turned.info.get("xmp", xmp)
        pixels, alpha = _planes(turned, name)
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, IndexError) as error:
        raise UnreadableImage(f"{name}: damaged or incomplete ({error})") from error
    return Picture(
        pixels,
        alpha,
        icc=icc or None,
        exif=exif.tobytes() if exif else None,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp or None,
        format=kind,
        notes=notes,
    )


def _from_cmyk(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """A CMYK image as sRGB, and how that was done."""
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            turned = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
            name = ImageCms.getProfileName(profile).strip()
            assert turned is not None
            return turned, f"converted from CMYK to sRGB by its profile ({name})"
        except (ImageCms.PyCMSError, OSError) as error:
            return image.convert("RGB"), f"converted from CMYK to RGB without its profile, which is unusable ({error})"
    return image.convert("RGB"), "converted from CMYK to RGB without a profile: it has none"


def _exif(image: Image.Image) -> Image.Exif | None:
    exif = image.getexif()
    if image.format != "TIFF":
        return exif or None
    kept = Image.Exif()
    for tag in _TIFF_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    if exif.get(0x0112, 1) != 1:
        kept[0x0112] = exif[0x0112]
    for ifd in (0x8769, 0x8825):
        values = exif.get_ifd(ifd)
        if values:
            kept.get_ifd(ifd).update(values)
    return kept or None


def _planes(image: Image.Image, name: str) -> tuple[Array, Array | None]:
    mode = image.mode
    if mode in ("1", "L"):
        if "transparency" in image.info:
            image = image.convert("LA")
        elif mode == "1":
            image = image.convert("L")
    elif mode in ("P", "PA"):
        image = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    elif mode == "RGB" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif mode in ("I;16", "I;16L", "I;16B"):
        return np.asarray(image).astype(np.uint16)[None], None
    elif mode == "I":
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UnsupportedImage(f"{name}: integers of 32 bits are not handled; convert it to 16 bits")
        return values.astype(np.uint16)[None], None
    elif mode == "YCbCr":
        image = image.convert("RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedImage(f"{name}: images of mode {mode} are not handled yet; convert it to RGB")
    values = np.asarray(image)
    if values.ndim == 2:
        return values[None].copy(), None
    planes = np.ascontiguousarray(values.transpose(2, 0, 1))
    return (planes[:-1], planes[-1]) if image.mode in ("LA", "RGBA") else (planes, None)


# -- writing ----------------------------------------------------------------------------------------------


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a Pillow image; float pixels become 8 bits. Raises `UnsupportedImage` for 16-bit colour."""
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.dtype == np.float32:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
        alpha = None if alpha is None else np.rint(np.clip(alpha, 0, 1) * 255).astype(np.uint8)
    if pixels.dtype == np.uint16:
        if pixels.shape[0] != 1 or alpha is not None:
            raise UnsupportedImage("Pillow has no 16-bit mode for colour or alpha; use numpy arrays or 8 bits")
        return Image.fromarray(np.ascontiguousarray(pixels[0]))
    planes = pixels if alpha is None else np.concatenate([pixels, alpha[None]])
    if planes.shape[0] == 1:
        return Image.fromarray(np.ascontiguousarray(planes[0]))
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)), picture.mode)


def encode_picture(picture: Picture, suffix: str, *, image_quality: int | None = None) -> bytes:
    """The picture as a file of the format that `suffix` names, metadata included.

    `image_quality`: 1..100 for JPEG, WebP and AVIF (default 95, with full chroma in JPEG). Raises `UsageError` for
    an unknown suffix and `OutputError` where the format can't hold the picture (alpha, 16 bits, size).
    """
    kind = WRITABLE.get(suffix.lower())
    if kind is None:
        raise UsageError(f"{suffix}: not a format that aeimg writes; use one of {', '.join(sorted(WRITABLE))}")
    if picture.alpha is not None and kind not in KEEPS_ALPHA:
        raise OutputError(f"{picture.name or 'the image'}: {kind} can't hold its transparency; use --format png")
    if picture.pixels.dtype == np.uint16 and kind not in KEEPS_16_BITS:
        raise OutputError(f"{picture.name or 'the image'}: {kind} can't hold its 16 bits; use --format png or tiff")
    image = to_pil(picture)
    options: dict[str, Any] = {}
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = 95 if image_quality is None else image_quality
    if kind == "JPEG":
        options["subsampling"] = "4:4:4"
    if kind == "TIFF":
        options["compression"] = "tiff_deflate"
    if kind not in ("BMP", "PPM"):
        if picture.icc:
            options["icc_profile"] = picture.icc
        if picture.exif:
            options["exif"] = picture.exif
        if picture.xmp:
            options |= _xmp_option(kind, picture)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, struct.error) as error:
        raise OutputError(f"{picture.name or 'the image'}: can't be written as {kind} ({error})") from error
    return buffer.getvalue()


def encode_lossless(picture: Picture) -> bytes:
    """A picture of 8 bits, or grey of 16, as a lossless file: WebP for colour, else and beyond its size PNG."""
    image = to_pil(picture)
    metadata: dict[str, Any] = {"icc_profile": picture.icc, "exif": picture.exif}
    metadata = {key: value for key, value in metadata.items() if value}
    buffer = io.BytesIO()
    if picture.pixels.shape[0] == 3 and max(image.size) <= MAX_WEBP_SIDE:
        if picture.xmp:
            metadata["xmp"] = picture.xmp
        image.save(buffer, "WEBP", lossless=True, exact=True, method=4, quality=75, **metadata)
    else:
        if picture.xmp:
            metadata |= _xmp_option("PNG", picture)
        image.save(buffer, "PNG", optimize=True, **metadata)
    return buffer.getvalue()


def _xmp_option(kind: str, picture: Picture) -> dict[str, Any]:
    assert picture.xmp is not None
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", picture.xmp.decode("utf-8", "replace"))
        return {"pnginfo": info}
    if kind == "TIFF":  # where XMP is one of the tags that EXIF is written as
        exif = Image.Exif()
        if picture.exif:
            exif.load(picture.exif)
        exif[700] = picture.xmp
        return {"exif": exif}
    return {"xmp": picture.xmp}
