"""Requests of commands to a running service: retried while it is busy, one sentence if it refuses."""

import time
from collections.abc import Sequence

import httpx

from app.cli.main import CommandError

ATTEMPTS = 20  # with pauses of at most 30 s
_RETRY = frozenset({429, 503, 504})  # queue full, starting or draining, deadline passed


class ServiceRefused(CommandError):
    """The service refused a request, or does not answer; the message says why. `answer` is None without an answer."""

    def __init__(self, message: str, answer: httpx.Response | None = None) -> None:
        super().__init__(message)
        self.answer = answer


def open_client(url: str, api_key: str | None) -> httpx.Client:
    """Returns a client of the service at a URL. Raises ServiceRefused if it is no URL."""
    headers = {"X-API-Key": api_key} if api_key else {}
    try:
        return httpx.Client(base_url=url, headers=headers, timeout=120.0)
    except httpx.InvalidURL as err:
        raise ServiceRefused(f"{url} is no URL: {err}") from err


def wait_until_ready(client: httpx.Client, wait_s: float, *, is_started: bool = False) -> None:
    """Polls `/readyz` until the service is ready. If it `is_started`, a failing first connection means a wrong URL.

    Raises:
        ServiceRefused: the service is not ready within `wait_s`, or no Vermouth service is at the URL.
    """
    until_s = time.monotonic() + wait_s
    while True:
        try:
            status = client.get("/readyz", timeout=5.0).status_code
            if status == 200:
                return
            if status == 404:
                raise ServiceRefused(f"no Vermouth service is at {client.base_url}: GET /readyz answered 404")
        except httpx.UnsupportedProtocol as err:
            raise ServiceRefused(f"{client.base_url} is no URL of a service: it must begin with http://") from err
        except (httpx.ConnectError, httpx.ConnectTimeout) as err:
            if is_started:
                raise ServiceRefused(f"no service answers at {client.base_url}: {err}") from err
        except httpx.TransportError:
            pass  # busy
        is_started = False  # it answered once: from now on it may restart
        if time.monotonic() > until_s:
            raise ServiceRefused(f"the service was not ready within {wait_s:.0f} s")
        time.sleep(0.5)


def existing_ids(client: httpx.Client, gallery: str) -> set[str]:
    """Returns the ids in a gallery; creates the gallery if it does not exist."""
    if send(client, "GET", f"/galleries/{gallery}", accepted=(200, 404)).status_code == 404:
        send(client, "PUT", f"/galleries/{gallery}", accepted=(200, 201))
    found: set[str] = set()
    parameters: dict[str, str | int] = {"limit": 1000}
    while True:
        page = send(client, "GET", f"/galleries/{gallery}/items", params=parameters).json()
        found.update(item["id"] for item in page["items"])
        if page["next_cursor"] is None:
            return found
        parameters["cursor"] = page["next_cursor"]


def send(
    client: httpx.Client, method: str, url: str, *, accepted: Sequence[int] = (200,), **request: object
) -> httpx.Response:
    """Sends one request and repeats it while the service is busy; raises ServiceRefused unless it is accepted."""
    for attempt in range(ATTEMPTS):
        try:
            answer = client.request(method, url, **request)  # type: ignore[arg-type]  # httpx's own keywords
        except httpx.HTTPError as err:  # not repeated: the service may have done it
            raise ServiceRefused(f"{method} {url} failed: {err}") from err
        if answer.status_code in accepted:
            return answer
        if answer.status_code not in _RETRY:
            break
        # The service's own estimate, or a growing pause.
        pause_s = answer.headers.get("retry-after", "")
        time.sleep(min(30.0, float(pause_s) if pause_s.isdigit() else 0.5 * (attempt + 1)))
    raise ServiceRefused(f"{method} {url} answered {answer.status_code}: {answer.text[:300]}", answer)
