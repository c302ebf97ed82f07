"""Requests of commands to a running service: retried while it is busy, one sentence if it refuses."""

import re
import threading
import time
from collections.abc import Sequence

import httpx

from app.cli.main import CommandError

ATTEMPTS = 20  # with pauses of at most 30 s
MAX_BREAKS = 4  # broken connections in a row, so that a restart of the service is survived
_RETRY = frozenset({429, 502, 503, 504})  # queue full, starting or draining, deadline passed, a proxy without it
_GALLERY = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # as the API's


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
    except (httpx.InvalidURL, UnicodeEncodeError) as err:
        what = "the API key is not ASCII" if isinstance(err, UnicodeEncodeError) else f"{url} is no URL: {err}"
        raise ServiceRefused(what) from err


def check_gallery_name(name: str) -> None:
    """Raises CommandError if it is no name of a gallery."""
    if not _GALLERY.fullmatch(name):
        raise CommandError(
            f"{name!r} is no name of a gallery: use up to 64 of a-z, 0-9, - and _, and begin with a letter or digit."
        )


def wait_until_ready(client: httpx.Client, wait_s: float, *, is_started: bool = False) -> None:
    """Polls `/readyz` until the service is ready. If it `is_started`, what is no Vermouth service is not waited for.

    Raises:
        ServiceRefused: the service is not ready within `wait_s`, or no Vermouth service is at the URL.
    """
    until_s = time.monotonic() + wait_s
    while True:
        try:
            answer = client.get("/readyz", timeout=5.0)
            if _is_ready(client, answer, is_started=is_started):
                return
        except httpx.UnsupportedProtocol as err:
            raise ServiceRefused(f"{client.base_url} is no URL of a service: it must begin with http://") from err
        except httpx.TransportError as err:
            if is_started:
                reason = str(err) or type(err).__name__
                raise ServiceRefused(f"no service answers at {client.base_url}: {reason}") from err
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
    client: httpx.Client,
    method: str,
    url: str,
    *,
    accepted: Sequence[int] = (200,),
    stop: threading.Event | None = None,
    **request: object,
) -> httpx.Response:
    """Sends one request, which must be safe to repeat, and repeats it while the service is busy or restarts.

    Args:
        stop: ends the pauses between attempts when it is set.

    Raises:
        ServiceRefused: the answer is none of `accepted`.
    """
    stop = threading.Event() if stop is None else stop
    breaks = 0
    for attempt in range(ATTEMPTS):
        pause_s = ""
        try:
            answer = client.request(method, url, **request)  # type: ignore[arg-type]  # httpx's own keywords
        except httpx.HTTPError as err:
            breaks += 1
            if breaks == MAX_BREAKS or stop.is_set() or isinstance(err, httpx.TimeoutException):
                raise ServiceRefused(f"{method} {url} failed: {err or type(err).__name__}") from err
        else:
            breaks = 0
            if answer.status_code in accepted:
                return answer
            if answer.status_code not in _RETRY or attempt == ATTEMPTS - 1:
                raise ServiceRefused(_refusal(method, url, answer), answer)
            pause_s = answer.headers.get("retry-after", "")
        # The service's own estimate, or a growing pause.
        if stop.wait(min(30.0, float(pause_s) if pause_s.isdigit() else 0.5 * (attempt + 1))):
            break
    raise ServiceRefused(f"{method} {url} was not sent again: the command ends")


def problem_sentence(answer: httpx.Response) -> str:
    """Returns the sentence of a problem document, or the beginning of another answer."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # an answer of a proxy
        return " ".join(answer.text[:200].split()) or answer.reason_phrase


def _refusal(method: str, url: str, answer: httpx.Response) -> str:
    sentence = f"{method} {url} answered {answer.status_code}: {problem_sentence(answer)}"
    if answer.status_code == 401:
        sentence += " Set --key or VERMOUTH_API_KEY."
    return sentence


def _is_ready(client: httpx.Client, answer: httpx.Response, *, is_started: bool) -> bool:
    """Whether the service is ready. Raises ServiceRefused if the answer is not one of a Vermouth service."""
    try:
        document = answer.json()
    except ValueError:
        document = None
    is_ours = isinstance(document, dict) and "status" in document
    if answer.status_code == 200 and is_ours:
        return True
    # Before the service is started, a proxy may answer for it.
    if (answer.status_code == 503 and is_ours) or (not is_started and answer.status_code in _RETRY):
        return False
    raise ServiceRefused(f"no Vermouth service is at {client.base_url}: GET /readyz answered {answer.status_code}")
