"""Training data: folders of images -> augmented crops, and what is done to them to make them noisy.

    Photographs, Pairs      folders of images, of clean and noisy ones -> crops
    Digits                  files in the idx format -> images
    add_white_noise         Gaussian noise
    photographed            what a camera and its software make of a picture; each of its steps stands by itself:
                            to_linear and to_srgb, add_sensor_noise, mosaic and demosaic, resized, sharpened,
                            through_jpeg

A batch is a function of the folder, the seed and the step alone, so a resumed run sees what an
undisturbed one would have seen. Degradations take and return float `[N,3,H,W]` in [0,1] and draw what they leave to
chance from `rng`.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from . import plots
from .errors import DataError, InputError
from .images import open_image, read_file, read_picture
from .paths import find_images, open_regular
from .pixels import rgb_of

Array = np.ndarray

log = logging.getLogger("aeimg")


def _rgb(path: Path) -> Array:
    """The picture in a file as uint8 `[H,W,3]`, upright. Raises `DataError`."""
    try:
        pixels = read_picture(read_file(path), str(path)).pixels
    except InputError as error:
        raise DataError(str(error)) from error
    return rgb_of(pixels)


def _some(paths: Sequence[Path]) -> str:
    """Their names, or where there are many, a few of them and how many more."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


class Photographs:
    """Images of a folder as RGB uint8 `[H,W,3]`, decoded on first use and kept up to `cache_bytes`.

    Those with a side under `min_side` pixels, and files of several frames, are left out, and `notes` says so. So are,
    with a warning to the log, those that turn out damaged when they are decoded. Raises `DataError` where fewer than
    `at_least` remain.
    """

    channels = 3

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
                    if plots.is_curve(image):  # of a run whose weights lie among the images
                        continue
                    width, height = image.size
                    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            except InputError:
                frames = 0
            if frames != 1:
                unreadable.append(path)
            elif min(width, height) < min_side:
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
        """Of the largest square that can be drawn from some image, in pixels."""
        return int(self._sides[self._weights > 0].max())

    def count(self, size: int) -> int:
        """From how many images crops of `size` pixels can be drawn."""
        return int(((self._sides >= size) & (self._weights > 0)).sum())

    def split(self, held_out: int) -> list[int]:
        """Indices of `held_out` sound images, evenly spread, which `crops` will no longer draw from."""
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
        """The same; None for one that is damaged. Raises `DataError` where too few are left."""
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

        Drawn in proportion to the area, from the images that are large enough; again in the place of a damaged one, so
        that it does not matter to the others when that is found out.
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
            crop = np.rot90(crop, int(rng.integers(4)))
            if rng.integers(2):
                crop = crop[:, ::-1]
            batch[n] = crop.transpose(2, 0, 1)
        return torch.from_numpy(batch)


class Digits:
    """Images in the idx format of MNIST (LeCun et al. 1998), with their labels: uint8 `[N,S,S]`, and `[N]`.

    `labels` keeps only images of these. Raises `DataError` where the files are not there or not what they should be,
    and where fewer than `at_least` images remain, or they are smaller than `min_side` pixels or not square.
    """

    channels = 1

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
        """Of its images, in pixels."""
        return int(self.images.shape[1])

    @staticmethod
    def are_in(folder: Path) -> bool:
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

    def split(self, held_out: int | None = None) -> list[int]:
        """Indices of what is kept of the file's last `held_out` images (a fifth of them, where nothing is said), which
        `crops` will no longer draw from."""
        held_out = self.total // 5 if held_out is None else held_out
        self.training = int(np.searchsorted(self.places, self.total - held_out))
        return list(range(self.training, len(self.images)))

    def crops(self, rng: np.random.Generator, count: int, size: int) -> Tensor:
        """`count` images: uint8 `[count,1,S,S]`; `size` must be theirs."""
        return torch.from_numpy(self.images[rng.integers(self.training, size=count)][:, None])


class GreyPhotographs(Photographs):
    """The same as `Photographs` in grey, `[H,W,1]`."""

    channels = 1

    def _decode(self, index: int) -> Array:
        return np.asarray(Image.fromarray(super()._decode(index)).convert("L"))[:, :, None]


class Pairs(Photographs):
    """Pictures taken twice: `folder/clean` and `folder/noisy` hold files of equal names and sizes.

    An image is `[H,W,6]`, the clean one's channels first. Raises `DataError` for a file without a partner of its size.
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
        return all((Path(folder) / kind).is_dir() for kind in ("noisy", "clean"))

    @staticmethod
    def nearly_in(folder: Path) -> bool:
        """Whether one of the two folders is there, or is spelled in another way: pairs may have been meant."""
        names = [path.name.lower() for path in Path(folder).iterdir() if path.is_dir()] if Path(folder).is_dir() else []
        return any(name in ("noisy", "clean") for name in names) and not Pairs.are_in(folder)

    def _partner(self, path: Path) -> Path:
        return self.noisy / path.relative_to(self.folder)

    def _decode(self, index: int) -> Array:
        clean, noisy = super()._decode(index), _rgb(self._partner(self.paths[index]))
        if clean.shape != noisy.shape:  # which their files only say once they are turned upright
            raise DataError(f"{self.paths[index]}: its noisy partner is turned another way")
        return np.concatenate([clean, noisy], axis=2)


def turn_grey(x: Tensor, rng: np.random.Generator, *, share: float) -> Tensor:
    """`x` `[N,3,H,W]` with a share of its images, drawn at random, turned grey (the luma of BT.601)."""
    x = x.clone()
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device).view(3, 1, 1)
    for n in range(x.shape[0]):
        if rng.random() < share:
            x[n] = (x[n] * weights).sum(0, keepdim=True)
    return x


def add_white_noise(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """`x` `[N,C,H,W]` in [0,1] plus Gaussian noise of `sigma` `[N]` in 8-bit units; not clipped."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + noise * (sigma / 255.0).view(-1, 1, 1, 1)


# -- what cameras and their software do to a picture -----------------------------------------------------------------


def to_linear(x: Tensor) -> Tensor:
    """sRGB -> linear light (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.0) + 0.055) / 1.055) ** 2.4)


def to_srgb(x: Tensor) -> Tensor:
    """Linear light -> sRGB."""
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


def add_sensor_noise(x: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator) -> Tensor:
    """`x` in linear light plus noise of variance `shot^2 * x + read^2`, both `[N]` (Foi et al. 2008); not clipped."""
    shot, read = shot.view(-1, 1, 1, 1), read.view(-1, 1, 1, 1)
    return x + torch.randn(x.shape, generator=generator) * (shot**2 * x.clamp(min=0) + read**2).sqrt()


Position = tuple[int, int]
"""Row and column, 0 or 1, of the red pixel in each 2x2 of a Bayer mosaic; blue lies across from it."""


def mosaic(x: Tensor, red: Position) -> Tensor:
    """What a Bayer sensor sees of `x` `[N,3,H,W]`: `[N,1,H,W]`."""
    row, column = red
    seen = x[:, 1:2].clone()
    seen[:, 0, row::2, column::2] = x[:, 0, row::2, column::2]
    seen[:, 0, 1 - row :: 2, 1 - column :: 2] = x[:, 2, 1 - row :: 2, 1 - column :: 2]
    return seen


_ACROSS = [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]
_MALVAR = [
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]],
    _ACROSS,
    [list(row) for row in zip(*_ACROSS, strict=True)],
    [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]],
]
"""Filters, times 8, for: green at red and blue; a colour between two of its own in a row; in a column; diagonally."""


def demosaic(seen: Tensor, red: Position) -> Tensor:
    """The mirror of `mosaic`, `[N,1,H,W]` -> `[N,3,H,W]`, by the linear filters of Malvar, He and Cutler (2004)."""
    filters = torch.tensor(_MALVAR, dtype=seen.dtype, device=seen.device)[:, None] / 8
    green, across, down, diagonal = F.conv2d(F.pad(seen, (2, 2, 2, 2), mode="reflect"), filters).unbind(1)
    result = seen.repeat(1, 3, 1, 1)
    row, column = red
    for channel, (r, c) in ((0, (row, column)), (2, (1 - row, 1 - column))):
        result[:, channel, r::2, 1 - c :: 2] = across[:, r::2, 1 - c :: 2]
        result[:, channel, 1 - r :: 2, c::2] = down[:, 1 - r :: 2, c::2]
        result[:, channel, 1 - r :: 2, 1 - c :: 2] = diagonal[:, 1 - r :: 2, 1 - c :: 2]
        result[:, 1, r::2, c::2] = green[:, r::2, c::2]
    return result


def resized(x: Tensor, side: int, kind: str) -> Tensor:
    """Squares scaled to `side` pixels, `kind` "bilinear" or "bicubic", antialiased where they shrink."""
    return F.interpolate(x, size=(side, side), mode=kind, antialias=True, align_corners=False)


def softened(x: Tensor, sigma: Tensor) -> Tensor:
    """`x` `[N,C,H,W]` blurred by Gaussians of `sigma` `[N]` pixels, up to 2: what lenses leave of a pixel's detail."""
    count, channels = x.shape[:2]
    at = torch.arange(-6, 7, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma.view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, :, None]
    planes = F.pad(x.reshape(1, count * channels, *x.shape[2:]), (6, 6, 6, 6), mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=planes.shape[1]), kernel.mT, groups=planes.shape[1])
    return planes.reshape(x.shape)


def sharpened(x: Tensor, amount: Tensor) -> Tensor:
    """Unsharp masking: `amount` `[N]` times what a 3x3 binomial blur takes away is added once more."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(x.shape[1], 1, 3, 3).to(x)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])
    return x + amount.view(-1, 1, 1, 1) * (x - blurred)


def through_jpeg(x: Tensor, quality: list[int | None], subsampling: list[int]) -> Tensor:
    """Each image saved as a JPEG of its own quality (None: not at all) and read again.

    `subsampling` 0 is 4:4:4, 1 4:2:2, 2 4:2:0.
    """
    pixels = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    result = x.clone()
    for n, (level, ratio) in enumerate(zip(quality, subsampling, strict=True)):
        if level is not None:
            buffer = io.BytesIO()
            Image.fromarray(pixels[n]).save(buffer, "JPEG", quality=level, subsampling=ratio)
            result[n] = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1) / 255.0
    return result


def _camera(x: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """`x` as a sensor and a raw converter would have it: tone curve undone, white balance undone, noise, mosaic, back.

    The ranges of the noise are those of CBDNet (Guo et al. 2019), low levels drawn more often; the white balance
    follows Brooks et al. (2019).
    """
    count = x.shape[0]

    def draw(low: float, high: float, power: float = 1.0) -> Tensor:
        return torch.from_numpy(low + (high - low) * rng.random(count) ** power).float()

    exponent = draw(0.8, 1.25).view(-1, 1, 1, 1)
    gains = torch.stack([draw(1.0, 2.4), torch.ones(count), draw(1.0, 2.4)], 1)[:, :, None, None]
    raw = to_linear(x).clamp(min=1e-6) ** exponent / gains
    raw = add_sensor_noise(raw, draw(0, 0.16, 2.5), draw(0, 0.06, 2.5), generator)
    if rng.random() < 0.7:
        red = (int(rng.integers(2)), int(rng.integers(2)))
        raw = demosaic(mosaic(raw, red), red)
    return to_srgb((raw * gains).clamp(1e-6, 1) ** (1 / exponent))


def saved_as_jpeg(x: Tensor, rng: np.random.Generator, *, clean: float = 0.1) -> Tensor:
    """Crops with white noise of sigma 0 to 40 (a share `clean` without), as JPEGs that show it, `[N,3,S,S]` again.

    Of quality 50 to 92, a third of them 75, which is what most software takes where nobody says.
    """
    count = x.shape[0]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    sigma = rng.uniform(0, 40, count) * (rng.random(count) >= clean)
    quality: list[int | None] = [75 if rng.random() < 1 / 3 else int(rng.integers(50, 93)) for _ in range(count)]
    subsampling = [int(rng.choice([0, 1, 2], p=[0.15, 0.05, 0.8])) for _ in range(count)]
    return through_jpeg(add_white_noise(x, torch.from_numpy(sigma).float(), generator), quality, subsampling)


def photographed(
    x: Tensor, rng: np.random.Generator, *, side: int, clean: float = 0.05, white: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Clean crops and what a camera and its software might have made of them, `[N,3,side,side]` both.

    Of six crops in ten the detail of single pixels is gone, as a lens would have it: scaled-down pictures are sharper
    than what cameras save, and a network that learns from them alone takes fine noise for detail. Then sensor noise in
    linear light before the mosaic, or (a share `white` of the batches) white noise; then resizing, sharpening and JPEG
    in shuffled order, as in Real-ESRGAN and BSRGAN, with JPEG mostly last, as in most files. What moves, blurs or
    sharpens edges is done to the clean crop too, so the two differ by noise and compression alone. A share `clean` of
    the images stays untouched, so that clean pictures are left as they are. Crops come in any size, even sides; they
    are resized to `side` on the way.
    """
    count = x.shape[0]
    soft = torch.from_numpy(rng.uniform(0.4, 2.0, count) * (rng.random(count) < 0.6)).to(x.dtype)
    x = softened(x, soft)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    untouched = rng.random(count) < clean
    if rng.random() < white:
        sigma = torch.from_numpy(rng.uniform(0, 50, count)).float()
        noisy = add_white_noise(x, sigma, generator)
        # A file holds no values outside [0,1]; arrays may.
        noisy = noisy.clamp(0, 1) if rng.random() < 0.7 else noisy
    else:
        noisy = _camera(x, rng, generator)
    noisy[torch.from_numpy(untouched)] = x[torch.from_numpy(untouched)]

    def jpeg() -> None:
        nonlocal noisy
        quality = [
            None if untouched[n] or rng.random() < 0.35 else int(30 + 66 * rng.random() ** 0.6) for n in range(count)
        ]
        noisy = through_jpeg(noisy, quality, [int(rng.choice([0, 1, 2], p=[0.3, 0.1, 0.6])) for _ in range(count)])

    def resize() -> None:
        nonlocal x, noisy
        if x.shape[2] != side:
            kind = "bicubic" if rng.random() < 0.6 else "bilinear"
            x, noisy = resized(x, side, kind), resized(noisy, side, kind)

    def sharpen() -> None:
        nonlocal x, noisy
        if rng.random() < 0.3:
            amount = torch.from_numpy(rng.uniform(0, 1.0, count)).float()
            x, noisy = sharpened(x, amount).clamp(0, 1), sharpened(noisy, amount)

    order = [resize, sharpen, jpeg]
    rng.shuffle(order)  # type: ignore[arg-type]
    if rng.random() < 0.6:
        order.sort(key=lambda step: step is jpeg)
    for step in order:
        step()
    return x, noisy


def source_side(side: int, rng: np.random.Generator) -> int:
    """Of what size to draw crops that `photographed` makes `side` pixels large: even, half to twice, 2 in 5 equal."""
    if rng.random() < 0.4:
        return side
    return 2 * round(side * math.exp2(rng.uniform(-1, 1)) / 2)
