"""Images in Zarr arrays and through numcodecs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import aeimg

zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install 'aeimg[test]'", minversion="3")
numcodecs = pytest.importorskip("numcodecs")

from aeimg.integrations.numcodecs import Aeimg  # noqa: E402
from aeimg.integrations.zarr import AeimgCodec  # noqa: E402

SHAPES = [
    ((150, 120), (64, 64)), ((100, 90, 3), (64, 64, 3)), ((70, 60, 4), (70, 60, 4)), ((3, 70, 60), (2, 70, 60)),
    ((2, 2, 40, 48, 3), (1, 2, 40, 48, 3)),
]  # fmt: skip
"""Shapes of arrays and of their chunks."""


def images(shape: tuple[int, ...], dtype: type, photograph: np.ndarray) -> np.ndarray:
    colour = len(shape) > 2 and shape[-1] in (3, 4)
    height, width = shape[-3:-1] if colour else shape[-2:]
    part = photograph[50 : 50 + height, 100 : 100 + width]
    part = np.concatenate([part, part[..., :1]], 2)[..., : shape[-1]] if colour else part[..., 0]
    return np.broadcast_to(part, shape).astype(dtype) * (257 if dtype == np.uint16 else 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("shape", "chunks"), SHAPES)
def test_arrays_come_back_from_zarr(shape, chunks, dtype, photograph):
    array = images(shape, dtype, photograph)
    stored = zarr.create_array({}, shape=shape, chunks=chunks, dtype=dtype, serializer=AeimgCodec(90), compressors=None)
    stored[:] = array
    back = stored[:]
    assert (back.shape, back.dtype) == (shape, dtype)
    assert np.abs(back.astype(float) - array).mean() < 0.02 * np.iinfo(dtype).max
    assert stored.nbytes_stored() < array.nbytes / 2


def test_a_chunk_of_one_image_is_its_latent_file(tmp_path, photograph):
    array = images((64, 64, 3), np.uint8, photograph)
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(64, 64, 3), chunks=(64, 64, 3), dtype="uint8", serializer=AeimgCodec(60),
        compressors=None,
    )  # fmt: skip
    stored[:] = array
    (chunk,) = (path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file())
    assert chunk.read_bytes() == aeimg.process(array, "compress", quality=60, device="cpu")


@pytest.mark.parametrize("version", [2, 3])
def test_a_fresh_process_reads_an_array_without_importing_aeimg(version, tmp_path, photograph):
    array = images((2, 70, 60, 3), np.uint8, photograph)
    how = {"serializer": AeimgCodec(60), "compressors": None} if version == 3 else {"compressors": Aeimg(60)}
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=array.shape, chunks=(2, 70, 60, 3), dtype="uint8", zarr_format=version, **how
    )
    stored[:] = array
    code = "import sys, zarr; print(int(zarr.open_array(sys.argv[1], mode='r')[:].astype('int64').sum()))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.zarr"], capture_output=True, text=True)
    assert done.stdout.strip() == str(int(stored[:].astype(np.int64).sum())), done.stderr


def test_metadata_names_the_codec_and_its_options(tmp_path):
    codec = AeimgCodec(quality=40, effort=2, model="vanilla", device="cpu")
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(28, 28), chunks=(28, 28), dtype="uint8", serializer=codec, compressors=None
    )
    assert codec.to_dict() == {"name": "aeimg", "configuration": {"quality": 40, "effort": 2, "model": "vanilla"}}
    assert zarr.open_array(tmp_path / "a.zarr").metadata.codecs[0] == stored.metadata.codecs[0] == codec


@pytest.mark.parametrize(("shape", "dtype"), [((64,), "uint8"), ((64, 64), "float32"), ((64, 64), "int16")])
def test_arrays_of_no_images_are_refused_when_they_are_created(shape, dtype):
    with pytest.raises(aeimg.UsageError):
        zarr.create_array({}, shape=shape, chunks=shape, dtype=dtype, serializer=AeimgCodec(), compressors=None)


def test_options_out_of_range_are_refused():
    for make in (AeimgCodec, Aeimg):
        with pytest.raises(aeimg.UsageError, match="quality"):
            make(quality=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("shape", [(70, 60), (70, 60, 3), (2, 70, 60)])
def test_arrays_come_back_from_numcodecs(shape, dtype, photograph):
    array = images(shape, np.dtype(dtype).newbyteorder("=").type, photograph).astype(dtype)
    codec = numcodecs.get_codec({"id": "aeimg", "quality": 90})
    assert isinstance(codec, Aeimg)
    data = codec.encode(array)
    back = codec.decode(data).reshape(shape)
    assert back.dtype == array.dtype.newbyteorder("=")
    assert np.abs(back.astype(float) - array).mean() < 0.02 * np.iinfo(back.dtype).max
    out = np.empty(shape, back.dtype)
    codec.decode(data, out=out)
    np.testing.assert_array_equal(out, back)
    assert numcodecs.get_codec(codec.get_config()) == codec


def test_damaged_chunks_are_errors(photograph):
    codec = Aeimg()
    data = codec.encode(images((2, 70, 60), np.uint8, photograph))
    for damaged in (
        b"",
        data[:3],
        data[:20],
        data[:-1],
        data + b"x",
        bytes(4),
        b"\xff" * 12,
        data[:30] + b"x" + data[31:],
    ):
        with pytest.raises(aeimg.InvalidLatent):
            codec.decode(damaged)
