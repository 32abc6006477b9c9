"""Plots of figures: the committed ones come from the committed figures; what is drawn, and what is refused."""

from __future__ import annotations

import copy
import io
import itertools
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.text import Text
from PIL import Image

from aeimg import plots
from aeimg.bench import read_figures, write_page, write_plot
from aeimg.bench.plot import RISING, digest_of, plot
from aeimg.cli import main
from aeimg.errors import DataError, OutputError, UsageError

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = {
    "rate.svg": "docs/bench-compress.json",
    "speed.svg": "docs/bench-denoise.json",
    "loss.svg": "weights/vanilla-1.safetensors",
}
"""Each plot in docs/, and the file that `aeimg plot` makes it of."""


@pytest.mark.parametrize("name", COMMITTED)
def test_each_committed_plot_was_made_of_the_committed_figures(name):
    figures = read_figures(ROOT / COMMITTED[name])
    drawn = (ROOT / "docs" / name).read_bytes()
    assert f"<dc:source>{digest_of(figures)}</dc:source>".encode() in drawn
    assert len(drawn) < 150_000 and b"<dc:date>" not in drawn
    for page in ("README.md", "docs/figures.md"):
        assert re.search(rf"!\[[^]]+\]\((docs/)?{re.escape(name)}\)", (ROOT / page).read_text())
    command = f"aeimg plot {COMMITTED[name]} docs/{name}"
    assert command in " ".join((ROOT / "README.md").read_text().split())


def test_other_figures_have_another_digest_and_the_same_ones_the_same_bytes():
    figures = read_figures(ROOT / "docs/bench-denoise.json")
    other = copy.deepcopy(figures)
    other["sigmas"]["25"]["known"] += 0.001
    assert digest_of(other) != digest_of(figures) == digest_of(json.loads(json.dumps(figures, indent=3)))
    first = plot(figures)
    assert first == plot(figures) and first != plot(other)


def test_a_curve_ends_at_the_limit_of_the_axis():
    inside = plots._inside([(0.05, 1), (0.5, 10), (8, 30)], 0.1, 2)
    assert inside == [(0.5, 10), (2, pytest.approx(20))]


def test_names_beside_curves_that_end_together_do_not_overlap():
    series = [plots.Series(str(number), [(0.2, 1.0), (1.0, 30.0 + number / 1000)]) for number in range(6)]
    figure = plots.panels([plots.Panel("PSNR", "rate", (0.1, 1.0), series)], "title")
    figure.canvas.draw()
    axes = figure.axes[0]
    (height,) = {Text.get_window_extent(text).height for text in axes.texts}
    places = sorted(text.xyann[1] * axes.get_window_extent().height for text in axes.texts)
    assert len(places) == 6 and all(b - a >= height for a, b in itertools.pairwise(places))
    assert places[-1] <= axes.get_window_extent().height + 0.1


def test_each_curve_has_a_colour_and_a_marker_of_its_own():
    assert len(set(plots.SHAPES)) >= 6 and len(set(plots.COLOURS)) >= 6
    series = [plots.Series(str(number), [(0.2, 1.0), (1.0, number)], number == 2) for number in range(6)]
    lines = plots.panels([plots.Panel("PSNR", "rate", (0.1, 1.0), series)], "title").axes[0].lines
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 6
    assert max(lines, key=lambda line: line.get_linewidth()) is lines[2]


def test_the_metrics_of_which_more_is_better_are_those_of_the_objectives():
    from aeimg.training.denoise_objectives import BlindObjective, DenoiseObjective
    from aeimg.training.image_objectives import UpscaleObjective
    from aeimg.training.run import OBJECTIVES

    kinds = {*OBJECTIVES.values(), BlindObjective, DenoiseObjective, UpscaleObjective}
    assert {one.primary_metric for one in kinds if one.higher_is_better} <= set(RISING)
    assert not {one.primary_metric for one in kinds if not one.higher_is_better} & set(RISING)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_draws_and_writes_over_its_own_pictures_only(tmp_path):
    for name, kind in (("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        for _ in range(2):
            words = ["plot", str(ROOT / "docs/bench-denoise.json"), str(tmp_path / name)]
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, result.output
        assert (tmp_path / name).read_bytes().startswith(kind)
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).info["Source"].startswith("sha256:")
    (tmp_path / "mine.svg").write_text("<svg/>")
    with pytest.raises(UsageError, match="mine.svg"):
        write_plot(read_figures(ROOT / "docs/bench-denoise.json"), tmp_path / "mine.svg")
    assert (tmp_path / "mine.svg").read_text() == "<svg/>"


def test_what_has_no_plot_is_refused_by_name(tmp_path):
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "odd.json").write_text('{"task": "compress"}')
    for name, error, said in (
        ("no.json", DataError, "no figures of aeimg bench"),
        ("bad.json", DataError, "is no JSON"),
        ("none.json", DataError, "can't be read"),
        ("odd.json", DataError, "not as aeimg bench writes them"),
    ):
        with pytest.raises(error, match=said):
            write_plot(read_figures(tmp_path / name), tmp_path / "a.svg")
    with pytest.raises(UsageError, match="pairs have no speed"):
        write_plot(read_figures(ROOT / "docs/bench-pairs.json"), tmp_path / "a.svg")
    with pytest.raises(UsageError, match=r"name it \.svg or \.png"):
        write_plot(read_figures(ROOT / "docs/bench-denoise.json"), tmp_path / "a.gif")
    assert CliRunner().invoke(main, ["bench", "engine", str(tmp_path), "--plot", "a.svg"]).exit_code == 2
    assert not (tmp_path / "a.svg").exists()


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "is_available", lambda: False)
    with pytest.raises(OutputError, match=r"pip install 'aeimg\[plots\]'"):
        write_plot(read_figures(ROOT / "docs/bench-denoise.json"), tmp_path / "a.svg")
    figures = read_figures(ROOT / "docs/bench-compress.json")
    write_page(figures, tmp_path / "b.html", "")  # which does without the plot
    assert b"data:image/svg" not in (tmp_path / "b.html").read_bytes()


def test_the_page_of_a_bench_has_its_plot_its_tables_and_no_script(tmp_path):
    for name, words in (("compress", ["AVIF 4:4:4", "BD-rate", "quality 50"]), ("denoise", ["white noise"])):
        figures = read_figures(ROOT / f"docs/bench-{name}.json")
        write_page(figures, tmp_path / "b.html", "white noise")
        page = (tmp_path / "b.html").read_text()
        assert "data:image/svg+xml;base64," in page and "<script" not in page and "script-src 'none'" in page
        assert all(word in page for word in words)
    with pytest.raises(UsageError, match=r"\.html"):
        write_page(figures, tmp_path / "b.txt", "")


def test_the_card_of_a_codec_keeps_its_held_out_loss_apart():
    from aeimg.training.card import thinned_curve
    from aeimg.training.journal import Journal

    journal = Journal(losses=[(5, 2.0)], evaluations=[{"step": 10, "loss": 1.5}])
    assert thinned_curve(journal, "loss") == {"step": [10], "loss": [2.0], "held_out_loss": [1.5]}
