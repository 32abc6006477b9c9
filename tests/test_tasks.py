"""Image-to-image tasks: what one states is all that engine and command line need, and upscale and colorize keep what
belongs to a picture."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from stand_ins import Doubled, Reddish

import aeimg
from aeimg import ModelError, UsageError, bench, registry
from aeimg.cli import main
from aeimg.metadata import with_size
from aeimg.metrics import chroma_psnr, colourfulness, psnr
from aeimg.models.colorizer import Colorizer, ColorizerConfig
from aeimg.models.upscaler import Upscaler, UpscalerConfig
from aeimg.tasks.colorize import coloured, luma_of
from aeimg.tasks.declared import UPSCALE
from aeimg.tasks.image import resized_plane
from aeimg.tasks.options import UpscaleOptions
from aeimg.tasks.upscale import Upscale, resized
from aeimg.training import train
from aeimg.weights import build, read_header

CPU = torch.device("cpu")
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "plugins.md").read_text()
(CODE,) = re.findall(r"^``` \{\.python #task\}\n(.*?)^```", PAGE, re.S | re.M)
(CALL,) = re.findall(r"^``` \{\.python #task-call\}\n(.*?)^```", PAGE, re.S | re.M)
(POINT,) = re.findall(r'^\[project\.entry-points\."aeimg\.tasks"\]\n(.*?)^```', PAGE, re.S | re.M)


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def small_upscaler(**config):
    torch.manual_seed(0)
    network = Upscaler(UpscalerConfig(**{"channels": 8, "blocks": 2, **config})).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return network


@pytest.fixture
def models():
    aeimg.register("doubled", Doubled, task="upscale")
    aeimg.register("reddish", Reddish, task="colorize")
    aeimg.register("small-up", small_upscaler, task="upscale")
    yield
    for name in ("doubled", "reddish", "small-up"):
        aeimg.unregister(name)


# -- tasks of plug-ins ----------------------------------------------------------------------------------------------


@pytest.fixture
def levels(tmp_path, monkeypatch):
    """The package of docs/plugins.md, as installed."""
    site = tmp_path / "site"
    info = site / "levels-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "levels.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: levels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aeimg.tasks]\n" + POINT.replace('"', ""))
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("levels", None)


def test_the_task_of_a_package_has_a_command_with_its_options_and_a_manifest(levels, small, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(small).save(tmp_path / "in" / "a.png", dpi=(72, 72))
    call = ("run", "levels", tmp_path / "in", tmp_path / "out", "--levels")
    assert "1 done" in run(*call, 2).stderr
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out" / "a.png")))) == {0, 255}
    assert "all 1 results are there already" in run(*call, 2).stderr
    assert "1 done" in run(*call, 3).stderr
    assert run(*call, 1).exit_code == 2
    assert "levels" in run("run", "--help").output
    assert "How many levels of each channel" in run("run", "levels", "--help").output


def test_the_call_of_the_page_works_and_names_the_options_it_knows(levels, small):
    names = {"aeimg": aeimg, "image": small}
    exec(CALL, names)
    np.testing.assert_array_equal(names["posterised"], np.rint(np.rint(small / 255 * 7) / 7 * 255))
    batch = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    assert aeimg.process(batch, "levels", levels=2).unique().tolist() == [0, 1]
    with pytest.raises(UsageError, match="levels must lie in 2..256"):
        aeimg.process(small, "levels", levels=1)
    with pytest.raises(UsageError, match="'quality' is an option of compress"):
        aeimg.process(small, "levels", quality=3)
    with pytest.raises(UsageError, match="works without a model"):
        aeimg.process(small, "levels", model="aeimg-denoise")
    with pytest.raises(UsageError, match="unknown task 'level'.*levels"):
        aeimg.process(small, "level")


def test_a_package_that_takes_a_name_or_brings_no_task_is_an_error_that_says_so(levels):
    points = levels / "levels-1.0.dist-info" / "entry_points.txt"
    points.write_text("[aeimg.tasks]\nsharpen = levels:TASK\nbroken = levels:none\ndenoise = levels:TASK\n")
    importlib.invalidate_caches()
    with pytest.raises(ModelError, match="'sharpen' of the package levels is no aeimg.ImageTask of that name"):
        aeimg.process(np.zeros((8, 8), np.uint8), "sharpen")
    assert run("run", "broken", "a", "b").exit_code == 1
    done = run("run", "--help")
    assert done.exit_code == 0 and "broken" in done.output
    assert aeimg.process(np.zeros((8, 8), np.uint8), "denoise").max() <= 1  # aeimg's own


def test_a_registered_task_runs_models_that_are_registered_for_it(levels, small):
    import levels as module

    task = aeimg.ImageTask("twice", "Double.", aeimg.EncodingOptions, aeimg.ImageRunner, scale=2, model="doubled")
    aeimg.register_task(task)
    try:
        aeimg.register("doubled", Doubled, task="twice")
        np.testing.assert_array_equal(aeimg.process(small, "twice"), small.repeat(2, 0).repeat(2, 1))
        assert registry.model_tasks()[-2:] == ["levels", "twice"]
        with pytest.raises(ModelError, match="'twice' is already taken"):
            aeimg.register_task(task)
        with pytest.raises(ModelError, match="'levels' of the package levels has a name that is already taken"):
            aeimg.register_task(module.TASK)
            registry.plugged_task("levels")
    finally:
        aeimg.unregister_task("twice")
        aeimg.unregister_task("levels")
        aeimg.unregister("doubled")
    with pytest.raises(UsageError, match="the task must be one of"):
        aeimg.register("doubled", Doubled, task="twice")


@pytest.mark.parametrize("wrong", [{"name": "Two words"}, {"options": int}, {"scale": 0}, {"channels_in": 2}])
def test_what_can_be_no_task_is_refused(wrong):
    stated = {"name": "x", "summary": "X.", "options": aeimg.EncodingOptions, "runner": aeimg.ImageRunner, **wrong}
    with pytest.raises(ModelError, match="the task"):
        aeimg.ImageTask(**stated)


def test_models_are_listed_by_task():
    assert "aeimg-codec" not in run("models", "--task", "upscale").output
    assert run("models", "--task", "sing").exit_code == 2


# -- upscale --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["upscale", "colorize"])
def test_without_weights_the_error_says_how_to_get_some(task, small):
    with pytest.raises(ModelError, match=f"--model.*aeimg train {task}"):
        aeimg.process(small, task)


def test_every_kind_of_picture_is_enlarged_and_stays_of_its_kind(models, small):
    twice = small.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(aeimg.process(small, "upscale", model="doubled"), twice)
    np.testing.assert_array_equal(aeimg.process(small[..., 0], "upscale", model="doubled", scale=2), twice[..., 0])
    deep = small[..., 0].astype(np.uint16) * 251
    np.testing.assert_array_equal(
        aeimg.process(deep, "upscale", model="doubled"), twice[..., 0].astype(np.uint16) * 251
    )
    four = aeimg.process(small[:9, :7], "upscale", model="doubled", scale=4)
    np.testing.assert_array_equal(four, small[:9, :7].repeat(4, 0).repeat(4, 1))
    tensor = torch.rand(2, 3, 8, 6)
    assert aeimg.process(tensor, "upscale", model="doubled").shape == (2, 3, 16, 12)
    assert aeimg.process(tensor[:0], "upscale", model="doubled").shape == (0, 3, 16, 12)
    with pytest.raises(UsageError, match="one of 2, 4, 8, 16, not 3"):
        aeimg.process(small, "upscale", model="doubled", scale=3)


def test_what_belongs_to_a_picture_survives_and_says_its_new_size(models, small, tmp_path):
    source = Image.fromarray(np.dstack([small, np.full(small.shape[:2], 255, np.uint8)]))
    alpha = np.zeros(small.shape[:2], np.uint8)
    alpha[:, : small.shape[1] // 2] = 255
    source.putalpha(Image.fromarray(alpha))
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769).update({0xA002: small.shape[1], 0xA003: small.shape[0]})
    icc = b"\0" * 12 + b"mntrRGB XYZ " + b"\0" * 104
    source.save(tmp_path / "a.png", exif=exif, icc_profile=icc, dpi=(150, 150))
    done = run("upscale", tmp_path / "a.png", tmp_path / "b.png", "--model", "doubled")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (2 * small.shape[1], 2 * small.shape[0])
        found = image.getexif()
        assert found[0x010F] == "Maker"
        assert [found.get_ifd(0x8769)[tag] for tag in (0xA002, 0xA003)] == list(image.size)
        assert image.info["icc_profile"] == icc
        assert round(image.info["dpi"][0]) == 150
        clear = np.asarray(image)[..., 3]
    assert (clear[:, : small.shape[1] - 6] == 255).all() and (clear[:, small.shape[1] + 6 :] == 0).all()
    dry = run("upscale", tmp_path / "a.png", tmp_path / "c.png", "--model", "doubled", "--dry-run")
    assert f"{4 * small.shape[0] * small.shape[1] / 1e6:.1f} megapixels" in dry.stderr


@pytest.fixture(params=["upscale", "colorize"])
def run_of(request, models, small, tmp_path):
    """A task, its model, and a folder of two pictures."""
    (tmp_path / "in").mkdir()
    Image.fromarray(small[:30, :40]).save(tmp_path / "in" / "a.png")
    Image.fromarray(small[10:40, :40, 0]).save(tmp_path / "in" / "b.png")
    return request.param, {"upscale": "doubled", "colorize": "reddish"}[request.param], tmp_path


def test_a_run_has_a_report_a_manifest_sentences_and_json(run_of, caplog):
    task, model, folder = run_of
    call = (task, folder / "in", folder / "out", "--model", model, "--dtype", "fp32")
    done = run(*call, "--report", folder / "page.html", "--json", folder / "a.json", "-v")
    assert done.exit_code == 0, done.output
    found = json.loads((folder / "a.json").read_text())
    size = (80, 60) if task == "upscale" else (40, 30)
    assert [(one["width"], one["height"], one["model"]) for one in found["files"]] == [(*size, f"{model}-1")] * 2
    page = (folder / "page.html").read_text()
    shown = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert [row[0] for row in shown["rows"]] == ["a.png", "b.png"]
    assert [one["size"] for one in shown["galleries"]] == [list(size)] * 2
    assert all({"before", "after"} <= set(one["crops"]) for one in shown["galleries"])
    assert run(*call, "--json", folder / "a.json").exit_code == 0
    again = json.loads((folder / "a.json").read_text())
    assert (again["done"], again["skipped"]) == (0, 2)
    with Image.open(folder / "out" / "b.png") as image:
        assert (image.size, image.mode) == (size, "L" if task == "upscale" else "RGB")
    said = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert sum(f"a.png: {size[0]}x{size[1]}, {task} by {model}-1" in line for line in said) == 1, said


def test_a_run_takes_shards_and_urls(run_of):
    task, model, folder = run_of
    first, second = (
        aeimg.process(folder / "in", task, out=folder / "out", model=model, shard=shard) for shard in ("1/2", "2/2")
    )
    assert first.done + second.done == 2 and first.elsewhere == second.done
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("a.png", "b.png"):
        store.pipe(f"/{task}/in/{name}", (folder / "in" / name).read_bytes())
    summary = aeimg.process(f"memory://{task}/in", task, out=f"memory://{task}/out", model=model)
    assert (summary.done, summary.failed) == (2, [])
    for name in ("a.png", "b.png"):
        assert store.cat(f"/{task}/out/{name}") == (folder / "out" / name).read_bytes()
    assert aeimg.process(f"memory://{task}/in", task, out=f"memory://{task}/out", model=model).skipped == 2


def test_xmp_says_the_new_size():
    about = aeimg.metadata.Metadata(xmp=b'<x tiff:ImageWidth="30"><exif:PixelYDimension>20</exif:PixelYDimension></x>')
    made = with_size(about, 60, 40).xmp
    assert made == b'<x tiff:ImageWidth="60"><exif:PixelYDimension>40</exif:PixelYDimension></x>'


def test_tiles_of_an_upscaler_equal_the_whole(models):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 70, 90), np.uint8))
    made = Upscale(UPSCALE, "small-up", CPU, torch.float32, UpscaleOptions())
    whole = made.run_batch(x)
    made.tile = 48
    assert torch.equal(made.run_batch(x), whole)
    made.apply = made.network
    made.network = types.SimpleNamespace(channels=3, scale=2, halo=0, label="x", multiple=1, dtypes=None)
    assert not torch.equal(made.run_batch(x), whole)  # the halo is needed


def test_a_network_of_spandrels_enlarges_by_its_own_scale(small, tmp_path):
    pytest.importorskip("spandrel")
    from safetensors.torch import save_file
    from spandrel.architectures import Compact

    network = Compact.Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=4)
    path = tmp_path / "4x.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    made = aeimg.process(small[:20, :30], "upscale", model=f"spandrel:{path}", dtype="fp32")
    assert made.shape == (80, 120, 3)
    with pytest.raises(ModelError, match="aeimg upscale runs this network"):
        aeimg.process(small, "denoise", model=f"spandrel:{path}")


def test_the_networks_stay_within_their_limits():
    from aeimg.report import kilomacs_per_pixel

    up, colour = build("upscaler", {}), build("colorizer", {})
    assert kilomacs_per_pixel("upscale", up)["upscale"] < 60
    assert 2 * sum(p.numel() for p in up.parameters()) < 1.5e6
    for bins in (0, 10):
        assert 2 * sum(p.numel() for p in build("colorizer", {"bins": bins}).parameters()) < 5e6
    assert kilomacs_per_pixel("colorize", colour)["colorize"] < 100


def test_a_fresh_upscaler_is_bicubic_interpolation(small):
    x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    made = Upscaler(UpscalerConfig(channels=8, blocks=1))(x).detach()[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert psnr((made * 255).round().astype(np.uint8), resized(small, 2)) > 50


def test_alpha_is_resized_in_its_depth():
    plane = np.full((6, 5), 65535, np.uint16)
    assert (resized_plane(plane, 12, 10) == 65535).all()
    assert resized_plane(plane.astype(np.float32) / 65535, 12, 10).dtype == np.float32


# -- colorize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_luma_comes_back_bit_for_bit_whatever_the_chroma(dtype, white):
    rng = np.random.default_rng(0)
    luma = rng.integers(0, white + 1, (300, 300)).astype(dtype)
    made = coloured(luma, rng.uniform(-0.5, 0.5, (2, 300, 300)).astype(np.float32))
    np.testing.assert_array_equal(luma_of(made), luma)
    if dtype == np.uint8:
        np.testing.assert_array_equal(np.asarray(Image.fromarray(made.transpose(1, 2, 0)).convert("L")), luma)
    assert np.ptp(made.astype(int), 0).mean() > 0.1 * white  # and there is colour


def test_colours_within_the_gamut_are_those_that_were_asked_for():
    made = coloured(np.full((4, 4), 128, np.uint8), np.stack([np.full((4, 4), -0.1), np.full((4, 4), 0.1)]))
    assert np.abs(made[0].astype(int) - (128 + 255 * 0.1402)).max() <= 1
    assert np.abs(made[2].astype(int) - (128 - 255 * 0.1772)).max() <= 1


def test_grey_and_colour_pictures_get_the_chroma_of_the_model(models, small):
    for picture in (small[..., 0], small, small[:5, :9]):
        made = aeimg.process(picture, "colorize", model="reddish")
        assert made.shape == (*picture.shape[:2], 3)
        luma = luma_of(picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1))
        np.testing.assert_array_equal(luma_of(made.transpose(2, 0, 1)), luma)
        assert (made[..., 0] >= made[..., 2]).all()
    grey = aeimg.process(small[..., 0], "colorize", model="reddish", strength=0)
    np.testing.assert_array_equal(grey, np.repeat(small[..., :1], 3, 2))
    deep = aeimg.process(small[..., 0].astype(np.uint16) * 257, "colorize", model="reddish")
    assert deep.dtype == np.uint16
    batch = torch.rand(2, 1, 20, 30)
    assert aeimg.process(batch, "colorize", model="reddish").shape == (2, 3, 20, 30)


def test_a_grey_profile_does_not_stay_with_colours(models, small):
    buffer = io.BytesIO()
    Image.fromarray(small[..., 0]).save(buffer, "PNG", icc_profile=b"\0" * 16 + b"GRAY" + b"\0" * 108)
    with Image.open(io.BytesIO(aeimg.process(buffer.getvalue(), "colorize", model="reddish"))) as image:
        assert image.mode == "RGB"
        assert "icc_profile" not in image.info


def test_classes_and_regression_are_one_switch_in_the_config():
    luma = torch.rand(1, 1, 64, 64)
    for bins in (0, 6):
        network = Colorizer(ColorizerConfig(channels=(8, 8, 8), bottom=1, bins=bins))
        made = network(luma)
        assert made.shape == (1, 2, 64, 64)
        assert made.detach().abs().max() < 1e-5  # it begins with grey
    classes = network.classes(network.centres(luma).T[None, :, :, None])
    assert classes.flatten().tolist() == list(range(36))


# -- training and measuring -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    for n in range(12):
        part = data.astronaut() if n % 2 else data.coffee()
        Image.fromarray(part[20 * n : 20 * n + 100, 20 * n : 20 * n + 100]).save(folder / f"{n}.png")
    return folder


@pytest.mark.parametrize(
    ("task", "config", "recipe"),
    [("upscale", {"channels": 8, "blocks": 1}, {"crop": 32, "late_crop": 48, "late_batch": 4, "batch": 4}),
     ("colorize", {"channels": (8, 12, 16), "bottom": 1, "side": 48}, {"crop": 32, "late_crop": 48, "batch": 8}),
     ("colorize", {"channels": (8, 12, 16), "bottom": 1, "side": 48, "bins": 6}, {"crop": 32, "late_crop": 48})],
)  # fmt: skip
def test_a_short_training_gives_weights_that_run_and_are_measured(task, config, recipe, photos, small, tmp_path):
    out = tmp_path / "w.safetensors"
    recipe = {"warmup": 5, "average": 0.9, **recipe}
    card = train(task, photos, out, steps=60, config=config, recipe=recipe, device="cpu", dtype="fp32",
                 log=lambda _: None).card  # fmt: skip
    losses = [value for value in card["curve"]["loss"] if value is not None]
    assert losses[-1] < losses[0]
    assert card["held_out"]["psnr"] > card["held_out"]["bicubic" if task == "upscale" else "grey"] - 0.5
    made = aeimg.process(small, task, model=out)
    scale = 2 if task == "upscale" else 1
    assert made.shape == (scale * small.shape[0], scale * small.shape[1], 3)
    figures = bench.bench_images(task, photos, model=str(out), limit=2, device="cpu", dtype="fp32")
    assert set(figures["rows"]) == {task, *(("bicubic", "Lanczos") if task == "upscale" else ("grey",))}
    assert f"{task:12}" in bench.table(figures)
    bench.write_card(out, photos, figures)
    assert set(read_header(out).card["figures"][photos.name]) == set(figures["rows"])


def test_bench_is_a_command_for_each_task(photos, models):
    done = run("bench", "upscale", photos, "--model", "doubled", "--limit", 1, "--dtype", "fp32")
    assert done.exit_code == 0, done.output
    assert "bicubic" in done.output and "SSIMULACRA2" in done.output
    done = run("bench", "colorize", photos, "--model", "reddish", "--limit", 1, "--dtype", "fp32")
    assert "original" in done.output and "grey" in done.output
    assert run("bench", "sing", photos).exit_code == 2


def test_colourfulness_and_chroma_psnr_know_grey(small):
    grey = np.repeat(small[..., :1], 3, 2)
    assert colourfulness(grey) == pytest.approx(0)
    assert colourfulness(small) > 5
    assert chroma_psnr(grey, 255 - grey) > 200
    assert chroma_psnr(small, grey) < 50
