"""One run over several machines: which part of the files each of them takes, and what each leaves behind.

A shard is a share of the files, chosen by a hash of the path below the source: each machine lists all files, and takes
its own. No two shards take one file, together they take all, and another file changes nothing about the others. Shards
share nothing but the folders: each appends to a manifest of its own (see `manifest`), and leaves a record of its
summary, `.aeimg-shard-3-of-16.json`, which `distributed.merge_reports` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import paths, urls
from .errors import OutputError, UsageError
from .paths import Place
from .urls import Url

RECORDS = re.compile(r"\.aeimg-shard-(\d+)-of-(\d+)\.json")
"""The names of the records that shards leave in the output folder."""
MOST = 100_000
"""The largest number of shards."""


@dataclass(frozen=True)
class Shard:
    """A share of the files."""

    index: int
    """1 to `count`."""
    count: int
    """How many shards there are."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """The same for names of files: 3-of-16."""
        return f"{self.index}-of-{self.count}"

    def takes(self, relative: Path) -> bool:
        """Returns whether the file with that path below its source is in this shard.

        The hash is the first 8 bytes of BLAKE2b over the path in UTF-8 (NFC, `/` between folders), modulo `count`.
        """
        text = unicodedata.normalize("NFC", relative.as_posix()).encode("utf-8", "surrogateescape")
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        return number % self.count == self.index - 1


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Returns the shard that a text like "3/16" names; "auto" is that of a task of a Slurm array (SLURM_ARRAY_TASK_ID,
    _COUNT, _MIN, _STEP) or of an indexed job of Kubernetes (JOB_COMPLETION_INDEX, and AEIMG_SHARDS, their number).

    Raises `UsageError`.
    """
    if text == "auto":
        return _auto(environment)
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None:
        raise UsageError(f"shard {text!r}: must be like 3/16 (the third of sixteen), or auto")
    return _checked(int(found[1]), int(found[2]), f"shard {text!r}")


def _checked(index: int, count: int, what: str) -> Shard:
    if not 1 <= index <= count <= MOST:
        raise UsageError(f"{what}: the first number must lie in 1..{count}, the second in 1..{MOST}")
    return Shard(index, count)


def _auto(environment: Mapping[str, str]) -> Shard:
    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name, "" if default is None else str(default))
        if not text.isdecimal():
            raise UsageError(f"shard auto: {name} must be a number, not {text!r}")
        return int(text)

    if "SLURM_ARRAY_TASK_ID" in environment:
        task, count = number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_COUNT")
        first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1)
        last = number("SLURM_ARRAY_TASK_MAX", first + (count - 1) * step)
        if not step or (task - first) % step or last != first + (count - 1) * step:
            raise UsageError(
                f"shard auto: the task numbers of the array ({count} of {first} to {last}) are not evenly spaced; "
                "use one like --array=0-15, or name the shard"
            )
        return _checked((task - first) // step + 1, count, "shard auto, by SLURM_ARRAY_TASK_ID")
    if "JOB_COMPLETION_INDEX" in environment:
        if "AEIMG_SHARDS" not in environment:
            raise UsageError("shard auto: Kubernetes does not say how many shards there are; set AEIMG_SHARDS")
        return _checked(
            number("JOB_COMPLETION_INDEX") + 1, number("AEIMG_SHARDS"), "shard auto, by JOB_COMPLETION_INDEX"
        )
    raise UsageError(
        "shard auto: this is no task of a Slurm array and no indexed job of Kubernetes (there is neither "
        "SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX); name the shard, as in --shard 3/16"
    )


# -- records -------------------------------------------------------------------------------------------------


RECORDED = 2000
"""Of so many files at most, where nothing is wrong with them, a shard's record holds what became of them."""


def recorded(files: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns what the record of a shard holds of its files: those that failed or have warnings, and the first
    `RECORDED` of the others."""
    bad: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for one in files:
        if one["status"] == "failed" or "warnings" in one:
            bad.append(one)
        elif len(others) < RECORDED:
            others.append(one)
    return bad, others


def write_record(out: Place, shard: Shard, about: Mapping[str, Any]) -> None:
    """Writes what is to be known of a shard's run beside its results. Raises `OutputError`."""
    record = {"shard": [shard.index, shard.count], **about}
    paths.write_atomic(out / f".aeimg-shard-{shard.name}.json", json.dumps(record).encode())


def read_records(out: Place) -> list[dict[str, Any]]:
    """Returns the records in an output folder, by shard. Raises `OutputError` where one can't be read."""
    try:
        if isinstance(out, Url):
            found = [one for name, is_folder, one in urls.entries(out) if not is_folder and RECORDS.fullmatch(name)]
            data = {str(one): content for one, content in urls.read_many(found)}
        else:
            names = sorted(entry.name for entry in os.scandir(out) if RECORDS.fullmatch(entry.name))
            data = {str(out / name): (out / name).read_bytes() for name in names}
    except OSError as error:
        raise OutputError(f"{out}: can't be read ({error.strerror or error})") from error
    return sorted((_parsed(name, content) for name, content in data.items()), key=lambda record: record["shard"])


def _parsed(name: str, content: bytes) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(content)
        index, count = record["shard"]
        if not (1 <= index <= count and type(record["state"]) is str and type(record["at"]) is float):
            raise ValueError("it lacks what a record must hold")
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{name}: is damaged, or no record of a shard ({error}); remove it") from error
    return record
