"""Image file <-> pixels `[C,H,W]`, plus what must survive: EXIF, ICC, XMP, alpha, bit depth, orientation.

Pixels are numpy arrays, 1 channel (grey) or 3 (RGB), uint8, uint16 or float32 in [0,1]; alpha is kept
apart, in the same dtype. The EXIF orientation is applied on reading and removed from the EXIF data.
Colour of 16 bits, which Pillow would cut to 8 without a word, goes through imagecodecs (PNG) and tifffile (TIFF);
several frames are refused by name; CMYK is converted and the picture says so.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from .errors import AeimgError, OutputError, UnreadableImage, UnsupportedImage, UsageError
from .pixels import UPRIGHT, interleaved, planar, split_alpha, to_eight_bits, with_alpha

Array = np.ndarray

READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
"""The formats that are opened at all; others (EPS, PSD, ...) are never given to their decoders. MPO comes with JPEG."""

PLUGINS = {"HEIF": ("pillow_heif", "register_heif_opener", "heic"), "JXL": ("pillow_jxl", "", "jxl")}
"""Formats read where a plug-in of Pillow is installed: its module, what registers it, aeimg's extra for it."""

LOSSY = ("JPEG", "WEBP", "AVIF", "GIF", "JPEG2000", "HEIF", "JXL")
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

# Those that would make nonsense of pixels laid out otherwise, if some program has left them in EXIF data.
_LAYOUT_TAGS = (254, 255, 266, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 338, 339, 340, 341, 347,
                *range(512, 533), 700, 34675)  # fmt: skip


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
    def planes(self) -> Array:
        """Pixels, and alpha after them, as `[C,H,W]`."""
        return with_alpha(self.pixels, self.alpha)

    @property
    def mode(self) -> str:
        """Pillow's name of the mode: L, LA, RGB or RGBA, whatever the depth."""
        return ("L" if self.pixels.shape[0] == 1 else "RGB") + ("A" if self.alpha is not None else "")


def pixel_limit() -> float:
    """How many pixels a file may declare: where Pillow calls it an error, at twice `PIL.Image.MAX_IMAGE_PIXELS`."""
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


# -- reading ----------------------------------------------------------------------------------------------


@functools.cache
def _readable() -> tuple[str, ...]:
    """`READABLE`, and the formats whose plug-ins are installed."""
    found = list(READABLE)
    for kind, (module, register, _) in PLUGINS.items():
        try:
            plugin = importlib.import_module(module)
            if register:
                getattr(plugin, register)()
        except ImportError:
            continue
        found.append(kind)
    return tuple(found)


def _missing_plugin(data: bytes) -> str:
    """What to install for a file that begins with `data`, if it is of a format that a plug-in reads."""
    heif = data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    jxl = data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n"
    kind = "HEIF" if heif else "JXL" if jxl else None
    if kind is None or kind in _readable():
        return ""
    return f"; {kind} needs a plug-in: pip install 'aeimg[{PLUGINS[kind][2]}]'"


def open_image(file: BinaryIO, name: str = "the image") -> Image.Image:
    """An image file of an allowed format, of which only the header has been read. Raises `UnreadableImage`."""
    try:
        return Image.open(file, formats=_readable())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except (OSError, ValueError, SyntaxError, TypeError, struct.error) as error:
        kinds = ", ".join(_readable())
        file.seek(0)
        hint = _missing_plugin(file.read(12))
        raise UnreadableImage(f"{name}: not an image in a format that aeimg reads ({kinds}){hint}") from error


def read_picture(data: bytes, name: str = "the image") -> Picture:
    """The picture in the bytes of an image file. Raises `UnreadableImage` or `UnsupportedImage`, with `name`."""
    image = open_image(io.BytesIO(data), name)
    with image, _damage(name):
        deep = _deep_decoder(name, image, data)
        if deep is None:
            return from_pil(image, name)
        _refuse_size_and_frames(image, name)
        return _deep_picture(image, deep(), name)


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Raises whatever a decoder raises, and each has errors of its own, as `UnreadableImage`."""
    try:
        yield
    except (AeimgError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableImage(f"{name}: damaged or incomplete ({error})") from error


def _deep_decoder(name: str, image: Image.Image, data: bytes) -> Callable[[], Array] | None:
    """What decodes colour of more than 8 bits, which Pillow cuts to 8 without a word; None for all it keeps."""
    if image.format == "PNG" and len(data) > 25:
        if data[24] == 16 and data[25] != 0:  # IHDR: bit depth, colour type (0 is grey, which is read whole)
            return lambda: importlib.import_module("imagecodecs").png_decode(data)  # type: ignore[no-any-return]
    elif image.format == "TIFF" and image.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
        tags = getattr(image, "tag_v2", {})
        depths = tags.get(258, (8,))
        if max(depths if isinstance(depths, tuple) else (depths,)) > 8:
            if set(depths) != {16} or tags.get(262) not in (0, 1, 2):
                raise UnsupportedImage(f"{name}: only RGB and grey of 8 or 16 bits are handled; convert it")
            return lambda: importlib.import_module("tifffile").imread(io.BytesIO(data), key=0)  # type: ignore[no-any-return]
    elif image.format == "PPM" and image.mode == "RGB":
        maxval = re.match(rb"P\d(?:\s+|#[^\n]*\n)*\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)", data)
        if maxval is not None and int(maxval[1]) > 255:
            raise UnsupportedImage(f"{name}: PPM with 16 bits per channel is not handled; convert it to PNG or TIFF")
    return None


def _deep_picture(image: Image.Image, values: Array, name: str) -> Picture:
    """16-bit `values`, decoded from the file that Pillow opened as `image`, with what else is in that file."""
    planar = values.ndim == 3 and values.shape[:2] != (image.height, image.width)  # a TIFF may hold plane after plane
    planes = values if planar else values.transpose(2, 0, 1) if values.ndim == 3 else values[None]
    if planes.shape[1:] != (image.height, image.width) or len(planes) not in (1, 2, 3, 4):
        raise UnsupportedImage(f"{name}: {len(planes)} channels of 16 bits are not handled; convert it to RGB")
    exif = _exif(image)
    xmp = image.info.get("xmp")
    turn = None if exif is None else UPRIGHT.get(exif.pop(0x0112, 1))
    if turn is not None and isinstance(xmp, bytes):
        xmp = re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", xmp)
    planes = np.ascontiguousarray(planes if turn is None else turn(planes), dtype=np.uint16)
    return _picture(image, *split_alpha(planes), exif, xmp, image.info.get("icc_profile"))


def _refuse_size_and_frames(image: Image.Image, name: str) -> None:
    if image.width * image.height > pixel_limit():
        raise UnreadableImage(
            f"{name}: declares {image.width * image.height / 1e6:.0f} megapixels, more than the "
            f"{pixel_limit() / 1e6:.0f} that are taken for honest; raise PIL.Image.MAX_IMAGE_PIXELS for larger ones"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO is a phone's photo with a preview behind it
        raise UnsupportedImage(f"{name}: {frames} frames or pages are not handled yet; split it first")


def _picture(
    image: Image.Image, pixels: Array, alpha: Array | None, exif: Image.Exif | None, xmp: Any, icc: bytes | None,
    notes: tuple[str, ...] = (),
) -> Picture:  # fmt: skip
    return Picture(
        pixels,
        alpha,
        icc=icc or None,
        exif=exif.tobytes() if exif else None,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp or None,
        format=image.format or "",
        notes=notes,
    )


def from_pil(image: Image.Image, name: str = "the image") -> Picture:
    """A Pillow image as a `Picture`, its orientation applied. Raises `UnreadableImage` or `UnsupportedImage`."""
    with _damage(name):
        _refuse_size_and_frames(image, name)
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
        return _picture(image, pixels, alpha, exif, xmp, icc, notes)


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
    return split_alpha(planar(np.asarray(image)))


# -- writing ----------------------------------------------------------------------------------------------


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a Pillow image; float pixels become 8 bits. Raises `UnsupportedImage` for 16-bit colour."""
    planes = picture.planes
    if planes.dtype == np.uint16 and len(planes) > 1:
        raise UnsupportedImage("Pillow has no 16-bit mode for colour or alpha; use numpy arrays or 8 bits")
    return Image.fromarray(interleaved(planes if planes.dtype == np.uint16 else to_eight_bits(planes)))


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
    if kind == "TIFF":
        return _encode_tiff(picture)
    if picture.pixels.dtype == np.uint16 and (picture.alpha is not None or len(picture.pixels) == 3):
        return _encode_deep_png(picture)
    image = to_pil(picture)
    options: dict[str, Any] = {}
    if kind in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = 95 if image_quality is None else image_quality
    if kind == "JPEG":
        options["subsampling"] = "4:4:4"
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


def _encode_deep_png(picture: Picture) -> bytes:
    """A PNG of 16 bits; imagecodecs knows no metadata, so that is put in behind the header."""
    data = bytes(importlib.import_module("imagecodecs").png_encode(interleaved(picture.planes), level=6))
    chunks = []
    if picture.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    if picture.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + picture.xmp))
    head = 8 + 25  # the signature and IHDR
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:head] + more + data[head:]


def _encode_tiff(picture: Picture) -> bytes:
    """A TIFF in one deflated strip. Pillow, which writes the directory and metadata, can't itself write 16 bits, nor
    EXIF with directories of its own, as all cameras' is, beside pixels that are compressed."""
    if picture.pixels.dtype == np.uint16 and picture.mode == "LA":  # which few programs read, Pillow not among them
        raise OutputError(f"{picture.name or 'the image'}: TIFF of 16 bits can't hold grey with alpha; use png")
    planes = picture.planes
    samples = np.atleast_3d(interleaved(planes if planes.dtype == np.uint16 else to_eight_bits(planes)))
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    exif = Image.Exif()
    if picture.exif:
        exif.load(picture.exif)
    for tag, value in exif.items():
        if tag not in (0x8769, 0x8825, *_LAYOUT_TAGS):
            directory[tag] = value
    for tag in (0x8769, 0x8825):
        if tag in exif:
            directory[tag] = dict(exif.get_ifd(tag))
    if picture.icc:
        directory.tagtype[34675] = 7
        directory[34675] = picture.icc
    if picture.xmp:
        directory.tagtype[700] = 1
        directory[700] = picture.xmp
    strip = zlib.compress(samples.astype(samples.dtype.newbyteorder("<")).tobytes(), 6)
    height, width, count = samples.shape
    colours = len(picture.pixels)
    layout = {256: width, 257: height, 258: (8 * samples.itemsize,) * count, 259: 8, 262: 2 if colours == 3 else 1,
              273: 0, 277: count, 278: height, 279: len(strip), 284: 1}  # fmt: skip
    if count > colours:
        layout[338] = 2  # the extra sample is alpha that nothing was multiplied with
    for tag, value in layout.items():
        directory[tag] = value
    buffer = io.BytesIO()
    directory.save(buffer)
    return buffer.getvalue() + strip


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
    return {"xmp": picture.xmp}
