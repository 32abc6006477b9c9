"""Shards share the work, each file is done once, and the sum of what they did is known."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import aeimg
from aeimg import UsageError, shards
from aeimg.cli import main
from aeimg.distributed import merge_reports
from aeimg.engine import Interrupted
from aeimg.shards import Shard, parse


@pytest.fixture
def folder(tmp_path, png):
    for number in range(20):
        path = tmp_path / "in" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((12, 12), number, np.uint8)))
    return tmp_path / "in"


def run(folder, out, shard=None, **options) -> aeimg.Summary:
    return aeimg.process(folder, "denoise", out=out, strength=0.0, shard=shard, **options)


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), unique=True),
       st.integers(1, 40))  # fmt: skip
def test_each_file_is_in_exactly_one_shard(names, count):
    for name in names:
        assert sum(Shard(index, count).takes(Path(name)) for index in range(1, count + 1)) == 1


@pytest.mark.parametrize("name", ["img_{:06}.jpg", "2024/{}/DSC{:05}.JPG", "{:x}.png", "scan ({}).tif"])
def test_shards_are_even_within_ten_percent_at_a_thousand_files_each(name):
    shares = []
    for count in (2, 4, 16):
        taken = dict.fromkeys(range(1, count + 1), 0)
        for number in range(1000 * count):
            path = Path(name.format(number, number))
            taken[next(index for index in taken if Shard(index, count).takes(path))] += 1
        shares += [files / 1000 for files in taken.values()]
    # A hash spreads files as dice do: a standard deviation is 3.2 percent of 1,000, and 1 of 600 is beyond 10 percent.
    assert sum(abs(share - 1) > 0.10 for share in shares) <= 1
    assert max(abs(share - 1) for share in shares) < 0.13


def test_the_hash_never_changes():
    assert [str(path) for path in map(Path, "abcdefgh") if Shard(1, 4).takes(path)] == ["g", "h"]
    assert Shard(2, 5).takes(Path("e\u0301.png")) == Shard(2, 5).takes(Path("\u00e9.png"))


@pytest.mark.parametrize(
    ("environment", "shard"),
    [({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_MIN": "0"}, "1/16"),
     ({"SLURM_ARRAY_TASK_ID": "16", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_ARRAY_TASK_MIN": "1",
       "SLURM_ARRAY_TASK_MAX": "16"}, "16/16"),
     ({"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "10",
       "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_MAX": "14"}, "3/3"),
     ({"JOB_COMPLETION_INDEX": "2", "AEIMG_SHARDS": "8"}, "3/8")],
)  # fmt: skip
def test_auto_reads_slurm_and_kubernetes(environment, shard):
    assert str(parse("auto", environment)) == shard


@pytest.mark.parametrize(
    ("text", "environment", "why"),
    [("0/4", {}, "1..4"), ("5/4", {}, "1..4"), ("x", {}, "like 3/16"), ("1/0", {}, "1..0"), ("auto", {}, "neither"),
     ("auto", {"JOB_COMPLETION_INDEX": "1"}, "AEIMG_SHARDS"),
     ("auto", {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "2"}, "must be a number"),
     ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1",
               "SLURM_ARRAY_TASK_MAX": "7"}, "not evenly spaced")],
)  # fmt: skip
def test_what_is_no_shard_is_refused(text, environment, why):
    with pytest.raises(UsageError, match=why):
        parse(text, environment)


def test_shards_do_all_files_once_and_another_number_of_shards_redoes_nothing(folder, tmp_path, png):
    out = tmp_path / "out"
    summaries = [run(folder, out, f"{index}/3") for index in (1, 2, 3)]
    assert sum(summary.done for summary in summaries) == 20
    assert all(summary.done + summary.elsewhere == 20 for summary in summaries)
    assert len(list(out.rglob("*.png"))) == 20
    assert sorted(path.name for path in out.glob(".aeimg-manifest*")) == [
        f".aeimg-manifest-{index}-of-3.jsonl" for index in (1, 2, 3)
    ]
    (folder / "new.png").write_bytes(png(np.zeros((12, 12), np.uint8)))
    again = [run(folder, out, f"{index}/2") for index in (1, 2)]
    assert sum(summary.done for summary in again) == 1
    assert sum(summary.skipped for summary in again) == 20
    whole = run(folder, out)
    assert (whole.done, whole.skipped, whole.elsewhere) == (0, 21, 0)


def test_no_file_is_left_out_where_shards_list_different_files(folder, tmp_path, png):
    out, done = tmp_path / "out", 0
    for index in (1, 2, 3, 4):  # before each, files have come: shares cut from one sorted list would have moved
        for number in range(5):
            (folder / f"{index}-{number}.png").write_bytes(png(np.zeros((12, 12), np.uint8)))
        done += run(folder, out, f"{index}/4").done
    assert 20 < done < 40
    assert sum(run(folder, out, f"{index}/4").done for index in (1, 2, 3, 4)) == 40 - done
    names = {path.relative_to(folder) for path in folder.rglob("*.png")}
    assert {path.relative_to(out) for path in out.rglob("*.png")} == names


def test_two_shards_are_even_within_ten_percent_at_a_thousand_files_in_all():
    for name in ("img_{:06}.jpg", "2024/{}/DSC{:05}.JPG", "{:x}.png"):
        taken = sum(Shard(1, 2).takes(Path(name.format(number, number))) for number in range(1000))
        assert abs(taken / 500 - 1) < 0.10


def test_reports_are_merged_into_one_summary_and_one_exit_code(folder, tmp_path):
    (folder / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    run(folder, out, "1/2")
    merged = merge_reports(out)
    assert [index for index, _ in merged.unfinished] == [2] and merged.exit_code == 1
    run(folder, out, "2/2")
    merged = merge_reports(out)
    assert (merged.summary.done, len(merged.summary.failed), merged.unfinished) == (20, 1, [])
    assert merged.exit_code == 1
    (folder / "bad.png").unlink()
    for index in (1, 2, 3):
        run(folder, out, f"{index}/3")
    done = CliRunner().invoke(main, ["merge-reports", str(out), "--json", str(tmp_path / "sum.json")])
    assert done.exit_code == 0, done.output
    assert "as all 20 results are there already" in done.output
    assert json.loads((tmp_path / "sum.json").read_bytes())["shards"] == {"count": 3, "unfinished": []}


def test_one_page_is_of_all_shards(folder, tmp_path, monkeypatch):
    (folder / "bad.png").write_bytes(b"no picture")
    out, page = tmp_path / "out", tmp_path / "page.html"
    for index in (1, 2):
        run(folder, out, f"{index}/2")
    done = CliRunner().invoke(main, ["merge-reports", str(out), "--report", str(page)])
    text = page.read_text()
    assert done.exit_code == 1 and "bad.png" in text and "of 2 shards" in text
    assert all(f"{number}.png" in text for number in range(20)) and "The table and its figures" not in text
    monkeypatch.setattr("aeimg.shards.RECORDED", 3)
    for index in (2, 3, 4):
        run(folder, out, f"{index}/4")
    merged = merge_reports(out, report=page)
    assert len(merged.records) == 10 and len(merged.summary.files) == 1
    text = page.read_text()
    assert "Shard 1 has left no record" in text and "are of 10 of " in text and "bad.png" in text
    other = tmp_path / "mine.html"
    other.write_text("mine")
    for name, why in ((other, "was not written by an earlier run"), (tmp_path / "page.txt", "end in .html")):
        with pytest.raises(UsageError, match=why):
            merge_reports(out, report=name)
    assert other.read_text() == "mine"


def test_a_shard_that_was_killed_or_interrupted_is_named(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(folder, out, "1/1")
    (record,) = shards.read_records(out)
    shards.write_record(out, Shard(1, 1), {**record, "state": "running"})
    assert "killed" in merge_reports(out).unfinished[0][1]
    monkeypatch.setattr("aeimg.paths.write_atomic", interrupted(aeimg.paths.write_atomic))
    with pytest.raises(Interrupted):
        run(folder, out, "1/1", if_exists="overwrite")
    merged = merge_reports(out)
    assert merged.unfinished == [(1, "was interrupted")] and merged.exit_code == 1
    assert merged.summary.planned > 0


def interrupted(write):
    def stop(target, data):
        if target.suffix == ".png":
            raise KeyboardInterrupt
        write(target, data)

    return stop


def test_a_folder_without_records_is_no_run_of_shards(tmp_path):
    with pytest.raises(UsageError, match="holds no records"):
        merge_reports(tmp_path)
    with pytest.raises(UsageError, match="holds no records"):
        merge_reports(tmp_path / "none")


def test_a_share_without_files_is_no_failure(tmp_path, png):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(np.zeros((12, 12), np.uint8)))
    for index in (1, 2):
        options = ["--strength", "0", "--shard", f"{index}/2"]
        done = CliRunner().invoke(main, ["denoise", str(tmp_path / "in"), str(tmp_path / "out"), *options])
        assert done.exit_code == 0, done.output
    with pytest.raises(UsageError, match="for folders"):
        run(tmp_path / "in" / "a.png", tmp_path / "b.png", "1/2")


def test_shards_work_at_urls(folder):
    files = fsspec.filesystem("memory")
    files.store.clear()
    assert sum(run(folder, "memory://shards", f"{index}/3").done for index in (1, 2, 3)) == 20
    assert sum(run(folder, "memory://shards", f"{index}/2").done for index in (1, 2)) == 0
    merged = merge_reports("memory://shards")
    assert (merged.count, merged.summary.skipped, merged.exit_code) == (2, 20, 0)
