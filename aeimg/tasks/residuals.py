"""What a denoiser has taken away from pictures, as pictures to look at.

stretched     pixels before and after -> `Residual`: the difference around grey, as a PNG file
Residuals     the folder in which these lie, by the names of the results
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import paths
from ..errors import OutputError, UsageError
from ..images import Picture, encode_picture
from ..manifest import Manifest, Record, State, digest
from ..pixels import peak
from ..urls import Url

Array = np.ndarray

GREY = 128
"""What stands for no difference."""
REACH, OUTLIERS = 100.0, 99.9
"""Differences are multiplied so that all but a few, up to this percentile, lie within `REACH` of grey."""
LARGEST_GAIN = 32.0
"""They are never multiplied by more, so that rounding does not pass for noise."""


@dataclass(frozen=True)
class Residual:
    """What was taken away from one picture."""

    data: bytes
    """A PNG file of 8 bits: `GREY` and `gain` times the difference, which is positive where the picture got darker."""
    gain: float
    """By what the difference, in 8-bit units, was multiplied."""


def stretched(before: Array, after: Array) -> Residual:
    """Returns what was taken away between pixels `[C,H,W]` of one dtype before and after."""
    taken = (before.astype(np.float32) - after.astype(np.float32)) * np.float32(255.0 / peak(before.dtype))
    largest = float(np.percentile(np.abs(taken), OUTLIERS))
    gain = min(LARGEST_GAIN, REACH / largest) if largest > 0 else 1.0
    shown = np.rint(np.clip(GREY + gain * taken, 0, 255)).astype(np.uint8)
    return Residual(encode_picture(Picture(shown), ".png"), gain)


class Residuals:
    """The folder in which the residuals of a run lie: a PNG for each result, whose name follows the same rules.

    It has a manifest of its own, so that files of other origin are not overwritten unasked. Raises `UsageError` for a
    folder in which residuals would pass for inputs or results, and `OutputError` where one is there and `if_exists` is
    "error".
    """

    def __init__(
        self, folder: str | os.PathLike[str], sources: Sequence[str], out: paths.Place, jobs: Iterable[paths.Job],
        recipe: str, *, name: str, if_exists: str,
    ) -> None:  # fmt: skip
        self.if_exists, self.recipe, jobs = if_exists, f"residual of {recipe}", list(jobs)
        self.folder, below = _local(folder), _local(out)
        self._check_folder([below, *map(_local, paths.folders(sources))])
        found = []
        for job in jobs:
            source = _local(job.source)
            found.append(paths.Found(source, source.parents[_depth(_local(job.target), below)]))
        planned = paths.plan(found, self.folder, lambda _: ".png", name)
        self._jobs = {job.target: one for job, one in zip(jobs, planned, strict=True)}
        self._manifest = Manifest(self.folder)
        self._states = {job.target: self._manifest.state(self._jobs[job.target], self.recipe) for job in jobs}
        if if_exists == "error":
            for target, state in self._states.items():
                if state is not State.MISSING:
                    there = self._jobs[target].target
                    raise OutputError(f"{there}: is there already; choose another folder, or --if-exists overwrite")

    def _check_folder(self, others: Iterable[Path]) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{self.folder}: is a file, but residuals need a folder")
        real = Path(os.path.realpath(self.folder))
        for one in others:
            where = Path(os.path.realpath(one))
            if real == where or where in real.parents:
                raise UsageError(
                    f"{self.folder}: lies in {one}, where residuals would pass for pictures; choose another folder"
                )

    def lacks(self, job: paths.Job) -> bool:
        """Whether the residual of a result is still to be written, though the result may be right."""
        return self._states[job.target] in (State.MISSING, State.STALE)

    def write(self, job: paths.Job, record: Record, residual: Residual) -> tuple[Path, tuple[str, ...]]:
        """Writes the residual of the result of `record`. Returns the file, and what the user should know."""
        one = self._jobs[job.target]
        target = Path(one.target)
        if self._states[job.target] is State.FOREIGN and self.if_exists == "skip":
            return target, (f"{target} is there already, and aeimg has no record of writing it",)
        made = replace(record, recipe=self.recipe, bytes=len(residual.data), result=digest(residual.data))
        self._manifest.add(one, made)
        paths.write_atomic(target, residual.data)
        return target, ()


def _local(place: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder of this machine. Raises `UsageError` for URLs."""
    found = paths.located(place)
    if isinstance(found, Url):
        raise UsageError(
            f"{found}: residual is for files and folders of this machine, not for URLs; copy them, or leave it out"
        )
    return found


def _depth(target: Path, out: Path) -> int:
    """Returns in how many folders below `out`, which may be the result itself, a result lies: as many as its source
    lies in below what was named."""
    return 0 if target == out else len(target.relative_to(out).parent.parts)
