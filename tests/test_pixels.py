"""Depth, range, layout and padding are converted in one place, and rounded to the nearest value there is."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import aeimg
from aeimg import UsageError, pixels, process

ALL_16 = np.arange(65536, dtype=np.uint16)


def test_sixteen_bits_to_eight_round_to_the_nearest():
    exact = np.array([round(v * 255 / 65535) for v in range(65536)])
    np.testing.assert_array_equal(pixels.to_eight_bits(ALL_16), exact)


def test_eight_bits_to_sixteen_and_back_change_nothing():
    eight = np.arange(256, dtype=np.uint8)
    deep = pixels.to_sixteen_bits(eight, 8)
    np.testing.assert_array_equal(deep, eight.astype(int) * 257)
    np.testing.assert_array_equal(pixels.to_eight_bits(deep), eight)


@pytest.mark.parametrize("bits", [1, 4, 10, 12, 14, 15, 16])
def test_other_depths_fill_the_range_of_sixteen_bits(bits):
    values = np.arange(1 << bits)
    deep = pixels.to_sixteen_bits(values.astype(np.uint16), bits)
    assert np.abs(deep - values * 65535 / (2**bits - 1)).max() <= 0.5
    assert (deep[0], deep[-1]) == (0, 65535)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numpy_and_torch_make_the_same_floats_and_the_same_integers(dtype):
    values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    floats = pixels.as_float(torch.from_numpy(values))
    np.testing.assert_array_equal(pixels.to_floats(values), floats.numpy())
    name = torch.uint8 if dtype == np.uint8 else torch.uint16
    np.testing.assert_array_equal(pixels.as_pixels(floats, name).numpy(), values)
    np.testing.assert_array_equal(pixels.to_eight_bits(floats.numpy()), pixels.to_eight_bits(values))
    np.testing.assert_array_equal(pixels.as_pixels(floats, torch.uint8).numpy(), pixels.to_eight_bits(values))


def test_training_and_reading_agree_on_eight_bits(tmp_path):
    from aeimg.images import Picture, encode_picture
    from aeimg.training.datasets import _rgb

    (tmp_path / "a.png").write_bytes(encode_picture(Picture(ALL_16.reshape(1, 256, 256)), ".png"))
    np.testing.assert_array_equal(_rgb(tmp_path / "a.png")[:, :, 2].ravel(), pixels.to_eight_bits(ALL_16))


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (1, 4), (5, 2), (7, 7)])
def test_numpy_and_torch_pad_alike(shape):
    x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(1, *shape)
    tensor = torch.from_numpy(x)[None]
    np.testing.assert_array_equal(pixels.continued(x, 8, 9, "reflect"), pixels.mirror(tensor, 8, 9)[0].numpy())
    np.testing.assert_array_equal(pixels.continued(x, 8, 9, "edge"), pixels.pad(tensor, 8, 9)[0].numpy())
    assert pixels.mirror(tensor, *shape) is tensor


def test_padding_repeats_the_edge():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert pixels.pad(x, 3, 5)[0, 0].tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5], [3, 4, 5, 5, 5]]
    assert pixels.padded(17, 16) == 32
    assert pixels.padded(16, 16) == 16


def test_what_alpha_was_multiplied_into_is_divided_out():
    rng = np.random.default_rng(0)
    colour, alpha = rng.integers(0, 65536, (3, 40, 50)), rng.integers(0, 65536, (40, 50))
    alpha[0, :9] = 0
    associated = np.rint(colour * (alpha / 65535)).astype(np.uint16)
    back = pixels.unassociated(associated, alpha.astype(np.uint16)).astype(int)
    assert (back[:, 0, :9] == 0).all()
    seen = alpha > 0
    assert (np.abs(back - colour)[:, seen] <= 32768 / alpha[seen] + 1).all()


@pytest.mark.parametrize("planes", [1, 3, 4])
def test_arrays_and_tensors_come_back_as_they_were(planes):
    x = np.random.default_rng(0).random((planes, 5, 7)).astype(np.float32)
    tensor = torch.from_numpy(x).double()
    back = pixels.to_tensor(pixels.with_alpha(*pixels.from_tensor(tensor)), tensor)
    assert back.dtype == torch.float64
    assert torch.equal(back, tensor)
    array = pixels.interleaved(x).astype(np.float16)
    again = pixels.to_array(pixels.with_alpha(*pixels.from_array(array)), array)
    assert again.dtype == np.float16
    np.testing.assert_array_equal(again, array)


# -- floats of another range ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [255, 65535])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "batch"])
@pytest.mark.parametrize("task", ["compress", "denoise"])
def test_floats_of_another_range_are_refused_with_a_hint(small, scale, kind, task):
    x = small.astype(np.float32) * (scale / 255)
    if kind != "numpy":
        x = torch.from_numpy(x).permute(2, 0, 1)
    x = x[None] if kind == "batch" else x
    with pytest.raises(UsageError, match=f"floats must be of 0..1.*divide by {scale}, or give integers"):
        process(x, task)


def test_the_strongest_noise_that_sigma_names_stays_welcome(small):
    noisy = small / 255 + np.random.default_rng(0).normal(0, 1, small.shape)
    assert process(noisy, "denoise", sigma=255).shape == small.shape


def test_nobody_else_converts_depth():
    """Shifts by 8 bits and divisions by 257 or 65535 are how depth was converted in other places."""
    package = Path(aeimg.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "pixels.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant):
                shift = isinstance(node.op, ast.RShift) and node.right.value == 8
                scale = isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mult) and node.right.value in (257, 65535)
                assert not (shift or scale), f"{path.name}:{node.lineno}"
