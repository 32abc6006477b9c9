"""Progress counts pixels, and its time left is right."""

from __future__ import annotations

import io
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg.cli import main
from aeimg.progress import Meter, Progress, Watched, duration
from aeimg.tiles import counted, grid


class Clock:
    """A clock that stands still until it is set forward."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Item:
    def __init__(self, pixels: int) -> None:
        self.work = self.nbytes = pixels


class Slow:
    """A task that takes so many seconds for each pixel in each of its steps, and for the first batch some more."""

    small = True

    def __init__(self, clock: Clock, prepare: float, run: float, finish: float, warm_up: float = 0.0) -> None:
        self.clock, self.costs, self.warm_up = clock, (prepare, run, finish), warm_up
        self.check = lambda: None

    def estimate(self, source):
        return 0

    def key(self, item):
        return None

    def _work(self, seconds):
        self.clock.now += seconds
        self.check()

    def prepare(self, source):
        self._work(self.costs[0] * source)
        return Item(source)

    def run(self, items):
        self.clock.now, self.warm_up = self.clock.now + self.warm_up, 0.0
        work = sum(item.work for item in items)
        tiles = list(grid(max(work // 1000, 1), 1000, 1000, 0))
        for _ in counted(tiles):
            self._work(self.costs[1] * work / len(tiles))
        return items

    def finish(self, item, raw):
        self._work(self.costs[2] * item.work)


SECOND = 1e-6
"""Seconds for each pixel."""
RUNS = {
    "many alike": ([500_000] * 60, (0.05, 1.0, 0.1), 0.0),
    "one large": ([60_000_000], (0.05, 1.0, 0.1), 0.0),
    "small ones, then large ones": ([200_000] * 80 + [8_000_000] * 10, (0.05, 1.0, 0.1), 0.0),
    "large ones, then small ones": ([8_000_000] * 10 + [200_000] * 80, (0.05, 1.0, 0.1), 0.0),
    "a slow start": ([500_000] * 120, (0.05, 1.0, 0.1), 2.0),
    "slow files": ([500_000] * 60, (0.5, 0.2, 1.0), 0.0),
}


def followed(sizes, costs, warm_up):
    """What the time left was said to be while these pictures went through: times, shares of the work, seconds."""
    clock, told = Clock(), []
    progress = Progress("denoise", len(sizes), wanted=False, clock=clock)
    task = Slow(clock, *(SECOND * cost for cost in costs), warm_up)
    # The bytes of a file say something of its pixels, and not all.
    watched = Watched(task, progress, sizes, lambda pixels: pixels // 4 + pixels % 7 * 1000, jobs=1)
    task.check = lambda: told.append((clock.now, progress.meter.share, progress.meter.left))
    for start in range(0, len(sizes), 8):
        items = [watched.prepare(size) for size in sizes[start : start + 8]]
        for item, raw in zip(items, watched.run(items), strict=True):
            watched.finish(item, raw)
    assert progress.meter.share == pytest.approx(1, abs=0.01)
    return told, clock.now


@pytest.mark.parametrize("warm_up", [0.0, 2.0, 10.0, 40.0, 120.0])
@pytest.mark.parametrize("side", [500, 1000])
def test_however_long_the_warm_up_is_the_time_left_is_right_after_a_tenth_of_the_work(warm_up, side):
    told, end = followed([side * side] * 120, (0.05, 1.0, 0.1), warm_up)
    later = [(now, share, left) for now, share, left in told if 0.1 < share < 0.9]
    assert len(later) > 10
    for now, share, left in later:
        assert left == pytest.approx(end - now, rel=0.3), f"after {share:.0%}"


@pytest.mark.parametrize("name", RUNS)
def test_the_time_left_is_right_within_30_percent_after_a_tenth(name):
    told, end = followed(*RUNS[name])
    begin = 100.0
    later = [(now, left) for now, share, left in told if (now - begin) > 0.1 * (end - begin) and share < 0.9]
    assert len(later) > 10
    for now, left in later:
        assert left == pytest.approx(end - now, rel=0.3), f"after {(now - begin) / (end - begin):.0%}"


def test_a_large_picture_moves_tile_by_tile_and_nothing_falls():
    clock, shares = Clock(), []
    progress = Progress("denoise", 1, wanted=False, clock=clock)
    task = Slow(clock, 0.0, SECOND, 0.0)
    watched = Watched(task, progress, [20_000_000], lambda pixels: pixels, jobs=1)
    task.check = lambda: shares.append(progress.meter.share)
    item = watched.prepare(20_000_000)
    watched.run([item])
    assert len(set(shares)) > 10
    assert shares == sorted(shares)


def test_pictures_that_fail_are_no_work_that_is_left():
    class Broken(Slow):
        def prepare(self, source):
            if source == 3_000_000:
                raise aeimg.InputError("broken")
            return super().prepare(source)

        def run(self, items):
            if items[0].work == 2_000_000:
                raise RuntimeError("out of its depth")
            return super().run(items)

    clock = Clock()
    progress = Progress("denoise", 3, wanted=False, clock=clock)
    watched = Watched(Broken(clock, SECOND, SECOND, SECOND), progress, [3_000_000, 2_000_000, 1_000_000], int, jobs=1)
    with pytest.raises(aeimg.InputError):
        watched.prepare(3_000_000)
    with pytest.raises(RuntimeError):
        watched.run([watched.prepare(2_000_000)])
    item = watched.prepare(1_000_000)
    watched.finish(item, watched.run([item])[0])
    assert progress.meter.share == pytest.approx(1)
    assert progress.meter.total == pytest.approx(1_000_000)


def test_a_meter_forecasts_nothing_before_there_is_anything_to_go_by():
    meter = Meter(10, Clock())
    assert (meter.share, meter.rate, meter.left) == (0, 0, None)
    assert Meter(0, Clock()).share == 0


def test_durations_are_for_people():
    assert [duration(s) for s in (0.2, 40, 99, 100, 5999, 11_100)] == [
        "0 s", "40 s", "99 s", "2 min", "1 h 40 min", "3 h 05 min",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    stderr = Terminal()
    monkeypatch.setattr("aeimg.progress.sys", SimpleNamespace(stderr=stderr))
    return stderr


def test_the_bar_goes_on_within_two_seconds_while_a_picture_is_in_the_network(terminal, tmp_path, small):
    Image.fromarray(np.tile(small, (4, 4, 1))).save(tmp_path / "a.png")
    reached = []

    class Sleeper(torch.nn.Module):
        task, multiple, halo = "denoise", 1, 0

        def forward(self, x, sigma):
            time.sleep(1.2)
            reached.append(terminal.getvalue())
            return x

    aeimg.register("sleeper", Sleeper)
    aeimg.process(tmp_path / "a.png", "denoise", out=tmp_path / "out", model="sleeper", progress=True)
    assert "aeimg-progress" not in {thread.name for thread in threading.enumerate()}
    (during,) = reached
    shares = [int(share) for share in re.findall(r"(\d+)%\|", during)]
    assert shares[0] == 0 and shares[-1] > 0  # it has been read
    assert "0 of 1 images" in during and "; a.png" in during
    assert "100%|" in terminal.getvalue() and "1 of 1 images" in terminal.getvalue()


def test_lines_go_above_the_bar(terminal):
    said = []
    with Progress("train", 5, wanted=True, item="steps", speed=None) as progress:
        progress.beside(said.append)("a line")
        assert progress.bar is not None
    assert said == ["a line"]


def test_each_item_counts_once_the_next_is_asked_for_and_is_named(terminal):
    with Progress("bench", 2, wanted=True, item="points", speed=None) as progress:
        seen = [(one, progress.through, progress.meter.share, progress.now) for one in progress.each(["a", "b"])]
        assert seen == [("a", 0, 0.0, "a"), ("b", 1, 0.5, "b")]
        assert progress.words().startswith("2 of 2 points")


def test_work_of_an_unknown_number_of_items_that_was_begun_before(terminal):
    clock = Clock()
    with Progress("train", None, wanted=True, item="steps", speed=None, clock=clock) as progress:
        progress.begin(0.5)
        for share in (0.6, 0.7):
            clock.now += 10
            progress.reach(share)
            progress.step()
        assert progress.meter.left == pytest.approx(30)
        assert progress.words() == "2 steps, 30 s left"


def test_nothing_is_shown_without_a_terminal_where_no_lines_are_wanted():
    assert not Progress("train", 5, wanted=True, lines=False).shown


def test_no_bar_where_it_is_not_wanted():
    assert Progress("train", 5, wanted=False).beside(print) is print


@pytest.mark.parametrize(("task", "out"), [("denoise", "out"), ("features", "f.npz")])
def test_a_run_with_nothing_to_do_draws_no_bar(terminal, tmp_path, task, out):
    (tmp_path / "in").mkdir()
    CliRunner().invoke(main, [task, str(tmp_path / "in"), str(tmp_path / out), "--allow-empty"])
    assert "%|" not in terminal.getvalue()
    assert not Progress(task, 0, wanted=True).shown
