"""What many files cost around their pictures is bounded, and the files of docs/scaling.md are sound."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from aeimg import bench
from aeimg.cli import main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scaling.md").read_text()


def test_a_file_costs_less_than_a_millisecond_and_1400_bytes(tmp_path):
    figures = bench.simulate(2000, tmp_path)
    assert figures["seconds_per_file"] < 1e-3
    assert 100 < figures["bytes_per_file"] < 1400
    assert sum(figures["seconds"].values()) == pytest.approx(2000 * figures["seconds_per_file"] / 2000)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_and_refuses(tmp_path):
    done = CliRunner().invoke(main, ["bench", "scale", str(tmp_path), "--simulate", "10"])
    assert done.exit_code == 0 and "compare with the manifest" in done.output, done.output
    done = CliRunner().invoke(main, ["bench", "engine", str(tmp_path), "--simulate", "10"])
    assert done.exit_code == 2 and "option of scale" in done.output


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def test_the_scripts_of_the_page_are_sound(tmp_path):
    scripts = [text for text in blocks("bash") if text.startswith("#!")]
    assert len(scripts) == 1
    for text in scripts:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        if (linter := shutil.which("shellcheck")) is not None:
            subprocess.run([linter, "-"], input=text, text=True, check=True)


def test_the_kubernetes_files_of_the_page_are_sound():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    found = [part for text in blocks("yaml") for part in yaml.safe_load_all(text)]
    assert [part["kind"] for part in found] == ["Job"]
    for part in found:
        validate.validate(part, "1.29", strict=True)
