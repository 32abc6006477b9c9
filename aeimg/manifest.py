"""What lies in an output folder, and what it was made of: so that a second run knows what is still right.

A hidden file in the folder, `.aeimg-manifest.jsonl`, holds one line of JSON for each result, appended before the result
gets its final name: which input (size, times of change, hash), by which recipe (task, models, options), which output
(size, hash). Whatever instant a run is killed at, a file is therefore known for what it is, or is not there. Lines that
were cut off, or are not understood, are passed over; the last line about a file counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from .errors import OutputError
from .paths import Job

NAME = ".aeimg-manifest.jsonl"


def digest(data: bytes) -> str:
    """What tells one content from another: 16 bytes of BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Record:
    """How a result came to be."""

    recipe: str
    """Equal for equal task, models and options."""
    size: int
    """Of the input: its bytes, its time of change in nanoseconds, its digest."""
    changed: int
    source: str
    bytes: int
    """Of the output: its bytes, its digest."""
    result: str
    touched: int | None = None
    """When the file system last changed the input in any way, in nanoseconds: unlike `changed` nobody can set it, so it
    tells of an input exchanged for one of equal size and time. None in records of earlier versions."""


class State(Enum):
    """What is found under a job's final name."""

    MISSING = "missing"
    CURRENT = "current"
    """What this recipe would make of this input."""
    STALE = "stale"
    """A result of aeimg, by another recipe or of an input that has changed since."""
    FOREIGN = "foreign"
    """Not of aeimg, or changed since: nothing to overwrite unasked."""


class Manifest:
    """The records of one output folder. May be read and added to from several threads, and by several runs at once."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.path = self.out / NAME
        self._lock = threading.Lock()
        self._records: dict[str, list[Record]] = {}
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise OutputError(f"{self.path}: can't be read ({error.strerror})") from error
        for line in lines:
            try:
                entry = json.loads(line)
                self._records.setdefault(entry.pop("out"), []).append(Record(**entry))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def _key(self, job: Job) -> str:
        return job.target.relative_to(self.out).as_posix()

    def state(self, job: Job, recipe: str, *, renew: bool = False) -> State:
        """What is there for `job`, decided by sizes and times; contents are read only where those leave it open.

        With `renew`, times that have changed though the content has not (a copy, a move, a `touch`) are entered, so
        that the next run need not read it again.
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
                if last.changed == source.st_mtime_ns and last.touched in (None, source.st_ctime_ns):
                    return State.CURRENT
                if last.source == digest(job.source.read_bytes()):
                    with contextlib.suppress(OutputError):  # a folder that only is looked at may be read-only
                        if renew:
                            self.add(job, replace(last, changed=source.st_mtime_ns, touched=source.st_ctime_ns))
                    return State.CURRENT
        except OSError:
            pass  # reading it will tell what is wrong
        # It is about to be written over: not if someone has worked on it since, whatever its size.
        return State.STALE if self._made(job, ours) else State.FOREIGN

    @staticmethod
    def _made(job: Job, records: list[Record]) -> list[Record]:
        """Those of `records` whose result is what lies there, by its content."""
        try:
            found = digest(job.target.read_bytes())
        except OSError:
            return []
        return [record for record in records if record.result == found]

    def add(self, job: Job, record: Record) -> None:
        """Appends a record; `job`'s result may get its name after that. Raises `OutputError`."""
        # The line break in front ends whatever another run may have left unfinished.
        line = "\n" + json.dumps({"out": self._key(job), **asdict(record)})
        with self._lock:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                try:
                    os.write(file, line.encode())
                finally:
                    os.close(file)
            except OSError as error:
                raise OutputError(f"{self.path}: can't be written ({error.strerror})") from error
            self._records.setdefault(self._key(job), []).append(record)
