"""The command line: parses, calls the public API, prints.

Exit codes: 0 all well, 1 any failure or nothing found, 2 usage, 130 interrupted (by Ctrl-C, SIGTERM or SIGHUP).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import re
import signal
import sys
import threading
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from . import __version__
from .errors import AeimgError, UsageError
from .tasks.declared import IMAGE_TASKS

if TYPE_CHECKING:
    from .contract import ImageTask
    from .engine import Summary
    from .explore import Explored
    from .paths import Place

    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # which older versions of click do not let be subscripted

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=str, allow_dash=True)
"""A file or folder, @list.txt, a glob or -: shells complete names of files."""

Command = TypeVar("Command", bound=Callable[..., Any])


# -- printing ------------------------------------------------------------------------------------------------


def _abandon(stream: IO[str] | None) -> None:
    """Lets a standard stream that can't be written lead nowhere, so that Python's exit does not stumble over it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]  # where there is none, nothing is to be done
        os.close(nowhere)


def _say(line: str) -> None:
    """Prints a line on standard error. Where that is closed or full, the work goes on without it."""
    try:
        click.echo(line, err=True)
    except OSError:
        _abandon(sys.stderr)


def _log(line: str) -> None:
    """Prints a line on standard output. Where that is closed or full, the work goes on without it."""
    try:
        click.echo(line)
    except OSError:
        _abandon(sys.stdout)


def _print(text: str | bytes) -> None:
    """Prints what was asked for on standard output. Ends the program where that can't be written."""
    try:
        click.echo(text, nl=isinstance(text, str))
    except OSError as error:
        _abandon(sys.stdout)
        if error.errno == errno.EPIPE:  # as when `head` has seen enough
            sys.exit(1)
        raise click.ClickException(f"standard output can't be written ({error.strerror or error})") from error


def _replace_closed_streams() -> None:
    """Opens the standard streams that are closed (`2>&-`, pythonw) to nowhere.

    Otherwise the next file that is opened would get the number of standard error, and whatever a library prints.
    """
    opened = [os.open(os.devnull, os.O_RDWR)]
    while opened[-1] <= 2:
        opened.append(os.open(os.devnull, os.O_RDWR))
    os.close(opened[-1])
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as the program runs


# -- ending --------------------------------------------------------------------------------------------------


def _end_as_ctrl_c_does(number: int, frame: object) -> None:
    """Handles SIGTERM and SIGHUP: they do what Ctrl-C would do at this moment."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:  # a shell has the programs that it starts in the background ignore Ctrl-C
        raise KeyboardInterrupt


def _handle_signals(ctx: click.Context) -> None:
    """Lets SIGTERM and SIGHUP end a run as Ctrl-C does, as long as the command runs; one that is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may
        return
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end_as_ctrl_c_does)
            ctx.call_on_close(functools.partial(signal.signal, number, signal.SIG_DFL))


# -- the command ---------------------------------------------------------------------------------------------


class _Group(click.Group):
    """A group of commands that turns the package's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            raise click.UsageError(_with_flags(_plain(error), command)) from error
        except AeimgError as error:
            raise click.ClickException(_plain(error)) from error
        except click.ClickException as error:  # which may quote an argument
            error.message = _plain_lines(error.message)  # type: ignore[misc]  # final to click, which only reads it
            raise
        except KeyboardInterrupt:
            _say("interrupted; what was written is whole")
            sys.exit(130)


def _with_flags(message: str, command: click.Command | None) -> str:
    """Returns a message of the public API with the names of options as the command line has them: `--dry-run`."""
    names = {one.name for one in command.params if one.name and "_" in one.name} if command is not None else set()
    name = "|".join(sorted(names, key=len, reverse=True))
    return (
        re.sub(rf"(?<![\w/.'\"-])({name})(?![\w/.'\"-])", lambda found: _flag(found[1]), message) if name else message
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _Comparing(click.Command):
    """The command of a task whose settings can be compared. An option that is given twice is refused: that the last one
    counts is not what someone expects who wants to compare."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(list(args))[2]
        for one, count in Counter(given).items():
            if count > 1 and isinstance(one, click.Option) and not (one.multiple or one.is_flag or one.count):
                hint = f"give it once, or compare its values with --compare {one.name}=A,B"
                raise click.UsageError(
                    f"{_flag(one.name or '')} is given {count} times; "
                    + (hint if _is_comparable(self.name or "", one.name or "") else "give it once"),
                    ctx,
                )
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter:
            if not ctx.params.get("compared"):
                raise
            message = f"name the pictures to compare, as in: {ctx.command_path} in/ --compare ..."
            raise click.UsageError(message, ctx) from None


def _is_comparable(task: str, name: str) -> bool:
    from .comparison import comparable

    return name in comparable(task)


class _Levels(_ParamType):
    """A quality, or one for each format: `90`, `jpg=90,webp=80`."""

    name = "level"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | dict[str, int]:
        try:
            if "=" not in value:
                return int(value)
            return {kind.strip(): int(level) for kind, level in (part.split("=") for part in value.split(","))}
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a number like 90 nor a list like jpg=90,avif=60", param, ctx)


class _Crop(_ParamType):
    """A part of a picture: `1024,512,400,300`."""

    name = "x,y,width,height"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            x, y, width, height = (int(part) for part in value.split(","))
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not x,y,width,height in pixels, like 1024,512,400,300", param, ctx)
        return x, y, width, height


class _Pages(_ParamType):
    """`all`, `first`, or the number of a page."""

    name = "all|first|number"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in ("all", "first"):
            return value
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither all nor first nor the number of a page, from 1", param, ctx)
        return int(value)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "AEIMG"})
@click.version_option(__version__, prog_name="aeimg", allow_from_autoenv=False)  # AEIMG_VERSION may be anything
@click.pass_context
def main(ctx: click.Context) -> None:
    """Denoise and compress folders of images with learned autoencoders."""
    _replace_closed_streams()
    _handle_signals(ctx)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    # Pillow warns at half the size that is an error here; see images.pixel_limit.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Returns one decorator that adds several options."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class _Model(_ParamType):
    """The name of a model, or a weights file."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from .registry import names

        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


def _need_sources(ctx: click.Context, param: click.Parameter, out: str) -> str:
    """Refuses a call with one name only, which the parser takes for OUT."""
    if not (ctx.params.get("sources") or ctx.params.get("compared")):
        message = f"after SOURCES, name where the results go, as in: {ctx.command_path} in/ out/"
        raise click.MissingParameter(message, ctx, param)
    return out


MODEL = _Model()
_SOURCES_AND_OUT = _with(
    click.argument("sources", type=FILE, nargs=-1, metavar="SOURCES..."),
    click.argument("out", type=FILE, callback=_need_sources),
)
_MODEL = [
    click.option(
        "-m", "--model", type=MODEL, help="A registered model (see `aeimg models`), a weights file or spandrel:FILE."
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps."),
    click.option("--dtype", default="auto", show_default=True, help="auto, fp32 or bf16."),
]
_SELECTION = [
    click.option("--include", multiple=True, help="Take only files whose name or path matches this pattern."),
    click.option(
        "--exclude", multiple=True, help="Pass over files and folders whose name or path matches this pattern."
    ),
    click.option("--follow-symlinks", is_flag=True, help="Follow symbolic links in folders."),
    click.option("--allow-empty", is_flag=True, help="Exit with 0, not with 1, where no files are found."),
]


_FOR_FILES = _with(
    *_MODEL,
    *_SELECTION,
    click.option(
        "--name", help="Name the outputs by this template of {stem}, {name} and {suffix}. [default: {stem}{suffix}]"
    ),
    click.option("-n", "--dry-run", is_flag=True, help="Write nothing, process nothing, and list what would be done."),
    click.option(
        "--estimate",
        is_flag=True,
        help="With --dry-run: process five of the images, to say how long the run takes and how much it writes.",
    ),
    click.option("--memory", help="Let the pictures in work take at most so much memory: 500M, 4G. [default: 2G]"),
    click.option(
        "-j", "--jobs", type=click.IntRange(1), help="Read and write with so many threads. [default: cores, at most 8]"
    ),
    click.option(
        "-b",
        "--batch-size",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Run at most so many images at once.",
    ),
    click.option(
        "--if-exists",
        type=click.Choice(["skip", "overwrite", "error"]),
        default="skip",
        show_default=True,
        help="Where outputs exist: skip those that are still right, overwrite all, or stop with an error.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Take only the I-th of N shares of the files; auto reads which from a Slurm array or a Kubernetes job.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Work in this process, or on a Ray cluster: that of RAY_ADDRESS, or one on this machine.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="With --engine ray: load the model so many times. [default: once for each GPU, or each CPU but one]",
    ),
    click.option(
        "--stall-timeout",
        type=click.FloatRange(0, min_open=True),
        help="With --engine ray: end with an error after so many seconds without progress. [default: 600]",
    ),
    click.option("--watch", is_flag=True, help="Go on with files that appear, until Ctrl-C."),
    click.option(
        "--on-error",
        type=click.Choice(["continue", "stop"]),
        default="continue",
        show_default=True,
        help="After an image that fails: continue with the others, or stop.",
    ),
    click.option("--json", "json_file", type=PATH, help="Write what became of each file to this file."),
    click.option(
        "--report",
        type=PATH,
        help="Write a page to look at into this file (.html): a table of what became of each file, and pictures before "
        "and after. (compress measures for it, as with --measure.)",
    ),
    click.option("--report-size", default="20M", show_default=True, help="Let that page take at most so many bytes."),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress bar and no summary, but name failures."),
    click.option("-v", "--verbose", is_flag=True, help="Print a line for each image: what was done to it, and why."),
)
"""The options of the tasks that write files."""

_COMPARE = _with(
    click.option(
        "--compare",
        "compared",
        multiple=True,
        is_eager=True,  # without it, OUT is needed
        metavar="OPTION=A,B,...",
        help="Run a few of the images with each of these values, as in strength=0.4,0.7,1 or model=A,B, and print the "
        "means; --report writes a page to see them side by side. There is no OUT, and no result is kept. Repeat it "
        "to combine options.",
    ),
    click.option(
        "--sample",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="With --compare: take so many images, evenly chosen.",
    ),
)
"""The options of the tasks whose settings can be compared."""

_IMAGE_QUALITY = click.option(
    "--image-quality",
    type=_Levels(),
    help="Set the quality of JPEG, WebP and AVIF files: 90, or jpg=90,avif=60. [default: 95]",
)


_PAGES = click.option(
    "--pages",
    type=_Pages(),
    help="Of files of several pages or frames (TIFF, GIF, animated PNG, WebP, AVIF), take all, the first, or the one "
    "of this number. [default: such files are refused]",
)


def _process_on(engine: str, out: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Returns `process` of an engine, "local" or "ray"; its task, a name that may be a plug-in's, says which options it
    has. Raises `UsageError` where the engine can't take the call."""
    if engine == "ray":
        if out == "-":
            raise UsageError("--engine ray is for files, and standard output is none")
        from . import distributed

        return distributed.process
    if options["workers"] is not None or options["stall_timeout"] is not None:
        raise UsageError("--workers and --stall-timeout are for --engine ray")
    from . import engine as local

    return local.process


def _run(
    sources: tuple[str, ...],
    out: str,
    task: str,
    *,
    quiet: bool,
    verbose: bool,
    json_file: Path | None,
    allow_empty: bool,
    **options: Any,
) -> None:
    """Runs `process` over files, and prints what it did."""
    compared, sample = options.pop("compared", ()), options.pop("sample", 0)
    _check_written(options["report"], json_file)
    _check_needed(report_size=("--report", options["report"]), sample=("--compare", compared))
    if compared:
        _compare((*sources, out), task, compared, sample=sample, quiet=quiet, json_file=json_file)
        return
    from .engine import Interrupted
    from .urls import redacted

    process = _process_on(options.pop("engine"), out, options)
    logging.getLogger("aeimg").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    options = {key: value for key, value in options.items() if value is not None}
    if out == "-":
        if options["dry_run"] or json_file is not None:
            raise UsageError("--dry-run and --json are for files, and standard output is none")
        if "report" in options:
            raise UsageError("--report is for files, and standard output is none")
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
    if "report" in options and not quiet:
        _say(_plain(f"report: {options['report']}"))
    if json_file is not None:
        named = {"sources": [redacted(source) for source in sources], "out": redacted(out)}
        _write_json(json_file, summary, task=task, **named, options=options)
    if interrupted:
        raise KeyboardInterrupt
    if summary.failed or not (summary.files or summary.elsewhere or allow_empty):
        sys.exit(1)


def _compare(
    sources: tuple[str, ...], task: str, compared: tuple[str, ...], *, sample: int, quiet: bool, json_file: Path | None
) -> None:
    """Runs `compare`, and prints the means of each setting."""
    from .comparison import compare
    from .paths import write_atomic
    from .urls import redacted

    if "-" in sources:
        raise UsageError("--compare is for files and folders, not for standard input")
    if elsewhere := [one for one in ("engine", "workers", "stall_timeout") if _was_given(one)]:
        raise UsageError(f"--compare runs in this process: leave out {' and '.join(map(_flag, elsewhere))}")
    if len(sources) > 1 and not _may_be_source(sources[-1]):
        raise UsageError(
            f"{sources[-1]}: no such file or folder; with --compare, every name is a source: leave out OUT"
        )
    if json_file is not None:
        _check_json(json_file, "aeimg")
    settings = _settings_of(task, compared)
    options = _given_beside(("compared", "sample", "sources", "out", "quiet", "verbose", "json_file", "allow_empty"))
    found = compare(list(sources), task, settings, sample=sample, progress=not quiet, **options)
    _print_failed(found.failed)
    if not quiet:
        _print(_plain_lines(_means_table(found.means)))
        _say(
            f"{task}: {len(found.settings)} settings on {found.pictures} of {found.found} images, {found.seconds:.1f} s"
        )
        if "report" in options:
            _say(_plain(f"report: {options['report']}"))
    if json_file is not None:
        about = {"aeimg": __version__, "task": task, "sources": [redacted(one) for one in sources],
                 "settings": settings, "means": found.means, "files": found.files}  # fmt: skip
        write_atomic(json_file, json.dumps(about, indent=1).encode())
    if found.failed or not found.pictures:
        sys.exit(1)


def _may_be_source(name: str) -> bool:
    """Whether a name is that of something, or none of a file or folder of this machine."""
    from .urls import is_url

    return os.path.lexists(name) or is_url(name) or name.startswith("@") or any(c in name for c in "*?[")


def _was_given(name: str) -> bool:
    """Whether the option of that name stands on the command line; where it comes from the environment, it is meant for
    many calls, also for those that it says nothing to."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _check_needed(**needed: tuple[str, Any]) -> None:
    """Raises `UsageError` where an option is given, and not the one that it is for, which has no value then."""
    for name, (other, value) in needed.items():
        if _was_given(name) and not value:
            raise UsageError(f"{_flag(name)} is for {other}")


def _check_written(*files: Path | None) -> None:
    """Raises `UsageError` where two of the files that are to be written are one."""
    for one, count in Counter(os.path.abspath(file) for file in files if file is not None).items():
        if count > 1:
            raise UsageError(f"{one}: two options name this file; give each a file of its own")


def _given_beside(others: tuple[str, ...]) -> dict[str, Any]:
    """Returns the options of the command that were given, without the `others`: defaults are left to the call."""
    ctx = click.get_current_context()
    left = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    return {
        name: value
        for name, value in ctx.params.items()
        if name not in others and ctx.get_parameter_source(name) not in left
    }


def _settings_of(task: str, texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Returns what --compare names: option -> values, in the option's type. Raises `UsageError`."""
    from .tasks.options import options_of

    kinds = typing.get_type_hints(options_of(task))
    settings: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values.strip():
            raise UsageError(f"--compare takes an option and its values, like quality=30,50,70, not {text!r}")
        if name in settings:
            raise UsageError(f"--compare names {name} twice; give all of its values at once")
        kind = kinds.get(name, str)
        settings[name] = [_value_of(kind, value.strip(), name) for value in values.split(",")]
    return settings


def _value_of(kind: Any, text: str, name: str) -> Any:
    """Returns the value of an option of that type, which may be one of several. Raises `UsageError`."""
    kinds = set(typing.get_args(kind) or (kind,))
    if bool in kinds:
        try:
            return click.BOOL.convert(text, None, None)
        except click.BadParameter as error:
            raise UsageError(f"{name}: {error.message}") from error
    for number in (int, float):
        if number in kinds:
            with contextlib.suppress(ValueError):
                return number(text)
    if str not in kinds:
        raise UsageError(f"{name}: {text!r} is not a {'number' if float in kinds else 'whole number'}")
    return text


def _means_table(means: list[dict[str, Any]]) -> str:
    """Returns the means of each setting as a table."""
    names = [
        name for name in dict.fromkeys(name for row in means for name in row) if name not in ("setting", "pictures")
    ]
    lines = [["setting", *(name.replace("_", " ") for name in names)]]
    for row in means:
        cells = (
            "" if name not in row else _size(row[name]) if name == "bytes_out" else f"{row[name]:.4g}" for name in names
        )
        lines.append([row["setting"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


_NOT_FOR_PIPES = ("include", "exclude", "follow_symlinks", "name", "dry_run", "estimate", "if_exists", "on_error",
                  "shard", "watch", "report_size", "workers", "stall_timeout")  # fmt: skip


def _pipe(sources: tuple[str, ...], task: str, **options: Any) -> None:
    """Writes the result of one picture or latent file, from standard input or from a file, to standard output."""
    from .engine import process as typed
    from .paths import located, read_bytes
    from .urls import redacted

    process: Callable[..., Any] = typed

    if len(sources) != 1:
        raise UsageError("standard output takes one picture: give one source, a file or -")
    if sys.stdout is None:
        raise UsageError("standard output is closed")
    try:
        data = sys.stdin.buffer.read() if sources[0] == "-" else read_bytes(located(sources[0]))
    except OSError as error:
        raise UsageError(f"{redacted(sources[0])}: can't be read ({error.strerror})") from error
    kept = {key: value for key, value in options.items() if key not in _NOT_FOR_PIPES}
    if task == "decompress":
        result = process(data, task, kind="bytes", **{"format": "png", **kept})
    else:
        result = process(data, task, **kept)
    _print(result)


def _check_json(file: Path, key: str) -> None:
    """Raises `UsageError` where the file is there already and holds no JSON object with that key."""
    from .paths import check_target, local

    def ours(path: Path) -> bool:
        try:
            about = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(about, dict) and key in about

    check_target(local(file), ours)


def _write_json(file: Path, summary: Summary, **about: Any) -> None:
    from .paths import write_atomic

    counts = ("done", "skipped", "planned", "expected", "pixels", "bytes_in", "bytes_out", "missed", "seconds",
              "passed_over")  # fmt: skip
    about = {"aeimg": __version__, **about, **{key: getattr(summary, key) for key in counts}}
    about |= {"failed": len(summary.failed), "files": list(summary.files)}
    write_atomic(file, json.dumps(about, indent=1, default=str).encode())  # options may be paths


def _plain(name: object) -> str:
    """Returns text that names files on one line, whatever is in it: what would command the terminal is spelled out."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _plain_lines(text: str) -> str:
    return "\n".join(map(_plain, text.splitlines()))


SHOWN = 5
"""How many files are named of those with one and the same note."""


def _print_summary(summary: Summary, task: str, *, quiet: bool, dry: bool) -> None:
    notes: dict[str, list[str]] = {}
    for record in summary.files:
        for warning in record.get("warnings", ()):
            notes.setdefault(warning, []).append(record["input"])
    for warning, names in notes.items():
        for name in names[:SHOWN]:
            _say(_plain(f"note: {name}: {warning}"))
        if len(names) > SHOWN:
            _say(f"note: and {len(names) - SHOWN} more: {warning}")
    _print_failed(summary.failed)
    if dry and not quiet:
        for record in summary.files:
            if record["status"] == "planned":
                _print(_plain(f"{record['input']} -> {record['output']}"))
        expected = summary.expected
        line = f"{task}, dry run: {summary.planned} to do, {summary.skipped} up to date"
        line += f"; {expected['megapixels']:.1f} megapixels"
        if "seconds" in expected:
            line += f", about {expected['seconds']:.0f} s, {_size(int(expected['bytes_out']))} to be written"
        _say(line + _nothing(summary, task) + _passed_over(summary.passed_over))
    elif not quiet:
        _say(_summary_line(summary, task))


def _print_failed(failed: Sequence[tuple[Place | str, str]], what: str = "failed") -> None:
    for path, reason in failed:
        _say(_plain(f"{what}: {path}: {reason.removeprefix(f'{path}: ')}"))


def _summary_line(summary: Summary, task: str) -> str:
    if summary.skipped and not (summary.done or summary.planned or summary.failed):
        line = f"{task}: nothing to do, as all {summary.skipped} results are there already"
        return f"{line} (--if-exists overwrite makes them again)" + _passed_over(summary.passed_over)
    line = f"{task}: {summary.done} done"
    if task not in ("compress", "decompress"):
        models = Counter(record["model"] for record in summary.files if record.get("model"))
        line += "".join(f", {count} by {model}" for model, count in sorted(models.items()))
        if untouched := sum(bool(record.get("untouched")) for record in summary.files):
            line += f", {untouched} left untouched"
    if summary.skipped:
        line += f", {summary.skipped} skipped (already there; --if-exists overwrite redoes them)"
    if summary.planned:
        line += f", {summary.planned} not begun"
    if summary.elsewhere:
        line += f", {summary.elsewhere} left to other shards"
    if summary.failed:
        line += f", {len(summary.failed)} failed"
    if summary.done:
        megapixels = summary.pixels / 1e6
        line += f"; {megapixels:.1f} megapixels in {summary.seconds:.1f} s ({megapixels / summary.seconds:.1f} MP/s)"
        line += f", {_size(summary.bytes_in)} -> {_size(summary.bytes_out)}"
    if summary.done and task == "compress":
        line += f" ({8 * summary.bytes_out / summary.pixels:.3f} bits per pixel)"
    for key, name, unit in (("psnr", "PSNR", " dB"), ("ssimulacra2", "SSIMULACRA2", "")):
        figures = [record[key] for record in summary.files if record.get(key) is not None]
        line += f", mean {name} {sum(figures) / len(figures):.2f}{unit}" if figures else ""
    if summary.missed:
        line += f"; {summary.missed} miss the target"
    return line + _nothing(summary, task) + _passed_over(summary.passed_over)


def _nothing(summary: Summary, task: str) -> str:
    if summary.files or summary.done or summary.skipped or summary.elsewhere:
        return ""
    return f"; no {'latent files' if task == 'decompress' else 'images'} found"


def _passed_over(counts: Mapping[str, int]) -> str:
    """Returns what the folders hold besides: `; passed over: 3 .psd, 2 symbolic links`."""
    from .paths import LINK

    links = {LINK: "symbolic links (see --follow-symlinks)"}
    kinds = [f"{count} {links.get(kind, kind)}" for kind, count in counts.items()]
    if len(kinds) > SHOWN:
        kinds[SHOWN:] = [f"{len(kinds) - SHOWN} other kinds of files"]
    return f"; passed over: {', '.join(kinds)}" if kinds else ""


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


# -- image-to-image tasks ------------------------------------------------------------------------------------


def _option(one: dataclasses.Field[Any], kind: Any) -> Callable[[Command], Command]:
    """Returns what makes a field of a dataclass of options, of the type `kind`, an option of a command."""
    about, flag = one.metadata, f"--{one.name.replace('_', '-')}"
    kinds = set(typing.get_args(kind) or (kind,)) - {type(None)}
    low, high = about.get("at_least"), about.get("at_most")
    text = about.get("help", "") + (f" [default: {shown}]" if (shown := about.get("shown")) else "")
    if kinds == {bool}:
        return click.option(f"{flag}/--no-{flag[2:]}", one.name, default=one.default, help=text)
    taken: Any = click.STRING
    if about.get("choices"):
        taken = click.Choice(list(about["choices"]))
    elif kinds == {int}:
        taken = click.IntRange(None if low is None else int(low), None if high is None else int(high))
    elif kinds <= {int, float}:
        taken = click.FloatRange(low, high)
    return click.option(
        flag, one.name, type=taken, default=one.default, show_default=one.default is not None, help=text
    )


def _image_command(task: ImageTask) -> click.Command:
    """Returns the command of an image-to-image task, made of what the task states."""
    from .tasks.options import EncodingOptions, options_of

    own = options_of(task.name)
    general = {one.name for one in dataclasses.fields(EncodingOptions)}
    kinds = typing.get_type_hints(own)

    @_SOURCES_AND_OUT
    @_with(*(_option(one, kinds[one.name]) for one in dataclasses.fields(own) if one.name not in general))
    @click.option(
        "--format", help="Write files of this format: png, jpg, webp, tiff, ... [default: that of the source]"
    )
    @_IMAGE_QUALITY
    @_PAGES
    @_COMPARE
    @_FOR_FILES
    def command(sources: tuple[str, ...], out: str, **options: Any) -> None:
        _run(sources, out, task.name, **options)

    command.__doc__ = (
        f"{task.summary}\n\nSOURCES are files, folders, globs or @list.txt; of one file, OUT may be the file to write; "
        "- is standard input or output."
    )
    return click.command(task.name, cls=_Comparing)(command)


for _task in IMAGE_TASKS.values():
    main.add_command(_image_command(_task))


def _broken(name: str, fault: AeimgError) -> click.Command:
    """Returns the command of a task that can't be had, which raises that error."""

    def fail(words: tuple[str, ...]) -> None:
        raise fault

    words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    settings = {"ignore_unknown_options": True}
    return click.Command(name, settings, fail, [words], help=f"(broken) {fault}")


class _Tasks(click.Group):
    """A command for each image-to-image task, those of plug-ins included."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from .tasks import declared

        return declared.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from .tasks import declared

        try:
            found = declared.find(cmd_name)
            return None if found is None else _image_command(found)
        except AeimgError as error:
            return _broken(cmd_name, error)  # the list of commands goes on with the others


@main.command("run", cls=_Tasks, subcommand_metavar="TASK SOURCES... OUT [OPTIONS]")
def run_task() -> None:
    """Run an image-to-image task, also one that a plug-in has brought.

    `aeimg run TASK --help` shows its options.
    """


@main.command(cls=_Comparing)
@_SOURCES_AND_OUT
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help="1 makes the smallest files, 100 the best. [default: 50]",
)
@click.option(
    "--target-bpp", type=float, help="Instead of --quality: make the best file of at most so many bits per pixel."
)
@click.option("--max-bytes", type=int, help="Instead of --quality: make the best file of at most so many bytes.")
@click.option(
    "--target-psnr", type=float, help="Instead of --quality: make the smallest file of at least this PSNR (dB)."
)
@click.option(
    "--target-ssimulacra2",
    type=float,
    help="Instead of --quality: make the smallest file of at least this SSIMULACRA2 score (90: no difference is seen; "
    "70: high quality; needs aeimg[metrics]).",
)
@click.option(
    "--effort",
    type=click.IntRange(1, 9),
    default=1,
    show_default=True,
    help="From 2 on, refine each latent: smaller files, slower encoding, the same decoding.",
)
@click.option(
    "--measure",
    is_flag=True,
    help="Decode each latent again, and print the mean PSNR and, where its package is installed, SSIMULACRA2 (--json "
    "lists them and SSIM for each file).",
)
@_PAGES
@_COMPARE
@_FOR_FILES
def compress(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Compress the images in SOURCES into latent files (.aei) in the folder OUT.

    SOURCES are files, folders, globs or @list.txt; of one file, OUT may be the file to write; - is standard input or
    output.
    """
    _run(sources, out, "compress", **options)


@main.command()
@_SOURCES_AND_OUT
@click.option(
    "--format",
    help="Write files of this format: png, jpg, webp, tiff, ...; keep for that of what was compressed. [default: png]",
)
@click.option(
    "--crop",
    type=_Crop(),
    help="Decode only this part of each picture, in pixels: 1024,512,400,300 is 400 wide and 300 high and begins at "
    "column 1024 of row 512. Takes the time and memory of the part.",
)
@click.option("--scale", type=click.Choice(["1/2", "1/4", "1/8"]), help="Make the pictures smaller: thumbnails.")
@_IMAGE_QUALITY
@click.option(
    "--join",
    is_flag=True,
    help="Put the pages that compress --pages all has made of one file into one file again: a TIFF, or an animation.",
)
@_FOR_FILES
def decompress(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Turn the latent files in SOURCES back into images in the folder OUT.

    SOURCES are files, folders, globs or @list.txt; of one file, OUT may be the file to write; - is standard input or
    output.
    """
    _run(sources, out, "decompress", **options)


@main.command()
@click.argument("sources", type=FILE, nargs=-1, required=True, metavar="SOURCES...")
@click.option("--deep", is_flag=True, help="Decode the symbols too, with the weights, and compare their checksum.")
@_MODEL[0]
@_with(*_SELECTION)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Read with so many threads. [default: cores, at most 8]")
@click.option("--json", "json_file", type=PATH, help="Write what was found of each file to this file.")
@click.option("-q", "--quiet", is_flag=True, help="Print no summary, but name bad files.")
def verify(sources: tuple[str, ...], json_file: Path | None, allow_empty: bool, quiet: bool, **options: Any) -> None:
    """Check the latent files in SOURCES without making pictures of them; exit with 1 and name those that are bad.

    Without --deep, the checksum of each file and its sections are checked, which needs no weights.
    """
    from .paths import local, write_atomic
    from .verification import verify as check

    if json_file is not None:
        _check_json(json_file, "aeimg")
    found = check(sources, **options)
    _print_failed(found.bad, "bad")
    if not quiet:
        line = f"verify: {found.whole} whole, {len(found.bad)} bad; {_size(found.bytes)} in {found.seconds:.1f} s"
        _say(line + ("" if found.files else "; no latent files found") + _passed_over(found.passed_over))
    if json_file is not None:
        about = {"aeimg": __version__, "deep": found.deep, "whole": found.whole, "bad": len(found.bad),
                 "bytes": found.bytes, "seconds": found.seconds, "files": found.files}  # fmt: skip
        write_atomic(local(json_file), json.dumps(about, indent=1).encode())
    if found.bad or not (found.files or allow_empty):
        sys.exit(1)


@main.command("merge-reports")
@click.argument("out", type=FILE)
@click.option("--json", "json_file", type=PATH, help="Write the sum to this file.")
@click.option("--report", type=PATH, help="Write one page of all shards to this file (.html).")
@click.option("-q", "--quiet", is_flag=True, help="Print no summary, but name failures.")
def merge_reports(out: str, json_file: Path | None, report: Path | None, quiet: bool) -> None:
    """Sum up what the shards of a run have done whose results lie in OUT.

    Exits with 1 where a file failed or a shard has not ended. See --shard of denoise, compress and decompress.
    """
    from .distributed import merge_reports as merge
    from .urls import redacted

    if json_file is not None:
        _check_json(json_file, "aeimg")
    merged = merge(out, report=report)
    _print_summary(merged.summary, merged.task, quiet=quiet, dry=False)
    for index, what in merged.unfinished:
        _say(f"shard {index} of {merged.count} {what}")
    if json_file is not None:
        shards = {"count": merged.count, "unfinished": merged.unfinished}
        _write_json(json_file, merged.summary, task=merged.task, out=redacted(out), shards=shards)
    sys.exit(merged.exit_code)


_FOLDERS = _with(
    _SOURCES_AND_OUT,
    *_MODEL,
    *_SELECTION,
    click.option("-q", "--quiet", is_flag=True, help="Show no progress bar and no summary, but name failures."),
)


def _finish_explored(command: str, explored: Explored, more: str, *, quiet: bool, allow_empty: bool) -> None:
    """Prints what became of the images; exits with 1 where one has failed."""
    _print_failed(explored.failed)
    if not quiet:
        line = f"{command}: {len(explored.images)} images{more if explored.images else ''}"
        line += f", {len(explored.failed)} failed" if explored.failed else ""
        line += "" if explored.images or explored.failed else "; no images found"
        _say(line + _passed_over(explored.passed_over))
    if explored.failed or not (explored.images or allow_empty):
        sys.exit(1)


def _print_drawn(command: str, paths: list[Path]) -> None:
    last = f" to {paths[-1].name}" if len(paths) > 1 else ""
    _say(_plain(f"{command}: {paths[0]}{last}"))


@main.command()
@_FOLDERS
def features(sources: tuple[str, ...], out: str, quiet: bool, allow_empty: bool, **options: Any) -> None:
    """Write one vector for each image in SOURCES to the file OUT (.safetensors, .npz or .csv), with its name.

    What the vector holds depends on the model: of aeimg-codec, mean and standard deviation of each code over the
    picture; of the small autoencoders, the mean of the codes of its blocks.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    explored = explore.features(sources, out, progress=not quiet, **options)
    _finish_explored(
        "features",
        explored,
        f", {explored.values} values each by {explored.model}",
        quiet=quiet,
        allow_empty=allow_empty,
    )


@main.command()
@_FOLDERS
@click.option(
    "--percentile",
    type=click.FloatRange(0, 100),
    default=99.0,
    show_default=True,
    help="An image counts as strange where its error is above this percentile of those of the training images.",
)
@click.option("--heatmaps", type=PATH, help="Write pictures that show where the errors lie into this folder.")
def score(sources: tuple[str, ...], out: str, quiet: bool, allow_empty: bool, **options: Any) -> None:
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
    _finish_explored("score", explored, more, quiet=quiet, allow_empty=allow_empty)


@main.command("plot-latents")
@_FOLDERS
def plot_latents(sources: tuple[str, ...], out: str, quiet: bool, allow_empty: bool, **options: Any) -> None:
    """Draw the images in SOURCES as points of a plane into the picture OUT, coloured by sub-folder.

    Codes of two values are the plane; for longer vectors (see `aeimg features`) it is that of their two first
    principal components.

    A file that is there already is written over only where an earlier run of this command has made it.
    """
    from . import explore

    explored = explore.plot_latents(sources, out, progress=not quiet, **options)
    _finish_explored(
        "plot-latents",
        explored,
        f", {explored.values} values each by {explored.model}",
        quiet=quiet,
        allow_empty=allow_empty,
    )


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
@click.option("--sheet", help="Draw all pictures into one of this name in OUT, like digits.png, side by side.")
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
@click.argument("sources", type=FILE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option(
    "--sort",
    type=click.Choice(["file", "bytes", "bpp", "quality", "model", "mode"]),
    help="Sort the table of a folder, the highest figures first. [default: file]",
)
def info(sources: tuple[str, ...], as_json: bool, sort: str | None) -> None:
    """Print what latent files (.aei), weights files (.safetensors) and models state of themselves.

    SOURCES are files, folders of files, names of models, or - for a latent file on standard input. A folder gives a
    table with a line for each file.
    """
    from .report import describe, tabulate

    failed = False
    for source in sources:
        rows = []
        try:
            for about in describe(source):
                if isinstance(about, AeimgError):
                    _say(_plain(f"failed: {about}"))
                    failed = True
                else:
                    rows.append(about)
        except AeimgError as error:
            _say(_plain(f"failed: {error}"))
            failed = True
        if rows and not as_json and (os.path.isdir(source) or sort is not None):
            _print("\n".join(map(_plain, tabulate(rows, sort or "file").split("\n"))))
            continue
        for about in rows:
            _print(json.dumps(about) if as_json else _table(about))
    if failed:
        sys.exit(1)


def _table(about: dict[str, Any]) -> str:
    width = max(map(len, about))
    return "\n".join(_plain(f"{key:{width}}  {value}") for key, value in about.items()) + "\n"


@main.command()
@click.option("--task", help="List only the models for this task: denoise, compress, upscale, ...")
@click.option("--long", is_flag=True, help="Print each model's card as well: data, licence, held-out figures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per model and line.")
def models(task: str | None, long: bool, as_json: bool) -> None:
    """List the registered models, one a line: task, size, cost in thousands of multiply-accumulates a pixel, when each
    is the default, and where it comes from."""
    from .report import describe_models, table_of_models

    rows, broken = describe_models(task)
    if as_json:
        for row in rows:
            _print(json.dumps(row, default=str))  # the card of a plug-in may hold anything
    elif not long:
        _print(_plain_lines(table_of_models(rows)))
    else:
        for row in rows:
            _print(_plain(row.pop("name")))
            for key, value in row.items():
                _print(_plain(f"    {key:12}  {value}"))
    for error in broken:
        _say(_plain(f"broken: {error}"))


TRAINED = (
    "denoise", "compress", "linear", "vanilla", "multilayer", "stacked", "deep2d", "conv", "sparse", "denoising",
    "variational", "upscale", "colorize",
)  # fmt: skip
"""The keys of `training.run.OBJECTIVES`, whose import would wait for torch."""


@main.command()
@click.argument("task", type=click.Choice(TRAINED), metavar="TASK")
@click.argument("data", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help="Write the weights to this file (.safetensors).")
@click.option(
    "--from",
    "start",
    type=MODEL,
    help="Start from these weights, instead of from random ones: a model or a weights file of the same kind.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Train for so many minutes, those before --resume included. [default: 60, but for "
    "the textbooks' autoencoders]",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Train for at most so many steps. [default: 1,200 to 24,000 for the textbooks' autoencoders]",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Stop after so many evaluations in a row (a run has 40) without a better one, and keep the best weights. "
    "[default: train to the end]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Set the highest learning rate. [default: that of the task; with --from, a third of it]",
)
@click.option("--resume", type=PATH, help="Continue from this checkpoint.")
@click.option("--checkpoint", type=PATH, help="Write the checkpoint to this file. [default: beside the weights]")
@click.option("--curve", type=PATH, help="Draw the loss curve into this picture. [default: beside the weights, .png]")
@click.option(
    "--if-exists",
    type=click.Choice(["error", "overwrite"]),
    default="error",
    show_default=True,
    help="Refuse to replace the weights and the checkpoint of another run, or replace them. Other files are never "
    "replaced.",
)
@click.option("--labels", help="Train only on the images with these labels, like 1,5,6 (idx files).")
@click.option(
    "--blind", is_flag=True, help="Train a denoiser that gets no noise level as input, for the noise of cameras."
)
@click.option(
    "--jpeg", is_flag=True, help="Train a blind denoiser only for white noise that was compressed as JPEG afterwards."
)
@click.option(
    "--pairs",
    type=PATH,
    help="Train a blind denoiser on real photographs, too: a folder with noisy/ and clean/.",
)
@click.option("--name", help="Give the model this name. [default: the file's name]")
@click.option("--version", type=click.IntRange(1), help="Give the weights this version number. [default: 1]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32 or bf16.")
@click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds draw equal batches.")
def train(
    task: str, data: Path, out: Path, learning_rate: float | None, labels: str | None, jpeg: bool, **options: Any
) -> None:
    """Train a model of TASK on the images in the folder DATA.

    denoise and compress train networks like those that ship, upscale one that makes pictures twice as wide and high,
    and colorize one that gives grey pictures colours. linear, vanilla, multilayer, stacked, deep2d, conv,
    sparse, denoising and variational train the small autoencoders of the textbooks; they learn from idx files (MNIST)
    or from images.

    A denoiser learns from clean images, or from pairs of files with equal names in DATA/noisy and DATA/clean.
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
    run(task, data, out, log=_log, recipe=recipe, progress=True, **options)


class _Measured(click.Choice[str]):
    """What can be measured: with the image-to-image tasks of plug-ins, whose names are known only then."""

    def __init__(self) -> None:
        super().__init__(
            ["denoise", "compress", "checks", "engine", "scale", "anomaly", "textbooks", "upscale", "colorize"]
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from .registry import plugged_tasks

        return value if value in plugged_tasks() else super().convert(value, param, ctx)


_WITHOUT_MODEL = ("checks", "engine", "scale", "anomaly", "textbooks")
"""What `bench` measures with models that are not chosen by --model."""


def _measured(
    what: str, data: Path, effort: int | None, simulated: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Returns the figures of a bench run."""
    from . import bench as benches

    if simulated is not None:
        return benches.simulate(simulated, data)
    few = {key: options[key] for key in ("device", "progress")}
    if what == "denoise":
        return benches.bench_denoise(data, **options)
    if what in ("checks", "engine", "scale"):
        return getattr(benches, f"bench_{what}")(data, **{key: options[key] for key in options if key != "model"})
    if what == "anomaly":
        return benches.bench_anomaly(data, **few)
    if what == "textbooks":
        return benches.bench_textbooks(data, **few)
    if what == "compress":
        return benches.bench_compress(data, **options, effort=effort or 1)
    return benches.bench_images(what, data, **options)


@main.command()
@click.argument("what", type=_Measured())
@click.argument("data", type=PATH)
@click.option("-m", "--model", type=MODEL, help="A registered model or a weights file.")
@click.option("--json", "json_file", type=PATH, help="Also write the figures to this file.")
@click.option(
    "--card", is_flag=True, help="Also write the figures into the card of the weights file that --model names."
)
@click.option(
    "--plot",
    "plot_file",
    type=PATH,
    help="Also draw the figures of compress (rate against quality) or denoise (PSNR against speed) into this file "
    "(.svg or .png).",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.")
@click.option("--report", "page_file", type=PATH, help="Also write the figures and the plot to this page (.html).")
@click.option("--limit", type=click.IntRange(1), help="Measure only the first so many images.")
@click.option("--effort", type=click.IntRange(1, 9), help="Encode with this effort (compress only).")
@click.option("--also", type=PATH, multiple=True, help="Measure on the images in this folder, too (checks only).")
@click.option("--simulate", type=click.IntRange(1), help="Instead, make so many empty files in DATA (scale only).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--dtype", default="auto", show_default=True, help="auto, fp32 or bf16.")
def bench(
    what: str,
    data: Path,
    json_file: Path | None,
    card: bool,
    plot_file: Path | None,
    page_file: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure a model, and others beside it, on the images in DATA.

    denoise measures a denoiser, compress a codec beside JPEG, WebP and AVIF, and engine how much time is lost around
    the model. checks counts how often the notes of denoise are false alarms, and how often they miss a fault, on clean
    images and on real pairs. scale measures Ray clusters of one and two workers beside the plain engine; with
    --simulate, what each of very many files costs around its picture. anomaly trains a small autoencoder on each of the
    digits in DATA (idx files) and measures how well it distinguishes the others from it. upscale and colorize, and
    tasks of plug-ins that state how, are measured on inputs that are made of the images, beside what needs no network.
    textbooks trains and measures the textbooks' autoencoders that do not ship.

    `aeimg plot` draws the figures of --json later.
    """
    from . import bench as benches
    from .pages import check_page
    from .paths import write_atomic

    _check_written(json_file, plot_file, page_file)
    if json_file is not None:
        _check_json(json_file, "task")
    if plot_file is not None:
        if what not in ("compress", "denoise"):
            raise UsageError(f"there is no plot of {what}; compress and denoise have one")
        benches.check_plot(plot_file)
    if page_file is not None:
        check_page(page_file)
    options["progress"] = not quiet
    weights = Path(options["model"] or "")
    if card and weights.suffix != ".safetensors":
        raise UsageError("--card needs the weights file, by --model FILE.safetensors")
    effort, simulated = options.pop("effort"), options.pop("simulate")
    if simulated is not None and what != "scale":
        raise UsageError("--simulate is an option of scale")
    if effort is not None and what != "compress":
        raise UsageError("--effort is an option of compress")
    if what in _WITHOUT_MODEL and options["model"] is not None:
        raise UsageError(f"--model is not an option of {what}")
    if what != "checks" and options.pop("also"):
        raise UsageError("--also is an option of checks")
    figures = _measured(what, data, effort, simulated, options)
    _print(benches.table(figures))
    if json_file is not None:
        write_atomic(json_file, json.dumps(figures, indent=1).encode())
    if card:
        benches.write_card(weights, data, figures)
    if plot_file is not None:
        benches.write_plot(figures, plot_file)
    if page_file is not None:
        benches.write_page(figures, page_file, benches.table(figures))


@main.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
def plot(source: Path, out: Path) -> None:
    """Draw figures into the picture OUT (.svg or .png): those that `aeimg bench compress --json` or `aeimg bench
    denoise --json` wrote to SOURCE, or the loss curve of the weights file SOURCE.

    The same figures give the same SVG, byte for byte. A file that is there already is written over only where it is
    such a picture.
    """
    from . import bench as benches

    benches.check_plot(out)
    benches.write_plot(benches.read_figures(source), out)
    _say(_plain(f"plot: {out}"))


@main.command()
@click.argument("out", type=PATH)
def demo(out: Path) -> None:
    """Denoise, compress and decompress real photographs into the folder OUT, and print how well it went.

    The photographs are those that come with scikit-image (`pip install 'aeimg[demo]'`).
    """
    from .report import run_demo

    _print(run_demo(out, progress=True))


@main.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(ctx: click.Context, command: str | None) -> None:
    """Print the help of COMMAND, or the list of all commands."""
    assert ctx.parent is not None  # it is the context of `main`
    if command is None:
        _print(ctx.parent.get_help())
        return
    found = main.get_command(ctx.parent, command)
    if found is None:
        raise click.UsageError(f"no such command {command!r}; `aeimg help` lists them", ctx)
    _print(found.get_help(click.Context(found, ctx.parent, command)))


if __name__ == "__main__":
    main()
