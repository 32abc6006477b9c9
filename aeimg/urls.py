"""Files at URLs, by fsspec: their names, listing, reading, writing.

`paths` decides by its name whether a file is local or at a URL, and is the door to both.
A URL is what fsspec takes: `s3://bucket/in/`, `memory://in`, `zip://in::s3://bucket/all.zip`. fsspec is imported when
the first of them is named. What goes wrong in a store is raised as an `OSError`, whatever its library raises, and no
message and no record of a run holds the credentials that a URL may hold.
"""

from __future__ import annotations

import calendar
import contextlib
import errno
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UnreadableImage, UsageError

SCHEME = re.compile(r"(?:[A-Za-z][\w+.-]+::)*([A-Za-z][\w+.-]+)://")
"""How a URL begins. One letter before the colon is a drive of Windows."""
LOST_SLASH = re.compile(r"([A-Za-z][\w+.-]+):[/\\](?![/\\])")
"""How what was a URL begins once `pathlib` has taken it for a path."""
PUT_WHOLE = frozenset("s3 s3a gs gcs az abfs abfss adl oci oss obs cos memory".split())
"""The stores in which a file appears whole or not at all when it is written; in others it is renamed."""
READ_ONLY = frozenset("zip tar libarchive http https github git jupyter data reference".split())
"""The schemes at which fsspec writes nothing, or not so that a run of many threads could."""
EXTRAS = {"s3": "'aeimg[s3]'", "s3a": "'aeimg[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
          "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko",
          "hf": "huggingface_hub"}  # fmt: skip
"""Scheme -> what `pip install` must be given for it, where fsspec alone does not know it."""
BLOCK = 1 << 16
"""How many bytes are fetched at least: enough for the header of nearly every image."""
TOGETHER = 256
"""How many small files are fetched at once."""
MTIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created", "date_time")
"""What the stores call the time at which a file was last changed."""
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "CRC", "checksum", "generation")
"""What the stores call that which changes with the content of a file."""


def redacted(text: str) -> str:
    """Returns text with the credentials left out that URLs in it may hold: users, passwords and queries."""
    text = re.sub(r"(://)[^/@\s]*@", r"\1***@", text)
    return re.sub(r"(://[^\s?:]*(?::\d+)?[^\s?:]*\?)[^\s:]+", r"\1***", text)


@dataclass(frozen=True, slots=True)
class Status:
    """What a store says of a file."""

    size: int
    """Its size, in bytes; -1 where the store does not know it."""
    mtime: int
    """When it was last changed, in nanoseconds; 0 where the store does not know it."""
    version: str | None
    """What changes with its content, such as the ETag of S3; None where the store knows no such thing."""


@dataclass(frozen=True)
class Store:
    """What fsspec knows, and what stands before and behind a place there in a URL."""

    files: Any
    """The `fsspec.AbstractFileSystem`."""
    before: str
    """The beginning of the URL, which may hold credentials."""
    behind: str
    """Its end, such as `::s3://bucket/all.zip`."""

    @property
    def scheme(self) -> str:
        """The name of the kind of store."""
        found = SCHEME.match(self.before + "//")
        return "" if found is None else found[1]


class Url:
    """A file or folder at a URL: what `pathlib.Path` is for local ones, as far as aeimg needs it.

    `str()` gives its name without credentials, for people; `os.fspath()` the URL, for programs.
    """

    __slots__ = ("place", "status", "store")

    def __init__(self, store: Store, place: str, status: Status | None = None) -> None:
        self.store, self.place, self.status = store, place, status

    def __fspath__(self) -> str:
        return f"{self.store.before}{self.place}{self.store.behind}"

    def __str__(self) -> str:
        return redacted(self.__fspath__())

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self.place == other.place and self.store.files == other.store.files

    def __hash__(self) -> int:
        return hash(self.place)

    def __truediv__(self, below: str | os.PathLike[str]) -> Url:
        more = Path(below).as_posix()
        return self if more == "." else Url(self.store, f"{self.place}/{more}" if self.place else more)

    @property
    def name(self) -> str:
        """The last part of the place, without a query."""
        last = self.place.rpartition("/")[2]
        return last.partition("?")[0] if self.place.startswith("http") else last

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return os.path.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return os.path.splitext(self.name)[0]

    @property
    def parent(self) -> Url:
        """The folder that it lies in."""
        return Url(self.store, self.place.rpartition("/")[0])

    def with_name(self, name: str) -> Url:
        """Returns what lies beside it under that name."""
        return self.parent / name

    def relative_to(self, base: Url) -> Path:
        """Returns the path below `base`. What would lead out of a folder of this machine becomes `_`."""
        below = self.place[len(base.place) :].lstrip("/") if base.place else self.place.lstrip("/")
        parts = [*below.split("/")[:-1], self.name]
        if os.name == "nt":
            parts = [re.sub(r'[\\:*?"<>|]', "_", part) for part in parts]
        return Path(*("_" if part in ("", ".", "..") else part.replace("\0", "_") for part in parts))

    def as_posix(self) -> str:
        """Returns the name without credentials."""
        return str(self)

    def is_symlink(self) -> bool:
        """Returns False: stores have no links."""
        return False


def is_url(name: object) -> bool:
    """Returns whether a name is a URL, rather than that of a local file."""
    return isinstance(name, Url) or (isinstance(name, str) and SCHEME.match(name) is not None)


def parse(url: str) -> Url:
    """Returns what a URL names. Raises `UsageError` where its scheme is unknown, or a package for it is missing."""
    from fsspec.core import url_to_fs

    label = redacted(url)
    first, link, rest = url.partition("::")
    if SCHEME.match(first) is None:  # a cache, as in simplecache::s3://..., whose places are those of what it caches
        first = rest.partition("::")[0]
    try:
        try:
            # Lists of files are not kept: they would grow old, and would be as large as the store.
            files, place = url_to_fs(url, use_listings_cache=False)
        except TypeError:
            files, place = url_to_fs(url)
    except ImportError as error:
        found = SCHEME.match(first)
        extra = EXTRAS.get(found[1].lower() if found else "")
        hint = f"pip install {extra}" if extra else str(error)
        raise UsageError(f"{label}: a package for such URLs is missing: {hint}") from error
    except Exception as error:  # each kind of store has errors of its own
        reason = redacted(str(error))
        raise UsageError(f"{label}: no URL that can be used ({reason})") from None
    place = place.rstrip("/")
    behind = link + rest if SCHEME.match(url.partition("::")[0]) else ""
    before = url[: len(url) - len(behind)].rstrip("/") if place else url[: len(url) - len(behind)]
    if place and not before.endswith(place):
        before = SCHEME.match(before)[0] + place  # type: ignore[index]
    return Url(Store(files, before.removesuffix(place) if place else before, behind), place)


# -- asking --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_os_errors(url: Url) -> Iterator[None]:
    """Turns whatever a store's library raises into an `OSError` without credentials in it."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file") from None
    except PermissionError as error:
        raise PermissionError(errno.EACCES, redacted(f"permission denied: {error}")) from None
    except NotImplementedError:
        raise OSError(errno.EROFS, f"files of {url.store.scheme}:// can't be written or not be listed") from None
    except Exception as error:
        raise OSError(errno.EIO, redacted(f"{type(error).__name__}: {error}")) from None


def _status(about: dict[str, Any]) -> Status:
    when = next((about[key] for key in MTIMES if about.get(key)), 0)
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        when = round(when.timestamp() * 1e6) * 1000
    elif isinstance(when, tuple):  # of a zip file
        when = calendar.timegm((*when, 0, 0, 0)) * 10**9
    elif isinstance(when, int | float):
        when = int(when * 1e9)
    version = next((about[key] for key in VERSIONS if about.get(key) is not None), None)
    size = about.get("size")
    return Status(
        -1 if size is None else int(size),
        when if isinstance(when, int) else 0,
        None if version is None else str(version).strip('"'),
    )


def kind(url: Url) -> str | None:
    """Returns "file" or "directory"; None where nothing is there. Raises an `OSError` where the store can't say."""
    if url.status is not None:
        return "file"
    with _as_os_errors(url):
        try:
            about: dict[str, Any] = url.store.files.info(url.place)
        except FileNotFoundError:
            return None
    return "directory" if about.get("type") == "directory" else "file"


def status(url: Url, *, now: bool = False) -> Status:
    """Returns what the listing has said of a file or, `now`, what its store says. Raises an `OSError`."""
    if url.status is not None and not now:
        return url.status
    with _as_os_errors(url):
        return _status(url.store.files.info(url.place))


def entries(folder: Url) -> list[tuple[str, bool, Url]]:
    """Returns what lies in a folder, by name: the name, whether it is a folder, and itself. Raises an `OSError`."""
    with _as_os_errors(folder):
        listed = folder.store.files.ls(folder.place, detail=True)
    found = []
    for about in listed:
        place = about["name"].rstrip("/")
        if place == folder.place:  # a mark that stands for the folder itself
            continue
        is_folder = about.get("type") == "directory"
        one = Url(folder.store, place, None if is_folder else _status(about))
        found.append((one.name, is_folder, one))
    found.sort(key=lambda entry: entry[0])
    return found


def matches(pattern: Url) -> list[Url]:
    """Returns the files that fit a pattern, by name. Raises an `OSError`."""
    with _as_os_errors(pattern):
        found = pattern.store.files.glob(pattern.place, detail=True)
    return [
        Url(pattern.store, place, _status(about)) for place, about in sorted(found.items()) if about["type"] == "file"
    ]


# -- reading and writing -------------------------------------------------------------------------------------


class _Ranges(io.RawIOBase):
    """A file of known size that is fetched in ranges."""

    def __init__(self, url: Url, size: int) -> None:
        self.url, self.size, self.at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence], 0)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        end = min(self.at + len(buffer), self.size)
        if end <= self.at:
            return 0
        try:
            with _as_os_errors(self.url):
                data = self.url.store.files.cat_file(self.url.place, start=self.at, end=end)
        except OSError as error:
            raise UnreadableImage(f"{self.url}: can't be read ({error.strerror or error})") from error
        if len(data) > end - self.at:  # a server that knows no ranges sends everything
            data = data[self.at : end]
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = bytearray(max(self.size - self.at, 0))
        return bytes(data[: self.readinto(memoryview(data))])


def open_url(url: Url) -> BinaryIO:
    """Opens a file for reading; what is not read is not fetched. Raises an `OSError` here, and `UnreadableImage` where
    it is read."""
    size = status(url).size
    return io.BytesIO(read(url)) if size < 0 else io.BufferedReader(_Ranges(url, size), BLOCK)


def read(url: Url) -> bytes:
    """Returns the bytes of a file. Raises an `OSError`."""
    with _as_os_errors(url):
        data: bytes = url.store.files.cat_file(url.place)
    return data


def read_many(files: list[Url]) -> Iterator[tuple[Url, bytes]]:
    """Yields files of one store with their bytes, many fetched at once. Raises an `OSError`."""
    for start in range(0, len(files), TOGETHER):
        some = files[start : start + TOGETHER]
        with _as_os_errors(some[0]):
            data = some[0].store.files.cat([url.place for url in some])
        yield from ((url, data[url.place]) for url in some)


def write(url: Url, data: bytes, temporary: Url) -> None:
    """Writes a file: whole, or not at all. Where the store can't do that at once, it is `temporary` at first. Raises an
    `OSError`."""
    files = url.store.files
    if url.store.scheme in PUT_WHOLE:
        with _as_os_errors(url):
            files.pipe_file(url.place, data)
        return
    with _as_os_errors(url):
        try:
            files.makedirs(url.parent.place, exist_ok=True)
            files.pipe_file(temporary.place, data)
            files.mv(temporary.place, url.place)
        except BaseException:
            with contextlib.suppress(Exception):
                files.rm_file(temporary.place)
            raise


def remove(url: Url) -> None:
    """Removes a file. Raises an `OSError`."""
    with _as_os_errors(url):
        url.store.files.rm_file(url.place)


def age(url: Url) -> float:
    """Returns how many seconds ago a listed file was changed; 0 where that is not known."""
    return time.time() - url.status.mtime / 1e9 if url.status is not None and url.status.mtime else 0.0
