"""What comes with a picture besides its pixels, and where it lies in the bytes of image files.

    read    an image file  ->  `Found`: a `Metadata`, the orientation that was taken out of it, and notes
    write   `Metadata`     ->  the segments, chunks and directories of JPEG, PNG, TIFF and others

Texts are never decoded: what a program wrote is kept byte for byte, whatever its encoding. EXIF data stays where it
lies (the notes of camera makers refer to places in it); the orientation, which is applied to the pixels, and the
thumbnail, which shows another picture than the result, are cut out in place.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, NamedTuple, TypedDict

from PIL import Image

MAX_METADATA = 16 << 20
"""How many bytes of metadata a picture may have in all. What is beyond that is left out, the largest part first."""

Unit = Literal["", "inch", "centimetre", "metre"]

_PER_METRE: dict[str, Fraction] = {"inch": Fraction(10_000, 254), "centimetre": Fraction(100), "metre": Fraction(1)}
_EXIF_UNITS: dict[int, Unit] = {1: "", 2: "inch", 3: "centimetre"}
_JFIF_UNITS: dict[int, Unit] = {0: "", 1: "inch", 2: "centimetre"}

Chunk = tuple[bytes, bytes]
"""Type (four letters) and payload of a chunk of a PNG file."""

COLOUR_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"sRGB", b"gAMA", b"cHRM")
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class Resolution:
    """Pixels per unit, across and down; with the unit "" only their ratio means something."""

    x: Fraction
    """Pixels per unit, from left to right."""
    y: Fraction
    """Pixels per unit, from top to bottom."""
    unit: Unit = "inch"
    """The unit of length; empty where none is known."""

    def per(self, unit: Unit) -> tuple[Fraction, Fraction]:
        """The same per another unit. A ratio stays as it is."""
        if not self.unit or not unit:
            return self.x, self.y
        factor = _PER_METRE[self.unit] / _PER_METRE[unit]
        return self.x * factor, self.y * factor

    @property
    def turned(self) -> Resolution:
        """That of the picture turned by 90 degrees."""
        return replace(self, x=self.y, y=self.x)


def as_resolution(x: Fraction | float | None, y: Fraction | float | None, unit: Unit | None) -> Resolution | None:
    """Numbers that a file holds as a `Resolution`; None where they mean nothing."""
    if x is None or y is None:
        return None
    try:
        across, down = Fraction(x), Fraction(y)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    sound = unit is not None and 0 < across < 1 << 31 and 0 < down < 1 << 31 and not (unit == "" and across == down)
    return Resolution(across, down, unit) if sound and unit is not None else None


def rational(value: Fraction) -> Fraction:
    """The nearest fraction of two numbers of 32 bits."""
    return next(near for most in (10**6, 1000, 1) if (near := value.limit_denominator(most)).numerator < 1 << 32)


@dataclass(frozen=True)
class Metadata:
    """What came with a picture. Empty fields were not there."""

    icc: bytes | None = None
    """The ICC profile."""
    exif: bytes | None = None
    """The EXIF data, with the six bytes of `Exif\\0\\0` in front, without orientation and thumbnail."""
    xmp: bytes | None = None
    """The XMP packet."""
    iptc: bytes | None = None
    """The IPTC-IIM records."""
    comments: tuple[bytes, ...] = ()
    """The comments of JPEG and GIF, and texts of PNG under the keyword `Comment`."""
    resolution: Resolution | None = None
    """The resolution that JFIF, PNG or BMP states; that of EXIF and TIFF stays in the EXIF data."""
    text: tuple[Chunk, ...] = ()
    """The chunks of PNG with other texts."""
    colour: tuple[Chunk, ...] = ()
    """The chunks of PNG that describe its colours beside the ICC profile: gamma, primaries, transfer function."""

    @property
    def any_resolution(self) -> Resolution | None:
        """`resolution`, or else that of the EXIF data."""
        return self.resolution or exif_resolution(self.exif)

    def sizes(self) -> dict[str, int]:
        """How many bytes each field has."""
        chunks = {"text": self.text, "colour": self.colour}
        sizes = {name: len(getattr(self, name) or b"") for name in ("icc", "exif", "xmp", "iptc")}
        sizes |= {name: sum(len(payload) for _, payload in value) for name, value in chunks.items()}
        return sizes | {"comments": sum(map(len, self.comments))}


NAMES = {
    "icc": "ICC profile", "exif": "EXIF data", "xmp": "XMP data", "iptc": "IPTC data", "comments": "comments",
    "resolution": "resolution", "text": "texts", "colour": "description of its colours",
}  # fmt: skip
"""What users call the fields of `Metadata`."""

HOLDS: dict[str, tuple[str, ...]] = {
    "JPEG": ("icc", "exif", "xmp", "iptc", "comments", "resolution"),
    "PNG": tuple(NAMES),
    "WEBP": ("icc", "exif", "xmp", "resolution"),
    "AVIF": ("icc", "exif", "xmp", "resolution"),
    "TIFF": ("icc", "exif", "xmp", "iptc", "resolution"),
    "BMP": ("resolution",),
    "PPM": (),
}
"""Which fields each format that is written can hold, by Pillow's names of the formats."""


def lost(metadata: Metadata, kind: str) -> tuple[str, ...]:
    """The fields of `metadata`, in users' words, that a file of the format `kind` can't hold."""
    missing = [name for name in NAMES if getattr(metadata, name) and name not in HOLDS[kind]]
    kinds = {chunk for chunk, _ in metadata.colour}
    if "colour" in missing and b"sRGB" in kinds and kinds <= {b"sRGB", b"gAMA", b"cHRM"}:
        missing.remove("colour")  # sRGB is what every program takes for granted
    return tuple(NAMES[name] for name in missing)


class _Parts(TypedDict, total=False):
    """Those fields of `Metadata` that one of the places which `read` looks at states."""

    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    iptc: bytes | None
    comments: tuple[bytes, ...]
    resolution: Resolution | None
    text: tuple[Chunk, ...]
    colour: tuple[Chunk, ...]


@dataclass
class Found:
    """What `read` found."""

    metadata: Metadata = field(default_factory=Metadata)
    """What came with the picture."""
    orientation: int = 1
    """The orientation in EXIF's numbers, 1..8: see `pixels.UPRIGHT`."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""


def capped(metadata: Metadata) -> tuple[Metadata, list[str]]:
    """`metadata` within `MAX_METADATA`, and notes of what was left out for that."""
    notes = []
    sizes = metadata.sizes()
    while sum(sizes.values()) > MAX_METADATA:
        name = max(sizes, key=sizes.__getitem__)
        notes.append(f"its {NAMES[name]} ({sizes[name]} bytes) was left out: metadata of more than {MAX_METADATA} "
                     "bytes in all is not kept")  # fmt: skip
        metadata = replace(metadata, **{name: getattr(Metadata(), name)})
        sizes = metadata.sizes()
    return metadata, notes


def sound(metadata: Metadata) -> tuple[Metadata, list[str]]:
    """`metadata` of a latent file, which anybody may have written, without damaged EXIF data; and notes of that."""
    notes: list[str] = []
    exif = _clean_exif(metadata.exif, notes)[0] if metadata.exif else None
    return replace(metadata, exif=exif), notes


# -- directories of TIFF and EXIF -------------------------------------------------------------------------------------

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BELOW = (0x8769, 0x8825, 0xA005)  # directories of EXIF, GPS and interoperability, below another
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
_SHORT, _RATIONAL = 3, 5


class Entry(NamedTuple):
    """A value of a directory."""

    kind: int
    """TIFF's number of the type."""
    length: int
    """How many values it has."""
    data: bytes
    """In the byte order of the file."""


@dataclass
class Directory:
    """A directory of TIFF or EXIF, as it lies in the file."""

    order: str = "<"
    """Byte order, for `struct`."""
    entries: dict[int, Entry] = field(default_factory=dict)
    """Tag -> value."""
    below: dict[int, Directory] = field(default_factory=dict)
    """Tag -> the directory that it leads to: that of EXIF, GPS or interoperability."""
    damaged: set[tuple[int, int]] = field(default_factory=set)
    """Entries, here and below, that lead behind the data: where their directory lies, and where they lie."""

    def number(self, tag: int) -> Fraction | None:
        """The first number of an entry; None where there is none."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in (1, _SHORT, 4, _RATIONAL) or not entry.length:
            return None
        if entry.kind == _RATIONAL:
            over, under = struct.unpack(self.order + "II", entry.data[:8])
            return Fraction(over, under) if under else None
        code = {1: "B", _SHORT: "H", 4: "I"}[entry.kind]
        return Fraction(struct.unpack(self.order + code, entry.data[: _SIZES[entry.kind]])[0])

    def numbers(self, tag: int) -> list[int]:
        """The whole numbers of an entry; none where there is none."""
        entry = self.entries.get(tag)
        code = {1: "B", _SHORT: "H", 4: "I"}.get(entry.kind) if entry is not None else None
        if entry is None or code is None:
            return []
        return list(struct.unpack(f"{self.order}{entry.length}{code}", entry.data))

    def put(self, tag: int, kind: int, *values: int | Fraction) -> None:
        """Sets an entry of shorts, longs or rationals, which are given as fractions."""
        if kind == _RATIONAL:
            flat = [part for value in values for part in (value.numerator, value.denominator)]
            self.entries[tag] = Entry(kind, len(values), struct.pack(f"{self.order}{len(flat)}I", *flat))
        else:
            code = {_SHORT: "H", 4: "I"}[kind]
            self.entries[tag] = Entry(kind, len(values), struct.pack(f"{self.order}{len(values)}{code}", *values))

    def put_bytes(self, tag: int, kind: int, data: bytes) -> None:
        """Sets an entry of bytes, whose type `kind` is one that has a byte for each value."""
        self.entries[tag] = Entry(kind, len(data), data)


def byte_order(tiff: bytes) -> str | None:
    """`<` or `>` where `tiff` begins as TIFF and EXIF data do, otherwise None."""
    return {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}.get(tiff[:4])


def read_directory(tiff: bytes, at: int | None = None, *, deep: int = 0) -> Directory:
    """The directory at `at` (the first, where None) of TIFF or EXIF data. Raises `ValueError` where there is none."""
    order = byte_order(tiff)
    if order is None:
        raise ValueError("no byte order at its beginning")
    big = tiff[2:4] in (b"+\0", b"\0+")
    head, entry, wide = ("Q", 20, "Q") if big else ("H", 12, "I")
    try:
        if at is None:
            (at,) = struct.unpack_from(order + wide, tiff, 8 if big else 4)
        start = at
        (count,) = struct.unpack_from(order + head, tiff, at)
        at += struct.calcsize(head)
        if at + count * entry > len(tiff):
            raise ValueError("a directory that ends behind the data")
    except struct.error as error:
        raise ValueError("a directory behind the data") from error
    found, budget = Directory(order), MAX_METADATA
    for place in range(at, at + count * entry, entry):
        tag, kind, length = struct.unpack_from(f"{order}HH{wide}", tiff, place)
        size, inline = length * _SIZES.get(kind, 0), struct.calcsize(wide)
        where = place + entry - inline
        if size > inline:
            (where,) = struct.unpack_from(order + wide, tiff, where)
        if kind not in _SIZES or where + size > len(tiff) or size > budget:
            if kind in _SIZES:  # of a type that nobody knows, it may be as it should
                found.damaged.add((start, place))
            continue
        if tag in _BELOW and kind in (4, 13) and deep < 2:
            try:
                found.below[tag] = read_directory(tiff, struct.unpack_from(order + "I", tiff, where)[0], deep=deep + 1)
                found.damaged |= found.below[tag].damaged
            except ValueError:
                found.damaged.add((start, place))
            continue
        budget -= size
        found.entries[tag] = Entry(kind, length, tiff[where : where + size])
    return found


def lay_out(directory: Directory, at: int) -> bytes:
    """The mirror of `read_directory`: the bytes of a directory, and of those below it, to be put at the place `at`."""
    order, below = directory.order, directory.below
    end = at + 2 + 12 * (len(directory.entries) + len(below)) + 4
    head, tail = [], bytearray()
    for tag in sorted({*directory.entries, *below}):
        if tag in below:
            kind, count, value = 4, 1, struct.pack(order + "I", end + len(tail))
            tail += lay_out(below[tag], end + len(tail))
        else:
            kind, count, value = directory.entries[tag]
            if len(value) > 4:
                place, value = end + len(tail), value
                tail += value + bytes(len(value) % 2)
                value = struct.pack(order + "I", place)
        head.append(struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
    return struct.pack(order + "H", len(head)) + b"".join(head) + bytes(4) + bytes(tail)


def as_exif(directory: Directory) -> bytes | None:
    """EXIF data of a directory; None where that is empty."""
    if not directory.entries and not directory.below:
        return None
    return b"Exif\0\0" + _head(directory.order) + lay_out(directory, 8)


def _head(order: str) -> bytes:
    return b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"


def of_exif(exif: bytes) -> Directory:
    """The first directory of EXIF data, and those below it. Raises `ValueError`."""
    return read_directory(exif.removeprefix(b"Exif\0\0"))


def exif_resolution(exif: bytes | None) -> Resolution | None:
    """The resolution that EXIF data states."""
    if exif is None:
        return None
    return _stated_resolution(of_exif(exif))


def _stated_resolution(directory: Directory) -> Resolution | None:
    number = directory.number(RESOLUTION_UNIT)
    unit = _EXIF_UNITS.get(2 if number is None else int(number))
    return as_resolution(directory.number(X_RESOLUTION), directory.number(Y_RESOLUTION), unit)


def put_resolution(directory: Directory, stated: Resolution) -> None:
    """States a resolution in a directory."""
    unit: Unit = "inch" if stated.unit == "metre" else stated.unit
    values = [rational(value) for value in stated.per(unit)]
    directory.put(X_RESOLUTION, _RATIONAL, values[0])
    directory.put(Y_RESOLUTION, _RATIONAL, values[1])
    directory.put(RESOLUTION_UNIT, _SHORT, {"": 1, "inch": 2, "centimetre": 3}[unit])


def exif_with_resolution(metadata: Metadata) -> bytes | None:
    """The EXIF data, for formats that have no other place for the resolution: with that, unless it has one of its own.

    The new first directory goes to the end, so that everything else stays where it lies.
    """
    stated, exif = metadata.resolution, metadata.exif
    if stated is None or exif_resolution(exif) is not None:
        return exif
    if exif is None:
        directory = Directory()
        put_resolution(directory, stated)
        return as_exif(directory)
    tiff = exif.removeprefix(b"Exif\0\0")
    tiff += bytes(len(tiff) % 2)
    order = byte_order(tiff)
    assert order is not None
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    added = Directory(order)
    put_resolution(added, stated)
    laid = lay_out(added, len(tiff) + 12 * count)  # its values behind the entries that were there
    new = int.from_bytes(laid[:2], "little" if order == "<" else "big")
    old = [tiff[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]
    fresh = [laid[2 + 12 * n : 14 + 12 * n] for n in range(new)]
    taken = {entry[:2] for entry in fresh}
    old = [entry for entry in old if entry[:2] not in taken]
    filler = bytes(12 * (count - len(old)))
    entries = sorted(old + fresh, key=lambda entry: struct.unpack(order + "H", entry[:2]))
    follows = tiff[at + 2 + 12 * count :][:4].ljust(4, b"\0")
    block = struct.pack(order + "H", len(entries)) + b"".join(entries) + follows + filler + laid[2 + 12 * new + 4 :]
    return b"Exif\0\0" + tiff[:4] + struct.pack(order + "I", len(tiff)) + tiff[8:] + block


_SIDES = {0x0100: 0, 0x0101: 1, 0xA002: 0, 0xA003: 1}
"""The tags of width and height: those of TIFF, and EXIF's own."""


def with_size(metadata: Metadata, width: int, height: int) -> Metadata:
    """`metadata` of a picture that now has `width` x `height` pixels: what EXIF and XMP state of that is changed in its
    place. The resolution stays, so the picture has become larger in inches, too."""
    return replace(
        metadata,
        exif=None if metadata.exif is None else _exif_with_size(metadata.exif, (width, height)),
        xmp=None if metadata.xmp is None else _xmp_with_size(metadata.xmp, (width, height)),
    )


def _exif_with_size(exif: bytes, sides: tuple[int, int]) -> bytes:
    head = b"Exif\0\0" if exif.startswith(b"Exif\0\0") else b""
    tiff = exif[len(head) :]
    order = byte_order(tiff)
    if order is None:
        return exif
    changed = bytearray(tiff)
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    for start in (at, _place_below(tiff, order, at, 0x8769)):
        for place in _places(tiff, order, start):
            tag, kind, length = struct.unpack_from(order + "HHI", tiff, place)
            if tag in _SIDES and kind in (_SHORT, 4) and length == 1:  # a long, which any side fits into
                struct.pack_into(order + "HHII", changed, place, tag, 4, 1, sides[_SIDES[tag]])
    return head + bytes(changed)


def _places(tiff: bytes, order: str, at: int | None) -> range:
    """Where the entries of the directory at `at` lie; nowhere where it is None or lies behind the data."""
    if at is None or at + 2 > len(tiff):
        return range(0)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    return range(at + 2, min(at + 2 + 12 * count, len(tiff) - 11), 12)


def _place_below(tiff: bytes, order: str, at: int, tag: int) -> int | None:
    """Where the directory lies to which an entry `tag` of the directory at `at` leads."""
    for place in _places(tiff, order, at):
        found, _, _, where = struct.unpack_from(order + "HHII", tiff, place)
        if found == tag:
            return int(where)
    return None


_XMP_SIDES = {
    b"tiff:ImageWidth": 0, b"tiff:ImageLength": 1, b"exif:PixelXDimension": 0, b"exif:PixelYDimension": 1
}  # fmt: skip


def _xmp_with_size(xmp: bytes, sides: tuple[int, int]) -> bytes:
    for name, side in _XMP_SIDES.items():
        value = str(sides[side]).encode()
        for before in (name + rb"\s*=\s*[\"']", b"<" + name + rb"\s*>\s*"):
            xmp = re.sub(b"(" + before + rb")\d+", rb"\g<1>" + value, xmp)
    return xmp


_DAMAGED = "of its EXIF data {} entries were left out: they are damaged"


def _clean_exif(exif: bytes, notes: list[str]) -> tuple[bytes | None, int]:
    """EXIF data without orientation and thumbnail, all else in its place; and the orientation (0 where it has none)."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        directory = read_directory(exif)
        if exif[2:4] not in (b"*\0", b"\0*"):
            raise ValueError("it is none but BigTIFF")
    except ValueError as error:
        notes.append(f"its EXIF data was left out: it is damaged ({error})")
        return None, 0
    stated = directory.number(ORIENTATION)
    orientation = int(stated) if stated is not None and 1 <= stated <= 8 else 0
    if directory.damaged:
        notes.append(_DAMAGED.format(len(directory.damaged)))
    tiff, order = bytearray(exif), directory.order
    (at,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, at)
    _cut_thumbnail(tiff, order, at + 2 + 12 * count)
    cut = {(at, place) for place in range(at + 2, at + 2 + 12 * count, 12)
           if struct.unpack_from(order + "H", tiff, place) == (ORIENTATION,)}  # fmt: skip
    for start, place in sorted(cut | directory.damaged, reverse=True):
        _cut_entry(tiff, order, start, place)
    empty = not directory.below and not directory.entries.keys() - {ORIENTATION}
    return None if empty else b"Exif\0\0" + bytes(tiff), orientation


def _cut_entry(tiff: bytearray, order: str, at: int, place: int) -> None:
    """Cuts the entry at `place` out of the directory at `at` of EXIF data; only the entries behind it move."""
    (count,) = struct.unpack_from(order + "H", tiff, at)
    end = min(at + 2 + 12 * count + 4, len(tiff))
    tiff[place:end] = tiff[place + 12 : end] + bytes(12)
    struct.pack_into(order + "H", tiff, at, count - 1)


def _cut_thumbnail(tiff: bytearray, order: str, at: int) -> None:
    """Cuts the second directory, to which the number at `at` leads, and its picture out of EXIF data, in place."""
    if at + 4 > len(tiff):
        return
    (second,) = struct.unpack_from(order + "I", tiff, at)
    if not second:
        return
    struct.pack_into(order + "I", tiff, at, 0)
    try:
        directory = read_directory(bytes(tiff), second)
    except ValueError:
        return
    begin, length = directory.number(513), directory.number(514)
    if begin is None or length is None or not 8 <= begin < begin + length <= len(tiff):
        return
    first, last = int(begin), int(begin + length)
    if len(tiff) - last < 4 and at + 4 <= first:
        del tiff[first:]
    else:
        tiff[first:last] = bytes(last - first)


# -- reading ----------------------------------------------------------------------------------------------------------


def read(image: Image.Image, data: bytes | None = None, directory: int | None = None) -> Found:
    """What came with `image`, which was opened from the file `data`, or which a caller made or opened.

    Of a TIFF, `directory` is where that of the page lies; None for the first one. The image is not changed. Whatever is
    damaged is left out, and a note says so.
    """
    found = Found()
    parts: _Parts = {}
    kind = image.format or ""
    of_file: dict[str, Callable[[bytes], _Parts]] = {
        "JPEG": _of_jpeg, "MPO": _of_jpeg, "PNG": _of_png, "BMP": _of_bmp, "DIB": _of_bmp, "AVIF": _of_avif,
    }  # fmt: skip
    readers: list[Callable[[], _Parts]] = [
        lambda: _of_info(image), lambda: _exif_of_info(image), lambda: _colour_of_info(image)
    ]  # fmt: skip
    if kind == "TIFF":
        readers.append(lambda: _of_tiff(image, data, directory, found.notes))
    if data is not None and kind in of_file:
        readers.append(lambda: of_file[kind](data))
    for reader in readers:
        try:
            parts |= reader()
        except Exception as error:  # Pillow's parsers raise errors of every kind
            found.notes.append(f"some of its metadata was left out: it is damaged ({error})")
    exif, orientation = parts.get("exif"), 0
    if exif:
        parts["exif"], orientation = _clean_exif(exif, found.notes)
    xmp = parts.get("xmp")
    stated = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp) if xmp else None
    if xmp and stated:
        orientation = orientation or int(stated[1])
        parts["xmp"] = re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", xmp)
    metadata, notes = capped(Metadata(**parts))
    found.notes += notes
    found.orientation = orientation or 1
    if found.orientation >= 5 and metadata.resolution is not None:
        metadata = replace(metadata, resolution=metadata.resolution.turned)
    found.metadata = metadata
    return found


def _bytes(value: object, encoding: str = "utf-8") -> bytes | None:
    if isinstance(value, str):
        return value.encode(encoding, "surrogateescape") or None
    return bytes(value) or None if isinstance(value, bytes | bytearray) else None


def _of_info(image: Image.Image) -> _Parts:
    """What Pillow keeps in an image's `info`, the mirror of `to_info`."""
    info = image.info
    photoshop, comment, dpi = info.get("photoshop"), _bytes(info.get("comment")), info.get("dpi")
    return {
        "icc": _bytes(info.get("icc_profile")), "xmp": _bytes(info.get("xmp")),
        "iptc": _bytes(photoshop.get(0x0404)) if isinstance(photoshop, dict) else None,
        "comments": (comment,) if comment else (), "resolution": _of_dpi(dpi) if dpi else None,
    }  # fmt: skip


def _exif_of_info(image: Image.Image) -> _Parts:
    exif, profile = _bytes(image.info.get("exif")), image.info.get("Raw profile type exif")
    if image.format == "AVIF" and hasattr(image, "_decoder"):  # Pillow writes EXIF anew where the picture is turned
        *_, raw, turned, _ = image._decoder.get_info()
        exif = _with_orientation(raw or None, turned)
    if exif is None and isinstance(profile, str):
        exif = bytes.fromhex("".join(profile.split("\n")[3:]))
    if exif is None and not hasattr(image, "tag_v2") and image.getexif():
        exif = image.getexif().tobytes()
    return {"exif": exif}


def _colour_of_info(image: Image.Image) -> _Parts:
    info = image.info
    colour: list[Chunk] = [(b"cICP", info["cicp"])] if isinstance(info.get("cicp"), bytes) else []
    stated = info.get("nclx_profile")  # of HEIF
    if isinstance(stated, dict) and not info.get("icc_profile"):
        colour += _cicp(int(stated["color_primaries"]), int(stated["transfer_characteristics"]))
    if isinstance(info.get("srgb"), int):
        colour.append((b"sRGB", bytes([info["srgb"]])))
    if info.get("gamma"):
        colour.append((b"gAMA", struct.pack(">I", round(100_000 * info["gamma"]))))
    if info.get("chromaticity"):
        colour.append((b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in info["chromaticity"]))))
    return {"colour": tuple(colour)}


def _of_dpi(dpi: Iterable[float]) -> Resolution | None:
    try:
        x, y = (Fraction(float(value)).limit_denominator(10_000) for value in dpi)
    except (TypeError, ValueError, OverflowError):
        return None
    return as_resolution(x, y, "inch")


def _with_orientation(exif: bytes | None, orientation: int) -> bytes | None:
    """EXIF data that states `orientation`, which AVIF keeps apart from it."""
    if exif is None:
        if orientation == 1:
            return None
        directory = Directory()
        directory.put(ORIENTATION, _SHORT, orientation)
        return as_exif(directory)
    try:
        directory = of_exif(exif)
    except ValueError:
        return exif if orientation == 1 else _with_orientation(None, orientation)
    if (directory.number(ORIENTATION) or 1) == orientation:
        return exif
    tiff = bytearray(exif.removeprefix(b"Exif\0\0"))
    at = struct.unpack_from(directory.order + "I", tiff, 4)[0]
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from(directory.order + "H", tiff, at)[0], 12):
        if struct.unpack_from(directory.order + "H", tiff, place) == (ORIENTATION,):
            struct.pack_into(directory.order + "HHIHH", tiff, place, ORIENTATION, _SHORT, 1, orientation, 0)
            return bytes(tiff)
    directory.put(ORIENTATION, _SHORT, orientation)
    return as_exif(directory)


def avif_without_exif(data: bytes) -> bytes | None:
    """An AVIF file with empty EXIF data in the place of its own, for where that keeps it from being read at all; None
    where there is none."""
    item = next((found for found in re.finditer(rb"infe([\2\3])...(..|....)..Exif", data[:65_536], re.DOTALL)
                 if len(found[2]) == (2 if found[1] == b"\2" else 4)), None)  # fmt: skip
    at = data.find(b"iloc") + 4
    if item is None or at < 4:
        return None
    version, sizes, more = data[at], data[at + 4], data[at + 5]

    def number(length: int) -> int:
        nonlocal at
        at += length
        return int.from_bytes(data[at - length : at], "big")

    at += 6
    for _ in range(number(4 if version == 2 else 2)):
        name = number(4 if version == 2 else 2)
        at += 4 if version else 2  # how it is built, and from which file
        base, extents = number(more >> 4), number(2)
        for _ in range(extents):
            at += (more & 15) if version else 0
            place, length = base + number(sizes >> 4), number(sizes & 15)
            if name == int.from_bytes(item[2], "big") and 14 <= length <= len(data) - place:
                empty = bytes(4) + _head("<") + bytes(length - 12)
                return data[:place] + empty + data[place + length :]
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and payload of the segments of a JPEG file that come before its pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker == 0xDA:
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _of_jpeg(data: bytes) -> _Parts:
    found: _Parts = {"resolution": None}
    comments, photoshop = [], b""
    for marker, payload in jpeg_segments(data):
        if marker == 0xE0 and payload[:5] == b"JFIF\0" and len(payload) >= 12:
            unit, x, y = struct.unpack_from(">BHH", payload, 7)
            found["resolution"] = as_resolution(x, y, _JFIF_UNITS.get(unit))
        elif marker == 0xED and payload[:14] == b"Photoshop 3.0\0":
            photoshop += payload[14:]
        elif marker == 0xFE and payload:
            comments.append(payload)
    found["comments"], found["iptc"] = tuple(comments), _iptc_of(photoshop)
    return found


def _iptc_of(resources: bytes) -> bytes | None:
    """The IPTC records in Photoshop's image resources."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        number, name = struct.unpack_from(">HB", resources, at + 4)
        at += 6 + (name + 2) // 2 * 2
        (size,) = struct.unpack_from(">I", resources, at)
        if number == 0x0404:
            return resources[at + 4 : at + 4 + size] or None
        at += 4 + size + size % 2
    return None


def _as_resources(iptc: bytes) -> bytes:
    """The mirror of `_iptc_of`."""
    return b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG file, pixels left out."""
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind not in (b"IDAT", b"fdAT"):
            yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


def _of_png(data: bytes) -> _Parts:
    found: _Parts = {"resolution": None}
    comments, text, colour = [], [], []
    for kind, payload in png_chunks(data):
        keyword, _, rest = payload.partition(b"\0")
        if kind == b"pHYs" and len(payload) == 9:
            x, y, unit = struct.unpack(">IIB", payload)
            found["resolution"] = as_resolution(x, y, "metre" if unit == 1 else "")
        elif kind in COLOUR_CHUNKS:
            colour.append((kind, payload))
        elif kind not in TEXT_CHUNKS or keyword in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
            continue  # these are in Pillow's `info`
        elif keyword == b"Comment" and (kind == b"tEXt" or (kind == b"iTXt" and rest.startswith(bytes(4)))):
            comments.append(rest if kind == b"tEXt" else rest[4:])
        elif keyword == b"Raw profile type iptc" and kind != b"iTXt":
            found["iptc"] = _of_profile(
                zlib.decompressobj().decompress(rest[1:], MAX_METADATA) if kind == b"zTXt" else rest
            )
        else:
            text.append((kind, payload))
    found["comments"], found["text"], found["colour"] = tuple(comments), tuple(text), tuple(colour)
    return found


def _of_profile(text: bytes) -> bytes | None:
    """IPTC records as ImageMagick writes them into PNG: name, length, then hexadecimal digits."""
    parts = text.split(None, 2)
    block = bytes.fromhex(parts[2].decode("ascii")) if len(parts) == 3 else b""
    return (_iptc_of(block) if block.startswith(b"8BIM") else block) or None


def _as_profile(iptc: bytes) -> bytes:
    """The mirror of `_of_profile`."""
    digits = _as_resources(iptc).hex()
    lines = "\n".join(digits[n : n + 72] for n in range(0, len(digits), 72))
    return f"\niptc\n{len(digits) // 2:8}\n{lines}\n".encode()


# Of a TIFF's tags, those that describe the picture; the others describe how that file was laid out.
_TIFF_TAGS = (269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 18246, 33432, *range(40091, 40096))
_IPTC, _PHOTOSHOP, _ICC, _XMP = 33723, 34377, 34675, 700


def tiff_bytes(image: Image.Image, data: bytes | None) -> bytes | None:
    """The bytes of the TIFF file that Pillow opened as `image`; None where they are no longer to be had."""
    if data is not None:
        return data
    file = getattr(image, "fp", None)
    if file is None:
        return None
    at = file.tell()
    file.seek(0)
    whole: bytes = file.read()
    file.seek(at)
    return whole


def _stated_by_pillow(image: Image.Image) -> bytes | None:
    """EXIF data of what Pillow remembers of a TIFF whose file is closed; texts that are not ASCII suffer."""
    exif, kept = image.getexif(), Image.Exif()
    for tag in _TIFF_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    for tag in _BELOW[:2]:
        if exif.get_ifd(tag):
            kept.get_ifd(tag).update(exif.get_ifd(tag))
    return kept.tobytes() if kept else None


def _of_tiff(image: Image.Image, data: bytes | None, at: int | None, notes: list[str]) -> _Parts:
    file = tiff_bytes(image, data)
    if file is None:
        return {"exif": _stated_by_pillow(image)}
    whole = read_directory(file, at)
    if whole.damaged:
        notes.append(_DAMAGED.format(len(whole.damaged)))
    described = {tag: whole.entries[tag] for tag in (*_TIFF_TAGS, ORIENTATION) if tag in whole.entries}
    kept = Directory(whole.order, described, whole.below)
    iptc, photoshop = whole.entries.get(_IPTC), whole.entries.get(_PHOTOSHOP)
    records = iptc.data if iptc else _iptc_of(photoshop.data) if photoshop else None
    if records and iptc and iptc.kind == 4 and records[0] != 0x1C and records[3:4] == b"\x1c":  # written as integers
        records = b"".join(records[n : n + 4][::-1] for n in range(0, len(records), 4))
    # Not those of Pillow, which may be of the page before.
    icc, xmp = (whole.entries[tag].data if tag in whole.entries else None for tag in (_ICC, _XMP))
    return {"exif": as_exif(kept), "iptc": records, "resolution": None, "icc": icc or None, "xmp": xmp or None}


def _of_bmp(data: bytes) -> _Parts:
    if len(data) < 46 or int.from_bytes(data[14:18], "little") < 40:
        return {"resolution": None}
    x, y = struct.unpack_from("<ii", data, 38)
    return {"resolution": as_resolution(x, y, "metre")}


def _of_avif(data: bytes) -> _Parts:
    """What an AVIF file without ICC profile says of colours other than sRGB, as PNG says it of RGB of full range."""
    at = data.find(b"colrnclx")
    if at < 0 or b"colrprof" in data[:65_536] or b"colrrICC" in data[:65_536]:
        return {}
    return {"colour": _cicp(*struct.unpack_from(">HH", data, at + 8))}


def _cicp(primaries: int, transfer: int) -> tuple[Chunk, ...]:
    """What PNG says of RGB of full range with these code points (ITU-T H.273); nothing where that is sRGB."""
    plain = primaries in (1, 2) and transfer in (1, 2, 6, 13)
    return () if plain or max(primaries, transfer) > 255 else ((b"cICP", bytes([primaries, transfer, 0, 1])),)


# -- writing ----------------------------------------------------------------------------------------------------------


def to_info(metadata: Metadata) -> dict[str, object]:
    """What Pillow keeps in an image's `info`, the mirror of `_of_info`; texts of PNG under their keywords."""
    info: dict[str, object] = {"icc_profile": metadata.icc, "exif": metadata.exif, "xmp": metadata.xmp}
    stated, colour = metadata.any_resolution, dict(metadata.colour)
    if stated is not None and stated.unit:
        x, y = (float(value) for value in stated.per("inch"))
        info["dpi"] = (round(x), round(y)) if max(abs(x - round(x)), abs(y - round(y))) < 0.01 else (x, y)
    if metadata.iptc:
        info["photoshop"] = {0x0404: metadata.iptc}
    if metadata.comments:
        info["comment"] = metadata.comments[0]
    if len(colour.get(b"gAMA", b"")) == 4:
        info["gamma"] = int.from_bytes(colour[b"gAMA"], "big") / 100_000
    if len(colour.get(b"cHRM", b"")) == 32:
        info["chromaticity"] = tuple(value / 100_000 for value in struct.unpack(">8I", colour[b"cHRM"]))
    if colour.get(b"sRGB"):
        info["srgb"] = colour[b"sRGB"][0]
    if colour.get(b"cICP"):
        info["cicp"] = colour[b"cICP"]
    for kind, payload in metadata.text:
        keyword, _, rest = payload.partition(b"\0")
        if kind == b"tEXt":
            info[keyword.decode("latin-1")] = rest.decode("latin-1")
    return {key: value for key, value in info.items() if value is not None}


def jpeg_extra(metadata: Metadata) -> bytes:
    """The segments of a JPEG file that Pillow has no words for: IPTC records and comments."""
    pieces: list[tuple[int, bytes]] = []
    if metadata.iptc:
        resources = _as_resources(metadata.iptc)
        pieces += [(0xED, b"Photoshop 3.0\0" + part) for part in _parts(resources, 65_000)]
    pieces += [(0xFE, part) for comment in metadata.comments for part in _parts(comment, 65_533)]
    return b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(part)) + part for marker, part in pieces)


def _parts(data: bytes, most: int) -> Iterable[bytes]:
    return (data[n : n + most] for n in range(0, len(data), most))


def jpeg_with_density(data: bytes, metadata: Metadata) -> bytes:
    """The JPEG file `data`, as Pillow writes it, with the resolution in its JFIF header."""
    stated = metadata.any_resolution
    if stated is None or data[6:11] != b"JFIF\0":
        return data
    units: tuple[Unit, ...] = ("inch", "centimetre") if stated.unit else ("",)

    def misfit(unit: Unit) -> Fraction:
        return max(abs(value - max(round(value), 1)) for value in stated.per(unit))

    unit = stated.unit if stated.unit in units and not misfit(stated.unit) else min(units, key=misfit)
    numbers = [max(round(value), 1) for value in stated.per(unit)]
    if max(numbers) > 65_535:
        return data
    code = next(number for number, name in _JFIF_UNITS.items() if name == unit)
    return data[:13] + struct.pack(">BHH", code, *numbers) + data[18:]


def png_with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """The PNG file `data`, which holds pixels alone, with `metadata` behind its header."""
    chunks = list(metadata.colour)
    if metadata.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc)))
    stated = metadata.any_resolution
    if stated is not None:
        numbers = [max(round(value), 1) for value in stated.per("metre" if stated.unit else "")]
        if max(numbers) < 1 << 31:
            chunks.append((b"pHYs", struct.pack(">IIB", *numbers, 1 if stated.unit else 0)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc:
        chunks.append((b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(_as_profile(metadata.iptc), 9)))
    chunks += [_comment(comment.rstrip(b"\0").replace(b"\0", b" ")) for comment in metadata.comments]
    chunks += metadata.text
    head = 8 + 25  # the signature and IHDR
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:head] + more + data[head:]


def _comment(comment: bytes) -> Chunk:
    try:
        wide = bool(comment.decode("utf-8")) and not comment.isascii()
    except UnicodeDecodeError:
        wide = False
    return (b"iTXt", b"Comment\0\0\0\0\0" + comment) if wide else (b"tEXt", b"Comment\0" + comment)


def bmp_with_resolution(data: bytes, metadata: Metadata) -> bytes:
    """The BMP file `data`, as Pillow writes it, with the resolution in its header."""
    stated = metadata.any_resolution
    if stated is None or not stated.unit:
        return data
    numbers = [min(round(value), (1 << 31) - 1) for value in stated.per("metre")]
    return data[:38] + struct.pack("<ii", *numbers) + data[46:]


# Tags that would make nonsense of pixels laid out otherwise, if some program has left them in EXIF data.
_LAYOUT_TAGS = (254, 255, 266, 301, *range(317, 326), 330, 338, 339, 340, 341, 347, *range(512, 533), 700, 34675)


def tiff_metadata(metadata: Metadata, order: str = "<") -> Directory:
    """What of `metadata` stands in the directory of a TIFF's page, in the byte order of the EXIF data; in `order` where
    there are none."""
    directory = of_exif(metadata.exif) if metadata.exif else Directory(order)
    for tag in _LAYOUT_TAGS:
        directory.entries.pop(tag, None)
    if metadata.resolution is not None:
        put_resolution(directory, metadata.resolution)
    if metadata.icc:
        directory.put_bytes(_ICC, 7, metadata.icc)
    if metadata.xmp:
        directory.put_bytes(_XMP, 1, metadata.xmp)
    if metadata.iptc:
        directory.put_bytes(_IPTC, 7, metadata.iptc)
    return directory


def tiff_file(pages: Iterable[tuple[Directory, bytes]]) -> bytes:
    """A TIFF file of pages, each a directory and one strip of samples; all directories have one byte order. Their tag
    273 is set to where the strip lies."""
    out, link = bytearray(8), 4
    for directory, strip in pages:
        if len(out) == 8:
            out[:] = _head(directory.order)
        out += bytes(len(out) % 2)
        at = len(out)
        struct.pack_into(directory.order + "I", out, link, at)
        directory.put(273, 4, 0)
        length = len(lay_out(directory, at))
        directory.put(273, 4, at + length + length % 2)
        out += lay_out(directory, at) + bytes(length % 2) + strip
        link = at + 2 + 12 * (len(directory.entries) + len(directory.below))  # where this one leads on
    return bytes(out)
