"""A result is known for what it is, whenever its run ended."""

from __future__ import annotations

import json
import os

import pytest

from aeimg import OutputError
from aeimg.engine import make_task
from aeimg.manifest import NAME, Manifest, Record, State, digest
from aeimg.paths import Job
from aeimg.tasks.options import parse


@pytest.fixture
def job(tmp_path):
    (tmp_path / "a.png").write_bytes(b"the input")
    (tmp_path / "out").mkdir()
    return Job(tmp_path / "a.png", tmp_path / "out" / "x" / "a.aei")


def record(job: Job, recipe: str, result: bytes) -> Record:
    data, status = job.source.read_bytes(), job.source.stat()
    source = (status.st_size, status.st_mtime_ns, digest(data))
    return Record(recipe, *source, len(result), digest(result), status.st_ctime_ns)


def make(job: Job, manifest: Manifest, recipe: str, result: bytes) -> None:
    manifest.add(job, record(job, recipe, result))
    job.target.parent.mkdir(exist_ok=True)
    job.target.write_bytes(result)


def opened(job: Job) -> Manifest:
    return Manifest(job.target.parents[1])


def test_a_result_is_current_until_recipe_input_or_output_change(job):
    assert opened(job).state(job, "r1") is State.MISSING
    make(job, opened(job), "r1", b"result")
    assert opened(job).state(job, "r1") is State.CURRENT
    assert opened(job).state(job, "r2") is State.STALE
    os.utime(job.source, ns=(1, 1))  # copied anew, the same content
    assert opened(job).state(job, "r1") is State.CURRENT
    job.source.write_bytes(b"the other")
    os.utime(job.source, ns=(2, 2))
    assert opened(job).state(job, "r1") is State.STALE
    job.source.write_bytes(b"longer than it was")
    assert opened(job).state(job, "r1") is State.STALE
    job.source.unlink()
    assert opened(job).state(job, "r1") is State.STALE


def test_an_input_exchanged_for_one_of_equal_size_and_time_is_noticed(job):
    make(job, opened(job), "r1", b"result")
    times = job.source.stat()
    other = job.source.with_name("other")
    other.write_bytes(b"the OTHER"[: times.st_size])
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(job.source)  # as `cp -p` or `mv` of a frame with a time of its own would
    assert opened(job).state(job, "r1") is State.STALE


def test_a_moved_or_copied_input_is_read_once_and_then_known_by_its_times(job, monkeypatch):
    make(job, opened(job), "r1", b"result")
    data, times = job.source.read_bytes(), job.source.stat()
    job.source.rename(job.source.with_name("away"))
    job.source.write_bytes(data)
    os.utime(job.source, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = (job.target.parents[1] / NAME).read_bytes()
    assert opened(job).state(job, "r1") is State.CURRENT
    assert (job.target.parents[1] / NAME).read_bytes() == before  # a dry run writes nothing
    assert opened(job).state(job, "r1", renew=True) is State.CURRENT
    monkeypatch.setattr("aeimg.manifest.digest", None)
    assert opened(job).state(job, "r1") is State.CURRENT


def test_records_of_earlier_versions_count(job):
    path = job.target.parents[1] / NAME
    make(job, opened(job), "r1", b"result")
    entry = json.loads(path.read_bytes().splitlines()[-1])
    del entry["ctime"]
    path.write_text(json.dumps(entry))
    assert opened(job).state(job, "r1") is State.CURRENT


def test_files_of_others_are_foreign(job):
    job.target.parent.mkdir()
    job.target.write_bytes(b"mine")
    assert opened(job).state(job, "r1") is State.FOREIGN
    make(job, opened(job), "r1", b"result")
    job.target.write_bytes(b"result, retouched")
    assert opened(job).state(job, "r1") is State.FOREIGN


def test_a_result_that_was_changed_is_not_overwritten_even_if_its_size_is_as_it_was(job):
    make(job, opened(job), "r1", b"result")
    job.target.write_bytes(b"mine!!")  # a retouched BMP is as large as it was
    assert opened(job).state(job, "r2") is State.FOREIGN
    job.source.write_bytes(b"longer than it was")
    assert opened(job).state(job, "r1") is State.FOREIGN


def test_an_input_that_can_not_be_read_is_left_to_the_run_to_report(job):
    make(job, opened(job), "r1", b"result")
    job.source.unlink()
    job.source.mkdir()  # as large as a folder is, and no more to be read than what permissions forbid
    manifest = opened(job)
    manifest.add(job, Record("r1", job.source.stat().st_size, 1, "", 6, digest(b"result")))
    assert manifest.state(job, "r1") is State.STALE


def test_killed_between_the_record_and_the_rename(job):
    manifest = opened(job)
    manifest.add(job, record(job, "r1", b"result"))
    assert opened(job).state(job, "r1") is State.MISSING
    make(job, manifest, "r1", b"result")
    manifest.add(job, record(job, "r2", b"RESULT"))  # of the same size, as of files without compression
    assert opened(job).state(job, "r1") is State.CURRENT
    assert opened(job).state(job, "r2") is State.STALE
    job.target.write_bytes(b"RESULT")
    assert opened(job).state(job, "r1") is State.STALE
    assert opened(job).state(job, "r2") is State.CURRENT


def test_lines_cut_off_or_not_understood_are_passed_over(job):
    path = job.target.parents[1] / NAME
    path.write_bytes(b'{"out": "x/a.aei", "recipe": "r1", "si')
    make(job, opened(job), "r1", b"result")
    with open(path, "ab") as file:
        file.write(b'\n[]\n{"out": "x/a.aei", "later": 1}\n\xff')
    assert opened(job).state(job, "r1") is State.CURRENT


def test_names_that_are_no_text_are_kept(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "a").write_bytes(b"input")
    name = os.fsdecode(b"\xff\n.aei")
    job = Job(tmp_path / "a", out / name)
    manifest = Manifest(out)
    manifest.add(job, record(job, "r", b"x"))
    job.target.write_bytes(b"x")
    assert Manifest(out).state(job, "r") is State.CURRENT


def test_a_manifest_that_can_not_be_written_is_an_error_with_its_name(job):
    (job.target.parents[1] / NAME).mkdir()
    with pytest.raises(OutputError, match=NAME):
        opened(job)


# -- what somebody else has put there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_manifest_that_is_a_link_is_neither_read_nor_written(job, tmp_path, there):
    victim = tmp_path / "victim"
    if there:
        victim.write_bytes(b"mine")
    path = job.target.parents[1] / NAME
    manifest = opened(job)
    path.symlink_to(victim)
    with pytest.raises(OutputError, match="is a symbolic link"):
        opened(job)
    with pytest.raises(OutputError, match="is a symbolic link"):
        make(job, manifest, "r1", b"result")
    assert victim.exists() == there
    assert not there or victim.read_bytes() == b"mine"


def test_a_manifest_that_is_a_pipe_is_an_error_and_no_wait(job):
    os.mkfifo(job.target.parents[1] / NAME)
    with pytest.raises(OutputError, match="is no regular file"):
        opened(job)


LINES = [
    b"[" * 50_000, b'{"a":' * 50_000, b"x" * 3_000_000, b"1", b'"x"', b"\0" * 100, b"{}", b'{"out": 1}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line[:10]))
def test_lines_that_are_no_record_are_passed_over(job, line):
    make(job, opened(job), "r1", b"result")
    path = job.target.parents[1] / NAME
    path.write_bytes(line + path.read_bytes() + b"\n" + line)
    assert opened(job).state(job, "r1") is State.CURRENT


@pytest.mark.parametrize(
    ("key", "value"),
    [("out", ["x"]), ("out", None), ("recipe", 1), ("recipe", ["r1"]), ("size", "9"), ("size", True), ("size", 9.0),
     ("mtime", []), ("source", {}), ("bytes", "6"), ("result", 3), ("result", ["x"]), ("ctime", "x"), ("ctime", 1.5)],
)  # fmt: skip
def test_records_with_values_of_a_wrong_kind_are_none(job, key, value):
    make(job, opened(job), "r1", b"result")
    path = job.target.parents[1] / NAME
    entry = json.loads(path.read_bytes().splitlines()[-1])
    path.write_text(json.dumps({**entry, key: value}))
    assert opened(job).state(job, "r1") is State.FOREIGN


@pytest.mark.parametrize(
    ("task", "whole", "fraction"),
    [("denoise", {"strength": 0}, {"strength": 0.0}), ("denoise", {"strength": 1}, {"strength": 1.0}),
     ("denoise", {"sigma": 25}, {"sigma": "25"}), ("compress", {"target_bpp": 1}, {"target_bpp": 1.0}),
     ("compress", {"target_psnr": 30}, {"target_psnr": 30.0})],
)  # fmt: skip
def test_equal_numbers_are_one_recipe(task, whole, fraction):
    def recipe(options):
        return make_task(task, None, "cpu", "fp32", parse(task, options)[0]).recipe()

    assert recipe(whole) == recipe(fraction)
