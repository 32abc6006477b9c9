"""Files at URLs are found, read, written and remembered as local ones are."""

from __future__ import annotations

import io
import json
import logging
import secrets
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import aeimg
from aeimg import OutputError, UnreadableImage, UsageError, manifest, paths, urls
from aeimg.cli import main

GREY = np.full((16, 24), 99, np.uint8)


@pytest.fixture
def files():
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


@pytest.fixture
def folder(files, png) -> str:
    """A folder of three pictures, a hidden one, a text and one that is no picture."""
    files.pipe({"/in/a.png": png(GREY), "/in/x/a.png": png(GREY + 1), "/in/x/b.jpg": png(GREY, "JPEG"),
                "/in/.hidden.png": b"", "/in/notes.txt": b"", "/in/bad.png": b"no picture"})  # fmt: skip
    return "memory://in"


def denoise(source, out, **options) -> aeimg.Summary:
    return aeimg.process(source, "denoise", out=out, strength=0.0, **options)


def statuses(summary: aeimg.Summary) -> dict[str, str]:
    return {record["output"].rpartition("/")[2]: record["status"] for record in summary.files}


def test_a_folder_at_a_url_is_done_as_a_local_one(files, folder, png):
    summary = denoise(folder, "memory://out")
    assert sorted(files.find("/out", maxdepth=None)) == sorted(
        ["/out/a.png", "/out/x/a.png", "/out/x/b.jpg", *(name for name in files.find("/out") if "manifest" in name)]
    )
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(files.cat("/out/x/a.png")))), GREY + 1)
    ((failed, reason),) = summary.failed
    assert str(failed) == "memory://in/bad.png"
    assert reason.startswith("memory://in/bad.png: not an image")
    assert summary.passed_over == {".txt": 1}
    assert files.cat("/in/a.png") == png(GREY)


def test_a_second_run_does_only_what_is_no_longer_right(files, folder, png):
    files.rm("/in/bad.png")
    assert denoise(folder, "memory://out").done == 3
    assert denoise(folder, "memory://out").skipped == 3
    files.pipe("/in/a.png", png(GREY + 2))
    files.rm("/out/x/b.jpg")
    files.pipe("/out/x/a.png", b"by hand")
    summary = denoise(folder, "memory://out")
    assert (summary.done, summary.skipped) == (2, 1)
    assert files.cat("/out/x/a.png") == b"by hand"
    files.pipe("/in/a.png", files.cat("/in/a.png"))  # another time, the same content
    assert denoise(folder, "memory://out").skipped == 3
    with pytest.raises(OutputError, match="memory://out/a.png: is there already"):
        denoise(folder, "memory://out", if_exists="error")
    assert denoise(folder, "memory://out", if_exists="overwrite").done == 3


def test_all_ways_between_this_machine_and_a_store(files, folder, tmp_path, small):
    assert denoise(folder, tmp_path / "out").done == 3
    assert (tmp_path / "out" / "x" / "b.jpg").is_file()
    assert aeimg.process(str(tmp_path / "out"), "compress", out="memory://latents").done == 3
    assert aeimg.process("memory://latents/x/*.aei", "decompress", out=tmp_path / "back").done == 2
    assert sorted(path.name for path in (tmp_path / "back").glob("*.png")) == ["a.png", "b.png"]
    assert denoise("memory://in/a.png", "memory://one/z.png").done == 1
    assert files.isfile("/one/z.png")
    assert denoise("memory://in/a.png", f"file://{tmp_path}/local").done == 1
    assert (tmp_path / "local" / "a.png").is_file()


def test_a_url_is_one_picture_without_out(folder):
    assert aeimg.process("memory://in/a.png", "denoise", strength=0).size == (24, 16)
    assert len(list(aeimg.process("memory://in/x", "denoise", strength=0))) == 2
    assert aeimg.process(aeimg.process("memory://in/a.png", "compress"), "decompress").size == (24, 16)
    with pytest.raises(UnreadableImage, match="^memory://in/none.png: can't be read"):
        aeimg.process("memory://in/none.png", "denoise")


def test_lists_may_hold_urls_and_lie_at_one(files, folder, tmp_path, png):
    (tmp_path / "here.png").write_bytes(png(GREY))
    files.pipe("/list.txt", f"memory://in/x/a.png\n{tmp_path}/here.png\nmemory://in/a.png".encode())
    summary = denoise("@memory://list.txt", "memory://out")
    assert [record["output"] for record in summary.files] == [
        "memory://out/x/a.png", "memory://out/here.png", "memory://out/a.png"
    ]  # fmt: skip
    assert summary.done == 3


def test_no_input_is_overwritten_and_no_result_passes_for_an_input(files, folder):
    with pytest.raises(UsageError, match="one folder"):
        denoise(folder, "memory://in/")
    with pytest.raises(UsageError, match="overwrite"):
        denoise("memory://in/a.png", "memory://in/a.png")
    with pytest.raises(UsageError, match="overwrite an input"):
        aeimg.process(["memory://in/a.png"], "denoise", out="memory://in")
    files.rm("/in/bad.png")
    assert denoise(folder, "memory://in/out").done == 3
    assert denoise(folder, "memory://in/out").skipped == 3


def test_a_zip_file_is_read_and_never_written(tmp_path, png):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("in/a.png", png(GREY))
        archive.writestr("in/deep/b.png", png(GREY))
        archive.writestr("../../evil.png", png(GREY))
    url = f"zip://::{tmp_path}/all.zip"
    summary = denoise(url, tmp_path / "a" / "b" / "out")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == [
        "a/b/out/in/a.png", "a/b/out/in/deep/b.png"
    ]  # fmt: skip
    assert summary.files[0]["input"] == f"zip://in/a.png::{tmp_path}/all.zip"
    assert denoise(url, tmp_path / "a" / "b" / "out").skipped == 2
    with pytest.raises(UsageError, match="can be read, not written"):
        denoise(tmp_path / "a", url)


def test_names_never_lead_out_of_the_output_folder():
    base = urls.parse("memory://in")
    for place in ("/in/../../x.png", "/in//x.png", "/in/./x.png", "/in/a\0b/x.png"):
        relative = urls.Url(base.store, place).relative_to(base)
        assert ".." not in relative.parts and "\0" not in str(relative), place
        assert relative.name == "x.png"


@pytest.mark.parametrize(
    ("url", "shown"),
    [("sftp://me:secret@host/in/a.png", "sftp://***@host/in/a.png"),
     ("https://host/a.png?sig=secret", "https://host/a.png?***"),
     ("zip://a.png::https://me:secret@host/all.zip?x=secret", "zip://a.png::https://***@host/all.zip?***"),
     ("s3://bucket/a b.png", "s3://bucket/a b.png")],
)  # fmt: skip
def test_credentials_are_never_shown(url, shown):
    assert urls.redacted(url) == shown


def test_credentials_reach_no_message_and_no_record(tmp_path, monkeypatch):
    class Refusing(fsspec.get_filesystem_class("memory")):
        cachable = False

        def info(self, path, **_):
            raise RuntimeError("no access to vault://me:secret@host")

    fsspec.register_implementation("vault", Refusing, clobber=True)
    done = CliRunner().invoke(main, ["denoise", "vault://me:secret@host/in", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "can't be reached" in done.output and "***@host" in done.output
    assert "secret" not in done.output


def test_what_is_missing_for_a_url_is_named(monkeypatch):
    def without(*_, **__):
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(UsageError, match="foo://x: no URL that can be used"):
        denoise("foo://x", "memory://out")
    monkeypatch.setattr("fsspec.core.url_to_fs", without)
    with pytest.raises(UsageError, match=r"s3://b/in: .* pip install 'aeimg\[s3\]'"):
        denoise("memory://in", "s3://b/in")
    with pytest.raises(UsageError, match="give a str"):
        denoise("in", Path("s3://b/out"))


def test_a_file_is_whole_or_not_there_where_the_store_has_to_rename(files, monkeypatch):
    url = urls.parse("memory://out/a.png")
    monkeypatch.setattr(urls, "PUT_WHOLE", frozenset())
    paths.write_atomic(url, b"whole")
    assert files.find("/out") == ["/out/a.png"]
    monkeypatch.setattr(type(files), "mv", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OutputError, match="^memory://out/a.png: can't be written .*gone"):
        paths.write_atomic(url, b"half")
    assert files.find("/out") == ["/out/a.png"] and files.cat("/out/a.png") == b"whole"


def test_a_record_is_in_the_store_before_its_result(files, folder, monkeypatch):
    known = []
    write = paths.write_atomic

    def watched(target, data):
        if "manifest" not in str(target):
            records = b"".join(files.cat(name) for name in files.find("/out") if "manifest" in name)
            known.append(target.name.encode() in records)
        write(target, data)

    monkeypatch.setattr(paths, "write_atomic", watched)
    assert denoise(folder, "memory://out").done == 3
    assert known == [True] * 3


def test_the_manifest_of_a_store_stays_in_small_parts(files, monkeypatch):
    monkeypatch.setattr(manifest, "PART_BYTES", 1000)
    out = urls.parse("memory://out")
    job = [paths.Job(out, out / f"{number}.png") for number in range(40)]
    record = manifest.Record("r", 1, 1, "s", 1, "t", None, "etag")
    written = manifest.Manifest(out)
    for one in job:
        written.add(one, record)
    sizes = [files.size(name) for name in files.find("/out")]
    assert len(sizes) > 3 and max(sizes) < 1200
    assert manifest.Manifest(out)._records._known == written._records._known
    assert len(written._records._known) == 40


def test_a_header_is_read_without_the_file(files, monkeypatch):
    files.pipe("/large.bin", bytes(10 << 20))
    fetched = []
    whole = type(files).cat_file

    def counted(self, path, start=None, end=None, **words):
        fetched.append((start, end))
        return whole(self, path, start, end, **words)

    monkeypatch.setattr(type(files), "cat_file", counted)
    with paths.open_regular("memory://large.bin") as file:
        assert paths.size_of(file) == 10 << 20
        file.read(100)
        file.seek(0)
        assert file.read(4096) == bytes(4096)
    assert fetched == [(0, urls.BLOCK)]


def test_an_upload_that_fails_is_one_failure(files, folder, monkeypatch):
    put = type(files).pipe_file

    def failing(self, path, value, **words):
        if path.endswith("x/a.png"):
            raise RuntimeError("quota")
        put(self, path, value, **words)

    monkeypatch.setattr(type(files), "pipe_file", failing)
    summary = denoise(folder, "memory://out")
    assert summary.done == 2
    reasons = {str(path): reason for path, reason in summary.failed}
    assert reasons["memory://in/x/a.png"] == "memory://out/x/a.png: can't be written (RuntimeError: quota)"


# -- a server of S3 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    """The URL of an empty bucket of a server on this machine."""
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    pytest.importorskip("flask_cors", reason="moto's server needs flask and flask-cors")
    server = pytest.importorskip("moto.server", reason="the S3 server of these tests is moto's").ThreadedMotoServer(
        port=0
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("NO_PROXY", "*")
        name = f"bucket-{secrets.token_hex(4)}"
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3_in_and_out(bucket, png, tmp_path):
    store = fsspec.filesystem("s3", use_listings_cache=False)
    place = bucket.removeprefix("s3://")
    for name, data in {"a.png": png(GREY), "x/b.png": png(GREY + 1), "bad.png": b"bad", "x/": b""}.items():
        store.pipe(f"{place}/in/{name}", data)
    options = ["--strength", "0", "--json", str(tmp_path / "run.json")]
    done = CliRunner().invoke(main, ["denoise", f"{bucket}/in/", f"{bucket}/out/", *options])
    assert done.exit_code == 1, done.output
    assert f"failed: {bucket}/in/bad.png: not an image" in done.output
    assert {name for name in store.find(f"{place}/out") if "manifest" not in name} == {
        f"{place}/out/a.png", f"{place}/out/x/b.png"
    }  # fmt: skip
    record = json.loads((tmp_path / "run.json").read_bytes())["files"][0]
    assert (record["input"], record["output"]) == (f"{bucket}/in/a.png", f"{bucket}/out/a.png")
    assert denoise(f"{bucket}/in", f"{bucket}/out").skipped == 2
    store.pipe(f"{place}/in/a.png", png(GREY + 5))
    again = denoise(f"{bucket}/in", f"{bucket}/out")
    assert (again.done, again.skipped) == (1, 1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(store.cat(f"{place}/out/a.png")))), GREY + 5)
    assert aeimg.process(f"{bucket}/out/*.png", "compress", out=tmp_path / "latents").done == 1


def test_a_bucket_that_is_not_there_is_named(bucket, tmp_path, png):
    with pytest.raises(UsageError, match="^s3://no-such-bucket-here/in: no such file or folder"):
        denoise("s3://no-such-bucket-here/in", tmp_path)
    (tmp_path / "a.png").write_bytes(png(GREY))
    summary = denoise(tmp_path / "a.png", "s3://no-such-bucket-here/out")
    ((_, reason),) = summary.failed
    assert reason.startswith("s3://no-such-bucket-here/out/")
