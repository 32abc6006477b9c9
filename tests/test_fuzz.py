"""Forged latents, weights, checkpoints and manifests, as Hypothesis thinks them up: a typed error, or it works.

The mutator knows the structure of each file: it changes sections, JSON values and tensors rather than bytes alone, and
makes lengths and checksums right again, so that what lies behind them is reached. Each kind gets a fifth of
`AEIMG_FUZZ_SECONDS`, 15 where nothing is said; CONTRIBUTING.md has the command for an hour. What fails is printed with
the seed, and is to become a test of its own in `test_forged.py` or `test_hostile.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

from aeimg import AeimgError, container, process, registry, weights
from aeimg.manifest import NAME, Manifest, Record, digest
from aeimg.paths import Job
from aeimg.training.checkpoints import read_checkpoint, restore, save_checkpoint, steps_of_checkpoint, tensors_of
from aeimg.training.journal import Journal
from aeimg.training.optimizers import make_optimizers

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("AEIMG_FUZZ_SECONDS", "15")) / 5
"""How long each kind of file is forged."""
SLOWEST = 20.0
"""How many seconds one forged file may take: far more than any does, as the machines that run this are shared."""


def fuzz(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Runs `check` on examples of `strategy`, seed after seed, until the time is up."""
    end, examples = time.monotonic() + SECONDS, 0
    first = int(os.environ.get("AEIMG_FUZZ_SEED", "0"))
    number = first
    while time.monotonic() < end or number == first:

        @seed(number)
        @settings(max_examples=100, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def attempt(example: Any) -> None:
            nonlocal examples
            if time.monotonic() > end and examples > 20:
                return
            examples += 1
            began = time.process_time()
            check(example)
            assert time.process_time() - began < SLOWEST

        try:
            attempt()
        except BaseException:
            print(f"found with AEIMG_FUZZ_SEED={number}")
            raise
        number += 1
    print(f"{examples} examples, seeds {first} to {number - 1}")


# -- the mutator -------------------------------------------------------------------------------------------------------

ODD_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    16,
    17,
    100,
    101,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**53,
    2**64,
]
ODD_VALUES: list[Any] = [
    *ODD_NUMBERS, None, True, False, "", "x", "\0", "../x", "\x1b[2J", "x" * 300, 0.5, -0.5, 1e300, float("nan"),
    float("inf"), [], {}, [1], [[]], [0] * 50, {"x": 1}, "aeimg-codec-5", "unet", "hyperprior", "dense", "denoise",
    "compress",
]  # fmt: skip

Change = tuple[int, int, int]
changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(st.integers(0, 11), st.integers(0, 1 << 30), st.integers(0, 1 << 16)), min_size=1, max_size=5
)
"""What is done, where, and with what: each of them modulo what there is."""


def mutated_bytes(data: bytes, change: Change) -> bytes:
    kind, where, value = change
    at = where % (len(data) + 1)
    return [
        data[:at] + bytes([value & 255]) + data[at + 1 :],
        data[:at] + data[at + 1 + value % 8 :],
        data[:at] + bytes([value & 255]) * (1 + value % 9) + data[at:],
        data[:at] + (ODD_NUMBERS[value % len(ODD_NUMBERS)] % 2**32).to_bytes(4, "little") + data[at + 4 :],
        data[:at],
        data + data[:at],
    ][kind % 6]


def mutated_json(value: Any, change: Change) -> Any:
    """`value` with one thing in it exchanged, removed, doubled, or nested deep."""
    kind, where, odd = change
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, below in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(below, dict | list):
                visit(below)

    visit(value)
    if not places:
        return ODD_VALUES[odd % len(ODD_VALUES)]
    holder, key = places[where % len(places)]
    if kind % 4 == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind % 4 == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder[key]
    elif kind % 4 == 2 and isinstance(holder[key], list):
        holder[key] = holder[key] * (odd % 4)
    else:
        holder[key] = ODD_VALUES[odd % len(ODD_VALUES)]
    return value


KINDS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int32, torch.int64, torch.uint8,
         torch.bool, torch.complex64]  # fmt: skip

ODD_REALS = [0, 1, -1, 63, 64, 127, -128, 2**31 - 1, -(2**31), float("nan"), float("inf"), 1e30]


def mutated_tensors(tensors: dict[str, torch.Tensor], change: Change) -> dict[str, torch.Tensor]:
    """`tensors` with one of them changed, exchanged, renamed or removed."""
    kind, where, value = change
    names = sorted(tensors)
    name = names[where % len(names)]
    tensor, made = tensors[name], dict(tensors)
    if kind == 0:
        del made[name]
    elif kind == 1:
        made[f"{name}x"] = made.pop(name)
    elif kind == 2:
        made[name] = tensors[names[value % len(names)]].clone()
    elif kind == 3:
        made[name] = tensor.flatten()[: value % 50].clone()
    elif kind == 4:
        made[name] = tensor.to(KINDS[value % len(KINDS)])
    elif kind == 5:
        made[name] = torch.zeros([value % 3] * (value % 5), dtype=tensor.dtype)
    else:
        flat = tensor.clone().flatten()
        if flat.numel():
            odd = ODD_REALS[value % len(ODD_REALS)]
            if not flat.is_floating_point() and not flat.is_complex():
                bounds = None if flat.dtype == torch.bool else torch.iinfo(flat.dtype)
                finite = int(odd) if abs(odd) < 2**40 else 1
                odd = min(max(finite, bounds.min), bounds.max) if bounds else finite % 2
            # As a tensor, because torch refuses a number that is too large for the type.
            flat[where % flat.numel()] = torch.tensor(odd).to(flat.dtype)
        made[name] = flat.view(tensor.shape)
    return made


def forged_safetensors(about: Any, tensors: dict[str, torch.Tensor], key: str, todo: list[Change]) -> bytes:
    """A safetensors file with the JSON `about` under `key`, after all changes; lengths are made right."""
    raw: list[Change] = []
    for change in todo:
        if change[0] < 6:
            about = mutated_json(about, (change[2], change[1], change[1] >> 5))
        elif change[0] < 11:
            tensors = mutated_tensors(tensors, (change[2] % 8, change[1], change[2] >> 3))
        else:
            raw.append(change)
    text = json.dumps(about)
    if todo[0][0] == 0 and todo[0][1] % 50 == 0:
        text = "[" * 50_000 + text
    data = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {key: text})
    for change in raw:
        if change[2] % 2 and len(data) >= 8:  # the header of safetensors itself
            (length,) = struct.unpack("<Q", data[:8])
            head = mutated_bytes(data[8 : 8 + length], (change[2] >> 1, change[1], change[2]))
            data = struct.pack("<Q", len(head)) + head + data[8 + length :]
        else:
            data = mutated_bytes(data, (change[2] >> 1, change[1], change[2]))
    return data


# -- latents -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latents(small) -> list[bytes]:
    """Small latents of several codecs, and the golden ones."""
    from PIL import Image

    rgba = np.dstack([small[:40, :48], small[:40, :48, 1]])
    image = Image.fromarray(small[:40, :48])
    image.info |= {"dpi": (72, 72), "comment": b"made by hand"}
    image.getexif()[270] = "a cat"
    made = [process(rgba, "compress", model=model, quality=20) for model in (None, "vanilla", "conv", "variational")]
    made += [process(image, "compress"), container.write(container.Stored(process(image, "compress")))]
    page = container.Page(2, 3, 40_000, 5, b"12345678")
    made += [container.write(dataclasses.replace(container.read(latent), page=page)) for latent in (made[1], made[-1])]
    golden = (Path(__file__).parent / "golden").glob("*.aei")
    return [*made, *(path.read_bytes() for path in sorted(golden) if path.stat().st_size < 20_000)]


def forged_latent(data: bytes, todo: list[Change]) -> bytes:
    """A latent file after all changes; the lengths of its sections and its checksum are made right."""
    sections = [(tag.encode("latin-1"), payload) for tag, payload in container.sections(data).items()]
    for kind, where, value in todo:
        at = where % max(len(sections), 1)
        if not sections or kind == 8:
            sections.append((bytes([value & 255]), bytes(value % 40)))
        elif kind == 9:
            del sections[at]
        elif kind == 10:
            sections[at], sections[0] = sections[0], sections[at]
        elif kind == 11 and sections[at][0] in b"CEXik":
            try:
                inflated = zlib.decompress(sections[at][1])
            except zlib.error:  # an earlier change has broken it
                continue
            sections[at] = sections[at][0], zlib.compress(mutated_bytes(inflated, (value, where >> 4, value >> 3)))
        else:
            sections[at] = sections[at][0], mutated_bytes(sections[at][1], (kind, where >> 4, value))
    body = b"".join(tag + container._varint(len(payload)) + payload for tag, payload in sections)
    whole = data[:5] + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def test_forged_latents(latents):
    def check(example: tuple[int, list[Change]]) -> None:
        data = forged_latent(latents[example[0] % len(latents)], example[1])
        try:
            assert process(data, "decompress", kind="numpy").ndim in (2, 3)
        except AeimgError:
            pass

    fuzz(st.tuples(st.integers(0, 99), changes), check)


def test_bytes_that_are_only_resealed(latents):
    def check(example: tuple[int, list[Change]]) -> None:
        data = latents[example[0] % len(latents)][:-4]
        for change in example[1]:
            data = data[:5] + mutated_bytes(data[5:], change)
        try:
            process(data + struct.pack("<I", zlib.crc32(data)), "decompress", kind="numpy")
        except AeimgError:
            pass

    fuzz(st.tuples(st.integers(0, 99), changes), check)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_forged_weights(tmp_path, small):
    sound = []
    for name in ("vanilla", "conv", "variational", "denoising", "sparse"):
        header, tensors, _ = weights.load_tensors(weights.find_weights(registry.BUILTINS[name][1]))
        sound.append(({"format": 1, **vars(header)}, tensors))
    path, picture = tmp_path / "x.safetensors", small[:40, :48]

    def check(example: tuple[int, list[Change]]) -> None:
        about, tensors = sound[example[0] % len(sound)]
        path.write_bytes(forged_safetensors(about, tensors, "aeimg", example[1]))
        try:
            header = weights.read_header(path)
            weights.identify(path)
            registry.load_model(path)
        except AeimgError:
            return
        try:
            made = process(picture, header.task, model=path)  # type: ignore[call-overload]
            if header.task == "compress":
                process(made, "decompress", model=path)
        except AeimgError:
            pass

    fuzz(st.tuples(st.integers(0, 99), changes), check)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_forged_checkpoints(tmp_path):
    network = weights.build("dense", {"side": 4, "widths": [3]})
    optimizers = make_optimizers(network, 1e-3, 0.99, torch.float32, muon=False)
    network(torch.rand(2, 1, 4, 4)).sum().backward()
    optimizers[0].step()
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tensors = tensors_of({"model": network.state_dict(), "average": average}, optimizers)
    journal = Journal(3, 1.5, [(1, 0.5), (3, 0.25)], [{"step": 3, "bce": 0.5}], best=0, ending=(2, 3, 0.5))
    path = tmp_path / "c"
    call = {"task": "vanilla", "config": {"side": 4}, "recipe": {"crop": 4}, "seed": 0, "start": None, "patience": 3}
    save_checkpoint(path, tensors, journal, call)
    read_checkpoint(path)
    about = {"format": 2, "journal": vars(journal), "call": call}

    def check(todo: list[Change]) -> None:
        path.write_bytes(forged_safetensors(about, tensors, "checkpoint", todo))
        steps_of_checkpoint(path)
        try:
            _, _, found = read_checkpoint(path)
            restore(path, found, {"model": network, "average": network}, optimizers)
            optimizers[0].step()
        except AeimgError:
            pass

    fuzz(changes, check)


# -- manifests ---------------------------------------------------------------------------------------------------------


def test_forged_manifests(tmp_path):
    out, source = tmp_path / "out", tmp_path / "a.png"
    source.write_bytes(b"input")
    job = Job(source, out / "a.aei")
    status = source.stat()
    record = Record("r", 5, status.st_mtime_ns, digest(b"input"), 6, digest(b"result"), status.st_ctime_ns)
    Manifest(out).add(job, record)
    job.target.write_bytes(b"result")
    entry = json.loads((out / NAME).read_bytes())

    def check(todo: list[Change]) -> None:
        line = b""
        for change in todo:
            if change[0] < 8:
                line += b"\n" + json.dumps(mutated_json(entry, (change[2], change[1], change[1] >> 5))).encode()
            else:
                line = mutated_bytes(line or json.dumps(entry).encode(), change)
        (out / NAME).write_bytes(line)
        manifest = Manifest(out)
        for recipe in ("r", "other"):
            manifest.state(job, recipe)
        manifest.add(job, record)
        assert Manifest(out).state(job, "r").value == "current"

    fuzz(changes, check)
