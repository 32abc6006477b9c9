"""Inputs are found, outputs never collide, and a file under its final name is whole."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aeimg import OutputError, UsageError, paths

NAME = st.builds(
    lambda stem, repeat, suffix: stem * repeat + suffix,
    st.text("abAB-.2\u00e9\n\udcff", min_size=1, max_size=5).filter(lambda s: s.strip(".")),
    st.sampled_from([1, 1, 1, 25]),
    st.sampled_from([".png", ".jpg", ".JPG", ".aei", ".png.jpg"]),
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(found: list[paths.Found]) -> list[str]:
    return [one.relative.as_posix() for one in found]


def images(*sources, **selection) -> list[paths.Found]:
    return paths.find([str(s) for s in sources], paths.IMAGE_SUFFIXES, paths.Selection(**selection))


def aei(_: Path) -> str:
    return ".aei"


def test_images_are_found_recursively_without_hidden_files_links_and_others(tmp_path):
    touch(tmp_path, "b.png", "a/c.JPG", "a/._c.jpg", ".hidden/d.png", "notes.txt")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(images(tmp_path)) == ["a/c.JPG", "b.png"]


def test_links_are_followed_where_asked_for_but_not_in_circles(tmp_path):
    touch(tmp_path, "in/b.png", "elsewhere/d.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    assert names(images(tmp_path / "in", follow_symlinks=True)) == ["b.png", "link.png", "other/d.png"]


def test_patterns_take_and_leave_out_files_and_folders(tmp_path):
    touch(tmp_path, "a.png", "b.jpg", "thumbs/c.jpg", "x/d.jpg", "x/thumbs/e.jpg")
    assert names(images(tmp_path, include=["*.jpg"])) == ["b.jpg", "thumbs/c.jpg", "x/d.jpg", "x/thumbs/e.jpg"]
    assert names(images(tmp_path, exclude=["thumbs"])) == ["a.png", "b.jpg", "x/d.jpg"]
    assert names(images(tmp_path, include=["x/*"], exclude=["*/thumbs"])) == ["x/d.jpg"]


def test_an_output_folder_among_the_inputs_is_passed_over(tmp_path):
    touch(tmp_path, "a.png", "out/a.png")
    assert names(images(tmp_path, without=tmp_path / "out")) == ["a.png"]


def test_several_sources_give_each_file_once(tmp_path):
    touch(tmp_path, "a/x.png", "a/y.png", "notes")
    assert names(images(tmp_path / "a" / "y.png", tmp_path / "a", tmp_path / "notes")) == ["y.png", "x.png", "notes"]


def test_globs_keep_the_tree_below_what_they_fix(tmp_path):
    touch(tmp_path, "photos/a/x.jpg", "photos/b/c/x.jpg", "photos/b/x.txt")
    assert names(images(f"{tmp_path}/photos/**/*")) == ["a/x.jpg", "b/c/x.jpg"]
    with pytest.raises(UsageError, match="matches no file"):
        images(f"{tmp_path}/photos/*.gif")
    touch(tmp_path, "[1].jpg")  # a name, not a pattern
    assert names(images(tmp_path / "[1].jpg")) == ["[1].jpg"]


def test_globs_search_by_the_rules_for_folders(tmp_path):
    touch(tmp_path, "in/a.png", "in/raw/b.png", "in/out/c.png", "d.png")
    (tmp_path / "in" / "raw" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "d.png")
    everything = f"{tmp_path}/in/**/*.png"
    assert names(images(everything)) == ["a.png", "out/c.png", "raw/b.png"]
    assert names(images(everything, without=tmp_path / "in" / "out")) == ["a.png", "raw/b.png"]
    assert names(images(everything, exclude=["raw"])) == ["a.png", "out/c.png"]
    assert names(images(everything, follow_symlinks=True)) == ["a.png", "link.png", "out/c.png", "raw/b.png"]


def test_a_folder_that_can_not_be_listed_is_named_and_costs_only_what_is_in_it(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.png", "in/locked/b.png", "in/z/c.png")
    scandir = os.scandir

    def guarded(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert names(images(tmp_path / "in")) == ["a.png", "locked", "z/c.png"]
    with pytest.raises(UsageError, match="locked: can't be listed"):
        images(tmp_path / "in" / "locked")


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_names_files_and_folders_and_keeps_their_tree(tmp_path, separator):
    touch(tmp_path, "a/x.jpg", "a/b/x.jpg", "c/y.png")
    lines = [str(tmp_path / name) for name in ("a/x.jpg", "a/b/x.jpg", "c")]
    (tmp_path / "list.txt").write_text(separator.join([*lines, ""]))
    assert names(images(f"@{tmp_path}/list.txt")) == ["x.jpg", "b/x.jpg", "y.png"]
    with pytest.raises(UsageError, match="the list can't be read"):
        images(f"@{tmp_path}/nowhere.txt")


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        images(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"x.png: no such file or folder"):
        images(tmp_path / ("x" * 300 + ".png"))
    with pytest.raises(UsageError, match="empty name"):
        images("")


def targets(tmp_path, suffix=aei, template=paths.TEMPLATE) -> list[str]:
    jobs = paths.plan(images(tmp_path / "in"), tmp_path / "out", suffix, template)
    return [job.target.relative_to(tmp_path / "out").as_posix() for job in jobs]


def test_the_tree_is_kept_and_a_lone_name_is_short(tmp_path):
    touch(tmp_path, "in/x/a.png")
    assert targets(tmp_path) == ["x/a.aei"]


def test_two_formats_of_one_name_both_keep_their_suffix(tmp_path):
    touch(tmp_path, "in/a.jpg", "in/a.png", "in/b.png", "in/A.webp")
    assert targets(tmp_path) == ["A.webp.aei", "a.jpg.aei", "a.png.aei", "b.aei"]


def test_names_that_differ_in_the_composition_of_accents_only_are_told_apart(tmp_path):
    touch(tmp_path, "in/\u00e9.png", "in/e\u0301.png")
    assert len({unicodedata.normalize("NFC", name) for name in targets(tmp_path)}) == 2


def test_a_file_never_lies_where_a_folder_must(tmp_path):
    touch(tmp_path, "in/a.aei/b.png", "in/a.png")
    assert targets(tmp_path) == ["a.aei/b.aei", "a.png-2.aei"]


def test_a_template_names_the_outputs(tmp_path):
    touch(tmp_path, "in/a.jpg", "in/a.png")
    assert targets(tmp_path, template="{name}-small{suffix}") == ["a.jpg-small.aei", "a.png-small.aei"]
    assert targets(tmp_path, template="small-{stem}{suffix}") == ["small-a.jpg.aei", "small-a.png.aei"]


@pytest.mark.parametrize(
    "template",
    [
        "x/{stem}{suffix}",
        "{stem}",
        "all{suffix}",
        "{nothing}{suffix}",
        "{stem{suffix}",
        "{{stem}}{suffix}",
        "{stem[a]}{suffix}",
        "{stem[0]}{{name}}{suffix}",
        "{stem:.8}{suffix}",
        "{stem.x}{suffix}",
    ],
)
def test_a_template_that_can_not_work_is_refused(template):
    with pytest.raises(UsageError, match="name template"):
        paths.check_template(template)


def test_names_as_long_as_they_may_be_are_cut_and_stay_apart(tmp_path):
    long = "\u00e9" * 125
    touch(tmp_path, f"in/{long}a.png", f"in/{long}b.png", "in/" + "x" * 251 + ".png")
    found = targets(tmp_path)
    assert len(set(found)) == 3
    assert all(len(os.fsencode(name)) <= 255 and name.endswith(".aei") for name in found)
    assert all(name.encode("utf-8") for name in found)


def test_an_output_on_an_input_is_refused(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match="would overwrite an input"):
        paths.plan(images(tmp_path), tmp_path, lambda p: p.suffix)


@given(
    st.sets(st.tuples(st.sampled_from(["", "a.aei/", "a/"]), NAME), max_size=12),
    st.sampled_from([".aei", ".png", None]),
    st.sampled_from([paths.TEMPLATE, "{name}{suffix}", "x-{stem}{suffix}"]),
)
def test_any_set_of_names_gives_distinct_legal_names_inside_the_output_folder(chosen, suffix, template):
    base, out = Path("/nowhere/in"), Path("/nowhere/out")
    files = [paths.Found(base / (folder + name), base) for folder, name in sorted(chosen)]
    jobs = paths.plan(files, out, lambda p: suffix or p.suffix, template)
    keys = [unicodedata.normalize("NFC", str(job.target)).casefold() for job in jobs]
    assert [job.source for job in jobs] == [one.path for one in files]
    assert len(set(keys)) == len(keys)
    for job, key in zip(jobs, keys, strict=True):
        assert os.path.normpath(job.target).startswith("/nowhere/out/")
        assert len(os.fsencode(job.target.name)) <= 255
        assert job.target.name.endswith(suffix or job.source.suffix)
        assert not any(other.startswith(key + "/") for other in keys)


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


def test_parts_of_killed_runs_are_swept_away_and_those_of_others_are_not(tmp_path):
    touch(tmp_path, f".old{paths.PART}", f".new{paths.PART}", ".other", "a.png")
    os.utime(tmp_path / f".old{paths.PART}", (1, 1))
    os.utime(tmp_path / ".other", (1, 1))
    paths.sweep([tmp_path, tmp_path / "nowhere"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".new{paths.PART}", ".other", "a.png"]
