"""Weights files, labels and checkpoints that somebody forged: a typed error refuses each, before it costs much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aeimg import (
    AeimgError,
    InvalidLatent,
    InvalidWeights,
    ModelError,
    UsageError,
    WrongWeights,
    container,
    process,
    registry,
    weights,
)
from aeimg.training.checkpoints import read_checkpoint, steps_of_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sound() -> dict[str, tuple[dict, dict[str, torch.Tensor]]]:
    """Header and tensors of weights files, by name."""
    found = {}
    for name in ("conv", "vanilla", "variational", "aeimg-codec", "denoising", "aeimg-denoise"):
        header, tensors, _ = weights.load_tensors(weights.find_weights(registry.BUILTINS[name][1]))
        found[name] = asdict(header), tensors
    return found


def forged(folder: Path, header: object, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "x.safetensors"
    text = header if isinstance(header, str) else json.dumps({"format": 1, **header})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"aeimg": text})
    return path


def test_the_fixture_makes_files_that_are_loaded(sound, tmp_path):
    for header, tensors in sound.values():
        assert registry.load_model(forged(tmp_path, header, tensors)).label == f"{header['name']}-{header['version']}"


# -- labels ------------------------------------------------------------------------------------------------------------

LABELS = [
    "/tmp/x.safetensors", "../x-1", "..", "x/../../y-1", "spandrel:x.pth", "spandrel:/dev/zero", "x.safetensors",
    "\\\\host\\share\\x-1", "C:x-1", "x-1:stream", "a\0b-1", "a\nb-1", "\x1b[2Jx-1", "x" * 5000 + "-1", "", "-1",
    ".x-1",
    "é" * 80,
]  # fmt: skip


@pytest.fixture(scope="module")
def coded(small) -> container.Coded:
    latent = container.read(process(small, "compress", model="vanilla"))
    assert isinstance(latent, container.Coded)
    return latent


@pytest.mark.parametrize("label", LABELS, ids=ascii)
def test_the_label_of_a_latent_opens_no_path(coded, label, monkeypatch):
    opened = []
    monkeypatch.setattr(weights, "open_regular", lambda path: opened.append(path))
    monkeypatch.setattr(registry, "_spandrel", lambda name: opened.append(name))
    with pytest.raises((WrongWeights, InvalidLatent)) as caught:
        process(container.write(replace(coded, label=label)), "decompress")
    assert not opened
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_the_label_of_a_latent_does_not_open_weights_that_it_names_by_their_path(coded, tmp_path, monkeypatch):
    source = weights.find_weights(coded.label)
    target = tmp_path / "there.safetensors"
    target.write_bytes(source.read_bytes())
    for label in (str(target), os.path.relpath(target)):
        with pytest.raises(WrongWeights, match="is no label"):
            process(container.write(replace(coded, label=label)), "decompress")
    (tmp_path / "mine-1.safetensors").write_bytes(source.read_bytes())
    monkeypatch.setenv("AEIMG_WEIGHTS", str(tmp_path))
    with pytest.raises(WrongWeights, match="these weights are vanilla-1"):  # found, and not those it names
        process(container.write(replace(coded, label="mine-1")), "decompress")


# -- weights -----------------------------------------------------------------------------------------------------------

HEADERS = {
    "deep": "[" * 100_000,
    "deep card": '{"format": 1, "card": ' + '{"a":' * 20_000 + "1" + "}" * 20_001,
    "list": "[]",
    "number": "1",
    "nothing": "{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_none_are_refused(sound, tmp_path, name):
    path = forged(tmp_path, HEADERS[name], sound["vanilla"][1])
    for load in (weights.read_header, weights.load_tensors, weights.identify, registry.load_model):
        with pytest.raises(InvalidWeights, match=r"x\.safetensors: not a weights file of aeimg"):
            load(path)


CHANGES = [
    {"architecture": 3}, {"architecture": "none"}, {"architecture": ["unet"]}, {"config": []}, {"config": 3},
    {"config": {"x": 1}}, {"task": "denoise"}, {"task": None}, {"task": ["compress"]}, {"name": 1}, {"name": ""},
    {"name": "a\x1b[2J"}, {"name": "x" * 300}, {"version": "1"}, {"version": True}, {"version": -1}, {"version": 1.5},
    {"version": 10**30}, {"card": []}, {"card": None}, {"config": {"side": "28"}}, {"config": {"side": 10**9}},
    {"config": {"side": -1}}, {"config": {"side": 28.0}}, {"config": {"widths": 64}}, {"config": {"widths": [[64]]}},
    {"config": {"widths": []}}, {"config": {"widths": [64] * 100_000}}, {"config": {"activation": 1}},
    {"architecture": "unet"}, {"architecture": "unet", "task": "denoise"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ascii(change)[:60])
def test_headers_with_wrong_values_are_refused(sound, tmp_path, change):
    header, tensors = sound["vanilla"]
    path = forged(tmp_path, {**header, **change}, tensors)
    began = time.process_time()
    with pytest.raises(InvalidWeights, match=r"x\.safetensors: ") as caught:
        registry.load_model(path)
    assert time.process_time() - began < 2
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("config", [{"slope": float("nan")}, {"slope": "x"}, {"slope": 1e300}, {"channels": [1] * 60},
                                    {"channels": [16, 8, 0]}])  # fmt: skip
def test_configs_with_wrong_values_are_refused(sound, tmp_path, config):
    header, tensors = sound["conv"]
    with pytest.raises(InvalidWeights, match=r"x\.safetensors: "):
        registry.load_model(forged(tmp_path, {**header, "config": {**header["config"], **config}}, tensors))


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


LARGE = {
    "aeimg-codec": [{"codes": 30_000}, {"width8": 1 << 20}, {"analysis8": 1 << 20}, {"rate_points": 1 << 20}],
    "aeimg-denoise": [{"channels": [32, 96, 128, 1 << 18]}, {"blocks": [1, 1, 2, 1 << 20]}, {"unshuffle": 1 << 10}],
}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads memory from /proc")
@pytest.mark.parametrize(("name", "config"), [(name, config) for name, many in LARGE.items() for config in many],
                         ids=ascii)  # fmt: skip
def test_a_config_that_asks_for_more_than_the_file_holds_costs_nothing(sound, tmp_path, name, config):
    header, tensors = sound[name]
    path = forged(tmp_path, {**header, "config": {**header["config"], **config}}, tensors)
    with pytest.raises(InvalidWeights):  # imports what has to be
        registry.load_model(path)
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is a new one
    before, began = peak_memory(), time.process_time()
    with pytest.raises(InvalidWeights, match="x.safetensors: "):
        registry.load_model(path)
    assert time.process_time() - began < 2
    assert peak_memory() - before < 50 << 20


def kinds(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """What may stand in the place of a tensor."""
    return {
        "shape": torch.zeros(3, dtype=tensor.dtype), "scalar": torch.zeros((), dtype=tensor.dtype),
        "empty": torch.zeros(0, dtype=tensor.dtype), "nan": torch.full(tensor.shape, torch.nan),
        "inf": torch.full(tensor.shape, torch.inf), "complex": torch.zeros(tensor.shape, dtype=torch.complex64),
        "bool": torch.zeros(tensor.shape, dtype=torch.bool), "minus": torch.full(tensor.shape, -5, dtype=torch.int32),
        "large": torch.full(tensor.shape, (1 << 31) - 1, dtype=torch.int32),
        "int64": torch.full(tensor.shape, 1 << 40), "float8": torch.zeros(tensor.shape).to(torch.float8_e4m3fn),
    }  # fmt: skip


FORGED_TENSORS = [
    *(("conv", name) for name in ("code/centre", "code/spread", "code/index", "code/errors",
      "code/tables", "last.bias")),
    *(("aeimg-codec", name) for name in ("tables", "integer/rate", "integer/side", "integer/side_step",
      "integer/magnitude", "integer/base", "integer/combine1.2.shift", "integer/expand2.weight", "integer/expand1.bias",
      "linear", "means.rate")),
    ("aeimg-denoise", "head.weight"),
]  # fmt: skip
HARMLESS = {"code/centre": {"minus", "large", "int64", "bool", "float8"},
            "code/spread": {"large", "int64"},
            "code/errors": {"minus", "large", "int64", "bool", "float8"},
            "integer/expand1.bias": {"minus"}, "integer/rate": {"minus"}, "integer/base": {"minus"},
            "integer/expand2.weight": {"minus"}}  # fmt: skip
"""What another set of weights might hold."""


@pytest.mark.parametrize(("name", "tensor"), FORGED_TENSORS, ids=ascii)
def test_tensors_that_are_missing_or_of_a_wrong_kind_are_refused(sound, tmp_path, name, tensor):
    header, tensors = sound[name]
    changed = {kind: {**tensors, tensor: other} for kind, other in kinds(tensors[tensor]).items()}
    changed["missing"] = {key: value for key, value in tensors.items() if key != tensor}
    for kind, forgery in changed.items():
        if kind in HARMLESS.get(tensor, ()):
            continue
        with pytest.raises(InvalidWeights, match=r"x\.safetensors: "):
            registry.load_model(forged(tmp_path, header, forgery))


def test_a_tensor_that_no_config_has_is_refused(sound, tmp_path):
    header, tensors = sound["vanilla"]
    for more in ({"x": torch.zeros(1)}, {"code/x": torch.zeros(64 << 18)}):
        with pytest.raises(InvalidWeights, match="config|tables"):
            registry.load_model(forged(tmp_path, header, {**tensors, **more}))


@pytest.mark.parametrize("name", ["vanilla", "aeimg-codec", "aeimg-denoise"])
def test_weights_that_are_not_finite_are_not_loaded(sound, tmp_path, name):
    header, tensors = sound[name]
    chosen = next(key for key, tensor in tensors.items() if tensor.dtype == torch.float16)
    for value in (torch.nan, torch.inf):
        broken = tensors[chosen].clone()
        broken.view(-1)[-1] = value
        path = forged(tmp_path, header, {**tensors, chosen: broken})
        with pytest.raises(InvalidWeights, match=rf"x\.safetensors: {chosen} is not finite"):
            registry.get(path, header["task"], CPU)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "missing", "nul", "long"])
def test_weights_are_regular_files(tmp_path, kind):
    path = str(tmp_path / "x.safetensors")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    elif kind == "folder":
        os.mkdir(path)
    path = {"nul": "x\0.safetensors", "long": "x" * 5000 + ".safetensors"}.get(kind, path)
    found: list[BaseException] = []

    def load() -> None:
        try:
            registry.get(path, "compress", CPU)
        except ModelError as error:
            found.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(found) == 1


FLOAT64 = """
import numpy as np, torch
from skimage import data
from aeimg import process
x = np.ascontiguousarray(data.chelsea()[90:191, 120:263])
calls = [("denoise", {}), ("compress", {}), ("compress", {"effort": 2}), ("compress", {"model": "conv"}),
         ("features", {}), ("score", {"model": "conv"})]
def results():
    made = [process(x, task, dtype="fp32", **options) for task, options in calls]
    return made + [process(one, "decompress", kind="numpy", dtype="fp32") for one in made if isinstance(one, bytes)]
first = results() if __import__("sys").argv[1] == "after" else None
torch.set_default_dtype(torch.float64)
print(*(hash(str(one) if not isinstance(one, np.ndarray) else one.tobytes()) for one in first or results()))
"""


def test_a_host_whose_default_dtype_is_float64_gets_the_same():
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    calls = ([sys.executable, "-c", FLOAT64, when] for when in ("before", "after"))
    made = [subprocess.run(call, env=environment, capture_output=True, check=True).stdout for call in calls]
    assert made[0] == made[1]
    assert len(made[0].split()) == 9


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains a small network on one picture."""
    from PIL import Image

    from aeimg.training import train

    folder = tmp_path_factory.mktemp("run")
    (folder / "in").mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / "in" / f"{number}.png")

    def start(out: Path, **options):
        return train("vanilla", folder / "in", out, recipe={"batch": 2, "late_batch": 2}, log=lambda _: None, **options)

    return start


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory) -> tuple[dict, dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("checkpoint") / "w.safetensors"
    run(out, steps=2, patience=5)
    path = out.with_name("w.safetensors.checkpoint")
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["checkpoint"]), load_file(path)


def saved(folder: Path, about: object, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "c.checkpoint"
    save_file(tensors, path, {"checkpoint": about if isinstance(about, str) else json.dumps(about)})
    return path


def changes(about: dict) -> list[object]:
    """Metadata of checkpoints with one thing wrong."""
    journal, call = about["journal"], about["call"]
    wrong = {"step": ["1", -1, None, 1.5, 10**30], "seconds": ["x", None, 1e300], "losses": [3, [1], [[1, "x"]], [[1]]],
             "evaluations": [3, [1], [{}], [{"step": "x"}], [{"step": 1}]], "loss_sum": ["x"], "loss_count": [None, -1],
             "next_mean": ["x"], "next_evaluation": [[]], "best": [99, -1, "x"], "evaluations_since_best": ["x"],
             "ending": [3, [1, 2], [1, 0, 0.5], "abc"], "last_phase": ["x"]}  # fmt: skip
    made: list[object] = ["[" * 100_000, "[]", "1", "{}", json.dumps({"format": 2, "journal": [], "call": {}})]
    made += [{**about, "journal": {**journal, key: value}} for key, values in wrong.items() for value in values]
    made += [{**about, "call": value} for value in (3, [], "x", None)]
    made += [{**about, "call": {**call, key: value}} for key in ("config", "recipe") for value in (3, [], "x", None)]
    made += [
        {**about, "call": {**call, "recipe": {**call["recipe"], key: value}}}
        for key, value in (("crop", "x"), ("warmup", -1), ("learning_rate", []), ("muon", 1), ("labels", 3), ("x", 1))
    ]
    made += [{**about, "call": {**call, "config": {**call["config"], key: value}}}
             for key, value in (("side", "x"), ("widths", 3), ("x", 1))]  # fmt: skip
    return made + [{**about, "call": {**call, key: []}} for key in ("seed", "start", "patience", "objective", "task")]


def test_checkpoints_with_wrong_metadata_are_refused(run, checkpoint, tmp_path):
    about, tensors = checkpoint
    run(tmp_path / "sound.safetensors", steps=3, resume=saved(tmp_path, about, tensors))
    for number, change in enumerate(changes(about)):
        path = saved(tmp_path, change, tensors)
        with pytest.raises((InvalidWeights, UsageError)):
            run(tmp_path / f"{number}.safetensors", steps=3, resume=path)
        steps_of_checkpoint(path)


def test_checkpoints_with_wrong_tensors_are_refused(run, checkpoint, tmp_path):
    about, tensors = checkpoint
    chosen = ["model/encoder.0.weight", "average/encoder.0.weight", "best/encoder.0.weight", "optimizer0/0/exp_avg",
              "optimizer0/0/step"]  # fmt: skip
    forgeries = [{key: value for key, value in tensors.items() if key != one} for one in chosen]
    forgeries += [{**tensors, one: torch.zeros(3)} for one in chosen]
    forgeries += [{**tensors, f"optimizer0/{name}": torch.zeros(())} for name in
                  ("0", "0/x", "0/step/x", "-1/step", "99/step", "x/step", "²/step",
                   "9" * 5000 + "/step", "0//step")]  # fmt: skip
    assert all(one in tensors for one in chosen)
    for number, forgery in enumerate(forgeries):
        with pytest.raises(InvalidWeights, match=r"c\.checkpoint: "):
            run(tmp_path / f"{number}.safetensors", steps=3, resume=saved(tmp_path, about, forgery))


def test_a_checkpoint_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "c")
    assert steps_of_checkpoint(tmp_path / "c") is None
    with pytest.raises(InvalidWeights, match="is no regular file"):
        read_checkpoint(tmp_path / "c")


def test_a_run_whose_weights_could_not_be_loaded_does_not_begin(run, tmp_path):
    for name in ("a\nb", "x" * 300):
        with pytest.raises(UsageError, match="can't be a model's name"):
            run(tmp_path / "w.safetensors", steps=1, name=name)
    assert not list(tmp_path.iterdir())


# -- latents -----------------------------------------------------------------------------------------------------------


def test_strips_are_stored_and_never_decoded(coded):
    strip = np.zeros((1, 70_000, 3), np.uint8)
    data = process(strip, "compress", model="vanilla")
    assert isinstance(container.read(data), container.Stored)
    assert process(data, "decompress", kind="numpy").shape == strip.shape
    with pytest.raises(AeimgError, match="is too thin to be coded"):
        process(strip.astype(np.uint16), "compress", model="vanilla")
    with pytest.raises(InvalidLatent, match="only stored"):
        process(container.write(replace(coded, width=2_000_000, height=1)), "decompress")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_latent_whose_coded_data_has_other_channels_than_its_picture_is_refused(small, channels):
    picture = small[:40, :48] if channels == 3 else small[:40, :48, 0]
    latent = container.read(process(picture, "compress", model="vanilla", quality=20))
    assert isinstance(latent, container.Coded) and latent.channels == channels
    with pytest.raises(InvalidLatent, match=f"{channels} channels, and the picture has {4 - channels}"):
        process(container.write(replace(latent, channels=4 - channels)), "decompress", kind="numpy")
