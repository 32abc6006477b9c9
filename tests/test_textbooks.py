"""The small autoencoders that ship: their cards are true, the page says what these say, and all tasks take them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from aeimg import explore, process, registry, weights
from aeimg.training.datasets import Digits
from aeimg.training.textbook_objectives import TEXTBOOKS

SHIPPED = [name for name in TEXTBOOKS if name in registry.BUILTINS]
CODECS = [name for name in SHIPPED if name != "denoising"]
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "autoencoders.md").read_text()
MEASURED = json.loads((DOCS / "textbooks.json").read_text())
CPU = torch.device("cpu")


def weights_of(name: str) -> Path:
    return weights.find_weights(registry.BUILTINS[name][1])


def row(name: str, card: dict) -> str:
    """The beginning of the page's table for a model, of what its card says."""
    textbook, *config = name.split(",")
    figures = ", ".join(f"{key} {value:g}" for key, value in sorted(card["held_out"].items()))
    return f"| {','.join([f'`{textbook}`', *config])} | {figures} | {card['steps']:,} |"


def stated(pattern: str) -> float:
    (found,) = re.findall(pattern, " ".join(PAGE.split()))
    return float(found.rstrip("."))


@pytest.fixture(scope="session")
def digits(data):
    if not Digits.are_in(data / "digits"):
        pytest.skip(f"the digits are not here ({data / 'digits'}); name the folder above them in AEIMG_TEST_DATA")
    return data / "digits"


def test_every_textbook_under_a_megabyte_ships():
    assert set(TEXTBOOKS) - set(SHIPPED) == {"deep2d"}  # 2.2 MB
    assert all(weights_of(name).stat().st_size < 1e6 for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_page_says_what_the_card_says(name):
    size = weights_of(name).stat().st_size
    assert f"{row(name, weights.read_header(weights_of(name)).card)} {size / 1e3:.0f} kB |" in PAGE


def test_the_page_says_what_was_measured_of_models_that_do_not_ship():
    for name, run in MEASURED["runs"].items():
        assert row(name, run) in PAGE
    assert {name.split(",")[0] for name in MEASURED["runs"]} == {"deep2d", "vanilla"}


def test_the_sentences_below_the_tables_say_the_same():
    cards = {name: weights.read_header(weights_of(name)).card["held_out"] for name in SHIPPED}
    deep, components = MEASURED["runs"]["deep2d"], MEASURED["components"]
    assert stated(r"principal subspace: it leaves mse ([\d.]+)") == cards["linear"]["mse"]
    assert stated(r"components of the same width: mse ([\d.]+)") == pytest.approx(components["linear"]["mse"], rel=1e-4)
    assert stated(r"`sparse` uses (\d+)%") == round(100 * cards["sparse"]["active"])
    assert stated(r"where `vanilla` uses (\d+)%") == round(100 * cards["vanilla"]["active"])
    assert stated(r"`deep2d` leaves mse ([\d.]+)") == deep["held_out"]["mse"]
    assert stated(r"the same three digits leave ([\d.]+)") == pytest.approx(components["deep2d"]["mse"], rel=1e-3)
    assert stated(r"In its plane ([\d.]+)%") == pytest.approx(100 * deep["neighbours"], abs=0.051)
    gain = cards["denoising"]["psnr"] - cards["denoising"]["noisy"]
    assert stated(r"noise of sigma 0.5 by ([\d.]+) dB") == pytest.approx(gain, abs=0.051)


@pytest.mark.parametrize("name", SHIPPED)
def test_its_weights_come_from_a_commit(name):
    assert re.fullmatch(r"[0-9a-f]{7,}", weights.read_header(weights_of(name)).card["commit"])


@pytest.fixture(scope="session")
def measured(digits):
    """The held-out figures of the weights that ship, measured anew."""
    found = {}

    def of(name):
        if name not in found:
            kind, model = TEXTBOOKS[name], registry.load_model(weights_of(name))
            header = weights.read_header(weights_of(name))
            objective = kind(kind.source(digits, kind.recipe, {}), header.config, kind.recipe)
            found[name] = objective.validate(model.network if name in CODECS else model)
        return found[name]

    return of


@pytest.mark.parametrize("name", SHIPPED)
def test_its_weights_give_the_figure_of_its_card(name, measured):
    for key, value in weights.read_header(weights_of(name)).card["held_out"].items():
        # The card was measured before rounding to fp16.
        assert measured(name)[key] == pytest.approx(value, rel=5e-3), key


def test_the_linear_one_is_as_good_as_principal_components(digits):
    images = Digits(digits)
    images.split(images.total // 5)
    x = torch.from_numpy(images.images.copy()).flatten(1).double() / 255
    seen, held_out = x[: images.training], x[images.training :]
    mean = seen.mean(0)
    axes = torch.linalg.eigh((seen - mean).T @ (seen - mean)).eigenvectors[:, -64:]
    pca = float(((held_out - mean) @ axes @ axes.T + mean - held_out).square().mean())
    assert MEASURED["components"]["linear"]["mse"] == pytest.approx(pca, rel=1e-4)
    assert weights.read_header(weights_of("linear")).card["held_out"]["mse"] == pytest.approx(pca, rel=0.01)
    floor = float((torch.special.entr(held_out) + torch.special.entr(1 - held_out)).mean())
    assert stated(r"given back exactly, it is ([\d.]+)") == pytest.approx(floor, abs=6e-5)


def test_the_weights_that_ship_relate_to_each_other_as_the_textbooks_say(measured):
    assert measured("multilayer")["bce"] < measured("vanilla")["bce"]
    assert measured("stacked")["bce"] <= measured("multilayer")["bce"]
    assert measured("conv")["bce"] < measured("multilayer")["bce"]
    assert measured("linear")["mse"] > measured("multilayer")["mse"]
    assert measured("sparse")["active"] < 0.6 * measured("vanilla")["active"]
    assert measured("denoising")["psnr"] > measured("denoising")["noisy"] + 9
    assert measured("variational")["bce"] > measured("vanilla")["bce"]  # two values against 64


@pytest.mark.parametrize("name", CODECS)
def test_the_tasks_take_it_by_its_name(name, small):
    grey = small[:40, :33, 0]
    latent = process(grey, "compress", model=name, quality=80)
    assert process(latent, "decompress", kind="numpy").shape == grey.shape  # its weights are found by their label
    assert np.isfinite(process(grey, "features", model=name)).all()
    assert process(grey, "score", model=name).strange in (True, False)
    (drawn,) = explore.draw_samples(registry.get(name, "compress", CPU), 1, CPU, side=32)
    assert drawn.dtype == np.uint8 and drawn.std() > 1


def test_the_denoising_one_takes_noise_away_by_its_name():
    clean = np.zeros((45, 38), np.uint8)
    clean[10:34, 16:20] = 255
    noise = np.random.default_rng(0).normal(0, 127.5, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    back = process(noisy, "denoise", model="denoising")
    assert np.square(back - clean.astype(float)).mean() < 0.3 * np.square(noisy - clean.astype(float)).mean()


def test_the_lines_of_python_on_the_page_write_the_held_out_digits(digits, monkeypatch, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    monkeypatch.chdir(tmp_path)
    Path("digits").symlink_to(digits.resolve())
    exec(compile(block, "autoencoders.md", "exec"), {})
    written = list(Path("held-out").rglob("*.png"))
    assert {path.parent.name for path in written} == {"1", "5", "6"}
    assert len(written) == stated(r"The (\d+) held-out digits 1, 5 and 6")
