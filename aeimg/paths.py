"""Find the inputs, plan the outputs, write atomically, on this machine or at a URL.

    located        a name -> a `Place`: a path of this machine or a URL
    find           folders, files, globs and lists -> the files to work on, each with the folder of its source
    plan           found files -> jobs, each with a place of its own in the output folder
    write_atomic   bytes -> a file
    open_regular   a regular file, for reading

This module keeps three promises: the tree below an input folder is kept, no two inputs ever share an output name, and a
file under its final name is always whole.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import hashlib
import os
import secrets
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import urls
from .errors import OutputError, UnreadableImage, UsageError
from .ledger import Compact, Split
from .urls import Status, Url, is_url, redacted

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .avif .tif .tiff .bmp .dib .gif .ppm .pgm .pbm .pnm .jp2 "
    ".heic .heif .hif .jxl".split()
)
LATENT_SUFFIX = ".aei"
LINK = "symbolic link"
"""What `Selection.passed_over` calls a link that is not followed."""
LONGEST_NAME = 255
"""The longest name of a file, in bytes, that all common file systems take."""


Place = Path | Url
"""Where a file or folder lies."""


def located(name: str | os.PathLike[str]) -> Place:
    """Returns where a file or folder lies that a user has named. Raises `UsageError` for URLs that can't be used."""
    if isinstance(name, Url):
        return name
    text = os.fspath(name)
    if is_url(text):
        url = urls.parse(text)
        return Path(url.place) if url.store.scheme in ("file", "local") and not url.store.behind else url
    lost = urls.LOST_SLASH.match(text)
    if lost is not None and not os.path.lexists(lost[0]) and not isinstance(name, str):
        raise UsageError(f"{redacted(text)}: was a URL before it was a pathlib.Path, which drops a slash; give a str")
    return Path(name)


def local(name: str | os.PathLike[str]) -> Path:
    """Returns the path of a file that has to lie on this machine. Raises `UsageError` for URLs."""
    place = located(name)
    if isinstance(place, Url):
        raise UsageError(f"{place}: this has to be a file of this machine, not a URL")
    return place


def is_folder(place: Place | str) -> bool:
    """Returns whether there is a folder. Raises `UsageError` where a store can't say."""
    place = _named(place)
    return _kind(place) == "directory" if isinstance(place, Url) else os.path.isdir(place)


def is_file(place: Place | str) -> bool:
    """Returns whether there is a file. Raises `UsageError` where a store can't say."""
    place = _named(place)
    return _kind(place) == "file" if isinstance(place, Url) else os.path.isfile(place)


def exists(place: Place | str) -> bool:
    """Returns whether anything is there. Raises `UsageError` where a store can't say."""
    place = _named(place)
    return _kind(place) is not None if isinstance(place, Url) else os.path.exists(place)


def _named(place: Place | str) -> Place | str:
    """Returns a name of a local file as it is, because Python's own functions take more of them than `Path` does."""
    return located(place) if is_url(place) else place


def _kind(url: Url) -> str | None:
    try:
        return urls.kind(url)
    except OSError as error:
        raise UsageError(f"{url}: can't be reached ({error.strerror or error})") from error


def status(place: Place) -> Status | os.stat_result:
    """Returns what its file system, or the listing of its store, says of a file. Raises an `OSError`."""
    return urls.status(place) if isinstance(place, Url) else os.stat(place)


def file_size(place: Place) -> int:
    """Returns how many bytes a file has. Raises an `OSError`."""
    found = status(place)
    return found.size if isinstance(found, Status) else found.st_size


def known_size(place: Place) -> int | None:
    """Returns how many bytes a file has; None where it can't be found out, which reading it will say."""
    try:
        return file_size(place)
    except OSError:
        return None


def renewed(place: Place) -> tuple[Place, Status | os.stat_result]:
    """Returns a file with its status at this moment: that of a listing may be old. Raises an `OSError`."""
    if isinstance(place, Url):
        now = urls.status(place, now=True)
        return Url(place.store, place.place, now), now
    return place, os.stat(place)


def check_output(out: Place) -> None:
    """Raises `UsageError` for URLs at which nothing can be written."""
    if isinstance(out, Url) and out.store.scheme in urls.READ_ONLY:
        raise UsageError(f"{out}: files of {out.store.scheme}:// can be read, not written; name another place")


# -- finding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found(Compact):
    """An input file."""

    __slots__ = ("_path_folder", "_path_name", "base")

    path: Split = Split()  # noqa: RUF009  # a descriptor, which is for the class
    """The file."""
    base: Place  # type: ignore[misc]  # mypy takes the field before it for one with a default
    """The folder to which its place in the tree is relative."""

    @property
    def relative(self) -> Path:
        """The path of the file below `base`."""
        return self.path.relative_to(self.base)  # type: ignore[arg-type]  # both are of one kind


@dataclass(frozen=True)
class Selection:
    """Which files below folders are taken.

    A pattern fits a file's name, or its path below the folder; `*` stands for any characters.
    """

    include: Sequence[str] = ()
    """If there are any, one of them must fit."""
    exclude: Sequence[str] = ()
    """None of them may fit the file or a folder above it."""
    follow_symlinks: bool = False
    """Whether symbolic links in folders are followed."""
    without: Place | None = None
    """A folder that is passed over with everything in it: the output folder, which may lie among the inputs."""
    passed_over: Counter[str] | None = None
    """Where there is one, it counts what is passed over though no pattern says so, by suffix or by `LINK`."""

    def pass_over(self, what: str) -> None:
        """Counts a file that is passed over."""
        if self.passed_over is not None:
            self.passed_over[what or "without a suffix"] += 1

    @staticmethod
    def _fits(relative: Path, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(name, p) for p in patterns for name in (relative.name, relative.as_posix()))

    def takes(self, relative: Path) -> bool:
        """Returns whether a file of that path below a source folder is taken."""
        return (not self.include or self._fits(relative, self.include)) and not self._fits(relative, self.exclude)

    def enters(self, folder: Place, relative: Path) -> bool:
        """Returns whether a folder is searched."""
        return not (self.without is not None and is_same(folder, self.without)) and not self._fits(
            relative, self.exclude
        )


Identity = tuple[int, int]
"""Device and inode: equal for one file or folder, whatever names lead to it (links, mounts, another case)."""


def identity(path: os.PathLike[str] | str) -> Identity | None:
    """Returns what distinguishes a file or folder from all others; None where nothing is there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def is_same(a: Place | str, b: Place | str) -> bool:
    """Returns whether both names lead to one file or folder; where nothing is there, whether they are equal."""
    if is_url(a) or is_url(b):
        return located(a) == located(b)
    one, other = identity(a), identity(b)
    if one is None or other is None:
        return one == other and os.path.realpath(a) == os.path.realpath(b)
    return one == other


def _walk(base: Path, suffixes: frozenset[str], selection: Selection) -> Iterator[Path]:
    """Yields regular files below `base` in sorted order, but not hidden ones, and symbolic links only if they are
    followed.

    A folder that links have led to from within itself is passed over. A folder below `base` that can't be listed stands
    for the files in it: reading it will report what is wrong.
    """
    follow = selection.follow_symlinks
    excluded = None if selection.without is None else identity(selection.without)
    above: dict[Identity, None] = {}  # the folders on the way here
    root = os.fspath(base)
    # Each entry: a folder to list and its path below `base`, a file, or the end of a folder. No recursion, as folders
    # may be nested deeper than Python's stack.
    waiting: list[tuple[str, str] | Path | None] = [(root, "")]
    while waiting:
        one = waiting.pop()
        if one is None:
            above.popitem()
            continue
        if isinstance(one, Path):
            yield one
            continue
        folder, place = one
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if not place:
                raise UsageError(f"{folder}: can't be listed ({error.strerror})") from error
            yield Path(folder)
            continue
        here = (status.st_dev, status.st_ino)
        if here in above or (place and here == excluded):
            continue
        above[here] = None
        found: list[tuple[str, str] | Path | None] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not follow:
                selection.pass_over(LINK)
                continue
            relative = os.path.join(place, entry.name)
            if entry.is_dir(follow_symlinks=follow):
                if not selection.exclude or not selection._fits(Path(relative), selection.exclude):
                    found.append((entry.path, relative))
            elif (suffix := os.path.splitext(entry.name)[1].lower()) not in suffixes or not entry.is_file(
                follow_symlinks=follow
            ):
                selection.pass_over(suffix)
            elif selection.takes(Path(relative)):
                found.append(Path(entry.path))
        waiting.append(None)
        waiting += reversed(found)


def _walk_url(base: Url, suffixes: frozenset[str], selection: Selection) -> Iterator[Url]:
    """Yields files below `base` as `_walk` does. One folder is listed at a time."""
    waiting: list[tuple[str, bool, Url]] = [("", True, base)]
    while waiting:
        place, is_folder, one = waiting.pop()
        if not is_folder:
            yield one
            continue
        try:
            entries = urls.entries(one)
        except OSError as error:
            if not place:
                raise UsageError(f"{one}: can't be listed ({error.strerror or error})") from error
            yield one
            continue
        found = []
        for name, below, entry in entries:
            relative = f"{place}/{name}" if place else name
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if below:
                if selection.enters(entry, Path(relative)):
                    found.append((relative, True, entry))
            elif suffix not in suffixes:
                selection.pass_over(suffix)
            elif selection.takes(Path(relative)):
                found.append((relative, False, entry))
        waiting += reversed(found)


def _files_below(folder: Place, suffixes: frozenset[str], selection: Selection) -> Iterator[Found]:
    if isinstance(folder, Url):
        for url in _walk_url(folder, suffixes, selection):
            yield Found(url, folder)
    else:
        for path in _walk(folder, suffixes, selection):
            yield Found(path, folder)


def _globbed_url(pattern: Url, suffixes: frozenset[str], selection: Selection) -> Iterator[Found]:
    """Yields the files that fit a pattern as `_globbed` does."""
    parts = pattern.place.split("/")
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Url(pattern.store, "/".join(parts[:fixed]))
    try:
        matched = urls.matches(pattern)
    except OSError as error:
        raise UsageError(f"{pattern}: can't be listed ({error.strerror or error})") from error
    matched = [url for url in matched if not any(part.startswith(".") for part in url.relative_to(base).parts)]
    if not matched:
        raise UsageError(f"{pattern}: matches no file")
    for url in matched:
        relative = url.relative_to(base)
        if url.suffix.lower() not in suffixes:
            selection.pass_over(url.suffix.lower())
        elif selection.takes(relative) and all(
            selection.enters(base / folder, folder) for folder in (relative.parent, *relative.parent.parents)
        ):
            yield Found(url, base)


def _globbed(pattern: str, suffixes: frozenset[str], selection: Selection) -> Iterator[Found]:
    """Yields the files that fit `pattern`, of those that a search of the folder before its first `*` would find."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    try:
        matched = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
    except RecursionError:
        raise UsageError(f"{pattern}: folders are nested too deep for a pattern; name the folder itself") from None
    if not matched:
        raise UsageError(f"{pattern}: matches no file")
    follow = selection.follow_symlinks

    @functools.cache
    def entered(relative: Path) -> bool:
        folder, above = base / relative, [base / parent for parent in relative.parents]
        if not above:
            return True
        if os.path.islink(folder) and not (follow and all(not os.path.samefile(folder, one) for one in above)):
            return False
        return selection.enters(folder, relative)

    def taken(relative: Path) -> bool:
        return all(entered(folder) for folder in (relative, *relative.parents))

    for match in matched:
        relative = match.relative_to(base)
        linked = os.path.islink(match) and not follow
        if linked or match.suffix.lower() not in suffixes:
            selection.pass_over(LINK if linked else match.suffix.lower())
        elif selection.takes(relative) and taken(relative.parent):
            yield Found(match, base)


def _listed(name: str) -> list[Place]:
    """Returns the places in a list file: one in a line, or separated by NULs; relative ones start where aeimg runs."""
    place = located(name)
    try:
        data = read_bytes(place) if isinstance(place, Url) else place.read_bytes()
    except OSError as error:
        raise UsageError(f"{place}: the list can't be read ({error.strerror})") from error
    parts = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [located(os.fsdecode(part)) for part in parts if part.strip()]


def folders(sources: Iterable[str]) -> Iterator[Place]:
    """Yields the folders among `sources`, and among the paths in the lists among them."""
    for source in sources:
        listed = source.startswith("@") and not os.path.lexists(source)
        yield from (place for place in (_listed(source[1:]) if listed else [located(source)]) if is_folder(place))


def _common(files: list[Place]) -> Iterator[Found]:
    """Yields files of a list, each with the deepest folder that holds all that lie on this machine, or in its store."""
    local = [Path(os.path.abspath(file)) for file in files if not isinstance(file, Url)]
    stores: dict[Any, list[str]] = {}
    for file in files:
        if isinstance(file, Url):
            stores.setdefault(file.store.files, []).append(f"/{file.parent.place.lstrip('/')}")
    base = Path(os.path.commonpath([path.parent for path in local])) if local else Path()
    bases = {store: os.path.commonpath(parents)[1:] for store, parents in stores.items()}
    for file in files:
        if isinstance(file, Url):
            rooted = "/" if file.place.startswith("/") else ""
            yield Found(file, Url(file.store, rooted + bases[file.store.files]))
        else:
            yield Found(Path(os.path.abspath(file)), base)


def _from_source(source: str, suffixes: frozenset[str], selection: Selection) -> Iterator[Found]:
    if not source:
        raise UsageError("an empty name is no file or folder")  # Path would take it for the current folder
    if source.startswith("@") and not os.path.lexists(source):
        listed = [(place, is_folder(place)) for place in _listed(source[1:])]
        yield from _common([place for place, below in listed if not below])
        for place, below in listed:
            if below:
                yield from _files_below(place, suffixes, selection)
        return
    place = located(source)
    if is_folder(place):
        yield from _files_below(place, suffixes, selection)
    elif exists(place):
        yield Found(place, place.parent)
    elif isinstance(place, Url) and glob.has_magic(place.place):
        yield from _globbed_url(place, suffixes, selection)
    elif not isinstance(place, Url) and glob.has_magic(source):
        yield from _globbed(source, suffixes, selection)
    else:
        raise UsageError(f"{place if isinstance(place, Url) else source}: no such file or folder")


def find(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    suffixes: Iterable[str],
    selection: Selection = Selection(),
) -> list[Found]:
    """Returns the files of `sources`, in order, each once.

    A source is a folder, searched recursively for files with one of `suffixes`; a file, taken whatever its suffix;
    a glob like `photos/**/*.jpg`, which finds the files that fit among those that a search of the folder before its
    first `*` finds; or `@list.txt`, a file that lists files and folders. Each may be a URL. Hidden files (macOS's `._*`
    among them) are passed over in folders. Raises `UsageError` where a source does not exist.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    found: dict[str | Url, Found] = {}
    for source in sources:
        for one in _from_source(os.fspath(source), frozenset(suffixes), selection):
            found.setdefault(one.path if isinstance(one.path, Url) else os.path.abspath(one.path), one)
    return list(found.values())


def find_images(source: Path) -> list[Path]:
    """Returns the images below a folder, recognised by their suffixes."""
    return [one.path for one in find(source, IMAGE_SUFFIXES) if isinstance(one.path, Path)]


# -- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job(Compact):
    """One input file and its result."""

    __slots__ = ("_source_folder", "_source_name", "_target_folder", "_target_name")

    source: Split = Split()  # noqa: RUF009  # a descriptor, which is for the class
    """The input file."""
    target: Split = Split()  # noqa: RUF009  # a descriptor, which is for the class
    """The file to be written."""


def _key(path: Path | str) -> str:
    """Returns what is equal for names that some file system takes for one, whatever their case and accents."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _fitted(name: str, suffix: str) -> str:
    """Returns `name`, which ends in `suffix`, cut to what file systems take; a hash stands for what was cut."""
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    mark = "-" + hashlib.blake2b(os.fsencode(name), digest_size=6).hexdigest() + suffix
    room = LONGEST_NAME - len(os.fsencode(mark))
    # Whole characters only, where it is text at all.
    stem = os.fsencode(name)[:room]
    return stem.decode("utf-8", "ignore" if _is_text(name) else "surrogateescape") + mark


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


TEMPLATE = "{stem}{suffix}"


def check_template(template: str) -> None:
    """Raises `UsageError` where `template` is not a template of file names."""
    try:
        # Two names that differ only in their last character, and are as long as names can be.
        name, other = (
            template.format(stem=stem, name=f"{stem}.b", suffix=".c")
            for stem in ("x" * LONGEST_NAME + end for end in "ab")
        )
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"name template {template!r}: only {{stem}}, {{name}} and {{suffix}} stand in it") from error
    if "/" in name or os.sep in name or "\0" in name or not name.endswith(".c"):
        raise UsageError(f"name template {template!r}: it must end in {{suffix}} and name no folder")
    if name == other:
        raise UsageError(f"name template {template!r}: without {{stem}} or {{name}}, whole, outputs would share a name")


def stem(path: Place) -> str:
    """Returns a file's name without its suffix."""
    return path.name.removesuffix(path.suffix)


def plan(
    files: Iterable[Found],
    out: Place,
    suffix: Callable[[Place], str],
    template: str = TEMPLATE,
    stem: Callable[[Place], str] = stem,
) -> list[Job]:
    """Gives every file a place of its own below `out`, and keeps the tree.

    The name is `template` with the file's `stem(path)` (without its suffix), its `name` (with it) and `suffix(path)`,
    the new one. Where two names would be equal (`a.jpg` and `a.png`), also on a file system that ignores case, each of
    them keeps its old suffix inside the new name: `a.jpg.aei`, `a.png.aei`. Names that would be too long are cut, and a
    hash distinguishes them. Raises `UsageError` where an output would lie on an input.
    """
    check_template(template)
    files, out = list(files), located(out)

    def named(one: Found, stem: str, name: str) -> str:
        new = suffix(one.path)
        return _fitted(template.format(stem=stem, name=name, suffix=new), new)

    # There may be millions of files: folders are held once, and what lies in them by name.
    shared: dict[Path, Path] = {}
    parents = [shared.setdefault(parent, parent) for parent in (one.relative.parent for one in files)]
    short = [named(one, stem(one.path), one.path.name) for one in files]
    keys = [_key(parent / name) for parent, name in zip(parents, short, strict=True)]
    several = {key for key, number in Counter(keys).items() if number > 1}
    # No file can lie where a folder must be.
    folders = {_key(folder) for folder in _with_parents(parents)}
    below = {parent: out / parent for parent in shared}
    taken: set[str] = set()
    jobs = []
    for one, parent, candidate, key in zip(files, parents, short, keys, strict=True):
        name = one.path.name
        if key in several:
            candidate = named(one, name, name)
            key = _key(parent / candidate)
        # A long form may still meet another file's short one (`a.png` -> `a.png.jpg` beside a real `a.png.jpg`).
        number = 1
        while key in taken or key in folders:
            number += 1
            candidate = named(one, f"{name}-{number}", f"{name}-{number}")
            key = _key(parent / candidate)
        taken.add(key)
        jobs.append(Job(one.path, below[parent] / candidate))
    refuse_overwriting(jobs)
    return jobs


def refuse_overwriting(jobs: Sequence[Job]) -> None:
    """Raises `UsageError` where an output would lie on an input."""

    # By identity, as the same folder may have two names: links, bind mounts, another case.
    @functools.cache
    def place(folder: Place) -> Identity | str | Url:
        return folder if isinstance(folder, Url) else identity(folder) or os.path.realpath(folder)

    written = {place(job.target.parent) for job in jobs}
    inputs: dict[tuple[Identity | str | Url, str], list[Place]] = {}
    for job in jobs:
        links: list[Place] = [Path(os.path.realpath(job.source))] if job.source.is_symlink() else []
        for path in (job.source, *links):
            if (folder := place(path.parent)) in written:
                inputs.setdefault((folder, _key(path.name)), []).append(path)
    for job in jobs if inputs else ():
        target = job.target
        alike = inputs.get((place(target.parent), _key(target.name)), ())
        # Of names that differ in their case only, the file system decides whether they are one.
        if any(path.name == target.name or is_same(path, target) for path in alike):
            raise UsageError(f"{target}: the output would overwrite an input; choose another output folder")


def _with_parents(folders: Iterable[Path]) -> set[Path]:
    """Returns `folders` and all that they are in."""
    found: set[Path] = set()
    for folder in folders:
        while folder not in found:
            found.add(folder)
            folder = folder.parent
    return found


# -- writing ---------------------------------------------------------------------------------------------------------


PART = ".aeimg-part"
ABANDONED = 24 * 3600.0
"""A part to which nobody has written for so many seconds no longer belongs to a run."""


def sweep(folders: Iterable[Place]) -> None:
    """Removes what killed runs have left unfinished in `folders`, but not what other runs are writing.

    A part whose run is alive is locked. Where there are no such locks, its age alone decides.
    """
    now = time.time()
    for folder in folders:
        if isinstance(folder, Url):
            _sweep_url(folder)
            continue
        try:
            parts = [entry for entry in os.scandir(folder) if entry.name.endswith(PART)]
            for part in parts:
                status = part.stat(follow_symlinks=False)
                # A clock that jumps makes parts old; but then nobody has them locked.
                if now - status.st_mtime > ABANDONED and stat.S_ISREG(status.st_mode) and not _is_locked(part.path):
                    os.unlink(part.path)
        except OSError:
            continue  # sweeping is a courtesy: writing will report what is wrong with the folder


def _sweep_url(folder: Url) -> None:
    if folder.store.scheme in urls.PUT_WHOLE:  # there are no parts
        return
    with contextlib.suppress(OSError):
        for name, is_folder, part in urls.entries(folder):
            if name.endswith(PART) and not is_folder and urls.age(part) > ABANDONED:
                urls.remove(part)


def _lock(file: BinaryIO) -> None:
    """Locks a file until it is closed, or its process ends. Where locks are unknown, it does nothing."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_locked(path: str) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


def make_folder(folder: Path) -> None:
    """Makes a folder and those that it is in, where they are missing. Raises an `OSError`."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for one in reversed(missing):  # not by recursion, as folders may be nested deeper than Python's stack
        one.mkdir(exist_ok=True)


def check_writable(target: Place) -> None:
    """Makes the folder of `target`, and raises `OutputError` where nothing can be written into it."""
    temporary = target.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        if isinstance(target, Url) or isinstance(temporary, Url):
            write_atomic(temporary, b"")
            urls.remove(temporary)  # type: ignore[arg-type]
            return
        make_folder(target.parent)
        temporary.touch()
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{target}: can't be written ({error.strerror or error})") from error


def check_target(target: Path, ours: Callable[[Path], bool]) -> None:
    """Raises `UsageError` where `target` is a folder, or a file that `ours` does not recognise; `OutputError` where it
    can't be written."""
    if target.is_dir():
        raise UsageError(f"{target}: is a folder; name a file in it")
    if os.path.lexists(target) and not ours(target):
        raise UsageError(f"{target}: is there already, and was not written by an earlier run; choose another name")
    check_writable(target)


def write_atomic(target: Place, data: bytes) -> None:
    """Writes `data` beside `target`, flushes it to the disk and renames it: whole, or not at all.

    A file that is replaced hands on its mode and, where that is allowed, its owner. At a URL it is put at once where
    the store does that whole, or else renamed. Raises `OutputError` with the name and the reason.
    """
    target = located(target)
    temporary = target.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        if isinstance(target, Url):
            urls.write(target, data, temporary)  # type: ignore[arg-type]
            return
        assert isinstance(temporary, Path)
        make_folder(target.parent)
        earlier = _replaced(target)
        try:
            # Whoever may not read the earlier file must not read the new one while it is written.
            with open(temporary, "xb", opener=None if earlier is None else _private) as file:
                _lock(file)
                if earlier is not None:
                    _hand_on(earlier, file)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{target}: can't be written ({error.strerror or error})") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _replaced(target: Path) -> os.stat_result | None:
    """Returns the status of the regular file that lies at `target`, if there is one."""
    try:
        status = os.lstat(target)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _hand_on(earlier: os.stat_result, file: BinaryIO) -> None:
    """Gives `file` the owner and the mode of an earlier one, as far as the system allows."""
    number, mode = file.fileno(), stat.S_IMODE(earlier.st_mode) & 0o777
    if hasattr(os, "fchown"):
        status = os.fstat(number)
        for owner, group in ((-1, earlier.st_gid), (earlier.st_uid, -1)):
            if (owner, group) in ((-1, status.st_gid), (status.st_uid, -1)):
                continue
            try:
                os.fchown(number, owner, group)
            except OSError:
                if group != -1:  # what was for that group is not for another one
                    mode &= ~0o070
    with contextlib.suppress(OSError):
        os.chmod(number if os.chmod in os.supports_fd else file.name, mode)


# -- reading ---------------------------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file opened for reading, if it is a regular one: pipes would hang, and devices have no end.

    Raises `UnreadableImage`. Of a file at a URL, what is read is fetched, and the reading raises it too.
    """
    if is_url(path):
        url = located(path)
        assert isinstance(url, Url)
        try:
            return urls.open_url(url)
        except OSError as error:
            raise UnreadableImage(f"{url}: can't be read ({error.strerror or error})") from error
    try:
        # Without O_NONBLOCK, to open a pipe is already to wait for one who writes into it.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise UnreadableImage(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UnreadableImage(f"{path}: is no regular file but a pipe, a device or a folder; copy it to a file")
    return os.fdopen(number, "rb")


def size_of(file: BinaryIO) -> int:
    """Returns how many bytes an open file has; where it is read next stays as it is."""
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size


def read_bytes(place: Place) -> bytes:
    """Returns the bytes of a file. Raises an `OSError`."""
    return urls.read(place) if isinstance(place, Url) else place.read_bytes()
