"""What lies in an output folder and what it was made of, so that a second run knows which results are still right.

A hidden file in the folder, `.aeimg-manifest.jsonl`, holds one line of JSON for each result: the input (size, mtime,
ctime or version, hash), the recipe (task, models, options) and the output (size, hash). The line is appended before the
result gets its final name. Whenever a run is killed, each file in the folder is therefore one that the manifest knows.
Lines that were cut off or can't be parsed are ignored.

Each shard of a run (see `shards`) has a file of its own, `.aeimg-manifest-3-of-16.jsonl`, because what two machines
append to one file of a network disk may be lost. All files of that pattern are read.

Stores at URLs have no appends. There each run writes files of its own, `.aeimg-manifest-<when>-<random>-<n>.jsonl`. The
one that it is at is put anew for each result, before the result, with what the threads have to say at that moment
(records that come while one is put go with the next). It is at most `PART_BYTES` long; then the run begins another.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from . import paths, urls
from .errors import OutputError, UnreadableImage
from .paths import Job, Place, make_folder, open_regular
from .urls import Status, Url

NAME = ".aeimg-manifest.jsonl"
NAMES = re.compile(r"\.aeimg-manifest(-[\w-]+)?\.jsonl")
"""The names of all manifests of a folder."""
PART_BYTES = 1 << 16
"""How long a file of a manifest at a URL gets, at most and by one record more."""
LONGEST_LINE = 1 << 16
"""The longest line that is read, in bytes. Paths of files are far shorter on every system."""


def digest(data: bytes) -> str:
    """Returns 16 bytes of BLAKE2b, in hexadecimal: they distinguish one content from another."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """How a result came to be."""

    recipe: str
    """Equal for equal task, models and options."""
    size: int
    """The size of the input, in bytes."""
    mtime: int
    """When the content of the input was last changed, in nanoseconds."""
    source: str
    """The digest of the input."""
    bytes: int
    """The size of the output, in bytes."""
    result: str
    """The digest of the output."""
    ctime: int | None = None
    """When the file system last changed the input in any way, in nanoseconds. Unlike `mtime` nobody can set it, so it
    reveals an input that was exchanged for one of equal size and mtime. None where it is unknown."""
    version: str | None = None
    """What the store of an input at a URL calls its version, such as the ETag of S3: in the place of `ctime`."""

    def is_of(self, status: os.stat_result | Status) -> bool:
        """Returns whether size, times and version say that the input is the one that it was."""
        size, mtime, ctime, version = stamp(status)
        if version is not None:  # some stores give finer times in a listing than for a file
            return (self.size, self.version) == (size, version)
        return mtime != 0 and (self.size, self.mtime) == (size, mtime) and self.ctime in (None, ctime)

    def withstamp(self, status: os.stat_result | Status) -> Record:
        """Returns the same record with the size, times and version of another status."""
        size, mtime, ctime, version = stamp(status)
        return replace(self, size=size, mtime=mtime, ctime=ctime, version=version)


def record_of(recipe: str, status: os.stat_result | Status, source: str, result: bytes) -> Record:
    """Returns the record of a result that was made of a file with that status, whose `digest` is `source`."""
    size, mtime, ctime, version = stamp(status)
    return Record(recipe, size, mtime, source, len(result), digest(result), ctime, version)


def stamp(status: os.stat_result | Status) -> tuple[int, int, int | None, str | None]:
    """Returns size, mtime, ctime and version, as far as they are known."""
    if isinstance(status, Status):
        return status.size, status.mtime, None, status.version
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, None


class State(Enum):
    """What lies at the target of a job."""

    MISSING = "missing"
    """Nothing."""
    CURRENT = "current"
    """The result that this recipe would make of this input."""
    STALE = "stale"
    """A result of aeimg, made by another recipe, or of an input that has changed since."""
    FOREIGN = "foreign"
    """A file that aeimg has not written, or that was changed since: it is not overwritten unasked."""


def _parsed(line: bytes) -> tuple[str, Record] | None:
    """Returns the name and the record in a line; None where it holds none."""
    try:
        entry = json.loads(line)
        out = entry.pop("out")
        record = Record(**entry)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    texts = (out, record.recipe, record.source, record.result, record.version or "")
    numbers = (record.size, record.mtime, record.bytes, 0 if record.ctime is None else record.ctime)
    sound = all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)
    return (out, record) if sound else None


# -- in memory -----------------------------------------------------------------------------------------------

PACKED = struct.Struct("<4q16s16sI")
"""Size, mtime, ctime and bytes; the digests; the number of the recipe. The version of the source follows, in UTF-8."""
NO_TIME = -(1 << 63)
"""Stands for a ctime that is unknown."""


class _Records:
    """The records of results by name: some may have several. Most take 112 bytes, where a `Record` takes about 400."""

    def __init__(self) -> None:
        self._known: dict[str, bytes | Record | tuple[bytes | Record, ...]] = {}
        self._recipes: list[str] = []
        self._numbers: dict[str, int] = {}

    def add(self, name: str, record: Record) -> None:
        """Adds the record of a result."""
        packed, earlier = self._packed(record), self._known.get(name, ())
        if earlier == ():
            self._known[name] = packed
        else:
            self._known[name] = (*(earlier if isinstance(earlier, tuple) else (earlier,)), packed)

    def of(self, name: str) -> list[Record]:
        """Returns the records of a result, in the order in which they came."""
        known = self._known.get(name, ())
        several = known if isinstance(known, tuple) else (known,)
        return [one if isinstance(one, Record) else self._unpacked(one) for one in several]

    def _packed(self, record: Record) -> bytes | Record:
        number = self._numbers.setdefault(record.recipe, len(self._recipes))
        if number == len(self._recipes):
            self._recipes.append(record.recipe)
        times = record.mtime, NO_TIME if record.ctime is None else record.ctime
        try:
            digests = bytes.fromhex(record.source), bytes.fromhex(record.result)
            packed = PACKED.pack(record.size, *times, record.bytes, *digests, number)
            packed += b"" if record.version is None else b"=" + record.version.encode()
        except (ValueError, struct.error):  # no digests of ours, or numbers that no file system has
            return record
        return packed if self._unpacked(packed) == record else record

    def _unpacked(self, packed: bytes) -> Record:
        size, mtime, ctime, made, source, result, number = PACKED.unpack_from(packed)
        version = packed[PACKED.size + 1 :].decode() if len(packed) > PACKED.size else None
        changed = None if ctime == NO_TIME else ctime
        return Record(self._recipes[number], size, mtime, source.hex(), made, result.hex(), changed, version)


class Manifest:
    """The records of one output folder. Several threads, and several runs at once, may read it and add to it."""

    def __init__(self, out: Place, shard: str = "", *, read: bool = True) -> None:
        """Reads all manifests of the folder `out`, unless it is only to add; records are added to that of `shard`, as
        in "3-of-16"."""
        self.out = out
        self.path: Place = out / (f".aeimg-manifest-{shard}.jsonl" if shard else NAME)
        self._records = _Records()
        self._file: _LocalFile | _UrlFile
        if isinstance(out, Url):
            self._file = _UrlFile(out, shard)
        else:
            self._file = _LocalFile(out, Path(self.path))
        for line in self._file.lines() if read else ():
            if (found := _parsed(line)) is not None:
                self._records.add(*found)

    def _key(self, job: Job) -> str:
        return job.target.relative_to(self.out).as_posix()  # type: ignore[arg-type]  # both are of one kind

    @functools.cached_property
    def _listing(self) -> dict[str, int]:
        """The size of each file in a folder at a URL, so that not each target must be asked for."""
        assert isinstance(self.out, Url)
        found, folders = {}, [self.out]
        while folders:
            try:
                entries = urls.entries(folders.pop())
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputError(f"{self.out}: can't be listed ({error.strerror})") from error
            for _, is_folder, one in entries:
                if is_folder:
                    folders.append(one)
                elif one.status is not None:
                    found[one.place] = one.status.size
        return found

    def refresh(self) -> None:
        """Forgets what lay in a folder at a URL, which is listed again when it matters."""
        self.__dict__.pop("_listing", None)

    def _size(self, target: Place) -> int | None:
        """Returns the size of what lies at a target; None where nothing does."""
        if isinstance(target, Url):
            return self._listing.get(target.place)
        try:
            return os.stat(target).st_size
        except OSError:
            return None

    def state(self, job: Job, recipe: str, *, renew: bool = False) -> State:
        """Returns what lies at the target of `job`. Sizes and times decide; contents are read only where those do not.

        With `renew`, times that have changed although the content has not (by a copy, a move, a `touch`) are entered,
        so that the next run need not read the file again.
        """
        size = self._size(job.target)
        if size is None:
            return State.MISSING
        ours = [record for record in self._records.of(self._key(job)) if record.bytes == size]
        if len({record.result for record in ours}) > 1:
            ours = self._made(job, ours)
        if not ours:
            return State.FOREIGN
        with contextlib.suppress(OSError):  # reading it will report what is wrong
            if self._is_current(job, [record for record in ours if record.recipe == recipe], renew):
                return State.CURRENT
        # It would be written over: not if someone has worked on it since, even where its size is the same.
        return State.STALE if self._made(job, ours) else State.FOREIGN

    def _is_current(self, job: Job, records: list[Record], renew: bool) -> bool:
        """Returns whether one of the records of what lies at the target is of the input as it is."""
        if not records:
            return False
        status = paths.status(job.source)
        if any(record.is_of(status) for record in records):
            return True
        alike = [record for record in records if record.size == stamp(status)[0]]
        if not alike:
            return False
        source = digest(paths.read_bytes(job.source))
        same = [record for record in alike if record.source == source]
        if same and renew:
            with contextlib.suppress(OutputError):  # the folder may be read-only
                self.add(job, same[-1].withstamp(status))
        return bool(same)

    @staticmethod
    def _made(job: Job, records: list[Record]) -> list[Record]:
        """Returns those of `records` whose result is what lies at the target, by its content."""
        try:
            found = digest(paths.read_bytes(job.target))
        except OSError:
            return []
        return [record for record in records if record.result == found]

    def add(self, job: Job, record: Record) -> None:
        """Enters a record, after which the result of `job` may get its name. Raises `OutputError`."""
        about = {key: value for key, value in asdict(record).items() if value is not None}
        self._file.append(json.dumps({"out": self._key(job), **about}).encode())
        with self._file.lock:
            self._records.add(self._key(job), record)


class _LocalFile:
    """The manifests of a folder of this machine."""

    def __init__(self, out: Path, path: Path) -> None:
        self.out, self.path, self.lock = out, path, threading.Lock()

    def lines(self) -> Iterator[bytes]:
        """Yields the lines of all manifests of the folder. Raises `OutputError`."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.out) if NAMES.fullmatch(entry.name))
        except OSError:  # there is none yet; writing will report what else is wrong
            names = []
        for name in names:
            yield from self._lines(self.out / name)

    def _lines(self, path: Path) -> Iterator[bytes]:
        self._refuse_link(path)
        try:
            with open_regular(path) as file:
                while line := file.readline(LONGEST_LINE):
                    if line.endswith(b"\n") or len(line) < LONGEST_LINE:
                        yield line
                    else:  # nothing of ours
                        while (line := file.readline(LONGEST_LINE)) and not line.endswith(b"\n"):
                            pass
        except UnreadableImage as error:
            raise OutputError(str(error)) from error
        except OSError as error:
            raise OutputError(f"{path}: can't be read ({error.strerror})") from error

    @staticmethod
    def _refuse_link(path: Path) -> None:
        if os.path.islink(path):
            raise OutputError(f"{path}: is a symbolic link, which may lead to anybody's file; remove it")

    def append(self, line: bytes) -> None:
        """Appends a line. Raises `OutputError`."""
        # The line break in front ends a line that another run may have left unfinished.
        line = b"\n" + line
        with self.lock:
            try:
                make_folder(self.out)
                self._refuse_link(self.path)
                # The flags are for what somebody puts there in this very moment: a link, a pipe that nobody reads.
                safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
                file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | safe, 0o666)
                try:
                    os.write(file, line)
                finally:
                    os.close(file)
            except OSError as error:
                raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error


class _UrlFile:
    """The manifests of a folder at a URL."""

    def __init__(self, out: Url, shard: str) -> None:
        self.out, self.lock = out, threading.Lock()
        self.stem = "-".join(part for part in (".aeimg-manifest", shard, time.strftime("%Y%m%dT%H%M%S", time.gmtime()),
                                               secrets.token_hex(4)) if part)  # fmt: skip
        self.number, self.written = 0, b""
        self.waiting: list[bytes] = []
        self.queue = threading.Lock()

    def lines(self) -> Iterator[bytes]:
        """Yields the lines of all manifests of the folder. Raises `OutputError`."""
        try:
            found = [one for name, is_folder, one in urls.entries(self.out) if not is_folder and NAMES.fullmatch(name)]
            for _, data in urls.read_many(found):
                yield from (line for line in data.split(b"\n") if len(line) < LONGEST_LINE)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self.out}: its manifest can't be read ({error.strerror})") from error

    def append(self, line: bytes) -> None:
        """Writes a line, with those that other threads have brought meanwhile. Raises `OutputError`."""
        with self.queue:
            self.waiting.append(line)
        with self.lock:
            with self.queue:
                lines, self.waiting = self.waiting, []
            if not lines:  # another thread has written it
                return
            if len(self.written) > PART_BYTES:
                self.number, self.written = self.number + 1, b""
            data = self.written + b"".join(line + b"\n" for line in lines)
            try:
                paths.write_atomic(self.out / f"{self.stem}-{self.number}.jsonl", data)
            except OutputError:
                with self.queue:
                    self.waiting += lines  # of other threads, which believe them written when they get the lock
                raise
            self.written = data
