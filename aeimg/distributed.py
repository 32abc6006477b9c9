"""What several shards of one run have done, as one.

Each machine runs `aeimg ... --shard I/N` with the same folders. `merge_reports` then reads what the shards have left in
the output folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .engine import Summary
from .errors import OutputError, UsageError
from .paths import is_folder, located
from .shards import read_records


@dataclass
class Merged:
    """What the shards of one run have done."""

    summary: Summary
    """The sum of theirs; `seconds` is the time of the slowest; `files` holds only what failed or has warnings."""
    task: str
    """The name of the task."""
    count: int
    """How many shards there are."""
    unfinished: list[tuple[int, str]] = field(default_factory=list)
    """Each shard that has not ended, and what is known of it."""

    @property
    def exit_code(self) -> int:
        """0 where every shard has ended, no file failed and there were any; otherwise 1."""
        return int(bool(self.unfinished or self.summary.failed or self.summary.planned or not self._files))

    @property
    def _files(self) -> int:
        return self.summary.done + self.summary.skipped


def merge_reports(out: str | os.PathLike[str]) -> Merged:
    """Returns what the shards have done whose results lie in the folder `out`, or at its URL.

    Where there are records of runs with different numbers of shards, those of the latest one count. Raises `UsageError`
    where there are none, `OutputError` where one can't be read.
    """
    folder = located(out)
    records = read_records(folder) if is_folder(folder) else []
    if not records:
        raise UsageError(f"{folder}: holds no records of shards; `--shard I/N` leaves them in the output folder")
    count = max(records, key=lambda record: record["at"])["shard"][1]
    records = [record for record in records if record["shard"][1] == count]
    merged = Merged(Summary(), str(records[0].get("task")), count)
    known = {record["shard"][0]: record for record in records}
    for index in range(1, count + 1):
        record = known.get(index)
        if record is None:
            merged.unfinished.append((index, "has left no record: it has not begun"))
            continue
        if record["state"] != "ended":
            merged.unfinished.append((index, STATES.get(record["state"], record["state"])))
        try:
            _add(merged.summary, record.get("summary", {}))
        except (TypeError, ValueError, AttributeError) as error:
            raise OutputError(f"{folder}: the record of shard {index} of {count} is damaged ({error})") from error
    return merged


STATES = {
    "running": "is running, or was killed",
    "interrupted": "was interrupted",
    "failed": "has stopped with an error",
}
"""What to say of a shard that has not ended."""


def _add(total: Summary, one: dict[str, Any]) -> None:
    """Adds what one shard did."""
    for key in ("done", "skipped", "planned", "pixels", "bytes_in", "bytes_out", "missed"):
        setattr(total, key, getattr(total, key) + int(one.get(key, 0)))
    total.seconds = max(total.seconds, float(one.get("seconds", 0)))
    # Each shard has seen all files that are passed over.
    for kind, number in one.get("passed_over", {}).items():
        total.passed_over[kind] = max(total.passed_over.get(kind, 0), int(number))
    files = list(one.get("files", ()))
    total.files += files
    total.failed += [(located(record["input"]), record["error"]) for record in files if record["status"] == "failed"]
