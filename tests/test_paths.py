"""Inputs are found, outputs never collide, and a file under its final name is whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeimg import OutputError, UsageError, paths

NAME = st.builds(
    lambda stem, suffix: stem + suffix,
    st.text("abAB-.2", min_size=1, max_size=5).filter(lambda s: s.strip(".")),
    st.sampled_from([".png", ".jpg", ".JPG", ".aei", ".png.jpg"]),
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_are_found_recursively_without_hidden_files_links_and_others(tmp_path):
    touch(tmp_path, "b.png", "a/c.JPG", "a/._c.jpg", ".hidden/d.png", "notes.txt")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = [str(p.relative_to(tmp_path)) for p in paths.find_images(tmp_path)]
    assert found == ["a/c.JPG", "b.png"]


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        paths.find_images(tmp_path / "nowhere")


def test_the_tree_is_kept_and_a_lone_name_is_short(tmp_path):
    touch(tmp_path, "in/x/a.png")
    (job,) = paths.plan(tmp_path / "in", [tmp_path / "in/x/a.png"], tmp_path / "out", lambda _: ".aei")
    assert job.target == tmp_path / "out/x/a.aei"


def test_two_formats_of_one_name_both_keep_their_suffix(tmp_path):
    touch(tmp_path, "a.jpg", "a.png", "b.png")
    jobs = paths.plan(tmp_path, paths.find_images(tmp_path), tmp_path / "out", lambda _: ".aei")
    assert [job.target.name for job in jobs] == ["a.jpg.aei", "a.png.aei", "b.aei"]


def test_an_output_on_an_input_is_refused(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="would overwrite an input"):
        paths.plan(tmp_path, paths.find_images(tmp_path), tmp_path, lambda p: p.suffix)


@given(st.sets(NAME, max_size=12), st.sampled_from([".aei", ".png", None]))
def test_any_set_of_names_gives_distinct_names_inside_the_output_folder(names, suffix):
    base, out = Path("/nowhere/in"), Path("/nowhere/out")
    files = [base / name for name in sorted(names)]
    # `plan` treats a source that is no folder as a file of its parent
    jobs = paths.plan(base / "x", files, out, lambda p: suffix or p.suffix)
    targets = [str(job.target) for job in jobs]
    assert len(jobs) == len(files)
    assert len({t.casefold() for t in targets}) == len(targets)
    assert all(os.path.normpath(t).startswith("/nowhere/out/") for t in targets)


def test_a_failed_write_leaves_nothing_under_either_name(tmp_path, monkeypatch):
    target = tmp_path / "out" / "a.bin"
    paths.write_atomic(target, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"a\.bin: can't be written \(No space left"):
        paths.write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]
