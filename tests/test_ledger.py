"""What a run remembers in few bytes comes back as it was."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from aeimg.ledger import Results
from aeimg.manifest import Record, _Records
from aeimg.page_runs import PartJob
from aeimg.paths import Found, Job, located
from aeimg.urls import Status, Url

NAMES = [
    "a.png",
    "/a.png",
    "in/b/a.png",
    ".",
    "/",
    "..",
    "../a",
    "//net/a",
    "in/" + b"\xff\n".decode(errors="surrogateescape"),
]


def url(name: str, status: Status | None = None) -> Url:
    place = located(name)
    return Url(place.store, place.place, status)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_comes_back_as_it_was(name):
    job = Job(Path(name), Path("out", "a.aei"))
    assert (job.source, str(job.source), job.target) == (Path(name), str(Path(name)), Path("out/a.aei"))
    assert Found(Path("in/a.png"), Path("in")).relative == Path("a.png")


@pytest.mark.parametrize("name", ["memory://in/b/a.png", "memory://a.png", "memory://", "memory://in/a?x=1"])
@pytest.mark.parametrize("status", [None, Status(5, 7, "tag")])
def test_a_url_comes_back_with_its_status(name, status):
    one = url(name, status)
    jobs = [Job(one, one) for _ in range(2)]
    other = Job(url("memory://other/a.png"), one)
    for job in jobs:
        assert (job.source, job.source.__fspath__(), job.source.status) == (one, one.__fspath__(), status)
    assert other.source == url("memory://other/a.png") != other.target


def test_jobs_can_be_compared_copied_and_sent():
    job, part = Job(Path("a/b"), Path("c/d")), PartJob(Path("a/b"), Path("c/d"), number=3)
    for one in (job, part):
        for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), replace(one)):
            assert again == one and hash(again) == hash(one) and again.target == Path("c/d")
    assert replace(part, source=Path("e/f")).source == Path("e/f") and part.number == 3
    assert job != Job(Path("a/b"), Path("c/e")) and len({job, Job(Path("a/b"), Path("c/d"))}) == 1


def test_records_come_back_as_dictionaries_in_the_order_of_jobs():
    jobs = [Job(Path(f"in/{name}.png"), Path(f"out/{name}.aei")) for name in "abc"]
    results = Results()
    wanted = {}
    abouts = ({"bpp": 0.5, "warnings": ["x"], "psnr": None}, {}, {"error": "why"})
    for job, status, about in zip(reversed(jobs), ("done", "skipped", "failed"), abouts, strict=True):
        results.note(job, status, about)
        wanted[job] = {"input": str(job.source), "output": str(job.target), "status": status, **about}
    results.append({"input": "x", "status": "failed"})
    assert results == [*(wanted[job] for job in reversed(jobs)), {"input": "x", "status": "failed"}]
    results.arrange(jobs)
    assert list(results) == [*(wanted[job] for job in jobs), {"input": "x", "status": "failed"}]
    assert (len(results), results[-1], results[1:2]) == (4, {"input": "x", "status": "failed"}, [wanted[jobs[1]]])
    assert list(results[0]) == ["input", "output", "status", "error"]
    with pytest.raises(IndexError):
        results[4]
    for again in (copy.deepcopy(results), pickle.loads(pickle.dumps(results))):
        assert again == results and again is not results
    assert results != list(results)[:3] and results != Results(reversed(results)) and not Results()


RECORD = Record("r", 10, 20, "0f" * 16, 30, "f0" * 16, 40, None)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ctime": None}, {"version": "etag"}, {"version": ""}, {"size": -1}, {"size": 1 << 70}, {"mtime": -5},
     {"source": ""}, {"source": "0F" * 16}, {"result": "0f"}, {"source": "0f " * 16}, {"ctime": -(1 << 63)},
     {"version": "\ud800"}, {"recipe": ""}],
    ids=str,
)  # fmt: skip
def test_every_record_of_a_manifest_comes_back(changes):
    records, record = _Records(), replace(RECORD, **changes)
    records.add("x", RECORD)
    records.add("y", record)
    records.add("x", record)
    assert records.of("x") == [RECORD, record]
    assert (records.of("y"), records.of("z")) == ([record], [])
