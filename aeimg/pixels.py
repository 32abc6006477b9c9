"""Bit depth, range, layout and padding of pixels: the only place where these are converted. And their luma.

Inside aeimg pixels are `[C,H,W]` (numpy, one picture) or `[N,C,H,W]` (torch, a batch) of one of three kinds:

    uint8     0..255
    uint16    0..65535
    float32   0.0..1.0, where noise may lie outside; nothing clips it before it becomes integers

Values keep their share of the range, and every conversion rounds to the nearest value that there is:

    16 -> 8 bits        round(v * 255 / 65535) = round(v / 257); there are no ties, 257 is odd
    8 -> 16 bits        v * 257, exactly; 8 -> 16 -> 8 bits gives the same values back
    n -> 16 bits        round(v * 65535 / (2^n - 1)), ties upwards
    integers -> floats  v / 255 or v / 65535, in float32
    floats -> integers  clipped to 0..1, times 255 or 65535, rounded, ties to even
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from .errors import InputError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array = np.ndarray

FARTHEST = 8.0
"""How far from 0..1 a float may lie, or it is refused: eight standard deviations of the strongest noise that `sigma`
can name (255 of 255). Pictures of 0..255 pass only where they are all but black."""

LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue count in luma (BT.601)."""


def luma(x: Tensor) -> Tensor:
    """The luma `[N,1,H,W]` of RGB `[N,3,H,W]`, of floats."""
    return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


# -- bit depth and range, numpy ---------------------------------------------------------------------------------------


def peak(dtype: np.dtype) -> float:
    """The value that stands for white: 255, 65535, or 1 for floats."""
    return 1.0 if np.issubdtype(dtype, np.floating) else float(np.iinfo(dtype).max)


def to_eight_bits(values: Array) -> Array:
    """Pixels of any of the three kinds, in any layout, as uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))


def to_sixteen_bits(values: Array, bits: int) -> Array:
    """Integers of 0..2^bits - 1, `bits` 1..16, in any layout, as uint16."""
    if bits == 16:
        return np.asarray(values, dtype=np.uint16)
    white = (1 << bits) - 1
    table = (np.arange(white + 1, dtype=np.uint64) * 65535 + white // 2) // white
    return table.astype(np.uint16)[np.minimum(values, white)]


def to_floats(values: Array) -> Array:
    """Pixels of any of the three kinds, in any layout, as float32."""
    if values.dtype == np.float32:
        return values
    return np.asarray(values.astype(np.float32) / np.float32(peak(values.dtype)))


def unassociated(pixels: Array, alpha: Array) -> Array:
    """Integer pixels `[C,H,W]` that were multiplied by `alpha` `[H,W]` of their dtype, without that: rounded, clipped;
    0 where alpha is 0."""
    white = int(peak(pixels.dtype))
    divisor = np.maximum(alpha, 1).astype(np.uint64)
    return np.minimum((pixels.astype(np.uint64) * white + divisor // 2) // divisor, white).astype(pixels.dtype)


def check_range(values: Array) -> None:
    """Raises `UsageError` for floats that are not of 0..1, by more than noise can be (`FARTHEST`); NaN passes."""
    _check_bounds(*((float(values.min()), float(values.max())) if values.size else (0.0, 0.0)))


def _check_bounds(low: float, high: float) -> None:
    if math.isfinite(low) and math.isfinite(high) and (low < -FARTHEST or high > 1 + FARTHEST):
        white = 255 if high <= 300 else 65535
        raise UsageError(
            f"floats must be of 0..1 (noise around that is fine); these are of {low:.4g}..{high:.4g}: "
            f"divide by {white}, or give integers"
        )


# -- layout, numpy ----------------------------------------------------------------------------------------------------


def split_alpha(planes: Array) -> tuple[Array, Array | None]:
    """Planes `[C,H,W]`, C 1 to 4, as pixels `[1,H,W]` or `[3,H,W]` and alpha `[H,W]`, which C of 2 and 4 hold."""
    return (planes[:-1], planes[-1]) if len(planes) in (2, 4) else (planes, None)


def with_alpha(pixels: Array, alpha: Array | None) -> Array:
    """The mirror of `split_alpha`."""
    return pixels if alpha is None else np.concatenate([pixels, alpha[None]])


def planar(samples: Array) -> Array:
    """`[H,W]` or `[H,W,C]` as planes `[C,H,W]`, in one piece."""
    return np.ascontiguousarray(samples[None] if samples.ndim == 2 else samples.transpose(2, 0, 1))


def interleaved(planes: Array) -> Array:
    """Planes `[C,H,W]` as `[H,W]` where C is 1, otherwise `[H,W,C]`, in one piece."""
    return np.ascontiguousarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))


def rgb_of(pixels: Array) -> Array:
    """Pixels `[1,H,W]` or `[3,H,W]` of any kind as uint8 `[H,W,3]`."""
    return interleaved(np.broadcast_to(to_eight_bits(pixels), (3, *pixels.shape[1:])))


UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: lambda x: x[..., ::-1],
    3: lambda x: x[..., ::-1, ::-1],
    4: lambda x: x[..., ::-1, :],
    5: lambda x: x.swapaxes(-1, -2),
    6: lambda x: np.rot90(x, -1, (-2, -1)),
    7: lambda x: np.rot90(x, 2, (-2, -1)).swapaxes(-1, -2),
    8: lambda x: np.rot90(x, 1, (-2, -1)),
}
"""EXIF's orientation -> what undoes it, on `[...,H,W]`; 1 needs nothing."""


def continued(pixels: Array, height: int, width: int, how: Literal["edge", "reflect"]) -> Array:
    """`pixels` `[C,h,w]` continued downwards and to the right, to `height` and `width`: by the last row and column, or
    by the mirror image. The same as `pad` and `mirror` make of tensors."""
    missing = (height - pixels.shape[1], width - pixels.shape[2])
    return np.pad(pixels, ((0, 0), (0, missing[0]), (0, missing[1])), mode=how) if any(missing) else pixels


def means(planes: Array, side: int) -> Array:
    """The means of squares of `side` pixels of integer planes `[...,H,W]`, rounded; those at the right and bottom edge
    may hold fewer pixels. They are computed a row at a time, which takes little memory."""
    height, width = planes.shape[-2:]
    columns = np.arange(0, width, side)
    widths = np.minimum(columns + side, width) - columns
    result = np.empty((*planes.shape[:-2], -(-height // side), len(columns)), planes.dtype)
    for row in range(result.shape[-2]):
        strip = planes[..., row * side : (row + 1) * side, :]
        sums = np.add.reduceat(strip.sum(-2, dtype=np.int64), columns, axis=-1)
        count = widths * strip.shape[-2]
        result[..., row, :] = (2 * sums + count) // (2 * count)
    return result


# -- what callers give and get ----------------------------------------------------------------------------------------


def from_array(array: Array) -> tuple[Array, Array | None]:
    """A caller's array, `[H,W]`, `[H,W,3]` or `[H,W,4]` of uint8, uint16 or float, as pixels and alpha.

    Raises `UsageError` for other shapes and dtypes, and for floats that `check_range` refuses.
    """
    if array.ndim == 4:
        raise UsageError(f"an array must be one picture; this is {_shape(array)}: give a batch as list(array)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise UsageError(f"an array must be [H,W], [H,W,3] or [H,W,4]; this is {_shape(array)}")
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)
        check_range(array)
    elif array.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"an array must be uint8, uint16 or float; this is {_shape(array)}")
    return split_alpha(planar(array))


def to_array(planes: Array, like: object = None) -> Array:
    """Planes `[C,H,W]` as `[H,W]` or `[H,W,C]`; of the dtype of `like` where that is an array of floats."""
    array = interleaved(planes)
    if isinstance(like, np.ndarray) and np.issubdtype(like.dtype, np.floating):
        return array.astype(like.dtype)
    return array


def check_tensor(tensor: Tensor) -> None:
    """Raises `UsageError` unless a caller's tensor is `[C,H,W]` or `[N,C,H,W]`, C 1, 3 or 4, float or uint8, with
    pixels, and for floats that `check_range` refuses; `InputError` for floats that are not finite."""
    import torch

    _check_form(tensor, 3, 4)
    if 0 in tensor.shape[-2:]:
        raise InputError(f"the image: has no pixels; this is {_shape(tensor)}")
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.stack(tensor.detach().aminmax()).tolist()
        _check_bounds(low, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("the image: holds values that are not finite")


def _check_form(tensor: Tensor, *dims: int) -> None:
    import torch

    kind = tensor.dtype == torch.uint8 or tensor.is_floating_point()
    if tensor.dim() not in dims or tensor.shape[-3] not in (1, 3, 4) or not kind:
        raise UsageError(f"a tensor must be [C,H,W] or [N,C,H,W] float or uint8, C 1, 3 or 4; this is {_shape(tensor)}")


def from_tensor(tensor: Tensor) -> tuple[Array, Array | None]:
    """A caller's tensor, float or uint8 `[C,H,W]`, C 1, 3 or 4, on any device, as pixels and alpha.

    Raises `UsageError` for other shapes and dtypes, and for floats that `check_range` refuses.
    """
    import torch

    _check_form(tensor, 3)
    if tensor.dtype == torch.uint8:
        return split_alpha(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    values = tensor.detach().float().cpu().numpy()
    check_range(values)
    return split_alpha(np.ascontiguousarray(values))


def to_tensor(planes: Array, like: object = None) -> Tensor:
    """Planes `[C,H,W]` of any kind as a float tensor; of the device, dtype and type of `like` where that is a
    tensor."""
    import torch

    if isinstance(like, torch.Tensor) and like.dtype == torch.uint8:
        return like_tensor(torch.from_numpy(np.ascontiguousarray(to_eight_bits(planes))).to(like.device), like)
    result = torch.from_numpy(np.ascontiguousarray(to_floats(planes)))
    return like_tensor(result.to(like.device, like.dtype), like) if isinstance(like, torch.Tensor) else result


def like_tensor(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` as a tv_tensor of torchvision where `like` is one."""
    import torch

    if type(like) is torch.Tensor:
        return tensor
    from torchvision import tv_tensors

    return tv_tensors.wrap(tensor, like=like) if isinstance(like, tv_tensors.TVTensor) else tensor


def _shape(x: Array | Tensor) -> str:
    return f"{list(x.shape)} {x.dtype}"


# -- batches, torch ---------------------------------------------------------------------------------------------------


def as_float(x: Tensor) -> Tensor:
    """Pixels of any kind as float32; floats are not clipped."""
    import torch

    return x.float() if x.is_floating_point() else x.float() / torch.iinfo(x.dtype).max


def as_pixels(x: Tensor, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Float pixels, on `device`, for a tensor of `dtype`: rounded and clipped (as int32) for integers."""
    import torch

    if dtype.is_floating_point:
        return x.to(device)
    return x.clamp(0, 1).mul_(torch.iinfo(dtype).max).round_().int().to(device)


def padded(side: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `side`."""
    return -(-side // multiple) * multiple


def pad(x: Tensor, height: int, width: int) -> Tensor:
    """`x` `[N,C,h,w]` continued downwards and to the right by its last row and column, to `height` and `width`."""
    from torch.nn import functional as F

    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")


def mirror(x: Tensor, height: int, width: int) -> Tensor:
    """`x` `[N,C,h,w]` continued downwards and to the right by its mirror image, to `height` and `width`.

    For what is done to noise: a last row that is repeated is noise of another kind, and trained networks see that
    from a hundred pixels away.
    """
    import torch

    for dim, side in ((2, height), (3, width)):
        if x.shape[dim] < side:
            last = x.shape[dim] - 1
            there = torch.arange(side, device=x.device) % max(2 * last, 1)
            x = x.index_select(dim, torch.minimum(there, 2 * last - there))
    return x
