"""The latent file (`.aei`), version 1. This page and `docs/format.md` are its specification.

All numbers are little-endian; `varint` is an unsigned LEB128 number of at most five bytes.

    4 bytes   magic 89 41 45 49 ("\\x89AEI": the first byte keeps it from being taken for text)
    1 byte    version
    sections, each:
        1 byte    tag
        varint    length of what follows
        ...       payload
    4 bytes   CRC-32 of everything before it

A section occurs at most once. A tag in lower case may be passed over by a reader that does not know it; one in
upper case may not. The sections of version 1:

    I  image    varint width, varint height, u8 channels (1 grey, 3 RGB), u8 bits per channel (8 or 16)
    M  model    8 bytes: the first of the SHA-256 over the weights; then the label in UTF-8: `aeimg-codec-5`
    P  payload  u8 quality (1..100), then what the model's coder wrote
    S  stored   the source file itself, or a lossless WebP or PNG of the pixels: where the model's code was larger
    A  alpha    a greyscale PNG of the picture's size and depth
    C  ICC, E  EXIF (`Exif\\0\\0` in front), X  XMP, i  IPTC-IIM: deflated (RFC 1950)
    k  chunks, deflated: 4 bytes type, varint length, payload, and so on. `COM ` is a comment; others are the PNG chunks
       tEXt, zTXt, iTXt, cICP, mDCV, cLLI, sRGB, gAMA, cHRM; a reader passes over others
    r  resolution: u8 unit (0 none, a ratio; 1 inch, 2 centimetre, 3 metre), then pixels per unit across and down, each
       as u32 numerator, u32 denominator
    n  name of the source file, without folders, UTF-8
    f  format of the source file, as Pillow names it
    p  page, of a source file of several: 8 bytes that all its pages share and others do not (the first of a BLAKE2b of
       the file), varint number, from 1, varint number of pages; then, of a frame of an animation, u32 microseconds for
       which it is shown, u16 how many times the animation is played (0 for without end)

The longer side in I is at most 2^16 times the shorter one. Either S, or I, M and P are there. With S, nothing but `n`,
`f` and `p` accompanies it: the stored file carries its own metadata. All metadata together, inflated, is at most 16
MiB. A reader checks the CRC first, so that a damaged file is refused whole. What that can't catch, a decoder that
decodes otherwise than the encoder did, the model's own data must: the built-in codec's holds a CRC of the symbols.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import IO, BinaryIO

from .errors import ChecksumMismatch, InvalidLatent, TruncatedLatent, UnsupportedVersion
from .metadata import COLOUR_CHUNKS, MAX_METADATA, TEXT_CHUNKS, Metadata, Unit, as_resolution, rational
from .multipage import MANY, Page
from .paths import open_regular, size_of

MAGIC = b"\x89AEI"
VERSION = 1
MAX_SIDE = (1 << 24) - 1
MAX_ASPECT = 1 << 16
"""How many times as long as its shorter side the longer side of a coded picture may be."""
MAX_FILE = 1 << 31
"""How many bytes a latent file may have."""

UNITS: tuple[Unit, ...] = ("", "inch", "centimetre", "metre")
"""Units of the resolution, by their numbers in section `r`."""


@dataclass(frozen=True)
class Coded:
    """A picture as a model coded it."""

    width: int
    height: int
    channels: int
    depth: int
    label: str
    """Name and version of the model."""
    digest: bytes
    """The first 8 bytes of the SHA-256 over its weights."""
    quality: int
    data: bytes
    alpha: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)
    name: str = ""
    format: str = ""
    page: Page | None = None


@dataclass(frozen=True)
class Stored:
    """A picture kept as an ordinary image file."""

    data: bytes
    name: str = ""
    format: str = ""
    page: Page | None = None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int, name: str, end: int | None = None) -> tuple[int, int]:
    value = 0
    for n in range(5):
        if at + n >= (len(data) if end is None else end):
            raise TruncatedLatent(f"{name}: ends inside a number")
        byte = data[at + n]
        value |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return value, at + n + 1
    raise InvalidLatent(f"{name}: holds a number that is too large")


def is_strip(width: int, height: int) -> bool:
    """Returns whether a picture is too thin to be coded: models pad the shorter side."""
    return max(width, height) > MAX_ASPECT * min(width, height)


def write(latent: Coded | Stored) -> bytes:
    """The bytes of a latent file."""
    sections: list[tuple[bytes, bytes | None]] = []
    if isinstance(latent, Stored):
        sections.append((b"S", latent.data))
    else:
        shape = _varint(latent.width) + _varint(latent.height) + bytes([latent.channels, latent.depth])
        sections += [
            (b"I", shape),
            (b"M", latent.digest + latent.label.encode()),
            *((tag.encode(), zlib.compress(part, 9) if part else None) for tag, part in _packed(latent.metadata)),
            (b"r", _packed_resolution(latent.metadata)),
            (b"A", latent.alpha),
            (b"P", bytes([latent.quality]) + latent.data),
        ]
    sections += [(b"n", latent.name.encode("utf-8", "replace") or None), (b"f", latent.format.encode() or None)]
    sections += [(b"p", _packed_page(latent.page))]
    body = b"".join(tag + _varint(len(payload)) + payload for tag, payload in sections if payload is not None)
    whole = MAGIC + bytes([VERSION]) + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def sections(data: bytes, name: str = "the latent file") -> dict[str, bytes]:
    """Tag -> payload, after every check that needs no model. Raises an `InvalidLatent` that says what is wrong."""
    _check_start(data[:5], len(data), name)
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ChecksumMismatch(f"{name}: damaged or cut short (its checksum does not match)")
    found: dict[str, bytes] = {}
    at, end = 5, len(data) - 4
    while at < end:
        tag = chr(data[at])
        length, at = _read_varint(data, at + 1, name, end)
        if length > end - at:
            raise TruncatedLatent(f"{name}: section {tag!r} ends behind the file")
        if tag in found:
            raise InvalidLatent(f"{name}: section {tag!r} occurs twice")
        if tag.isupper() and tag not in "IMPSACEX":
            raise UnsupportedVersion(f"{name}: section {tag!r} is unknown to this aeimg: upgrade it")
        found[tag] = data[at : at + length]
        at += length
    return found


def _check_start(start: bytes, size: int, name: str) -> None:
    if len(start) < 5 or start[:4] != MAGIC:
        raise InvalidLatent(f"{name}: not a latent file of aeimg")
    if start[4] != VERSION:
        raise UnsupportedVersion(
            f"{name}: version {start[4]} of the format; this aeimg reads version {VERSION}: upgrade it"
        )
    if size < 9:
        raise TruncatedLatent(f"{name}: ends after {size} bytes")


_DEFLATED = {"C": "ICC", "E": "EXIF", "X": "XMP", "i": "IPTC", "k": "chunk"}
"""The sections that are deflated, and what is in them."""


def _packed(about: Metadata) -> Iterator[tuple[str, bytes | None]]:
    """The deflated sections before they are, and where there is one the resolution (which deflates to more)."""
    chunks = [*((b"COM ", comment) for comment in about.comments), *about.text, *about.colour]
    yield from (("C", about.icc), ("E", about.exif), ("X", about.xmp), ("i", about.iptc))
    yield "k", b"".join(kind + _varint(len(payload)) + payload for kind, payload in chunks)


def _unpacked(found: dict[str, bytes], name: str) -> Metadata:
    """The mirror of `_packed`. Raises `InvalidLatent`."""
    plain, left = {}, MAX_METADATA
    for tag, what in _DEFLATED.items():
        if tag not in found:
            continue
        try:
            inflater = zlib.decompressobj()
            plain[tag] = inflater.decompress(found[tag], left + 1)
        except zlib.error as error:
            raise InvalidLatent(f"{name}: its {what} data can't be inflated ({error})") from error
        left -= len(plain[tag])
        if left < 0 or not inflater.eof:
            raise InvalidLatent(f"{name}: its {what} data is cut short, or all metadata more than {MAX_METADATA} bytes")
    chunks, at, packed = [], 0, plain.get("k", b"")
    while at < len(packed):
        kind = packed[at : at + 4]
        length, at = _read_varint(packed, at + 4, name)
        if length > len(packed) - at:
            raise TruncatedLatent(f"{name}: a chunk ends behind its section")
        chunks.append((kind, packed[at : at + length]))
        at += length
    stated = None
    if "r" in found:
        if len(found["r"]) != 17 or found["r"][0] >= len(UNITS):
            raise InvalidLatent(f"{name}: its resolution is not one")
        unit, *parts = struct.unpack("<B4I", found["r"])
        if parts[1] and parts[3]:
            stated = as_resolution(Fraction(parts[0], parts[1]), Fraction(parts[2], parts[3]), UNITS[unit])
    return Metadata(
        plain.get("C"), plain.get("E"), plain.get("X"), plain.get("i"),
        tuple(payload for kind, payload in chunks if kind == b"COM "),
        stated,
        tuple(chunk for chunk in chunks if chunk[0] in TEXT_CHUNKS),
        tuple(chunk for chunk in chunks if chunk[0] in COLOUR_CHUNKS),
    )  # fmt: skip


def _packed_resolution(about: Metadata) -> bytes | None:
    stated = about.resolution
    if stated is None:
        return None
    parts = [rational(value) for value in (stated.x, stated.y)]
    return struct.pack("<B4I", UNITS.index(stated.unit), *(n for part in parts for n in part.as_integer_ratio()))


PAGE_ID = 8
"""The length of `Page.source`, in bytes."""


def _packed_page(page: Page | None) -> bytes | None:
    if page is None:
        return None
    shown = b"" if page.duration is None else struct.pack("<IH", page.duration, page.loops)
    return page.source[:PAGE_ID].ljust(PAGE_ID, b"\0") + _varint(page.number) + _varint(page.count) + shown


def _unpacked_page(packed: bytes | None, name: str) -> Page | None:
    """The mirror of `_packed_page`. Raises `InvalidLatent`."""
    if packed is None:
        return None
    number, at = _read_varint(packed, min(PAGE_ID, len(packed)), name)
    count, at = _read_varint(packed, at, name)
    if not 1 <= number <= count <= MANY or len(packed) - at not in (0, 6):
        raise InvalidLatent(f"{name}: its place among the pages of its file is none")
    duration, loops = struct.unpack_from("<IH", packed, at) if at < len(packed) else (None, 0)
    return Page(number, count, duration, loops, packed[:PAGE_ID])


def read_page(path: str | os.PathLike[str]) -> Page | None:
    """The place of a latent file's picture among the pages of its source, if that had several; all other sections are
    passed over. Raises `InvalidLatent`, and `UnreadableImage` as `read_file` does."""
    with open_regular(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidLatent(f"{path}: not a latent file of aeimg")
        file.seek(5)
        while len(head := file.read(6)) == 6:  # as in `outline`
            length, at = _read_varint(head, 1, str(path))
            start = file.seek(at - len(head), os.SEEK_CUR)
            if head[:1] == b"p" and length < 64:
                return _unpacked_page(file.read(length), str(path))
            file.seek(start + length)
    return None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a latent file, for `read`. Raises `InvalidLatent` for any other file before it is read whole, and
    `UnreadableImage` for what can't be read or is no regular file."""
    with open_regular(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidLatent(f"{path}: not a latent file of aeimg")
        size = size_of(file)
        if size > MAX_FILE:
            raise InvalidLatent(f"{path}: has {size} bytes, more than the {MAX_FILE} that a latent file may have")
        return MAGIC + file.read(size)


@dataclass(frozen=True)
class Outline:
    """What a latent file says of its size in memory."""

    width: int = 0
    height: int = 0
    channels: int = 0
    depth: int = 0
    alpha: bool = False
    metadata: int = 0
    """How many bytes the metadata may inflate to."""
    stored: int | None = None
    """Where in the file the image file begins that it stores, if it does."""


def outline(file: BinaryIO) -> Outline:
    """Reads the sizes of a latent file and passes over everything else. Raises `InvalidLatent`."""
    name, found, metadata = "the latent file", Outline(), 0
    file.seek(5)
    while len(head := file.read(6)) == 6:  # of the four last bytes, no section begins with one
        tag = chr(head[0])
        length, at = _read_varint(head, 1, name)
        start = file.seek(at - len(head), os.SEEK_CUR)
        if tag == "S":
            return Outline(stored=start)
        if tag == "I" and length < 64:
            image = file.read(length)
            width, at = _read_varint(image, 0, name)
            height, at = _read_varint(image, at, name)
            channels, depth = image[at : at + 2]
            found = replace(found, width=width, height=height, channels=channels, depth=depth)
        elif tag in _DEFLATED:
            metadata += 1032 * length  # deflate's best
        elif tag == "A":
            found = replace(found, alpha=True)
        file.seek(start + length)
    return replace(found, metadata=min(metadata, MAX_METADATA))


def read_head(file: IO[bytes], name: str = "the latent file") -> Coded | Stored:
    """What `read` returns, without the code and the alpha of a `Coded`: its `data` is empty, and `alpha` is empty where
    there is one. The file is not read whole, so that its checksum is not compared. Raises `InvalidLatent`."""
    end = file.seek(0, os.SEEK_END) - 4
    file.seek(0)
    _check_start(file.read(5), end + 4, name)
    found: dict[str, bytes] = {}
    at = 5
    while at < end:
        head = file.read(6)
        tag = chr(head[0])
        length, used = _read_varint(head, 1, name)
        start = at + used
        if length > end - start:
            raise TruncatedLatent(f"{name}: section {tag!r} ends behind the file")
        file.seek(start)
        found[tag] = file.read(min(length, {"P": 1, "A": 0}.get(tag, length)))
        at = file.seek(start + length)
    return _parsed(found, name)


def read(data: bytes, name: str = "the latent file") -> Coded | Stored:
    """The mirror of `write`. Raises an `InvalidLatent` that says what is wrong."""
    return _parsed(sections(data, name), name)


def _parsed(found: dict[str, bytes], name: str) -> Coded | Stored:
    try:
        about = {"name": found.get("n", b"").decode(), "format": found.get("f", b"").decode()}
        page = _unpacked_page(found.get("p"), name)
        if "S" in found:
            return Stored(found["S"], **about, page=page)
        for tag in "IMP":
            if tag not in found:
                raise InvalidLatent(f"{name}: section {tag!r} is missing")
        image, model, payload = found["I"], found["M"], found["P"]
        width, at = _read_varint(image, 0, name)
        height, at = _read_varint(image, at, name)
        if len(image) != at + 2 or len(model) < 9 or not payload:
            raise TruncatedLatent(f"{name}: a section is too short")
        channels, depth = image[at], image[at + 1]
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise InvalidLatent(f"{name}: declares an impossible size of {width}x{height}")
        if is_strip(width, height):
            raise InvalidLatent(f"{name}: declares {width}x{height} pixels; pictures as thin as that are only stored")
        if channels not in (1, 3) or depth not in (8, 16):
            raise UnsupportedVersion(f"{name}: {channels} channels of {depth} bits are unknown to this aeimg")
        quality = payload[0]
        if not 1 <= quality <= 100:
            raise InvalidLatent(f"{name}: declares quality {quality}, outside 1..100")
        return Coded(
            width, height, channels, depth, model[8:].decode(), model[:8], quality, payload[1:],
            found.get("A"),
            _unpacked(found, name),
            **about,
            page=page,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise InvalidLatent(f"{name}: holds text that is not UTF-8") from error
