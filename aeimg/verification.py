"""`verify()`: are latent files whole, and do they decode to what the encoder wrote? No picture is made for it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from . import container, paths
from .devices import pick_device, pick_dtype
from .errors import AeimgError, InputError, UsageError
from .paths import Place
from .stream import stream
from .tasks.decompress import Decompress
from .tasks.options import DecompressOptions, RunOptions, SelectionOptions, names_of


@dataclass
class Verification:
    """What `verify` has found."""

    deep: bool
    """Whether the symbols were decoded too."""
    whole: int = 0
    """How many files are whole."""
    bad: list[tuple[Place, str]] = field(default_factory=list)
    """Each file that is not, and why."""
    bytes: int = 0
    """The size of the files that are whole."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """How many files in the folders are no latent files, by suffix."""
    seconds: float = 0.0
    """How long it took."""
    files: list[dict[str, Any]] = field(default_factory=list)
    """A record for each file: `input`, `status` ("whole" or "bad"), then `bytes` or `error`."""


def verify(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    deep: bool = False,
    model: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Verification:
    """Checks latent files without making pictures of them.

    The checksum in each file is compared with its bytes, and every section is checked as for decompressing. This needs
    no weights and takes little more than reading.

    Args:
        sources: Latent files, folders, globs, `@list.txt`, URLs, or several of these.
        deep: Decode the symbols too, whose checksum shows that these weights on this machine read what the encoder
            wrote, and the alpha channels and image files in the latent files. It needs the weights.
        model: With `deep`, the weights that the files were made with; None for those that they name.
        options: `include`, `exclude`, `follow_symlinks`, `jobs` and `memory`, as for `process`.

    Raises:
        UsageError: The call is wrong.
    """
    known = names_of(SelectionOptions, RunOptions)
    for name in options:
        if name not in known:
            raise UsageError(f"the option {name!r} is unknown; verify knows deep, model, {', '.join(known)}")
    run = RunOptions(**{name: value for name, value in options.items() if name in names_of(RunOptions)})
    chosen = SelectionOptions(**{name: value for name, value in options.items() if name in names_of(SelectionOptions)})
    began, found = time.monotonic(), Verification(deep)
    passed_over: Counter[str] = Counter()
    selection = replace(chosen.selection, passed_over=passed_over)
    files = [one.path for one in paths.find(sources, [paths.LATENT_SUFFIX], selection)]
    found.passed_over = dict(passed_over.most_common())
    task = _Check(_decoder(model) if deep else None)
    for outcome in stream(files, task, jobs=run.jobs, batch_size=run.batch_size, memory=run.memory_bytes):
        if outcome.error is None:
            found.whole += 1
            found.bytes += outcome.result()
            found.files.append({"input": str(outcome.source), "status": "whole", "bytes": outcome.result()})
            continue
        error = outcome.error
        reason = str(error) if isinstance(error, AeimgError) else f"{type(error).__name__}: {error}"
        found.bad.append((outcome.source, reason))
        found.files.append({"input": str(outcome.source), "status": "bad", "error": reason})
    found.seconds = time.monotonic() - began
    return found


def _decoder(model: str | os.PathLike[str] | None) -> Decompress:
    place = pick_device("cpu")
    return Decompress(model, place, pick_dtype("fp32", place), DecompressOptions())


@dataclass(frozen=True)
class _Checked:
    """A latent file that was checked."""

    size: int
    work: int = 0
    nbytes: int = 0


class _Check:
    """A task whose first step does all."""

    small = True

    def __init__(self, decoder: Decompress | None) -> None:
        self.decoder = decoder

    def estimate(self, source: Place) -> int:
        """Returns how many bytes the file takes in memory, or the picture that is decoded with it."""
        if self.decoder is not None:
            return self.decoder.estimate(source)
        return _size(source)

    def prepare(self, source: Place) -> _Checked:
        """Checks a file. Raises `InvalidLatent` and, with a decoder, `WrongWeights`."""
        if self.decoder is not None:
            self.decoder.prepare(source)
        else:
            container.read(container.read_file(source), str(source))
        return _Checked(_size(source))

    def key(self, item: _Checked) -> Hashable:
        """Returns None: anything fits together."""
        return None

    def run(self, items: list[_Checked]) -> list[None]:
        """Does nothing."""
        return [None] * len(items)

    def finish(self, item: _Checked, raw: None) -> int:
        """Returns the size of the file."""
        return item.size


def _size(place: Place) -> int:
    try:
        return paths.file_size(place)
    except OSError as error:
        raise InputError(f"{place}: can't be read ({error.strerror or error})") from error
