"""What an encoder is good for besides files: vectors, scores of strangeness, pictures from codes.

The doors, one for each command of the same name, which read image files and write files:

    features, score, plot_latents       of all images in some folders
    sample, interpolate, arithmetic     pictures from codes that no picture had

and what they are made of:

    plane                               vectors -> two coordinates each
    draw_samples, draw_plane, draw_between, draw_combination      a model -> pixels

A file that is there already is written over only where an earlier call of the same door has made it.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from . import exports, registry
from .contract import Codec, Generator
from .devices import pick_device
from .engine import each
from .errors import InputError, ModelError, UsageError
from .images import WRITABLE, from_pil
from .paths import IMAGE_SUFFIXES, Found, Place, check_target, find, folders, local, plan, write_atomic
from .tasks.options import SelectionOptions
from .tasks.pictures import open_source
from .tasks.score import Strangeness

Array = np.ndarray
Name = str | os.PathLike[str]


@dataclass
class Explored:
    """What a door did with the images that it was given."""

    images: list[str] = field(default_factory=list)
    """The names of the images that went well."""
    failed: list[tuple[Place, str]] = field(default_factory=list)
    """Each image that failed, and why."""
    model: str = ""
    """The label of the model."""
    values: int = 0
    """How many values a vector has (features, plot_latents)."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """How many files in the folders are no images, by suffix; see `engine.Summary.passed_over`."""
    strange: int | None = None
    """How many images are strange; None where the model does not know the errors of its training images (score)."""


# -- doors: all images of some folders -----------------------------------------------------------------------


R = TypeVar("R")


class _Words(TypedDict, total=False):
    """The words of `engine.each`."""

    model: Name | None
    device: str
    dtype: str
    progress: bool
    options: Mapping[str, float]


@dataclass
class _Inputs:
    """Image files, with the name of each: its place below its source or, where two have the same, its whole path."""

    names: dict[Found, str]
    """Image file -> its name."""
    passed_over: Counter[str]
    """How many files of each suffix, and links, were passed over."""

    @classmethod
    def find(
        cls,
        sources: Name | Iterable[Name],
        out: Path,
        options: SelectionOptions,
        *,
        without: Path | None = None,
        ours: Callable[[Path], bool] = lambda _: False,
    ) -> _Inputs:
        """Finds the images, except those in the folder `without`, and except `out` where that is `ours`.

        Raises `UsageError` where `out` is one of the images.
        """
        sources = [sources] if isinstance(sources, str | os.PathLike) else sources
        named = [os.fspath(source) for source in sources]
        if "-" in named:
            raise UsageError("-: this takes files and folders, not standard input")
        passed_over: Counter[str] = Counter()
        selection = replace(options.selection, without=without, passed_over=passed_over)
        found = find(named, IMAGE_SUFFIXES, selection)
        if ours(out):  # it was drawn into one of the folders
            found = [one for one in found if os.path.realpath(one.path) != os.path.realpath(out)]
        _refuse_inputs([one.path for one in found], [out])
        names = [one.relative.as_posix() for one in found]
        count = Counter(names)
        return cls(
            {one: name if count[name] == 1 else one.path.as_posix() for name, one in zip(names, found, strict=True)},
            passed_over,
        )

    def through(
        self,
        task: Literal["features", "score"],
        take: Callable[[Found, R], None],
        explored: Explored,
        **words: Unpack[_Words],
    ) -> None:
        """Gives `take` each image that has a result, and that; enters into `explored` what became of it."""
        explored.passed_over = dict(self.passed_over.most_common())
        for one, result in each(list(self.names), task, **words):
            if isinstance(result, Exception):
                explored.failed.append((one.path, str(result)))
            else:
                take(one, result)
                explored.images.append(self.names[one])


def _vectors(inputs: _Inputs, **words: Unpack[_Words]) -> tuple[Explored, list[Found], Array]:
    """Returns what became of the images, those that have features, and these as `[N,D]`."""
    found: list[Found] = []
    rows: list[Array] = []

    def take(one: Found, row: Array) -> None:
        found.append(one)
        rows.append(row)

    label, _ = registry.identity(words["model"], "compress", pick_device(words["device"]))
    explored = Explored(model=label)
    inputs.through("features", take, explored, **words)
    vectors = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
    explored.values = vectors.shape[1]
    return explored, found, vectors


def features(
    sources: Name | Iterable[Name],
    out: Name,
    *,
    model: Name | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_symlinks: bool = False,
) -> Explored:
    """Writes one vector for each image to a file, with the image's name.

    Args:
        sources: Files, folders, globs or @list.txt.
        out: The file; its suffix is .safetensors, .npz or .csv, see `exports.save_features`.
        model: A codec whose encoder gives features; None is the default codec.
        device, dtype, progress, include, exclude, follow_symlinks: See `engine.process`.

    Raises:
        UsageError: `out` has another suffix, is one of the images, or was not written by this function.
        ModelError: The model is missing or broken, or gives no features.
        OutputError: `out` can't be written.
    """
    out = local(out)
    if out.suffix.lower() not in exports.FEATURE_SUFFIXES:
        raise UsageError(f"{out}: features go to {', '.join(exports.FEATURE_SUFFIXES)}")
    inputs = _Inputs.find(sources, out, SelectionOptions(include, exclude, follow_symlinks))
    check_target(out, exports.features_lie_at)
    explored, _, vectors = _vectors(inputs, model=model, device=device, dtype=dtype, progress=progress)
    exports.save_features(out, explored.images, vectors, explored.model)
    return explored


def score(
    sources: Name | Iterable[Name],
    out: Name,
    *,
    percentile: float = 99.0,
    heatmaps: Name | None = None,
    model: Name | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_symlinks: bool = False,
) -> Explored:
    """Writes how strange each image is to a model to a .csv file, the strangest first.

    Args:
        sources: Files, folders, globs or @list.txt.
        out: The file; see `exports.save_scores`.
        percentile: Of the errors of the training images; an image above it counts as strange.
        heatmaps: A folder for pictures of where the errors lie.
        model: A codec; None is the default codec.
        device, dtype, progress, include, exclude, follow_symlinks: See `engine.process`.

    Raises:
        UsageError: `out` has another suffix, an output would lie on an input, or was not written by this function.
        ModelError: The model is missing or broken.
        OutputError: A file can't be written.
    """
    out = local(out)
    maps = None if heatmaps is None else local(heatmaps)
    if out.suffix.lower() != ".csv":
        raise UsageError(f"{out}: scores go to a .csv file")
    named = [os.fspath(one) for one in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    if maps is not None and os.path.realpath(maps) in map(os.path.realpath, folders(named)):
        raise UsageError(f"{maps}: holds the images themselves, for which heatmaps would pass; choose another")
    inputs = _Inputs.find(named, out, SelectionOptions(include, exclude, follow_symlinks), without=maps)
    targets = {} if maps is None else _heatmap_targets(inputs, maps)
    check_target(out, exports.scores_lie_at)
    for target in targets.values():
        _check_drawing(target, "score")
    scores: list[Strangeness] = []

    def take(one: Found, result: Strangeness) -> None:
        if targets:
            write_atomic(targets[one.path], exports.heatmap(result.error))
        scores.append(replace(result, error=result.error[:0]))

    label, _ = registry.identity(model, "compress", pick_device(device))
    explored = Explored(model=label)
    inputs.through(
        "score", take, explored, model=model, device=device, dtype=dtype, progress=progress,
        options={"percentile": percentile},
    )  # fmt: skip
    exports.save_scores(out, explored.images, scores)
    if any(one.strange is not None for one in scores):
        explored.strange = sum(bool(one.strange) for one in scores)
    return explored


def _heatmap_targets(inputs: _Inputs, folder: Path) -> dict[Place, Path]:
    return {job.source: local(job.target) for job in plan(inputs.names, folder, lambda _: ".png", "{name}{suffix}")}


def plot_latents(
    sources: Name | Iterable[Name],
    out: Name,
    *,
    model: Name | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_symlinks: bool = False,
) -> Explored:
    """Draws the images as points of a plane into a picture, coloured by sub-folder; see `plane`.

    Args:
        sources: Files, folders, globs or @list.txt.
        out: The picture, of any format that aeimg writes.
        model: A codec whose encoder gives features; None is the default codec.
        device, dtype, progress, include, exclude, follow_symlinks: See `engine.process`.

    Raises:
        UsageError: `out` has another suffix, is one of the images, or was not drawn by this function.
        InputError: There are fewer than two images.
        ModelError: The model is missing or broken, or gives no features.
        OutputError: `out` can't be written.
    """
    from .plots import scatter

    out = local(out)
    _check_suffix(out)
    inputs = _Inputs.find(
        sources, out, SelectionOptions(include, exclude, follow_symlinks),
        ours=lambda path: exports.drawing_lies_at(path, "plot-latents"),
    )  # fmt: skip
    _check_drawing(out, "plot-latents")
    explored, found, vectors = _vectors(inputs, model=model, device=device, dtype=dtype, progress=progress)
    points, labels = plane(vectors)
    groups = [one.relative.parts[0] if len(one.relative.parts) > 1 else "" for one in found]
    picture = scatter(points, groups, title=f"{len(found)} images by {explored.model}", labels=labels)
    write_atomic(out, exports.draw(from_pil(picture).pixels, out.suffix, "plot-latents"))
    return explored


# -- doors: pictures from codes ------------------------------------------------------------------------------


def sample(
    out: Name,
    *,
    model: Name | None = None,
    device: str = "auto",
    count: int = 16,
    grid: int | None = None,
    side: int = 64,
    seed: int = 0,
    sheet: str | None = None,
) -> list[Path]:
    """Decodes random codes of a small autoencoder into pictures in the folder `out`, and returns their paths.

    Args:
        out: The folder.
        model: A codec whose codes can be drawn, such as "variational".
        device: See `engine.process`.
        count: How many pictures.
        grid: Instead, the plane of codes of two values as one picture of so many by so many.
        side: The side of the pictures in pixels, where the model takes any.
        seed: Equal seeds draw equal codes.
        sheet: The name of one picture in `out` (its suffix is its format) into which all are drawn side by side, in
            the place of a file for each.

    Raises:
        UsageError: A file in the way was not drawn by this function, or the sheet's name is none of a picture.
        ModelError: The model is missing, or its codes can't be drawn.
        OutputError: A picture can't be written.
    """
    place = pick_device(device)
    made = registry.get(model, "compress", place)
    if grid is not None and sheet is not None:
        raise UsageError("grid draws one picture, and sheet draws others: give one of them")
    if grid is not None:
        return _write_drawings(Path(out), [draw_plane(made, grid, place)], "grid", "sample")
    if sheet is not None:
        target = Path(out) / sheet
        _check_suffix(target)
        if target.parent != Path(out):
            raise UsageError(f"{sheet}: the sheet needs a plain name; it lies in the folder of the pictures")
        _check_drawing(target, "sample")
    pictures = draw_samples(made, count, place, seed=seed, side=side)
    if sheet is None:
        return _write_drawings(Path(out), pictures, "sample", "sample")
    write_atomic(target, exports.draw(_sheet(pictures), target.suffix, "sample"))
    return [target]


def _sheet(pictures: Sequence[Array]) -> Array:
    """Returns pictures `[C,H,W]` of one size as one, in rows from left to right, with white gaps of two pixels."""
    columns = math.ceil(math.sqrt(len(pictures)))
    channels, height, width = pictures[0].shape
    rows = math.ceil(len(pictures) / columns)
    drawn = np.full((channels, rows * (height + 2) - 2, columns * (width + 2) - 2), 255, np.uint8)
    for number, picture in enumerate(pictures):
        y, x = number // columns * (height + 2), number % columns * (width + 2)
        drawn[:, y : y + height, x : x + width] = picture
    return drawn


def interpolate(
    a: Name, b: Name, out: Name, *, model: Name | None = None, device: str = "auto", steps: int = 8
) -> list[Path]:
    """Decodes the codes between those of the images `a` and `b` into pictures in the folder `out`; returns their paths.

    `steps` pictures are drawn, `a` and `b` included. Raises `InputError`, `UsageError`, `ModelError`, `OutputError`.
    """
    place = pick_device(device)
    pictures = draw_between(registry.get(model, "compress", place), a, b, steps, place)
    return _write_drawings(Path(out), pictures, "between", "interpolate", Path(a), Path(b))


def arithmetic(a: Name, b: Name, c: Name, out: Name, *, model: Name | None = None, device: str = "auto") -> Path:
    """Decodes the code of `a` minus that of `b` plus that of `c` into the picture `out`, and returns its path.

    See `draw_combination`. Raises `InputError`, `UsageError`, `ModelError`, `OutputError`.
    """
    out = local(out)
    _check_suffix(out)
    _refuse_inputs([Path(a), Path(b), Path(c)], [out])
    _check_drawing(out, "arithmetic")
    place = pick_device(device)
    pixels = draw_combination(registry.get(model, "compress", place), a, b, c, place)
    write_atomic(out, exports.draw(pixels, out.suffix, "arithmetic"))
    return out


def _write_drawings(out: Path, pictures: Sequence[Array], stem: str, command: str, *inputs: Path) -> list[Path]:
    targets = [out / f"{stem}-{number:03}.png" for number in range(len(pictures))]
    _refuse_inputs(inputs, targets)
    for target in targets:
        _check_drawing(target, command)
    for target, pixels in zip(targets, pictures, strict=True):
        write_atomic(target, exports.draw(pixels, ".png", command))
    return targets


def _check_suffix(out: Path) -> None:
    if out.suffix.lower() not in WRITABLE:
        raise UsageError(f"{out}: aeimg does not write this format; use one of {', '.join(WRITABLE)}")


def _check_drawing(target: Path, command: str) -> None:
    check_target(target, lambda path: exports.drawing_lies_at(path, command))


def _refuse_inputs(inputs: Sequence[Place], targets: Sequence[Path]) -> None:
    """Raises `UsageError` where one of `targets` is one of the inputs."""
    there = [target for target in targets if os.path.exists(target)]
    taken = {os.path.realpath(path) for path in inputs} if there else set()
    for target in there:
        if os.path.realpath(target) in taken:
            raise UsageError(f"{target}: the output would overwrite an input")


# -- the plane -----------------------------------------------------------------------------------------------


def plane(features: Array) -> tuple[Array, tuple[str, str]]:
    """Returns vectors `[N,D]` as points `[N,2]`, and what the axes are.

    Vectors of two values stay as they are; longer ones are projected on their first two principal components. Raises
    `InputError` for fewer than two vectors and for vectors of one value.
    """
    if len(features) < 2:
        raise InputError(f"a map takes two images at least, not {len(features)}")
    if features.shape[1] < 2:
        raise InputError("a map takes codes of two values at least, and this model's have one")
    if features.shape[1] == 2:
        return features, ("first code value", "second code value")
    centred = features.astype(np.float64) - features.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    share = 100 * values[:2] ** 2 / max(float((values**2).sum()), 1e-300)
    labels = (f"first principal component ({share[0]:.0f}%)", f"second principal component ({share[1]:.0f}%)")
    return centred @ axes[:2].T, labels


# -- pictures from codes -------------------------------------------------------------------------------------


def _generator(model: Codec[object]) -> Generator:
    if not isinstance(model, Generator):
        raise ModelError(
            f"model {model.label}: its codes can't be drawn or mixed; use one of the small autoencoders "
            f"(`--model variational`, for one)"
        )
    return model


def _decoded(model: Generator, codes: Tensor, shape: tuple[int, int, int], device: torch.device) -> list[Array]:
    return list(model.synthesise(codes, shape, device, torch.uint8).numpy())


def draw_samples(
    model: Codec[object], count: int, device: torch.device, *, seed: int = 0, side: int = 64
) -> list[Array]:
    """Returns `count` pictures of random codes: uint8 `[1,S,S]`, S the model's own size, or `side` where it takes any.

    Codes of a variational model come from its prior. Those of others are drawn value by value as the codes of their
    training images are distributed, which shows more of the model than of pictures. Raises `ModelError`.
    """
    generator = _generator(model)
    side = generator.own_side or side
    codes = generator.draw(count, side, torch.Generator().manual_seed(seed))
    return _decoded(generator, codes, (1, side, side), device)


def draw_plane(model: Codec[object], steps: int, device: torch.device) -> Array:
    """Returns the plane of codes of two values as one picture of `steps` by `steps` decoded codes: uint8 `[1,H,W]`.

    Codes lie at even quantiles, 1% to 99%, of the distribution from which `draw_samples` draws. Raises `ModelError`.
    """
    generator = _generator(model)
    side = generator.own_side or 0
    if not side or generator.code_shape(side) != (2,):
        raise ModelError(f"model {model.label}: only codes of two values make a plane")
    line = torch.tensor([NormalDist().inv_cdf(0.01 + 0.98 * n / max(steps - 1, 1)) for n in range(steps)])
    y, x = torch.meshgrid(line.flip(0), line, indexing="ij")
    codes = torch.stack([x, y], -1).reshape(-1, 1, 2)
    tiles = np.stack(_decoded(generator, generator.from_normal(codes), (1, side, side), device))
    tiles = tiles.reshape(steps, steps, side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(1, steps * side, steps * side)


def _analysed(
    model: Generator, sources: Sequence[object], device: torch.device
) -> tuple[list[Tensor], tuple[int, int, int]]:
    """Returns the codes of pictures of one shape, and that shape."""
    pictures = [open_source(source).picture for source in sources]
    shapes = {picture.pixels.shape for picture in pictures}
    if len(shapes) > 1:
        sizes = " and ".join(sorted(f"{p.width}x{p.height} in {p.pixels.shape[0]} channels" for p in pictures))
        raise InputError(f"pictures whose codes are mixed must be of one size and kind, not {sizes}")
    codes = [model.analyse(torch.from_numpy(np.ascontiguousarray(p.pixels))[None], device) for p in pictures]
    return codes, pictures[0].pixels.shape


def draw_between(model: Codec[object], a: object, b: object, steps: int, device: torch.device) -> list[Array]:
    """Returns `steps` pictures, uint8 `[C,H,W]`, on the straight line from the code of `a` to that of `b`, both
    included.

    `a`, `b`: pictures of one size, as `process` takes them. Raises `InputError`, `ModelError`.
    """
    generator = _generator(model)
    (first, last), shape = _analysed(generator, (a, b), device)
    shares = torch.linspace(0, 1, steps).view(-1, *[1] * (first.dim() - 1))
    return _decoded(generator, torch.lerp(first, last, shares), shape, device)


def draw_combination(model: Codec[object], a: object, b: object, c: object, device: torch.device) -> Array:
    """Returns the picture, uint8 `[C,H,W]`, of the code of `a` minus that of `b` plus that of `c`.

    It makes sense where directions among codes mean something: for variational models, and for dense ones on aligned
    pictures. Raises `InputError`, `ModelError`.
    """
    generator = _generator(model)
    (first, minus, plus), shape = _analysed(generator, (a, b, c), device)
    return _decoded(generator, first - minus + plus, shape, device)[0]
