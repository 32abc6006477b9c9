"""`aeimg.load()`: models to hold."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import aeimg
from aeimg import registry
from aeimg.noise import measure_noise
from aeimg.weights import find_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> aeimg.LoadedDenoiser:
    return aeimg.load("denoise", device="cpu")


@pytest.fixture(scope="module")
def codec() -> aeimg.LoadedCodec:
    return aeimg.load("compress", device="cpu")


@pytest.fixture
def noisy(small) -> np.ndarray:
    """uint8 `[67,75,3]` with white noise."""
    part = small[:67, :75]
    return (part + np.random.default_rng(0).normal(0, 20, part.shape)).clip(0, 255).round().astype(np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


# -- denoising -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [20, "auto"])
def test_arrays_images_bytes_and_tensors_become_the_same_picture(model, noisy, png, sigma):
    clean = model(noisy, sigma=sigma)
    assert np.abs(clean.astype(int) - noisy).mean() > 5
    np.testing.assert_array_equal(np.asarray(model(Image.fromarray(noisy), sigma=sigma)), clean)
    np.testing.assert_array_equal(model(as_tensor(noisy), sigma=sigma).numpy(), as_tensor(clean).numpy())
    np.testing.assert_array_equal(aeimg.process(noisy, "denoise", sigma=sigma, device="cpu"), clean)
    assert isinstance(model(png(noisy), sigma=sigma), bytes)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_a_tensor_keeps_shape_dtype_and_alpha_and_needs_no_gradients(model, noisy, channels, dtype):
    x = torch.cat([as_tensor(noisy), as_tensor(noisy)[:1]])[:channels]
    x = x if dtype == torch.uint8 else (x / 255).to(dtype).requires_grad_()
    before = x.detach().clone()
    result = model(x, sigma=20)
    assert (result.shape, result.dtype, result.device, result.requires_grad) == (x.shape, dtype, x.device, False)
    assert not result.is_inference()  # which autograd would refuse later
    assert torch.equal(x.detach(), before) and not torch.equal(result[:1], before[:1])
    assert channels < 4 or torch.equal(result[3], before[3])


def test_each_picture_of_a_batch_gets_what_it_gets_alone(noisy, small):
    exact = aeimg.load("denoise", device="cpu", dtype="fp32")
    batch = torch.stack([as_tensor(noisy), as_tensor(np.ascontiguousarray(small[:67, :75]))])
    together = exact(batch)
    assert together.shape == batch.shape
    for one, alone in zip(together, batch, strict=True):
        assert (one.int() - exact(alone).int()).abs().max() <= 1
    assert exact(batch[:0]).shape == (0, 3, 67, 75)


@pytest.mark.parametrize("kind", [tv_tensors.Image, tv_tensors.Video])
def test_tv_tensors_keep_their_type(model, noisy, kind):
    x = kind(as_tensor(noisy)[None])
    assert type(model(x, sigma=20)) is kind
    assert type(aeimg.process(x, "denoise", sigma=20, device="cpu")) is kind


def test_strength_0_changes_nothing(model, noisy):
    assert torch.equal(model(as_tensor(noisy), strength=0.0), as_tensor(noisy))


def test_what_came_with_a_picture_stays_with_it(model, noisy, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    path = tmp_path / "a.jpg"
    Image.fromarray(noisy).save(path, exif=exif, dpi=(72, 72), icc_profile=b"profile" * 30, xmp=b"<x:xmpmeta/>")
    for result in (model(path), model(Image.open(path)), aeimg.process(path, "denoise")):
        assert result.info["icc_profile"] == b"profile" * 30
        assert result.info["xmp"] == b"<x:xmpmeta/>"
        assert result.info["dpi"] == (72, 72)
        assert result.getexif()[0x010E] == "a cat"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(torch.zeros(8, 8), aeimg.UsageError), (torch.zeros(2, 8, 8), aeimg.UsageError),
     (torch.zeros(3, 8, 8, dtype=torch.int32), aeimg.UsageError), (torch.full((3, 8, 8), 200.0), aeimg.UsageError),
     (torch.full((3, 8, 8), torch.nan), aeimg.InputError), (torch.zeros(3, 0, 8), aeimg.InputError),
     ([np.zeros((8, 8), np.uint8)], aeimg.UsageError)],
)  # fmt: skip
def test_what_is_no_picture_is_refused(model, wrong, error):
    with pytest.raises(error):
        model(wrong)


def test_noise_is_measured_alike_in_arrays_and_tensors(noisy):
    for pixels in (as_tensor(noisy), as_tensor(noisy)[:1], as_tensor(noisy) / 255):
        array, tensor = measure_noise(pixels.numpy()), measure_noise(pixels)
        assert tensor.sigma == pytest.approx(array.sigma, rel=1e-3)
        assert tensor.coarse == pytest.approx(array.coarse, rel=1e-3)
        assert tensor.visible == pytest.approx(array.visible, rel=1e-3)
        assert (tensor.step, tensor.white()) == (array.step, array.white())


def test_a_batch_for_which_memory_does_not_suffice_is_halved(noisy, monkeypatch):
    held = aeimg.load("denoise", device="cpu", dtype="fp32")
    batch = as_tensor(noisy).repeat(4, 1, 1, 1)
    whole, sizes = held(batch, sigma=20), []
    network = registry.get("aeimg-denoise-5", "denoise", CPU)

    class Small:
        def __getattr__(self, name):
            return getattr(network, name)

        def __call__(self, x, sigma):
            sizes.append(len(x))
            if len(x) > 1:
                raise MemoryError
            return network(x, sigma)

    held._task._models["aeimg-denoise"] = Small()
    assert (held(batch, sigma=20).int() - whole.int()).abs().max() <= 1
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("sigma", [20, "auto"])
def test_a_tensor_on_a_gpu_never_goes_to_the_host(noisy, sigma, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    held, x = aeimg.load("denoise", device="cuda"), as_tensor(noisy).cuda()
    held(x, sigma=sigma)
    pixels = x[0].numel()
    to = {name: getattr(torch.Tensor, name) for name in ("cpu", "to")}

    def watched(name):
        def move(tensor, *args, **options):
            result = to[name](tensor, *args, **options)
            assert tensor.device.type == "cpu" or result.device.type != "cpu" or tensor.numel() != pixels
            return result

        return move

    for name in to:
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    assert held(x, sigma=sigma).is_cuda
    with pytest.raises(aeimg.UsageError, match="is on cuda"):
        aeimg.load("denoise", device="cpu")(x)


# -- compressing -----------------------------------------------------------------------------------------------------


def test_a_codec_encodes_and_decodes_as_process_does(codec, small):
    latent = codec.encode(small, quality=40)
    assert latent == aeimg.process(small, "compress", quality=40, device="cpu")
    back = codec.decode(latent, kind="numpy")
    np.testing.assert_array_equal(back, aeimg.process(latent, "decompress", kind="numpy", device="cpu"))
    assert codec.decode(latent).size == (143, 101)
    assert codec.decode(latent, "tensor").shape == (3, 101, 143)
    assert codec.decode(latent, kind="bytes", format="webp")[:4] == b"RIFF"
    assert len(codec.encode(small, max_bytes=2000)) <= 2000
    for wrong in ({"quality": 0}, {"sharpness": 1}, {"quality": 5, "max_bytes": 99}):
        with pytest.raises(aeimg.UsageError):
            codec.encode(small, **wrong)
    with pytest.raises(aeimg.UsageError, match="one picture"):
        codec.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(aeimg.InvalidLatent):
        codec.decode(b"no latent file")


def test_a_codec_decodes_a_part_and_a_smaller_copy(codec, small):
    latent = codec.encode(small, quality=40)
    whole = codec.decode(latent, "numpy")
    np.testing.assert_array_equal(codec.decode(latent, "numpy", crop=(20, 30, 50, 40)), whole[30:70, 20:70])
    assert codec.decode(latent, scale="1/4").size == (36, 26)
    with pytest.raises(aeimg.InputError, match="does not fit"):
        codec.decode(latent, crop=(100, 0, 50, 40))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_round_trip_is_what_a_file_brings_back(codec, small, channels):
    x = torch.cat([as_tensor(small), as_tensor(small)[:1]])[:channels]
    back = codec.round_trip(x, 30)
    filed = codec.decode(codec.encode(x, 30), "tensor")
    assert torch.equal(back, (filed * 255).round().byte())
    assert back.shape == x.shape and not torch.equal(back, x)
    floats = codec.round_trip(tv_tensors.Image(x / 255), 30)
    assert type(floats) is tv_tensors.Image and (floats - filed).abs().max() < 1.5 / 255


# -- holding ---------------------------------------------------------------------------------------------------------


def test_eight_threads_give_what_one_gives(model, codec, small, noisy):
    pictures = [np.roll(noisy, shift, 1) for shift in range(16)]

    def work(picture):
        return model(picture).tobytes(), codec.decode(codec.encode(picture, 40), "numpy").tobytes()

    alone = [work(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, pictures)) == alone


@pytest.mark.parametrize("name", ["denoise", "compress", "vanilla", "aeimg-denoise-5"])
def test_a_model_is_pickled_by_name_and_digest(name):
    held = aeimg.load(name, device="cpu")
    data = pickle.dumps(held)
    assert len(data) < 1000
    back = pickle.loads(data)
    assert (type(back), back.models, back.device, back.dtype) == (type(held), held.models, held.device, held.dtype)
    assert copy.copy(held) is copy.deepcopy(held) is held
    other = data.replace(held.models[0][1][:8].encode(), b"00000000")
    with pytest.raises(aeimg.ModelError, match="00000000"):
        pickle.loads(other)


def test_a_weights_file_is_found_from_another_folder(tmp_path, monkeypatch, noisy):
    weights = find_weights("vanilla-1")
    monkeypatch.chdir(weights.parent)
    data = pickle.dumps(aeimg.load(weights.name, task="compress", device="cpu"))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(data).models[0][0] == "vanilla-1"


def test_nothing_is_loaded_twice_and_what_is_held_stays(monkeypatch, codec):
    made = []

    def factory():
        made.append(torch.nn.Identity())
        made[-1].forward = lambda x, sigma: x
        return made[-1]

    aeimg.register("identity", factory, task="denoise")
    held = [aeimg.load("identity", device="cpu") for _ in range(3)]
    for one in held:
        one(np.zeros((8, 8), np.uint8), sigma=1)
    aeimg.process(np.zeros((8, 8), np.uint8), "denoise", model="identity", device="cpu")
    assert len(made) == 1
    for name in ("vanilla", "linear", "multilayer", "stacked", "conv", "sparse"):
        aeimg.load(name, device="cpu")
    assert aeimg.load("compress", device="cpu")._compress.model is codec._compress.model
    aeimg.unregister("identity")


def test_to_gives_a_model_on_another_device_and_leaves_this_one(model):
    other = model.to(CPU)
    assert other is not model and other.models == model.models and other.device == CPU
    with pytest.raises(aeimg.UsageError):
        model.to("nowhere")


def test_a_model_says_what_it_is(model, codec):
    assert "aeimg-denoise-5" in repr(model) and " on cpu in " in repr(model)
    assert "aeimg-codec-5 on cpu" in repr(codec)


def test_what_can_not_be_loaded_is_refused():
    with pytest.raises(aeimg.UsageError, match="load\\('compress'\\)"):
        aeimg.load("decompress")
    with pytest.raises(aeimg.ModelError, match="unknown model"):
        aeimg.load("nothing")
    with pytest.raises(aeimg.ModelError, match="not for compress"):
        aeimg.load("aeimg-denoise", task="compress")
    with pytest.raises(aeimg.UsageError, match="Identity"):
        aeimg.load(torch.nn.Identity())


def test_importing_load_waits_for_no_torch():
    code = "import sys, aeimg; aeimg.__dir__(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
