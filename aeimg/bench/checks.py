"""`bench checks`: how often the notes of `denoise` are false alarms, and how often they miss what they are for.

Pictures whose clean originals are known are denoised well and badly. What the notes say of the results, without the
originals, is compared with what the originals say:

colours   the mean of a channel lies further from that of the original than before, by more than `COLOURS`
detail    in the most detailed tenth of the original's blocks, the error within blocks has grown, and exceeds `DETAIL`
noise     in the flattest tenth of them, what the error within blocks has of the noise that was there exceeds `NOISE`
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..engine import process
from ..errors import DataError
from ..noise import check, cut_blocks
from ..paths import find_images
from ..pixels import planar
from ..progress import Progress
from .setting import Chosen, Figures, circumstances, images_in

Array = np.ndarray
KINDS = ("colours", "detail", "noise")
"""What notes are about, as `noise.Check.notes` names them."""

COLOURS = 1.0
"""How much further than before the mean of a channel must lie from that of the original, in 8-bit units."""
DETAIL = 3.0
"""The least standard deviation of the error within detailed blocks, in 8-bit units."""
NOISE = 3.0
"""The least standard deviation of the noise that is left within flat blocks, in 8-bit units."""
CHECKED = 0.2
"""How long everything but the network takes for a pixel, in what the network takes."""
SIDE = 256
"""Of each picture the middle is taken, at most so many pixels each way."""


# -- what the original says ------------------------------------------------------------------------------------------


def faults(before: Array, after: Array, original: Array) -> dict[str, bool]:
    """Returns which faults a denoised picture has, by `KINDS`; pixels are uint8 `[C,H,W]`, at least 8 each way."""
    old, new, true = (x.astype(np.float32) for x in (before, after, original))
    away, was_away = (np.abs((x - true).mean((1, 2))) for x in (new, old))
    blocks, error, noise = (cut_blocks(x.mean(0)) for x in (true, new - true, old - true))
    order, tenth = np.argsort(blocks.std(1), kind="stable"), len(blocks) // 10 + 1
    detailed = order[-tenth:]
    gone, was_gone = (float(np.median(x[detailed].std(1))) for x in (error, noise))
    middle = order[((blocks.mean(1) > 8) & (blocks.mean(1) < 247))[order]]  # where noise was not clipped
    return {
        "colours": bool((away - was_away).max() > COLOURS),
        "detail": gone > max(DETAIL, was_gone),
        "noise": _left_of(noise[middle[:tenth]], error[middle[:tenth]]) > NOISE,
    }


def _left_of(noise: Array, error: Array) -> float:
    """Returns the standard deviation within blocks, the rows, of what an error holds of the noise that was there: blur
    is an error as well, and does not go with the noise."""
    noise, error = (x - x.mean(1, keepdims=True) if len(x) else x for x in (noise, error))
    variance = float(np.square(noise).mean()) if len(noise) else 0.0
    return max(0.0, float((noise * error).mean())) / math.sqrt(variance) if variance > 0 else 0.0


# -- well and badly denoised pictures --------------------------------------------------------------------------------

Picture = Array | Image.Image
"""uint8 `[H,W,3]` or `[H,W]`, or an image that knows the format of its file."""
Denoiser = Callable[..., list[Array]]
"""What denoises pictures, with options of `process`."""
Results = list[tuple[Array, Array]]
"""Pictures before and after."""
Run = Callable[[Sequence[Picture], Denoiser], Results]


@dataclass(frozen=True)
class Case:
    """A way to make pictures noisy, and to denoise them."""

    name: str
    """What it is called."""
    well: bool
    """Whether pictures are denoised as `aeimg denoise` does it unasked."""
    run: Run
    """Makes results of originals, or of the noisy pictures of pairs."""
    network: bool = True
    """Whether pictures go through a network."""


def _noisy(pictures: Sequence[Picture], sigma: float) -> list[Picture]:
    """Returns the pictures with white noise, the same in every run; as they are where `sigma` is 0."""
    if not sigma:
        return list(pictures)
    made: list[Picture] = []
    for index, x in enumerate(map(np.asarray, pictures)):
        noise = np.random.default_rng((index, int(sigma))).normal(0, sigma, x.shape)
        made.append(np.clip(np.rint(x + noise), 0, 255).astype(np.uint8))
    return made


def _results(before: Iterable[Picture], after: Iterable[Array]) -> Results:
    return [(np.asarray(x), y) for x, y in zip(before, after, strict=True)]


def _denoised(level: float, **options: Any) -> Run:
    """Returns what adds noise of that level and denoises with these options."""

    def run(pictures: Sequence[Picture], denoise: Denoiser) -> Results:
        inputs = _noisy(pictures, level)
        return _results(inputs, denoise(inputs, **options))

    return run


def _in_grey(sigma: float) -> Run:
    """Returns what does the same to greyscale pictures."""

    def run(pictures: Sequence[Picture], denoise: Denoiser) -> Results:
        return _denoised(sigma)([_grey(np.asarray(x)) for x in pictures], denoise)

    return run


def _grey(x: Array) -> Array:
    return np.asarray(Image.fromarray(x).convert("L"))


def _from_jpeg(sigma: float, quality: int) -> Run:
    """Returns what adds noise of that level, compresses with that quality, and denoises."""

    def run(pictures: Sequence[Picture], denoise: Denoiser) -> Results:
        files: list[Picture] = []
        for x in _noisy(pictures, sigma):
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(x)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
            files.append(Image.open(buffer))
        return _results(files, denoise(files))

    return run


def _filtered(sigma: float, by: ImageFilter.Filter) -> Run:
    """Returns what adds noise of that level and puts a filter in the place of the denoiser."""

    def run(pictures: Sequence[Picture], _: Denoiser) -> Results:
        inputs = _noisy(pictures, sigma)
        return _results(inputs, (np.asarray(Image.fromarray(np.asarray(x)).filter(by)) for x in inputs))

    return run


def _tinted(sigma: float) -> Run:
    """Returns what adds noise of that level, denoises, and then brightens a channel, each in its turn, by 3 of 255."""

    def run(pictures: Sequence[Picture], denoise: Denoiser) -> Results:
        results = []
        for number, (x, y) in enumerate(_denoised(sigma)(pictures, denoise)):
            tint = 3 * np.eye(3, dtype=int)[number % 3]
            results.append((x, np.clip(y + tint, 0, 255).astype(np.uint8)))
        return results

    return run


def _left(sigma: float) -> Run:
    """Returns what adds noise of that level and leaves it there."""

    def run(pictures: Sequence[Picture], _: Denoiser) -> Results:
        inputs = _noisy(pictures, sigma)
        return _results(inputs, map(np.asarray, inputs))

    return run


OF_ORIGINALS = (
    Case("clean", True, _denoised(0)),
    *(Case(f"sigma {sigma}", True, _denoised(sigma)) for sigma in (5, 15, 25, 50)),
    Case("greyscale, sigma 15", True, _in_grey(15)),
    Case("sigma 25, then JPEG 75", True, _from_jpeg(25, 75)),
    Case("clean, denoised for sigma 20", False, _denoised(0, sigma=20)),
    Case("sigma 15, denoised for sigma 45", False, _denoised(15, sigma=45)),
    Case("sigma 25, denoised for sigma 8", False, _denoised(25, sigma=8)),
    Case("sigma 25, left as it is", False, _left(25), network=False),
    Case("clean, through a median", False, _filtered(0, ImageFilter.MedianFilter(5)), network=False),
    Case("sigma 5, blurred", False, _filtered(5, ImageFilter.GaussianBlur(1.5)), network=False),
    Case("sigma 15, then tinted", False, _tinted(15)),
)
"""What is made of clean pictures."""
OF_PAIRS = (
    Case("real", True, _denoised(0)),
    Case("real, denoised for sigma 45", False, _denoised(0, sigma=45)),
    Case("real, left as it is", False, _left(0), network=False),
    Case("real, through a median", False, _filtered(0, ImageFilter.MedianFilter(5)), network=False),
    Case("real, then tinted", False, _tinted(0)),
)
"""What is made of the noisy pictures of pairs."""


# -- counting --------------------------------------------------------------------------------------------------------

HELD_OUT, SEEN = "held_out", "seen"
"""The parts that pictures belong to: those that have not chosen the bounds of the notes, and those that have."""


@dataclass(frozen=True)
class _Folder:
    """Pictures of one kind, and what is made of them."""

    name: str
    pictures: list[Picture]
    """Clean ones, or the noisy ones of pairs."""
    originals: list[Array]
    """The clean one of each, uint8 `[H,W,3]`."""
    cases: tuple[Case, ...]

    @property
    def pixels(self) -> int:
        """How many pixels the pictures have."""
        return sum(x.shape[0] * x.shape[1] for x in self.originals)

    @staticmethod
    def at(folder: Path, limit: int | None) -> _Folder:
        """Reads a folder. Raises `DataError` where it holds no images, or pairs that do not belong together."""
        if not ((folder / "noisy").is_dir() and (folder / "clean").is_dir()):
            originals = [_middle(x) for _, x in images_in(folder, limit)]
            return _Folder(folder.name, list(originals), originals, OF_ORIGINALS)
        paths = find_images(folder / "noisy")[:limit]
        if not paths:
            raise DataError(f"{folder}: no images to measure on")
        noisy: list[Picture] = [Image.open(path) for path in paths]
        clean = [np.asarray(Image.open(folder / "clean" / path.name).convert("RGB")) for path in paths]
        return _Folder(folder.name, noisy, clean, OF_PAIRS)


def _middle(x: Array) -> Array:
    """Returns the middle of a picture `[H,W,3]`, at most `SIDE` pixels each way."""
    top, left = (max(0, (side - SIDE) // 2) for side in x.shape[:2])
    return np.ascontiguousarray(x[top : top + SIDE, left : left + SIDE])


def bench_checks(
    data: Path,
    *,
    also: Sequence[Path] = (),
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
) -> Figures:
    """Rates of false alarms and of misses of the notes of `denoise`.

    Every second picture of a folder, in the order of their names, has not been used to choose the bounds of the notes;
    the figures of these are `held_out`, those of the others `seen`.

    Args:
        data: a folder of clean images; or one with `noisy/` and `clean/`, with real pairs.
        also: more such folders.
        limit: only the first so many images of each folder.
        device, dtype: as for `process`.
        progress: whether a progress bar is shown on standard error, or a line now and then.
    """
    chosen = Chosen(model=None, device=device, dtype=dtype)
    several: Callable[..., Any] = process  # whose types are for pictures of one kind

    def denoise(pictures: Sequence[Picture], **options: Any) -> list[Array]:
        clean = []
        for y in map(np.asarray, several(iter(pictures), "denoise", **options, **chosen)):
            clean.append(y)
            shown.add(y.shape[0] * y.shape[1])
        return clean

    folders = [_Folder.at(Path(one), limit) for one in (data, *also)]
    parts: dict[str, dict[str, Any]] = {HELD_OUT: {}, SEEN: {}}
    runs = [(folder, case) for folder in folders for case in folder.cases]
    with Progress("bench checks", len(runs), wanted=progress, item="cases", speed=None) as shown:
        shown.begin(0, sum(folder.pixels * (case.network + CHECKED) for folder, case in runs))
        for folder, case in runs:
            shown.doing(f"{case.name}, {folder.name}")
            for number, (before, after) in enumerate(case.run(folder.pictures, denoise)):
                part = parts[SEEN if number % 2 == 0 else HELD_OUT]
                _count(part.setdefault(case.name, _new(case)), before, after, folder.originals[number])
            shown.add(CHECKED * folder.pixels)
            shown.step()
    return {
        "task": "checks",
        "images": sum(len(folder.pictures) for folder in folders),
        "folders": {folder.name: len(folder.pictures) for folder in folders},
        "bounds": {"colours": COLOURS, "detail": DETAIL, "noise": NOISE},
        **{name: {"rates": _rates(cases.values()), "cases": cases} for name, cases in parts.items()},
        **circumstances("denoise", **chosen),
    }


def _new(case: Case) -> dict[str, Any]:
    counts = {kind: dict.fromkeys(("false", "faultless", "missed", "faulty"), 0) for kind in KINDS}
    return {"well": case.well, "results": 0, "false": 0, **counts}


def _count(row: dict[str, Any], before: Array, after: Array, original: Array) -> None:
    """Counts a result in the row of its case: how often a note was false, of the results without that fault, and how
    often it was missed, of those with it."""
    true = original if before.ndim == 3 else _grey(original)
    planes = [planar(x) for x in (before, after, true)]
    # What is left untouched gets no notes.
    noted = {} if row["well"] and np.array_equal(before, after) else check(*planes[:2]).notes()
    faulty = faults(*planes)
    for kind in KINDS:
        row[kind]["faulty" if faulty[kind] else "faultless"] += 1
        row[kind]["missed"] += faulty[kind] and kind not in noted
        row[kind]["false"] += kind in noted and not faulty[kind]
    row["results"] += 1
    row["false"] += any(not faulty[kind] for kind in noted)


def _rates(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the shares of false alarms and of misses in percent, over all cases; `any` is the share of results that
    got a false note of whatever kind, of what is denoised well."""
    rows = list(rows)
    well = [row for row in rows if row["well"]]
    rates: dict[str, Any] = {"any": _percent(sum(row["false"] for row in well), sum(row["results"] for row in well))}
    for kind in KINDS:
        sums = {name: sum(row[kind][name] for row in rows) for name in ("false", "faultless", "missed", "faulty")}
        rates[kind] = {
            "false": _percent(sums["false"], sums["faultless"]), "missed": _percent(sums["missed"], sums["faulty"]),
        }  # fmt: skip
    return rates


def _percent(some: int, of: int) -> float | None:
    return 100 * some / of if of else None


def table(figures: Figures) -> str:
    """The figures as text."""
    lines = [f"{figures['images']} pictures of {', '.join(figures['folders'])}"]
    for part, title in ((HELD_OUT, "pictures that chose no bound"), (SEEN, "pictures that chose the bounds")):
        own = figures[part]
        lines += ["", f"{title}: false alarms / results without the fault, missed / results with it"]
        lines.append(f"{'':32}{'results':>8}" + "".join(f"{kind:>12}{'':>10}" for kind in KINDS))
        for name, row in own["cases"].items():
            lines.append(f"{name:32}{row['results']:8}" + "".join(_cell(row[kind]) for kind in KINDS))
        rates = own["rates"]
        cells = (_shown(rates[kind][name]) for kind in KINDS for name in ("false", "missed"))
        lines.append(f"{'all':40}" + "".join(f"{cell:>11}" for cell in cells))
        lines.append(f"a false note of any kind, of what is denoised well: {_shown(rates['any'])}")
    return "\n".join(lines)


def _cell(counts: dict[str, int]) -> str:
    false, missed = (f"{counts[a]} /{counts[b]:>4}" for a, b in (("false", "faultless"), ("missed", "faulty")))
    return f"{false:>11}{missed:>11}"


def _shown(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.1f}%"
