"""A run that watches folders does what appears, when it is whole, until it is interrupted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import aeimg
from aeimg import engine
from aeimg.engine import Interrupted


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Watches a folder; each time that the run waits, the next of some steps is taken, and at last Ctrl-C."""

    def go(*steps, **options) -> aeimg.Summary:
        waiting = iter(steps)

        def sleep(seconds):
            step = next(waiting, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        real = time.sleep
        main = threading.current_thread()
        monkeypatch.setattr(
            engine.time, "sleep", lambda seconds: (sleep if threading.current_thread() is main else real)(seconds)
        )
        with pytest.raises(Interrupted) as error:
            aeimg.process(tmp_path / "in", "denoise", out=tmp_path / "out", strength=0.0, watch=True, **options)
        return error.value.summary

    (tmp_path / "in").mkdir()
    return go


def nothing() -> None:
    pass


def test_what_appears_and_what_changes_is_done(watched, tmp_path, png):
    one, other = (png(np.full((9, 9), value, np.uint8)) for value in (1, 2))
    (tmp_path / "in" / "a.png").write_bytes(one)
    summary = watched(
        nothing,
        lambda: (tmp_path / "in" / "b.png").write_bytes(one),
        nothing,
        lambda: (tmp_path / "in" / "a.png").write_bytes(other + b"\0"),
        nothing,
        nothing,
    )
    assert (summary.done, summary.failed) == (3, [])
    assert (tmp_path / "out" / "b.png").is_file()


def test_a_file_that_still_grows_is_waited_for(watched, tmp_path, png):
    data = png(np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8))
    path = tmp_path / "in" / "a.png"
    parts = [lambda end=end: path.write_bytes(data[:end]) for end in (100, 200, 300, len(data))]
    summary = watched(*parts, nothing, nothing)
    assert (summary.done, summary.failed) == (1, [])


def test_a_bad_file_is_one_failure_and_not_tried_again(watched, tmp_path):
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    summary = watched(nothing, nothing, nothing, nothing)
    assert len(summary.failed) == 1


def test_a_folder_that_can_not_be_listed_for_a_moment_is_listed_again(watched, tmp_path, png):
    folder = tmp_path / "in"
    (folder / "a.png").write_bytes(png(np.zeros((9, 9), np.uint8)))
    summary = watched(
        lambda: folder.rename(tmp_path / "away"), lambda: (tmp_path / "away").rename(folder), nothing, nothing
    )
    assert summary.done == 1


def test_results_that_are_right_are_skipped_and_those_of_others_kept(watched, tmp_path, png):
    for name in "ab":
        (tmp_path / "in" / f"{name}.png").write_bytes(png(np.zeros((9, 9), np.uint8)))
    aeimg.process(tmp_path / "in" / "a.png", "denoise", out=tmp_path / "out", strength=0.0)
    (tmp_path / "out" / "b.png").write_bytes(b"by hand")
    summary = watched(nothing, nothing, nothing)
    assert (summary.done, summary.skipped) == (0, 2)
    assert (tmp_path / "out" / "b.png").read_bytes() == b"by hand"


def test_watching_is_for_folders_and_has_no_dry_run(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(np.zeros((9, 9), np.uint8)))
    with pytest.raises(aeimg.UsageError, match="dry run"):
        aeimg.process(tmp_path, "denoise", out=tmp_path / "out", watch=True, dry_run=True)
    with pytest.raises(aeimg.UsageError, match="for folders"):
        aeimg.process(tmp_path / "a.png", "denoise", out=tmp_path / "b.png", watch=True)
