"""A damaged or forged latent file gives a named error or a correct picture; never a wrong one, never a long wait."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aeimg import AeimgError, ChecksumMismatch, InvalidLatent, container, process


@pytest.fixture(scope="module")
def sound(small) -> tuple[bytes, np.ndarray]:
    """A small latent file with alpha, and what it decodes to."""
    rgba = np.dstack([small[:40, :48], small[:40, :48, 1]])
    file = process(rgba, "compress", quality=20)
    assert isinstance(container.read(file), container.Coded)
    return file, process(file, "decompress", kind="numpy", dtype="fp32")


def resealed(data: bytes) -> bytes:
    """`data` with the file's own checksum made right: what a forger would send."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def decodes_rightly_or_not_at_all(data: bytes, expected: np.ndarray) -> None:
    try:
        picture = process(data, "decompress", kind="numpy", dtype="fp32")
    except AeimgError:
        return
    np.testing.assert_array_equal(picture, expected)


def test_every_byte_of_a_file_is_guarded(sound):
    file, _ = sound
    for at in range(len(file)):
        mutated = bytearray(file)
        mutated[at] ^= 0xA5
        with pytest.raises(InvalidLatent):
            process(bytes(mutated), "decompress")


def test_every_truncation_is_noticed(sound):
    file, _ = sound
    for end in range(len(file)):
        with pytest.raises(InvalidLatent):
            process(file[:end], "decompress")


def test_forged_files_with_one_byte_changed_never_give_a_wrong_picture(sound):
    """With the file's checksum made right, the symbols' checksum must catch what no other check does.

    What can't be caught is a change that makes another sound file: of size, alpha, quality or metadata.
    """
    file, expected = sound
    latent = container.read(file)
    start = file.index(latent.data)
    for at in range(start, start + len(latent.data)):
        mutated = bytearray(file)
        mutated[at] ^= 0x10
        decodes_rightly_or_not_at_all(resealed(bytes(mutated)), expected)


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_random_forgeries_give_a_typed_error_or_a_picture(sound, data):
    """Ten random changes each, so 10,000 in all; nothing but an `AeimgError` may come out."""
    mutated = bytearray(sound[0])
    for _ in range(10):
        at = data.draw(st.integers(5, len(mutated) - 5))
        kind = data.draw(st.integers(0, 2))
        if kind == 0:
            mutated[at] = data.draw(st.integers(0, 255))
        elif kind == 1:
            del mutated[at]
        else:
            mutated.insert(at, data.draw(st.integers(0, 255)))
    try:
        process(resealed(bytes(mutated)), "decompress", kind="numpy")
    except AeimgError:
        pass


FORGED = """
import resource, sys, time
from aeimg import ChecksumMismatch, InvalidLatent, process
good, forged = (open(path, "rb").read() for path in sys.argv[1:3])
process(good, "decompress")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    process(forged, "decompress")
except InvalidLatent as error:
    print(type(error).__name__, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_a_small_file_that_declares_150_megapixels_takes_little_memory(sound, tmp_path):
    """The lengths are consistent and every checksum of the file is right; only the symbols' checksums can tell."""
    from dataclasses import replace

    latent = container.read(sound[0])
    assert isinstance(latent, container.Coded)
    side, tiles = 12_288, 12 * 12
    index = struct.pack("<II", 8, 0) * tiles
    forged = container.write(replace(latent, width=side, height=side, data=index + bytes(8 * tiles), alpha=None))
    (tmp_path / "good").write_bytes(sound[0])
    (tmp_path / "forged").write_bytes(forged)
    command = [sys.executable, "-c", FORGED, str(tmp_path / "good"), str(tmp_path / "forged")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    error, megabytes = done.stdout.split()
    assert error == "ChecksumMismatch"
    assert int(megabytes) < 200


def test_forged_lengths_are_seen_before_anything_is_decoded(sound):
    from dataclasses import replace

    latent = container.read(sound[0])
    for data in (latent.data + bytes(4), latent.data[:-4], struct.pack("<I", 2**31) + latent.data[4:], b""):
        with pytest.raises(InvalidLatent) as caught:
            process(container.write(replace(latent, data=data)), "decompress")
        assert not isinstance(caught.value, ChecksumMismatch)
