"""Training data: folders of images -> augmented crops, and the noise put on them.

A batch is a function of the folder, the seed and the step alone, so a resumed run sees what an
undisturbed one would have seen.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import DataError
from .paths import find_images

Array = np.ndarray


class Photographs:
    """Images of a folder as RGB uint8 `[H,W,3]`, decoded on first use and kept up to `cache_bytes`.

    Images with a side under `min_side` pixels are left out. Raises `DataError` where fewer than `at_least` remain.
    """

    def __init__(self, folder: Path, *, min_side: int, at_least: int = 1, cache_bytes: int = 2 << 30) -> None:
        self.folder = Path(folder)
        self.paths: list[Path] = []
        areas = []
        sides = []
        skipped = 0
        for path in find_images(self.folder):
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except OSError:
                skipped += 1
                continue
            if min(width, height) < min_side:
                skipped += 1
                continue
            self.paths.append(path)
            areas.append(width * height)
            sides.append(min(width, height))
        if len(self.paths) < at_least:
            raise DataError(
                f"{folder}: {len(self.paths)} usable images, at least {at_least} are needed "
                f"({skipped} were unreadable or had a side under {min_side} pixels)"
            )
        self.pixels = int(sum(areas))
        self._weights = np.asarray(areas, dtype=np.float64)
        self._sides = np.asarray(sides)
        self._cache: OrderedDict[int, Array] = OrderedDict()
        self._cached = 0
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.paths)

    def split(self, held_out: int) -> list[int]:
        """Indices of `held_out` images, evenly spread, which `crop` will no longer draw from."""
        chosen = np.linspace(0, len(self.paths) - 1, held_out + 2)[1:-1].astype(int).tolist()
        self._weights[chosen] = 0
        return list(chosen)

    def image(self, index: int) -> Array:
        """Image `index` as RGB uint8 `[H,W,3]`."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        with Image.open(self.paths[index]) as image:
            pixels = np.asarray(image.convert("RGB"))
        with self._lock:
            self._cache[index] = pixels
            self._cached += pixels.nbytes
            while self._cached > self._cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def crops(self, rng: np.random.Generator, count: int, size: int) -> Tensor:
        """`count` random crops, each in one of the eight orientations: uint8 `[count,3,size,size]`.

        Drawn in proportion to the area, from the images that are large enough.
        """
        weights = self._weights * (self._sides >= size)
        if not weights.any():
            raise DataError(f"{self.folder}: no image has both sides of {size} pixels or more")
        batch = np.empty((count, 3, size, size), np.uint8)
        for n, index in enumerate(rng.choice(len(self.paths), size=count, p=weights / weights.sum())):
            pixels = self.image(int(index))
            top = rng.integers(pixels.shape[0] - size + 1)
            left = rng.integers(pixels.shape[1] - size + 1)
            crop = pixels[top : top + size, left : left + size]
            crop = np.rot90(crop, int(rng.integers(4)))
            if rng.integers(2):
                crop = crop[:, ::-1]
            batch[n] = crop.transpose(2, 0, 1)
        return torch.from_numpy(batch)


def turn_grey(x: Tensor, rng: np.random.Generator, *, share: float) -> Tensor:
    """`x` `[N,3,H,W]` with a share of its images, drawn at random, turned grey (the luma of BT.601)."""
    x = x.clone()
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device).view(3, 1, 1)
    for n in range(x.shape[0]):
        if rng.random() < share:
            x[n] = (x[n] * weights).sum(0, keepdim=True)
    return x


def vary_colours(x: Tensor, rng: np.random.Generator, *, greyscale: float = 0.1) -> Tensor:
    """Permutes the channels of each image at random and turns a share `greyscale` of them grey. `[N,3,H,W]`."""
    permuted = torch.stack([image[torch.from_numpy(rng.permutation(3))] for image in x])
    return turn_grey(permuted, rng, share=greyscale)


def add_white_noise(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """`x` `[N,C,H,W]` in [0,1] plus Gaussian noise of `sigma` `[N]` in 8-bit units; not clipped."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + noise * (sigma / 255.0).view(-1, 1, 1, 1)
