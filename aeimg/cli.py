"""The command line: parses, calls the public API, prints.

Exit codes: 0 all well, 1 any failure, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from . import __version__
from .errors import AeimgError, UsageError

if TYPE_CHECKING:
    from .engine import Summary
    from .explore import Explored

PATH = click.Path(path_type=Path)
FileTask = Literal["denoise", "compress", "decompress"]

Command = TypeVar("Command", bound=Callable[..., Any])


class _Group(click.Group):
    """A group of commands that turns the package's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except AeimgError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted; what was written is whole", err=True)
            sys.exit(130)


class _Levels(click.ParamType):
    """A quality, or one for each format: `90`, `jpg=90,webp=80`."""

    name = "level"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | dict[str, int]:
        try:
            if "=" not in value:
                return int(value)
            return {kind.strip(): int(level) for kind, level in (part.split("=") for part in value.split(","))}
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a number like 90 nor a list like jpg=90,avif=60", param, ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "AEIMG"})
@click.version_option(__version__, prog_name="aeimg", allow_from_autoenv=False)  # AEIMG_VERSION may be anything
def main() -> None:
    """Denoise and compress folders of images with learned autoencoders."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    # Pillow warns at half the size that is an error here; see images.pixel_limit.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")


_MODEL = [
    click.option("-m", "--model", help="A registered model (see `aeimg models`), a weights file or spandrel:FILE."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
    click.option("--dtype", default="auto", show_default=True, help="auto, fp32 or bf16."),
]
_SELECTION = [
    click.option("--include", multiple=True, help="Take only files whose name or path fits this pattern."),
    click.option("--exclude", multiple=True, help="Pass over files and folders whose name or path fits this pattern."),
    click.option("--follow-symlinks", is_flag=True, help="Follow symbolic links in folders."),
]


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Returns one decorator that adds several options."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_FOR_FILES = _with(
    *_MODEL,
    *_SELECTION,
    click.option("--name", help="Names of the outputs, of {stem}, {name}, {suffix}. [default: {stem}{suffix}]"),
    click.option(
        "-n", "--dry-run", is_flag=True, help="Write nothing; list what would be done, and how long it takes."
    ),
    click.option("--memory", help="How much memory pictures may hold on their way: 500M, 4G. [default: 2G]"),
    click.option(
        "-j", "--jobs", type=click.IntRange(1), help="Threads that read and write. [default: cores, at most 8]"
    ),
    click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="How many images run at once, at most.",
    ),
    click.option(
        "--if-exists",
        type=click.Choice(["skip", "overwrite", "error"]),
        default="skip",
        show_default=True,
        help="Outputs that are there: keep those that are still right, redo all, or refuse.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["continue", "stop"]),
        default="continue",
        show_default=True,
        help="What to do after an image that fails.",
    ),
    click.option("--json", "json_file", type=PATH, help="Write what became of each file to this file."),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress bar and no summary, but name failures."),
    click.option("-v", "--verbose", is_flag=True, help="Print a line for each image: what was done to it, and why."),
)
"""The options of the three tasks that write files."""

_IMAGE_QUALITY = click.option(
    "--image-quality", type=_Levels(), help="Of JPEG, WebP and AVIF files: 90, or jpg=90,avif=60. [default: 95]"
)


def _run(
    sources: tuple[str, ...],
    out: str,
    task: FileTask,
    *,
    quiet: bool,
    verbose: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Runs `process` over files, and prints what it did."""
    from .engine import Interrupted, process

    logging.getLogger("aeimg").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    options = {key: value for key, value in options.items() if value is not None}
    if out == "-":
        if options["dry_run"] or json_file is not None:
            raise UsageError("--dry-run and --json are for files, and standard output is none")
        _pipe(sources, task, **options)
        return
    if "-" in sources:
        raise UsageError("what comes from standard input goes to standard output: give - for OUT as well")
    if json_file is not None:
        _check_json(json_file, "aeimg")
    interrupted = False
    try:
        summary = process(list(sources), task, out=out, progress=not (quiet or verbose), **options)
    except Interrupted as error:
        summary, interrupted = error.summary, True
    _print_summary(summary, task, quiet=quiet, dry=options["dry_run"])
    if json_file is not None:
        _write_json(json_file, summary, task=task, sources=sources, out=out, options=options)
    if interrupted:
        raise KeyboardInterrupt
    if summary.failed:
        sys.exit(1)


_NOT_FOR_PIPES = ("include", "exclude", "follow_symlinks", "name", "dry_run", "if_exists", "on_error")


def _pipe(sources: tuple[str, ...], task: FileTask, **options: Any) -> None:
    """Writes the result of one picture or latent file, from standard input or from a file, to standard output."""
    from .engine import process

    if len(sources) != 1:
        raise UsageError("standard output takes one picture: give one source, a file or -")
    try:
        data = sys.stdin.buffer.read() if sources[0] == "-" else Path(sources[0]).read_bytes()
    except OSError as error:
        raise UsageError(f"{sources[0]}: can't be read ({error.strerror})") from error
    kept = {key: value for key, value in options.items() if key not in _NOT_FOR_PIPES}
    if task == "decompress":
        result = process(data, task, kind="bytes", **{"format": "png", **kept})
    else:
        result = process(data, task, **kept)
    sys.stdout.buffer.write(result)
    sys.stdout.buffer.flush()


def _check_json(file: Path, key: str) -> None:
    """Raises `UsageError` where the file is there already and holds no JSON object with that key."""
    from .paths import check_target

    def ours(path: Path) -> bool:
        try:
            about = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(about, dict) and key in about

    check_target(file, ours)


def _write_json(file: Path, summary: Summary, **about: Any) -> None:
    from .paths import write_atomic

    counts = ("done", "skipped", "planned", "expected", "pixels", "bytes_in", "bytes_out", "seconds")
    about = {"aeimg": __version__, **about, **{key: getattr(summary, key) for key in counts}}
    about |= {"failed": len(summary.failed), "files": summary.files}
    write_atomic(file, json.dumps(about, indent=1).encode())


def _plain(name: object) -> str:
    """Returns text that names files on one line, whatever is in it: what would command the terminal is spelled out."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


SHOWN = 5
"""How many files are named of those with one and the same note."""


def _print_summary(summary: Summary, task: FileTask, *, quiet: bool, dry: bool) -> None:
    notes: dict[str, list[str]] = {}
    for record in summary.files:
        for warning in record.get("warnings", ()):
            notes.setdefault(warning, []).append(record["input"])
    for warning, names in notes.items():
        for name in names[:SHOWN]:
            click.echo(_plain(f"note: {name}: {warning}"), err=True)
        if len(names) > SHOWN:
            click.echo(f"note: and {len(names) - SHOWN} more: {warning}", err=True)
    _print_failed(summary.failed)
    if dry and not quiet:
        for record in summary.files:
            if record["status"] == "planned":
                click.echo(_plain(f"{record['input']} -> {record['output']}"))
        expected = summary.expected
        line = f"{task}, dry run: {summary.planned} to do, {summary.skipped} up to date; "
        line += f"about {expected['megapixels']:.1f} megapixels, {expected['seconds']:.0f} s, "
        click.echo(line + f"{_size(int(expected['bytes_out']))} to be written", err=True)
    elif not quiet:
        click.echo(_summary_line(summary, task), err=True)


def _print_failed(failed: list[tuple[Path, str]]) -> None:
    for path, reason in failed:
        click.echo(_plain(f"failed: {path}: {reason.removeprefix(f'{path}: ')}"), err=True)


def _summary_line(summary: Summary, task: FileTask) -> str:
    line = f"{task}: {summary.done} done"
    if task == "denoise":
        models = Counter(record["model"] for record in summary.files if "model" in record)
        line += "".join(f", {count} by {model}" for model, count in sorted(models.items()))
    if summary.skipped:
        line += f", {summary.skipped} skipped (already there; --if-exists overwrite redoes them)"
    if summary.planned:
        line += f", {summary.planned} not begun"
    if summary.failed:
        line += f", {len(summary.failed)} failed"
    if summary.done:
        megapixels = summary.pixels / 1e6
        line += f"; {megapixels:.1f} megapixels in {summary.seconds:.1f} s ({megapixels / summary.seconds:.1f} MP/s)"
        line += f", {_size(summary.bytes_in)} -> {_size(summary.bytes_out)}"
    if summary.done and task == "compress":
        line += f" ({8 * summary.bytes_out / summary.pixels:.3f} bits per pixel)"
    figures = [record["psnr"] for record in summary.files if record.get("psnr") is not None]
    if figures:
        line += f", mean PSNR {sum(figures) / len(figures):.2f} dB"
    if not (summary.done or summary.skipped or summary.failed):
        line += "; no images found"
    return line


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--sigma", default="auto", show_default=True, help="Level of the noise in 8-bit units, or auto to estimate it."
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="0 leaves the images as they are, 1 removes all the noise.",
)
@click.option("--format", help="Suffix of the files written: png, jpg, webp, tiff, ... [default: that of the source]")
@_IMAGE_QUALITY
@_FOR_FILES
def denoise(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Denoise the images in SOURCES into the folder OUT.

    SOURCES are files, folders, globs or @list.txt; of one file, OUT may be the file to write; - is standard input or
    output.
    """
    _run(sources, out, "denoise", **options)


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=50,
    show_default=True,
    help="1 makes the smallest files, 100 the best.",
)
@click.option(
    "--target-bpp", type=float, help="Instead of --quality: make the best file of at most so many bits per pixel."
)
@click.option("--max-bytes", type=int, help="Instead of --quality: make the best file of at most so many bytes.")
@click.option(
    "--target-psnr", type=float, help="Instead of --quality: make the smallest file of at least this PSNR (dB)."
)
@click.option(
    "--effort",
    type=click.IntRange(1, 9),
    default=1,
    show_default=True,
    help="From 2 on, refine each latent: smaller files, slower encoding, the same decoding.",
)
@click.option(
    "--measure", is_flag=True, help="Decode again, and print the mean PSNR (--json lists PSNR and SSIM of each file)."
)
@_FOR_FILES
def compress(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Compress the images in SOURCES into latent files (.aei) in the folder OUT.

    SOURCES are files, folders, globs or @list.txt; of one file, OUT may be the file to write; - is standard input or
    output.
    """
    _run(sources, out, "compress", **options)


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("out")
@click.option(
    "--format",
    help="Suffix of the files written: png, jpg, webp, tiff, ...; keep for that of what was compressed. [default: png]",
)
@_IMAGE_QUALITY
@_FOR_FILES
def decompress(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Turn the latent files in SOURCES back into images in the folder OUT.

    SOURCES are files, folders, globs or @list.txt; of one file, OUT may be the file to write; - is standard input or
    output.
    """
    _run(sources, out, "decompress", **options)


_FOLDERS = _with(
    click.argument("sources", nargs=-1, required=True),
    click.argument("out", type=PATH),
    *_MODEL,
    *_SELECTION,
    click.option("-q", "--quiet", is_flag=True, help="Show no progress bar and no summary, but name failures."),
)


def _finish_explored(command: str, explored: Explored, more: str, *, quiet: bool) -> None:
    """Prints what became of the images; exits with 1 where one has failed."""
    _print_failed(explored.failed)
    if not quiet:
        line = f"{command}: {len(explored.images)} images{more if explored.images else ''}"
        line += f", {len(explored.failed)} failed" if explored.failed else ""
        click.echo(line + ("" if explored.images or explored.failed else "; no images found"), err=True)
    if explored.failed:
        sys.exit(1)


def _print_drawn(command: str, paths: list[Path]) -> None:
    last = f" to {paths[-1].name}" if len(paths) > 1 else ""
    click.echo(_plain(f"{command}: {paths[0]}{last}"), err=True)


@main.command()
@_FOLDERS
def features(sources: tuple[str, ...], out: Path, quiet: bool, **options: Any) -> None:
    """Write one vector for each image in SOURCES to the file OUT (.safetensors, .npz or .csv), with its name.

    What the vector holds depends on the model: of aeimg-codec, mean and standard deviation of each code over the
    picture; of the small autoencoders, the mean of the codes of its blocks.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    explored = explore.features(sources, out, progress=not quiet, **options)
    _finish_explored("features", explored, f", {explored.values} values each by {explored.model}", quiet=quiet)


@main.command()
@_FOLDERS
@click.option(
    "--percentile",
    type=click.FloatRange(0, 100),
    default=99.0,
    show_default=True,
    help="Of the errors of the training images: an image above it counts as strange.",
)
@click.option("--heatmaps", type=PATH, help="A folder for pictures of where the errors lie.")
def score(sources: tuple[str, ...], out: Path, quiet: bool, **options: Any) -> None:
    """Write how strange each image in SOURCES is to a model to the file OUT (.csv), the strangest first.

    The score of an image is the error at which the model brings it back (mean squared, pixels in [0,1]): a model that
    has learned one kind of image does badly on others.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    explored = explore.score(sources, out, progress=not quiet, **options)
    more = ", no threshold: this model does not know the errors of its training images"
    if explored.strange is not None:
        more = f", {explored.strange} of them strange"
    _finish_explored("score", explored, more, quiet=quiet)


@main.command("plot-latents")
@_FOLDERS
def plot_latents(sources: tuple[str, ...], out: Path, quiet: bool, **options: Any) -> None:
    """Draw the images in SOURCES as points of a plane into the picture OUT, coloured by sub-folder.

    Codes of two values are the plane; for longer vectors (see `aeimg features`) it is that of their two first
    principal components.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    explored = explore.plot_latents(sources, out, progress=not quiet, **options)
    _finish_explored("plot-latents", explored, f", {explored.values} values each by {explored.model}", quiet=quiet)


@main.command()
@click.argument("out", type=PATH)
@_with(*_MODEL[:2])
@click.option("-n", "--count", type=click.IntRange(1), default=16, show_default=True, help="How many pictures.")
@click.option(
    "--grid", type=click.IntRange(2), help="Instead: the plane of codes of two values, N by N, as one picture."
)
@click.option(
    "--side", type=click.IntRange(8), default=64, show_default=True, help="Side in pixels, where the model takes any."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds draw equal codes.")
def sample(out: Path, **options: Any) -> None:
    """Decode random codes of a small autoencoder into pictures in the folder OUT.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    _print_drawn("sample", explore.sample(out, **options))


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.argument("out", type=PATH)
@_with(*_MODEL[:2])
@click.option("--steps", type=click.IntRange(2), default=8, show_default=True, help="Pictures, A and B included.")
def interpolate(a: Path, b: Path, out: Path, **options: Any) -> None:
    """Decode the codes between those of the images A and B into pictures in the folder OUT.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    _print_drawn("interpolate", explore.interpolate(a, b, out, **options))


@main.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.argument("c", type=PATH)
@click.argument("out", type=PATH)
@_with(*_MODEL[:2])
def arithmetic(a: Path, b: Path, c: Path, out: Path, **options: Any) -> None:
    """Decode the code of A minus that of B plus that of C into the picture OUT.

    The result makes sense where directions among codes mean something: for variational models, and for dense ones on
    aligned pictures.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    _print_drawn("arithmetic", [explore.arithmetic(a, b, c, out, **options)])


@main.command()
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def info(files: tuple[Path, ...], as_json: bool) -> None:
    """Print what latent files (.aei) and weights files (.safetensors) state of themselves."""
    from .report import describe

    failed = False
    for path in files:
        try:
            about = describe(path)
        except AeimgError as error:
            click.echo(_plain(f"failed: {error}"), err=True)
            failed = True
            continue
        if as_json:
            click.echo(json.dumps(about))
        else:
            width = max(map(len, about))
            click.echo("\n".join(_plain(f"{key:{width}}  {value}") for key, value in about.items()) + "\n")
    if failed:
        sys.exit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per model and line.")
def models(as_json: bool) -> None:
    """List the registered models: task, size, cost, figures, and where they come from."""
    from .report import describe_models

    rows, broken = describe_models()
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, default=str))  # the card of a plug-in may hold anything
    else:
        for row in rows:
            click.echo(row.pop("name"))
            for key, value in row.items():
                click.echo(f"    {key:12}  {value}")
    for error in broken:
        click.echo(f"broken: {error}", err=True)


TRAINED = (
    "denoise", "compress", "linear", "vanilla", "multilayer", "stacked", "deep2d", "conv", "sparse", "denoising",
    "variational",
)  # fmt: skip
"""The keys of `training.run.OBJECTIVES`, whose import would wait for torch."""


@main.command()
@click.argument("task", type=click.Choice(TRAINED), metavar="TASK")
@click.argument("data", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="The weights file to write (.safetensors).")
@click.option("--from", "start", help="Weights to specialise: a model or a weights file of the same kind.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="How long to train, resumed time included. [default: 60 for denoise and compress]",
)
@click.option(
    "--steps", type=click.IntRange(1), help="How many steps to train at most. [default: 1,200 to 24,000 for textbooks']"
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="End after so many evaluations (40 a run) in a row without a better one, and keep the best. [default: do not]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="The highest learning rate. [default: the task's; with --from, a third of it]",
)
@click.option("--resume", type=PATH, help="A checkpoint to continue from.")
@click.option("--checkpoint", type=PATH, help="Where to keep the checkpoint. [default: beside the weights]")
@click.option("--curve", type=PATH, help="Where to draw the loss curve. [default: beside the weights, .png]")
@click.option(
    "--if-exists",
    type=click.Choice(["error", "overwrite"]),
    default="error",
    show_default=True,
    help="What to do about weights and a checkpoint of another run; other files are never written over.",
)
@click.option("--labels", help="Of idx files: only images of these, like 1,5,6.")
@click.option("--blind", is_flag=True, help="A denoiser that is told no noise level, for what cameras do to pictures.")
@click.option(
    "--jpeg", is_flag=True, help="A blind one for white noise that has been through JPEG, and for nothing else."
)
@click.option("--pairs", type=PATH, help="Real photographs for it, beside DATA: a folder with noisy/ and clean/.")
@click.option("--name", help="What the model is called. [default: the file's name]")
@click.option("--version", type=click.IntRange(1), default=1, show_default=True, help="Version of its weights.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32 or bf16.")
@click.option("--seed", type=int, default=0, show_default=True)
def train(
    task: str, data: Path, out: Path, learning_rate: float | None, labels: str | None, jpeg: bool, **options: Any
) -> None:
    """Train a model of TASK on the images in the folder DATA.

    TASK is denoise or compress, for networks as they ship; or an autoencoder of the textbooks: linear, vanilla,
    multilayer, stacked, deep2d, conv, sparse, denoising, variational. These learn from idx files (MNIST) or from
    images.

    A denoiser learns from clean images, or from DATA/noisy and DATA/clean with files of equal names.
    """
    from .training import train as run

    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: weights files end in .safetensors")
    recipe: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
    if jpeg:
        recipe["jpeg"] = options["blind"] = True
    if labels is not None:
        try:
            recipe["labels"] = tuple(int(label) for label in labels.split(","))
        except ValueError as error:
            raise UsageError(f"--labels takes whole numbers like 1,5,6, not {labels!r}") from error
    run(task, data, out, log=click.echo, recipe=recipe, **options)


@main.command()
@click.argument("what", type=click.Choice(["denoise", "compress", "engine", "anomaly", "textbooks"]))
@click.argument("data", type=PATH)
@click.option("-m", "--model", help="A registered model or a weights file.")
@click.option("--json", "json_file", type=PATH, help="Write the figures to this file as well.")
@click.option("--card", is_flag=True, help="Write the figures into the card of the weights file named by --model, too.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many images.")
@click.option("--effort", type=click.IntRange(1, 9), help="Of compress.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32 or bf16.")
def bench(what: str, data: Path, json_file: Path | None, card: bool, **options: Any) -> None:
    """Measure a model on the images in DATA, beside its peers; or what the engine loses around it.

    anomaly trains a small autoencoder on each of the digits in DATA (idx files) and measures how well it tells the
    others apart; textbooks trains those of the textbooks' autoencoders that do not ship.
    """
    from . import bench as benches
    from .paths import write_atomic

    if json_file is not None:
        _check_json(json_file, "task")
    weights = Path(options["model"] or "")
    if card and weights.suffix != ".safetensors":
        raise UsageError("--card needs the weights file, by --model FILE.safetensors")
    effort = options.pop("effort")
    if effort is not None and what != "compress":
        raise UsageError("--effort is an option of compress")
    if what == "denoise":
        figures = benches.bench_denoise(data, **options)
    elif what == "engine":
        if options.pop("model") is not None:
            raise UsageError("--model is not an option of engine")
        figures = benches.bench_engine(data, **options)
    elif what == "anomaly":
        figures = benches.bench_anomaly(data, device=options["device"])
    elif what == "textbooks":
        figures = benches.bench_textbooks(data, device=options["device"])
    else:
        figures = benches.bench_compress(data, **options, effort=effort or 1)
    click.echo(benches.table(figures))
    if json_file is not None:
        write_atomic(json_file, json.dumps(figures, indent=1).encode())
    if card:
        benches.write_card(weights, data, figures)


@main.command()
@click.argument("out", type=PATH)
def demo(out: Path) -> None:
    """Denoise, compress and decompress real photographs into the folder OUT, and print how well it went.

    The photographs are those that come with scikit-image (`pip install 'aeimg[demo]'`).
    """
    from .report import run_demo

    click.echo(run_demo(out))


if __name__ == "__main__":
    main()
