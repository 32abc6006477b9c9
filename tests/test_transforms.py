"""aeimg's transforms keep the rules of torchvision's."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

import aeimg
from aeimg.transforms import CompressionNoise, Denoise

TRANSFORMS = [Denoise(sigma=20), CompressionNoise(quality=(20, 60))]


@pytest.fixture
def tensor(small) -> torch.Tensor:
    """uint8 `[3,61,75]`."""
    return torch.from_numpy(np.ascontiguousarray(small[:61, :75].transpose(2, 0, 1)))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, tv_tensors.Image, lambda x: tv_tensors.Video(x[None].repeat(2, 1, 1, 1)), lambda x: x / 255,
     lambda x: x[None, None].repeat(1, 2, 1, 1, 1)],
)  # fmt: skip
def test_pictures_keep_their_type_and_shape(transform, wrap, tensor):
    x = wrap(tensor)
    result = transform(x)
    assert (type(result), result.shape, result.dtype) == (type(x), x.shape, x.dtype)
    assert not torch.equal(result, x)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: type(one).__name__)
def test_what_is_no_picture_passes_through(transform, tensor):
    boxes = tv_tensors.BoundingBoxes([[0, 0, 5, 5]], format="XYXY", canvas_size=(61, 75))
    mask = tv_tensors.Mask(tensor[:1].clone())
    sample = {"image": tv_tensors.Image(tensor), "boxes": boxes, "mask": mask, "label": 3, "vector": torch.ones(5)}
    result = transform(sample)
    assert all(result[name] is sample[name] for name in ("boxes", "mask", "label", "vector"))
    assert not torch.equal(result["image"], sample["image"])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_pil_images_keep_mode_size_and_orientation(transform, mode, small):
    grey = small[..., 0].astype(np.uint16) * 257
    image = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(small).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    result = transform(image)
    assert (result.mode, result.size, result.info["exif"]) == (mode, image.size, image.info["exif"])
    assert (np.asarray(result) != np.asarray(image)).any()


def test_the_quality_is_drawn_from_torchs_generator(tensor):
    transform = CompressionNoise(quality=(1, 100))
    results = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(tensor))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2]) or not torch.equal(results[0], results[3])
    drawn = {CompressionNoise(quality=(3, 5)).make_params([])["quality"] for _ in range(60)}
    assert drawn == {3, 4, 5}


def test_a_transform_composes_and_is_pickled_without_its_model(tensor):
    composed = v2.Compose([v2.ToImage(), CompressionNoise(quality=40), Denoise(sigma=5)])
    result = composed(tensor)
    data = pickle.dumps(composed)
    assert len(data) < 20_000
    assert torch.equal(pickle.loads(data)(tensor), result)
    assert torch.equal(copy.deepcopy(composed)(tensor), result)


def test_a_transform_does_what_its_model_does(tensor):
    assert torch.equal(Denoise(sigma=20)(tensor), aeimg.load("denoise", device="cpu")(tensor, sigma=20))
    assert torch.equal(CompressionNoise(40)(tensor), aeimg.load("compress", device="cpu").round_trip(tensor, 40))


def test_wrong_options_are_refused_at_once():
    for make in (lambda: Denoise(sigma=-1), lambda: CompressionNoise(0), lambda: CompressionNoise((60, 20))):
        with pytest.raises(aeimg.UsageError):
            make()
