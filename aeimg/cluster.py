"""Pictures through a task on a cluster, by Ray Data.

    driver      jobs ──blocks of paths──> Ray Data ──> actors              what became of each job <── Ray Data
                                                         |                          ^
    actor, which holds the model                         read ──stream──> write, and a record

Only paths, bytes of files and records go through Ray's object store, and never pixels. An actor reads and writes files
itself, with the threads of `stream`, and adds to a manifest of its own. So nothing is lost with an actor that is
killed: Ray starts another, which does its block again, file by file. A file at which actors have died `LIVES` times
has failed.

Actors leave a whole CPU to the tasks of Ray Data that read: where they take all, a job waits for ever
(ray-project/ray#44687). An actor of `attempts` knows what they have begun. Where nothing goes on, `ClusterError` says
why.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pickle
import queue
import secrets
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import pages, paths
from .attempts import Attempts
from .engine import _FileRun, _ToFiles, _Written, make_task
from .errors import AeimgError, ClusterError, InputError, ModelError, UsageError
from .manifest import Manifest
from .progress import Progress, Watched
from .stream import Outcome, stream
from .tasks.options import RunOptions, TaskOptions
from .urls import Url

log = logging.getLogger("aeimg")

STALLED = 600.0
"""After how many seconds without any progress a run ends with an error, where nothing else is said."""
LIVES = 3
"""At so many deaths of an actor at one file, the file has failed."""
LARGEST_BLOCK = 32
"""How many files an actor is given at once, at most."""
STORE = 256 << 20
"""The bytes of the object store of a cluster that is started here: it holds paths and records."""
PULLING = "aeimg-ray"
"""The name of the thread that waits for results."""
WIND_UP = 5.0
"""How many seconds Ray Data has to end a job."""
BEAT = 5.0
"""How many seconds may lie between two signs of life of an actor that does files."""


loads: ContextVar[dict[int, float] | None] = ContextVar("loads", default=None)
"""A dictionary, where someone wants to know which processes have loaded models, and after how many CPU seconds."""


@dataclass(frozen=True)
class Plan:
    """What an actor has to know."""

    task: str
    """The name of the task."""
    model: str | None
    """The name of the model, or its weights file."""
    device: str
    """Where the model runs."""
    dtype: str
    """Its precision."""
    own: TaskOptions
    """The options of the task."""
    run: RunOptions
    """The options of the run."""
    recipe: str
    """What the driver would make; see `manifest`."""
    out: str | None = None
    """The output folder; None where there is no manifest."""
    shard: str = ""
    """The name of the shard, where this is one."""
    album: tuple[int, int, bool] | None = None
    """Of the album of a report: its size, its count and whether it has maps."""

    def made(self) -> Any:
        """Returns the task with its model. Raises `ModelError` where it is another one than the driver's."""
        made = make_task(self.task, self.model, self.device, self.dtype, self.own)
        if made.recipe() != self.recipe:
            raise ModelError(
                f"{self.task}: a worker's model, options or precision differ from those of the driver; "
                "install the same aeimg on every machine, and name --model, --device and --dtype"
            )
        return made


def package() -> Any:
    """Returns the package `ray`, which sends no usage statistics. Raises `UsageError` where it is missing."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray.data
    except ImportError as error:
        raise UsageError("the engine ray needs a package that is missing: pip install 'aeimg[ray]'") from error
    return ray


@contextlib.contextmanager
def connected(workers: int | None) -> Iterator[Any]:
    """Connects to the cluster that the process is connected to already, or that RAY_ADDRESS names, or else to one that
    is started on this machine and ended afterwards. Yields the package `ray`."""
    ray = package()
    if ray.is_initialized():
        yield ray
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it prints what is none of the user's concern
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, (workers or 1) + 1),
                    object_store_memory=STORE,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise ClusterError(f"ray: no cluster can be reached or started ({error})") from error
        if threading.current_thread() is threading.main_thread():  # Ray has handlers of its own
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray
    finally:
        with _no_other_cluster():
            ray.shutdown()


@contextlib.contextmanager
def _no_other_cluster() -> Iterator[None]:
    """Keeps the threads of an interrupted job from starting another cluster, by what they ask of the one that has just
    ended, and waits for them."""
    try:
        from ray._private import auto_init_hook as hook
    except ImportError:  # another version of Ray
        yield
        return
    before, hook.enable_auto_connect = hook.enable_auto_connect, False
    try:
        yield
        until = time.monotonic() + WIND_UP
        for thread in threading.enumerate():
            if thread.name.startswith((PULLING, "StreamingExecutor")):
                thread.join(max(0.0, until - time.monotonic()))
    finally:
        hook.enable_auto_connect = before


def pool(ray: Any, workers: int | None, device: str) -> tuple[int, dict[str, float]]:
    """Returns how many actors there are to be, and what each takes of the cluster.

    They leave a whole CPU. Without a number, there is one for each GPU, where they run on GPUs, or one for each CPU but
    one. Raises `ClusterError` where there is no GPU.
    """
    there = ray.cluster_resources()
    cpus, gpus = float(there.get("CPU", 0)), float(there.get("GPU", 0))
    if device.startswith("cuda"):
        if not gpus:
            raise ClusterError("device cuda: the cluster has no GPU; try --device cpu")
        count = workers or int(gpus)
        return count, {"num_cpus": 0.0, "num_gpus": _share(gpus, count)}
    count = workers or max(1, int(cpus) - 1)
    return count, {"num_cpus": _share(cpus - 1, count)}


def _share(of: float, count: int) -> float:
    """Returns what each of `count` takes, at most 1, in hundredths."""
    return min(1.0, max(0.0, math.floor(100 * of / count) / 100))


# -- in the cluster ------------------------------------------------------------------------------------------


class Worker:
    """An actor: it holds the model, and does blocks of files."""

    def __init__(self, plan: Plan, attempts: Any) -> None:
        self.attempts, self.broken = attempts, ""
        try:
            made = plan.made()
            name = "-".join(part for part in (plan.shard, "ray", secrets.token_hex(6)) if part)
            manifest = None if plan.out is None else Manifest(paths.located(plan.out), name, read=False)
            self.to_files = _ToFiles(made, manifest, plan.recipe)
            self.album, self.run = plan.album, plan.run
            attempts.loaded.remote(os.getpid(), time.process_time())
        except Exception as error:  # it is the driver that ends the run
            self.broken = reason(error)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Does the files of a block: `number`, `source` and `target`, the paths as bytes. Returns for each its number
        and a `row`, see `_row`."""
        import ray

        numbers = [int(number) for number in block["number"]]
        if self.broken:
            return _rows({number: pickle.dumps({"broken": self.broken}) for number in numbers})
        jobs = {
            number: paths.Job(paths.located(os.fsdecode(source)), paths.located(os.fsdecode(target)))
            for number, source, target in zip(numbers, block["source"], block["target"], strict=True)
        }
        if ray.get(self.attempts.begin.remote(f"block {numbers[0]}")) == 1:
            return _rows(dict(self._done(jobs)))
        rows: dict[int, bytes] = {}
        for number, job in jobs.items():  # an actor has died at one of them
            row = ray.get(self.attempts.known.remote(number))
            if row is None and ray.get(self.attempts.begin.remote(str(job.source))) > LIVES:
                row = _row(Outcome(job, error=InputError(f"{job.source}: a worker died {LIVES} times while doing it")))
            elif row is None:
                row = dict(self._done({number: job}))[number]
            self.attempts.end.remote(number, row)
            rows[number] = row
        return _rows(rows)

    def _done(self, jobs: dict[int, paths.Job]) -> Iterator[tuple[int, bytes]]:
        """Does jobs, and yields their numbers with what became of them."""
        album = None if self.album is None else pages.Album(*self.album[:2], maps=self.album[2])
        self.to_files.album = album
        last = time.monotonic()
        outcomes = stream(
            jobs.values(),
            self.to_files,
            jobs=self.run.jobs or 2,
            batch_size=self.run.batch_size,
            memory=self.run.memory_bytes,
        )
        for number, outcome in zip(jobs, outcomes, strict=True):
            if time.monotonic() - last > BEAT:
                self.attempts.beat.remote()
                last = time.monotonic()
            gallery = None if album is None else album.galleries.pop(str(outcome.source.target), None)
            yield number, _row(outcome, gallery)


def _rows(rows: dict[int, bytes]) -> dict[str, Any]:
    return {"number": np.array(list(rows)), "row": np.array(list(rows.values()), object)}


def _row(outcome: Outcome[paths.Job, Any], gallery: pages.Gallery | None = None) -> bytes:
    """Returns what the driver has to know of a file: `error`, or `written` and `gallery`; and `work`."""
    if outcome.error is not None:
        return pickle.dumps({"error": reason(outcome.error)})
    return pickle.dumps({"written": outcome.result(), "work": outcome.work, "gallery": gallery})


def reason(error: Exception) -> str:
    """Returns what to say of an error."""
    return str(error) if isinstance(error, AeimgError) else f"{type(error).__name__}: {error}"


class Bytes:
    """An actor: it holds the model, and turns files in memory into results in memory."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.made = plan, plan.made()

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Returns the block with the results in the place of `bytes`, with a `record` of each, as JSON, and `error`,
        which is empty where there is none."""
        run = self.plan.run
        data: list[bytes] = [bytes(one) for one in block["bytes"]]
        results, records, errors = [], [], []
        outcomes = stream(data, self.made, jobs=run.jobs or 2, batch_size=run.batch_size, memory=run.memory_bytes)
        for outcome in outcomes:
            result = None if outcome.error is not None else outcome.result()
            results.append(b"" if result is None else _as_bytes(result.value))
            records.append("{}" if result is None else json.dumps(result.record()))
            errors.append("" if outcome.error is None else reason(outcome.error))
        made = {"bytes": np.array(results, object), "record": np.array(records, object)}
        return {**block, **made, "error": np.array(errors, object)}


def _as_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise UsageError(f"a {type(value).__name__} is no file: use a task whose results are files")
    return value


# -- in the driver -------------------------------------------------------------------------------------------


@dataclass
class Waiting:
    """Whether the cluster goes on. Raises `ClusterError` where it has not for `patience` seconds."""

    ray: Any
    """The package."""
    attempts: Any
    """The actor that knows what was begun."""
    patience: float
    """In seconds."""
    need: dict[str, float]
    """What each actor takes of the cluster."""
    since: float = 0.0
    """When it was last seen to go on."""
    state: tuple[int, int, list[str]] = (0, 0, [])
    """What it said last."""
    asked: Any = None
    """The answer that it owes."""

    def seen(self) -> None:
        """Takes note that something came."""
        self.since = time.monotonic()

    def check(self) -> None:
        """Asks the actor of `attempts`, without waiting for it. Raises `ClusterError`."""
        if self.asked is None:
            self.asked = self.attempts.state.remote()
        elif self.ray.wait([self.asked], timeout=0)[0]:
            try:
                state = self.ray.get(self.asked)
            except self.ray.exceptions.RayError as error:
                raise ClusterError(f"ray: the actor that watches the workers is lost ({error})") from error
            if state[0] != self.state[0]:
                self.seen()
            self.state, self.asked = state, None
        if time.monotonic() - self.since > self.patience:
            raise ClusterError(f"ray: nothing has gone on for {self.patience:g} s: {self._cause()}; what is written is "
                               "whole, and the same call goes on with what is missing")  # fmt: skip

    def _cause(self) -> str:
        """Returns why nothing goes on, as far as that is known."""
        free, all_of_it = self.ray.available_resources(), self.ray.cluster_resources()
        for name, what in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            total, left, need = all_of_it.get(name, 0.0), free.get(name, 0.0), self.need.get(what, 0.0)
            if left < min(1.0, need) or (name == "CPU" and not left):
                return (
                    f"{total - left:g} of the {total:g} {name}s of the cluster are taken, so that an actor or a task "
                    "that reads may have to wait for ever (ray-project/ray#44687); ask for fewer workers"
                )
        _, begun, again = self.state
        if not begun:
            return "no worker has begun; look at the logs of Ray (/tmp/ray/session_latest/logs)"
        if again:
            return f"workers have died, and were begun again, at {', '.join(again[:3])}; do they have enough memory?"
        return "workers have begun, and have done nothing since; a picture may be very large, or a disk does not answer"


def rows_of(ray: Any, todo: Sequence[paths.Job], blocks: int) -> Any:
    """Returns the jobs as a Dataset, in so many blocks, of numbers and paths (as bytes, for names need not be text)."""

    def name(place: paths.Place) -> bytes:
        text = os.fspath(place)
        return os.fsencode(text if isinstance(place, Url) else os.path.abspath(text))

    rows = [
        {"number": number, "source": name(job.source), "target": name(job.target)} for number, job in enumerate(todo)
    ]
    return ray.data.from_items(rows, override_num_blocks=blocks)


class ClusterRun(_FileRun):
    """A run over files whose jobs the actors of a cluster do."""

    plan_of_workers: Plan
    workers: int | None = None
    patience: float = STALLED

    def _outcomes(
        self,
        todo: list[paths.Job],
        to_files: _ToFiles,
        late: list[Outcome[paths.Job, _Written]] | None = None,
        watched: Any = None,
    ) -> Generator[Outcome[paths.Job, _Written], None, None]:
        if watched is None:  # to estimate
            yield from super()._outcomes(todo, to_files, late)
            return
        for place in (to_files.manifest.out,) if to_files.manifest else ():
            _refuse_memory(place)
        for job in todo[:1]:
            _refuse_memory(job.source)
        if not todo:
            return
        shown = watched.progress if isinstance(watched, Watched) else None
        with _quiet(package()), connected(self.workers) as ray:  # quiet until the cluster has ended
            yield from self._from_actors(ray, todo, to_files, shown)

    def _from_actors(
        self, ray: Any, todo: list[paths.Job], to_files: _ToFiles, shown: Progress | None
    ) -> Generator[Outcome[paths.Job, _Written], None, None]:
        plan = self._plan(to_files)
        count, need = pool(ray, self.workers, plan.device)
        attempts = ray.remote(num_cpus=0)(Attempts).remote()
        waiting = Waiting(ray, attempts, self.patience, need)
        waiting.seen()
        block = min(LARGEST_BLOCK, max(1, len(todo) // (4 * count)))
        results = rows_of(ray, todo, -(-len(todo) // block)).map_batches(
            Worker,
            batch_size=None,
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=count),
            fn_constructor_args=[plan, attempts],
            **need,
        )  # fmt: skip
        done = pixels = 0
        for number, row in _pulled(results, waiting, len(todo)):
            if len(todo) == done + 1 and (wanted := loads.get()) is not None:
                wanted.update(ray.get(attempts.loads.remote()))
            about = pickle.loads(row)
            if "broken" in about:
                raise ModelError(about["broken"])
            job = todo[number]
            done, pixels = done + 1, pixels + about.get("work", 0)
            if shown is not None:
                shown.reach(pixels, total=pixels / done * len(todo))
            if "error" in about:
                yield Outcome(job, error=InputError(_as_named(about["error"], job)))
                continue
            written: _Written = about["written"]
            if to_files.album is not None and about["gallery"] is not None:
                to_files.album.adopt(str(job.target), about["gallery"], pages.rank(written.record))
            yield Outcome(job, written, None, about["work"])

    def _plan(self, to_files: _ToFiles) -> Plan:
        """Returns the plan with what is known only now."""
        out = None if to_files.manifest is None else os.fspath(to_files.manifest.out)
        if out is not None and not isinstance(to_files.manifest and to_files.manifest.out, Url):
            out = os.path.abspath(out)
        album = to_files.album
        return replace(
            self.plan_of_workers,
            out=out,
            shard="" if self.shard is None else self.shard.name,
            album=None if album is None else (self.files.report_bytes, album.count, album.maps),
        )


def _refuse_memory(place: paths.Place) -> None:
    if isinstance(place, Url) and place.store.scheme == "memory":
        raise UsageError(f"{place}: is in the memory of this process, which the workers of a cluster do not share")


def _as_named(text: str, job: paths.Job) -> str:
    """Returns a message of an actor, which knows absolute paths, with the names that the user has given."""
    for place in (job.target, job.source):
        if not isinstance(place, Url):
            text = text.replace(os.path.abspath(place), str(place))
    return text


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Keeps Ray Data's own bars and lines away from the progress that is shown."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data._internal")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


def _pulled(results: Any, waiting: Waiting, count: int) -> Iterator[tuple[int, bytes]]:
    """Yields numbers and rows as they come, each once. A thread waits for them, so that this one can be interrupted.

    Raises `ClusterError` where Ray fails, or where nothing goes on.
    """
    came: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def pull() -> None:
        try:
            for block in results.iter_batches(batch_size=None, prefetch_batches=0):
                came.put(block)
            came.put(None)
        except BaseException as error:
            came.put(error)

    threading.Thread(target=pull, name=PULLING, daemon=True).start()
    seen: set[int] = set()
    while len(seen) < count:
        try:
            block = came.get(timeout=0.5)
        except queue.Empty:
            waiting.check()
            continue
        if block is None or isinstance(block, BaseException):
            why = "it ended without all results" if block is None else str(block).strip().rpartition("\n")[2]
            raise ClusterError(f"ray: the job failed ({why}); the same call goes on with what is missing") from block
        waiting.seen()
        for number, row in zip(block["number"], block["row"], strict=True):
            if int(number) not in seen:
                seen.add(int(number))
                yield int(number), bytes(row)
    with contextlib.suppress(queue.Empty):  # Ray Data ends its job, and says so, which `_quiet` keeps from the user
        came.get(timeout=WIND_UP)
