"""Pages of other origins, and a service behind Debian's nginx with a prefix and TLS, in Debian's Chromium."""

import http.server
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.auth import Scope, new_key
from tests.app.api.images import BAR, CROSS, png
from tests.app.test_server import started
from tests.e2e.browser import CHROMIUM, SLOW_MS, Page
from tests.e2e.test_playground_states import BROWSERS_OWN

NGINX, OPENSSL = shutil.which("nginx", path="/usr/sbin:/usr/bin"), shutil.which("openssl")
GUIDE = Path(__file__).parents[2] / "docs/guides/browsers.md"
PREFIX = "/vermouth"  # of the guide
LIMIT_S = 900
pytestmark = [pytest.mark.server, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

LIVE = """async (base, first) => new Promise((resolve) => {
  const socket = new WebSocket(base.replace("http", "ws") + "/retrieve/live");
  socket.onopen = () => [...first, { type: "query", seq: 1, strokes: [[[0, 9], [0, 9]]], width: 10, height: 10 }]
    .forEach((one) => socket.send(JSON.stringify(one)));
  socket.onmessage = ({ data }) => resolve(JSON.parse(data).type);
  socket.onclose = ({ code, reason }) => resolve(`${code} ${reason}`);
})"""
# A page searches by fetch and by WebSocket, shows an image, and exchanges the key for a session.
SCRIPT = f"""async ([base, key]) => {{
  const live = {LIVE}, found = {{ live: await live(base, [{{ type: "auth", key }}]) }};
  const post = (path, body, headers = {{}}) => fetch(base + path, {{
    method: "POST", headers: {{ "Content-Type": "application/json", ...headers }}, body: JSON.stringify(body),
    credentials: "include",
  }});
  try {{
    const answer = await post("/retrieve", {{ text: "a", k: 1 }}, {{ "X-API-Key": key }});
    const {{ results, total }} = await answer.json();
    Object.assign(found, {{ total, requestId: answer.headers.get("X-Request-ID"), image: results[0].image_url }});
    const image = new Image();
    image.src = new URL(results[0].image_url, base);
    await image.decode();
    found.width = image.naturalWidth;
    found.session = (await post("/session", {{}}, {{ "X-API-Key": key }})).status;
    const refused = await post("/retrieve", {{ k: 0, text: "a" }});
    const problem = await refused.json();
    Object.assign(found, {{ status: refused.status, type: problem.type, instance: problem.instance }});
    found.kind = (await (await fetch(new URL(problem.type, base))).json()).status;
    found.liveBySession = await live(base, []);
  }} catch (error) {{
    found.error = String(error);
  }}
  return found;
}}"""
# A page of another site tries what needs no preflight, with the visitor's cookie.
FORGE = f"""async (base) => {{
  const form = new FormData();
  form.append("image", new Blob(["x"]), "a.png");
  const init = {{ method: "POST", mode: "no-cors", credentials: "include", body: form }};
  await fetch(base + "/galleries/default/items", init);
  return await ({LIVE})(base, []);
}}"""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service with keys on: its own address, a key, an allowed page, a foreign page, and nginx's address."""

    base: str
    key: str
    page: str
    foreign: str
    public: str


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    key, line = new_key("writer", [Scope.WRITE])
    public, folder = f"https://127.0.0.1:{_free_port()}", tmp_path_factory.mktemp("data")
    with _page() as page, _page() as foreign:
        settings = {"API_KEYS": line, "ALLOWED_ORIGINS": f"{page},{public}"}
        with started("free", folder, limit_s=LIMIT_S, **settings) as process, process.connect() as client:
            process.wait_for("ready")
            image, headers = {"image": png()}, {"X-API-Key": key}
            client.put("/galleries/default/items/a", files=image, headers=headers).raise_for_status()
            base = str(client.base_url).rstrip("/")
            yield Service(base=base, key=key, page=page, foreign=foreign, public=public)


def test_a_page_of_an_allowed_origin_searches_and_shows_images(browser: Any, service: Service) -> None:
    found = results(browser, service.page, service.base, service.key)
    assert "error" not in found, found
    assert (found["live"], found["liveBySession"], found["total"], found["width"]) == ("results", "results", 1, 60)
    assert (found["session"], found["status"], found["kind"]) == (204, 422, 422)
    assert found["requestId"]


def test_a_page_of_another_origin_is_refused(browser: Any, service: Service) -> None:
    found = results(browser, service.foreign, service.base, service.key)
    assert found["live"].startswith("4403 The page's origin"), found
    assert service.foreign in found["live"]
    assert "Failed to fetch" in found["error"]
    assert "total" not in found


def test_a_page_of_another_origin_cannot_use_the_visitors_session(browser: Any, service: Service) -> None:
    page = browser.new_page()
    page.goto(service.page)
    page.evaluate(SCRIPT, [service.base, service.key])
    statuses: list[int] = []
    page.on("response", lambda one: statuses.append(one.status) if one.request.method == "POST" else None)
    page.goto(service.foreign)
    assert page.evaluate(FORGE, service.base).startswith("4403 The page's origin")
    sent = page.context.cookies(service.base)
    page.close()
    assert ([one["name"] for one in sent], statuses) == (["vermouth_session"], [403])


def test_every_link_and_the_websocket_work_behind_nginx(browser: Any, service: Service, proxied: str) -> None:
    found = results(browser, f"{proxied}/livez", proxied, service.key)
    assert "error" not in found, found
    assert (found["live"], found["liveBySession"], found["width"]) == ("results", "results", 60)
    assert (found["status"], found["kind"]) == (422, 422)
    assert found["image"].startswith(f"{PREFIX}/galleries/default/items/a/image?")
    assert (found["type"], found["instance"]) == (f"{PREFIX}/errors/invalid", f"{PREFIX}/retrieve")
    ways = [{"label": "a", "support": [BAR]}, {"label": "b", "support": [CROSS]}]
    with httpx.Client(base_url=service.public, verify=False, headers={"X-API-Key": service.key}) as client:
        made = client.post(f"{PREFIX}/fewshot/episodes", json={"ways": ways}, timeout=LIMIT_S)
        for path in (made.headers["location"], made.json()["ways"][0]["support"][0]["image_url"]):
            assert path.startswith(f"{PREFIX}/")
            assert client.get(path).status_code == 200
        cookie = client.post(f"{PREFIX}/session").headers["set-cookie"]
        assert {f"Path={PREFIX}/", "Secure"} <= set(cookie.split("; "))


def test_the_reference_and_the_playground_work_behind_nginx(browser: Any, service: Service, proxied: str) -> None:
    seen = Page(browser, proxied, ignore_https_errors=True)
    seen.tolerated = BROWSERS_OWN
    sockets: set[str] = set()
    frames: list[Any] = []

    def note(socket: Any) -> None:
        sockets.add(socket.url)
        socket.on("framereceived", lambda frame: frames.append(frame))

    seen.page.on("websocket", note)
    page = seen.open("docs")
    page.wait_for_selector("#operations-retrieval-retrieve")
    seen.open()
    page.get_by_label("Key", exact=True).fill(service.key)
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.card img')?.naturalWidth > 0")
    assert sockets == {f"{proxied.replace('https', 'wss')}/retrieve/live"}
    assert frames
    seen.close()


def results(browser: Any, address: str, base: str, key: str) -> dict[str, Any]:
    """What the script finds at a service when it runs on a page."""
    page = browser.new_page(ignore_https_errors=True)
    page.set_default_timeout(SLOW_MS)
    page.goto(address)
    found: dict[str, Any] = page.evaluate(SCRIPT, [base, key])
    page.close()
    return found


class _EmptyPage(http.server.BaseHTTPRequestHandler):
    """A page without content at every path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A page</title>")

    def log_message(self, *arguments: object) -> None:
        """Nothing is logged."""


@contextmanager
def _page() -> Iterator[str]:
    """The origin of an empty page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


CONFIGURATION = """
worker_processes 1; error_log stderr; pid nginx.pid;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
  server {{ listen 127.0.0.1:{port} ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem; {location} }}
}}
"""


@pytest.fixture
def proxied(service: Service, tmp_path: Path) -> Iterator[str]:
    """The public address of the service behind the guide's nginx, which ends TLS and sends its own name as `Host`."""
    if NGINX is None or OPENSSL is None:
        pytest.skip("nginx or openssl is not installed")
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=127.0.0.1"]
    subprocess.run([OPENSSL, "req", "-x509", *key], cwd=tmp_path, check=True, capture_output=True)
    (location,) = re.findall("```nginx\n(.+?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    location, port = location.replace("http://127.0.0.1:8000", service.base), int(service.public.rpartition(":")[2])
    assert service.base in location
    (tmp_path / "nginx.conf").write_text(CONFIGURATION.format(port=port, location=location), encoding="utf-8")
    command = [NGINX, "-p", str(tmp_path), "-c", "nginx.conf", "-g", "daemon off; master_process off;"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, cwd=tmp_path, stderr=log) as process:
        try:
            while not _listens(port):
                assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                time.sleep(0.05)
            yield f"{service.public}{PREFIX}"
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with closing(socket.socket()) as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
