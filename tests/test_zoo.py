"""Models are found by name, plug-ins work and their faults stay theirs."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import aeimg
from aeimg import InvalidWeights, ModelError, UsageError, zoo

CPU = torch.device("cpu")

PLUGIN = '''
import torch

class Blur(torch.nn.Module):
    """Averages over 3x3 pixels, whatever the noise."""
    task = "denoise"
    halo = 1
    def forward(self, x, sigma):
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return torch.nn.functional.avg_pool2d(padded, 3, 1)
'''


def install(folder: Path, name: str, code: str, points: dict[str, str]) -> None:
    """Builds a wheel of one module and installs it into `folder`, as a user's `pip install` would."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[aeimg.models]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()),
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    wheel = folder.parent / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel], check=True
    )


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_installed_package_adds_a_model_that_all_verbs_can_use(site, small):
    install(site, "blurry", PLUGIN, {"blur": "blurry:Blur"})
    found = {entry.name: entry for entry in zoo.entries() if isinstance(entry, zoo.Entry)}
    assert (found["blur"].origin, found["blur"].task) == ("blurry", "denoise")
    result = aeimg.process(small, "denoise", model="blur", sigma=10)
    assert result.shape == small.shape
    assert np.abs(np.diff(result.astype(int), axis=0)).mean() < np.abs(np.diff(small.astype(int), axis=0)).mean()


def test_a_broken_plug_in_is_reported_and_breaks_nothing_else(site, small):
    install(site, "cracked", "raise RuntimeError('no licence')", {"crack": "cracked:Model"})
    entries = zoo.entries()
    assert any(isinstance(e, ModelError) and "cracked" in str(e) and "no licence" in str(e) for e in entries)
    assert {"aeimg-codec", "aeimg-denoise"} <= {e.name for e in entries if isinstance(e, zoo.Entry)}
    with pytest.raises(ModelError, match="cracked"):
        aeimg.process(small, "denoise", model="crack")


def test_a_name_claimed_twice_is_an_error_that_names_both_packages(site):
    install(site, "one", PLUGIN, {"blur": "one:Blur"})
    install(site, "two", PLUGIN, {"blur": "two:Blur"})
    with pytest.raises(ModelError, match="claimed by two packages, one and two"):
        zoo.entry("blur")


def test_register_makes_a_model_available_once(small):
    class Half(torch.nn.Module):
        def forward(self, x, sigma):
            return x / 2

    aeimg.register("half", Half, task="denoise")
    try:
        np.testing.assert_allclose(aeimg.process(small, "denoise", model="half"), small / 2, atol=0.51)
        with pytest.raises(ModelError, match="'half' is already taken"):
            aeimg.register("half", Half, task="denoise")
    finally:
        aeimg.unregister("half")
    with pytest.raises(ModelError, match="unknown model 'half'; known: aeimg-codec"):
        zoo.get("half", "denoise", CPU)


def test_wrong_registrations_are_refused():
    with pytest.raises(UsageError, match="the task must be one of"):
        aeimg.register("x", lambda: None)
    with pytest.raises(ModelError, match="already taken"):
        aeimg.register("aeimg-codec", lambda: None, task="compress")


def test_a_model_is_not_used_for_another_task():
    with pytest.raises(ModelError, match="is for the task compress, not for denoise"):
        zoo.get("aeimg-codec", "denoise", CPU)


@pytest.mark.parametrize("label", [label for _, label in zoo.BUILTINS.values()])
def test_built_in_weights_say_what_they_are_and_where_they_come_from(label):
    path = zoo.find_weights(label)
    header = zoo.read_header(path)
    assert header.label == label
    assert header.architecture in zoo.ARCHITECTURES
    assert {"data", "minutes", "steps", "commit", "recipe", "held_out"} <= set(header.card)


def test_all_weights_together_stay_below_40_megabytes():
    assert sum(zoo.find_weights(label).stat().st_size for _, label in zoo.BUILTINS.values()) < 40e6


def test_the_digest_follows_the_tensors_and_not_the_card(tmp_path):
    header = zoo.Header("unet", {}, "denoise", "x", 1, {"a": 1})
    tensors = {"w": torch.arange(5.0)}

    def digest(tensors, header):
        zoo.save_weights(tmp_path / "w.safetensors", tensors, header)
        return zoo.load_tensors(tmp_path / "w.safetensors")[2]

    first = digest(tensors, header)
    assert digest(tensors, zoo.Header("unet", {}, "denoise", "x", 1, {"b": "longer"})) == first
    assert digest({"w": tensors["w"] + 1}, header) != first


def test_files_that_are_no_weights_are_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    cases = [b"", b"hello world", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 2) + b"{}"]
    foreign = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    for data in [*cases, struct.pack("<Q", len(foreign)) + foreign]:
        path.write_bytes(data)
        with pytest.raises(InvalidWeights, match="w.safetensors"):
            zoo.read_header(path)


def test_missing_weights_say_what_to_do():
    with pytest.raises(ModelError, match="aeimg-codec-999 are not installed; install an aeimg that ships them"):
        zoo.get("aeimg-codec-999", "compress", CPU)


def test_devices_and_dtypes_are_chosen_or_refused_by_name():
    assert zoo.pick_device("cpu") == CPU
    assert zoo.pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    assert zoo.pick_dtype("fp32", CPU) == torch.float32
    with pytest.raises(UsageError, match="unknown device 'abacus'"):
        zoo.pick_device("abacus")
    with pytest.raises(UsageError, match="unknown dtype 'fp12'"):
        zoo.pick_dtype("fp12", CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            zoo.pick_device("cuda")


def test_weights_of_ones_own_are_found_by_their_label(tmp_path, monkeypatch, small):
    source = zoo.find_weights(zoo.BUILTINS["aeimg-denoise"][1])
    header, tensors, _ = zoo.load_tensors(source)
    from dataclasses import replace

    zoo.save_weights(tmp_path / "scans-3.safetensors", tensors, replace(header, name="scans", version=3))
    with pytest.raises(ModelError, match="scans-3 are not installed"):
        zoo.get("scans-3", "denoise", CPU)
    monkeypatch.setenv("AEIMG_WEIGHTS", str(tmp_path))
    assert zoo.get("scans-3", "denoise", CPU).label == "scans-3"


def test_weights_are_found_in_an_installed_package_and_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "aeimg"
    monkeypatch.setattr(zoo, "__file__", str(package / "zoo.py"))
    for folder in (tmp_path / "weights", package / "weights"):
        folder.mkdir(parents=True)
        (folder / "x-1.safetensors").touch()
        assert zoo.find_weights("x-1") == folder / "x-1.safetensors"
