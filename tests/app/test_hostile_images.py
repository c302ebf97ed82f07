"""One small image takes neither the server nor anybody else's answer."""

import base64
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.app.imaging import files, hostile
from tests.app.test_server import started

pytestmark = pytest.mark.server
WAIT_S = 40.0  # of the slowest refusal, on a busy machine


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with one decoder, and room for the refused images' time."""
    data_dir = tmp_path_factory.mktemp("data")
    server = started("fake", data_dir, limit_s=240, DECODE_WORKERS="1", DEADLINE_S="60")
    with server as process, process.connect() as connected:
        process.wait_for("ready")
        yield connected


def encoded(data: bytes) -> dict[str, object]:
    return {"base64": base64.b64encode(data).decode()}


SMALL = encoded(files.encoded(hostile.photograph(40, 30), "PNG"))
SCANS = encoded(hostile.repeated_scans(1000, 3000))
NO_PALETTE = encoded(hostile.png_without_palette())


@pytest.mark.parametrize(
    ("path", "image", "status"),
    [
        ("/embed", {"svg": hostile.ABORT}, 422),
        ("/embed", {"svg": hostile.FREEZE}, 422),
        ("/embed", {"svg": hostile.LAYERS}, 400),
        ("/embed", SCANS, 413),
        ("/segment", SCANS, 413),
        ("/embed", NO_PALETTE, 400),
    ],
    ids=["abort", "freeze", "layers", "scans", "scans-segment", "no-palette"],
)
def test_a_hostile_image_is_refused_and_others_are_served(
    client: httpx.Client, path: str, image: dict[str, object], status: int
) -> None:
    body = {"images": [image]} if path == "/embed" else {"image": image, "classes": ["cat"]}
    answers: list[httpx.Response] = []

    def attack() -> None:
        answers.append(client.post(path, json=body, timeout=WAIT_S))

    attackers = [threading.Thread(target=attack) for _ in range(3)]
    for attacker in attackers:
        attacker.start()
    slowest_s = 0.0
    while any(attacker.is_alive() for attacker in attackers):
        started_s = time.perf_counter()
        assert client.get("/livez", timeout=WAIT_S).status_code == 200
        assert client.post("/embed", json={"images": [SMALL]}, timeout=WAIT_S).status_code == 200
        slowest_s = max(slowest_s, time.perf_counter() - started_s)
    assert len(answers) == 3
    assert slowest_s < 4.0  # of a busy machine; the reason to wait is gone in a second
    for answer in answers:
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("image", [{"svg": hostile.LAYERS}, SCANS, NO_PALETTE], ids=["layers", "scans", "no-palette"])
def test_a_hostile_image_rejects_itself_and_not_its_neighbours(client: httpx.Client, image: dict[str, object]) -> None:
    items = [{"id": name, "image": one} for name, one in (("a", SMALL), ("b", image), ("c", SMALL))]
    answer = client.post("/galleries/default/items", json=items, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    results = {result["id"]: result["status"] for result in answer.json()["results"]}
    assert results == {"a": "created", "b": "rejected", "c": "created"}
    client.post("/galleries/default/items/delete", json={"ids": ["a", "c"]})
