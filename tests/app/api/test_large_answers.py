"""Pages of large metadata, asked for by ten clients at once, beside health."""

import json
import threading
from pathlib import Path

import httpx
import pytest

from tests.app.api.images import SQUARE
from tests.app.api.test_hostile_bodies import health_of, quantile_ms
from tests.app.test_server import started

pytestmark = pytest.mark.server
ITEMS = "/galleries/default/items"
METADATA = {f"field {at}": "x" * 100 for at in range(140)}  # 16 KiB
PAGERS, PAGES, COUNT = 10, 2, 256


def test_health_answers_while_ten_clients_page_through_large_metadata(tmp_path: Path) -> None:
    assert 15_000 < len(json.dumps(METADATA)) < 16_384
    with started("free", tmp_path, limit_s=300) as process, process.connect() as client:
        process.wait_for("ready")
        for part in range(0, COUNT, 128):
            items = [{"id": f"i{at}", "image": SQUARE, "metadata": METADATA} for at in range(part, part + 128)]
            assert client.post(ITEMS, json=items).status_code == 200

        def page() -> None:
            with httpx.Client(base_url=client.base_url, timeout=120) as pager:
                for _ in range(PAGES):
                    n_bytes, cursor = 0, None
                    while n_bytes == 0 or cursor is not None:
                        params = {"limit": 1000} | ({} if cursor is None else {"cursor": cursor})
                        answer = pager.get(ITEMS, params=params)
                        assert answer.status_code == 200
                        n_bytes += len(answer.content)
                        # Parsing it here would slow this process's health.
                        cursor = answer.content.rpartition(b'"next_cursor":"')[2].partition(b'"')[0].decode() or None
                        cursor = cursor if b'"next_cursor":"' in answer.content[-200:] else None
                    assert n_bytes > COUNT * 15_000

        with health_of(client.base_url) as idle_s:
            threading.Event().wait(0.3)
        threads = [threading.Thread(target=page) for _ in range(PAGERS)]
        with health_of(client.base_url) as health_s:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        answer = client.post("/retrieve", json={"sketch": SQUARE, "k": 200})
        assert {json.dumps(one["metadata"]) for one in answer.json()["results"]} == {json.dumps(METADATA)}
    idle_ms, typical_ms, slow_ms = quantile_ms(idle_s, 0.99), quantile_ms(health_s, 0.5), quantile_ms(health_s, 0.99)
    figures = f"health {typical_ms:.0f} / {slow_ms:.0f} ms (idle {idle_ms:.0f})"
    print(figures)  # noqa: T201 - shown by `pytest -s`
    assert typical_ms < 100 + 4 * idle_ms, figures
