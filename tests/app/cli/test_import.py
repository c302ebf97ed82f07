"""Bulk import from every kind of source, into the app itself."""

import asyncio
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import Progress

from app.api.deps import Tasks
from app.api.schemas.wire import Caption
from app.cli.importing.adding import Imported, import_images
from app.cli.importing.files import Importable, Skip, SourceOptions, UnreadableSource
from app.cli.importing.sources import find_sources, read_sources
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import png
from tests.app.api.served import served
from tests.app.cli.test_gallery import LoopTransport
from tests.client.scripted import Request, scripted
from vermouth_client import Client
from vermouth_client.bulk import item_id

pytestmark = pytest.mark.anyio
ICON = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'><path d='M4 4 20 20' stroke='red'/></svg>"
REJECTED = "were rejected: correct those that the report names, and repeat the command."
NAMES = ["a.png", "b/c.png", "b/d é.PNG"]


def images() -> dict[str, bytes]:
    return {name: png(colour=(40 * at, 90, 60)) for at, name in enumerate(NAMES, start=1)}


def make_folder(root: Path) -> Path:
    for name, data in images().items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "images" / "notes.txt").write_text("no image")
    return root / "images"


def make_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name, data in images().items():
            archive.writestr(name, data)
    return root / "images.zip"


def make_csv(root: Path) -> Path:
    folder = make_folder(root)
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "id", "caption", "kind"])
        rows.writerows([[name, f"n{at}", "", "icon"] for at, name in enumerate(NAMES)])
    return folder / "table.csv"


def make_tar(root: Path) -> Path:
    with tarfile.open(root / "images.tar", "w") as archive:
        for at, data in enumerate(images().values()):
            for suffix, content in ((".png", data), (".json", json.dumps({"n": at}).encode()), (".txt", b"a word")):
                entry = tarfile.TarInfo(f"{at:05}{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return root / "images.tar"


def read_source(path: Path) -> Iterator[Importable]:
    return read_sources(find_sources([str(path)]), SourceOptions())


async def run(app: FastAPI, source: Path) -> Imported:
    loop = asyncio.get_running_loop()

    def work() -> Imported:
        with Client("http://test", transport=LoopTransport(app, loop)) as client:
            bar = Progress(console=Console(quiet=True))
            return import_images(client, "pets", read_source(source), batch=2, workers=2, bar=bar)

    return await anyio.to_thread.run_sync(work)


@pytest.mark.parametrize("make", [make_folder, make_zip, make_csv, make_tar], ids=["folder", "zip", "csv", "tar"])
async def test_every_kind_of_source_is_imported_once(app: FastAPI, tasks: Tasks, tmp_path: Path, make: object) -> None:
    assert callable(make)
    source: Path = make(tmp_path)
    done = await run(app, source)
    assert (done.added, done.skipped[Skip.KNOWN], done.rejected) == (3, 0, [])
    again = await run(app, source)
    assert (again.added, again.skipped[Skip.KNOWN]) == (0, 3)
    for one in (done, again):
        assert one.is_complete
        assert one.added + one.skipped.total() + len(one.rejected) == one.found
    stored = tasks.stores.items.page("pets", after=None, limit=10)[0]
    assert len(stored) == 3
    if make is make_csv:
        assert [(item.id, item.metadata) for item in stored] == [(f"n{at}", {"kind": "icon"}) for at in range(3)]
    if make is make_tar:
        assert [(item.metadata["n"], item.caption) for item in stored] == [(at, "a word") for at in range(3)]


async def test_drawings_in_a_folder_are_imported_as_svg(app: FastAPI, tasks: Tasks, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "icon.svg").write_text(ICON)
    (folder / "bom.SVG").write_text(f"\ufeff<?xml version='1.0'?>{ICON}")
    (folder / "text.svg").write_text(ICON.replace("/>", "/><text>x</text>", 1))
    (folder / "page.png").write_text("<!doctype html><p>404</p>")
    (folder / "wide.svg").write_bytes(ICON.encode("utf-16"))
    (folder / "latin.svg").write_bytes(f"<?xml version='1.0' encoding='latin-1'?>{ICON}<!-- é -->".encode("latin-1"))
    (folder / "other.svg").write_bytes(f"{ICON}<!-- é -->".encode("latin-1"))
    done = await run(app, folder)
    assert done.added == 7
    assert [line.split(":")[0] for line in sorted(done.rejected)] == ["other.svg", "page.png", "text.svg"]
    assert "The SVG is not in UTF-8" in sorted(done.rejected)[0]
    assert "<text>" in sorted(done.rejected)[2]
    assert tasks.stores.items.item("pets", "icon.svg").width == 256


async def test_one_line_reports_each_rejected_file(app: FastAPI, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / "table.csv").write_text("path,id\na.png,a\nbroken.png,b\nmissing.png,c\na.png,.odd\n")
    done = await run(app, folder / "table.csv")
    assert done.added == 1
    names = ["a.png (row 5)", "broken.png (row 3)", "missing.png (row 4)"]
    assert sorted(line.split(":")[0] for line in done.rejected) == names


async def test_what_would_refuse_a_whole_batch_rejects_itself_alone(app: FastAPI, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    long = [["a.png", "b", "y" * 20_000], ["a.png", "d", "y" * 200_000]]
    rows = [["a.png", "a", "x"], *long, ["a.png", "c", "x"], ["a.png", "a", "again"]]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "id", "note"], *rows])
    done = await run(app, folder / "table.csv")
    assert (done.added, done.skipped.total(), len(done.rejected)) == (2, 0, 3)
    assert sum("metadata" in line for line in done.rejected) == 2
    assert any("already used" in line for line in done.rejected)


async def test_a_damaged_entry_of_an_archive_refuses_itself_alone(tmp_path: Path) -> None:
    path = make_zip(tmp_path)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("b/c.png").header_offset + 30 + len("b/c.png") + 5
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    assert [(one.name, one.fault) for one in read_source(path)] == [
        ("a.png", None),
        ("b/c.png", "cannot be unpacked"),
        ("b/d é.PNG", None),
    ]


async def test_a_table_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "table.csv").write_text(f"path\na.png\n../secret.png\n{tmp_path}/secret.png\nb/../a.png\n")
    found = [(bool(one.data), one.fault) for one in read_source(folder / "table.csv")]
    outside = (False, "lies outside the table's folder")
    assert found == [(True, None), outside, outside, (True, None)]


async def test_an_empty_image_is_rejected_in_every_kind_of_source(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "a.png").write_bytes(b"")
    (folder / "table.csv").write_text("path\na.png\nb/c.png\n")
    (folder / "lines.ndjson").write_text('{"path": "a.png"}\n{"image": {"base64": ""}}\n{"path": "b/c.png"}\n')
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    for source, count in ((folder, 1), (folder / "table.csv", 1), (folder / "lines.ndjson", 2)):
        found = [one.fault for one in read_source(source) if one.skip is None]
        assert sum(fault is not None and fault.endswith("is empty") for fault in found) == count, found
        assert None in found
    for name in ("x.zip", "x.tar"):
        assert [one.fault for one in read_source(tmp_path / name)] == ["is empty"]


async def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    for name, content in (("x.zip", b"no archive"), ("x.tar", b"no archive"), ("x.csv", b"id\n1\n"), ("x.doc", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableSource):
            list(read_source(tmp_path / name))


async def test_ids_follow_from_names_and_are_ids() -> None:
    assert item_id("a.png") == "a.png"
    odd = [item_id(name) for name in ("b/c.png", "b_c.png", "..", "é", "x" * 300, "-a")]
    assert len(set(odd)) == len(odd)
    assert all(len(one) <= 128 and one[0].isalnum() for one in odd)


async def command(source: Path, url: str, *options: str) -> tuple[int | None, str, str]:
    """Exit code, stdout and the last line of stderr of `vermouth gallery import`, a process of its own."""
    arguments = ["gallery", "import", str(source), "--url", url, *options]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from app.cli.main import app; app()", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode().strip().rpartition("\n")[2]


def numbers(output: str) -> dict[str, int]:
    """The table at the end of the output."""
    rows = [line.rsplit(maxsplit=1) for line in output.splitlines() if line[-1:].isdigit() and "  " in line]
    return {name.strip(): int(count) for name, count in rows}


async def test_the_command_fails_when_an_image_is_rejected(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / ".DS_Store").write_bytes(b"")
    async with served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port:
        code, output, error = await command(folder, f"http://127.0.0.1:{port}")
        assert code == 1
        assert error == f"error: 1 of 6 items {REJECTED}"
        assert output.splitlines()[0] == "skipped notes.txt: no image belongs to this .txt"
        assert output.splitlines()[1].startswith("rejected broken.png: ")
        assert numbers(output) == {
            "added": 3,
            "skipped": 2,
            "system or hidden file": 1,
            "not an image": 1,
            "rejected": 1,
            "in the source": 6,
        }
        (folder / "broken.png").unlink()
        code, output, error = await command(folder, f"http://127.0.0.1:{port}")
        found = numbers(output)
        assert "error" not in error
        assert (code, found["added"], found["there already"], found["rejected"]) == (0, 0, 3, 0)


async def test_an_empty_source_is_reported_and_a_broken_one_creates_no_gallery(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    zipfile.ZipFile(tmp_path / "none.zip", "w").close()
    (tmp_path / "none.csv").write_text("path,year\n")
    (tmp_path / "broken.csv").write_text('path,note\na.png,"open\n')
    async with served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port:
        url = f"http://127.0.0.1:{port}"
        code, _, error = await command(tmp_path / "broken.csv", url, "--gallery", "pets")
        assert (code, "broken.csv cannot be read after row" in error) == (1, True)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/galleries/pets")).status_code == 404
        for name in ("none", "none.zip", "none.csv"):
            for options in ([], ["--dry-run"]):
                code, output, _ = await command(tmp_path / name, url, *options)
                assert code == 0
                assert f"0 items found in {tmp_path / name}\n" in output
                assert numbers(output)["in the source"] == 0


async def test_typed_columns_are_found_by_typed_filters(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "table.csv").write_text("path;year;ok;sku\na.png;2020;true;007\n")
    async with served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port:
        code, output, _ = await command(folder / "table.csv", f"http://127.0.0.1:{port}", "--text", "sku")
        assert (code, output.splitlines()[0]) == (0, "table.csv: columns year: integer, ok: boolean, sku: text")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for condition in ({"year": {"gte": 2020}}, {"year": 2020}, {"ok": True}, {"sku": "007"}):
                answer = await client.post("/retrieve", json={"text": "a", "filter": condition})
                assert [one["id"] for one in answer.json()["results"]] == ["a.png"]


async def test_a_dry_run_checks_everything_and_needs_no_service(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / "a.json").write_text('{"n": NaN}')
    (folder / "b" / "c.json").write_text('{"n": "\\ud800"}')
    most = TypeAdapter(Caption).json_schema()["maxLength"]
    for name, caption in (("e", "x" * most), ("f", "x" * (most + 1)), ("g", "x\0")):
        (folder / f"{name}.png").write_bytes(png())
        (folder / f"{name}.txt").write_text(caption)
    (folder / os.fsdecode(b"\xff.\xff")).write_bytes(b"")
    (folder / "empty.png").write_bytes(b"")
    code, output, error = await command(folder, "http://127.0.0.1:9", "--dry-run")
    assert (code, error) == (1, f"error: 6 of 15 items {REJECTED}")
    assert "rejected empty.png: is empty\n" in output
    assert "rejected a.png: Field 'metadata' holds a number that is not finite" in output
    assert "rejected broken.png: its first bytes" in output
    found = numbers(output)
    assert "rejected b/c.png: Field 'metadata' holds a NUL or half a surrogate pair" in output
    assert "rejected f.png: its caption has over 1000 letters" in output
    assert "rejected g.png: Field 'caption' holds a NUL" in output
    assert (found["would be added"], found["rejected"], found["in the source"]) == (2, 6, 15)


READY: tuple[int, object, dict[str, str]] = (200, {"status": "ready", "features": [], "training_free": False}, {})
PROXY = "is not the service, or a proxy before it answered"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([(200, b"<html>", {})], "did not answer as the service does"),
        ([(301, b"", {"location": "/x"})], PROXY),
        ([(401, b"", {})], PROXY),
        ([(502, b"", {})], PROXY),
        ([READY, (401, "unauthenticated", {})], "Why 401. Set --key"),
        ([READY, (403, b"<h1>no</h1>", {})], PROXY),
        ([READY, (429, "queue-full", {"retry-after": "0"}), (403, "forbidden", {})], "Why 403."),
        ([(503, "unavailable", {}), (503, b"x", {}), (403, "forbidden", {})], "Why 403."),
    ],
)
async def test_what_refuses_is_reported_in_a_sentence(
    answers: list[tuple[int, object, dict[str, str]]], reason: str, tmp_path: Path
) -> None:
    def answer(request: Request) -> None:
        status, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(body, str):
            request.refuse(status, body, **headers)
        else:
            request.send(status, body, **headers)

    with scripted(answer) as url:
        code, output, error = await command(make_folder(tmp_path), url)
    assert (code, output) == (1, "")
    assert error.startswith("error: ")
    assert reason in error


async def test_a_name_that_is_no_gallery_is_refused_at_once(tmp_path: Path) -> None:
    code, _, error = await command(make_folder(tmp_path), "http://127.0.0.1:9", "--gallery", "My Pets/x")
    assert code == 1
    assert error.startswith("error: 'My Pets/x' is no name of a gallery")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{closed}",
        "http://no-such-host.invalid",
        "127.0.0.1:8000",
        "http://127.0.0.1:nine",
        "http://127.0.0.1:{other}/x",
    ],
    ids=["refused", "unknown host", "no scheme", "no URL", "another path"],
)
async def test_a_wrong_url_fails_at_once(url: str, tmp_path: Path) -> None:
    with socket.socket() as closed:
        # Bound and not listening: connections are refused, and nobody else gets the port.
        closed.bind(("127.0.0.1", 0))
        async with served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as other:
            wrong = url.format(closed=closed.getsockname()[1], other=other)
            code, output, error = await command(make_folder(tmp_path), wrong)
    assert (code, output) == (1, "")
    assert error.startswith("error: ")
    assert wrong in error


MANY = 1500
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from app.cli.main import app
app()
"""
"""More than are added before the signal on a machine that is busy with others."""


async def test_ctrl_c_prints_what_was_done_and_a_second_run_continues(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for at in range(MANY):
        (folder / f"{at:04}.png").write_bytes(png(colour=(at % 200, at // 200, 60)))
    async with served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port:
        url = f"http://127.0.0.1:{port}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", INTERRUPTIBLE, "gallery", "import", str(folder)),
            *("--url", url, "--batch", "1", "--workers", "1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        async with httpx.AsyncClient(base_url=url) as client:
            count = 0
            while count < 5:  # a request each time: no clock
                count = (await client.get("/galleries/default")).json()["count"]
        process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        found = numbers(output.decode())
        assert process.returncode == 130
        async with httpx.AsyncClient(base_url=url) as client:
            count = (await client.get("/galleries/default")).json()["count"]
        assert 5 <= found["added"] == count < MANY
        assert found["added"] + found.get("not sent", 0) == found["read so far"]
        code, text, _ = await command(folder, url)
    assert code == 0
    assert numbers(text)["added"] + count == MANY
