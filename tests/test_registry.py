"""Models are found by name, plug-ins work and their faults stay theirs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg import InvalidWeights, ModelError, UsageError, contract, devices, registry, weights
from aeimg.cli import main

CPU = torch.device("cpu")

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "plugins.md").read_text()
PLUGIN, FROM_PACKAGE, FROM_CALL = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
(PROJECT,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.S | re.M)
(LISTED,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.S | re.M)


def install(folder: Path, name: str, code: str, points: dict[str, str], *, pip: bool = False) -> None:
    """Installs a package of one module into `folder`: with `pip`, a wheel of it, as users do; else the files that pip
    would leave there, which is quicker."""
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
    if not pip:
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        return
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
    yield folder
    for path in folder.glob("*.py"):  # the next test's package may have the same name
        sys.modules.pop(path.stem, None)


def test_the_page_on_plug_ins_is_what_works(site, small, tmp_path, monkeypatch):
    project = tomllib.loads(PROJECT)
    (module,) = project["tool"]["setuptools"]["py-modules"]
    assert f"`{module}.py`" in PAGE
    install(site, module, PLUGIN, project["project"]["entry-points"][registry.ENTRY_POINT_GROUP])
    assert f"\n{LISTED}" in CliRunner().invoke(main, ["models", "--long"]).output.replace("\r", "")
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.fromarray(small).save("in/a.png")
    (line,) = re.findall(r"^    aeimg (denoise .* --model blur)$", PAGE, re.M)
    assert CliRunner().invoke(main, line.split()).exit_code == 0
    results = [np.asarray(Image.open("out/a.png"))]
    for block in (FROM_PACKAGE, FROM_CALL):
        names = {"image": small}
        exec(compile(block, "docs/plugins.md", "exec"), names)
        results.append(names["clean"])
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    assert not np.array_equal(results[0], small)


def test_the_page_on_plug_ins_names_every_attribute_there_is():
    stated = contract.defaults("denoise").keys()
    assert stated >= {"channels", "dtypes", "halo"}
    rows = "".join(re.findall(r"^\| `.*$", PAGE, re.M))
    assert all(f"`{name}`" in rows for name in stated)


def test_an_installed_package_adds_a_model_that_all_tasks_can_use(site, small):
    install(site, "blurry", PLUGIN, {"blur": "blurry:Blur"}, pip=True)
    found = {entry.name: entry for entry in registry.entries() if isinstance(entry, registry.Entry)}
    assert (found["blur"].origin, found["blur"].task) == ("blurry", "denoise")
    result = aeimg.process(small, "denoise", model="blur", sigma=10)
    assert result.shape == small.shape
    assert np.abs(np.diff(result.astype(int), axis=0)).mean() < np.abs(np.diff(small.astype(int), axis=0)).mean()


def test_a_broken_plug_in_is_reported_and_breaks_nothing_else(site, small):
    install(site, "cracked", "raise RuntimeError('no licence')", {"crack": "cracked:Model"})
    entries = registry.entries()
    assert any(isinstance(e, ModelError) and "cracked" in str(e) and "no licence" in str(e) for e in entries)
    assert {"aeimg-codec", "aeimg-denoise"} <= {e.name for e in entries if isinstance(e, registry.Entry)}
    with pytest.raises(ModelError, match="cracked"):
        aeimg.process(small, "denoise", model="crack")


def test_a_name_claimed_twice_is_an_error_that_names_both_packages(site):
    install(site, "one", PLUGIN, {"blur": "one:Blur"})
    install(site, "two", PLUGIN, {"blur": "two:Blur"})
    with pytest.raises(ModelError, match="claimed by two packages, one and two"):
        registry.entry("blur")
    assert any("one and two" in str(entry) for entry in registry.entries() if isinstance(entry, ModelError))


def test_a_package_that_claims_a_name_of_aeimgs_is_an_error_that_takes_no_default_away(site, small):
    claims = dict.fromkeys([*registry.BUILTINS, registry.BUILTINS["aeimg-codec"][1]], "greedy:Blur")
    ours = {task: registry.get(None, task, CPU).label for task in registry.DEFAULTS}
    install(site, "greedy", PLUGIN, claims)
    for name in registry.BUILTINS:
        with pytest.raises(ModelError, match=f"'{name}' of the package greedy is already taken \\(by aeimg itself\\)"):
            registry.get(name, "denoise", CPU)
    assert {task: registry.get(None, task, CPU).label for task in registry.DEFAULTS} == ours
    assert aeimg.process(aeimg.process(small, "compress"), "decompress", kind="numpy").shape == small.shape
    assert aeimg.process(small, "denoise").shape == small.shape


def test_a_package_that_claims_a_registered_name_is_an_error_that_names_both(site):
    install(site, "blurry", PLUGIN, {"half": "blurry:Blur"})
    aeimg.register("half", lambda: None, task="denoise")
    with pytest.raises(ModelError, match="of the package blurry is already taken \\(by a call of aeimg.register"):
        registry.entry("half")


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import sys; sys.exit(3)", "SystemExit"), ("Model = object", "no task"), ("Other = 1", "AttributeError")],
)
def test_no_fault_of_a_plug_in_reaches_the_list(site, code, reason):
    install(site, "cracked", code, {"crack": "cracked:Model"})
    result = CliRunner().invoke(main, ["models", "--json"])
    assert result.exit_code == 0
    assert "broken: model 'crack' of the package cracked" in result.stderr and reason in result.stderr
    assert {json.loads(line)["name"] for line in result.stdout.splitlines()} == set(registry.BUILTINS)


def test_a_card_may_hold_anything(site):
    code = "class Model:\n    task, card = 'denoise', {'made': object, 'task': 'mine'}\n"
    install(site, "odd", code, {"odd": "odd:Model"})
    rows = [json.loads(line) for line in CliRunner().invoke(main, ["models", "--json"]).stdout.splitlines()]
    (row,) = [row for row in rows if row["name"] == "odd"]
    assert (row["task"], row["origin"], row["made"]) == ("denoise", "odd", "<class 'object'>")


def test_a_model_of_one_channel_gets_each_channel_by_itself_and_other_counts_are_refused(small):
    class Levels(torch.nn.Module):
        task, channels, multiple = "denoise", 1, 4

        def forward(self, x, sigma):
            assert x.shape[1] == 1 and x.shape[2] % 4 == 0
            return x * (sigma / 100).view(-1, 1, 1, 1)

    aeimg.register("levels", Levels)
    aeimg.register("pair", type("Pair", (Levels,), {"channels": 2}))
    images = [small, small[..., 0]]
    for image, result in zip(images, aeimg.process(images, "denoise", model="levels", sigma=50), strict=True):
        np.testing.assert_allclose(result, image / 2, atol=0.51)
    with pytest.raises(ModelError, match="'pair' states 2 channels"):
        aeimg.process(small, "denoise", model="pair")


def test_register_makes_a_model_available_once(small):
    class Half(torch.nn.Module):
        def forward(self, x, sigma):
            return x / 2

    aeimg.register("half", Half, task="denoise")
    np.testing.assert_allclose(aeimg.process(small, "denoise", model="half"), small / 2, atol=0.51)
    with pytest.raises(ModelError, match="'half' is already taken"):
        aeimg.register("half", Half, task="denoise")
    aeimg.unregister("half")
    with pytest.raises(ModelError, match="unknown model 'half'; known: aeimg-codec"):
        registry.get("half", "denoise", CPU)


def test_a_factory_is_called_once_for_each_device_and_anew_for_a_new_one(small):
    made = []

    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            made.append(self)

        def forward(self, x, sigma):
            return x

    aeimg.register("same", Same, task="denoise")
    for _ in range(2):
        aeimg.process(small, "denoise", model="same")
    assert made == [registry.get("same", "denoise", CPU)]
    aeimg.unregister("same")
    aeimg.register("same", Same, task="denoise")
    assert registry.get("same", "denoise", CPU) is made[1]


def test_a_model_that_somebody_holds_is_never_loaded_again(monkeypatch):
    monkeypatch.setattr(registry, "_loaded", registry._Loaded())
    held = registry.get("vanilla", "compress", CPU)
    let_go = id(registry.get("linear", "compress", CPU))
    for name in ("conv", "sparse", "stacked", "multilayer", "variational"):
        registry.get(name, "compress", CPU)
    assert registry.KEPT == 4
    assert registry.get("vanilla", "compress", CPU) is held
    assert let_go not in {id(model) for model in registry._loaded._recent.values()}


def test_the_header_of_a_weights_file_is_read_once_for_each_load(monkeypatch):
    opened = []
    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, kind: opened.append(path) or safe_open(path, kind))
    monkeypatch.setattr(registry, "_loaded", registry._Loaded())
    registry.get("vanilla", "compress", CPU)
    assert len(opened) == 1


def test_the_identity_of_a_model_needs_no_network(monkeypatch):
    shipped = registry.get("vanilla", "compress", CPU)
    monkeypatch.setattr(weights, "build", lambda *_: pytest.fail("no network was needed"))
    assert registry.identity("vanilla", "compress", CPU) == (shipped.label, shipped.digest.hex())
    aeimg.register("nameless", lambda: lambda x, sigma: x, task="denoise")
    assert registry.identity("nameless", "denoise", CPU) == ("function", "nameless")


def test_wrong_registrations_are_refused():
    with pytest.raises(UsageError, match="the task must be one of"):
        aeimg.register("x", lambda: None)
    with pytest.raises(ModelError, match="already taken"):
        aeimg.register("aeimg-codec", lambda: None, task="compress")


def test_a_model_is_not_used_for_another_task():
    with pytest.raises(ModelError, match="is for the task compress, not for denoise"):
        registry.get("aeimg-codec", "denoise", CPU)


@pytest.mark.parametrize("label", [label for _, label in registry.BUILTINS.values()])
def test_built_in_weights_say_what_they_are_and_where_they_come_from(label):
    path = weights.find_weights(label)
    header = weights.read_header(path)
    assert header.label == label
    assert header.architecture in weights.ARCHITECTURES
    assert {"data", "minutes", "steps", "commit", "recipe", "held_out"} <= set(header.card)


def test_all_weights_together_stay_below_60_megabytes():
    assert sum(weights.find_weights(label).stat().st_size for _, label in registry.BUILTINS.values()) < 60e6


def test_the_digest_follows_the_tensors_and_not_the_card(tmp_path):
    header = weights.Header("unet", {}, "denoise", "x", 1, {"a": 1})
    tensors = {"w": torch.arange(5.0)}

    def digest(tensors, header):
        weights.save_weights(tmp_path / "w.safetensors", tensors, header)
        return weights.load_tensors(tmp_path / "w.safetensors")[2]

    first = digest(tensors, header)
    assert digest(tensors, weights.Header("unet", {}, "denoise", "x", 1, {"b": "longer"})) == first
    assert digest({"w": tensors["w"] + 1}, header) != first


def test_files_that_are_no_weights_are_refused_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    cases = [b"", b"hello world", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 2) + b"{}"]
    foreign = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    for data in [*cases, struct.pack("<Q", len(foreign)) + foreign]:
        path.write_bytes(data)
        with pytest.raises(InvalidWeights, match="w.safetensors"):
            weights.read_header(path)


def test_missing_weights_say_what_to_do():
    with pytest.raises(ModelError, match="aeimg-codec-999 are not installed; install an aeimg that ships them"):
        registry.get("aeimg-codec-999", "compress", CPU)


def test_devices_and_dtypes_are_chosen_or_refused_by_name(monkeypatch):
    assert devices.pick_device("cpu") == CPU
    assert devices.pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    assert devices.pick_dtype("fp32", CPU) == torch.float32
    for device in ("abacus", "meta", "xpu"):  # torch knows some of them
        with pytest.raises(UsageError, match=f"unknown device '{device}'"):
            devices.pick_device(device)
    with pytest.raises(UsageError, match="unknown dtype 'fp12'"):
        devices.pick_dtype("fp12", CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            devices.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.pick_device("cuda:0").index == 0
    with pytest.raises(UsageError, match="has 1 of them"):
        devices.pick_device("cuda:1")


def test_weights_of_ones_own_are_found_by_their_label(tmp_path, monkeypatch, small):
    source = weights.find_weights(registry.BUILTINS["aeimg-denoise"][1])
    header, tensors, _ = weights.load_tensors(source)
    from dataclasses import replace

    weights.save_weights(tmp_path / "scans-3.safetensors", tensors, replace(header, name="scans", version=3))
    with pytest.raises(ModelError, match="scans-3 are not installed"):
        registry.get("scans-3", "denoise", CPU)
    monkeypatch.setenv("AEIMG_WEIGHTS", str(tmp_path))
    assert registry.get("scans-3", "denoise", CPU).label == "scans-3"


def test_weights_are_found_in_an_installed_package_and_in_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "aeimg"
    monkeypatch.setattr(weights, "__file__", str(package / "weights.py"))
    for folder in (tmp_path / "weights", package / "weights"):
        folder.mkdir(parents=True)
        (folder / "x-1.safetensors").touch()
        assert weights.find_weights("x-1") == folder / "x-1.safetensors"


@pytest.mark.parametrize(
    ("stated", "reason"),
    [({"multiple": 0}, "the multiple 0"), ({"halo": "wide"}, "the halo 'wide'"), ({"digest": "abc"}, "a str and bytes"),
     ({"label": 7}, "the label 7"), ({"dtypes": (torch.bfloat16,)}, "torch.float32 must be among")],
)  # fmt: skip
def test_what_a_model_states_wrongly_is_an_error_that_says_what_it_must_be(small, stated, reason):
    aeimg.register("wrong", type("Wrong", (), {"task": "denoise", "__call__": lambda self, x, sigma: x, **stated}))
    with pytest.raises(ModelError, match=f"model 'wrong' .*{reason}"):
        aeimg.process(small, "denoise", model="wrong")


def test_a_denoiser_that_can_not_be_called_is_refused(small):
    aeimg.register("wrong", object, task="denoise")
    with pytest.raises(ModelError, match="can't be called, which a denoiser must"):
        aeimg.process(small, "denoise", model="wrong")


def test_a_codec_without_all_that_it_must_have_is_refused(small):
    class Half:
        task, label, digest = "compress", "half-1", b"12345678"

        def encode(self, *_): ...

    aeimg.register("half", Half)
    with pytest.raises(ModelError, match="'half' has no to_bytes, from_bytes, decode, which a codec must have"):
        aeimg.process(small, "compress", model="half")


@pytest.mark.parametrize(
    ("make", "what"),
    [(lambda x: x[:, :1], r"\[1, 1, 101, 143\]"), (lambda x: x.repeat(1, 1, 2, 2), r"\[1, 3, 202, 286\]"),
     (lambda x: x.numpy(), "a ndarray"), (lambda x: [x], "a list")],
)  # fmt: skip
def test_results_of_another_shape_are_refused_rather_than_cut_or_spread(small, make, what):
    aeimg.register("bent", lambda: lambda x, sigma: make(x), task="denoise")
    with pytest.raises(ModelError, match=rf"made {what} of \[1, 3, 101, 143\]; it must give back"):
        aeimg.process(small, "denoise", model="bent")


def test_names_that_stand_for_files_are_no_models(site):
    with pytest.raises(ModelError, match="'x.safetensors' stands for a weights file; take another"):
        aeimg.register("x.safetensors", lambda: None, task="denoise")
    install(site, "greedy", PLUGIN, {"x.safetensors": "greedy:Blur", "spandrel:x": "greedy:Blur"})
    broken = sorted(str(entry) for entry in registry.entries() if isinstance(entry, ModelError))
    assert broken == [
        "the model name 'spandrel:x' of the package greedy stands for a file that spandrel loads",
        "the model name 'x.safetensors' of the package greedy stands for a weights file",
    ]


def test_loading_weights_does_not_import_the_compiler_of_torch():
    code = (
        "import sys, torch\nfrom aeimg import registry, weights\n"
        "for _, label in registry.BUILTINS.values(): registry.load_model(weights.find_weights(label))\n"
        "names = ['torch._dynamo'] + ['sympy'] * (not torch.__version__.startswith('2.6.'))  # which needs it itself\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr  # which would take 1.4 seconds and 150 MB


class _Own:
    """The built-in codec under another label."""

    def __init__(self, label, digest):
        self._codec = registry.get(None, "compress", torch.device("cpu"))
        self.label, self.digest = label, digest

    def to(self, device):
        return self

    def __getattr__(self, name):
        return getattr(self._codec, name)


def test_a_latent_finds_a_registered_codec_by_its_label_and_no_other(small):
    aeimg.register("own-1", lambda: _Own("own-1", b"12345678"), task="compress")
    latent = aeimg.process(small, "compress", model="own-1", quality=50)
    assert aeimg.process(latent, "decompress", kind="numpy").shape == small.shape
    aeimg.unregister("own-1")
    aeimg.register("own-1", lambda: _Own("own-1", b"87654321"), task="compress")
    with pytest.raises(aeimg.WrongWeights, match="these weights are"):
        aeimg.process(latent, "decompress")
    aeimg.unregister("own-1")
    with pytest.raises(aeimg.WrongWeights, match="own-1"):
        aeimg.process(latent, "decompress")
