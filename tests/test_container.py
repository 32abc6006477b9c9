"""A latent file comes back as it was written, or is refused by a named error."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeimg import ChecksumMismatch, InvalidLatent, TruncatedLatent, UnsupportedVersion, container
from aeimg.metadata import Metadata, Resolution

CODED = container.Coded(
    300, 70_000, 3, 8, "aeimg-codec-1", b"12345678", 50, b"payload" * 30, b"alpha",
    Metadata(
        b"icc" * 99, b"exif", b"<xmp/>", b"iptc", (b"first", b"second"),
        Resolution(Fraction(11811), Fraction(72, 7), "metre"),
        ((b"tEXt", b"Title\0x"), (b"iTXt", b"y")), ((b"gAMA", b"1234"), (b"cICP", b"abcd")),
    ),
    "ein Bild mit Umlaut ä.png", "PNG",
)  # fmt: skip


def sealed(body: bytes) -> bytes:
    whole = container.MAGIC + bytes([container.VERSION]) + body
    return whole + struct.pack("<I", zlib.crc32(whole))


@pytest.mark.parametrize("latent", [CODED, container.Stored(b"a file", "x.png", "PNG")])
def test_every_field_comes_back(latent):
    assert container.read(container.write(latent)) == latent


def test_the_header_of_a_plain_picture_is_small():
    plain = container.Coded(768, 512, 3, 8, "aeimg-codec-1", b"12345678", 50, b"", name="kodim01.png", format="PNG")
    assert len(container.write(plain)) <= 65


def test_every_flipped_byte_and_every_cut_is_noticed():
    data = container.write(CODED)
    for at in range(len(data)):
        mutated = bytearray(data)
        mutated[at] ^= 0x55
        with pytest.raises(InvalidLatent):
            container.read(bytes(mutated))
        with pytest.raises(InvalidLatent):
            container.read(data[:at])


def test_each_fault_has_its_own_error():
    data = container.write(CODED)
    with pytest.raises(InvalidLatent, match="x: not a latent file"):
        container.read(b"\x89PNG\r\n", "x")
    with pytest.raises(UnsupportedVersion, match="version 2"):
        container.read(data[:4] + b"\2" + data[5:])
    with pytest.raises(ChecksumMismatch):
        container.read(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(TruncatedLatent, match="ends behind the file"):
        container.read(sealed(b"I\x7fabc"))
    with pytest.raises(UnsupportedVersion, match="section 'Z'"):
        container.read(sealed(b"Z\x01a"))
    with pytest.raises(InvalidLatent, match="occurs twice"):
        container.read(sealed(b"n\x01an\x01a"))
    with pytest.raises(InvalidLatent, match="'M' is missing"):
        container.read(sealed(b"I\x04\x01\x01\x03\x08"))
    with pytest.raises(InvalidLatent, match="impossible size"):
        container.read(sealed(b"I\x04\x00\x01\x03\x08M\x0912345678aP\x05\x01\0\0\0\0"))


def test_an_unknown_section_in_lower_case_is_passed_over():
    stored = container.write(container.Stored(b"a file"))
    assert container.read(sealed(stored[5:-4] + b"z\x03new")) == container.Stored(b"a file")


def test_metadata_that_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(container, "MAX_METADATA", 1000)
    with pytest.raises(InvalidLatent, match="EXIF data is cut short, or all metadata more than 1000"):
        container.read(container.write(replace(CODED, metadata=Metadata(exif=bytes(5000)))))


@given(st.binary(max_size=200))
def test_any_sealed_bytes_are_read_or_refused_by_name(body):
    try:
        container.read(sealed(body))
    except InvalidLatent:
        pass
