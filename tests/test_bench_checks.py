"""`bench checks` counts what the originals say of the notes of `denoise`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFilter

from aeimg.bench import bench_checks, table
from aeimg.bench.checks import COLOURS, KINDS, NOISE, OF_ORIGINALS, OF_PAIRS, SIDE, faults
from aeimg.cli import main
from aeimg.errors import AeimgError


def planes(x):
    return np.ascontiguousarray(np.clip(np.rint(x), 0, 255).astype(np.uint8).transpose(2, 0, 1))


@pytest.fixture(scope="session")
def clean(photograph):
    return photograph[:296, :448].astype(float)


@pytest.fixture(scope="session")
def noise(clean):
    return np.random.default_rng(0).normal(0, 20, clean.shape)


def found(before, after, original):
    return {kind for kind, fault in faults(*map(planes, (before, after, original))).items() if fault}


def test_a_perfect_result_has_no_fault(clean, noise):
    assert found(clean + noise, clean, clean) == set()
    assert found(clean, clean, clean) == set()


def test_colours_have_shifted_where_they_lie_further_from_the_original_than_before(clean, noise):
    tint = np.array([0, COLOURS + 0.5, 0])
    assert found(clean + noise, clean + tint, clean) == {"colours"}
    assert found(clean + noise, clean + tint / 3, clean) == set()
    assert found(clean + noise + tint, clean + tint, clean) == set()  # it was there before
    assert found(clean + noise + tint, clean, clean) == set()  # it was mended


def test_detail_is_gone_where_its_error_has_grown_and_is_seen(clean, noise):
    image = Image.fromarray(clean.astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(3))).astype(float)
    assert found(clean, blurred, clean) == {"detail"}
    hardly = clean + 0.05 * (blurred - clean)
    assert found(clean, hardly, clean) == set()
    assert "detail" not in found(clean + 2 * noise, blurred, clean)  # the noise was worse


def test_noise_is_left_and_other_errors_are_none(clean, noise):
    share = 1.2 * NOISE / (20 / 3**0.5)  # of the mean of three channels
    assert found(clean + noise, clean + share * noise, clean) == {"noise"}
    assert found(clean + noise, clean + 0.6 * share * noise, clean) == set()
    other = np.random.default_rng(1).normal(0, 20, clean.shape)
    assert "noise" not in found(clean + noise, clean + other, clean)  # an error that was not there before


def test_pictures_with_no_block_between_black_and_white_have_no_noise_left():
    white = np.full((64, 64, 3), 255.0)
    assert found(white, white, white) == set()


@pytest.fixture(scope="module")
def measured(photograph, tmp_path_factory):
    """The figures of three clean pictures and of two pairs, and what the command printed of them."""
    folder = tmp_path_factory.mktemp("checks")
    rng = np.random.default_rng(1)
    for name in ("images", "pairs/noisy", "pairs/clean"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        part = photograph[50 * number : 50 * number + 96, 100:228]
        Image.fromarray(part).save(folder / f"images/{number}.png")
        if number < 2:
            Image.fromarray(part).save(folder / f"pairs/clean/{number}.png")
            noisy = np.clip(part + rng.normal(0, 12, part.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"pairs/noisy/{number}.png")
    words = [str(folder / "pairs"), "--also", str(folder / "images"), "--json", str(folder / "checks.json"), "-q"]
    done = CliRunner().invoke(main, ["bench", "checks", *words])
    assert done.exit_code == 0, done.output
    return json.loads((folder / "checks.json").read_text()), done.stdout


def test_every_second_picture_is_counted_apart(measured):
    figures, _ = measured
    assert figures["folders"] == {"pairs": 2, "images": 3}
    for part, of_images in (("held_out", 1), ("seen", 2)):
        cases = figures[part]["cases"]
        assert set(cases) == {case.name for case in (*OF_PAIRS, *OF_ORIGINALS)}
        assert all(cases[case.name]["results"] == of_images for case in OF_ORIGINALS)
        assert all(cases[case.name]["results"] == 1 for case in OF_PAIRS)
        for row in cases.values():
            for kind in KINDS:
                counts = row[kind]
                assert counts["faultless"] + counts["faulty"] == row["results"]
                assert counts["false"] <= counts["faultless"] and counts["missed"] <= counts["faulty"]


def test_what_is_plainly_wrong_is_a_fault_and_has_its_note(measured):
    figures, _ = measured
    for part, count in (("held_out", 1), ("seen", 2)):
        cases = figures[part]["cases"]
        for name, kind in (("sigma 25, left as it is", "noise"), ("sigma 15, then tinted", "colours")):
            assert cases[name][kind] == {"false": 0, "faultless": 0, "missed": 0, "faulty": count}, name
        assert cases["sigma 5, blurred"]["detail"]["faulty"] == count
        assert figures[part]["rates"]["noise"]["missed"] < 50


def test_the_table_has_a_line_for_each_case_and_the_rates(measured):
    figures, printed = measured
    assert printed.rstrip("\n") == table(figures)
    for case in (*OF_PAIRS, *OF_ORIGINALS):
        assert sum(line.startswith(f"{case.name} ") for line in printed.splitlines()) == 2, case.name
    assert printed.count("a false note of any kind, of what is denoised well: ") == 2


def test_folders_without_images_are_an_error(tmp_path):
    with pytest.raises(AeimgError, match="no images"):
        bench_checks(tmp_path)
    for name in ("noisy", "clean"):
        (tmp_path / name).mkdir()
    with pytest.raises(AeimgError, match="no images"):
        bench_checks(tmp_path)


def test_only_the_middle_of_a_large_picture_is_measured(monkeypatch, tmp_path):
    from aeimg.bench import checks

    Image.fromarray(np.zeros((SIDE + 30, SIDE + 90, 3), np.uint8)).save(tmp_path / "a.png")
    assert checks._Folder.at(tmp_path, None).originals[0].shape == (SIDE, SIDE, 3)
