"""Models of any image-to-image task to hold: they have the manners of a denoiser, by what the task states alone."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import Doubled, Reddish
from torchvision import tv_tensors

import aeimg
from aeimg import engine

CPU = torch.device("cpu")


class Darkened(aeimg.ImageRunner):
    """A step of its own, which knows nothing of tensors."""

    def run(self, items):
        return [item.picture.pixels // 2 for item in items]


DARKEN = aeimg.ImageTask("darken", "Darken the images.", aeimg.EncodingOptions, Darkened, needs_model=False)


@pytest.fixture(autouse=True)
def tasks():
    aeimg.register("doubled", Doubled, task="upscale")
    aeimg.register("reddish", Reddish, task="colorize")
    aeimg.register_task(DARKEN)
    yield
    aeimg.unregister("doubled")
    aeimg.unregister("reddish")
    aeimg.unregister_task("darken")


HELD = ("doubled", "reddish", "darken")


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


@pytest.mark.parametrize("name", HELD)
def test_every_kind_of_picture_gives_the_same_and_its_own_kind(name, small, png):
    held, piece = aeimg.load(name, device="cpu", dtype="fp32"), small[:45, :52]
    made = held(piece)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(aeimg.process(piece, held.task, model=None if name == "darken" else name), made)
    np.testing.assert_array_equal(np.asarray(held(Image.fromarray(piece))), made)
    tensor = held(tv_tensors.Image(as_tensor(piece)))
    assert type(tensor) is tv_tensors.Image
    assert np.abs(tensor.numpy().astype(int) - made.transpose(2, 0, 1)).max() <= 1
    assert isinstance(held(png(piece)), bytes)


@pytest.mark.parametrize("name", HELD[:2])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_a_tensor_keeps_dtype_and_alpha_and_needs_no_gradients(name, channels, dtype, small):
    x = torch.cat([as_tensor(small[:20, :24]), as_tensor(small[:20, :24])[:1]])[:channels]
    x = x if dtype == torch.uint8 else (x / 255).to(dtype).requires_grad_()
    made = aeimg.load(name, device="cpu")(torch.stack([x, x]))
    scale, planes = (2, channels) if name == "doubled" else (1, max(3, channels))
    assert made.shape == (2, planes, scale * 20, scale * 24)
    assert (made.dtype, made.device, made.requires_grad, made.is_inference()) == (dtype, CPU, False, False)
    if channels == 4:
        alone = aeimg.load(name, device="cpu")(x.detach())
        expected = x.detach()[3].float() if scale == 1 else alone[3].float()
        torch.testing.assert_close(made[0, 3].float(), expected)
        mean = x.detach()[3].float().mean()
        torch.testing.assert_close(made[0, 3].float().mean(), mean, rtol=0.01, atol=0)


def test_the_alpha_of_a_tensor_is_resized_as_that_of_an_array(small):
    four = np.dstack([small, small[..., :1]])
    held = aeimg.load("doubled", device="cpu")
    made = held(as_tensor(four)).numpy().transpose(1, 2, 0).astype(int)
    assert np.abs(made - held(four)).max() <= 1


def test_options_are_those_of_the_task(small):
    up, colour = aeimg.load("doubled", device="cpu"), aeimg.load("reddish", device="cpu")
    assert up(small[:9, :8], scale=4).shape == (36, 32, 3)
    assert up(small[:9, :8]).shape == (18, 16, 3)  # what one call asks for does not stay
    assert up(as_tensor(small[:9, :8]), scale=4).shape == (3, 36, 32)
    np.testing.assert_array_equal(colour(small[..., 0], strength=0), np.repeat(small[..., :1], 3, 2))
    for wrong in ({"scale": 3}, {"strength": 1}, {"quality": 5}):
        with pytest.raises(aeimg.UsageError):
            up(small[:9, :8], **wrong)
    with pytest.raises(aeimg.UsageError, match="one picture"):
        up([small])


@pytest.mark.parametrize("name", HELD)
def test_a_model_is_pickled_by_names_and_used_by_many_threads(name, small):
    held = aeimg.load(name, device="cpu")
    data = pickle.dumps(held)
    back = pickle.loads(data)
    assert len(data) < 1000
    assert (type(back), back.task, back.models, back.device) == (type(held), held.task, held.models, held.device)
    other = held.to("cpu")
    assert other is not held and other.models == held.models
    assert (held.models[0][0] if held.models else "darken") in repr(held)
    pictures = [np.roll(small[:40, :40], shift, 1) for shift in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for made, one in zip(pool.map(held, pictures), pictures, strict=True):
            np.testing.assert_array_equal(made, held(one))


def test_a_task_is_loaded_by_its_name_and_as_what_it_is(small):
    assert aeimg.load(DARKEN).task == "darken"
    assert aeimg.load("doubled", task="upscale", device="cpu").task == "upscale"
    with pytest.raises(aeimg.ModelError, match="not for colorize"):
        aeimg.load("doubled", task="colorize")
    with pytest.raises(aeimg.ModelError, match="aeimg train upscale"):
        aeimg.load("upscale")


def test_what_is_held_stays_when_its_name_stands_for_another_model(small):
    held = aeimg.load("doubled", device="cpu")
    aeimg.unregister("doubled")
    aeimg.register("doubled", Reddish, task="colorize")
    assert held(small[:8, :8], scale=4).shape == (32, 32, 3)


def test_tensors_of_an_iterable_that_are_elsewhere_stay_there_in_their_order(small, monkeypatch):
    """A stand-in for a GPU: floats count as elsewhere."""
    steps = []
    monkeypatch.setattr(engine, "_is_elsewhere", lambda one: isinstance(one, torch.Tensor) and one.is_floating_point())
    original = aeimg.ImageRunner.tensors
    monkeypatch.setattr(aeimg.ImageRunner, "tensors", lambda self, *a: steps.append(1) or original(self, *a))
    x = as_tensor(small[:8, :9])
    broken = torch.full((3, 8, 9), torch.nan)
    made = list(aeimg.process([x, x / 255, broken, x], "upscale", model="doubled", on_error="continue"))
    assert [getattr(one, "dtype", type(one)) for one in made] == [
        torch.uint8, torch.float32, aeimg.InputError, torch.uint8
    ]  # fmt: skip
    assert len(steps) == 2
    with pytest.raises(aeimg.InputError):
        list(aeimg.process([broken], "upscale", model="doubled"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", HELD[:2])
def test_a_tensor_on_a_gpu_stays_there(name, small):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = as_tensor(small).cuda()
    assert aeimg.load(name, device="cuda")(x).is_cuda
    (made,) = aeimg.process([x], aeimg.load(name).task, model=name)
    assert made.is_cuda


def test_each_result_has_a_sentence(small):
    for name, sentence in (("doubled", "16x16, upscale by doubled-1"), ("darken", "8x8, darken")):
        task = engine.make_task(aeimg.load(name).task, None if name == "darken" else name, "cpu", "fp32",
                                aeimg.load(name)._options())  # fmt: skip
        item = task.prepare(small[:8, :8])
        assert task.finish(item, task.run([item])[0]).sentence() == sentence
