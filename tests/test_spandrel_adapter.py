"""A network of another project runs as any other denoiser, or is refused for a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import aeimg
from aeimg import InvalidWeights, ModelError, registry, weights
from aeimg.tasks.denoise import run_denoiser

spandrel = pytest.importorskip("spandrel")

from spandrel.architectures import Compact, DnCNN, DRUNet, NAFNet, SCUNet  # noqa: E402

from aeimg.spandrel_adapter import SpandrelDenoiser, load_spandrel  # noqa: E402

CPU = torch.device("cpu")
NARROW = [4, 4, 4, 4]

MADE = {
    "dncnn": lambda: DnCNN.DnCNN(in_nc=3, out_nc=3, nc=8, nb=8, act_mode="R"),
    "dncnn-grey": lambda: DnCNN.DnCNN(in_nc=1, out_nc=1, nc=8, nb=8, act_mode="R"),
    "fdncnn": lambda: DnCNN.DnCNN(in_nc=4, out_nc=3, nc=8, nb=8, act_mode="R", mode="FDnCNN"),
    "drunet": lambda: DRUNet.DRUNet(in_nc=4, out_nc=3, nc=NARROW, nb=3, act_mode="R"),
    "nafnet": lambda: NAFNet.NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
    "scunet": lambda: SCUNet.SCUNet(in_nc=3, config=[1] * 7, dim=64),
}


def saved(folder: Path, name: str, network: torch.nn.Module | None = None, seed: int = 0) -> Path:
    """A file of random weights in the layout `name`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network or MADE[name]()
        with torch.no_grad():  # as they start, most of these leave a picture almost as it is
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


@pytest.fixture(params=MADE)
def file(request, tmp_path):
    return saved(tmp_path, request.param)


def test_every_kind_of_picture_goes_through_alone_as_in_a_batch(file, small):
    grey, deep = small[..., 0], small[..., 1].astype(np.uint16) * 257
    transparent = np.dstack([small, small[..., :1]])
    images = [small, 255 - small, small[:37, :53], small[:3, :1], grey, deep, transparent]
    options = {"model": f"spandrel:{file}", "sigma": 30, "dtype": "fp32"}
    results = list(aeimg.process(images, "denoise", **options, batch_size=4))
    for image, result in zip(images, results, strict=True):
        assert (result.shape, result.dtype) == (image.shape, image.dtype)
        alone = aeimg.process(image, "denoise", **options)
        assert np.abs(result.astype(float) - alone).max() <= np.iinfo(image.dtype).max // 255
    np.testing.assert_array_equal(results[-1][..., 3], transparent[..., 3])
    assert (results[0] != small).any()


@pytest.mark.parametrize("name", ["dncnn", "dncnn-grey", "fdncnn", "drunet"])
def test_tiles_make_what_the_whole_makes(name, tmp_path, photograph):
    model = load_spandrel(saved(tmp_path, name))
    x = torch.from_numpy(photograph / 255).float().permute(2, 0, 1)[None]
    whole, tiled = (
        run_denoiser(model, x, torch.tensor([30.0]), device=CPU, dtype=torch.float32, tile=tile) for tile in (1000, 96)
    )
    assert float((whole - x).abs().max()) > 0.01
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=0)


def test_a_network_that_is_not_for_tiles_gets_the_whole(tmp_path):
    assert load_spandrel(saved(tmp_path, "scunet")).halo is None


@pytest.mark.parametrize(("name", "blind"), [("dncnn", True), ("fdncnn", False), ("drunet", False)])
def test_networks_that_know_a_noise_level_are_told_it(name, blind, tmp_path, small):
    model = f"spandrel:{saved(tmp_path, name)}"
    weak, strong = (aeimg.process(small, "denoise", model=model, sigma=sigma, dtype="fp32") for sigma in (15, 100))
    assert np.array_equal(weak, strong) == blind
    if not blind:  # 15 is the level that spandrel tells them, whatever the noise
        descriptor = spandrel.ModelLoader("cpu").load_from_file(tmp_path / f"{name}.safetensors")
        x = torch.from_numpy(small[:96, :136] / 255).float().permute(2, 0, 1)[None]
        theirs = descriptor.eval()(x)
        ours = run_denoiser(load_spandrel(tmp_path / f"{name}.safetensors"), x, torch.tensor([15.0]), device=CPU,
                       dtype=torch.float32)  # fmt: skip
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_network_that_takes_one_picture_at_a_time_gets_one(tmp_path):
    descriptor = spandrel.ModelLoader("cpu").load_from_file(saved(tmp_path, "dncnn"))
    inner, sizes = descriptor._call_fn, []

    def call(network, x):
        sizes.append(len(x))
        return inner(network, x) - (x[1:].mean() if len(x) > 1 else 0)

    descriptor._call_fn = call
    model = SpandrelDenoiser(descriptor, "one", b"")
    sizes.clear()
    model(torch.rand(3, 3, 16, 16), torch.zeros(3))
    assert sizes == [1, 1, 1]


def test_bf16_is_for_networks_that_support_it(tmp_path):
    path = saved(tmp_path, "dncnn")
    assert load_spandrel(path).dtypes == (torch.float32, torch.bfloat16)
    descriptor = spandrel.ModelLoader("cpu").load_from_file(path)
    descriptor.supports_bfloat16 = False
    assert SpandrelDenoiser(descriptor, "x", b"").dtypes == (torch.float32,)


def test_bf16_comes_close_to_fp32(file, small):
    bf16, fp32 = (
        aeimg.process(small, "denoise", model=f"spandrel:{file}", sigma=30, dtype=dtype) for dtype in ("bf16", "fp32")
    )
    assert np.abs(bf16.astype(float) - fp32).mean() < 3


def test_a_second_run_does_again_what_other_weights_have_made(tmp_path, small):
    (tmp_path / "in").mkdir()
    Image.fromarray(small).save(tmp_path / "in" / "a.png")

    def run(seed):
        model = f"spandrel:{saved(tmp_path, 'dncnn', seed=seed)}"
        return aeimg.process(tmp_path / "in", "denoise", out=tmp_path / "out", model=model)

    first = run(0)
    assert (first.done, first.files[0]["model"], first.files[0]["sigma"]) == (1, "spandrel:DnCNN/dncnn", None)
    assert [run(0).done, run(1).done, run(1).done] == [0, 1, 0]


def test_what_can_not_run_is_refused_with_the_reason(tmp_path):
    def refused(path, reason, kind=ModelError):
        with pytest.raises(kind, match=reason):
            registry.get(f"spandrel:{path}", "denoise", CPU)

    twofold = saved(tmp_path, "twofold", Compact.Compact(num_feat=8, num_conv=2, upscale=2))
    refused(twofold, "enlarges 2 times; aeimg keeps the size")
    refused(saved(tmp_path, "two", DnCNN.DnCNN(in_nc=2, out_nc=2, nc=8, nb=8, act_mode="R")), "makes 2 channels of 2")
    save_file({"w": torch.zeros(3)}, tmp_path / "odd.safetensors")
    refused(tmp_path / "odd.safetensors", "spandrel does not know its architecture")
    network = MADE["dncnn"]().state_dict()
    network["model.4.weight"] = torch.zeros(1, 2, 3, 3)
    save_file(network, tmp_path / "bent.safetensors")
    refused(tmp_path / "bent.safetensors", "is not the network that its names promise", InvalidWeights)
    (tmp_path / "text.safetensors").write_text("hello world")
    refused(tmp_path / "text.safetensors", "not a safetensors file", InvalidWeights)
    refused(tmp_path / "none.safetensors", "no such file")
    refused(
        weights.find_weights(registry.BUILTINS["aeimg-denoise"][1]),
        "a weights file of aeimg; name it without spandrel:",
    )


def test_a_file_named_in_the_wrong_way_says_which_is_right(tmp_path):
    path = saved(tmp_path, "dncnn")
    with pytest.raises(InvalidWeights, match=f"not a weights file of aeimg.*runs as spandrel:{path}"):
        registry.get(str(path), "denoise", CPU)
    (tmp_path / "w.pth").write_bytes(b"cos")
    with pytest.raises(ModelError, match=r"w\.pth: not a .safetensors file; others are not loaded"):
        registry.get(str(tmp_path / "w.pth"), "denoise", CPU)


def test_a_file_for_another_task_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is for the task denoise, not for compress"):
        registry.get(f"spandrel:{saved(tmp_path, 'dncnn')}", "compress", CPU)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_nothing_is_unpickled(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(InvalidWeights, match=r"only .safetensors files are loaded.*convert it"):
        registry.get(f"spandrel:{path}", "denoise", CPU)


def test_without_spandrel_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = saved(tmp_path, "dncnn")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match=r"pip install 'aeimg\[spandrel\]'"):
        registry.get(f"spandrel:{path}", "denoise", CPU)


def test_spandrel_is_imported_for_its_own_files_only():
    code = "import sys, aeimg, aeimg.engine, aeimg.cli, aeimg.registry; print('spandrel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"False"


def test_no_model_may_be_registered_under_the_name_of_a_file():
    with pytest.raises(ModelError, match="stands for a file that spandrel loads"):
        aeimg.register("spandrel:x", lambda: None, task="denoise")
