"""What encoders are good for besides files: vectors, scores, maps, pictures from codes."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from aeimg import InputError, InvalidLatent, ModelError, UsageError, explore, exports, process, registry
from aeimg.entropy import logistic_tables
from aeimg.metrics import roc_auc
from aeimg.models.convolutional import Convolutional
from aeimg.models.dense import Dense, DenseConfig
from aeimg.models.variational import Variational
from aeimg.patch_codec import PatchCodec
from aeimg.plots import SCATTER_SIZE, scatter
from aeimg.tasks.score import Strangeness

CPU = torch.device("cpu")


def codec(network, values: int) -> PatchCodec:
    """`network` as it would come of a weights file, knowing errors of 0 to 0.1."""
    tensors = {
        "code/centre": torch.zeros(values), "code/spread": torch.ones(values),
        "code/index": torch.full((100, values), 20, dtype=torch.uint8), "code/errors": torch.linspace(0, 0.1, 101),
        "code/tables": torch.from_numpy(logistic_tables(127)[:, 127:]),
    }  # fmt: skip
    torch.manual_seed(0)
    return PatchCodec(network.eval().requires_grad_(False), tensors, "small-1", b"12345678")


def identity(side: int = 8) -> PatchCodec:
    """A linear autoencoder that gives back what it gets; its code is the picture."""
    network = Dense(DenseConfig(side, (side * side,), activation=False, rectified_code=False))
    with torch.no_grad():
        for layer in (network.encoder[0], network.decoder[0]):
            layer.weight.copy_(torch.eye(side * side))
            layer.bias.zero_()
    return codec(network, side * side)


def model(made: PatchCodec) -> str:
    """Registers a codec under a name."""
    registry.register("small", lambda: made, task="compress")
    return "small"


def picture(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def test_features_of_one_block_are_its_code_and_of_several_their_mean():
    name = model(identity())
    a, b = picture(1), picture(2)
    np.testing.assert_allclose(process(a, "features", model=name), a.reshape(-1) / 255, atol=1e-6)
    both = process(np.hstack([a, b]), "features", model=name)
    np.testing.assert_allclose(both, (a.reshape(-1) / 255 + b.reshape(-1) / 255) / 2, atol=1e-6)


def test_features_of_the_shipped_codec_are_the_same_in_a_batch_and_alone(photograph):
    crops = [photograph[:96, :128], photograph[64:160, :128]]
    together = list(process(iter(crops), "features"))
    alone = [process(crop, "features") for crop in crops]
    assert together[0].ndim == 1 and together[0].dtype == np.float32
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.02 * np.abs(other).max())
    assert np.abs(alone[0] - alone[1]).max() > 0.1 * np.abs(alone[0]).max()


def test_a_score_is_the_error_of_the_reconstruction_and_the_threshold_that_of_training():
    broken = identity()
    with torch.no_grad():
        broken.network.decoder[0].weight.mul_(0.5)
    name = model(broken)
    flat = np.full((8, 8), 128, np.uint8)
    found = process(flat, "score", model=name)
    expected = (0.5 * 128 / 255) ** 2
    assert found.score == pytest.approx(expected, rel=1e-5)
    assert found.percentile == pytest.approx(expected * 1000, rel=1e-4)  # errors of training: 0 to 0.1, evenly
    assert found.error.shape == (8, 8)
    assert not found.strange
    assert process(flat, "score", model=name, percentile=50).strange
    assert process(np.full((8, 8), 255, np.uint8), "score", model=name).percentile == 100


def test_a_model_without_known_errors_gives_scores_without_a_threshold(photograph):
    found = process(photograph[:64, :64], "score", quality=20)
    better = process(photograph[:64, :64], "score", quality=90)
    assert found.percentile is None and found.strange is None
    assert 0 < better.score < found.score < 0.05


def test_results_that_are_not_files_refuse_a_folder_for_files(tmp_path, small):
    with pytest.raises(UsageError, match="writes no files: leave out `out`"):
        process(small, "features", out=tmp_path)


@pytest.mark.parametrize("suffix", exports.FEATURE_SUFFIXES)
def test_features_are_written_with_their_names(tmp_path, suffix):
    names, rows = ["a/ä.png", "b,c.png"], np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / f"codes{suffix}"
    exports.save_features(path, names, rows, "small-1")
    if suffix == ".csv":
        lines = list(csv.reader(path.open(encoding="utf-8")))
        assert lines[0] == ["name", "f0", "f1", "f2"]
        assert [line[0] for line in lines[1:]] == names
        back = np.array([line[1:] for line in lines[1:]], float)
    elif suffix == ".npz":
        with np.load(path) as file:
            assert file["names"].tolist() == names
            back = file["features"]
    else:
        with safe_open(str(path), "np") as file:
            assert json.loads(file.metadata()["names"]) == names
            assert file.metadata()["model"] == "small-1"
            back = file.get_tensor("features")
    np.testing.assert_array_equal(back, rows)


def test_scores_are_written_the_strangest_first(tmp_path):
    nothing = np.zeros((0, 0), np.float32)
    found = [Strangeness(0.1, 50.0, False, nothing), Strangeness(0.3, 100.0, True, nothing)]
    exports.save_scores(tmp_path / "s.csv", ["a", "b"], found)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines == ["name,score,percentile,strange", "b,0.3,100.0,1", "a,0.1,50.0,0"]


def test_a_heatmap_shows_the_root_of_the_error():
    error = np.zeros((4, 6), np.float32)
    error[1, 2] = 0.25
    with Image.open(io.BytesIO(exports.heatmap(error))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (4, 6) and pixels[1, 2] == 128 and pixels.sum() == 128


def test_the_plane_is_two_values_as_they_are_or_the_principal_components():
    points = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    same, labels = explore.plane(points)
    assert same is points and "code value" in labels[0]
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    wide = np.hstack([points * (5, 2), 1e-3 * np.ones((50, 3))]) @ turned
    found, labels = explore.plane(wide)
    centred = points * (5, 2) - (points * (5, 2)).mean(0)
    np.testing.assert_allclose(np.linalg.svd(found)[1], np.linalg.svd(centred)[1], rtol=1e-6)
    assert "principal" in labels[0] and labels[0].endswith("%)")
    with pytest.raises(InputError):
        explore.plane(points[:1])


def test_between_two_pictures_the_ends_are_the_pictures():
    made = identity()
    a, b = picture(1), picture(2)
    walk = explore.draw_between(made, a, b, 5, CPU)
    np.testing.assert_array_equal(walk[0][0], a)
    np.testing.assert_array_equal(walk[-1][0], b)
    np.testing.assert_allclose(walk[2][0], (a.astype(float) + b) / 2, atol=0.51)
    with pytest.raises(InputError, match="8x8 in 1 channels and 9x9"):
        explore.draw_between(made, a, picture(3, 9), 5, CPU)


def test_arithmetic_of_codes():
    made = identity()
    a, b, c = (np.full((8, 8), value, np.uint8) for value in (100, 50, 20))
    np.testing.assert_array_equal(explore.draw_combination(made, a, b, c, CPU)[0], np.full((8, 8), 70))


def test_samples_repeat_with_their_seed_and_a_model_without_a_decoder_says_so():
    made = codec(Variational(), 2)
    first, again, other = (explore.draw_samples(made, 3, CPU, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.stack(first).astype(int) - np.stack(other)).max() > 0
    assert first[0].shape == (1, 28, 28)
    assert explore.draw_plane(made, 4, CPU).shape == (1, 112, 112)
    with pytest.raises(ModelError, match="two values"):
        explore.draw_plane(identity(), 4, CPU)
    with pytest.raises(ModelError, match="small autoencoders"):
        explore.draw_samples(registry.get(None, "compress", CPU), 1, CPU)


def test_samples_of_a_network_that_takes_any_size_are_of_the_size_asked_for():
    made = codec(Convolutional(), 8)
    for side in (20, 64, 600):  # no multiple of what it takes; one; more than one block
        (drawn,) = explore.draw_samples(made, 1, CPU, side=side)
        assert drawn.shape == (1, side, side)


def test_the_area_under_the_curve():
    assert roc_auc(np.array([1.0, 2]), np.array([3.0, 4])) == 1
    assert roc_auc(np.array([3.0, 4]), np.array([1.0, 2])) == 0
    assert roc_auc(np.array([1.0, 1]), np.array([1.0])) == 0.5
    assert roc_auc(np.array([1.0, 3]), np.array([2.0])) == 0.5


def test_a_map_shows_every_group_in_a_colour_of_its_own():
    points = np.array([[0.0, 0], [1, 1], [2, 0]])
    image = np.asarray(scatter(points, ["a", "b", "a"], title="three", labels=("x", "y")))
    seen = {tuple(colour) for colour in image.reshape(-1, 3)[::1]}
    assert (0, 0x72, 0xB2) in seen and (0xD5, 0x5E, 0) in seen


def command(*words):
    from click.testing import CliRunner

    from aeimg.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def pictures(tmp_path):
    """Two folders with a picture of one name in each, and one of a long name."""
    for number, name in enumerate(("one/a.png", "two/a.png", "one/" + "x" * 248 + ".png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number)).save(tmp_path / name)
    return tmp_path


def test_no_command_draws_over_a_picture_that_it_is_given(pictures):
    name = model(identity())
    a, b = pictures / "one" / "a.png", pictures / "two" / "a.png"
    assert command("interpolate", a, b, pictures / "mid", "-m", name, "--steps", 3).exit_code == 0
    first, last = (pictures / "mid" / f"between-00{n}.png" for n in (0, 2))
    before = {path: path.read_bytes() for path in (a, b, first, last)}
    for words in [("arithmetic", a, b, b, a), ("arithmetic", b, b, a, a), ("plot-latents", a.parent, b, a),
                  ("interpolate", last, first, pictures / "mid", "--steps", 3)]:  # fmt: skip
        done = command(*words, "-m", name)
        assert (done.exit_code, "would overwrite an input" in done.output) == (2, True), done.output
    assert before == {path: path.read_bytes() for path in before}


def test_no_command_writes_over_what_it_has_not_made(pictures):
    name = model(identity())
    one, two = pictures / "one", pictures / "two"
    a, b = one / "a.png", two / "a.png"
    commands = {
        "f.npz": ("features", one, "f.npz"), "f.csv": ("features", one, "f.csv"), "s.csv": ("score", one, "s.csv"),
        "f.safetensors": ("features", one, "f.safetensors"), "m.jpg": ("plot-latents", one, "m.jpg"),
        "c.webp": ("arithmetic", a, b, b, "c.webp"), "drawn/sample-000.png": ("sample", "drawn", "-n", 1),
        "mid/between-001.png": ("interpolate", a, b, "mid"),
        "heat/a.png.png": ("score", one, "t.csv", "--heatmaps", "heat"),
    }  # fmt: skip
    foreign = [b"", b"mine", b"name,age\n", a.read_bytes(), np.random.default_rng(0).bytes(99)]
    for target, words in commands.items():
        path = pictures / target
        words = [pictures / word if isinstance(word, str) and word in (target, target.split("/")[0]) else word
                 for word in words]  # fmt: skip
        if "t.csv" in words:
            words[2] = pictures / "t.csv"
        for _ in range(2):  # what it has made itself it makes anew
            done = command(*words, "-m", name)
            assert done.exit_code == 0, done.output
        for data in foreign:
            path.write_bytes(data)
            done = command(*words, "-m", name)
            assert (done.exit_code, path.read_bytes()) == (2, data), done.output
            assert f"{path}: is there already, and was not written by an earlier run" in done.output.replace("\n", " ")
        path.unlink()
        path.mkdir()
        done = command(*words, "-m", name)
        assert done.exit_code == 2 and "is a folder" in done.output
        path.rmdir()
        path.symlink_to(pictures / "nowhere")  # writing would replace the link
        assert command(*words, "-m", name).exit_code == 2 and path.is_symlink()


def test_what_lies_among_the_images_does_not_pass_for_one_of_them(pictures):
    name, one = model(identity()), pictures / "one"
    for _ in range(2):
        done = command("plot-latents", one, one / "map.png", "-m", name)
        assert (done.exit_code, done.output) == (0, "plot-latents: 2 images, 64 values each by small-1\n")
    (one / "map.png").unlink()
    for folder in (one, one / ".." / "one"):
        done = command("score", one, pictures / "s.csv", "-m", name, "--heatmaps", folder)
        assert done.exit_code == 2 and "holds the images themselves" in done.output
    assert len(list(one.iterdir())) == 2 and not (pictures / "s.csv").exists()


def test_commands_say_what_they_have_done(pictures):
    name, a = model(identity()), pictures / "one" / "a.png"
    (pictures / "one" / "bad.png").write_bytes(b"no")
    assert command("features", pictures / "one", pictures / "F.NPZ", "-m", name).output.splitlines()[-1] == (
        "features: 2 images, 64 values each by small-1, 1 failed"
    )
    assert np.load(pictures / "F.NPZ")["features"].shape == (2, 64)
    (pictures / "empty").mkdir()
    done = command("features", pictures / "empty", pictures / "f.csv", "-m", name)
    assert done.output == "features: 0 images; no images found\n"
    done = command("plot-latents", pictures / "empty", pictures / "m.png", "-m", name)
    assert done.output == "Error: a map takes two images at least, not 0\n"
    done = command("interpolate", a, a, pictures / "mid", "-m", name, "--steps", 3)
    assert done.output == f"interpolate: {pictures / 'mid' / 'between-000.png'} to between-002.png\n"
    assert (
        command("arithmetic", a, a, a, pictures / "c.png", "-m", name).output == f"arithmetic: {pictures / 'c.png'}\n"
    )
    assert command("sample", pictures / "d", "-m", name, "--dtype", "bf16").exit_code == 2  # it would have no effect
    done = command("features", "-", pictures / "g.csv", "-m", name)
    assert done.exit_code == 2 and "not standard input" in done.output


def test_a_forgotten_output_costs_no_input(pictures):
    name = model(identity())
    for number in range(3):
        Image.fromarray(picture(number)).save(pictures / f"{number}.png")
    before = (pictures / "2.png").read_bytes()
    done = command("plot-latents", *(pictures / f"{number}.png" for number in range(3)), "-m", name)
    assert (done.exit_code, (pictures / "2.png").read_bytes()) == (2, before)
    assert "choose another name" in done.output


def test_features_of_one_command_are_no_scores_of_another(pictures):
    name = model(identity())
    for words, kept in ((("features", "score"), b"name,f0"), (("score", "features"), b"name,score")):
        assert command(words[0], pictures / "one", pictures / f"{words[0]}.csv", "-m", name).exit_code == 0
        assert command(words[1], pictures / "one", pictures / f"{words[0]}.csv", "-m", name).exit_code == 2
        assert (pictures / f"{words[0]}.csv").read_bytes().startswith(kept)


def test_pictures_of_one_name_are_told_apart(pictures):
    name = model(identity())
    one, two = pictures / "one", pictures / "two"
    assert command("score", one, two, pictures / "s.csv", "-m", name, "--heatmaps", one / "maps").exit_code == 0
    assert len(list((one / "maps").iterdir())) == 3
    assert command("score", one, two, pictures / "s.csv", "-m", name, "--heatmaps", one / "maps").exit_code == 0
    assert len(list((one / "maps").iterdir())) == 3
    listed = [line.split(",")[0] for line in (pictures / "s.csv").read_text().splitlines()]
    assert sorted(listed) == sorted(["name", str(one / "a.png"), str(two / "a.png"), "x" * 248 + ".png"])
    command("features", one, two, pictures / "f.npz", "-m", name, "--exclude", "maps")
    assert sorted(np.load(pictures / "f.npz")["names"]) == sorted(listed[1:])


def test_what_stands_in_the_way_is_an_error_in_words(pictures):
    name = model(identity())
    (pictures / "file").write_bytes(b"")
    for words in [("sample", pictures / "file"), ("score", pictures / "one", pictures / "s.csv", "--heatmaps",
                   pictures / "file")]:  # fmt: skip
        done = command(*words, "-m", name)
        assert done.exit_code == 1
        assert "can't be written" in done.output


def test_a_model_without_features_says_so_once(pictures):
    class Bare:
        label, digest = "bare-1", bytes(8)
        encode = to_bytes = from_bytes = decode = None

    done = command("features", pictures / "one", pictures / "f.csv", "-m", model(Bare()))
    assert (done.exit_code, done.output) == (1, "Error: model bare-1 gives no features\n")
    assert not (pictures / "f.csv").exists()
    (pictures / "none").mkdir()
    (pictures / "none" / "a.psd").write_bytes(b"8BPS")
    registry.unregister("small")
    done = command("score", pictures / "none", pictures / "s.csv", "-m", model(identity()))
    assert (done.exit_code, done.output) == (1, "score: 0 images; no images found; passed over: 1 .psd\n")
    allowed = command("score", pictures / "none", pictures / "s.csv", "-m", "small", "--allow-empty")
    assert allowed.exit_code == 0


def test_the_commands(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from aeimg.cli import main

    name = model(identity())
    for number in range(4):
        folder = tmp_path / "in" / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"nothing")

    def run(*words):
        return CliRunner().invoke(main, [str(word) for word in words])

    done = run("features", tmp_path / "in", tmp_path / "f.npz", "-m", name, "-q")
    assert done.exit_code == 1 and "bad.png" in done.output
    assert np.load(tmp_path / "f.npz")["names"].tolist() == ["even/0.png", "even/2.png", "odd/1.png", "odd/3.png"]
    (tmp_path / "in" / "bad.png").unlink()
    done = run("score", tmp_path / "in", tmp_path / "s.csv", "-m", name, "--heatmaps", tmp_path / "heat")
    assert done.exit_code == 0 and "0 of them strange" in done.output
    assert Image.open(tmp_path / "heat" / "even" / "0.png.png").size == (8, 8)
    assert run("plot-latents", tmp_path / "in", tmp_path / "map.png", "-m", name).exit_code == 0
    assert Image.open(tmp_path / "map.png").size == SCATTER_SIZE
    a, b = tmp_path / "in" / "even" / "0.png", tmp_path / "in" / "odd" / "1.png"
    assert run("interpolate", a, b, tmp_path / "between", "-m", name, "--steps", 3).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "between").iterdir())[-1] == "between-002.png"
    assert run("arithmetic", a, a, b, tmp_path / "c.png", "-m", name).exit_code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "c.png")), picture(1))
    assert run("sample", tmp_path / "drawn", "-m", name, "-n", 2).exit_code == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    assert run("features", tmp_path / "in", tmp_path / "f.txt", "-m", name).exit_code == 2


def test_damaged_codes_of_blocks_are_refused_and_a_forged_size_costs_nothing():
    made = identity()
    latent = made.encode(torch.from_numpy(np.stack([picture(1, 40)] * 3))[None], 50, CPU, torch.float32)[0]
    data = made.to_bytes(latent, 50)
    back = made.from_bytes(data, 40, 40, 50)
    assert back.channels == 3 and torch.equal(back.codes, latent.codes)
    refused = 0
    for at in range(len(data)):
        forged = bytearray(data)
        forged[at] ^= 0x55
        try:  # the last bits of a stream may mean nothing
            assert torch.equal(made.from_bytes(bytes(forged), 40, 40, 50).codes, latent.codes)
        except InvalidLatent:
            refused += 1
    assert refused >= len(data) - 4
    for end in range(len(data)):
        with pytest.raises(InvalidLatent):
            made.from_bytes(data[:end], 40, 40, 50)
    with pytest.raises(InvalidLatent):
        made.from_bytes(data, 1 << 24, 1 << 24, 50)


def test_many_blocks_go_in_parts():
    made = identity()
    latent = made.encode(torch.from_numpy(picture(1, 320))[None, None], 90, CPU, torch.float32)[0]
    assert len(latent.codes) == 1600
    assert torch.equal(made.from_bytes(made.to_bytes(latent, 90), 320, 320, 90).codes, latent.codes)


# -- from Python, by the words of the command line --------------------------------------------------------------------


def test_the_doors_do_from_python_what_the_commands_do(tmp_path):
    name = model(identity())
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = explore.features(tmp_path, tmp_path / "f.csv", model=name)
    assert (found.images, found.values, found.model) == (["0.png", "1.png", "2.png"], 64, "small-1")
    assert [path.name for path, _ in found.failed] == ["broken.png"]
    scored = explore.score(
        [tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "s.csv", model=name, heatmaps=tmp_path / "maps"
    )
    assert (scored.strange, sorted(path.name for path in (tmp_path / "maps").iterdir())) == (
        0,
        ["0.png.png", "1.png.png"],
    )
    drawn = explore.sample(tmp_path / "drawn", model=name, count=2, seed=3)
    assert [path.name for path in drawn] == ["sample-000.png", "sample-001.png"]
    steps = explore.interpolate(tmp_path / "0.png", tmp_path / "1.png", tmp_path / "steps", model=name, steps=3)
    np.testing.assert_array_equal(np.asarray(Image.open(steps[0])), picture(0))
    same = explore.arithmetic(*(tmp_path / f"{n}.png" for n in (2, 1, 1)), tmp_path / "sum.png", model=name)
    np.testing.assert_array_equal(np.asarray(Image.open(same)), picture(2))
    explore.plot_latents(tmp_path / "drawn", tmp_path / "map.png", model=name)
    assert (tmp_path / "map.png").is_file()
    with pytest.raises(UsageError, match="was not written by an earlier run"):
        explore.features(tmp_path / "drawn", tmp_path / "s.csv", model=name)
