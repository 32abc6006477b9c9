"""A part of a latent file, or a smaller copy, is what the whole picture holds there, for the price of the part."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from aeimg import InputError, UsageError, container, hyperprior_codec, process, registry
from aeimg.pixels import means
from aeimg.tasks.decompress import decode_latent
from aeimg.tiles import Box, Window

CPU = torch.device("cpu")
CROPS = [(0, 0, 1, 1), (37, 21, 100, 90), (190, 120, 11, 25), (0, 0, 201, 150)]


@pytest.fixture
def piece(photograph) -> np.ndarray:
    """A part of a photograph, uint8 `[150,201,3]`: 10 x 13 code vectors."""
    return np.ascontiguousarray(photograph[90:240, 60:261])


@pytest.fixture
def tiled(monkeypatch) -> None:
    """Tiles and areas that are small, so that a small picture has many."""
    monkeypatch.setattr(hyperprior_codec, "TILE", 4)
    monkeypatch.setattr(hyperprior_codec, "AREA", 8)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_crop_holds_the_pixels_of_the_whole_picture(tiled, piece, dtype):
    latent = process(piece, "compress", quality=40)
    whole = process(latent, "decompress", kind="numpy", dtype=dtype)
    for x, y, width, height in CROPS:
        part = process(latent, "decompress", kind="numpy", dtype=dtype, crop=(x, y, width, height))
        np.testing.assert_array_equal(part, whole[y : y + height, x : x + width])


def test_only_the_tiles_around_a_crop_are_decoded(tiled, piece, monkeypatch):
    latent = container.read(process(piece, "compress", quality=40))
    codec = registry.get(None, "compress", CPU)
    decoded = []
    whole = codec._decode_tile
    monkeypatch.setattr(codec, "_decode_tile", lambda *about: decoded.append(1) or whole(*about))
    pixels = decode_latent(latent, codec, CPU, torch.float32, Window(150, 201, Box(196, 140, 5, 10)))
    assert pixels.shape == (3, 10, 5)
    assert len(decoded) == 9  # of 12: rows 0 to 9 and columns 4 to 12 of vectors, in tiles of 4


@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_thumbnail_is_the_means_of_the_picture(tiled, piece, divisor):
    latent = process(piece, "compress", quality=40)
    whole = process(latent, "decompress", kind="numpy").transpose(2, 0, 1)
    small = process(latent, "decompress", kind="numpy", scale=f"1/{divisor}").transpose(2, 0, 1)
    expected = means(whole, divisor)
    assert small.shape == expected.shape
    inside = np.abs(small.astype(int) - expected)[:, : 150 // divisor, : 201 // divisor]
    assert inside.max() <= 1  # the whole is rounded before its means are taken
    part = process(latent, "decompress", kind="numpy", scale=1 / divisor, crop=(37, 21, 100, 90)).transpose(2, 0, 1)
    top, left, bottom, right = 21 // divisor, 37 // divisor, -(-111 // divisor), -(-137 // divisor)
    np.testing.assert_array_equal(part, small[:, top:bottom, left:right])


def test_means_of_squares_are_rounded_and_narrower_at_the_edge():
    planes = np.array([[[0, 1, 10], [1, 1, 20], [7, 8, 255]]], np.uint8)
    np.testing.assert_array_equal(means(planes, 2), [[[1, 15], [8, 255]]])


@pytest.mark.parametrize("kind", ["alpha", "sixteen", "grey", "stored", "patches"])
def test_every_kind_of_latent_can_be_cropped_and_reduced(photograph, png, kind):
    pixels, model = np.ascontiguousarray(photograph[:120, :150]), None
    if kind == "alpha":
        pixels = np.dstack([pixels, np.arange(120 * 150, dtype=np.uint32).reshape(120, 150) // 80]).astype(np.uint8)
    elif kind == "sixteen":
        pixels = pixels.astype(np.uint16) * 257
    elif kind == "grey":
        pixels = np.ascontiguousarray(pixels[:, :, 1])
    elif kind == "patches":
        model = "vanilla"
    latent = process(pixels, "compress", quality=60, model=model)
    if kind == "stored":
        latent = container.write(container.Stored(png(pixels), "a.png", "PNG"))
    assert isinstance(container.read(latent), container.Stored) == (kind == "stored")
    whole = process(latent, "decompress", kind="numpy")
    part = process(latent, "decompress", kind="numpy", crop=(13, 21, 100, 90))
    np.testing.assert_array_equal(part, whole[21:111, 13:113])
    small = process(latent, "decompress", kind="numpy", scale="1/8")
    assert (small.shape[:2], small.dtype) == ((15, 19), whole.dtype)
    planes = np.moveaxis(np.atleast_3d(whole), 2, 0)[:, :, :144]
    off = np.abs(np.moveaxis(np.atleast_3d(small), 2, 0)[:, :, :18].astype(int) - means(planes, 8))
    assert off.max() <= (257 if kind == "sixteen" else 1)


def test_a_turned_picture_is_cropped_as_it_is_seen(piece, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(piece).save(tmp_path / "a.jpg", exif=exif, quality=95)
    process(tmp_path / "a.jpg", "compress", out=tmp_path / "a.aei")
    whole = process(tmp_path / "a.aei", "decompress", kind="numpy")
    assert whole.shape == (201, 150, 3)
    part = process(tmp_path / "a.aei", "decompress", kind="numpy", crop=(50, 150, 100, 51))
    np.testing.assert_array_equal(part, whole[150:201, 50:150])


def test_a_crop_outside_the_picture_is_an_error_that_names_both(small):
    latent = process(small, "compress")
    with pytest.raises(InputError, match=r"100,0,44,10 .* 143x101"):
        process(latent, "decompress", crop=(100, 0, 44, 10))
    for crop in ((0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 5)):
        with pytest.raises(UsageError, match="crop must be"):
            process(latent, "decompress", crop=crop)
    with pytest.raises(UsageError, match="scale must be"):
        process(latent, "decompress", scale="1/3")


def test_a_damaged_tile_is_found_where_it_is_needed(tiled, piece):
    codec = registry.get(None, "compress", CPU)
    latent = container.read(process(piece, "compress", quality=40))
    spoilt = latent.data[:4] + bytes([latent.data[4] ^ 1]) + latent.data[5:]  # the checksum of the first tile
    with pytest.raises(InputError):
        codec.from_bytes_within(spoilt, Window(150, 201, Box(0, 0, 10, 10)), 40)
    assert any(codec.from_bytes_within(spoilt, Window(150, 201, Box(196, 140, 5, 10)), 40))


CHILD = """
import json, sys
import torch, numpy
import aeimg

process = aeimg.process  # which imports what is lazy

def peak():
    # Not `ru_maxrss`, which a process inherits from the one that has started it.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

open("/proc/self/clear_refs", "w").write("5")  # from here on, the peak is a new one
before = peak()
part = process(sys.argv[1], "decompress", kind="numpy", crop=json.loads(sys.argv[2]))
print(json.dumps([list(part.shape), peak() - before]))
"""


def large_latent(photograph: np.ndarray, side: int) -> bytes:
    """A latent of a square picture, each of whose tiles holds the same piece of a photograph."""
    codec = registry.get(None, "compress", CPU)
    tile = 16 * hyperprior_codec.TILE
    piece = np.tile(photograph, (4, 3, 1))[:tile, :tile]
    found = container.read(process(piece, "compress", quality=50))
    (symbols,) = codec.from_bytes(found.data, tile, tile, 50)
    data = codec.to_bytes([symbols], 50)
    index, stream = data[:8], data[8:]
    count = (side // tile) ** 2
    whole = container.Coded(side, side, 3, 8, codec.label, codec.digest, 50, count * index + count * stream)
    return container.write(whole)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
def test_a_crop_of_a_hundred_megapixels_takes_the_memory_of_the_crop(photograph, tmp_path):
    """Beside what the import takes; the network is loaded for it. The crop lies across the corner of four tiles, the
    most that it can need."""
    side = 10 * 16 * hyperprior_codec.TILE
    assert side**2 > 100e6
    (tmp_path / "a.aei").write_bytes(large_latent(photograph, side))
    corner = 5 * 16 * hyperprior_codec.TILE - 256
    command = [sys.executable, "-c", CHILD, str(tmp_path / "a.aei"), json.dumps([corner, corner, 512, 512])]
    done = subprocess.run(command, env={**os.environ, "MALLOC_ARENA_MAX": "1"}, capture_output=True, check=True)
    shape, grown = json.loads(done.stdout)
    assert shape == [512, 512, 3]
    assert grown < 300
