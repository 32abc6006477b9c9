"""A Ray cluster does what one machine does: the same results, and nothing is lost, whatever dies."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import aeimg
from aeimg import ClusterError, UsageError, distributed
from aeimg.cli import main
from aeimg.engine import Interrupted

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'aeimg[ray]'")
pytest.importorskip("ray.data", reason="ray.data is not installed: pip install 'aeimg[ray]'")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two CPUs: two workers leave one of them to tasks that read."""
    ray.init(address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path, png):
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "in" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(random.integers(0, 256, (24, 32), np.uint8)))
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "in"


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.png")}


def without_times(summary: aeimg.Summary) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in ("seconds", "output")}
            for record in summary.files]  # fmt: skip


def test_a_cluster_gives_what_one_machine_gives_and_resumes_it(cluster, folder, tmp_path):
    # A batch of several pictures may round a value in the middle the other way than one picture by itself does.
    options = {"sigma": 20, "dtype": "fp32", "batch_size": 1}
    one = aeimg.process(folder, "denoise", out=tmp_path / "one", **options)
    page = tmp_path / "page.html"
    several = distributed.process(folder, "denoise", out=tmp_path / "several", workers=2, report=page, **options)
    assert contents(tmp_path / "several") == contents(tmp_path / "one") != {}
    assert without_times(several) == without_times(one)
    assert [str(path) for path, _ in several.failed] == [str(folder / "bad.png")]
    assert (several.done, several.pixels, several.bytes_out) == (one.done, one.pixels, one.bytes_out)
    assert page.read_bytes().count(b"UklGR") >= 12  # WebP files in base64
    assert not list(tmp_path.rglob("*.aeimg-part"))
    again = aeimg.process(folder, "denoise", out=tmp_path / "several", **options)
    assert (again.done, again.skipped) == (0, 12)
    os.unlink(tmp_path / "several" / "0" / "0.png")
    command = ["denoise", str(folder), str(tmp_path / "several"), "--sigma", "20", "--dtype", "fp32", "-b", "1"]
    done = CliRunner().invoke(main, [*command, "--engine", "ray", "--workers", "2"])
    assert done.exit_code == 1 and "1 done" in done.output and "11 skipped" in done.output, done.output
    assert contents(tmp_path / "several") == contents(tmp_path / "one")


def workers() -> list[int]:
    """The processes of actors that hold a model."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::") and b"Worker" in line and b"MapBatches" in line:
                found.append(int(entry.name))
    return found


def when_something_is_written(out: Path, do) -> threading.Thread:
    def wait() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if list(out.rglob("[0-9]*.png")):
                do()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found in /proc")
def test_nothing_is_lost_with_a_worker_that_is_killed(cluster, folder, tmp_path):
    out, killed = tmp_path / "out", []

    def kill() -> None:
        for process in workers()[:1]:
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    thread = when_something_is_written(out, kill)
    summary = distributed.process(folder, "denoise", out=out, workers=2, strength=0)
    thread.join()
    assert killed
    assert (summary.done, len(summary.failed), summary.planned) == (12, 1, 0)
    assert len(contents(out)) == 12
    assert distributed.process(folder, "denoise", out=out, workers=2, strength=0.0).skipped == 12


def test_an_interrupted_run_is_gone_on_with(cluster, folder, tmp_path):
    out = tmp_path / "out"
    thread = when_something_is_written(out, _thread.interrupt_main)
    with pytest.raises(Interrupted) as caught:
        distributed.process(folder, "denoise", out=out, workers=1, strength=0)
    thread.join()
    assert caught.value.summary.planned > 0
    there = len(contents(out))
    assert there > 0
    rest = aeimg.process(folder, "denoise", out=out, strength=0)
    assert rest.done + rest.skipped == 12 and len(rest.failed) == 1
    assert rest.skipped > 0
    assert len(contents(out)) == 12


INTERRUPTED = """
import _thread, sys, threading, time
from pathlib import Path
from aeimg import distributed
from aeimg.engine import Interrupted
out = Path(sys.argv[2])
def stop():
    while not list(out.rglob("[0-9]*.png")):
        time.sleep(0.01)
    _thread.interrupt_main()
threading.Thread(target=stop, daemon=True).start()
try:
    distributed.process(sys.argv[1], "denoise", out=out, workers=1, strength=0)
except Interrupted:
    import ray
    time.sleep(3)
    print("initialised" if ray.is_initialized() else "ended")
"""


def test_an_interrupted_run_ends_its_cluster_and_starts_no_other(folder, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", INTERRUPTED, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == "ended", done.stderr
    # What Ray itself logs of tasks that the end of the cluster has cut short depends on time.
    assert "Exception in thread" not in done.stderr


def test_a_job_that_can_not_go_on_ends_with_the_cause(cluster, folder, tmp_path):
    class Holder:
        def ready(self) -> bool:
            return True

    holder = ray.remote(num_cpus=2)(Holder).remote()
    assert ray.get(holder.ready.remote())
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"nothing has gone on for 5 s: 2 of the 2 CPUs.* are taken"):
        distributed.process(folder, "denoise", out=tmp_path / "out", workers=2, strength=0, stall_timeout=5)
    assert time.monotonic() - began < 120
    ray.kill(holder)


def test_a_dataset_of_files_becomes_one_of_results(cluster, folder):
    made = distributed.process(ray.data.read_binary_files(str(folder), include_paths=True), "denoise", workers=1,
                               strength=0)  # fmt: skip
    rows = {Path(row["path"]).name: row for row in made.take_all()}
    assert len(rows) == 13
    assert rows["bad.png"]["error"] and not rows["bad.png"]["bytes"]
    wanted = aeimg.process((folder / "0" / "0.png").read_bytes(), "denoise", strength=0)
    assert rows["0.png"]["bytes"] == wanted and '"width": 32' in rows["0.png"]["record"]


def test_a_store_that_is_full_loses_nothing(cluster, folder, tmp_path, png):
    held = [ray.put(np.full(36 << 20, number, np.uint8)) for number in range(6)]  # 216 MB; the store has 200
    random = np.random.default_rng(1)
    for number in range(30):  # 3 MB each, and as much again for each result
        (folder / f"large-{number}.png").write_bytes(png(random.integers(0, 256, (1000, 1000, 3), np.uint8)))
    made = distributed.process(ray.data.read_binary_files(str(folder), include_paths=True), "denoise", workers=1,
                               strength=0)  # fmt: skip
    rows = {Path(row["path"]).name: row for row in made.iter_rows()}
    assert len(rows) == 43 and [name for name, row in rows.items() if row["error"]] == ["bad.png"]
    for number in range(0, 30, 10):
        name = f"large-{number}.png"
        assert rows[name]["bytes"] == aeimg.process((folder / name).read_bytes(), "denoise", strength=0)
    summary = distributed.process(folder, "denoise", out=tmp_path / "out", workers=1, strength=0)
    assert (summary.done, len(summary.failed)) == (42, 1) and len(contents(tmp_path / "out")) == 42
    assert [int(ray.get(one)[0]) for one in held] == list(range(6))


def test_the_bench_states_what_a_cluster_costs(cluster, folder, tmp_path, monkeypatch):
    (folder / "bad.png").unlink()
    monkeypatch.setattr("aeimg.bench.scale.ROUNDS", 1)
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(main, ["bench", "scale", str(folder), "--limit", "2", "--json", str(file)])
    assert done.exit_code == 0 and "start and end of the cluster" in done.output, done.output
    rows = json.loads(file.read_bytes())["rows"]
    assert list(rows) == ["plain", "ray, 1", "ray, 2"] and rows["plain"]["above"] == 0
    for name, row in rows.items():
        assert row["files"] == 2 and row["rounds"] == [row["cpu_per_megapixel"]]
        assert row["cpu_per_megapixel"] > 0 and ("loading" in row) == (name != "plain")
    assert rows["ray, 1"]["loading"] > 0.5  # seconds: it imports torch


def test_what_a_cluster_can_not_do_is_refused(cluster, folder):
    with pytest.raises(UsageError, match="memory of this process"):
        distributed.process(folder, "denoise", out="memory://out", strength=0)
    with pytest.raises(UsageError, match="watch is for one machine"):
        distributed.process(folder, "denoise", out="out", watch=True)
    with pytest.raises(UsageError, match="at least 1"):
        distributed.process(folder, "denoise", out="out", workers=0)
