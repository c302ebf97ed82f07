"""Bulk import from every kind of source, into the app itself."""

import asyncio
import csv
import io
import json
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI
from rich.console import Console
from rich.progress import Progress

from app.api.deps import Tasks
from app.cli.importing import Imported, UnreadableSource, import_images, item_id, read_source
from app.main import create_app
from app.settings import Settings
from tests.app.api.conftest import build_services
from tests.app.api.images import png
from tests.app.api.served import served
from tests.app.cli.test_gallery import LoopTransport

pytestmark = pytest.mark.anyio
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


class ThreadsTransport(LoopTransport):
    """Requests of any thread, answered by an app that lives on the test's loop."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(app)
        self._loop = loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop).result(30)


async def run(app: FastAPI, source: Path) -> Imported:
    loop = asyncio.get_running_loop()

    def work() -> Imported:
        with httpx.Client(transport=ThreadsTransport(app, loop), base_url="http://test") as client:
            bar = Progress(console=Console(quiet=True))
            return import_images(client, "pets", read_source(source), batch=2, workers=2, bar=bar)

    return await anyio.to_thread.run_sync(work)


@pytest.mark.parametrize("make", [make_folder, make_zip, make_csv, make_tar], ids=["folder", "zip", "csv", "tar"])
async def test_every_kind_of_source_is_imported_once(app: FastAPI, tasks: Tasks, tmp_path: Path, make: object) -> None:
    assert callable(make)
    source: Path = make(tmp_path)
    done = await run(app, source)
    assert (done.added, done.skipped, done.rejected) == (3, 0, [])
    again = await run(app, source)
    assert (again.added, again.skipped) == (0, 3)
    stored = tasks.stores.items.page("pets", after=None, limit=10)
    assert len(stored) == 3
    if make is make_csv:
        assert [(item.id, item.metadata) for item in stored] == [(f"n{at}", {"kind": "icon"}) for at in range(3)]
    if make is make_tar:
        assert [(item.metadata["n"], item.caption) for item in stored] == [(at, "a word") for at in range(3)]


async def test_one_line_reports_each_rejected_file(app: FastAPI, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "broken.png").write_bytes(b"no image at all")
    (folder / "table.csv").write_text("path,id\na.png,a\nbroken.png,b\nmissing.png,c\na.png,.odd\n")
    done = await run(app, folder / "table.csv")
    assert done.added == 1
    assert sorted(line.split(":")[0] for line in done.rejected) == ["a.png", "broken.png", "missing.png"]


async def test_what_would_refuse_a_whole_batch_rejects_itself_alone(app: FastAPI, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    rows = [["a.png", "a", "x"], ["a.png", "b", "y" * 20_000], ["a.png", "c", "x"], ["a.png", "a", "again"]]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "id", "note"], *rows])
    done = await run(app, folder / "table.csv")
    assert (done.added, done.skipped, len(done.rejected)) == (2, 0, 2)
    assert any("metadata" in line for line in done.rejected)
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


async def command(source: Path, url: str) -> tuple[int | None, str, str]:
    """Exit code, stdout and the last line of stderr of `vermouth gallery import`, a process of its own."""
    arguments = ["gallery", "import", str(source), "--url", url]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("vermouth"), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode().strip().rpartition("\n")[2]


async def test_the_command_fails_when_an_image_is_rejected(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "broken.png").write_bytes(b"no image at all")
    async with served(create_app(Settings(data_dir=tmp_path / "data"), build_services)) as port:
        code, output, _ = await command(folder, f"http://127.0.0.1:{port}")
        assert code == 1
        reason, summary = output.splitlines()
        assert reason.startswith("rejected broken.png: ")
        assert summary == "3 added, 0 there already, 1 rejected"
        (folder / "broken.png").unlink()
        code, output, _ = await command(folder, f"http://127.0.0.1:{port}")
        assert (code, output) == (0, "0 added, 3 there already, 0 rejected\n")


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
