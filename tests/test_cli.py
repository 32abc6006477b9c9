"""The command line does what its help says, and its exit codes mean what they should."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg import container, registry
from aeimg.cli import main
from aeimg.metrics import psnr


@pytest.fixture
def folder(tmp_path, small):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.fromarray(small).save(tmp_path / "in" / "a.png")
    Image.fromarray(small).convert("L").save(tmp_path / "in" / "sub" / "b.png")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_a_folder_goes_there_and_back(folder, small):
    done = run("compress", folder / "in", folder / "latents", "--quality", 80)
    assert done.exit_code == 0, done.output
    assert "compress: 2 done" in done.stderr
    done = run("decompress", folder / "latents", folder / "out", "--format", "tiff")
    assert done.exit_code == 0, done.output
    assert psnr(np.asarray(Image.open(folder / "out/a.tiff")), small) > 27
    assert Image.open(folder / "out/sub/b.tiff").mode == "L"


def test_denoise_takes_its_options(folder, small):
    done = run("denoise", folder / "in", folder / "out", "--sigma", 0, "--strength", 0)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "out/a.png")), small)


def test_a_bad_file_is_named_passed_over_and_makes_the_exit_code_one(folder):
    (folder / "in" / "bad.jpg").write_bytes(b"no")
    done = run("compress", folder / "in", folder / "latents")
    assert done.exit_code == 1
    assert "failed:" in done.stderr
    assert "bad.jpg" in done.stderr
    assert "2 done, 1 failed" in done.stderr
    assert sorted(p.name for p in (folder / "latents").rglob("*.aei")) == ["a.aei", "b.aei"]


@pytest.mark.parametrize(
    "arguments",
    [["denoise"], ["denoise", "nowhere", "out"], ["compress", ".", "out", "--quality", "101"],
     ["denoise", ".", "out", "--sigma", "loud"], ["decompress", ".", "out", "--format", "gif"],
     ["denoise", ".", "out", "--device", "abacus"], ["nonsense"]],
)  # fmt: skip
def test_wrong_calls_exit_with_two_and_one_clear_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Error:" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("task", ["denoise", "compress"])
def test_a_forgotten_output_is_told_in_words(folder, task):
    (folder / "c.png").write_bytes((folder / "in" / "a.png").read_bytes())
    done = run(task, folder / "in" / "a.png", folder / "in" / "sub" / "b.png", folder / "c.png")
    assert done.exit_code == 2
    assert "c.png: is a file, but the results need a folder" in done.stderr


def test_options_come_from_the_environment_too(folder, monkeypatch):
    monkeypatch.setenv("AEIMG_COMPRESS_QUALITY", "7")
    run("compress", folder / "in", folder / "latents")
    done = run("info", "--json", folder / "latents" / "a.aei")
    assert json.loads(done.stdout)["quality"] == 7


def test_no_other_variable_is_taken_for_an_option(folder, monkeypatch):
    monkeypatch.setenv("AEIMG_VERSION", "0.1.0")  # as a container's recipe may call what it installs
    assert run("info", folder / "in" / "a.png").stderr.endswith("(.safetensors)\n")


def test_standard_output_takes_a_picture_and_no_options_for_files(folder):
    for option in (["--dry-run"], ["--json", folder / "s.json"]):
        done = run("compress", folder / "in" / "a.png", "-", *option)
        assert (done.exit_code, done.stdout) == (2, "")


def test_a_summary_is_written_over_nothing_but_a_summary(folder):
    kept = (folder / "in" / "a.png").read_bytes()
    (folder / "config.json").write_text('{"mine": 1}')
    (folder / "file").write_bytes(b"")
    for name, code in (
        ("in/a.png", 2),
        ("config.json", 2),
        ("in", 2),
        ("file/s.json", 1),
        ("s.json", 0),
        ("s.json", 0),
    ):
        done = run("compress", folder / "in", folder / "latents", "--json", folder / name)
        assert done.exit_code == code, done.output
        assert (folder / "latents").exists() == (code == 0)  # refused before the work is done
        done = run("bench", "denoise", folder / "in", "--json", folder / name) if code == 2 else done
        assert done.exit_code == code, done.output
    assert (folder / "in" / "a.png").read_bytes() == kept
    assert (folder / "config.json").read_text() == '{"mine": 1}'


def test_info_takes_names_that_are_no_text(folder):
    import os

    run("compress", folder / "in" / "a.png", folder / "a.aei")
    os.rename(folder / "a.aei", os.fsencode(folder) + b"/\xff\n.aei")
    done = run("info", os.fsdecode(os.fsencode(folder) + b"/\xff\n.aei"))
    assert (done.exit_code, done.exception) == (0, None)
    assert "\\udcff\\n.aei\n" in done.stdout


def test_info_describes_latents_and_weights_and_refuses_others(folder):
    from aeimg import weights

    run("compress", folder / "in", folder / "latents", "--quality", 60)
    weights = weights.find_weights(registry.BUILTINS["aeimg-codec"][1])
    done = run("info", "--json", folder / "latents/a.aei", weights)
    latent, about = (json.loads(line) for line in done.stdout.splitlines())
    assert (latent["mode"], latent["model"], latent["quality"]) == ("coded", registry.BUILTINS["aeimg-codec"][1], 60)
    assert (latent["width"], latent["height"], latent["source"]) == (143, 101, "a.png")
    assert latent["weights"] == about["digest"]
    assert about["card"]["steps"] > 0
    refused = run("info", folder / "in" / "a.png")
    assert refused.exit_code == 1
    assert "neither a latent file" in refused.stderr
    (folder / "hollow.aei").write_bytes(container.write(container.Stored(b"no picture", "a.png", "PNG")))
    refused = run("info", folder / "hollow.aei", folder / "latents" / "a.aei")
    assert refused.exit_code == 1
    assert "hollow.aei: not an image in a format" in refused.stderr
    assert "aeimg-codec" in refused.stdout


def test_info_takes_folders_models_and_standard_input(folder):
    run("compress", folder / "in", folder / "latents", "--quality", 60)
    (folder / "latents" / "z.aei").write_bytes(b"no")
    done = run("info", "--json", folder / "latents")
    assert done.exit_code == 1
    assert [json.loads(line)["source"] for line in done.stdout.splitlines()] == ["a.png", "b.png"]
    assert "z.aei: neither a latent file" in done.stderr
    label = registry.BUILTINS["vanilla"][1]
    for name in ("vanilla", label):
        assert json.loads(run("info", "--json", name).stdout)["label"] == label
    registry.register("mine", lambda: None, task="denoise")
    assert json.loads(run("info", "--json", "mine").stdout) == {
        "model": "mine", "kind": "model", "task": "denoise", "origin": "registered",
    }  # fmt: skip
    latent = (folder / "latents" / "a.aei").read_bytes()
    done = CliRunner().invoke(main, ["info", "-", "--json"], input=latent)
    assert json.loads(done.stdout)["bytes"] == len(latent)
    for nothing, message in (
        (folder / "in", "holds no latent files"),
        ("nowhere", "no such file or folder, and no model"),
    ):
        done = run("info", nothing)
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr


@pytest.mark.parametrize("task", ["denoise", "compress", "decompress", "features", "score", "plot-latents"])
def test_a_single_name_is_not_taken_for_the_output_alone(task):
    done = run(task, "in/")
    assert done.exit_code == 2
    assert f"Missing argument 'OUT'. after SOURCES, name where the results go, as in: main {task} in/ out/" in (
        " ".join(done.stderr.split())
    )
    assert f"Usage: main {task} [OPTIONS] SOURCES... OUT" in done.stderr


def test_help_is_a_command_too():
    for name in main.commands:
        assert run("help", name).stdout.splitlines()[2:] == run(name, "--help").stdout.splitlines()[2:]
    assert "plot-latents" in run("help").stdout
    done = run("help", "polish")
    assert done.exit_code == 2
    assert "no such command 'polish'" in done.stderr


def completions(*words):
    from click.shell_completion import BashComplete

    complete = BashComplete(main, {}, "aeimg", "_AEIMG_COMPLETE")
    return [(item.type, item.value) for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_shells_complete_files_and_models():
    for command in ("denoise", "compress", "decompress", "info", "features"):
        assert completions(command, "a.p") == [("file", "a.p")]
        assert completions(command, "in/", "o") == [("file", "o")]
    for command, option in (("denoise", "-m"), ("compress", "--model"), ("train", "--from"), ("bench", "-m")):
        assert ("plain", "aeimg-denoise-blind") in completions(command, option, "aeimg-")
        assert completions(command, option, "mine.s") == [("file", "mine.s")]


def test_models_tells_task_size_cost_figures_and_origin():
    rows = {row["name"]: row for row in map(json.loads, run("models", "--json").stdout.splitlines())}
    assert {"aeimg-codec", "aeimg-denoise"} <= set(rows)
    row = rows["aeimg-denoise"]
    assert (row["task"], row["origin"]) == ("denoise", "built in")
    assert float(row["kMAC/pixel"].split()[0]) > 10
    assert "held_out" in row


def test_train_writes_weights_that_the_tasks_take(folder, tmp_path):
    from skimage import data

    (tmp_path / "train").mkdir()
    for number in range(10):
        Image.fromarray(data.astronaut()[number * 20 :][:150, :150]).save(tmp_path / "train" / f"{number}.png")
    weights = tmp_path / "w.safetensors"
    done = run("train", "denoise", tmp_path / "train", "-o", weights, "--steps", 2, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert re.search(r"held out, before denoising: psnr15 2\d\.\d+ psnr25 2\d\.\d+ psnr50 1\d", done.output)
    (shipped,) = re.findall(r"held out, by aeimg-denoise, which comes with aeimg: .*psnr25 ([\d.]+)", done.output)
    assert float(shipped) > 28
    assert run("denoise", folder / "in", folder / "out", "--model", weights).exit_code == 0


def test_an_interrupt_exits_with_130(monkeypatch, folder):
    import aeimg.engine

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(aeimg.engine, "process", interrupted)
    assert run("denoise", folder / "in", folder / "out").exit_code == 130


SLOW = """
import sys, time
import aeimg
from aeimg.cli import main


class Slow:
    task, halo, label = "denoise", 0, "slow-1"

    def __call__(self, x, sigma):
        print("running", flush=True)
        time.sleep(0.3)
        return x


aeimg.register("slow", Slow)
main(sys.argv[1:])
"""
"""The command line with a denoiser that takes its time."""


def start(*arguments, code=SLOW, ignored=()):
    """Begins a command that ignores these signals and no others, whatever the tests were started with (nohup, &)."""

    def set_signals():
        for name in (signal.SIGINT, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN if name in ignored else signal.SIG_DFL)

    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=set_signals)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_that_is_ended_by_a_signal_keeps_and_reports_what_is_done(tmp_path, small, name):
    (tmp_path / "in").mkdir()
    for number in range(30):
        Image.fromarray(small).save(tmp_path / "in" / f"{number}.png")
    child = start("denoise", tmp_path / "in", tmp_path / "out", "-m", "slow", "-b", 1, "--json", tmp_path / "s.json")
    for _ in range(3):
        assert child.stdout.readline() == "running\n"
    child.send_signal(getattr(signal, name))
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "not begun" in errors
    assert "Traceback" not in errors
    about = json.loads((tmp_path / "s.json").read_text())
    assert about["done"] + about["planned"] == 30
    assert about["done"] == len(list((tmp_path / "out").glob("*.png"))) > 0
    assert not list((tmp_path / "out").glob("*.aeimg-part"))


def test_a_signal_that_a_parent_ignores_stays_ignored(tmp_path, small):
    Image.fromarray(small).save(tmp_path / "a.png")
    command = "denoise", tmp_path / "a.png", tmp_path / "b.png", "-m", "slow"
    child = start(*command, ignored=[signal.SIGHUP])  # as nohup does
    assert child.stdout.readline() == "running\n"
    child.send_signal(signal.SIGHUP)
    child.communicate(timeout=60)
    assert child.returncode == 0


def test_training_that_is_ended_by_a_signal_leaves_a_checkpoint_to_resume_from(tmp_path, photograph):
    (tmp_path / "in").mkdir()
    for n in range(10):
        Image.fromarray(photograph[10 * n : 10 * n + 60, :80]).save(tmp_path / "in" / f"{n}.png")
    weights, checkpoint = tmp_path / "v.safetensors", tmp_path / "c.safetensors"
    command = "train", "vanilla", tmp_path / "in", "-o", weights, "--checkpoint", checkpoint
    child = start(*command, "--minutes", 5, code="import sys\nfrom aeimg.cli import main\nmain(sys.argv[1:])")
    while "step" not in (line := child.stdout.readline()):
        assert line, child.stderr.read()
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert checkpoint.exists()
    assert not weights.exists()
    done = run(*command, "--resume", checkpoint, "--steps", 1)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_run_without_standard_error_is_a_run(folder, closed):
    command = f"{sys.executable} -m aeimg denoise in out --sigma 5 {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((folder / "out").rglob("*.png"))) == 2
    for path in (folder / "out").rglob("*.png"):  # nothing was printed into what was opened in the place of it
        Image.open(path).load()


@pytest.mark.parametrize(
    ("rest", "code", "message"),
    [("denoise in/a.png - > /dev/full", 1, "Error: standard output can't be written (No space left on device)\n"),
     ("info latents/a.aei > /dev/full", 1, "Error: standard output can't be written (No space left on device)\n"),
     ("denoise in/a.png - >&-", 2, "Error: standard output is closed\n"),
     ("info latents/a.aei | true", 1, "")],
)  # fmt: skip
def test_standard_output_that_takes_no_more_is_one_line_and_no_traceback(folder, rest, code, message):
    if rest.startswith("info"):
        run("compress", folder / "in", folder / "latents")
    command = f"(sleep 0.1; {sys.executable} -m aeimg {rest.split('|')[0]}; echo $? > code) {'| true' * ('|' in rest)}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert int((folder / "code").read_text()) == code
    assert done.stderr.endswith(message)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "aeimg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("aeimg, version")


def test_a_small_autoencoder_is_trained_and_used(tmp_path, photograph):
    for n in range(10):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(photograph[10 * n : 10 * n + 60, :80]).save(tmp_path / "in" / f"{n}.png")
    weights = tmp_path / "v.safetensors"
    done = run(
        "train", "vanilla", tmp_path / "in", "-o", weights, "--steps", 5, "--learning-rate", 0.001, "--patience", 9
    )
    assert done.exit_code == 0, done.output
    assert "held out:" in done.output
    assert (tmp_path / "v.png").exists()
    card = json.loads(run("info", weights, "--json").output)["card"]
    assert (card["objective"], card["recipe"]["learning_rate"], card["patience"]) == ("vanilla", 0.001, 9)
    done = run("compress", tmp_path / "in", tmp_path / "latents", "--model", weights)
    assert done.exit_code == 0, done.output
    done = run("train", "vanilla", tmp_path / "in" / "0.png", "-o", tmp_path / "w.safetensors")
    assert done.exit_code == 1
    assert "1 usable images, at least 10" in done.output


def test_info_on_a_pipe_is_an_error_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.aei")
    done = CliRunner().invoke(main, ["info", str(tmp_path / "a.aei")])
    assert done.exit_code == 1
    assert "is no regular file" in done.output


def test_errors_and_models_can_not_command_the_terminal(tmp_path):
    run = CliRunner().invoke
    aeimg.register("bad\x1b[2Jname", lambda: None, task="denoise")
    for call in (["models"], ["info", "x\x1b[2Jy"], ["denoise", "x\x1b[2Jy", "out"], ["x\x1b[2Jy"],
                 ["compress", "a", "b", "--quality", "x\x1b[2Jy"]):  # fmt: skip
        assert "\x1b" not in run(main, call).output, call


def test_verbose_is_a_sentence_for_each_file(folder, caplog):
    def said(*words):
        caplog.clear()
        assert run(*words, "-v").exit_code == 0
        return [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]

    kind = r"\S+\.png: [a-z]+ [a-z]+ (noise )?\(\d+\.\d of 255\), aeimg-denoise(-blind|-jpeg)?, \d+\.\d s"
    coded = r"(quality 50, aeimg-codec-\d+|stored without loss), \d+\.\d s"
    for words, pattern in (
        (("denoise", folder / "in", folder / "out"), kind),
        (("compress", folder / "in", folder / "latents"), r"\S+\.png: \d+\.\d\d bits per pixel, " + coded),
        (("decompress", folder / "latents", folder / "back"), r"\S+\.aei: \d+x\d+, " + coded),
    ):
        lines = said(*words)
        assert len(lines) == 2
        assert all(re.fullmatch(pattern, line) for line in lines), lines


def test_a_run_with_nothing_to_do_says_so(folder):
    for expected in (False, True):
        done = run("denoise", folder / "in", folder / "out")
        assert ("nothing to do, as all" in done.stderr) == expected


def test_models_is_a_line_for_each_model_and_long_shows_cards():
    lines = run("models").stdout.splitlines()
    assert len(lines) == 1 + len(registry.BUILTINS)
    assert {line.split()[0] for line in lines[1:]} == set(registry.BUILTINS)
    assert "held_out" not in "".join(lines)
    assert "held_out" in run("models", "--long").stdout
