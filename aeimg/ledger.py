"""What a run over files remembers of each of them, in few bytes: there may be millions.

Split      a field that is a place: it holds the folder, which the files in it share, and the name
Results    a sequence of dictionaries, which holds the values of each in one piece, and their keys once
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

from .urls import Url


class Split:
    """A field of a frozen dataclass that is a path or a `Url`, of which `_NAME_folder` and `_NAME_name` hold the parts.

    A `Path` takes about 400 bytes, and its name alone about 80. So the field makes a new `Path` each time that it is
    read.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.folder, self.name = f"_{name}_folder", f"_{name}_name"
        self._url: Url | None = None  # the last folder: files that follow one another mostly share it

    def __get__(self, one: object, owner: type | None = None) -> Path | Url:
        if one is None:  # the dataclass asks for a default, which there is none of
            raise AttributeError(self.name)
        folder, name = getattr(one, self.folder), getattr(one, self.name)
        if not isinstance(folder, Url):
            return Path(folder, name)
        if name is None:
            return folder
        name, status = name if isinstance(name, tuple) else (name, None)
        return Url(folder.store, f"{folder.place}/{name}", status)

    def __set__(self, one: object, place: Path | Url) -> None:
        folder, name = self._parts_of_url(place) if isinstance(place, Url) else os.path.split(place)
        object.__setattr__(one, self.folder, sys.intern(folder) if isinstance(folder, str) else folder)
        object.__setattr__(one, self.name, name)

    def _parts_of_url(self, url: Url) -> tuple[Url, Any]:
        """Returns the folder of a URL, and its name with what is known of the file; the URL and None, where it lies in
        no folder."""
        above, slash, name = url.place.rpartition("/")
        if not slash:
            return url, None
        folder = self._url
        if folder is None or folder.place != above or folder.store is not url.store:
            self._url = folder = Url(url.store, above)
        return folder, name if url.status is None else (name, url.status)


class Compact:
    """A frozen dataclass with `Split` fields, which can be copied and sent to other processes."""

    __slots__ = ()

    def __setstate__(self, state: Iterable[dict[str, Any] | None]) -> None:
        for some in state:
            for name, value in (some or {}).items():
                object.__setattr__(self, name, value)


class Planned(Protocol):
    """What `Results` has to know of a job."""

    @property
    def source(self) -> Path | Url:
        """The input."""
        ...

    @property
    def target(self) -> Path | Url:
        """The output."""
        ...


class Results(Sequence[dict[str, Any]]):
    """Records of files, each a dictionary that is made anew when it is read. `list(results)` makes all of them.

    The records of jobs hold `input` and `output`, their names, and `status`. Records are equal to any sequence of equal
    dictionaries.
    """

    def __init__(self, records: Iterable[dict[str, Any]] = ()) -> None:
        self._jobs: list[Planned | None] = []
        self._packed: list[bytes] = []
        self._kinds: list[tuple[str, ...]] = []
        self._numbers: dict[tuple[str, ...], int] = {}
        self._same: dict[bytes, bytes] = {}
        for record in records:
            self.append(record)

    def append(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self._enter(None, record)

    def note(self, job: Planned, status: str, about: dict[str, Any]) -> None:
        """Adds what became of a job."""
        self._enter(job, {"status": status, **about})

    def _enter(self, job: Planned | None, record: dict[str, Any]) -> None:
        keys = tuple(record)
        if (number := self._numbers.setdefault(keys, len(self._kinds))) == len(self._kinds):
            self._kinds.append(keys)
        packed = pickle.dumps((number, *record.values()), pickle.HIGHEST_PROTOCOL)
        if len(record) == 1:  # most records of a second run say that a file was skipped, and no more
            packed = self._same.setdefault(packed, packed)
        self._jobs.append(job)
        self._packed.append(packed)

    def arrange(self, jobs: Iterable[Planned]) -> None:
        """Sorts the records into the order of the jobs; those of others follow."""
        order: dict[Planned | None, int] = {job: number for number, job in enumerate(jobs)}
        places = sorted(range(len(self)), key=lambda place: order.get(self._jobs[place], len(order)))
        self._jobs = [self._jobs[place] for place in places]
        self._packed = [self._packed[place] for place in places]

    def _record(self, place: int) -> dict[str, Any]:
        job, (number, *values) = self._jobs[place], pickle.loads(self._packed[place])
        record = dict(zip(self._kinds[number], values, strict=True))
        return record if job is None else {"input": str(job.source), "output": str(job.target), **record}

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(place, slice):
            return [self._record(one) for one in range(len(self))[place]]
        return self._record(range(len(self))[place])

    def __len__(self) -> int:
        return len(self._jobs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(dict.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Results, (list(self),)
