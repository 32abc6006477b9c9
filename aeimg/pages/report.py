"""The report of a run over files: from records and an `Album` to one HTML file that needs nothing besides.

The records are those of `engine.Summary.files`, or what `--json` wrote of them. Everything that comes from outside, the
names of files above all, goes into the page as text, never as markup: the template escapes, the data are JSON in which
no `<` is left, and the script of the page makes text nodes of them. A content security policy names the digests of the
two scripts, so that no other one can run, and lets the page ask for nothing but pictures on the same disk or server.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..errors import OutputError, UsageError
from ..paths import check_target, write_atomic
from .album import GAIN, MAP_TOP, Album, Gallery, Rank

Record = Mapping[str, Any]

MARK = b'<meta name="generator" content="aeimg'
"""What a page that aeimg has made holds among its first bytes. Only such a file is written over."""

COLUMNS: tuple[dict[str, Any], ...] = (
    {"key": "setting", "title": "Setting", "kind": "text"},
    {"key": "bytes_in", "title": "Size before", "kind": "bytes"},
    {"key": "bytes_out", "title": "Size after", "kind": "bytes"},
    {"key": "bpp", "title": "Bits per pixel", "short": "bpp", "kind": "number", "digits": 3},
    {"key": "quality", "title": "Quality", "kind": "number", "digits": 0},
    {"key": "psnr", "title": "PSNR, dB", "short": "PSNR", "kind": "number", "digits": 2, "none": "no loss"},
    {"key": "ssim", "title": "SSIM", "kind": "number", "digits": 4},
    {"key": "ssimulacra2", "title": "SSIMULACRA2", "kind": "number", "digits": 1},
    {"key": "noise_before", "title": "Noise before", "kind": "number", "digits": 1},
    {"key": "noise_after", "title": "Noise after", "kind": "number", "digits": 1},
    {"key": "model", "title": "Model", "kind": "text"},
    {"key": "why", "title": "Why this model", "kind": "text"},
    {"key": "seconds", "title": "Seconds", "kind": "number", "digits": 2},
)
"""The columns of the table behind those for the picture and its state; only those are shown that a record fills."""

FIGURES = {
    "bpp": "bits per pixel", "psnr": "PSNR, dB", "ssimulacra2": "SSIMULACRA2", "noise_before": "noise before",
    "noise_after": "noise after",
}  # fmt: skip
"""Figures of which the summary of a page gives the mean."""


def check_page(target: Path, out: Path | None = None) -> None:
    """Raises `UsageError` where the name of `target` does not end in .html, where it is there already and is no page
    that aeimg has made, or lies in a folder that is not there and not in `out`, which the run makes; `OutputError`
    where it can't be written."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"report: {str(target)!r} does not end in .html")
    folder = Path(os.path.abspath(target.parent))
    if not folder.is_dir() and (out is None or not folder.is_relative_to(os.path.abspath(out))):
        raise UsageError(f"{target}: there is no folder {target.parent} for the report; make it, or name another one")

    def ours(path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                return MARK in file.read(1024)
        except OSError:
            return False

    check_target(target, ours)


def rank(record: Record) -> Rank:
    """Returns how bad a record is: failures first, then results with warnings, then by the figure that tells most."""
    status, warnings = record.get("status", "done"), len(record.get("warnings", ()))
    level = 4 if status == "failed" else 3 if warnings or "target_missed" in record else 2 if status == "done" else 1
    for name, sign in (("ssimulacra2", -1), ("psnr", -1), ("structure", 1), ("noise_after", 1), ("bpp", 1)):
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return (level, warnings, sign * value)
    return (level, warnings, -math.inf)


def write_report(target: Path, records: Sequence[Record], album: Album | None, about: Mapping[str, Any]) -> None:
    """Writes the page of `records` to the file `target`; see `report_page`. Raises `OutputError`."""
    write_atomic(target, report_page(records, album, about, folder=target.parent))


def report_page(
    records: Sequence[Record], album: Album | None = None, about: Mapping[str, Any] | None = None, *, folder: Path
) -> bytes:
    """Returns the page of `records` as HTML.

    `album` holds the small pictures, by the `output` of a record, or by its `picture` where several records are of one
    picture. `about` may state `task`, `version`, `seconds` and `note`. Links lead from `folder`, where the page will
    lie, to the pictures. Nothing else is needed: records that another process has written do as well.
    """
    about = {"task": "", "version": __version__, "seconds": None, "note": "", **(about or {})}
    records = _in_order(records)
    columns = [column for column in COLUMNS if any(column["key"] in record for record in records)]
    names = {name: number for number, name in enumerate(album.galleries if album else {})}
    common = _common([str(record.get("input", "")) for record in records])
    data = {
        "columns": columns,
        "rows": [_row(record, columns, names, common, folder) for record in records],
        "galleries": [_gallery(one) for one in (album.galleries.values() if album else ())],
        "gain": GAIN,
        "top": MAP_TOP,
        "before": Album.BEFORE,
    }
    about |= {"common": common, "compares": any("setting" in record for record in records)}
    return render("report.html.j2", "report.js", data, about=about, summary=_summary(records, about),
                  settings=_settings(records))  # fmt: skip


def _in_order(records: Sequence[Record]) -> list[Record]:
    """Returns the records, the worst first. Those of one picture, at several settings, stay together."""
    worst: dict[Any, Rank] = {}
    for record in records:
        if "setting" in record:
            worst[record["picture"]] = max(rank(record), worst.get(record["picture"], rank(record)))
    if not worst:
        return sorted(records, key=rank, reverse=True)
    places = {picture: place for place, picture in enumerate(sorted(worst, key=lambda one: worst[one], reverse=True))}
    return sorted(records, key=lambda record: (places[record["picture"]], record.get("number", 0)))


def render(template: str, script: str | None, data: Mapping[str, Any], **words: Any) -> bytes:
    """Returns a template of this package filled in, with its style and `data` inside the page; and with its script and
    the slider's, where it has one.

    Raises `OutputError` where Jinja2 is missing, which torch brings along.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise OutputError("pages are made with Jinja2, which is not installed: pip install jinja2") from None
    environment = Environment(
        loader=FunctionLoader(_shipped),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    slider = _shipped("img-comparison-slider.js").partition("//# sourceMappingURL")[0]
    scripts = [] if script is None else [text.strip() for text in (slider, _shipped(script))]
    page = environment.get_template(template).render(
        style=Markup(_shipped("page.css") + _shipped("img-comparison-slider.css")),
        scripts=[Markup(text) for text in scripts],
        digests=[_digest(text) for text in scripts],
        licence=_shipped("img-comparison-slider.LICENSE").strip() if scripts else "",
        data=Markup(_json(data)),
        plain=plain,
        **words,
    )
    return page.encode("utf-8", "backslashreplace")


def _shipped(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text("utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(data: object) -> str:
    """Returns JSON that may stand in a script element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(name: object) -> str:
    """Returns a name as a reader sees it on one line: what is no printable character is spelled out."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- rows ----------------------------------------------------------------------------------------------------


def _row(
    record: Record, columns: Iterable[Mapping[str, Any]], names: Mapping[str, int], common: str, folder: Path
) -> list[Any]:
    """Returns a record as the script of the page takes it: name, state, notes, links, gallery, label, figures."""
    source, output = str(record.get("input", "")), record.get("output")
    notes = [str(note) for note in record.get("warnings", ())]
    if "error" in record:
        notes.insert(0, str(record["error"]).removeprefix(f"{source}: "))
    gallery = names.get(str(record.get("picture", output)), -1)
    links = [link(name, folder) if name else None for name in (source, output)]
    return [
        plain(source.removeprefix(common)),
        record.get("status", "done"),
        [plain(note) for note in notes],
        links,
        gallery,
        record.get("setting", "after"),
        [_value(record.get(column["key"], "")) for column in columns],
    ]


def _value(value: Any) -> Any:
    """Returns a figure as JSON can hold it; an empty string stands for what a record does not state."""
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else ""
    return value if value is None or isinstance(value, int) else plain(value)


def link(name: str, folder: Path) -> str | None:
    """Returns a relative URL from a page in `folder` to the file `name`; None where there is none."""
    if "://" in name:
        return None
    try:
        path = os.path.relpath(name, folder)
    except ValueError:  # on Windows, it is on another drive
        return None
    return "./" + quote(os.fsencode(path.replace(os.sep, "/")))


def _common(names: Sequence[str]) -> str:
    """Returns the folder in which all files lie, with its last separator; nothing where there is no such folder."""
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    except ValueError:
        return ""
    folder = folder if not folder or folder.endswith(os.sep) else folder + os.sep
    return folder if all(name.startswith(folder) for name in names) else ""


def _gallery(gallery: Gallery) -> dict[str, Any]:
    def encoded(some: Mapping[str, bytes]) -> dict[str, str]:
        return {label: base64.b64encode(data).decode() for label, data in some.items()}

    window = gallery.window
    return {
        "size": [gallery.width, gallery.height],
        "thumbnail": base64.b64encode(gallery.thumbnail).decode(),
        "window": None if window is None else [window.x, window.y, window.width, window.height],
        "crops": encoded(gallery.crops),
        "residuals": encoded(gallery.residuals),
        "maps": encoded(gallery.maps),
    }


# -- the summary ---------------------------------------------------------------------------------------------


def _summary(records: Sequence[Record], about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what stands above the table: figures and what they are of."""
    states = Counter(record.get("status", "done") for record in records)
    if any("setting" in record for record in records):
        pictures = len({record.get("picture") for record in records})
        settings = len({record["setting"] for record in records if "setting" in record})
        shown = [(f"{pictures:,}", "pictures"), (f"{settings:,}", "settings")]
        return [*shown, *([(f"{states['failed']:,}", "failed")] if states["failed"] else [])]
    shown = [(f"{states[state]:,}", word) for state, word in
             (("done", "done"), ("failed", "failed"), ("skipped", "skipped"), ("planned", "not begun"))
             if states[state] or state == "done"]  # fmt: skip
    if noted := sum(1 for record in records if record.get("warnings") and record.get("status") != "failed"):
        shown.append((f"{noted:,}", "with a warning"))
    done = [record for record in records if record.get("status", "done") == "done"]
    before, after = (sum(record.get(key, 0) for record in done) for key in ("bytes_in", "bytes_out"))
    if before and after:
        change = 100 * (after / before - 1)
        shown.append((f"{readable(before)} → {readable(after)}", f"{change:+.0f}% in size"))
    shown += [(f"{mean:.3g}" if name == "bpp" else f"{mean:.2f}", f"mean {title}")
              for name, title in FIGURES.items() if (mean := _mean(done, name)) is not None]  # fmt: skip
    if seconds := about.get("seconds"):
        pixels = sum(record.get("width", 0) * record.get("height", 0) for record in done)
        shown.append((_duration(seconds), f"{pixels / 1e6 / seconds:.2g} megapixels a second" if pixels else "taken"))
    return shown


def means_by_setting(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Returns the figures of each setting that is compared, in the order in which they were given.

    A row has `setting`, `pictures`, the sum `bytes_out`, and the means of `FIGURES` and of `seconds`. Only pictures
    count that have the figure at every setting; a figure that no picture has at all of them is left out.
    """
    order = sorted({(record.get("number", 0), record["setting"]) for record in records if "setting" in record})
    values: dict[str, dict[Any, dict[str, float]]] = {}
    for record in records:
        for name in ("bytes_out", *FIGURES, "seconds"):
            if "setting" in record and isinstance(record.get(name), int | float):
                values.setdefault(name, {}).setdefault(record["picture"], {})[record["setting"]] = record[name]
    rows = []
    for _, setting in order:
        row: dict[str, Any] = {"setting": setting}
        for name, pictures in values.items():
            own = [figures[setting] for figures in pictures.values() if len(figures) == len(order)]
            if own and name == "bytes_out":
                row |= {"pictures": len(own), "bytes_out": sum(own)}
            elif own:
                row[name] = sum(own) / len(own)
        rows.append(row)
    return rows


def _settings(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Returns the table of means by setting: titles, and rows of cells, the name of the setting first."""
    means = means_by_setting(records)
    columns = [("bytes_out", "size in all"), *FIGURES.items(), ("seconds", "seconds")]
    columns = [(name, title) for name, title in columns if any(name in row for row in means)]

    def cell(row: Mapping[str, Any], name: str) -> str:
        return "" if name not in row else readable(row[name]) if name == "bytes_out" else f"{row[name]:.4g}"

    rows = [[row["setting"], *(cell(row, name) for name, _ in columns)] for row in means]
    return [title for _, title in columns], rows


def _mean(records: Sequence[Record], name: str) -> float | None:
    values = [record[name] for record in records if isinstance(record.get(name), int | float)]
    return sum(values) / len(values) if values else None


def readable(size: float) -> str:
    """Returns a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
