"""Latent files are verified without a picture being made."""

from __future__ import annotations

import json
import struct
import zlib

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

import aeimg
from aeimg import container
from aeimg.cli import main


@pytest.fixture(scope="module")
def latent(small) -> bytes:
    return aeimg.process(small, "compress", quality=30)


@pytest.fixture
def folder(tmp_path, latent):
    """A folder with a latent file that is whole, a damaged one, a cut one, and one with other symbols."""
    damaged = bytearray(latent)
    damaged[len(latent) // 2] ^= 1
    found = container.sections(latent)
    symbols = bytearray(latent)
    at = latent.index(found["P"]) + len(found["P"]) - 12
    symbols[at] ^= 0x55
    symbols[-4:] = struct.pack("<I", zlib.crc32(bytes(symbols[:-4])))
    (tmp_path / "x").mkdir()
    for name, data in {"good": latent, "x/damaged": damaged, "cut": latent[:-9], "x/symbols": symbols}.items():
        (tmp_path / f"{name}.aei").write_bytes(data)
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def bad(found) -> set[str]:
    return {path.stem for path, _ in found.bad}


def test_bytes_are_compared_with_the_checksum_of_the_file(folder, latent):
    found = aeimg.verify(folder)
    assert bad(found) == {"damaged", "cut"}
    assert (found.whole, found.bytes, found.passed_over) == (2, 2 * len(latent), {".txt": 1})
    assert all(reason.startswith(str(path)) for path, reason in found.bad)


def test_deep_decodes_the_symbols_too(folder):
    found = aeimg.verify(folder, deep=True)
    assert bad(found) == {"damaged", "cut", "symbols"}
    assert found.whole == 1


def test_no_picture_is_made(folder, monkeypatch):
    from aeimg.hyperprior_codec import HyperpriorCodec

    monkeypatch.setattr(HyperpriorCodec, "decode", lambda *_: pytest.fail("a picture was made"))
    before = sorted(folder.rglob("*"))
    aeimg.verify(folder, deep=True)
    assert sorted(folder.rglob("*")) == before


def test_the_command_names_the_bad_ones_and_exits_with_1(folder, tmp_path):
    done = CliRunner().invoke(main, ["verify", str(folder), "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 1
    assert f"bad: {folder / 'x' / 'damaged.aei'}: damaged or cut short" in done.output
    assert "verify: 2 whole, 2 bad" in done.output
    about = json.loads((tmp_path / "found.json").read_bytes())
    assert [record["status"] for record in about["files"]].count("bad") == about["bad"] == 2
    assert CliRunner().invoke(main, ["verify", str(folder / "good.aei")]).exit_code == 0
    (folder / "empty").mkdir()
    assert CliRunner().invoke(main, ["verify", str(folder / "empty")]).exit_code == 1
    assert CliRunner().invoke(main, ["verify", str(folder / "empty"), "--allow-empty"]).exit_code == 0


def test_urls_are_verified(latent):
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe({"/l/a.aei": latent, "/l/b.aei": latent[:50]})
    found = aeimg.verify("memory://l")
    assert bad(found) == {"b"} and found.whole == 1


def test_unknown_options_are_refused():
    with pytest.raises(aeimg.UsageError, match="'quality' is unknown"):
        aeimg.verify("x", quality=3)


def test_an_image_is_no_latent_file(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8), np.uint8)))
    assert len(aeimg.verify(tmp_path / "a.png").bad) == 1
