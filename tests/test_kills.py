"""Runs that are killed at random moments: every file is whole, no input has changed, the next run finishes the work.
A training is resumed where it has left a checkpoint, and ends with the weights of one that nobody has disturbed.

`AEIMG_KILL_MOMENTS` says how many moments, 10 where nothing is said; CONTRIBUTING.md has the command for 300. The runs
are forks of a process that has imported everything, so that the moments fall on work and not on imports.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aeimg import container, weights
from aeimg.training.checkpoints import read_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
]

MOMENTS = int(os.environ.get("AEIMG_KILL_MOMENTS", "10"))
SEED = int(os.environ.get("AEIMG_KILL_SEED", "0"))
COMMANDS = ("denoise", "denoise pages", "compress", "compress pages", "decompress", "join", "features", "score",
            "sample", "train")  # fmt: skip
LONGEST = 120
"""Seconds after which a run counts as hung."""


def run_cli(argv: list[str]) -> None:
    """Runs in a fork: the command line, silently."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nowhere, number)
    from aeimg.cli import main
    from aeimg.training import loop

    loop.SECONDS_BETWEEN_CHECKPOINTS = 0.1  # so that runs that are killed leave some, too
    main(argv, prog_name="aeimg")


@pytest.fixture(scope="module")
def fork():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aeimg.cli", "aeimg.engine", "aeimg.explore", "aeimg.training", "aeimg.report",
                                    "aeimg.patch_codec", "tifffile", "matplotlib.figure"])  # fmt: skip

    def start(argv: list[str]):
        process = context.Process(target=run_cli, args=(argv,))
        process.start()
        return process

    start(["--version"]).join()
    return start


def tree(folder: Path, hidden: bool = False) -> dict[str, str]:
    """The files below a folder, by their content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (hidden or not path.name.startswith("."))
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for name in ("pictures", "pages", "digits"):
        (folder / name).mkdir()
    for number in range(12):
        noise = Image.fromarray(rng.integers(0, 256, (150, 160, 3), np.uint8))
        noise.save(folder / f"pictures/{number}.{('png', 'jpg', 'webp')[number % 3]}")
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / f"digits/{number}.png")
    for number in range(3):
        first, *rest = (Image.fromarray(rng.integers(0, 256, (90, 80, 3), np.uint8)) for _ in range(5))
        first.save(folder / f"pages/{number}.tif", save_all=True, append_images=rest)
    return folder


def command(kind: str, inputs: Path, out: Path) -> list[str]:
    pictures, pages = str(inputs / "pictures"), str(inputs / "pages")
    files = ["-q", "-j", "3"]
    return {
        "denoise": ["denoise", pictures, str(out), "--model", "denoising", "--sigma", "9", *files],
        "denoise pages": ["denoise", pages, str(out), "--pages", "all", "--model", "denoising", "--sigma", "9", *files],
        "compress": ["compress", pictures, str(out), "--model", "vanilla", *files],
        "compress pages": ["compress", pages, str(out), "--pages", "all", "--model", "vanilla", *files],
        "decompress": ["decompress", str(inputs / "latents"), str(out), *files],
        "join": ["decompress", str(inputs / "latents"), str(out), "--join", *files],
        "features": ["features", pictures, str(out / "f.csv"), "--model", "vanilla", "-q"],
        "score": ["score", pictures, str(out / "s.csv"), "--model", "vanilla", "--heatmaps", str(out / "maps"), "-q"],
        "sample": ["sample", str(out), "--model", "variational"],
        "train": ["train", "vanilla", str(inputs / "digits"), "-o", str(out / "w.safetensors"), "--steps", "300",
                  "--if-exists", "overwrite"],
    }[kind]  # fmt: skip


def check_whole(out: Path) -> None:
    """Every file under its final name can be read to its end."""
    for path in out.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        data = path.read_bytes()
        if path.suffix == ".aei":
            container.read(data, str(path))
        elif path.suffix == ".safetensors":
            weights.load_tensors(path)
        elif path.suffix == ".csv":
            assert data.endswith(b"\n"), path
        elif path.suffix in (".png", ".jpg", ".webp", ".tif"):
            with Image.open(io.BytesIO(data)) as image:
                for frame in range(getattr(image, "n_frames", 1)):
                    image.seek(frame)
                    image.load()
        else:
            read_checkpoint(path)


def next_run(kind: str, inputs: Path, out: Path) -> list[str]:
    """The command that goes on after a kill."""
    checkpoint = out / "w.safetensors.checkpoint"
    resume = ["--resume", str(checkpoint)] if kind == "train" and checkpoint.exists() else []
    return command(kind, inputs, out) + resume


def same_weights(*folders: Path) -> bool:
    one, other = (weights.load_tensors(folder / "w.safetensors")[1] for folder in folders)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finish(process) -> int:
    process.join(LONGEST)
    assert not process.is_alive(), "it hangs"
    return process.exitcode


def test_killed_runs_lose_nothing(fork, inputs, tmp_path):
    for name in ("pages", "pictures"):
        argv = ["compress", str(inputs / name), str(inputs / "latents" / name), "--model", "vanilla", "-q"]
        assert finish(fork([*argv, "--pages", "all"])) == 0
    whole, seconds = {}, {}
    for kind in COMMANDS:
        began, out = time.monotonic(), tmp_path / "whole" / kind
        out.mkdir(parents=True)
        assert finish(fork(command(kind, inputs, out))) == 0, kind
        whole[kind], seconds[kind] = tree(out), time.monotonic() - began
    before, chosen, ended = tree(inputs, hidden=True), random.Random(SEED), Counter()
    for moment in range(MOMENTS):
        kind = COMMANDS[moment % len(COMMANDS)]
        number = signal.SIGKILL if (moment + moment // len(COMMANDS)) % 2 else signal.SIGTERM
        out = tmp_path / f"{moment}"
        out.mkdir()
        process = fork(command(kind, inputs, out))
        time.sleep(chosen.random() * seconds[kind])
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.kill(process.pid, number)
        code = finish(process)
        about = f"moment {moment} of seed {SEED}: {kind}, {number.name}, exit {code}"
        ended[f"{number.name} {code}"] += 1
        # Before the command has set its handler, SIGTERM ends the process as usual; at its end, it comes too late.
        assert code in ((-9, 0) if number == signal.SIGKILL else (130, 0, -15)), about
        check_whole(out)
        if number == signal.SIGTERM and code == 130:
            assert not list(out.rglob("*.aeimg-part")), about
        assert tree(inputs, hidden=True) == before, about
        following = next_run(kind, inputs, out)
        assert finish(fork(following)) == 0, about
        check_whole(out)
        if kind == "train":
            ended["resumed"] += "--resume" in following
            assert tree(out).keys() == whole[kind].keys(), about
            assert same_weights(out, tmp_path / "whole" / kind), about
        else:
            assert tree(out) == whole[kind], about
    print(f"{MOMENTS} moments, seed {SEED}: {dict(ended)}")
