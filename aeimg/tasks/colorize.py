"""The task colorize: the luma of a picture -> the picture in likely colours.

prepare   reads the picture
run       a batch of lumas, reduced to the size that the network knows, through the colorizer: planes of chroma
finish    puts luma and chroma together, and gives the picture back

The luma of the result is that of the picture to the last bit, in integers: see `coloured`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, ModelError
from ..images import Picture
from ..metrics import chroma_psnr, colourfulness
from ..pixels import LUMA, as_float, luma, mirror, padded
from .image import Evaluation, ImageItem, ImageResult, ImageRunner, safe_dtype
from .options import ColorizeOptions
from .pictures import stacked

Array = np.ndarray

RED, BLUE = 2 * (1 - LUMA[0]), 2 * (1 - LUMA[2])
"""How much Cr adds to red and Cb to blue (BT.601)."""


def luma_of(pixels: Array) -> Array:
    """The luma `[H,W]` of pixels `[1,H,W]` or `[3,H,W]` (BT.601), in their dtype; integers are rounded."""
    if len(pixels) == 1:
        return pixels[0]
    made = np.tensordot(np.asarray(LUMA), pixels.astype(np.float64), 1)
    return (made if pixels.dtype == np.float32 else np.rint(made)).astype(pixels.dtype)


def coloured(luma: Array, chroma: Array) -> Array:
    """RGB `[3,H,W]` of the luma `[H,W]`, in its dtype, and the planes Cb and Cr `[2,H,W]`, in [-0.5,0.5] (BT.601).

    Where a colour lies outside of the gamut, it is brought nearer to grey until it fits, so the luma stays. Red and
    blue are rounded, and green is what the luma then lacks: it is off by half a step at most, which is 0.3 steps of
    luma, so the luma of integers rounds to what it was, everywhere.
    """
    return np.asarray(_coloured(torch.from_numpy(luma), torch.from_numpy(chroma)).numpy())


def _coloured(luma: Tensor, chroma: Tensor) -> Tensor:
    """`coloured` of planes `[...]` and `[2,...]` that are tensors, on their device: `[3,...]`."""
    whole = luma.dtype.is_floating_point
    white = 1.0 if whole else float(torch.iinfo(luma.dtype).max)
    y = luma.double() / white
    blue, red = BLUE * chroma[0].double(), RED * chroma[1].double()
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    room = torch.ones_like(y)
    for difference in (red, green, blue):
        falls = torch.where(difference < 0, -y / difference, torch.inf)
        fits = torch.where(difference > 0, (1 - y) / difference, falls)
        room = torch.minimum(room, fits.clamp(min=0))
    if whole:
        return torch.stack([y + room * part for part in (red, green, blue)]).float()
    r, b = (torch.round(white * (y + room * part)) for part in (red, blue))
    g = torch.round((luma.double() - LUMA[0] * r - LUMA[2] * b) / LUMA[1])
    return torch.stack([r, g, b]).clamp(0, white).to(luma.dtype)


def _luma_of_tensors(x: Tensor) -> Tensor:
    """`luma_of` of pixels `[N,3,H,W]`, uint8 or float32, on their device: `[N,1,H,W]`."""
    made = luma(x.double())
    return (made if x.dtype.is_floating_point else torch.round(made)).to(x.dtype)


class Colorize(ImageRunner):
    """See the module."""

    options: ColorizeOptions

    def run(self, items: list[ImageItem]) -> list[Array]:
        """Returns the planes Cb and Cr `[2,H,W]` of each picture, float, in [-0.5,0.5]."""
        lumas = [replace(item, opened=replace(item.opened, picture=_grey(item.picture))) for item in items]
        x = as_float(stacked(lumas, 1))
        with torch.inference_mode():
            chroma = self._chroma(x)
        return list(chroma.cpu().numpy())

    def on_device(self, x: Tensor) -> Tensor:
        """What `run` and `finish` do, without copying the pictures to the CPU where they are elsewhere."""
        grey = x if x.shape[1] == 1 else _luma_of_tensors(x)
        strong = self.options.strength * self._chroma(as_float(grey)).to(x.device)
        return _coloured(grey[:, 0], strong.clamp(-0.5, 0.5).transpose(0, 1)).transpose(0, 1)

    def _chroma(self, x: Tensor) -> Tensor:
        """The planes Cb and Cr `[N,2,H,W]` of luma `[N,1,H,W]`, on the device, computed on a reduced picture."""
        model, (height, width) = self.network, x.shape[2:]
        factor = min(1.0, model.side / min(height, width))
        small = (max(1, math.ceil(factor * height)), max(1, math.ceil(factor * width)))
        x = x.to(self.device)
        if small != (height, width):
            x = F.interpolate(x, small, mode="bilinear", antialias=True, align_corners=False)
        whole = mirror(x, padded(small[0], model.multiple), padded(small[1], model.multiple))
        dtype = safe_dtype(model, self.dtype)
        for precision in dict.fromkeys((dtype, torch.float32)):
            with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
                made = model(whole.contiguous(memory_format=torch.channels_last))
            if not isinstance(made, Tensor) or made.shape != (len(x), 2, *whole.shape[2:]):
                raise ModelError(f"model {model.label}: must make [N,2,H,W] of [N,1,H,W]; {list(whole.shape)} went in")
            made = made.float()[:, :, : small[0], : small[1]]
            if bool(torch.isfinite(made.sum())):
                return F.interpolate(made, (height, width), mode="bilinear", align_corners=False)
        raise InputError("the model's result is not finite, not even in fp32; the picture may hold such values")

    def finish(self, item: ImageItem, raw: Array) -> ImageResult:
        """Puts the picture's luma and the chroma together, and gives the picture back."""
        pixels = item.picture.pixels
        made = coloured(luma_of(pixels), np.clip(self.options.strength * raw, -0.5, 0.5))
        result = super().finish(item, made)
        if len(pixels) == 3 and not (np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[1], pixels[2])):
            result = replace(result, warnings=(*result.warnings, "its own colours were replaced"))
        return result

    def figures_of(self, item: ImageItem, raw: Array) -> dict[str, Any]:
        """Returns the strength, and how strong the chroma is on average, before that, in 8-bit units."""
        strong = float(np.hypot(raw[0], raw[1]).mean()) * 255
        return {"strength": self.options.strength, "chroma": round(strong, 2)}

    evaluation = Evaluation(
        degrade=lambda pixels, by: luma_of(pixels.transpose(2, 0, 1)),
        metrics={"chroma PSNR, dB": chroma_psnr, "colourfulness": lambda a, b: colourfulness(b)},
        baselines={"grey": lambda x, by: np.repeat(x[..., None], 3, 2)},
        of_originals=("colourfulness",),
    )


def _grey(picture: Picture) -> Picture:
    return replace(picture, pixels=luma_of(picture.pixels)[None])
