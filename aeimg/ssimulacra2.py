"""SSIMULACRA2 (Sneyers, libjxl `tools/ssimulacra2.cc`, version 2.1) as a function that gradients pass through.

The score is 100 for equal images, about 90 where no difference is seen, 70 for high, 50 for medium and 30 for low
quality; it falls below 0 for worse. It is a weighted sum of three error maps of XYB planes at several scales: SSIM with
a corrected luminance term, edges that appear (ringing, blocks) and edges that disappear (blur), each as the mean or as
the 4-norm over the image.

Three things differ from the program that defines it. Terms whose weight is under 0.01 are left out (their sum changes
no score by more than a few hundredths), which leaves only the luminance plane at full resolution. Blurring mirrors
the image at its border, because a crop's border is not the picture's. The roots have a small constant inside so that
their slopes stay finite. Scores of photographs of 30 and more agree with the package `ssimulacra2` to within 2 points,
most of which is the border.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

ABSORBANCE = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095361),
)
"""Linear red, green and blue -> the responses of long, medium and short cones (libjxl `opsin_params.h`)."""
BIAS = 0.0037930732552754493
C2 = 0.0009
SIGMA = 1.5
"""Standard deviation of the blur, in pixels."""

X, Y, B = 0, 1, 2
SSIM, RINGING, BLUR = 0, 1, 2
WEIGHTS: tuple[dict[int, dict[tuple[int, int], float]], ...] = (
    {Y: {(SSIM, 4): 7.466890328078848, (BLUR, 4): 17.445833984131262}},
    {
        X: {(SSIM, 4): 1.1041726426657346},
        Y: {(SSIM, 4): 6.683678146179332, (BLUR, 4): 1.027889937768264},
    },
    {
        X: {(SSIM, 4): 1.8422455520539298, (RINGING, 4): 11.441172603757666},
        Y: {(SSIM, 1): 225.20515300849274, (SSIM, 4): 19.213238186143016},
    },
    {
        X: {(SSIM, 4): 1.8787594979546387, (RINGING, 4): 10.94906990605142},
        Y: {(SSIM, 1): 176.39317598450694, (SSIM, 4): 24.43300999870476, (RINGING, 4): 0.28520802612117757},
        B: {(SSIM, 4): 8.826982764996862, (RINGING, 4): 23.19243343998926},
    },
    {
        X: {(RINGING, 1): 0.9677937080626833, (RINGING, 4): 0.9981766977854967},
        Y: {(SSIM, 4): 34.77906344483772, (RINGING, 4): 44.835625328877896},
        B: {
            (SSIM, 1): 95.1080498811086,
            (RINGING, 1): 0.9863978034400682,
            (BLUR, 1): 0.9834382792465353,
            (RINGING, 4): 171.2667255897307,
            (BLUR, 4): 0.9807858872435379,
        },
    },
)
"""Of each scale (full resolution first), plane, error map and norm."""


def _linear(x: Tensor) -> Tensor:
    """sRGB -> linear light, for values that may lie a little outside [0,1]."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04) + 0.055) / 1.055) ** 2.4)


def _xyb(linear: Tensor) -> Tensor:
    """Linear light `[N,3,H,W]` -> the three planes, shifted to be positive, `[3,N,H,W]`."""
    matrix = torch.tensor(ABSORBANCE, dtype=linear.dtype, device=linear.device)
    cones = torch.einsum("cd,ndhw->cnhw", matrix, linear)
    # The slope of the cube root is unbounded at zero.
    long, medium, short = ((cones + BIAS).clamp(min=1e-6) ** (1 / 3) - BIAS ** (1 / 3)).unbind(0)
    y = 0.5 * (long + medium)
    return torch.stack([7 * (long - medium) + 0.42, y + 0.01, short - y + 0.55])


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept must serve gradients as well, whoever asks first
def _blur_matrix(side: int, device: torch.device) -> Tensor:
    """The Gaussian blur of a line of `side` pixels, mirrored at both ends, as a matrix `[side,side]`."""
    reach = 5
    taps = [math.exp(-0.5 * (n / SIGMA) ** 2) for n in range(-reach, reach + 1)]
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for row in range(side):
        for offset, tap in zip(range(-reach, reach + 1), taps, strict=True):
            at = (row + offset) % (2 * side)
            matrix[row, at if at < side else 2 * side - 1 - at] += tap / sum(taps)
    return matrix.float().to(device)


def _blurred(x: Tensor) -> Tensor:
    """`[...,H,W]`, by a product with a banded matrix on either side."""
    return _blur_matrix(x.shape[-2], x.device) @ x @ _blur_matrix(x.shape[-1], x.device).T


def _norm(error: Tensor, power: int) -> Tensor:
    """Mean, or 4-norm, of the errors `[N,H,W]` of each image: `[N]`."""
    if power == 1:
        return error.mean((1, 2))
    return (error.square().square().mean((1, 2)) + 1e-16) ** 0.25


def _errors(reference: Tensor, distorted: Tensor, wanted: set[int]) -> dict[int, Tensor]:
    """The error maps of a plane `[N,H,W]`: those of SSIM, ringing and blur that are wanted."""
    with torch.no_grad():
        mean1, square1 = _blurred(torch.stack([reference, reference.square()])).unbind(0)
    if SSIM in wanted:
        mean2, square2, product = _blurred(torch.stack([distorted, distorted.square(), reference * distorted])).unbind(
            0
        )
    else:
        mean2 = _blurred(distorted)
    found = {}
    if SSIM in wanted:
        structure = 2 * (product - mean1 * mean2) + C2
        structure = structure / ((square1 - mean1.square()) + (square2 - mean2.square()) + C2)
        found[SSIM] = (1 - (1 - (mean1 - mean2).square()) * structure).clamp(min=0)
    if wanted & {RINGING, BLUR}:
        edges = (1 + (distorted - mean2).abs()) / (1 + (reference - mean1).abs()) - 1
        found |= {RINGING: edges.clamp(min=0), BLUR: (-edges).clamp(min=0)}
    return found


def _halved(x: Tensor) -> Tensor:
    """The means of squares of 2x2 pixels; an odd last row or column is left out."""
    return torch.nn.functional.avg_pool2d(x, 2)


def ssimulacra2(reference: Tensor, distorted: Tensor) -> Tensor:
    """The score of each of a batch of images against its reference, both sRGB `[N,3,H,W]` float in [0,1]: `[N]`.

    Gradients reach `distorted` only. Both sides must be at least 16 pixels; it is meant for 128 and more, where all
    scales exist. Computed in fp32, whatever autocast says.
    """
    with torch.autocast(reference.device.type, enabled=False):
        linear1, linear2 = _linear(reference.detach().float()), _linear(distorted.float())
        total = torch.zeros(len(reference), dtype=torch.float32, device=reference.device)
        for scale, planes in enumerate(WEIGHTS):
            if scale:
                linear1, linear2 = _halved(linear1), _halved(linear2)
            if min(linear1.shape[2:]) < 8:
                break
            with torch.no_grad():
                xyb1 = _xyb(linear1)
            xyb2 = _xyb(linear2)
            for plane, terms in planes.items():
                errors = _errors(xyb1[plane], xyb2[plane], {kind for kind, _ in terms})
                for (kind, power), weight in terms.items():
                    total = total + weight * _norm(errors[kind], power)
        total = 0.9562382616834844 * total
        total = 2.326765642916932 * total - 0.020884521182843837 * total**2 + 6.248496625763138e-05 * total**3
        return 100 - 10 * total.clamp(min=1e-3) ** 0.6276336467831387
