"""Items through a verb, as a bounded stream: what `engine` runs everything with.

    sources ──read──> items ──gather──> batches ──run──> results ──write──> outcomes, in order
             threads          by key              caller's          threads
                                                  thread

It knows nothing of pictures: it moves items through the four functions of a `Verb`, never holds more than `window` of
them or, once their sizes are known, more than about `memory` bytes, and turns whatever goes wrong with one item into
that item's outcome.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

BATCH_PIXELS = 4 << 20
"""A batch is not made larger than this, in pixels, unless one image alone is."""
MEMORY = 2 << 30
"""How many bytes the items on their way may hold, where nothing else is said."""


class Verb(Protocol):
    """What is done to each item. `small`*: whether what `write` returns is too small to count (default False)."""

    def read(self, source: Any) -> Any:
        """In a thread: a source -> an item with `pixels` (how many it has) and `nbytes` (what it holds in memory)."""
        ...

    def key(self, item: Any) -> Hashable:
        """Items of equal key can run as one batch."""
        ...

    def run(self, items: list[Any]) -> list[Any]:
        """In the caller's thread: a batch through the model."""
        ...

    def write(self, item: Any, result: Any) -> Any:
        """In a thread: an item and its result -> what the caller gets."""
        ...


@dataclass
class Outcome:
    """What became of one source: a value or an error."""

    source: Any
    value: Any = None
    error: Exception | None = None
    pixels: int = 0


@dataclass
class _Slot:
    """One item on its way. `future` is its read, then its write; `item` is there in between and while it is written."""

    source: Any
    future: Future[Any] | None = None
    item: Any = None
    outcome: Outcome | None = None
    nbytes: int = 0

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        if error is not None and not isinstance(error, Exception):
            raise error
        self.outcome = Outcome(self.source, value, error, getattr(self.item, "pixels", 0))
        self.future = self.item = None
        if error is not None:
            self.nbytes = 0


def stream(
    sources: Iterable[Any],
    verb: Verb,
    *,
    jobs: int | None = None,
    batch_size: int = 8,
    memory: int = MEMORY,
    late: list[Outcome] | None = None,
) -> Iterator[Outcome]:
    """Moves `sources` through `verb` and yields an `Outcome` for each, in their order.

    `jobs` threads read and write; `batch_size` bounds the items of a batch; reading pauses while the items on their
    way hold more than `memory` bytes. Closing the generator ends the threads, once they are through with what they have
    begun; what had come to its end by then, and was not yielded, is added to `late`.
    """
    jobs = jobs or min(8, os.cpu_count() or 1)
    # Results are given in order: while one size gathers a batch of its own, several batches of others go past it.
    window = 2 * jobs + 6 * batch_size
    slots: deque[_Slot] = deque()
    upcoming = iter(sources)
    more = True
    largest = 0
    small = getattr(verb, "small", False)
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="aeimg")

    def fits(held: int, reading: int) -> bool:
        return not slots or held + (reading + 1) * largest <= memory

    try:
        while True:
            for slot in slots:
                if slot.future is not None and slot.future.done():
                    error = slot.future.exception()
                    if error is not None:
                        slot.settle(error=error)
                    elif slot.item is None:
                        slot.item, slot.future = slot.future.result(), None
                        slot.nbytes = slot.item.nbytes
                        largest = max(largest, slot.nbytes)
                    else:
                        slot.settle(slot.future.result())
                        slot.nbytes *= not small
            while slots and slots[0].outcome is not None:
                yield slots[0].outcome  # type: ignore[misc]
                slots.popleft()  # now that it has been taken
            held = sum(slot.nbytes for slot in slots)
            reading = sum(slot.future is not None and slot.item is None for slot in slots)
            # Until the first is read nobody knows how large they are; as many as there are threads must do.
            while more and len(slots) < window and (fits(held, reading) if largest else reading < jobs):
                try:
                    source = next(upcoming)
                except StopIteration:
                    more = False
                    break
                slots.append(_Slot(source, pool.submit(verb.read, source)))
                reading += 1
            if not slots:
                return
            batch = _gather(slots, verb, batch_size)
            if batch:
                for slot, result in zip(batch, _run(verb, [slot.item for slot in batch]), strict=True):
                    if isinstance(result, Exception):
                        slot.settle(error=result)
                    else:
                        slot.future = pool.submit(verb.write, slot.item, result)
            elif slots[0].outcome is None:
                wait([slot.future for slot in slots if slot.future is not None], return_when=FIRST_COMPLETED)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if late is not None:
            late += _settled(slots)


def _settled(slots: Iterable[_Slot]) -> Iterator[Outcome]:
    """The outcomes of those that were written, or have failed."""
    for slot in slots:
        future = slot.future
        if future is not None and future.done() and not future.cancelled():
            error = future.exception()
            if isinstance(error, Exception):
                slot.settle(error=error)
            elif error is None and slot.item is not None:
                slot.settle(future.result())
        if slot.outcome is not None:
            yield slot.outcome


def _gather(slots: Iterable[_Slot], verb: Verb, batch_size: int) -> list[_Slot]:
    """A batch worth running now: a full one; or, when no read is under way that could fill one, the oldest.

    The oldest too when a batch's worth of items waits, of whatever sizes: the model must not stand still for the reads.
    And when four batches' worth after it have been run: results are given in order, so those would fill the window.
    """
    buckets: dict[Hashable, list[_Slot]] = {}
    reading = False
    waiting = 0
    passed = 0
    for slot in slots:
        if slot.item is None:
            reading |= slot.future is not None
            passed += bool(buckets) and slot.outcome is not None
        elif slot.future is not None:
            passed += bool(buckets)
        else:
            waiting += 1
            bucket = buckets.setdefault(verb.key(slot.item), [])
            bucket.append(slot)
            if len(bucket) == batch_size or (len(bucket) + 1) * slot.item.pixels > BATCH_PIXELS:
                return bucket
    due = not reading or waiting >= batch_size or passed >= 4 * batch_size
    return next(iter(buckets.values())) if buckets and due else []


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory did not suffice; other errors of a device are not taken for it."""
    kinds: tuple[type[BaseException], ...] = (MemoryError,)
    torch = sys.modules.get("torch")
    if torch is not None:
        kinds += (torch.OutOfMemoryError,)
    # torch's allocator for the CPU has no error of its own.
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _run(verb: Verb, items: list[Any]) -> list[Any]:
    """Runs a batch; where that fails, its halves, so that memory may suffice, and only a guilty item is lost."""
    try:
        results = verb.run(items)
        if len(results) != len(items):
            raise ValueError(f"the model gave {len(results)} results for {len(items)} items")
        return results
    except Exception as error:  # whatever a model raises is this batch's failure, not the run's
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return _run(verb, items[:half]) + _run(verb, items[half:])
