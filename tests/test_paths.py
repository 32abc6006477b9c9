"""Inputs are found, outputs never collide, and a file under its final name is whole."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aeimg
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


# -- one folder under two names, and folders without end ---------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path):
    """A folder, and another name for it that no link tells of: a bind mount."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    done = subprocess.run(["mount", "--bind", str(tmp_path / "a"), str(tmp_path / "b")], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path / "a", tmp_path / "b"
    subprocess.run(["umount", str(tmp_path / "b")], check=True)


@pytest.fixture
def two_names(tmp_path, monkeypatch):
    """The same, as far as names go: a link of which `realpath` knows nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize("names", ["mounted", "two_names"])
def test_a_folder_under_two_names_is_one_folder(names, request):
    a, b = request.getfixturevalue(names)
    (a / "x.png").write_bytes(b"input")
    (a / "in").mkdir()
    (a / "in" / "y.png").write_bytes(b"input")
    with pytest.raises(UsageError, match="would overwrite an input"):
        paths.plan(paths.find([a], [".png"]), b, lambda path: ".png")
    assert len(paths.plan(paths.find([a], [".png"]), b, lambda path: ".aei")) == 2
    found = paths.find([a], [".png"], paths.Selection(without=b / "in"))
    assert [one.path.name for one in found] == ["x.png"]
    for source, out in ((a, b), (a / "x.png", b / "x.png")):
        with pytest.raises(UsageError, match="one folder|would overwrite"):
            aeimg.process(source, "denoise", out=out)
    assert (a / "x.png").read_bytes() == b"input"


def test_a_name_in_another_case_is_the_input_where_the_file_system_says_so(tmp_path):
    (tmp_path / "x.png").write_bytes(b"input")
    os.link(tmp_path / "x.png", tmp_path / "X.PNG")  # as such a file system shows it
    found = paths.find([tmp_path / "x.png"], [".png"])
    with pytest.raises(UsageError, match="would overwrite an input"):
        paths.plan(found, tmp_path, lambda path: ".PNG", stem=lambda path: "X")
    (tmp_path / "X.PNG").unlink()
    assert paths.plan(found, tmp_path, lambda path: ".PNG", stem=lambda path: "X")


def deep(base: Path, depth: int) -> None:
    """Makes a chain of folders with a picture at its end."""
    here = os.open(base, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        lower = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = lower
    os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.parametrize("depth", [1100, 1800])
def test_deep_folders_are_found_planned_and_written_in_little_time(tmp_path, depth):
    (tmp_path / "in").mkdir()
    deep(tmp_path / "in", depth)
    began = time.process_time()
    found = paths.find([tmp_path / "in"], [".png"], paths.Selection(without=tmp_path / "out", exclude=["no"]))
    (job,) = paths.plan(found, tmp_path / "out", lambda path: ".png")
    paths.write_atomic(job.target, b"x")
    assert time.process_time() - began < 5
    assert job.target.read_bytes() == b"x"
    with contextlib.suppress(UsageError):
        paths.find([f"{tmp_path}/in/**/*.png"], [".png"])
    # `shutil.rmtree` could not do this: it recurses.
    subprocess.run(["rm", "-rf", str(tmp_path / "in"), str(tmp_path / "out")], check=True)


def test_folders_nested_deeper_than_a_path_may_be_are_an_error_of_their_own(tmp_path):
    deep(tmp_path, 3000)
    (tmp_path / "y.png").write_bytes(b"")
    found = paths.find([tmp_path], [".png"])
    assert [one.path.name for one in found] == ["d", "y.png"]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


# -- what is written over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o664, 0o444])
def test_a_file_that_is_written_over_keeps_its_mode_and_its_owner(tmp_path, mode):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    path.chmod(mode)
    before = path.stat()
    paths.write_atomic(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_nobody_reads_a_private_file_while_it_is_written_over(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o600)
    seen = []
    monkeypatch.setattr(paths, "_lock", lambda file: seen.append(os.fstat(file.fileno()).st_mode & 0o777))
    paths.write_atomic(path, b"new")
    assert seen == [0o600]


def test_a_new_file_has_the_mode_that_others_have(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    paths.write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_clock_that_jumps_sweeps_nothing_that_a_run_is_writing(tmp_path, monkeypatch):
    old = tmp_path / f".left{paths.PART}"
    old.write_bytes(b"")
    now = time.time

    def flush(number: int) -> None:
        monkeypatch.setattr(time, "time", lambda: now() + 10 * 365 * 86400)
        paths.sweep([tmp_path])  # as another run does, which has begun just now

    monkeypatch.setattr(paths.os, "fsync", flush)
    paths.write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert not old.exists()
