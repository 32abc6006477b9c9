"""The textbooks' autoencoders: each learns, codes pictures of any kind, and is what its name says."""

from __future__ import annotations

import functools
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from aeimg import DataError, UsageError, process, registry, weights
from aeimg.bench import bench_anomaly, bench_textbooks, table
from aeimg.cli import TRAINED
from aeimg.metrics import psnr
from aeimg.models.variational import divergence
from aeimg.training import train
from aeimg.training.run import OBJECTIVES
from aeimg.training.textbook_objectives import TEXTBOOKS, Stacked, Textbook, active

pytestmark = pytest.mark.usefixtures("same_curve")

# Enough for each loss to fall clearly; convolutions are slower, and gain more from each; few units take longer.
STEPS = {"vanilla": 450, "sparse": 450, "conv": 260, "denoising": 130, "deep2d": 150}


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        data = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
        name = folder / f"t-{kind}{'.gz' if packed else ''}"
        name.write_bytes(gzip.compress(data, 1) if packed else data)
    return folder


@functools.cache
def strokes(count: int, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Arcs and lines, blurred a little, ten kinds of them: not digits, but as hard."""
    rng = np.random.default_rng(0)
    images = []
    for n in range(count):
        picture = Image.new("L", (4 * side, 4 * side))
        pen = ImageDraw.Draw(picture)
        for part in range(2):
            x, y = rng.uniform(0.8, 1.6, 2) * side
            box = [x - 0.5 * side, y - 0.5 * side, x + 1.6 * side, y + 1.6 * side]
            start = 36 * (n % 10) + 140 * part + float(rng.normal(0, 8))
            pen.arc(box, start, start + 160, fill=255, width=side // 3)
        images.append(np.asarray(picture.resize((side, side), Image.Resampling.BOX)))
    return np.stack(images), (np.arange(count) % 10).astype(np.uint8)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_idx(tmp_path_factory.mktemp("digits"), *strokes(1500))


def run(textbook, folder, out, **options):
    lines = []
    header = train(textbook, folder, out, device="cpu", if_exists="overwrite", log=lines.append, **options)
    return header, lines


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """Weights of each textbook autoencoder, trained for a moment, and their cards."""
    folder = tmp_path_factory.mktemp("textbooks")
    made = {}

    def of(textbook):
        if textbook not in made:
            out = folder / f"{textbook}.safetensors"
            made[textbook] = out, run(textbook, digits, out, steps=STEPS.get(textbook, 300))[0].card
        return made[textbook]

    return of


def test_the_command_line_names_what_can_be_trained():
    assert tuple(OBJECTIVES) == TRAINED
    assert set(TEXTBOOKS) < set(TRAINED)


@pytest.mark.parametrize("textbook", TEXTBOOKS)
def test_its_loss_falls(textbook, trained):
    _, card = trained(textbook)
    curve = card["curve"]
    metric = TEXTBOOKS[textbook].primary_metric
    assert card["objective"] == textbook
    assert card["dtype"] == "float32"
    first, last = curve[metric][0], curve[metric][-1]
    if TEXTBOOKS[textbook].higher_is_better:
        assert last > card["held_out"]["noisy"] + 3
    else:
        assert last < (0.97 if textbook == "stacked" else 0.9) * first


@pytest.mark.parametrize("textbook", [name for name in TEXTBOOKS if name != "denoising"])
def test_it_compresses_pictures_of_any_size_grey_and_colour(textbook, trained, small):
    weights, _ = trained(textbook)
    for pixels in (small, small[:40, :33, 0], small[:5, :3]):
        latent = process(pixels, "compress", model=weights, quality=80)
        back = process(latent, "decompress", model=weights, kind="numpy")
        assert back.shape == pixels.shape
        assert back.dtype == np.uint8
        assert process(pixels, "compress", model=weights, quality=80) == latent


def test_a_picture_of_its_own_kind_comes_back_likely(trained, digits):
    weights, _ = trained("vanilla")
    (stroke,) = strokes(1)[0]
    back = process(process(stroke, "compress", model=weights, quality=100), "decompress", model=weights, kind="numpy")
    assert psnr(back, stroke) > psnr(np.full_like(stroke, int(stroke.mean())), stroke) + 3


@pytest.mark.parametrize("shape", [(57, 91), (57, 91, 3), (9, 9)])
def test_the_denoising_one_denoises_any_size(trained, shape):
    weights, _ = trained("denoising")
    picture = np.zeros(shape, np.float32)
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 0.5, shape), 0, 1).astype(np.float32)
    clean = process(noisy, "denoise", model=weights)
    assert clean.shape == shape
    assert np.abs(clean - picture).mean() < 0.5 * np.abs(noisy - picture).mean()


def test_the_linear_one_is_within_a_hundredth_of_principal_components(tmp_path):
    images, labels = strokes(1500, 14)
    folder = write_idx(tmp_path / "small", images, labels)
    config = {"widths": (16,)}
    header, _ = run("linear", folder, tmp_path / "w.safetensors", steps=2500, config=config)
    assert header.config["side"] == 14  # that of the data
    x = torch.from_numpy(images).flatten(1).float() / 255
    seen, held_out = x[:1200], x[1200:]
    mean = seen.mean(0)
    _, _, axes = torch.linalg.svd(seen - mean, full_matrices=False)
    axes = axes[:16]
    pca = float(((held_out - mean) @ axes.T @ axes + mean - held_out).square().mean())
    assert header.card["held_out"]["mse"] == pytest.approx(pca, rel=0.01)


def test_the_stacked_one_learns_layer_by_layer_then_all_of_it(digits):
    recipe = Stacked.recipe
    objective = Stacked(Stacked.source(digits, recipe, {}), {}, recipe)
    batch = objective.batch(np.random.default_rng(0), False)
    network = objective.model

    def moved(done):
        objective.progress = done
        network.zero_grad(set_to_none=True)
        objective.loss(batch, np.random.default_rng(0), False)[0].backward()
        return {name.rsplit(".", 1)[0] for name, value in network.named_parameters() if value.grad is not None}

    assert moved(0.0) == {"encoder.0", "decoder.1"}
    assert moved(0.6 * Stacked.JOINT) == {"encoder.1", "decoder.0"}
    assert moved(Stacked.JOINT) == moved(0.99) == {"encoder.0", "encoder.1", "decoder.0", "decoder.1"}


def test_the_sparse_one_uses_fewer_of_its_units(trained, digits):
    x = torch.from_numpy(strokes(300)[0])[:, None].float() / 255

    def share(textbook):
        network = registry.load_model(trained(textbook)[0]).network
        with torch.no_grad():
            return active(network.encode(x))

    assert share("sparse") < 0.7 * share("vanilla")  # without the penalty they are equal


@pytest.mark.parametrize("textbook", ["linear", "vanilla", "multilayer", "stacked", "deep2d", "sparse"])
def test_a_fresh_one_begins_at_the_mean_image(textbook, tmp_path):
    folder = write_idx(tmp_path, strokes(200)[0], np.resize([1, 5, 6], 200).astype(np.uint8))
    kind = TEXTBOOKS[textbook]
    objective = kind(kind.source(folder, kind.recipe, {}), {}, kind.recipe)
    objective.prepare()
    network, mean = objective.model, objective.sample().mean(0, keepdim=True)
    code = network.encode(mean.clamp(1e-3, 1 - 1e-3))
    torch.testing.assert_close(code, torch.zeros_like(code), atol=1e-4, rtol=0)
    torch.testing.assert_close(network.decode(code), mean, atol=2e-3, rtol=0)


def test_hardly_a_unit_of_the_deep_one_is_dead(trained):
    network = registry.load_model(trained("multilayer")[0]).network
    first = network.encoder[0](torch.from_numpy(strokes(300)[0]).flatten(1).float() / 255)
    assert (first.amax(0) > 0).float().mean() > 0.9  # a quarter of them were, did it not begin at the mean image


@pytest.mark.parametrize("textbook", ["conv", "denoising"])
def test_what_a_pixel_depends_on_lies_within_the_halo(textbook):
    network = weights.build(TEXTBOOKS[textbook].architecture, {})
    side = 8 * network.halo
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    back = network(x, torch.zeros(1)) if textbook == "denoising" else network(x[:, :1])
    middle = side // 2 + 3
    back[0, 0, middle, middle].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    reach = max(middle - int(rows.min()), int(rows.max()) - middle)
    assert network.halo / 2 < reach <= network.halo


def test_the_divergence_is_that_of_the_two_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 40, 5, generator=generator)
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), exact)


def test_photographs_will_do_too(tmp_path, photograph):
    for n in range(10):
        Image.fromarray(photograph[10 * n : 10 * n + 60, :80]).save(tmp_path / f"{n}.png")
    for textbook in ("vanilla", "conv"):
        header, _ = run(textbook, tmp_path, tmp_path / "w.safetensors", steps=5, recipe={"batch": 8})
        assert header.card["data"].startswith("10 images")  # the curve of the run before is none of them
    header, _ = run("vanilla", tmp_path, tmp_path / "w.safetensors", steps=5, config={"side": 20})
    assert header.config["side"] == 20


@pytest.mark.parametrize("textbook", ["vanilla", "conv"])
def test_too_little_data_is_refused_by_name(textbook, digits, tmp_path):
    images, labels = strokes(12)
    out = tmp_path / "w.safetensors"
    few = write_idx(tmp_path / "few", images[:9], labels[:9])
    with pytest.raises(DataError, match=r"few: 9 images, at least 10 are needed"):
        run(textbook, few, out, steps=1)
    flat = write_idx(tmp_path / "flat", images[:, :20], labels)
    with pytest.raises(DataError, match=r"flat: images of 20x28 pixels; they must be square, 8x8 or more"):
        run(textbook, flat, out, steps=1)
    tiny = write_idx(tmp_path / "tiny", images[:, :4, :4].copy(), labels)
    with pytest.raises(DataError, match=r"tiny: images of 4x4 pixels"):
        run(textbook, tiny, out, steps=1)
    Image.new("L", (27, 300)).save(tmp_path / "few" / "narrow.png")
    for file in few.glob("*ubyte*"):
        file.unlink()
    with pytest.raises(DataError, match=r"few: 0 usable images, at least 10.*both sides of 28 pixels.*1 were smaller"):
        run(textbook, few, out, steps=1)


def test_other_sizes_labels_and_textbooks_are_refused_by_name(digits, tmp_path, trained):
    out = tmp_path / "w.safetensors"
    images, labels = strokes(40)
    folder = write_idx(tmp_path / "nines", images, np.full_like(labels, 9), packed=False)
    with pytest.raises(DataError, match=r"nines: 0 images with the labels 1, 5, 6, at least 10"):
        run("deep2d", folder, out, steps=1)
    small = write_idx(tmp_path / "small", *strokes(40, 20))
    with pytest.raises(DataError, match=r"small: images of 20x20 pixels, but the network takes 28x28"):
        run("vanilla", small, out, steps=1, start=trained("vanilla")[0])
    with pytest.raises(UsageError, match="another kind of autoencoder"):
        run("vanilla", digits, out, steps=1, start=trained("linear")[0])
    with pytest.raises(UsageError, match="holds another network"):
        run("conv", digits, out, steps=1, start=trained("linear")[0])
    with pytest.raises(UsageError, match=r"widths \[64\].*can't become"):
        run("vanilla", digits, out, steps=1, start=trained("vanilla")[0], config={"widths": (32,)})


def test_a_sparse_one_may_start_from_a_plain_one(digits, tmp_path, trained):
    weights, card = trained("vanilla")
    header, lines = run("sparse", digits, tmp_path / "w.safetensors", steps=3, start=weights)
    assert header.card["start"].startswith("vanilla-1 (")
    assert header.card["recipe"]["learning_rate"] == pytest.approx(Textbook.recipe.learning_rate / 3)
    before = next(line for line in lines if "held out:" in line)
    assert "step 0" in before
    assert header.card["curve"]["bce"][0] == pytest.approx(card["held_out"]["bce"], rel=1e-2)


def test_what_does_not_ship_is_measured(digits):
    figures = bench_textbooks(digits, device="cpu", steps=20)
    images = strokes(1500)[0].reshape(1500, -1) / 255
    seen, held_out = images[:1200], images[1200:] - images[:1200].mean(0)
    axes = np.linalg.svd(seen - seen.mean(0), full_matrices=False)[2][:64]
    left = np.square(held_out - held_out @ axes.T @ axes).mean()
    assert figures["components"]["linear"]["mse"] == pytest.approx(left)
    deep = figures["runs"]["deep2d"]
    assert 1 / 3 < deep["neighbours"] <= 1
    lines = table(figures).splitlines()
    assert lines[0].split() == ["deep2d", "mse", f"{deep['held_out']['mse']:g},", "bce",
                               f"{deep['held_out']['bce']:g};", "20", "steps"]  # fmt: skip
    assert lines[1].split()[-1] == f"{100 * deep['neighbours']:.1f}%"
    assert any(line.startswith("vanilla, 128 values") for line in lines)


def test_a_digit_stands_out_by_its_errors(digits):
    figures = bench_anomaly(digits, width=8, steps=40, device="cpu")
    rows = figures["digits"]
    assert figures["mean"]["vanilla"] == pytest.approx(np.mean([row["vanilla"] for row in rows.values()]))
    assert all(0 <= area <= 1 for row in rows.values() for area in row.values())
    assert figures["mean"]["components"] > 0.8  # the strokes of one kind span few dimensions
    assert len(table(figures).splitlines()) == 3 + len(rows)


def test_of_mnist_too(data, tmp_path):
    header, _ = run("deep2d", data / "digits", tmp_path / "w.safetensors", steps=60)
    assert header.card["data"].endswith("of digits/")
    assert header.card["held_out"]["bce"] < 0.35
