"""Training data: folders of images, pairs of images and idx files, out of which random crops are drawn.

    Photographs       a folder of colour images
    GreyPhotographs   the same in grey
    UprightPhotographs   the same, whose crops are not turned
    Pairs             a folder of clean images and one of noisy images
    Digits            files in the idx format of MNIST

A batch is a function of the folder, the seed and the step alone, so a resumed run sees the batches that an
uninterrupted run would have seen.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import plots
from ..errors import DataError, InputError
from ..images import open_image, read_file, read_picture
from ..paths import find_images, open_regular
from ..pixels import rgb_of

Array = np.ndarray

log = logging.getLogger("aeimg")


def _rgb(path: Path) -> Array:
    """The picture in a file as uint8 `[H,W,3]`, upright. Raises `DataError` where it can't be read."""
    try:
        pixels = read_picture(read_file(path), str(path)).pixels
    except InputError as error:
        raise DataError(str(error)) from error
    return rgb_of(pixels)


def _some(paths: Sequence[Path]) -> str:
    """The names of `paths`; of many, the first three and how many more there are."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


class Dataset(Protocol):
    """What an objective needs of the images that it trains on."""

    folder: Path
    """The folder that holds them."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how they were read."""
        ...

    @property
    def pixels(self) -> int:
        """How many pixels they have together."""
        ...

    def __len__(self) -> int: ...

    def count(self, size: int) -> int:
        """The number of images from which crops of `size` pixels can be drawn."""
        ...

    def split(self, held_out: int) -> list[int]:
        """Holds out so many images, from which `crops` no longer draws. Returns their indices."""
        ...

    def image(self, index: int) -> Array:
        """Image `index`, uint8 `[H,W,C]`."""
        ...

    def crops(self, rng: np.random.Generator, count: int, size: int) -> Tensor:
        """`count` random crops, uint8 `[count,C,size,size]`."""
        ...


class Photographs:
    """The images of a folder and of those below it, in RGB, uint8 `[H,W,3]`. They are decoded on first use and kept, up
    to `cache_bytes`.

    Images with a side under `min_side` pixels and files of several frames are left out, and `notes` says so. Images
    that turn out to be damaged when they are decoded are left out with a warning to the log. Raises `DataError` where
    fewer than `at_least` remain.
    """

    channels = 3
    """The channels of an image."""
    turned = True
    """Whether crops are turned by quarters; they are mirrored in any case."""

    def __init__(self, folder: Path, *, min_side: int, at_least: int = 1, cache_bytes: int = 2 << 30) -> None:
        self.folder = Path(folder)
        self.paths: list[Path] = []
        areas = []
        sides = []
        unreadable: list[Path] = []
        small: list[Path] = []
        for path in find_images(self.folder):
            try:
                with open_regular(path) as file, open_image(file, str(path)) as image:
                    if plots.is_curve(image):  # the curve of a run whose weights lie among the images
                        continue
                    width, height = image.size
                    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:  # pages, or it and its thumbnail
                        height, width = read_picture(read_file(path), str(path)).pixels.shape[1:]
            except InputError:
                unreadable.append(path)
                continue
            if min(width, height) < min_side:
                small.append(path)
            else:
                self.paths.append(path)
                areas.append(width * height)
                sides.append(min(width, height))
        if len(self.paths) < at_least:
            raise DataError(
                f"{folder}: {len(self.paths)} usable images, at least {at_least} are needed, each with both sides of "
                f"{min_side} pixels or more ({len(small)} were smaller, {len(unreadable)} unreadable)"
            )
        self.notes = [
            f"left out, {why}: {_some(paths)}"
            for why, paths in (
                (f"smaller than {min_side} pixels", small),
                ("unreadable or of several frames", unreadable),
            )
            if paths
        ]
        self._at_least = at_least
        self._damaged: set[int] = set()
        self.pixels = int(sum(areas))
        self._weights = np.asarray(areas, dtype=np.float64)
        self._sides = np.asarray(sides)
        self._cache: OrderedDict[int, Array] = OrderedDict()
        self._cached = 0
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def largest_side(self) -> int:
        """The side of the largest crop that can be drawn, in pixels."""
        return int(self._sides[self._weights > 0].max())

    def count(self, size: int) -> int:
        """The number of images from which crops of `size` pixels can be drawn."""
        return int(((self._sides >= size) & (self._weights > 0)).sum())

    def split(self, held_out: int) -> list[int]:
        """Holds out so many sound images, evenly spread, from which `crops` no longer draws. Returns their indices."""
        chosen: list[int] = []
        for start in np.linspace(0, len(self.paths) - 1, held_out + 2)[1:-1].astype(int).tolist():
            for index in (n % len(self.paths) for n in range(start, start + len(self.paths))):
                if index not in chosen and self._sound(index) is not None:
                    chosen.append(index)
                    break
        self._weights[chosen] = 0
        return chosen

    def _decode(self, index: int) -> Array:
        return _rgb(self.paths[index])

    def image(self, index: int) -> Array:
        """Image `index` as RGB uint8 `[H,W,3]`."""
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        pixels = self._decode(index)
        with self._lock:
            self._cache[index] = pixels
            self._cached += pixels.nbytes
            while self._cached > self._cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def _sound(self, index: int) -> Array | None:
        """Image `index`, or None where it is damaged. Raises `DataError` where too few sound ones are left."""
        if index in self._damaged:
            return None
        try:
            return self.image(index)
        except DataError as error:
            self._damaged.add(index)
            left = len(self.paths) - len(self._damaged)
            if left < self._at_least:
                raise DataError(
                    f"{error}; without it {left} images are left, at least {self._at_least} are needed"
                ) from error
            log.warning("left out: %s", error)
            return None

    def crops(self, rng: np.random.Generator, count: int, size: int) -> Tensor:
        """`count` random crops, each in one of the eight orientations: uint8 `[count,channels,size,size]`.

        Images that are large enough are drawn with a probability in proportion to their area. For a damaged one another
        is drawn, in such a way that the other crops do not depend on when the damage was found.
        """
        weights = self._weights * (self._sides >= size)
        if not weights.any():
            raise DataError(f"{self.folder}: no image has both sides of {size} pixels or more")
        shares = weights / weights.sum()
        batch = np.empty((count, self.channels, size, size), np.uint8)
        for n, index in enumerate(rng.choice(len(self.paths), size=count, p=shares)):
            while (pixels := self._sound(int(index))) is None:
                if self._damaged.issuperset(np.flatnonzero(weights)):
                    raise DataError(f"{self.folder}: no sound image has both sides of {size} pixels or more")
                index = rng.choice(len(self.paths), p=shares)
            top = rng.integers(pixels.shape[0] - size + 1)
            left = rng.integers(pixels.shape[1] - size + 1)
            crop = pixels[top : top + size, left : left + size]
            crop = np.rot90(crop, int(rng.integers(4))) if self.turned else crop
            if rng.integers(2):
                crop = crop[:, ::-1]
            batch[n] = crop.transpose(2, 0, 1)
        return torch.from_numpy(batch)


class Digits:
    """Images in the idx format of MNIST (LeCun et al. 1998), uint8 `[N,S,S]`, with their labels `[N]`.

    Where `labels` is given, only images with one of them are kept. Raises `DataError` where the files are missing or
    damaged, where fewer than `at_least` images remain, or where they are not square or smaller than `min_side` pixels.
    """

    channels = 1
    notes: Sequence[str] = ()

    def __init__(
        self, folder: Path, labels: Sequence[int] | None = None, *, min_side: int = 8, at_least: int = 1
    ) -> None:
        self.folder = Path(folder)
        self.images = self._read("images-idx3-ubyte", 3)
        self.labels = self._read("labels-idx1-ubyte", 1)
        if len(self.images) != len(self.labels):
            raise DataError(f"{folder}: {len(self.images)} images, but {len(self.labels)} labels")
        self.total = len(self.images)
        self.places = np.arange(self.total)
        if labels is not None:
            kept = np.isin(self.labels, labels)
            self.images, self.labels, self.places = self.images[kept], self.labels[kept], self.places[kept]
        if len(self.images) < at_least:
            which = "" if labels is None else f" with the labels {', '.join(map(str, labels))}"
            raise DataError(f"{folder}: {len(self.images)} images{which}, at least {at_least} are needed")
        height, width = self.images.shape[1:]
        if height != width or height < min_side:
            raise DataError(
                f"{folder}: images of {height}x{width} pixels; they must be square, {min_side}x{min_side} or more"
            )
        self.training = len(self.images)
        self.pixels = self.images.size

    @property
    def side(self) -> int:
        """The side of an image, in pixels."""
        return int(self.images.shape[1])

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether the folder holds images in the idx format."""
        return any(Path(folder).glob("*images-idx3-ubyte*"))

    def _read(self, kind: str, dimensions: int) -> Array:
        found = sorted(self.folder.glob(f"*{kind}*"))
        if not found:
            raise DataError(f"{self.folder}: no file *{kind} or *{kind}.gz")
        try:
            data = found[0].read_bytes()
            data = gzip.decompress(data) if found[0].suffix == ".gz" else data
            magic, *shape = struct.unpack_from(f">I{dimensions}I", data)
            values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
            if magic != 0x800 + dimensions or values.size != math.prod(shape):
                raise ValueError("its lengths do not add up")
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise DataError(f"{found[0]}: not an idx file of unsigned bytes ({error})") from error
        return values.reshape(shape)

    def __len__(self) -> int:
        return len(self.images)

    def count(self, size: int) -> int:
        """The number of images that are drawn from: all that are not held out, if they have `size` pixels a side."""
        return self.training if size <= self.side else 0

    def image(self, index: int) -> Array:
        """Image `index`, uint8 `[S,S,1]`."""
        return self.images[index][:, :, None]

    def split(self, held_out: int | None = None) -> list[int]:
        """Holds out those of the file's last `held_out` images (default: a fifth of them) that are kept, from which
        `crops` no longer draws. Returns their indices."""
        held_out = self.total // 5 if held_out is None else held_out
        self.training = int(np.searchsorted(self.places, self.total - held_out))
        return list(range(self.training, len(self.images)))

    def crops(self, rng: np.random.Generator, count: int, size: int) -> Tensor:
        """`count` random images: uint8 `[count,1,S,S]`. `size` is their side."""
        return torch.from_numpy(self.images[rng.integers(self.training, size=count)][:, None])


class GreyPhotographs(Photographs):
    """The images of a folder as `Photographs` has them, in grey: uint8 `[H,W,1]`."""

    channels = 1

    def _decode(self, index: int) -> Array:
        return np.asarray(Image.fromarray(super()._decode(index)).convert("L"))[:, :, None]


class UprightPhotographs(Photographs):
    """The images of a folder as `Photographs` has them, of which crops stay upright: the sky is above."""

    turned = False


class Pairs(Photographs):
    """Pictures that were taken twice: `folder/clean` and `folder/noisy` hold files of equal names and sizes.

    An image is uint8 `[H,W,6]`, the channels of the clean one first. Raises `DataError` for a clean image without a
    noisy partner of its size.
    """

    channels = 6

    def __init__(self, folder: Path, *, min_side: int, at_least: int = 1, cache_bytes: int = 2 << 30) -> None:
        if not self.are_in(folder):
            raise DataError(f"{folder}: pairs are two folders in it, noisy/ and clean/, with files of equal names")
        super().__init__(Path(folder) / "clean", min_side=min_side, at_least=at_least, cache_bytes=cache_bytes)
        self.noisy = Path(folder) / "noisy"
        alone = [path for path in find_images(self.noisy) if not (self.folder / path.relative_to(self.noisy)).exists()]
        if alone:
            self.notes.append(f"left out, without a partner in {self.folder}: {_some(alone)}")
        for path in self.paths:
            if not self._partner(path).exists():
                raise DataError(
                    f"{path}: has no partner {self._partner(path)}; noisy/ and clean/ must hold files of equal names"
                )
            try:
                with open_regular(path) as file, open_regular(self._partner(path)) as other:
                    sizes = open_image(file, str(path)).size, open_image(other, str(self._partner(path))).size
            except InputError as error:
                raise DataError(f"{self._partner(path)}: the partner of {path} can't be read ({error})") from error
            if sizes[0] != sizes[1]:
                raise DataError(f"{path}: its noisy partner has another size, {sizes[1]} against {sizes[0]}")

    @staticmethod
    def are_in(folder: Path) -> bool:
        """Whether the folder holds noisy/ and clean/."""
        return all((Path(folder) / kind).is_dir() for kind in ("noisy", "clean"))

    @staticmethod
    def nearly_in(folder: Path) -> bool:
        """Whether one of the two folders is there alone or spelled in another way: pairs may have been meant."""
        names = [path.name.lower() for path in Path(folder).iterdir() if path.is_dir()] if Path(folder).is_dir() else []
        return any(name in ("noisy", "clean") for name in names) and not Pairs.are_in(folder)

    def _partner(self, path: Path) -> Path:
        return self.noisy / path.relative_to(self.folder)

    def _decode(self, index: int) -> Array:
        clean, noisy = super()._decode(index), _rgb(self._partner(self.paths[index]))
        if clean.shape != noisy.shape:  # which their files only say once they are turned upright
            raise DataError(f"{self.paths[index]}: its noisy partner is turned another way")
        return np.concatenate([clean, noisy], axis=2)
