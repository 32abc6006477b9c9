"""What lies in an output folder and what it was made of, so that a second run knows which results are still right.

A hidden file in the folder, `.aeimg-manifest.jsonl`, holds one line of JSON for each result: the input (size, mtime,
ctime, hash), the recipe (task, models, options) and the output (size, hash). The line is appended before the result
gets its final name. Whenever a run is killed, each file in the folder is therefore one that the manifest knows. Lines
that were cut off or can't be parsed are ignored; the last line about a file counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from .errors import OutputError, UnreadableImage
from .paths import Job, make_folder, open_regular

NAME = ".aeimg-manifest.jsonl"
LONGEST_LINE = 1 << 16
"""The longest line that is read, in bytes. Paths of files are far shorter on every system."""


def digest(data: bytes) -> str:
    """Returns 16 bytes of BLAKE2b, in hexadecimal: they distinguish one content from another."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True)
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
    texts = (out, record.recipe, record.source, record.result)
    numbers = (record.size, record.mtime, record.bytes, 0 if record.ctime is None else record.ctime)
    sound = all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)
    return (out, record) if sound else None


class Manifest:
    """The records of one output folder. Several threads, and several runs at once, may read it and add to it."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.path = self.out / NAME
        self._lock = threading.Lock()
        self._records: dict[str, list[Record]] = {}
        if os.path.lexists(self.path):
            for line in self._lines():
                if (found := _parsed(line)) is not None:
                    self._records.setdefault(found[0], []).append(found[1])

    def _lines(self) -> Iterator[bytes]:
        self._refuse_link()
        try:
            with open_regular(self.path) as file:
                while line := file.readline(LONGEST_LINE):
                    if line.endswith(b"\n") or len(line) < LONGEST_LINE:
                        yield line
                    else:  # nothing of ours
                        while (line := file.readline(LONGEST_LINE)) and not line.endswith(b"\n"):
                            pass
        except UnreadableImage as error:
            raise OutputError(str(error)) from error
        except OSError as error:
            raise OutputError(f"{self.path}: can't be read ({error.strerror})") from error

    def _refuse_link(self) -> None:
        if os.path.islink(self.path):
            raise OutputError(f"{self.path}: is a symbolic link, which may lead to anybody's file; remove it")

    def _key(self, job: Job) -> str:
        return job.target.relative_to(self.out).as_posix()

    def state(self, job: Job, recipe: str, *, renew: bool = False) -> State:
        """Returns what lies at the target of `job`. Sizes and times decide; contents are read only where those do not.

        With `renew`, times that have changed although the content has not (by a copy, a move, a `touch`) are entered,
        so that the next run need not read the file again.
        """
        try:
            there = os.stat(job.target)
        except OSError:
            return State.MISSING
        ours = [record for record in self._records.get(self._key(job), ()) if record.bytes == there.st_size]
        if len({record.result for record in ours}) > 1:
            ours = self._made(job, ours)
        if not ours:
            return State.FOREIGN
        last = ours[-1]
        try:
            source = os.stat(job.source)
            if last.recipe == recipe and last.size == source.st_size:
                if last.mtime == source.st_mtime_ns and last.ctime in (None, source.st_ctime_ns):
                    return State.CURRENT
                if last.source == digest(job.source.read_bytes()):
                    with contextlib.suppress(OutputError):  # the folder may be read-only
                        if renew:
                            self.add(job, replace(last, mtime=source.st_mtime_ns, ctime=source.st_ctime_ns))
                    return State.CURRENT
        except OSError:
            pass  # reading it will report what is wrong
        # It would be written over: not if someone has worked on it since, even where its size is the same.
        return State.STALE if self._made(job, ours) else State.FOREIGN

    @staticmethod
    def _made(job: Job, records: list[Record]) -> list[Record]:
        """Returns those of `records` whose result is what lies at the target, by its content."""
        try:
            found = digest(job.target.read_bytes())
        except OSError:
            return []
        return [record for record in records if record.result == found]

    def add(self, job: Job, record: Record) -> None:
        """Appends a record, after which the result of `job` may get its name. Raises `OutputError`."""
        # The line break in front ends a line that another run may have left unfinished.
        line = "\n" + json.dumps({"out": self._key(job), **asdict(record)})
        with self._lock:
            try:
                make_folder(self.out)
                self._refuse_link()
                # The flags are for what somebody puts there in this very moment: a link, a pipe that nobody reads.
                safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
                file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | safe, 0o666)
                try:
                    os.write(file, line.encode())
                finally:
                    os.close(file)
            except OSError as error:
                raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
            self._records.setdefault(self._key(job), []).append(record)
