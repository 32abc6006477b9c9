"""What the README says is true: its commands run, its figures are those that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import aeimg
from aeimg.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_stand_there_word_for_word():
    assert "\n    pip install '.[demo]' && aeimg demo demo/\n" in README
    assert "\n    pip install '.[test]' && pytest\n" in README


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^    aeimg (\S+.*)$", README, re.M))))
def test_every_command_line_parses(line):
    words = line.split("#")[0].split()
    command = main.commands[words[0]]
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert all(word in names for word in words if word.startswith("-"))
    assert CliRunner().invoke(main, [words[0], "--help"]).exit_code == 0


def test_the_python_lines_run(small, monkeypatch, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.fromarray(small).save("in/a.png")
    names = {"image": Image.fromarray(small), "images": [small, small]}
    exec(compile(block, "README.md", "exec"), names)
    assert names["back"].size == (143, 101)
    assert names["summary"].done == 1


def figure(pattern: str) -> float:
    found = re.search(pattern, README)
    assert found, pattern
    return float(found[1])


def test_the_figures_are_those_that_were_measured():
    compress = json.loads((ROOT / "docs" / "bench-compress.json").read_text())
    denoise = json.loads((ROOT / "docs" / "bench-denoise.json").read_text())
    ours = compress["codecs"]["aeimg"]["bd_rate"]
    for anchor, name in (("jpeg", "JPEG"), ("webp", "WebP"), ("avif", "AVIF")):
        assert figure(rf"\| aeimg against {name} \| ([+-]?[\d.]+)% \|") == pytest.approx(ours[anchor], abs=0.051)
    for sigma in ("15", "25", "50"):
        row = [denoise["sigmas"][sigma][key] for key in ("noisy", "told", "auto", "grey")]
        found = re.search(rf"\| sigma {sigma}" + r" \| ([\d.]+)" * 4 + r" \|", README)
        assert found, sigma
        assert [float(value) for value in found.groups()] == pytest.approx(row, abs=0.0051)
    jpeg = [figure(rf"\| sigma 25, then JPEG 75 \|{skipped} ([\d.]+) \|") for skipped in ("", r" [\d.]+ \| \|")]
    assert jpeg == pytest.approx([denoise["jpeg75"][key] for key in ("noisy", "auto")], abs=0.0051)
    pairs = json.loads((ROOT / "docs" / "bench-pairs.json").read_text())["cameras"]["NikonD800"]
    assert figure(r"rise by ([\d.]+) dB") == pytest.approx(pairs["gain"], abs=0.0051)


def test_the_figures_of_a_specialised_codec_are_those_that_were_measured():
    codecs = json.loads((ROOT / "docs" / "bench-pages.json").read_text())["codecs"]
    text = (ROOT / "docs" / "training.md").read_text()
    for anchor, name in (("jpeg", "JPEG"), ("webp", "WebP"), ("avif", "AVIF")):
        found = re.search(rf"\| against {name} \| ([+-][\d.]+)% \| ([+-][\d.]+)% \|", text)
        assert found, name
        measured = [codecs[codec]["bd_rate"][anchor] for codec in ("aeimg", "shipped")]
        assert [float(value) for value in found.groups()] == pytest.approx(measured, abs=0.051)
    found = re.search(r"\| against `aeimg-codec` \| ([+-][\d.]+)% \|", text)
    assert float(found[1]) == pytest.approx(codecs["aeimg"]["bd_rate"]["shipped"], abs=0.051)


def test_the_measured_weights_are_those_that_ship():
    import torch

    from aeimg import registry

    def shipped(task, *names):
        models = [registry.get(name, task, torch.device("cpu")) for name in names]
        return {model.label: model.digest.hex() for model in models}

    denoisers = shipped("denoise", *registry.CHOICES)
    for name, models in (("compress", shipped("compress", None)), ("denoise", denoisers), ("pairs", denoisers)):
        assert json.loads((ROOT / "docs" / f"bench-{name}.json").read_text())["models"] == models


def test_the_version_is_that_of_the_changelog():
    assert f"## {aeimg.__version__}" in (ROOT / "CHANGELOG.md").read_text()
