"""Find the inputs, plan the outputs, write atomically.

Three promises live here: the tree below the input folder is kept, no two inputs ever share an output
name, and a file under its final name is always whole.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import OutputError, UsageError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .tif .tiff .bmp .dib .gif .ppm .pgm .pbm .pnm .jp2".split()
)
LATENT_SUFFIX = ".aei"


@dataclass(frozen=True)
class Job:
    """One input file and where its result goes."""

    source: Path
    target: Path


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files below `folder` in sorted order; hidden files and symbolic links are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder}: can't be listed ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def find_files(source: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files with one of `suffixes` in `source`, recursively; `source` itself where it is a file.

    Hidden files (macOS's `._*` among them) and symbolic links below `source` are passed over.
    Raises `UsageError` where `source` does not exist.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"{source}: no such file or folder")
    wanted = frozenset(suffixes)
    return [path for path in _walk(source) if path.suffix.lower() in wanted]


def find_images(source: Path) -> list[Path]:
    """`find_files` for the image formats that aeimg reads."""
    return find_files(source, IMAGE_SUFFIXES)


def find_latents(source: Path) -> list[Path]:
    """`find_files` for latent files."""
    return find_files(source, [LATENT_SUFFIX])


def plan(source: Path, files: Iterable[Path], out: Path, suffix: Callable[[Path], str]) -> list[Job]:
    """Gives every file below `source` its own place below `out`, the tree kept.

    `suffix(path)` replaces the file's own. Where that would make two names equal (`a.jpg` and `a.png`), also on a
    file system that ignores case, each of them keeps its old suffix inside the new name: `a.jpg.aei`, `a.png.aei`.
    Raises `UsageError` where an output would lie on an input.
    """
    source, out = Path(source), Path(out)
    base = source if source.is_dir() else source.parent
    files = list(files)

    def short(path: Path) -> Path:
        return path.relative_to(base).with_suffix(suffix(path))

    def full(path: Path) -> Path:
        relative = path.relative_to(base)
        return relative.with_name(relative.name + suffix(path))

    def key(path: Path) -> str:
        return str(path).casefold()

    wanted: dict[str, int] = {}
    for path in files:
        wanted[key(short(path))] = wanted.get(key(short(path)), 0) + 1
    taken: set[str] = set()
    jobs = []
    inputs = {os.path.realpath(path) for path in files}
    for path in files:
        relative = short(path) if wanted[key(short(path))] == 1 else full(path)
        # A long form may still meet another file's short one (`a.png` -> `a.png.jpg` beside a real `a.png.jpg`).
        candidate, number = relative, 1
        while key(candidate) in taken:
            number += 1
            candidate = relative.with_name(f"{relative.stem}-{number}{relative.suffix}")
        taken.add(key(candidate))
        target = out / candidate
        if os.path.realpath(target) in inputs:
            raise UsageError(f"{target}: the output would overwrite an input; choose another output folder")
        jobs.append(Job(path, target))
    return jobs


def write_atomic(target: Path, data: bytes) -> None:
    """Writes `data` beside `target`, flushes it to the disk and renames it: whole, or not at all.

    Raises `OutputError` with the name and the reason.
    """
    target = Path(target)
    temporary = target.with_name(f".{secrets.token_hex(8)}.aeimg-part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{target}: can't be written ({error.strerror or error})") from error
