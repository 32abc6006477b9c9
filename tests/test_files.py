"""Folders of files: what is done again, what is left alone, and that nothing is lost, whatever a run is ended by."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg import InputError, OutputError, UsageError, container, manifest, paths, process
from aeimg.cli import main
from aeimg.engine import Interrupted
from aeimg.stream import out_of_memory
from aeimg.tasks.image import SMALLEST_TILE, TILE
from aeimg.tasks.options import RunOptions

TAME = """
import sys, time
import torch
import aeimg


class Same:
    task, halo, label = "denoise", 0, "same-1"

    def __call__(self, x, sigma):
        time.sleep(float(sys.argv[1]))
        return x * 0.5


aeimg.register("same", Same)
"""
"""Registers a denoiser that takes as long as it is told and halves all values."""


class Same(torch.nn.Module):
    task, halo, label = "denoise", 0, "same-1"

    def forward(self, x, sigma):
        return x * 0.5


@pytest.fixture(autouse=True)
def same():
    aeimg.register("same", Same)


def run(source, out, **options):
    return process(source, "denoise", out=out, model="same", **options)


@pytest.fixture
def folder(tmp_path):
    """Twelve small images in a tree, of four formats."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "in" / f"{number % 3}" / f"{number}.{('png', 'jpg', 'webp', 'tiff')[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 24, 3), np.uint8)).save(path)
    return tmp_path / "in"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but the manifest, hidden ones too."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != manifest.NAME)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# -- again -----------------------------------------------------------------------------------------------------------


def test_a_second_run_does_only_what_is_no_longer_right(folder, tmp_path):
    out = tmp_path / "out"
    assert run(folder, out).done == 12
    first = tree(out)
    assert (run(folder, out).done, run(folder, out).skipped) == (0, 12)
    changed = folder / "0" / "0.png"
    Image.new("RGB", (30, 30), "red").save(changed)
    (out / "1" / "1.jpg").unlink()
    os.utime(folder / "2" / "2.webp", ns=(1, 1))  # touched, not changed
    again = run(folder, out)
    assert sorted(Path(r["input"]).name for r in again.files if r["status"] == "done") == ["0.png", "1.jpg"]
    second = tree(out)
    assert {name for name in first if first[name] != second[name]} == {"0/0.png"}


def test_a_changed_option_or_model_redoes_and_a_changed_output_is_not_touched(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out, sigma="7")
    assert run(folder, out, sigma=7).skipped == 12
    (out / "0" / "0.png").write_bytes(b"retouched by hand")
    again = run(folder, out, strength=0.5)
    assert (again.done, again.skipped) == (11, 1)
    (record,) = (r for r in again.files if r["status"] == "skipped")
    assert "aeimg has no record of writing it" in record["warnings"][0]
    assert (out / "0" / "0.png").read_bytes() == b"retouched by hand"
    assert run(folder, out, strength=0.5, if_exists="overwrite").done == 12
    with pytest.raises(OutputError, match="is there already"):
        run(folder, out, strength=0.5, if_exists="error")


def test_models_that_say_nothing_of_themselves_are_told_apart_by_name(folder, tmp_path):
    aeimg.register("brighter", lambda: lambda x, sigma: x + 0.1, task="denoise")
    aeimg.register("darker", lambda: lambda x, sigma: x - 0.1, task="denoise")
    for name in ("brighter", "darker"):
        assert process(folder, "denoise", out=tmp_path / "out", model=name).done == 12
        assert process(folder, "denoise", out=tmp_path / "out", model=name).skipped == 12


def test_what_can_be_skipped_is_seen_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(folder, out)

    def fail(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("aeimg.tasks.pictures.read_picture", fail)
    assert run(folder, out).skipped == 12


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(folder, tmp_path):
    out = tmp_path / "out"
    summary = run(folder, out, dry_run=True, estimate=True)
    assert not out.exists()
    assert (summary.planned, summary.done, summary.skipped) == (12, 0, 0)
    assert summary.expected["megapixels"] == pytest.approx(sum(20 + n for n in range(12)) * 24 / 1e6, abs=1e-3)
    written = run(folder, out).bytes_out
    assert 0.2 * written < summary.expected["bytes_out"] < 5 * written
    assert {r["status"] for r in run(folder, out, dry_run=True).files} == {"skipped"}


def test_a_dry_run_processes_pictures_only_for_an_estimate(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("aeimg.tasks.pictures.read_picture", fail)
    monkeypatch.setattr(Same, "forward", fail)
    summary = run(folder, tmp_path / "out", dry_run=True)
    assert (summary.planned, set(summary.expected)) == (12, {"megapixels"})
    with pytest.raises(UsageError, match="estimate is for dry runs"):
        run(folder, tmp_path / "out", estimate=True)


# -- where things go -------------------------------------------------------------------------------------------------


def test_one_file_may_be_given_its_name(folder, tmp_path):
    summary = run(folder / "0" / "0.png", tmp_path / "clean.jpg")
    assert summary.done == 1
    assert Image.open(tmp_path / "clean.jpg").format == "JPEG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.jpg", "in"]
    with pytest.raises(UsageError, match="would overwrite the input"):
        run(folder / "0" / "0.png", folder / "0" / "0.png")


def test_names_that_can_not_be_are_refused_in_words(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="empty name"):
        run(folder, "")
    summary = run(folder / "0" / "0.png", "x" * 300 + ".png")
    assert "can't be written (File name too long)" in summary.failed[0][1]
    assert sorted(os.listdir()) == ["in"]


def test_several_sources_and_a_template(folder, tmp_path):
    summary = run([folder / "0", folder / "1" / "1.jpg"], tmp_path / "out", name="{stem}-clean{suffix}", format="png")
    assert summary.done == 5
    assert "1-clean.png" in tree(tmp_path / "out")


def test_results_never_pass_for_inputs(folder, tmp_path):
    with pytest.raises(UsageError, match="one folder"):
        run(folder, folder)
    (tmp_path / "list.txt").write_text(f"{folder}\n")
    with pytest.raises(UsageError, match="one folder"):
        run(f"@{tmp_path}/list.txt", folder, format="webp")
    before = tree(folder)
    for _ in range(2):
        run(folder, folder / "clean")
    assert len(tree(folder / "clean")) == 12
    assert {name: data for name, data in tree(folder).items() if not name.startswith("clean/")} == before


def test_levels_for_each_format(folder, tmp_path):
    sizes = {}
    for level in (95, 20):
        run(folder, tmp_path / str(level), image_quality={"jpg": level})
        sizes[level] = {name: len(data) for name, data in tree(tmp_path / str(level)).items()}
    smaller = {name for name in sizes[95] if sizes[20][name] < sizes[95][name]}
    assert smaller == {"1/1.jpg", "2/5.jpg", "0/9.jpg"}


def test_names_that_are_no_text_and_long_ones(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in (b"a\nb.png", b"\xff\xfe.png", b"x" * 251 + b".png", "\u00e9".encode() * 125 + b".png"):
        Image.new("RGB", (9, 9)).save(open(os.fsencode(source) + b"/" + name, "wb"), "PNG")  # noqa: SIM115
    summary = process(source, "compress", out=tmp_path / "out")
    assert (summary.done, summary.failed) == (4, [])
    assert len(tree(tmp_path / "out")) == 4
    assert process(source, "compress", out=tmp_path / "out").skipped == 4
    result = CliRunner().invoke(main, ["decompress", str(tmp_path / "out"), str(tmp_path / "back"), "--json",
                                       str(tmp_path / "s.json")])  # fmt: skip
    assert result.exit_code == 0
    assert len(json.loads((tmp_path / "s.json").read_text())["files"]) == 4


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_input_that_vanishes_is_one_failure(folder, tmp_path, monkeypatch):
    original = aeimg.paths.plan

    def plan(*arguments):
        jobs = original(*arguments)
        (folder / "0" / "0.png").unlink()
        return jobs

    monkeypatch.setattr("aeimg.paths.plan", plan)
    summary = run(folder, tmp_path / "out")
    assert summary.done == 11
    ((path, reason),) = summary.failed
    assert path.name == "0.png"
    assert "can't be read (No such file" in reason


def test_an_output_folder_that_can_not_be_written_is_named_for_each_file_or_at_once(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="file: is a file, but the results need a folder"):
        run(folder, tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0").write_bytes(b"a file where a folder must be")
    summary = run(folder, tmp_path / "out")
    assert (summary.done, len(summary.failed)) == (8, 4)
    assert all("can't be written" in reason for _, reason in summary.failed)


def test_a_disk_that_is_full_costs_what_did_not_fit_and_leaves_no_part(folder, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(folder / "big.png")
    code = TAME + (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "summary = aeimg.process(sys.argv[2], 'denoise', out=sys.argv[3], model='same')\n"
        "print(summary.done, [reason for _, reason in summary.failed])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "0", folder, tmp_path / "out"], capture_output=True, text=True)
    assert done.stdout.startswith("12 ["), done.stderr
    assert "big.png: can't be written (File too large)" in done.stdout
    assert len(tree(tmp_path / "out")) == 12


@pytest.mark.parametrize("moment", [0.05, 0.25, 0.5])
def test_killed_at_any_moment_leaves_whole_files_and_the_next_run_ends_it(folder, tmp_path, moment):
    undisturbed = tmp_path / "undisturbed"
    run(folder, undisturbed)
    out = tmp_path / "out"
    code = TAME + (
        "print('ready', flush=True)\n"
        "aeimg.process(sys.argv[2], 'denoise', out=sys.argv[3], model='same', batch_size=1, jobs=1)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, "0.05", folder, out], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    time.sleep(moment)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    expected = tree(undisturbed)
    for name, data in (tree(out) if out.exists() else {}).items():
        if not name.endswith(".aeimg-part"):
            assert data == expected[name]
    summary = run(folder, out)
    assert summary.failed == []
    assert {name: data for name, data in tree(out).items() if not name.endswith(".aeimg-part")} == expected


def test_two_runs_into_one_folder_both_end_well(folder, tmp_path):
    summaries = []
    threads = [
        threading.Thread(target=lambda: summaries.append(run(folder, tmp_path / "out"))) for _ in range(3)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(folder, tmp_path / "alone")
    assert [summary.failed for summary in summaries] == [[], [], []]
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")
    assert run(folder, tmp_path / "out").skipped == 12


def test_an_interrupt_tells_what_was_done_and_what_was_not_begun(folder, tmp_path, monkeypatch):
    calls = []

    def forward(self, x, sigma):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return x

    monkeypatch.setattr(Same, "forward", forward)
    with pytest.raises(Interrupted) as caught:
        run(folder, tmp_path / "out", batch_size=1)
    summary = caught.value.summary
    assert summary.done + summary.planned == 12
    assert summary.done <= 3
    assert len(summary.files) == 12
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aeimg")]
    calls.clear()
    result = CliRunner().invoke(
        main,
        ["denoise", str(folder), str(tmp_path / "cli"), "-m", "same", "-b", "1", "--json", str(tmp_path / "s.json")],
    )
    assert result.exit_code == 130
    assert "not begun" in result.output
    assert json.loads((tmp_path / "s.json").read_text())["planned"] > 0


@pytest.mark.parametrize("way", ["interrupt", "stop"])
def test_what_was_under_way_when_a_run_ended_is_told_as_it_ended(folder, tmp_path, monkeypatch, way):
    calls, writes = [], []
    write, under_way = paths.write_atomic, threading.Event()

    def forward(self, x, sigma):
        calls.append(1)
        if len(calls) == 6:
            assert under_way.wait(20)
            if way == "interrupt":
                raise KeyboardInterrupt
            raise RuntimeError("no")
        return x

    def slow(path, data):
        writes.append(path)
        first = len(writes) == 1
        if not first:
            under_way.set()
        time.sleep(0.3)
        if first:
            raise OutputError(f"{path}: can't be written (full)")
        write(path, data)

    monkeypatch.setattr(Same, "forward", forward)
    monkeypatch.setattr(paths, "write_atomic", slow)
    try:
        summary = run(folder, tmp_path / "out", batch_size=1, jobs=8, on_error="stop" if way == "stop" else "continue")
    except Interrupted as error:
        summary = error.summary
    there = {str(path) for path in (tmp_path / "out").rglob("*.*") if path.name != manifest.NAME}
    assert {about["output"] for about in summary.files if about["status"] == "done"} == there
    assert summary.done == len(there) > 0
    assert sum(about["status"] == "failed" for about in summary.files) == len(summary.failed)
    assert summary.done + summary.planned + len(summary.failed) == len(summary.files) == 12
    assert any("full" in reason for _, reason in summary.failed)


# -- bombs -----------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes, size: tuple[int, int] = (1, 1)) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(200 << 20), 9)


@pytest.mark.parametrize(
    "data",
    [
        png_with(size=(32000, 32000)),
        png_with(chunk(b"zTXt", b"comment\0\0" + BOMB)),
        png_with(chunk(b"iCCP", b"profile\0\0" + BOMB)),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)),
    ],
    ids=["gigapixel", "text", "profile", "xmp"],
)
def test_bombs_are_refused_or_defused_in_little_time_and_memory(data):
    code = (
        "import sys, resource\n"
        "from aeimg import images, AeimgError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    picture = images.read_picture(sys.stdin.buffer.read(), 'bomb')\n"
        "    print(picture.pixels.size)\n"
        "except AeimgError as error:\n"
        "    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    said, grown = done.stdout.decode().splitlines()
    assert said == "3" or "bomb: " in said
    assert int(grown) < 100 * 1024  # kilobytes


def test_a_dry_run_counts_what_is_honest_and_stumbles_over_nothing(folder, tmp_path, monkeypatch):
    honest = run(folder, tmp_path / "out", dry_run=True)
    (folder / "bomb.png").write_bytes(png_with(size=(32000, 32000)))
    (folder / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5000 5000\n%%EndComments\n")
    summary = run(folder, tmp_path / "out", dry_run=True)
    assert summary.planned == 14
    assert summary.expected["megapixels"] == honest.expected["megapixels"]
    Image.new("RGB", (300, 200)).save(tmp_path / "flat.png")
    process(tmp_path / "flat.png", "compress", out=tmp_path / "latents")
    assert isinstance(container.read((tmp_path / "latents" / "flat.aei").read_bytes()), container.Stored)
    assert process(tmp_path / "latents", "decompress", out=tmp_path / "o", dry_run=True).expected["megapixels"] == 0.06


# -- from other programs ---------------------------------------------------------------------------------------------


def test_a_generator_left_half_way_frees_its_threads(small):
    def leave():
        for number, _ in enumerate(process(iter([small] * 40), "denoise", model="same")):
            if number == 3:
                raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        leave()
    results = process(iter([small] * 40), "denoise", model="same")
    next(results)
    del results
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aeimg")]


def test_process_works_in_a_thread(small):
    results = []
    thread = threading.Thread(target=lambda: results.append(process(small, "denoise", model="same")))
    thread.start()
    thread.join()
    assert results[0].shape == small.shape


def in_a_process(small, queue):
    queue.put(process(small, "compress"))


class Cleaned(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return process(np.full((16, 16, 3), 50 * index, np.uint8), "decompress" if index < 0 else "denoise", sigma=2)


def test_process_works_in_a_spawned_process_and_in_a_loader(small):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=in_a_process, args=(small, queue))
    child.start()
    assert queue.get(timeout=120)[:4] == process(small, "compress")[:4]
    child.join()
    loader = torch.utils.data.DataLoader(Cleaned(), batch_size=2, num_workers=2, multiprocessing_context="spawn")
    assert [tuple(batch.shape) for batch in loader] == [(2, 16, 16, 3)] * 2


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_batch_that_lacks_memory_is_halved_and_then_its_tiles_are(small):
    seen = []

    class Hungry(torch.nn.Module):
        task, multiple, halo = "denoise", 8, 0

        def forward(self, x, sigma):
            seen.append(tuple(x.shape))
            if x.numel() > 3 * 400 * 400:
                raise torch.OutOfMemoryError("no memory")
            return x

    aeimg.register("hungry", Hungry)
    pictures = [np.full((700, 500, 3), 9, np.uint8)] * 2
    results = list(process(iter(pictures), "denoise", model="hungry"))
    np.testing.assert_array_equal(results[0], pictures[0])
    assert seen[:2] == [(2, 3, 704, 504), (1, 3, 704, 504)]
    assert max(shape[2] for shape in seen[4:]) <= 384


def test_only_a_lack_of_memory_is_taken_for_one():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not out_of_memory(ValueError("can't allocate memory"))


def test_what_never_fits_is_one_failure(small):
    class Greedy(torch.nn.Module):
        task, halo = "denoise", 0

        def forward(self, x, sigma):
            raise torch.OutOfMemoryError("no memory")

    aeimg.register("greedy", Greedy)
    tile = TILE
    while tile > SMALLEST_TILE:
        tile //= 2
    with pytest.raises(InputError, match=f"not even in tiles of {tile} pixels"):
        process(small, "denoise", model="greedy")


@pytest.mark.parametrize(("given", "bytes_"), [("500M", 500 << 20), ("4G", 4 << 30), ("1.5 GiB", 3 << 29), (100, 100)])
def test_memory_is_a_number_or_words(given, bytes_):
    assert RunOptions(memory=given).memory_bytes == bytes_
    with pytest.raises(UsageError, match="memory must be"):
        RunOptions(memory="much")


# -- the command line ------------------------------------------------------------------------------------------------


def test_standard_input_goes_to_standard_output(small, png):
    result = CliRunner().invoke(main, ["denoise", "-", "-", "-m", "same"], input=png(small))
    assert result.exit_code == 0
    image = np.asarray(Image.open(io.BytesIO(result.stdout_bytes)))
    np.testing.assert_allclose(image, small / 2, atol=0.51)
    latent = CliRunner().invoke(main, ["compress", "-", "-"], input=png(small)).stdout_bytes
    back = CliRunner().invoke(main, ["decompress", "-", "-", "--format", "webp"], input=latent).stdout_bytes
    assert Image.open(io.BytesIO(back)).format == "WEBP"
    assert CliRunner().invoke(main, ["denoise", "-", "somewhere"]).exit_code == 2
    assert CliRunner().invoke(main, ["denoise", "-", "-", "-m", "same"], input=b"nothing").exit_code == 1


def test_the_dry_run_of_the_command_line_lists_what_it_would_do(folder, tmp_path):
    command = ["denoise", str(folder), str(tmp_path / "out"), "-m", "same", "--dry-run"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    assert result.stdout.count(" -> ") == 12
    assert "12 to do" in result.stderr
    assert "to be written" not in result.stderr
    assert "to be written" in CliRunner().invoke(main, [*command, "--estimate"]).stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_finds_nothing_fails_and_says_what_it_passed_over(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.PSD", "sub/b.psd", "c.cr2", "d", ".hidden.tga"):
        (tmp_path / "in" / name).write_bytes(b"8BPS")
    (tmp_path / "in" / "link.png").symlink_to("a.PSD")
    for task in ("denoise", "compress", "decompress"):
        command = [task, str(tmp_path / "in"), str(tmp_path / "out"), "--json", str(tmp_path / "s.json")]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert "latent files found" in result.stderr if task == "decompress" else "no images found" in result.stderr
        passed = "passed over: 2 .psd, 1 .cr2, 1 without a suffix, 1 symbolic links (see --follow-symlinks)\n"
        assert result.stderr.endswith(passed)
        passed_over = json.loads((tmp_path / "s.json").read_text())["passed_over"]
        assert passed_over == {".psd": 2, ".cr2": 1, "without a suffix": 1, "symbolic link": 1}
        assert CliRunner().invoke(main, [*command, "--allow-empty"]).exit_code == 0
        assert CliRunner().invoke(main, [*command, "--dry-run"]).exit_code == 1


def test_what_is_passed_over_beside_images_is_said_too(folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    command = ["denoise", str(folder), str(tmp_path / "out"), "-m", "same"]
    for _ in range(2):  # the second run finds all done, and that is not nothing
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0
        assert "; passed over: 1 .txt\n" in result.stderr
    assert "passed over" not in CliRunner().invoke(main, [*command, "--quiet"]).stderr


def test_progress_is_told_in_lines_where_there_is_no_terminal(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("aeimg.progress.Progress.EVERY", 0.0)
    with caplog.at_level("INFO", "aeimg"):
        run(folder, tmp_path / "out", progress=True)
    assert "denoise: 12 of 12" in caplog.messages[-1]


def test_one_note_about_many_files_names_a_few(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    (out / manifest.NAME).unlink()
    result = CliRunner().invoke(main, ["denoise", str(folder), str(out), "-m", "same", "--json", str(tmp_path / "s")])
    assert result.exit_code == 0
    assert result.stderr.count("aeimg has no record of writing it") == 6
    assert "and 7 more" in result.stderr
    summary = json.loads((tmp_path / "s").read_text())
    assert summary["options"]["model"] == "same"
    assert {record["status"] for record in summary["files"]} == {"skipped"}
