"""How far some work is, how fast it goes, and how long the rest takes.

Meter      counts work, and forecasts what is left of it; it knows nothing of terminals
Progress   shows a meter: as a bar on a terminal, elsewhere as a line every 20 seconds
Watched    a task of `stream` whose steps a `Progress` counts, in pixels
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from bisect import bisect
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from .stream import Task, threads_for
from .tiles import watcher

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger("aeimg")

T = TypeVar("T")


# -- counting ------------------------------------------------------------------------------------------------


class Meter:
    """Counts work, in any unit, and forecasts how long the rest takes.

    The work may be of several kinds, of which each counts with a weight. Weights may change while it goes on.
    """

    def __init__(self, total: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.clock = total, clock
        self.began = clock()
        self.weights: tuple[float, ...] = (1.0,)
        """What a unit of each kind counts."""
        self.times: list[float] = [self.began]
        """When work was done,"""
        self.amounts: list[tuple[float, ...]] = [()]
        """and how much of each kind there was by then."""
        self.warm = 0
        """The place in these lists at which the warm-up was over."""

    def begin(self, done: float) -> None:
        """Takes note that so much was done before, which says nothing of the rate."""
        self.amounts[0] = (done,)

    def warmed_up(self) -> None:
        """Takes note that the work begins to go as fast as it will."""
        self.warm = len(self.times) - 1

    def reach(self, *amounts: float, weights: tuple[float, ...] = (1.0,), total: float | None = None) -> None:
        """Takes note that so much of each kind is done, and what there is in all, where that is known better now."""
        self.weights = weights
        self.total = self.total if total is None else total
        self.amounts.append(amounts)
        self.times.append(self.clock())

    def _weighted(self, amounts: tuple[float, ...]) -> float:
        return sum(weight * amount for weight, amount in zip(self.weights, amounts, strict=False))

    @property
    def done(self) -> float:
        """How much of `total` is done."""
        return min(self._weighted(self.amounts[-1]), self.total)

    @property
    def share(self) -> float:
        """How much of the work is done, 0..1."""
        return self.done / self.total if self.total > 0 else 0.0

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return self.clock() - self.began

    @property
    def rate(self) -> float:
        """Work per second; 0 where nothing is done yet.

        The first half of the time does not count: libraries warm up, the first files are read while the model waits.
        Nor does a longer warm-up, once enough was done after it.
        """
        last = self.times[-1]
        start = bisect(self.times, self.began + (last - self.began) / 2) - 1
        if self._between(self.warm, -1) >= AFTER_WARM_UP * self.total:
            start = max(start, self.warm)
        return max(self._between(start, -1), 0.0) / max(last - self.times[start], 1e-9)

    def _between(self, start: int, end: int) -> float:
        return self._weighted(self.amounts[end]) - self._weighted(self.amounts[start])

    @property
    def left(self) -> float | None:
        """How many seconds the rest takes at this rate; None where nothing is done yet."""
        rate = self.rate
        return max((self.total - self.done) / rate - (self.clock() - self.times[-1]), 0.0) if rate > 0 else None


AFTER_WARM_UP = 0.05
"""The share of the work that must be done after the warm-up, so that the rate is taken from that time alone."""


def duration(seconds: float) -> str:
    """Returns a duration for people: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


# -- showing -------------------------------------------------------------------------------------------------


class Progress:
    """A bar on a terminal; elsewhere a line every `EVERY` seconds; nothing where it is not `wanted`.

    A thread of its own draws it, so that it goes on while the caller's thread is inside a network. Use it as a context
    manager.
    """

    EVERY = 20.0
    """Seconds between lines."""
    REFRESH = 0.5
    """Seconds between two drawings of the bar."""

    def __init__(
        self,
        title: str,
        count: int | None,
        *,
        wanted: bool,
        item: str = "images",
        speed: tuple[str, float] | None = ("MP/s", 1e6),
        lines: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count` items are to be done, which are called `item`; None where nobody knows how many. `speed` names a unit
        of the rate, and says how much work that is. Without `lines` nothing is shown where there is no terminal."""
        self.title, self.count, self.item, self.speed = title, count, item, speed
        self.meter = Meter(1.0 if count is None else float(count), clock)
        self.through = 0
        """How many items are through."""
        self.failed = 0
        """How many of them have failed."""
        self.now = ""
        """What is being done."""
        self.about = ""
        """What else the caller has to say."""
        terminal = sys.stderr is not None and sys.stderr.isatty()  # without a console, it is None
        self.lines = wanted and lines and count != 0 and not terminal
        self.bar: tqdm[Any] | None = None
        if wanted and count != 0 and terminal:
            self.bar = self._bar()
        self._last_line = clock()
        self._ended = threading.Event()
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._draw_on, name="aeimg-progress", daemon=True)
        if self.shown:
            self._thread.start()

    def _bar(self) -> tqdm[Any]:
        from tqdm import tqdm

        # The words are ours, because tqdm counts items: they take the place of its unit.
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {unit}"
        return tqdm(
            desc=self.title, total=1.0, unit=self.words(), bar_format=bar_format, dynamic_ncols=True, file=sys.stderr
        )

    @property
    def shown(self) -> bool:
        """Whether anything is shown at all."""
        return self.lines or self.bar is not None

    # -- what the caller says ----------------------------------------------------------------------------------

    def begin(self, done: float, total: float = 1.0) -> None:
        """Takes note that so much work was done before, and how much there is in all."""
        self.meter.total = total
        self.meter.begin(done)

    def reach(self, done: float, total: float | None = None) -> None:
        """Takes note that so much work is done, and how much there is in all."""
        self.meter.reach(done, total=total)

    def add(self, work: float) -> None:
        """Takes note that so much more work is done."""
        self.meter.reach(self.meter.done + work)

    def step(self, *, failed: bool = False) -> None:
        """Takes note that one more item is through."""
        self.through += 1
        self.failed += failed
        self._line_if_due()

    def doing(self, what: str) -> None:
        """Says what is being done now."""
        self.now = what

    def each(self, items: Iterable[T], name: Callable[[T], str] = str) -> Iterator[T]:
        """Yields the items, of which each counts 1, says what is being done by their names, and counts each once the
        caller comes back for the next."""
        for one in items:
            self.doing(name(one))
            yield one
            self.add(1)
            self.step()

    # -- what is shown -----------------------------------------------------------------------------------------

    def words(self) -> str:
        """Returns how far it is: `3 of 9 images, 2.1 MP/s, 1 failed, 40 s left; a.jpg`."""
        meter = self.meter
        parts = [f"{self.through:,} {'' if self.count is None else f'of {self.count:,} '}{self.item}"]
        if self.bar is None:  # which shows it as well
            parts.append(f"{100 * meter.share:.0f}%")
        if self.about:
            parts.append(self.about)
        if self.speed is not None and meter.rate > 0:
            rate = meter.rate / self.speed[1]
            parts.append(f"{rate:.1f} {self.speed[0]}" if rate >= 0.1 else f"{rate:.1g} {self.speed[0]}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        parts.append(f"{duration(meter.seconds)} so far" if meter.left is None else f"{duration(meter.left)} left")
        return ", ".join(parts) + (f"; {self.now}" if self.now else "")

    def _draw_on(self) -> None:
        while not self._ended.wait(self.REFRESH):
            self._draw()
            self._line_if_due()

    def _draw(self) -> None:
        with self._drawing:
            if self.bar is not None and not self._ended.is_set():
                self.bar.n = max(self.bar.n, round(self.meter.share, 4))  # it never goes back
                self.bar.unit = self.words()
                self.bar.refresh()

    def _line_if_due(self) -> None:
        with self._drawing:
            now = self.meter.clock()
            if not self.lines or now - self._last_line <= self.EVERY:
                return
            self._last_line = now
        log.info("%s: %s", self.title, self.words())

    def beside(self, write: Callable[[str], None]) -> Callable[[str], None]:
        """Returns what writes lines to the terminal as `write` does, and keeps the bar out of their way."""
        if self.bar is None:
            return write

        def write_above(line: str) -> None:
            from tqdm import tqdm

            with tqdm.external_write_mode(file=sys.stderr):
                write(line)

        return write_above

    def close(self) -> None:
        """Ends the bar."""
        self._draw()
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watched(
        self,
        task: Task[Any, Any, Any, Any],
        sources: Sequence[Any],
        size: Callable[[Any], int | None],
        jobs: int | None,
    ) -> Task[Any, Any, Any, Any]:
        """Returns the task for `stream` with `jobs`, with its steps counted where they are shown; see `Watched`."""
        return Watched(task, self, sources, size, threads_for(jobs)) if self.shown else task


# -- the steps of a task -------------------------------------------------------------------------------------

UNKNOWN_SIZE = 1_000_000
"""Stands for the bytes of a source whose size nobody knows."""
RUN_SHARE, FINISH_SHARE = 0.9, 0.1
"""Which share of the time running and finishing are taken to need, as long as nothing has been run or finished."""


class Watched:
    """A task of `stream` that tells a `Progress` what has been done, in pixels.

    How many pixels a source has is known once it was read. Before, it is taken to have as many for each of its bytes as
    those that were read. Each of the three steps counts as much as it takes of the time, by what was measured so far:
    then a picture counts in part once it was read, tile by tile while it is in the network, and in full once its result
    is there.
    """

    def __init__(
        self,
        task: Task[Any, Any, Any, Any],
        progress: Progress,
        sources: Sequence[Any],
        size: Callable[[Any], int | None],
        jobs: int,
    ) -> None:
        """`size` returns the bytes of a source, or None; `jobs` threads prepare and finish."""
        self.task, self.progress, self.jobs = task, progress, jobs
        self.small = task.small
        self._size, self._clock = size, progress.meter.clock
        self._lock = threading.Lock()
        self._unread = float(sum(map(self._bytes, sources)))
        self._bytes_read = 0.0
        self._pixels = dict.fromkeys(("prepare", "run", "finish"), 0.0)
        self._seconds = dict.fromkeys(("prepare", "run", "finish"), 0.0)
        self._warm_up = dict.fromkeys(("prepare", "run", "finish"), (0.0, 0.0))
        """Pixels and seconds of what each step did first, while libraries were loaded and memory was fetched."""
        self._under_way = 0.0
        """How many pixels of the batch that is being run are through."""
        self._lost = 0.0
        """How many pixels were read that could not be run."""

    def _bytes(self, source: Any) -> int:
        return self._size(source) or UNKNOWN_SIZE

    def estimate(self, source: Any) -> int:
        """Returns what the task estimates."""
        return self.task.estimate(source)

    def key(self, item: Any) -> Hashable:
        """Returns the key of the task."""
        return self.task.key(item)

    def prepare(self, source: Any) -> Any:
        """Prepares as the task does."""
        size, began, work = self._bytes(source), self._clock(), 0
        try:
            item = self.task.prepare(source)
            work = item.work
            return item
        finally:
            with self._lock:
                self._unread -= size
                self._bytes_read += size if work else 0
            self._count("prepare", work, self._clock() - began)

    def run(self, items: list[Any]) -> Sequence[Any]:
        """Runs a batch as the task does."""
        began, work = self._clock(), sum(item.work for item in items)

        def reached(share: float) -> None:
            self._under_way = share * work
            running = self._clock() - began
            first = not self._warm_up["run"][0]
            if first:
                self._warm_up["run"] = self._under_way, running
            self._tell(running)
            if first:
                self.progress.meter.warmed_up()

        names = getattr(items[0], "label", "")
        self.progress.doing(names if len(items) == 1 or not names else f"{names} and {len(items) - 1} more")
        with _watching(reached):
            try:
                results = self.task.run(items)
            except Exception:
                if len(items) == 1:  # it has failed for good; a larger batch is tried again in halves
                    self._lost += work
                raise
            finally:
                self._under_way = 0.0
        first = not self._warm_up["run"][0]
        self._count("run", work, self._clock() - began)
        if first:
            self.progress.meter.warmed_up()
        return results

    def finish(self, item: Any, raw: Any) -> Any:
        """Finishes as the task does."""
        began = self._clock()
        try:
            return self.task.finish(item, raw)
        finally:
            self._count("finish", item.work, self._clock() - began)

    def _count(self, step: str, work: float, seconds: float) -> None:
        with self._lock:
            self._pixels[step] += work
            self._seconds[step] += seconds if work else 0
            if not self._warm_up[step][0]:
                self._warm_up[step] = (work, seconds) if work else (0.0, 0.0)
        self._tell()

    def _tell(self, running: float = 0.0) -> None:
        """Tells how many pixels are done, and how many there are; a batch has been `running` for so many seconds."""
        with self._lock:
            pixels, seconds = dict(self._pixels), dict(self._seconds)
            density = pixels["prepare"] / self._bytes_read if self._bytes_read and pixels["prepare"] else 1.0
            pixels["prepare"] -= self._lost
            total = pixels["prepare"] + density * self._unread
        pixels["run"] += self._under_way
        seconds["run"] += running
        costs = {step: self._cost(step, pixels[step], seconds[step]) for step in pixels}
        prepare = (costs["prepare"] or 0.0) / self.jobs
        run = costs["run"] if costs["run"] is not None else prepare * RUN_SHARE / (1 - RUN_SHARE)
        finish = costs["finish"]
        finish = finish / self.jobs if finish is not None else (prepare + run) * FINISH_SHARE / (1 - FINISH_SHARE)
        whole = prepare + run + finish
        if whole > 0:
            weights = (prepare / whole, run / whole, finish / whole)
            self.progress.meter.reach(*pixels.values(), weights=weights, total=total)

    def _cost(self, step: str, pixels: float, seconds: float) -> float | None:
        """Returns the seconds that a step takes for a pixel, without its warm-up, where it has done more than that."""
        first, warm_up = self._warm_up[step]
        if pixels > first > 0 and seconds > warm_up:
            return (seconds - warm_up) / (pixels - first)
        return seconds / pixels if pixels > 0 else None


@contextmanager
def _watching(reached: Callable[[float], None]) -> Iterator[None]:
    """Lets `tiles.counted` call `reached` with the share of the tiles that are done."""
    token = watcher.set(reached)
    try:
        yield
    finally:
        watcher.reset(token)
