"""Bodies that would take a hundred times their size, sent to a real server: refused in a second, beside health."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.app.test_server import Process, started

pytestmark = pytest.mark.server
SIZE = 16 << 20
MOST_GROWTH = 12  # times the body: it is received in pieces, joined, counted and, where it is short, parsed
HEALTH_MS, ANSWER_S, MEASURED_S = 250, 4.0, 0.3  # of a machine that does other work too: they were 32 s
JSON = "application/json"
ITEMS, EPISODES = "/galleries/default/items", "/fewshot/episodes"


def repeated(head: bytes, entry: bytes, tail: bytes, size: int = SIZE) -> bytes:
    return head + b",".join([entry] * (size // (len(entry) + 1))) + tail


def nested(part: bytes, count: int) -> bytes:
    return b'{"and":[' + b",".join([part] * count) + b"]}"


def unknown_members(count: int) -> bytes:
    return b"{" + b",".join(b'"m%d":0' % at for at in range(count)) + b"}"


CLASSIFY = f"{EPISODES}/ep_{'0' * 24}/classify"
SHAPES: dict[str, tuple[str, bytes]] = {
    "strokes": ("/retrieve", repeated(b'{"sketch":{"width":9,"height":9,"strokes":[', b"[]", b"]}}")),
    "items": (ITEMS, repeated(b"[", b"{}", b"]")),
    "ways": (EPISODES, repeated(b'{"ways":[', b"{}", b"]}")),
    "queries": (CLASSIFY, repeated(b'{"queries":[', b"0", b"]}")),
    "classes": ("/segment", repeated(b'{"classes":[', b'""', b"]}")),
    "class-set": ("/class-sets/a", repeated(b'{"classes":[', b"{}", b"]}")),
    "texts": ("/embed", repeated(b'{"texts":[', b'""', b"]}")),
    "images": ("/embed", repeated(b'{"images":[', b"{}", b"]}")),
    "metadata": (ITEMS, repeated(b'[{"image":{"svg":"a"},"metadata":{"a":[', b"[]", b"]}}]")),
    "members": ("/retrieve", unknown_members(SIZE // 11)),
    "filter": ("/retrieve", repeated(b'{"text":"a","filter":{"and":[', b"{}", b"]}}")),
    "ids": (f"{ITEMS}/delete", repeated(b'{"ids":[', b'"/"', b"]}")),
    "nested": ("/retrieve", b"[" * SIZE),
    "quotes": ("/retrieve", b'"' * SIZE),
    "escapes": ("/retrieve", b'"' + b'\\"' * (SIZE // 2)),
    # Under the limit of values, so that all of it is parsed and validated.
    "few-strokes": ("/retrieve", repeated(b'{"sketch":{"width":9,"height":9,"strokes":[', b"[]", b"]}}", 147_000)),
    "few-bad-points": (
        "/retrieve",
        repeated(b'{"sketch":{"width":9,"height":9,"strokes":[[[', b'""', b"],[]]]}}", 180_000),
    ),
    "few-items": (ITEMS, repeated(b"[", b"{}", b"]", 147_000)),
    "few-ways": (EPISODES, repeated(b'{"ways":[', b"{}", b"]}", 147_000)),
    "few-members": ("/retrieve", unknown_members(49_000)),
    "few-item-members": (ITEMS, b"[" + unknown_members(49_000) + b"]"),
    "few-image-members": ("/embed", b'{"images":[{"svg":"a",' + unknown_members(49_000)[1:] + b"]}"),
    "few-conditions": ("/retrieve", repeated(b'{"text":"a","filter":{"and":[', b"{}", b"]}}", 147_000)),
    "nested-conditions": (
        "/retrieve",
        b'{"text":"a","filter":%b}' % nested(nested(nested(b'{"%b":1}' % (b"x" * 32), 60), 60), 7),
    ),
    "few-fields": ("/retrieve", b'{"text":"a","filter":' + unknown_members(49_000) + b"}"),
}


class Rss:
    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the peak is the present value again
        self.before = self._bytes("VmRSS")

    def growth(self) -> int:
        return self._bytes("VmHWM") - self.before

    def _bytes(self, name: str) -> int:
        lines = self._status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


@contextmanager
def health_of(base: httpx.URL) -> Iterator[list[float]]:
    """Times of `/livez` in a loop meanwhile."""
    times_s: list[float] = []
    has_ended = threading.Event()

    def ask() -> None:
        while len(times_s) < 20 or not has_ended.is_set():
            started_s = time.perf_counter()
            assert client.get("/livez").status_code == 200
            times_s.append(time.perf_counter() - started_s)

    with httpx.Client(base_url=base, timeout=60) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield times_s
        finally:
            has_ended.set()
            thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, httpx.Client]]:
    with started("free", tmp_path_factory.mktemp("data"), limit_s=300) as process, process.connect() as client:
        process.wait_for("ready")
        yield process, client


def quantile_ms(times_s: Sequence[float], share: float) -> float:
    return sorted(times_s)[int(len(times_s) * share)] * 1000


def check(server: tuple[Process, httpx.Client], url: str, body: bytes, kind: str) -> None:
    process, client = server
    method = "PUT" if url.startswith("/class-sets") else "POST"
    rss = Rss(process.pid)
    with health_of(client.base_url) as idle_s:
        time.sleep(0.3)  # other work of the machine slows both
    took_s: list[float] = []
    with health_of(client.base_url) as health_s:
        while sum(took_s) < MEASURED_S or len(health_s) < 20:
            started_s = time.perf_counter()
            answer = client.request(method, url, content=body, headers={"Content-Type": kind})
            took_s.append(time.perf_counter() - started_s)
            assert answer.status_code in (400, 413, 422), answer.text
            assert len(answer.content) < 8192
    idle_ms, typical_ms, slow_ms = quantile_ms(idle_s, 0.99), quantile_ms(health_s, 0.5), quantile_ms(health_s, 0.99)
    figures = f"answers {max(took_s):.2f} s, health {typical_ms:.0f} / {slow_ms:.0f} ms (idle {idle_ms:.0f}),"
    figures += f" {rss.growth() >> 20} MiB"
    print(figures)  # noqa: T201 - shown by `pytest -s`
    assert max(took_s) < ANSWER_S, figures
    assert rss.growth() < max(MOST_GROWTH * len(body), 64 << 20), figures
    assert typical_ms < HEALTH_MS + 4 * idle_ms, figures


@pytest.mark.parametrize(("url", "body"), SHAPES.values(), ids=SHAPES.keys())
def test_hostile_json_is_refused_within_a_small_multiple_of_its_size(
    server: tuple[Process, httpx.Client], url: str, body: bytes
) -> None:
    check(server, url, body, JSON)


@pytest.mark.parametrize("size", [7 << 20, 147_000], ids=["large", "few"])
@pytest.mark.parametrize(
    ("url", "field"), [(ITEMS, "items"), (EPISODES, "options"), ("/retrieve", "filter"), ("/retrieve", "like")]
)
def test_hostile_json_in_a_form_is_refused_alike(
    server: tuple[Process, httpx.Client], url: str, field: str, size: int
) -> None:
    text = repeated(b"[", b"{}", b"]", size)
    body = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % field.encode() + text + b"\r\n--x--\r\n"
    check(server, url, body, "multipart/form-data; boundary=x")


def test_a_form_of_thousands_of_tiny_parts_is_refused(server: tuple[Process, httpx.Client]) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n'
    body = b"".join(part % at for at in range(200_000)) + b"--x--\r\n"
    check(server, "/retrieve", body, "multipart/form-data; boundary=x")
