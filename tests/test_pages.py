"""The report page: what it holds, that its size is bounded, and how it works in a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import aeimg
from aeimg.errors import UsageError
from aeimg.pages import Album, means_by_setting, rank, report_page
from aeimg.pages.album import error_map
from aeimg.pages.report import link

HOSTILE = "<img src=x onerror=alert(1)>.png"


def record(number: int, **about) -> dict:
    return {"input": f"in/{number}.png", "output": f"out/{number}.png", "status": "done", "seconds": 0.1, **about}


def data_of(page: bytes) -> dict:
    return json.loads(re.search(rb'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


# -- the album -----------------------------------------------------------------------------------------------


def noise(seed: int, side: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side), np.uint8)


def test_the_worst_pictures_have_the_crops_whatever_the_order():
    album = Album(1 << 20, 40)
    for number in [*range(0, 40, 2), *range(1, 40, 2)]:
        album.add(str(number), noise(number), noise(number + 1), rank=(number,))
    with_crops = {int(name) for name, one in album.galleries.items() if one.crops}
    assert with_crops == set(range(40 - len(with_crops), 40))
    assert 1 <= len(with_crops) < 40
    assert all(one.thumbnail for one in album.galleries.values())


def test_a_page_keeps_to_its_size_whatever_the_number_of_pictures(tmp_path):
    for size, count in ((1 << 20, 60), (1 << 18, 300)):
        album = Album(size, count)
        picture = noise(0)
        for number in range(count):
            album.add(f"out/{number}.png", picture, picture, rank=(number,))
        page = report_page([record(number) for number in range(count)], album, folder=tmp_path)
        assert size / 4 < len(page) <= size


def test_crops_show_where_most_has_changed():
    before = np.zeros((3, 1200, 1800), np.uint8)
    after = before.copy()
    after[:, 900:950, 1500:1550] = 90
    album = Album(1 << 20, 10, maps=True)
    album.add("a", before, after, rank=(0,))
    one = album.galleries["a"]
    assert one.window.x <= 1500 and one.window.x + one.window.width >= 1550
    assert one.window.y <= 900 and one.window.y + one.window.height >= 950
    assert set(one.crops) == {"before", "after"} and set(one.residuals) == set(one.maps) == {"after"}


def test_an_error_map_holds_the_mean_difference_of_each_block():
    before, after = np.zeros((3, 5, 7), np.uint8), np.zeros((3, 5, 7), np.uint8)
    after[:, 4, 6] = 8
    after[:, 0, 0] = 16
    assert error_map(before, after, 2).tolist() == [[4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 8]]


def test_means_by_setting_count_pictures_that_have_the_figure_at_every_setting():
    def row(setting: str, number: int, picture: str, **about) -> dict:
        return {"setting": setting, "number": number, "picture": picture, **about}

    rows = [row("b", 1, "x", psnr=30.0, bytes_out=10), row("a", 0, "x", psnr=20.0, bytes_out=1),
            row("b", 1, "y", psnr=None, bytes_out=20), row("a", 0, "y", psnr=90.0, bytes_out=2),
            row("b", 1, "z", status="failed"), row("a", 0, "z", psnr=50.0, bytes_out=500)]  # fmt: skip
    assert means_by_setting(rows) == [
        {"setting": "a", "psnr": 20.0, "pictures": 2, "bytes_out": 3},
        {"setting": "b", "psnr": 30.0, "pictures": 2, "bytes_out": 30},
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_grey_and_deep_and_enlarged_pictures_are_drawn(dtype):
    album = Album(1 << 20, 1)
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    album.add("a", np.full((1, 20, 30), top, dtype), np.full((1, 40, 60), top, dtype), rank=(0,))
    one = album.galleries["a"]
    assert (one.width, one.height) == (60, 40) and set(one.crops) == {"before", "after"} and not one.residuals


# -- the page ------------------------------------------------------------------------------------------------


def test_the_worst_comes_first():
    rows = [record(0, psnr=40.0), record(1, psnr=30.0), record(2, status="failed", error="broken"),
            record(3, status="skipped"), record(4, psnr=45.0, warnings=["odd"]), record(5, psnr=None)]  # fmt: skip
    assert [one["output"][4] for one in sorted(rows, key=rank, reverse=True)] == ["2", "4", "1", "0", "5", "3"]


def test_names_are_data_and_never_markup(tmp_path):
    rows = [record(0, input=f"</script>{HOSTILE}", warnings=["<b>&"]), record(1, input="in/\udcff\u202e.png")]
    page = report_page(rows, about={"task": "<i>"}, folder=tmp_path)
    assert b"<img src=x" not in page and b"<b>" not in page and b"<i>" not in page and b"</script><img" not in page
    assert data_of(page)["rows"][0][0] == f"</script>{HOSTILE}"
    page.decode("utf-8")


def test_links_are_relative_and_name_no_scheme(tmp_path):
    assert link(str(tmp_path / "a b#?%.png"), tmp_path) == "./a%20b%23%3F%25.png"
    assert link(str(tmp_path / "javascript:alert(1).png"), tmp_path) == "./javascript%3Aalert%281%29.png"
    assert link("https://example.org/a.png", tmp_path) is None


def test_a_run_writes_a_page_of_every_file(tmp_path, small):
    (tmp_path / "in").mkdir()
    Image.fromarray(small).save(tmp_path / "in" / HOSTILE)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    page = tmp_path / "report.html"
    for task, source, out in (
        ("denoise", "in", "out"),
        ("compress", "in", "latents"),
        ("decompress", "latents", "back"),
    ):
        aeimg.process(tmp_path / source, task, out=tmp_path / out, report=page)
        data = data_of(page.read_bytes())
        assert HOSTILE.removesuffix(".png") in data["rows"][-1][0] and len(data["rows"]) == (
            1 if task == "decompress" else 2
        )
        (gallery,) = data["galleries"]
        assert set(gallery["crops"]) == ({"after"} if task == "decompress" else {"before", "after"})
        assert bool(gallery["maps"]) == (task == "compress")


def test_only_pages_are_written_over_and_a_dry_run_has_none(tmp_path, small):
    source = tmp_path / "a.png"
    Image.fromarray(small).save(source)
    page = tmp_path / "mine.html"
    page.write_text("my own page")
    for words in ({"report": page}, {"report": tmp_path / "r.html", "dry_run": True}, {"report": tmp_path / "r.pdf"},
                  {"report": tmp_path / "r.html", "report_size": "much"}):  # fmt: skip
        with pytest.raises(UsageError):
            aeimg.process(source, "denoise", out=tmp_path / "out", **words)
    with pytest.raises(UsageError):
        aeimg.process(source, "denoise", report=tmp_path / "r.html")
    assert page.read_text() == "my own page" and not (tmp_path / "out").exists()


# -- in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, driven by Playwright; nothing is downloaded."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None or importlib.util.find_spec("playwright") is None:
        why = "needs Chromium (apt-get install chromium) and the package playwright"
        (pytest.fail if os.environ.get("AEIMG_NEEDS_BROWSER") else pytest.skip)(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=["--no-sandbox"])  # which root can't have
        yield found
        found.close()


class Visit:
    """A page that is open, and what it did that it must not do."""

    def __init__(self, browser, file: Path, **about) -> None:
        self.complaints: list[str] = []
        self.page = browser.new_context(**about).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda one: self.asked(one.url, file))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def asked(self, url: str, file: Path) -> None:
        if not url.startswith("data:") and url != file.as_uri():
            self.complaints.append(url)

    def names(self) -> list[str]:
        return self.page.locator("#rows .open").all_text_contents()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A page of four pictures, of which one has failed and one has a name that is markup."""
    folder = tmp_path_factory.mktemp("pages")
    album = Album(1 << 20, 3, maps=True)
    ramp = np.broadcast_to(np.linspace(0, 200, 300, dtype=np.uint8), (3, 240, 300))
    rows = [record(0, input="in/2.png", psnr=31.0, bytes_out=900),
            record(1, input="in/10.png", psnr=30.0, bytes_out=80),
            record(2, input=f"in/{HOSTILE}", output="out/x.png", psnr=29.0, bytes_out=7000, warnings=["<u>odd</u>"]),
            record(3, input="in/bad.png", status="failed", error="in/bad.png: broken")]  # fmt: skip
    for number, one in enumerate(rows[:3]):
        album.add(one["output"], ramp, ramp + np.uint8(10 + number), rank=rank(one))
    file = folder / "report.html"
    file.write_bytes(report_page(rows, album, {"task": "compress"}, folder=folder))
    return file


def test_the_page_sorts_and_filters(browser, page_file):
    visit = Visit(browser, page_file)
    assert visit.names() == ["bad.png", HOSTILE, "10.png", "2.png"]
    visit.page.click("th button >> text=Size after")
    assert visit.names() == [HOSTILE, "2.png", "10.png", "bad.png"]
    visit.page.click("th button >> text=Size after")
    assert visit.names() == ["10.png", "2.png", HOSTILE, "bad.png"]
    assert visit.page.locator("th[aria-sort=ascending]").text_content() == "Size after"
    visit.page.click("th button >> text=Picture")
    assert visit.names()[-2:] == ["10.png", "bad.png"] or visit.names()[:3] == [HOSTILE, "2.png", "10.png"]
    visit.page.select_option("#show", "failed")
    assert visit.names() == ["bad.png"]
    visit.page.select_option("#show", "")
    visit.page.fill("#find", "ODD")
    visit.page.locator("#count", has_text="1 of").wait_for()
    assert visit.names() == [HOSTILE] and visit.page.locator("#count").text_content() == "1 of 4 rows"
    assert visit.complaints == []


def test_the_viewer_slides_zooms_and_shows_residual_and_map(browser, page_file):
    visit = Visit(browser, page_file)
    page = visit.page
    page.click("#rows tr >> nth=1")
    assert page.locator("#name").text_content() == HOSTILE
    value = "document.getElementById('slider').value"
    box = page.locator("#slider").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - box["width"] / 4, middle[1])
    page.mouse.up()
    assert page.evaluate(value) == pytest.approx(25, abs=1)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(value) == pytest.approx(27, abs=1)
    assert page.locator("#scale").text_content() == "100%"
    assert page.locator("img#second").bounding_box()["width"] == pytest.approx(300)
    page.locator("#stage").focus()
    for _ in range(3):
        page.keyboard.press("+")
    assert page.locator("#scale").text_content() == "800%"
    before = page.locator("img#second").bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 10, box["y"] + 15)
    page.mouse.up()
    after = page.locator("img#second").bounding_box()
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((-20, -15), abs=1)
    for key, text in (("r", "minus before"), ("e", "Mean difference")):
        page.keyboard.press(key)
        assert text in page.locator("#caption").text_content()
        assert page.evaluate("document.getElementById('only').naturalWidth") > 0
    page.keyboard.press("PageUp")
    assert page.locator("#name").text_content() == "bad.png" and "failed" in page.locator("#missing").text_content()
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert visit.complaints == []


def test_two_settings_of_a_picture_are_chosen_for_its_slider(browser, tmp_path):
    album = Album(1 << 20, 2, variants=3, maps=True)
    ramp = np.broadcast_to(np.linspace(0, 200, 300, dtype=np.uint8), (3, 240, 300))
    rows = []
    for number in range(3):
        for name in ("a", "b"):
            setting = f"quality {number}"
            rows.append({"input": f"in/{name}.png", "picture": name, "setting": setting, "number": number,
                         "psnr": 30.0 + number - (name == "b"), "bytes_out": 1000 + number})  # fmt: skip
            album.add(name, ramp, ramp + np.uint8(10 + number), rank=rank(rows[-1]), label=setting)
    file = tmp_path / "compared.html"
    file.write_bytes(report_page(rows, album, {"task": "compress"}, folder=tmp_path))
    visit = Visit(browser, file)
    page = visit.page
    assert visit.names() == ["b.png"] * 3 + ["a.png"] * 3  # the worst picture first, its settings in their order
    cells = page.locator("table.settings tbody tr >> nth=1").locator("th, td").all_text_contents()
    assert cells == ["quality 1", "2.0 kB", "30.5"]
    page.click("#rows tr >> nth=1")
    for side, label in (("left", "quality 0"), ("right", "quality 2")):
        page.select_option(f"#{side}", label)
        assert page.locator(f"#tag-{side}").text_content() == label
    assert page.locator("#left option").all_text_contents() == ["Before", "quality 0", "quality 1", "quality 2"]
    first, second = (page.locator(f"img#{one}").get_attribute("src") for one in ("first", "second"))
    assert first != second and "PSNR 31.00" in page.locator("#facts").text_content()
    assert page.evaluate("document.getElementById('first').naturalWidth") > 0
    assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser, page_file, scheme):
    visit = Visit(browser, page_file, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    visit.page.tap("#rows tr >> nth=1")
    assert visit.page.evaluate("document.getElementById('viewer').scrollWidth") <= 360
    colour = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == (scheme == "dark")
    assert visit.complaints == []


@pytest.mark.parametrize("width", [360, 1280])
def test_names_break_only_where_they_are_too_long(browser, tmp_path, width):
    album = Album(1 << 20, 2)
    rows = []
    for number, name in enumerate(("photograph.png", "x" * 200 + ".png")):
        rows.append(record(number, input=f"in/{name}", psnr=30.0, ssim=0.9, ssimulacra2=70.0, bytes_in=123456,
                           bytes_out=12345, quality=60, model="aeimg-codec-5", seconds=1.5))  # fmt: skip
        album.add(rows[-1]["output"], noise(number, 30), noise(number, 30), rank=rank(rows[-1]))
    file = tmp_path / "names.html"
    file.write_bytes(report_page(rows, album, folder=tmp_path))
    visit = Visit(browser, file, viewport={"width": width, "height": 800})
    heights = {name[:5]: visit.page.locator("#rows .open", has_text=name).bounding_box()["height"]
               for name in ("photograph", "xxxxx")}  # fmt: skip
    assert heights["photo"] < 30 < heights["xxxxx"]
    frame = "document.getElementById('frame')"
    assert visit.page.evaluate(f"{frame}.scrollWidth - {frame}.clientWidth") <= 0
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.page.click("#rows tr >> nth=0")
    assert "PSNR 30.00 · SSIM 0.9000 · SSIMULACRA2 70.0 · Model: aeimg" in visit.page.locator("#facts").text_content()
    assert visit.page.locator("svg.handle").bounding_box()["width"] == 44
    assert visit.complaints == []


@pytest.mark.slow
def test_a_page_of_20000_files_opens_in_a_second(browser, tmp_path):
    count, size = 20_000, 20 << 20
    album = Album(size, count)
    pictures = [noise(seed, 30) for seed in range(20)]
    for number in range(count):
        album.add(f"out/{number}.png", pictures[number % 20], pictures[number % 7], rank=(-number,))
    rows = [record(n, psnr=30.0 + n % 10, bytes_out=n, bytes_in=9 * n, model="aeimg-codec-5") for n in range(count)]
    file = tmp_path / "many.html"
    file.write_bytes(report_page(rows, album, folder=tmp_path))
    assert file.stat().st_size <= size
    visit = Visit(browser, file)
    meter = visit.page.context.new_cdp_session(visit.page)  # of processor time, whatever else the machine does
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})
    visit.page.reload()
    visit.page.wait_for_selector("html[data-ready]", state="attached")
    spent = {one["name"]: one["value"] for one in meter.send("Performance.getMetrics")["metrics"]}
    assert 0.01 < spent["TaskDuration"] < 1
    assert visit.page.locator("#rows tr").count() < 500 and visit.complaints == []


def test_the_small_pictures_of_another_process_are_adopted():
    theirs, ours = (Album(1 << 20, 1, maps=True) for _ in range(2))
    before, after = (np.full((3, 40, 50), value, np.uint8) for value in (10, 12))
    theirs.add("a", before, after, rank=(1.0,))
    ours.adopt("a", pickle.loads(pickle.dumps(theirs.galleries["a"])), (1.0,))
    assert ours.galleries == theirs.galleries and ours.galleries["a"].thumbnail and ours.galleries["a"].crops
