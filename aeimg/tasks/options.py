"""The options of `process` and of the command line, which share their names: a dataclass for each task, one for every
run, and one for runs over files. Wrong values raise `UsageError`.

The options of an image-to-image task state their own help and bounds (`option`), of which the command line makes its
options. This module waits for neither torch nor numpy, so that `--help` need not either.

The `...Words` describe the same options to type checkers.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from .. import registry
from ..errors import InputError, ModelError, UsageError
from ..paths import TEMPLATE, Selection, check_template
from ..shards import parse as parse_shard
from ..stream import MEMORY

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..tiles import Window

TaskName = Literal["denoise", "compress", "decompress", "features", "score", "upscale", "colorize"]
Kind = Literal["pil", "numpy", "tensor", "bytes"]
KINDS: tuple[Kind, ...] = ("pil", "numpy", "tensor", "bytes")


def _require(sound: bool, message: str) -> None:
    if not sound:
        raise UsageError(message)


def _require_quality(quality: int) -> None:
    _require(quality in range(1, 101), f"quality must be a whole number of 1..100, not {quality!r}")


Pages = Literal["all", "first"] | int


def _page(pages: Pages | None) -> int | None:
    """Returns the one page that is meant, from 1; None for all pages, and where none is named. Raises `UsageError`."""
    number = 1 if pages == "first" else pages
    sound = number in (None, "all") or (type(number) is int and number >= 1)
    _require(sound, f"pages must be all, first or a number from 1, not {pages!r}")
    return number if isinstance(number, int) else None


# -- options of tasks ----------------------------------------------------------------------------------------


def option(
    default: Any,
    help: str,  # as the field is called everywhere
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] | None = None,
    shown_default: str | None = None,
) -> Any:
    """Returns a field of a dataclass of options, for an image-to-image task.

    Its annotation is its type: int, float, bool, str, or one of these or None. `help` is what the command line says of
    it; values below `at_least`, above `at_most` or beside `choices` raise `UsageError`. `shown_default` is what the
    help shows in the place of the default.
    """
    about = {"help": help, "at_least": at_least, "at_most": at_most, "choices": choices, "shown": shown_default}
    return field(default=default, metadata=about)


def _check_bounds(options: object) -> None:
    """Raises `UsageError` where an option made by `option` lies outside of what it states."""
    for one in fields(options):  # type: ignore[arg-type]  # it is a dataclass
        value, about = getattr(options, one.name), one.metadata
        if isinstance(one.default, float) and type(value) is int and abs(value) < 1 << 53:
            value = float(value)  # 0 and 0.0 are one option, and one recipe
            object.__setattr__(options, one.name, value)
        bounded = any(about.get(name) is not None for name in ("at_least", "at_most", "choices"))
        if not bounded or value is None or value == one.default:
            continue
        low, high, choices = about["at_least"], about["at_most"], about["choices"]
        _require(choices is None or value in choices, f"{one.name} must be one of {choices}, not {value!r}")
        if low is not None or high is not None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            bounds = f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
            inside = number and (low is None or low <= value) and (high is None or value <= high)
            _require(inside, f"{one.name} must lie in {bounds}, not {value!r}")


@dataclass(frozen=True)
class FormatOptions:
    """How image files are written."""

    format: str | None = None
    """The suffix of the files, without the dot; "keep" for that of the source; None for the default of the task."""
    image_quality: int | Mapping[str, int] | None = None
    """1..100 for JPEG, WebP and AVIF, or one for each format: {"jpg": 90, "avif": 70}. The default is 95."""

    def __post_init__(self) -> None:
        from ..images import WRITABLE

        _check_bounds(self)
        known = sorted({suffix.lstrip(".") for suffix in WRITABLE})
        _require(self.format in (None, "keep", *known), f"format must be keep or one of {', '.join(known)}")
        levels = self.image_quality if isinstance(self.image_quality, Mapping) else {"jpg": self.image_quality}
        for suffix, level in levels.items():
            _require(f".{suffix}" in WRITABLE, f"image_quality: aeimg does not write the format {suffix}")
            _require(level is None or level in range(1, 101), f"image_quality must lie in 1..100, not {level!r}")

    def quality_of(self, suffix: str) -> int | None:
        """Returns `image_quality` for files with that suffix."""
        from ..images import WRITABLE

        if not isinstance(self.image_quality, Mapping):
            return self.image_quality
        kinds = {WRITABLE[f".{name}"]: level for name, level in self.image_quality.items()}
        return kinds.get(WRITABLE.get(suffix.lower(), ""))

    @property
    def suffix(self) -> str | None:
        """The suffix that `format` stands for; None to keep that of the source."""
        return None if self.format in (None, "keep") else f".{self.format}"


@dataclass(frozen=True)
class EncodingOptions(FormatOptions):
    """What all image-to-image tasks take: which pages are read, and how image files are written."""

    pages: Pages | None = None
    """Of files of several pages or frames: "all" (with files that are written), "first", or the number of one. None
    refuses such files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _page(self.pages)

    @property
    def page(self) -> int | None:
        """The one page that `pages` names, if it does."""
        return _page(self.pages)


@dataclass(frozen=True)
class DenoiseOptions(EncodingOptions):
    """The options of the task denoise."""

    sigma: float | str | Any = option(  # noqa: RUF009  # `Any` is an array, which nothing changes
        "auto", "The level of the noise in 8-bit units (0 to 255), or auto to estimate it."
    )
    """The level of the noise in 8-bit units, or "auto" to estimate it; or a map of it, an array or a tensor `[H,W]`,
    for pictures of that size."""
    strength: float = option(1.0, "0 leaves the images as they are, 1 removes all the noise.", at_least=0, at_most=1)
    """0 leaves the picture as it is, 1 removes all the noise."""
    chroma_strength: float | None = option(
        None, "The same for colours alone (Cb and Cr of BT.601), which show noise more than detail.", at_least=0,
        at_most=1, shown_default="as --strength",
    )  # fmt: skip
    """The strength for chroma, Cb and Cr of BT.601, where it is to differ from that for luma; None for `strength`."""
    residual: str | os.PathLike[str] | None = option(  # noqa: RUF009
        None, "Also write to this folder what was taken away from each image, stretched around grey."
    )
    """A folder for pictures of what was taken away, one for each file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.sigma, "ndim", 0):
            object.__setattr__(self, "sigma", _sigma_map(self.sigma))
        else:
            object.__setattr__(self, "sigma", _sigma_level(self.sigma))
        _require(self.residual is None or bool(os.fspath(self.residual)), "residual: an empty name is no folder")

    @property
    def strengths(self) -> tuple[float, float]:
        """The strengths for luma and for chroma."""
        return self.strength, self.strength if self.chroma_strength is None else self.chroma_strength

    @property
    def measures(self) -> bool:
        """Whether the level of the noise is to be estimated."""
        return isinstance(self.sigma, str)


def _sigma_level(sigma: Any) -> float | str:
    """Returns a level as a number: "25" and 25 are one option. Raises `UsageError`."""
    try:
        level = 0.0 if isinstance(sigma, str) and sigma == "auto" else float(sigma)
    except (TypeError, ValueError):
        level = -1.0
    _require(0 <= level <= 255, f"sigma must be 'auto' or a number of 0..255 (8-bit units), not {sigma!r}")
    return "auto" if isinstance(sigma, str) and sigma == "auto" else level


def _sigma_map(given: Any) -> np.ndarray:
    """Returns a map of levels as float32 `[H,W]`. Raises `UsageError`."""
    import numpy as np

    if hasattr(given, "detach"):  # a tensor, perhaps on a GPU or of a type that numpy does not know
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given
    sigma = np.asarray(given)
    shape = "x".join(map(str, sigma.shape))
    _require(sigma.ndim == 2 and sigma.size > 0, f"a map of sigma must be [H,W], not an array of {shape}")
    numbers = np.issubdtype(sigma.dtype, np.integer) or np.issubdtype(sigma.dtype, np.floating)
    _require(numbers, f"a map of sigma must hold numbers, not {sigma.dtype}")
    inside = bool(((sigma >= 0) & (sigma <= 255)).all())  # which NaN is not
    _require(inside, "a map of sigma must hold numbers of 0..255 (8-bit units)")
    return sigma.astype(np.float32)


@dataclass(frozen=True)
class UpscaleOptions(EncodingOptions):
    """The options of the task upscale."""

    scale: int | None = option(
        None,
        "How many times as wide and as high the results are: the scale of the model, or a power of it.",
        at_least=2,
        at_most=16,
        shown_default="that of the model",
    )
    """How many times as wide and as high the results are: the model's scale or a power of it, for which it runs several
    times. None for that of the model."""


@dataclass(frozen=True)
class ColorizeOptions(EncodingOptions):
    """The options of the task colorize."""

    strength: float = option(
        1.0, "The saturation: 0 leaves the images grey, 1 gives them the colours that the model expects.", at_least=0,
        at_most=2,
    )  # fmt: skip
    """The saturation: 0 leaves the picture grey, 1 gives it the colours that the model expects, 2 twice as much."""


DEFAULT_QUALITY = 50
TARGETS = ("target_bpp", "target_psnr", "target_ssimulacra2", "max_bytes")
"""The options of compress that can stand in the place of a quality."""


@dataclass(frozen=True)
class CompressOptions:
    """The options of the task compress."""

    quality: int | None = None
    """1 (the smallest files) to 100; None for 50, or where there is a target."""
    target_bpp: float | None = None
    """Instead of a quality: the highest one whose file has at most so many bits per pixel."""
    target_psnr: float | None = None
    """Instead of a quality: the lowest one that reaches this PSNR, in dB."""
    target_ssimulacra2: float | None = None
    """Instead of a quality: the lowest one that reaches this SSIMULACRA2 score, at most 100."""
    max_bytes: int | None = None
    """Instead of a quality: the highest one whose file has at most so many bytes."""
    effort: int = 1
    """1..9; from 2 on the encoder refines the latent, which takes longer and saves a few percent."""
    measure: bool = False
    """Whether the latent is decoded again for PSNR, SSIM and, where its package is there, SSIMULACRA2."""
    pages: Pages | None = None
    """As that of `EncodingOptions`."""

    def __post_init__(self) -> None:
        _page(self.pages)
        _require_quality(self.level)
        targets = {name: getattr(self, name) for name in TARGETS}
        given = {name: value for name, value in targets.items() if value is not None}
        _require(
            self.quality is None or not given, f"quality and {' and '.join(given)} contradict each other: give one"
        )
        _require(len(given) <= 1, f"only one of {', '.join(targets)} can be the target, not {' and '.join(given)}")
        for name, value in given.items():
            _require(0 < value < math.inf, f"{name} must be a number above 0, not {value!r}")
            if name != "max_bytes":  # 1 and 1.0 are one option, and one recipe
                object.__setattr__(self, name, float(value))
        score = self.target_ssimulacra2
        _require(score is None or score <= 100, f"target_ssimulacra2 must be a number of 0..100, not {score!r}")
        _require(self.effort in range(1, 10), f"effort must be a whole number of 1..9, not {self.effort!r}")

    @property
    def page(self) -> int | None:
        """The one page that `pages` names, if it does."""
        return _page(self.pages)

    @property
    def level(self) -> int:
        """The quality, where there is no target."""
        return DEFAULT_QUALITY if self.quality is None else self.quality

    @property
    def target(self) -> float | None:
        """The value of the target, whichever it is."""
        return next((value for name in TARGETS if (value := getattr(self, name)) is not None), None)

    def size_limit(self, pixels: int) -> int | None:
        """Returns the most bytes that the file of a picture of so many pixels is to have, if the target is a size."""
        if self.target_bpp is not None:
            return int(self.target_bpp * pixels / 8)
        return self.max_bytes


SCALES: dict[str | float, int] = {1: 1, "1": 1, "1/1": 1, **{
    scale: divisor for divisor in (2, 4, 8) for scale in (f"1/{divisor}", 1 / divisor)
}}  # fmt: skip
"""Scale -> how many pixels in a row become one."""


@dataclass(frozen=True)
class DecompressOptions(FormatOptions):
    """The options of the task decompress."""

    kind: Kind = "pil"
    """What comes back, where no file is written."""
    crop: tuple[int, int, int, int] | None = None
    """The part that is decoded: x and y of its upper left corner, width and height, in pixels. None for all of it."""
    scale: str | float = 1
    """1, "1/2", "1/4" or "1/8", or the same as a number: the size of what comes back, of the means of squares."""
    join: bool = False
    """Whether the latent files of all pages of a file become one file again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop is not None:
            whole = len(self.crop) == 4 and all(isinstance(value, int) for value in self.crop)
            sound = whole and min(self.crop[:2]) >= 0 and min(self.crop[2:]) > 0
            _require(sound, f"crop must be (x, y, width, height), in pixels inside the picture, not {self.crop!r}")
            object.__setattr__(self, "crop", tuple(self.crop))
        _require(self.scale in SCALES, f"scale must be 1, 1/2, 1/4 or 1/8, not {self.scale!r}")
        _require(self.kind in KINDS, f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def window(self, width: int, height: int, name: str) -> Window:
        """Returns what is decoded of a picture of that size. Raises `InputError` where that lies outside."""
        from ..tiles import Box, Window

        crop = None if self.crop is None else Box(*self.crop)
        if crop is not None and (crop.right > width or crop.bottom > height):
            asked = ",".join(str(value) for value in self.crop or ())
            raise InputError(
                f"{name}: the crop {asked} (x,y,width,height) does not fit into its {width}x{height} pixels"
            )
        return Window(height, width, crop, SCALES[self.scale])


@dataclass(frozen=True)
class FeaturesOptions:
    """The options of the task features: there are none."""


@dataclass(frozen=True)
class ScoreOptions:
    """The options of the task score."""

    quality: int = 50
    """1..100, for codecs that can't reconstruct without rounding their codes."""
    percentile: float = 99.0
    """Of the errors of the training images: a picture above it counts as strange."""

    def __post_init__(self) -> None:
        _require_quality(self.quality)
        _require(0 <= self.percentile <= 100, f"percentile must lie in 0..100, not {self.percentile!r}")


REPORT_SIZE = "20M"


# -- options of runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOptions:
    """The options of every run."""

    on_error: str | None = None
    """"continue" or "stop". Runs over files continue by default, iterables stop."""
    jobs: int | None = None
    """How many threads read and write; None for one for each core, 8 at most."""
    batch_size: int = 8
    """How many pictures run at once, at most."""
    memory: int | str = MEMORY
    """How many bytes the pictures on their way may hold, as a number or like "4G"."""

    def __post_init__(self) -> None:
        _require(self.memory_bytes >= 1, f"memory must be a number of bytes, or like 500M or 4G, not {self.memory!r}")
        _require(self.on_error in (None, "continue", "stop"), "on_error must be continue or stop")
        _require(self.jobs is None or self.jobs >= 1, "jobs must be at least 1")
        _require(self.batch_size >= 1, "batch_size must be at least 1")

    @property
    def memory_bytes(self) -> int:
        """What `memory` stands for; 0 where it is not understood."""
        return _bytes(self.memory)


def _bytes(size: int | str) -> int:
    """Returns a number of bytes, given as a number or like "4G"; 0 where it is not understood."""
    units = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(size).strip(), re.IGNORECASE)
    return int(float(found[1]) * 2 ** units[found[2].upper()]) if found else 0


@dataclass(frozen=True)
class SelectionOptions:
    """Which files below folders are taken; see `paths.Selection`."""

    include: Sequence[str] = ()
    """Only files whose name, or path below the folder, fits one of these patterns."""
    exclude: Sequence[str] = ()
    """No files and no folders whose name or path fits one of these."""
    follow_symlinks: bool = False
    """Whether links in folders are followed."""

    def __post_init__(self) -> None:
        for name, patterns in (("include", self.include), ("exclude", self.exclude)):
            _require(not isinstance(patterns, str), f"{name} takes a list of patterns, not {patterns!r}")

    @property
    def selection(self) -> Selection:
        """The same as `paths.find` takes it."""
        return Selection(self.include, self.exclude, self.follow_symlinks)


@dataclass(frozen=True)
class FileOptions(SelectionOptions):
    """The options of runs that write files."""

    name: str = TEMPLATE
    """A template of the names of the files: of {stem}, {name} (the stem with its old suffix) and {suffix}."""
    if_exists: str = "skip"
    """What happens to outputs that are there: "skip" keeps what is still right, "overwrite" redoes all, "error"
    refuses."""
    report: str | os.PathLike[str] | None = None
    """The file (.html) into which a page is written that shows what became of the pictures."""
    report_size: int | str = REPORT_SIZE
    """How many bytes that page has at most, as a number or like "20M"."""
    shard: str | None = None
    """Which share of the files is taken, like "3/16"; "auto" reads it from what Slurm or Kubernetes say."""
    watch: bool = False
    """Whether the run goes on with files that appear, until it is interrupted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.report_bytes >= 1, f"report_size must be a number of bytes, or like 20M, not {self.report_size!r}"
        )
        check_template(self.name)
        if self.shard is not None:
            parse_shard(self.shard)
        _require(self.if_exists in ("skip", "overwrite", "error"), "if_exists must be skip, overwrite or error")

    @property
    def report_bytes(self) -> int:
        """What `report_size` stands for; 0 where it is not understood."""
        return _bytes(self.report_size)


TaskOptions = FormatOptions | CompressOptions | FeaturesOptions | ScoreOptions

OPTIONS: dict[str, type[TaskOptions]] = {
    "denoise": DenoiseOptions,
    "compress": CompressOptions,
    "decompress": DecompressOptions,
    "features": FeaturesOptions,
    "score": ScoreOptions,
    "upscale": UpscaleOptions,
    "colorize": ColorizeOptions,
}
"""Task of aeimg's own -> the class of its options."""


def options_of(task: str) -> type[Any]:
    """Returns the class of the options of a task, of a plug-in's too. Raises `UsageError`, `ModelError`."""
    if task in OPTIONS:
        return OPTIONS[task]
    found = registry.plugged_task(task)
    if found is None:
        raise UsageError(f"unknown task {task!r}")
    own: type[Any] = found.options
    if not issubclass(own, EncodingOptions):
        raise ModelError(f"the task {task!r}: its options {own.__name__} must inherit from aeimg.EncodingOptions")
    taken = set(names_of(own)) & {*names_of(RunOptions, FileOptions), *OF_THE_CALL}
    if taken:
        raise ModelError(f"the task {task!r}: its options {', '.join(sorted(taken))} have names that every task has")
    return own


OF_THE_CALL = (
    "source", "sources", "task", "out", "model", "device", "dtype", "progress", "dry_run", "estimate", "kind",
    "allow_empty", "json", "json_file", "quiet", "verbose", "help",
    "compared", "sample",
)  # fmt: skip
"""What calls of `process` and of the command line take besides options."""


def names_of(*classes: type) -> list[str]:
    """Returns the names of the options in these classes."""
    return [one.name for cls in classes for one in fields(cls)]


def parse(task: str, words: Mapping[str, Any]) -> tuple[TaskOptions, RunOptions, FileOptions]:
    """Sorts the options of a call into those of the task, of the run and of files. Raises `UsageError`."""
    own = options_of(task)
    known = names_of(own, RunOptions, FileOptions)
    for name in words:
        if name not in known:
            others = [other for other, options in OPTIONS.items() if name in names_of(options)]
            why = f"is an option of {' and '.join(others)}, not of {task}" if others else "is unknown"
            raise UsageError(f"the option {name!r} {why}; {task} knows {', '.join(known)}")

    def some(names: Iterable[str]) -> dict[str, Any]:
        return {name: words[name] for name in names if name in words}

    try:
        return (
            own(**some(names_of(own))),
            RunOptions(**some(names_of(RunOptions))),
            FileOptions(**some(names_of(FileOptions))),
        )
    except TypeError as error:
        raise UsageError(f"an option has the wrong type ({error})") from None


# -- the same for type checkers ------------------------------------------------------------------------------

OnError = Literal["continue", "stop"]


class RunWords(TypedDict, total=False):
    """What every call of `process` takes: the model and where it runs, `RunOptions` and `FileOptions`."""

    model: str | os.PathLike[str] | None
    device: str
    dtype: str
    progress: bool
    dry_run: bool
    estimate: bool
    on_error: OnError | None
    jobs: int | None
    batch_size: int
    memory: int | str
    include: Sequence[str]
    exclude: Sequence[str]
    follow_symlinks: bool
    name: str
    if_exists: Literal["skip", "overwrite", "error"]
    report: str | os.PathLike[str] | None
    report_size: int | str
    shard: str | None
    watch: bool


class DenoiseWords(RunWords, total=False):
    """See `DenoiseOptions`."""

    format: str | None
    image_quality: int | Mapping[str, int] | None
    sigma: float | str | np.ndarray | Tensor
    strength: float
    pages: Pages | None
    chroma_strength: float | None
    residual: str | os.PathLike[str] | None


class CompressWords(RunWords, total=False):
    """See `CompressOptions`."""

    quality: int | None
    target_bpp: float | None
    target_psnr: float | None
    target_ssimulacra2: float | None
    max_bytes: int | None
    effort: int
    measure: bool
    pages: Pages | None


class DecompressWords(RunWords, total=False):
    """See `DecompressOptions`; the overloads of `process` name `kind` themselves."""

    format: str | None
    image_quality: int | Mapping[str, int] | None
    crop: tuple[int, int, int, int] | None
    scale: str | float
    join: bool


class UpscaleWords(RunWords, total=False):
    """See `UpscaleOptions`."""

    format: str | None
    image_quality: int | Mapping[str, int] | None
    pages: Pages | None
    scale: int | None


class ColorizeWords(RunWords, total=False):
    """See `ColorizeOptions`."""

    format: str | None
    image_quality: int | Mapping[str, int] | None
    pages: Pages | None
    strength: float


class ScoreWords(RunWords, total=False):
    """See `ScoreOptions`."""

    quality: int
    percentile: float


WORDS: dict[str, type] = {
    "denoise": DenoiseWords,
    "compress": CompressWords,
    "decompress": DecompressWords,
    "features": RunWords,
    "score": ScoreWords,
    "upscale": UpscaleWords,
    "colorize": ColorizeWords,
}
"""Task -> the words that a type checker lets `process` take for it."""
