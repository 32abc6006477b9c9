"""A few pictures at several settings: what is run, what it says, and that nothing is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg.cli import main
from aeimg.errors import UsageError


@pytest.fixture
def folder(tmp_path, small) -> Path:
    """Three small pictures, and the working directory."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(np.roll(small, 30 * number, 1)).save(tmp_path / "in" / f"{number}.png")
    return tmp_path


class Halved(torch.nn.Module):
    """A denoiser that makes pictures darker."""

    task, multiple, halo = "denoise", 1, 0

    def forward(self, x, sigma):
        return x / 2


def galleries_of(page: Path) -> list[dict]:
    text = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page.read_bytes(), re.S)[1]
    return json.loads(text)["galleries"]


def test_each_picture_is_shown_at_each_setting_and_nothing_is_kept(folder):
    page = folder / "r.html"
    found = aeimg.compare(folder / "in", "compress", {"quality": [20, 80]}, report=page)
    assert found.settings == ["quality 20", "quality 80"] and (found.pictures, found.found, found.failed) == (3, 3, [])
    low, high = found.means
    assert low["psnr"] < high["psnr"] and low["bytes_out"] < high["bytes_out"] and low["pictures"] == 3
    assert [set(one["crops"]) for one in galleries_of(page)] == [{"before", "quality 20", "quality 80"}] * 3
    assert all(set(one["maps"]) == {"quality 20", "quality 80"} for one in galleries_of(page))
    assert {one.name for one in folder.rglob("*") if one.is_file()} == {"0.png", "1.png", "2.png", "r.html"}
    one = next(row for row in found.files if row["setting"] == "quality 80" and row["input"].endswith("0.png"))
    bytes_alone = len(aeimg.process((folder / "in" / "0.png").read_bytes(), "compress", quality=80))
    assert one["bytes_out"] == pytest.approx(bytes_alone, abs=20)  # the file holds the picture's name as well


def test_models_and_strengths_are_combined_and_each_has_its_effect(folder):
    aeimg.register("halved", Halved)
    settings = {"model": ["halved"], "strength": [0.0, 1.0]}
    found = aeimg.compare(folder / "in", "denoise", settings, sample=1, sigma=5)
    assert found.settings == ["model halved, strength 0", "model halved, strength 1"] and found.pictures == 1
    shifts = [max(map(abs, one["shift"])) for one in found.files]
    assert shifts[0] == 0 and shifts[1] > 20
    assert [len(one.get("warnings", ())) > 0 for one in found.files] == [False, True]


def test_the_sample_is_spread_evenly(folder):
    found = aeimg.compare(folder / "in", "denoise", {"strength": [0.0]}, sample=2, sigma=5)
    assert [Path(one["input"]).name for one in found.files] == ["0.png", "2.png"]


def test_a_picture_that_fails_is_named_and_counts_in_no_mean(folder):
    (folder / "in" / "bad.png").write_bytes(b"no image")
    found = aeimg.compare(folder / "in", "compress", {"quality": [20, 80]})
    assert len(found.failed) == 2 and all("bad.png at quality" in name for name, _ in found.failed)
    assert [row["pictures"] for row in found.means] == [3, 3]
    assert [one["status"] for one in found.files if one["input"].endswith("bad.png")] == ["failed"] * 2


@pytest.mark.parametrize(
    ("task", "settings", "words", "said"),
    [("compress", {"measure": [True]}, {}, "can't be compared; these can: 'model', 'quality'"),
     ("denoise", {"image_quality": [50, 90]}, {}, "can't be compared"),
     ("decompress", {"scale": [1, "1/2"]}, {}, "no settings to compare"),
     ("features", {"model": ["vanilla"]}, {}, "no settings to compare"),
     ("denoise", {}, {}, "give an option to compare"),
     ("denoise", {"strength": []}, {}, "with at least one"),
     ("denoise", {"model": "aeimg-denoise"}, {}, "as a list"),
     ("denoise", {"strength": [7]}, {}, "strength must lie in 0..1"),
     ("compress", {"quality": [30]}, {"quality": 20}, "quality is compared"),
     ("compress", {"quality": [30]}, {"if_exists": "overwrite"}, "leave out if_exists"),
     ("denoise", {"strength": [1]}, {"residual": "taken"}, "leave out residual"),
     ("denoise", {"residual": ["a", "b"]}, {}, "can't be compared"),
     ("denoise", {"sigma": [np.zeros((2, 2))]}, {}, "arrays can't"),
     ("compress", {"quality": [30]}, {"sample": 0}, "sample must be"),
     ("compress", {"quality": [30]}, {"report": "r.pdf"}, "does not end in .html")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(folder, task, settings, words, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        aeimg.compare(folder / "in", task, settings, **words)


# -- the command line ----------------------------------------------------------------------------------------


def run(folder: Path, *words: str):
    return CliRunner().invoke(main, [words[0], str(folder / "in"), *words[1:]])


def test_the_command_prints_the_means_and_writes_page_and_json(folder):
    words = ["--compare", "quality=20,80", "--effort", "1", "--sample", "2", "--report", str(folder / "r.html"),
             "--json", str(folder / "c.json")]  # fmt: skip
    result = run(folder, "compress", *words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["setting", "bytes"] and lines[1].startswith("quality 20") and len(lines) == 3
    assert "2 settings on 2 of 3 images" in result.stderr and "r.html" in result.stderr
    about = json.loads((folder / "c.json").read_text())
    assert about["settings"] == {"quality": [20, 80]} and len(about["means"]) == 2 and len(about["files"]) == 4
    assert len(galleries_of(folder / "r.html")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--compare", "quality"], "like quality=30,50,70"), (["--compare", "quality=a"], "'a' is not a whole number"),
     (["--compare", "quality=1", "--compare", "quality=2"], "names quality twice"),
     (["--compare", "quality=30", "--dry-run"], "leave out --dry-run"),
     (["--compare", "quality=30", "--quality", "40"], "quality is compared"), ([], "name where the results go")],
)  # fmt: skip
def test_a_wrong_call_says_what_is_wrong(folder, words, said):
    result = run(folder, "compress", *words)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())


def test_an_empty_folder_ends_with_1(tmp_path):
    (tmp_path / "in").mkdir()
    assert run(tmp_path, "denoise", "--compare", "strength=0,1").exit_code == 1
