"""Image file <-> pixels `[C,H,W]`, plus what must survive: alpha, bit depth, and the `Metadata` that came with it.

Pixels are numpy arrays, 1 channel (grey) or 3 (RGB), uint8, uint16 or float32 in [0,1]; alpha is kept
apart, in the same dtype, and nothing is multiplied by it. Pictures are upright: the EXIF orientation is applied on
reading. What Pillow would cut to 8 bits without a word goes through imagecodecs (PNG, AVIF, JPEG 2000), tifffile (TIFF)
and pillow-heif (HEIF), and fills the range of 16 bits, whatever its depth was. Of a file of several pages or frames one
is read, which the caller must name (`ImageFile`); `encode_pages` writes them into one file again. What is converted
(CMYK, 1 bit, associated alpha) or left out (gain maps, further views) is said in the notes.
`docs/metadata.md` says what each format keeps.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from . import metadata
from .errors import AeimgError, InvalidLatent, OutputError, UnreadableImage, UnsupportedImage, UsageError
from .metadata import Metadata
from .multipage import Page, Place, page_of, places
from .paths import open_regular, size_of
from .pixels import (
    UPRIGHT,
    interleaved,
    peak,
    planar,
    split_alpha,
    to_eight_bits,
    to_sixteen_bits,
    unassociated,
    with_alpha,
)

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
BESIDES_PIXELS = 64 << 20
"""How many bytes an image file may have besides 8 for each pixel: metadata, previews, a phone's moving picture."""
KEEPS_ALPHA = frozenset({"PNG", "WEBP", "AVIF", "TIFF"})
KEEPS_16_BITS = frozenset({"PNG", "TIFF"})


@dataclass(frozen=True)
class Picture:
    """Pixels and what belongs to them."""

    pixels: Array
    """`[C,H,W]`, C 1 or 3; uint8, uint16, or float32 in [0,1]."""
    alpha: Array | None = None
    """`[H,W]` of the same dtype."""
    metadata: Metadata = field(default_factory=Metadata)
    """What came with it."""
    format: str = ""
    """Pillow's name of the format it was read from; empty for pixels that never were a file."""
    name: str = ""
    """Name of the file it was read from, without folders."""
    notes: tuple[str, ...] = ()
    """What reading it changed, for the user to know."""
    page: Page | None = None
    """Its place among the pages of its file; None where it is the only one."""

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
    except UnidentifiedImageError as error:
        kinds = ", ".join(_readable())
        file.seek(0)
        hint = _missing_plugin(file.read(12))
        raise UnreadableImage(f"{name}: not an image in a format that aeimg reads ({kinds}){hint}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except Exception as error:  # each decoder has errors of its own
        raise UnreadableImage(f"{name}: damaged or incomplete ({error})") from error


def sample_size(image: Image.Image, head: bytes) -> int:
    """Returns how many bytes a sample has once an image is read that `open_image` has opened, in doubt the more; `head`
    is the beginning of its file."""
    if image.mode in ("F", "I"):
        return 4
    deep = image.mode.startswith("I;16")
    if image.format == "PNG":
        deep |= head[24:25] == b"\x10"  # IHDR: bit depth
    elif image.format == "TIFF":
        deep |= max(np.atleast_1d(getattr(image, "tag_v2", {}).get(258, 8))) > 8
    elif image.format == "AVIF":
        deep |= _avif_bits(head) > 8
    else:
        deep |= image.format in ("JPEG2000", "HEIF", "JXL")
    return 2 if deep else 1


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file, for `read_picture`. Raises `UnreadableImage`, in little time and memory, for what is
    no regular file, no image, or larger than any honest image of its size in pixels."""
    with open_regular(path) as file:
        size = size_of(file)
        most = 8 * pixel_limit() + BESIDES_PIXELS  # four channels of 16 bits
        if size > BESIDES_PIXELS and size <= most:
            most = _honest_size(file, str(path), most)
        if size > most:
            raise UnreadableImage(f"{path}: has {size} bytes, more than an image of its size in pixels can need")
        return file.read(size + 1)


def _honest_size(file: BinaryIO, name: str, most: float) -> float:
    """How many bytes a large image file may have, by its header; `most` where Pillow does not understand that."""
    try:
        with open_image(file, name) as image:
            return 8 * image.width * image.height + BESIDES_PIXELS
    except UnreadableImage as error:
        file.seek(0)
        if isinstance(error.__cause__, UnidentifiedImageError) and not metadata.byte_order(file.read(4)):
            raise
        return most
    finally:
        file.seek(0)


def read_plane(data: bytes, shape: tuple[int, int], dtype: np.dtype, name: str) -> Array:
    """The one plane `[H,W]` of a greyscale PNG, which must have that shape and dtype: by its header, before anything is
    decoded. Raises `InvalidLatent`."""
    image = open_image(io.BytesIO(data), name)
    depth = 8 * dtype.itemsize
    if image.format != "PNG" or (image.height, image.width) != shape or (data[24], data[25]) != (depth, 0):
        raise InvalidLatent(f"{name}: its alpha has another size or depth than its pixels")
    return read_picture(data, name).pixels[0]


def read_picture(data: bytes, name: str = "the image", page: int | None = None) -> Picture:
    """The picture in the bytes of an image file; see `ImageFile.picture`."""
    with contextlib.closing(ImageFile(data, name)) as file:
        return file.picture(page)


class ImageFile:
    """An image file in memory, whose pages can be read one after the other."""

    def __init__(self, data: bytes, name: str = "the image") -> None:
        """Reads the headers. Raises `UnreadableImage` or `UnsupportedImage`."""
        self.data, self.name = data, name
        self.image: Image.Image | None = None
        self.notes: list[str] = []
        try:
            self.image = open_image(io.BytesIO(data), name)
        except UnreadableImage as error:
            beyond = isinstance(error.__cause__, UnidentifiedImageError) and metadata.byte_order(data)
            avif = data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1")
            without = metadata.avif_without_exif(data) if avif and not beyond else None
            if without is not None:
                self.image, self.data = open_image(io.BytesIO(without), name), without
                self.notes.append("its EXIF data was left out: it is damaged")
            elif not beyond:  # what is beyond Pillow is a TIFF
                raise
        with _damage(name):
            self.places = places(self.image, self.data, name)

    def close(self) -> None:
        """Lets go of the decoder."""
        if self.image is not None:
            self.image.close()

    def picture(self, number: int | None = None) -> Picture:
        """The page of that number, from 1; None is for a file of one page. Raises `UnreadableImage` or
        `UnsupportedImage`."""
        count = len(self.places)
        if number is None and count > 1:
            raise UnsupportedImage(
                f"{self.name}: {count} frames or pages; compress and tasks from image to image take --pages all, "
                "first or a number"
            )
        if number is not None and not 1 <= number <= count:
            raise UnsupportedImage(f"{self.name}: has {count} pages, and none of number {number}")
        place = self.places[(number or 1) - 1]
        with _damage(self.name):
            picture = _tiff_beyond_pillow(self.data, self.name, place) if self.image is None else self._read(place)
            if number is None or count == 1:
                return picture
            page = Page(number, count, source=self._identity)
            return replace(picture, page=page if self.image is None else page_of(self.image, page))

    @functools.cached_property
    def _identity(self) -> bytes:
        return hashlib.blake2b(self.data, digest_size=8).digest()

    def _read(self, place: Place) -> Picture:
        image, data, name = self.image, self.data, self.name
        assert image is not None
        if place.frame < image.tell() and image.format != "TIFF":  # some decoders go wrong when they go back
            image.close()
            image = self.image = open_image(io.BytesIO(data), name)
        if place.frame != image.tell():
            image.seek(place.frame)
        _refuse_size(image.width * image.height, name)
        found = metadata.read(image, data, place.at)
        found.notes += self.notes
        if image.format == "PNG" and getattr(image, "default_image", False):
            found.notes.append("its picture for programs that show no animation was left out")
        deep = _deep_decoder(name, image, data, place)
        if deep is None:
            return _shallow_picture(image, found, data, name)
        planes = deep(found.notes)
        if image.format != "TIFF":  # of which Pillow gives the size that it has upright
            _of_size(planes, image.height, image.width, name)
        return _picture(image, planes, found, data)


def _of_size(planes: Array, height: int, width: int, name: str) -> Array:
    if planes.shape[1:] != (height, width) or len(planes) > 4:
        raise UnsupportedImage(f"{name}: {len(planes)} channels of 16 bits are not handled; convert it to RGB")
    return planes


def from_pil(image: Image.Image, name: str = "the image") -> Picture:
    """A Pillow image, which is not changed, as a `Picture`. Raises `UnreadableImage` or `UnsupportedImage`."""
    with _damage(name):
        _refuse_size(image.width * image.height, name)
        at = None
        if getattr(image, "n_frames", 1) > 1:
            found = places(image, metadata.tiff_bytes(image, None) if image.format == "TIFF" else None, name)
            if len(found) > 1:
                raise UnsupportedImage(f"{name}: {len(found)} frames or pages; give a copy() of the one that is meant")
            if found[0].frame != image.tell():
                raise UnsupportedImage(f"{name}: stands at a thumbnail; seek({found[0].frame}) leads to its picture")
            at = found[0].at
        return _shallow_picture(image, metadata.read(image, directory=at), None, name)


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Raises whatever a decoder raises, and each has errors of its own, as `UnreadableImage`."""
    try:
        yield
    except AeimgError:
        raise
    except MemoryError as error:
        raise UnreadableImage(f"{name}: needs more memory to be read than there is") from error
    except Exception as error:
        raise UnreadableImage(f"{name}: damaged or incomplete ({error})") from error


def _refuse_size(pixels: int, name: str) -> None:
    if pixels > pixel_limit():
        raise UnreadableImage(
            f"{name}: declares {pixels / 1e6:.0f} megapixels, more than the "
            f"{pixel_limit() / 1e6:.0f} that are taken for honest; raise PIL.Image.MAX_IMAGE_PIXELS for larger ones"
        )


def _picture(image: Image.Image, planes: Array, found: metadata.Found, data: bytes | None) -> Picture:
    """Planes `[C,H,W]`, decoded from the file that Pillow opened as `image`, with what else is in it, upright."""
    turn = UPRIGHT.get(found.orientation)
    planes = np.ascontiguousarray(planes if turn is None else turn(planes))
    notes = (*found.notes, *_left_behind(image, data))
    return Picture(*split_alpha(planes), found.metadata, image.format or "", notes=notes)


def _left_behind(image: Image.Image, data: bytes | None) -> Iterator[str]:
    """Notes of the pictures in the file that are not read: gain maps, and views that are more than previews."""
    views = getattr(image, "mpinfo", {}).get(0xB002, ())[1:]
    kinds = [str(view.get("Attribute", {}).get("MPType", "")) for view in views if isinstance(view, dict)]
    if any(not kind.startswith("Large Thumbnail") for kind in kinds):
        yield f"only the first of its {1 + len(kinds)} views was read"
    head = (data or b"")[: 1 << 20]
    gain = (b" hdrgm:Version=" in head or b"urn:iso:std:iso:ts:21496:-1" in head) if image.format in ("JPEG", "MPO") \
        else b"tmap" in head[:4096] if image.format == "AVIF" else False  # fmt: skip
    if gain:
        yield "its gain map was left out: what is read is its standard dynamic range"


# -- reading more than 8 bits -----------------------------------------------------------------------------------------

Deep = Callable[[list[str]], Array]
"""Decodes a file to planes `[C,H,W]`, uint16, and adds notes to a list."""


def _deep_decoder(name: str, image: Image.Image, data: bytes, place: Place) -> Deep | None:
    """What decodes more than 8 bits, which Pillow cuts to 8 without a word; None for all it keeps."""
    if image.format == "PNG" and len(data) > 25 and data[24] == 16:  # IHDR: bit depth, colour type (0 is grey)
        if getattr(image, "is_animated", False):
            raise UnsupportedImage(f"{name}: animated PNG of 16 bits is not handled; convert it to 8 bits")
        if data[25] != 0 or "transparency" in image.info:
            return lambda _: planar(_imagecodecs("png_decode", data))
    elif image.format == "TIFF":
        return _deep_tiff(name, data, place)
    elif image.format == "AVIF":
        bits = _avif_bits(data)
        if bits > 8:
            if getattr(image, "is_animated", False):  # imagecodecs writes past its buffer for one frame of several
                raise UnsupportedImage(f"{name}: animated AVIF of {bits} bits is not handled; convert it to 8 bits")
            return lambda _: to_sixteen_bits(planar(_imagecodecs("avif_decode", data)), bits)
    elif image.format == "JPEG2000":
        return _deep_jpeg2000(name, data)
    elif image.format == "HEIF" and image.info.get("bit_depth", 8) > 8:
        return lambda _: _deep_heif(data, image.info["bit_depth"], place.frame)
    elif image.format == "JXL" and _imagecodecs("jpegxl_decode", data).dtype != np.uint8:  # of unknown depth
        raise UnsupportedImage(f"{name}: JPEG XL of more than 8 bits is not handled; convert it to PNG or TIFF")
    elif image.format == "PPM" and image.mode == "RGB":
        maxval = re.match(rb"P\d(?:\s+|#[^\n]*\n)*\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)", data)
        if maxval is not None and int(maxval[1]) > 255:
            raise UnsupportedImage(f"{name}: PPM with 16 bits per channel is not handled; convert it to PNG or TIFF")
    return None


def _imagecodecs(function: str, data: bytes) -> Array:
    return np.asarray(getattr(importlib.import_module("imagecodecs"), function)(data))


def _deep_tiff(name: str, data: bytes, place: Place) -> Deep | None:
    """As `_deep_decoder`, for TIFF; None where nothing has more than 8 bits, and for 32 bits, which Pillow reads."""
    tags = metadata.read_directory(data, place.at)
    depths, kinds, photometric = tags.numbers(258) or [1], set(tags.numbers(339)) or {1}, tags.numbers(262)
    if (max(depths) <= 8 and kinds != {2}) or (max(depths) == 32 and kinds != {3}):
        return None
    if kinds != {1}:
        what = {2: "signed integers", 3: "floats"}.get(min(kinds), "numbers of an unknown kind")
        raise UnsupportedImage(f"{name}: {what} of {max(depths)} bits are not handled; convert it to 16 without sign")
    if len(set(depths)) > 1 or max(depths) > 16 or photometric not in ([0], [1], [2]):
        raise UnsupportedImage(f"{name}: only RGB and grey of 8 to 16 bits are handled; convert it")
    size = sum(tags.numbers(257)[:1]), sum(tags.numbers(256)[:1])
    extras = tags.numbers(338) or ([2] if len(depths) in (2, 4) else [])

    def decode(notes: list[str]) -> Array:
        values = importlib.import_module("tifffile").imread(io.BytesIO(data), key=place.frame)
        apart = values.ndim == 3 and values.shape[:2] != size  # plane after plane
        planes = to_sixteen_bits(values if apart else planar(values), depths[0])
        if planes.shape[1:] != size:
            raise UnsupportedImage(f"{name}: its samples are laid out in a way that is not handled; convert it")
        return _tiff_planes(planes, 3 if photometric == [2] else 1, extras, notes, white_is_zero=photometric == [0])

    return decode


def _tiff_beyond_pillow(data: bytes, name: str, place: Place) -> Picture:
    """A TIFF that Pillow can't open, if it is one: 12 bits of colour, WhiteIsZero of 16 bits, and others."""
    tags = metadata.read_directory(data, place.at)
    stand_in = Image.new("L", (1, 1))
    stand_in.format = "TIFF"
    (height, *_), (width, *_) = tags.numbers(257), tags.numbers(256)
    _refuse_size(width * height, name)
    deep = _deep_tiff(name, data, place)
    if deep is None:
        raise UnsupportedImage(f"{name}: TIFF of this kind is not handled; convert it to RGB or grey of 8 or 16 bits")
    found = metadata.read(stand_in, data, place.at)
    return _picture(stand_in, deep(found.notes), found, data)


def _tiff_planes(planes: Array, colours: int, extras: list[int], notes: list[str], *, white_is_zero: bool) -> Array:
    """The planes of a TIFF, whose samples beyond the colours are of the kinds `extras`, as colours and alpha."""
    pixels = ~planes[:colours] if white_is_zero else planes[:colours]
    alphas = [number for number, kind in enumerate(extras) if kind in (1, 2) and colours + number < len(planes)]
    if len(planes) - colours > len(alphas[:1]):
        notes.append(_UNSPECIFIED)
    if not alphas:
        return pixels
    alpha = planes[colours + alphas[0]]
    if extras[alphas[0]] == 1:
        notes.append(_ASSOCIATED)
        pixels = unassociated(pixels, alpha)
    return with_alpha(pixels, alpha)


_UNSPECIFIED = "its samples beyond colour and alpha were left out: the file does not say what they are"
_ASSOCIATED = "its colours were multiplied by alpha (associated alpha); that was undone"


def _deep_jpeg2000(name: str, data: bytes) -> Deep | None:
    at = data.find(b"\xff\x4f\xff\x51")  # SOC and SIZ, which say the depth of each component
    count = int.from_bytes(data[at + 40 : at + 42], "big")
    depths = set(data[at + 42 : at + 42 + 3 * count : 3])
    if at < 0 or max(depths, default=0) & 0x7F < 8:
        return None
    bits = 1 + (max(depths) & 0x7F)
    space = data.find(b"colr")
    known = space < 0 or (data[space + 4] == 1 and data[space + 7 : space + 11] in (b"\0\0\0\x10", b"\0\0\0\x11"))
    if len(depths) > 1 or max(depths) & 0x80 or bits > 16 or not (known or data[space + 4] == 2) or count > 4:
        raise UnsupportedImage(
            f"{name}: JPEG 2000 of more than 8 bits is handled as grey or RGB of up to 16; convert it"
        )
    return lambda _: to_sixteen_bits(planar(_imagecodecs("jpeg2k_decode", data)), bits)


def _deep_heif(data: bytes, bits: int, frame: int) -> Array:
    file = importlib.import_module("pillow_heif").open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)[frame]
    return to_sixteen_bits(planar(np.asarray(file) >> (16 - bits)), bits)  # it fills up with zeros


def _avif_bits(data: bytes) -> int:
    """Bits per channel of an AVIF file, by what its (first) AV1 configuration says."""
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    return 12 if flags & 0x60 == 0x60 else 10 if flags & 0x40 else 8


# -- reading what Pillow keeps ----------------------------------------------------------------------------------------


def _shallow_picture(image: Image.Image, found: metadata.Found, data: bytes | None, name: str) -> Picture:
    image.load()
    if image.format == "TIFF":  # which Pillow turns itself
        found.orientation = 1
        extras = getattr(image, "tag_v2", {}).get(338, ())
        found.notes += [note for kind, note in ((0, _UNSPECIFIED), (1, _ASSOCIATED)) if kind in np.atleast_1d(extras)]
    if image.mode == "CMYK":
        converted, note = _from_cmyk(image, found.metadata.icc)
        found.notes.append(note)
        found.metadata = replace(found.metadata, icc=None)  # it was for CMYK; what is there now is sRGB
        planes = _planes(converted, name)
    else:
        planes = _planes(image, name)
    if image.mode == "1":
        found.notes.append("its 1 bit per pixel became 8")
    if image.mode == "I" and image.format == "TIFF":
        found.notes.append("its integers of 32 bits became 16: none is above 65535")
    return _picture(image, planes, found, data)


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


def _planes(image: Image.Image, name: str) -> Array:
    """The pixels of a Pillow image as planes `[C,H,W]`: grey or RGB, uint8 or uint16, and alpha where it has some."""
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
        values = np.asarray(image).astype(np.uint16)[None]
        clear = image.info.get("transparency")
        return (
            values if clear is None else np.concatenate([values, np.where(values == clear, 0, 65535).astype(np.uint16)])
        )
    elif mode == "I":
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise UnsupportedImage(f"{name}: integers of 32 bits are not handled; convert it to 16 bits")
        return values.astype(np.uint16)[None]
    elif mode == "YCbCr":
        image = image.convert("RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedImage(f"{name}: images of mode {mode} are not handled yet; convert it to RGB")
    values = np.asarray(image)
    return planar(values) if values.ndim == 3 else values[None].copy()  # Pillow's own may only be read


# -- writing ----------------------------------------------------------------------------------------------


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a Pillow image with its metadata in `info`; float pixels become 8 bits.

    Raises `UnsupportedImage` for 16-bit colour.
    """
    image = _bare(picture)
    image.info.update(metadata.to_info(picture.metadata))
    return image


def _bare(picture: Picture) -> Image.Image:
    planes = picture.planes
    if planes.dtype == np.uint16 and len(planes) > 1:
        raise UnsupportedImage("Pillow has no 16-bit mode for colour or alpha; use numpy arrays or 8 bits")
    return Image.fromarray(interleaved(planes if planes.dtype == np.uint16 else to_eight_bits(planes)))


def left_out(picture: Picture, suffix: str) -> tuple[str, ...]:
    """Notes of what a file of the format that `suffix` names can't hold, and `encode_picture` leaves out."""
    kind = WRITABLE.get(suffix.lower())
    if kind is None:
        return ()
    notes = [f"{kind} can't hold its {what}: left out" for what in metadata.lost(picture.metadata, kind)]
    if kind in ("WEBP", "AVIF") and _opaque(picture):
        notes.append(f"{kind} can't hold its alpha channel, which is opaque everywhere: left out")
    return tuple(notes)


def _opaque(picture: Picture) -> bool:
    """Whether there is an alpha channel, and nothing to be seen of it."""
    return picture.alpha is not None and bool((picture.alpha == peak(picture.alpha.dtype)).all())


def encode_picture(picture: Picture, suffix: str, *, image_quality: int | None = None) -> bytes:
    """The picture as a file of the format that `suffix` names, with what of its metadata that can hold (`left_out`).

    `image_quality`: 1..100 for JPEG, WebP and AVIF (default 95, with full chroma in JPEG; alpha is lossless). Raises
    `UsageError` for an unknown suffix and `OutputError` where the format can't hold the picture (alpha, 16 bits, size).
    """
    kind = check_format(picture, suffix)
    name = picture.name or "the image"
    try:
        if kind == "TIFF":
            return metadata.tiff_file([tiff_page(picture)])
        if kind == "PNG":
            return _encode_png(picture)
        if kind == "BMP":
            return metadata.bmp_with_resolution(_saved(picture, kind), picture.metadata)
        if kind == "PPM":
            return _saved(picture, kind)
        return _encode_lossy(picture, kind, 95 if image_quality is None else image_quality)
    except (OSError, ValueError, struct.error) as error:
        raise OutputError(f"{name}: can't be written as {kind} ({error})") from error


def check_format(picture: Picture, suffix: str) -> str:
    """Pillow's name of the format that `suffix` stands for. Raises `UsageError` where aeimg does not write that,
    `OutputError` where it can't hold the alpha or the depth of the picture."""
    kind = WRITABLE.get(suffix.lower())
    name = picture.name or "the image"
    if kind is None:
        raise UsageError(f"{suffix}: not a format that aeimg writes; use one of {', '.join(sorted(WRITABLE))}")
    if picture.alpha is not None and kind not in KEEPS_ALPHA:
        raise OutputError(f"{name}: {kind} can't hold its transparency; use --format png")
    if picture.pixels.dtype == np.uint16 and kind not in KEEPS_16_BITS:
        raise OutputError(f"{name}: {kind} can't hold its 16 bits; use --format png or tiff")
    return kind


def _saved(picture: Picture, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    _bare(picture).save(buffer, kind, **{key: value for key, value in options.items() if value is not None})
    return buffer.getvalue()


def _encode_lossy(picture: Picture, kind: str, quality: int) -> bytes:
    """JPEG, WebP or AVIF."""
    about = picture.metadata
    options: dict[str, object] = {"quality": quality, "icc_profile": about.icc, "xmp": about.xmp}
    if kind == "JPEG":
        extra = metadata.jpeg_extra(about) or None
        data = _saved(picture, kind, **options, exif=about.exif, subsampling="4:4:4", extra=extra)
        return metadata.jpeg_with_density(data, about)
    if kind == "AVIF" and picture.alpha is not None:
        options |= {"codec": "aom", "advanced": {"alpha:lossless": "1"}}
    return _saved(picture, kind, **options, exif=metadata.exif_with_resolution(about))


def _encode_png(picture: Picture, **options: object) -> bytes:
    if picture.pixels.dtype == np.uint16 and len(picture.planes) > 1:  # beyond Pillow
        data = bytes(importlib.import_module("imagecodecs").png_encode(interleaved(picture.planes), level=6))
    else:
        data = _saved(picture, "PNG", **options)
    return metadata.png_with_metadata(data, picture.metadata)


def tiff_page(picture: Picture, order: str | None = None) -> tuple[metadata.Directory, bytes]:
    """The picture as a page of a TIFF, in one deflated strip; for `metadata.tiff_file`. Pillow can't write 16 bits, nor
    keep EXIF data byte for byte; tifffile knows no EXIF directories.

    `order` is the byte order of the pages before it, "<" or ">"; None takes that of the EXIF data. Raises `OutputError`
    where the format, or the order, can't hold the picture.
    """
    if picture.pixels.dtype == np.uint16 and picture.mode == "LA":  # which few programs read, Pillow not among them
        raise OutputError(f"{picture.name or 'the image'}: TIFF of 16 bits can't hold grey with alpha; use png")
    planes = picture.planes
    samples = np.atleast_3d(interleaved(planes if planes.dtype == np.uint16 else to_eight_bits(planes)))
    directory = metadata.tiff_metadata(picture.metadata, order or "<")
    if directory.order != (order or directory.order):
        raise OutputError(f"{picture.name or 'the image'}: the EXIF data of its pages differ in their byte order")
    strip = zlib.compress(
        samples.astype(samples.dtype.newbyteorder(">" if directory.order == ">" else "<")).tobytes(), 6
    )
    height, width, count = samples.shape
    colours = len(picture.pixels)
    short, long = 3, 4
    for tag, kind, values in (
        (256, long, (width,)), (257, long, (height,)), (258, short, (8 * samples.itemsize,) * count),
        (259, short, (8,)), (262, short, (2 if colours == 3 else 1,)), (277, short, (count,)), (278, long, (height,)),
        (279, long, (len(strip),)), (284, short, (1,)),
    ):  # fmt: skip
        directory.put(tag, kind, *values)
    if count > colours:
        directory.put(338, short, 2)  # the extra sample is alpha that nothing was multiplied with
    if picture.page is not None:
        directory.put(254, long, 2)
        if picture.page.count < 1 << 16:
            directory.put(297, short, picture.page.number - 1, picture.page.count)
    return directory, strip


def encode_lossless(picture: Picture) -> bytes:
    """A picture of 8 bits, or grey of 16, as a lossless file, all its metadata included: WebP for colour where that can
    hold it, otherwise PNG."""
    if (
        picture.pixels.shape[0] == 3
        and max(picture.width, picture.height) <= MAX_WEBP_SIDE
        and not left_out(picture, ".webp")
    ):
        about = picture.metadata
        return _saved(
            picture, "WEBP", lossless=True, exact=True, method=4, quality=75,
            icc_profile=about.icc, xmp=about.xmp, exif=metadata.exif_with_resolution(about),
        )  # fmt: skip
    return _encode_png(picture, optimize=True)
