"""Items through a task, as a bounded stream: `engine` runs everything with it.

    sources ──prepare──> items ──gather──> batches ──run──> raw results ──finish──> outcomes, in order
              threads            by key              caller's              threads
                                                     thread

The stream knows nothing of images. It passes items through the functions of a `Task`, never holds more than `window`
of them or more than about `memory` bytes, which are reserved for each by what `estimate` says before `prepare` begins,
and turns whatever goes wrong with one item into that item's outcome.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

BATCH_WORK = 4 << 20
"""The items of a batch hold no more work than this together, unless one item alone does. Pixels, for images."""
MEMORY = 2 << 30
"""How many bytes the items on their way may hold, where nothing else is said."""


LARGE = 16 << 20
"""Before an item of more bytes is let in, and before it runs, what was freed is given back to the system."""


@functools.cache
def _trim() -> Callable[[int], object]:
    """Returns glibc's `malloc_trim`; elsewhere, what does nothing."""
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return id
    return trim


def _give_back() -> None:
    """Gives memory that was freed back to the system: glibc keeps much of it, for each thread that has used some."""
    _trim()(0)


class Item(Protocol):
    """What the stream has to know of an item."""

    @property
    def work(self) -> int:
        """How much there is to do, in units of the task's own. The time of a batch grows with it."""
        ...

    @property
    def nbytes(self) -> int:
        """How many bytes the item and its result hold in memory."""
        ...


class Enclosing:
    """An item around that of another task, which knows its work and its bytes."""

    item: Any

    @property
    def work(self) -> int:
        """See `Item`."""
        work: int = self.item.work
        return work

    @property
    def nbytes(self) -> int:
        """See `Item`."""
        nbytes: int = self.item.nbytes
        return nbytes


S = TypeVar("S")
S_in = TypeVar("S_in", contravariant=True)
I_any = TypeVar("I_any", bound=Item)
M = TypeVar("M")
R = TypeVar("R")
R_out = TypeVar("R_out", covariant=True)


class Task(Protocol[S_in, I_any, M, R_out]):
    """What is done to each item."""

    small: bool
    """Whether what `finish` returns is too small to count as memory."""

    def estimate(self, source: S_in, /) -> int:
        """Runs in the caller's thread, in little time: returns how many bytes the item and its result will hold, as far
        as the source's header says. What it raises is passed over: `prepare` will raise it again."""
        ...

    def prepare(self, source: S_in, /) -> I_any:
        """Runs in a thread: turns a source into an item, ready for the model."""
        ...

    def key(self, item: I_any, /) -> Hashable:
        """Returns what items that can run as one batch have in common."""
        ...

    def run(self, items: list[I_any], /) -> Sequence[M]:
        """Runs in the caller's thread: a batch through the model. Returns a raw result for each item."""
        ...

    def finish(self, item: I_any, raw: M, /) -> R_out:
        """Runs in a thread: turns an item and its raw result into what the caller gets."""
        ...


@dataclass
class Outcome(Generic[S, R]):
    """What became of one source: a value or an error."""

    source: S
    value: R | None = None
    """What `finish` returned; None where there is an error."""
    error: Exception | None = None
    """What went wrong, if anything."""
    work: int = 0
    """How much work the item held; 0 where it could not be prepared."""

    def result(self) -> R:
        """Returns the value, or raises the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # None is a value where R allows it


@dataclass
class _Slot:
    """One item on its way.

    `future` is its `prepare`, then its `finish`; `item` is there in between and while it is finished. `nbytes` is what
    was estimated, then what the item states.
    """

    source: Any
    nbytes: int
    future: Future[Any] | None = None
    item: Any = None
    outcome: Outcome[Any, Any] | None = None

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """Enters the outcome; raises an error that is meant for the whole run (KeyboardInterrupt)."""
        if error is not None and not isinstance(error, Exception):
            raise error
        self.outcome = Outcome(self.source, value, error, 0 if self.item is None else self.item.work)
        self.future = self.item = None
        if error is not None:
            self.nbytes = 0

    def advance(self, small: bool) -> None:
        """Takes note of what a future has brought, if it has."""
        if self.future is None or not self.future.done():
            return
        error = self.future.exception()
        if error is not None:
            self.end(error=error)
        elif self.item is None:
            item: Item = self.future.result()
            self.item, self.future, self.nbytes = item, None, item.nbytes
        else:
            self.end(self.future.result())
            self.nbytes *= not small


def threads_for(jobs: int | None) -> int:
    """Returns how many threads prepare and finish, where `jobs` were asked for."""
    return jobs or min(8, os.cpu_count() or 1)


def stream(
    sources: Iterable[S],
    task: Task[S, I_any, M, R],
    *,
    jobs: int | None = None,
    batch_size: int = 8,
    memory: int = MEMORY,
    late: list[Outcome[S, R]] | None = None,
) -> Generator[Outcome[S, R], None, None]:
    """Passes `sources` through `task` and yields an `Outcome` for each, in their order.

    `jobs` threads prepare and finish; `batch_size` bounds the items of a batch; a source is let in once it fits beside
    the items on their way into `memory` bytes, or once there are none. Closing the generator ends the
    threads, once they have finished what they have begun; outcomes that were reached by then, and were not yielded, are
    added to `late`.
    """
    jobs = threads_for(jobs)
    # Results are given in order: while one size gathers a batch of its own, several batches of others go past it.
    window = 2 * jobs + 6 * batch_size
    slots: deque[_Slot] = deque()
    upcoming = iter(sources)
    more = True
    waiting: _Slot | None = None  # the next one, whose size is known
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="aeimg")

    try:
        while True:
            for slot in slots:
                slot.advance(task.small)
            while slots and slots[0].outcome is not None:
                yield slots[0].outcome
                slots.popleft()  # now that it has been taken
            held = sum(slot.nbytes for slot in slots)
            while more and len(slots) < window:
                if waiting is None:
                    waiting = next((_Slot(source, _estimate(task, source)) for source in upcoming), None)
                    more = waiting is not None
                if waiting is None or (slots and held + waiting.nbytes > memory):
                    break
                if waiting.nbytes > LARGE:
                    _give_back()
                waiting.future = pool.submit(task.prepare, waiting.source)
                held += waiting.nbytes
                slots.append(waiting)
                waiting = None
            if not slots:
                return
            batch = _gather(slots, task, batch_size)
            if batch:
                _hand_on(batch, task, pool)
            elif slots[0].outcome is None:
                wait([slot.future for slot in slots if slot.future is not None], return_when=FIRST_COMPLETED)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if late is not None:
            late += _ended(slots)


def _hand_on(batch: list[_Slot], task: Task[Any, Any, Any, Any], pool: ThreadPoolExecutor) -> None:
    """Runs a batch and lets threads finish it. Nothing here refers to the results any more when it returns: a large one
    would stay in memory until the next batch has run."""
    if any(slot.nbytes > LARGE for slot in batch):
        _give_back()
    for slot, raw in zip(batch, _run(task, [slot.item for slot in batch]), strict=True):
        if isinstance(raw, Exception):
            slot.end(error=raw)
        else:
            slot.future = pool.submit(task.finish, slot.item, raw)


def _estimate(task: Task[S, Any, Any, Any], source: S) -> int:
    estimate = task.estimate
    try:
        return estimate(source)
    except Exception:  # of whatever kind: `prepare` will raise it again, and then it is this item's outcome
        return 0


def _ended(slots: Iterable[_Slot]) -> Iterator[Outcome[Any, Any]]:
    """Yields the outcomes of those that are finished or have failed."""
    for slot in slots:
        future = slot.future
        if future is not None and future.done() and not future.cancelled():
            error = future.exception()
            if isinstance(error, Exception):
                slot.end(error=error)
            elif error is None and slot.item is not None:
                slot.end(future.result())
        if slot.outcome is not None:
            yield slot.outcome


def _gather(slots: Iterable[_Slot], task: Task[Any, Any, Any, Any], batch_size: int) -> list[_Slot]:
    """Returns the batch that should run now: a full one; or the oldest, when nothing that is being prepared could fill
    one.

    The oldest runs too when as many items as a batch takes are waiting, of whatever keys: the model must not stand
    still for the threads. And it runs when four times as many have gone past it: results are given in order, so those
    would fill the window.
    """
    buckets: dict[Hashable, list[_Slot]] = {}
    preparing = False
    waiting = 0
    passed = 0
    for slot in slots:
        if slot.item is None:
            preparing |= slot.future is not None
            passed += bool(buckets) and slot.outcome is not None
        elif slot.future is not None:
            passed += bool(buckets)
        else:
            waiting += 1
            bucket = buckets.setdefault(task.key(slot.item), [])
            bucket.append(slot)
            if len(bucket) == batch_size or (len(bucket) + 1) * slot.item.work > BATCH_WORK:
                return bucket
    due = not preparing or waiting >= batch_size or passed >= 4 * batch_size
    return next(iter(buckets.values())) if buckets and due else []


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory did not suffice; other errors of a device don't count."""
    kinds: tuple[type[BaseException], ...] = (MemoryError,)
    torch = sys.modules.get("torch")
    if torch is not None:
        kinds += (torch.OutOfMemoryError,)
    # torch's allocator for the CPU has no error of its own.
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _run(task: Task[Any, Any, Any, Any], items: list[Any]) -> list[Any]:
    """Runs a batch and, where that fails, its halves: memory may suffice for those, and only a guilty item is lost."""
    try:
        results = list(task.run(items))
        if len(results) != len(items):
            raise ValueError(f"the model gave {len(results)} results for {len(items)} items")
        return results
    except Exception as error:  # whatever a model raises is a failure of this batch, not of the run
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return _run(task, items[:half]) + _run(task, items[half:])
