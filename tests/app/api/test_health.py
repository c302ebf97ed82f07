"""The health routes through the life of a process."""

import dataclasses
import threading
from pathlib import Path

import httpx
import pytest

from app.api.deps import Platform, Services
from app.main import create_app
from app.runtime.process import EXIT_START_FAILED, Phase
from app.settings import Settings
from tests.app.api.conftest import build_services

pytestmark = pytest.mark.anyio
PATHS = ("/livez", "/startupz", "/readyz", "/healthz", "/health")


async def statuses(client: httpx.AsyncClient) -> list[int]:
    return [(await client.get(path)).status_code for path in PATHS]


async def test_from_loading_to_ready_to_draining_to_failed(tmp_path: Path) -> None:
    may_load = threading.Event()

    def slow(settings: Settings, platform: Platform) -> Services:
        may_load.wait(timeout=30)
        return build_services(settings, platform)

    app = create_app(Settings(data_dir=tmp_path), slow)
    platform: Platform = app.state.platform
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        app.router.lifespan_context(app),
    ):
        assert await statuses(client) == [200, 503, 503, 503, 503]
        loading = await client.get("/bundle")
        assert loading.status_code == 503
        assert int(loading.headers["retry-after"]) > 0
        may_load.set()
        assert await app.state.supervisor.settled() is Phase.READY
        assert await statuses(client) == [200, 200, 200, 200, 200]
        assert (await client.get("/bundle")).json()["fingerprint"] == "f" * 64
        metrics = (await client.get("/metrics")).text
        assert "vermouth_ready 1.0" in metrics
        assert 'vermouth_index_vectors{gallery="default"} 0.0' in metrics
        assert "vermouth_index_applied_seq 1.0" in metrics
        assert "vermouth_index_lag 0.0" in metrics
        assert 'vermouth_bundle_info{fingerprint="ffff' in metrics
        platform.lifecycle.drain()
        assert await statuses(client) == [200, 200, 503, 503, 503]
        assert (await client.get("/bundle")).status_code == 200
        platform.lifecycle.fail(70)
        assert await statuses(client) == [503, 503, 503, 503, 503]


async def test_stores_that_fall_behind_make_it_unready_but_alive(tmp_path: Path) -> None:
    is_current = True

    def build(settings: Settings, platform: Platform) -> Services:
        return dataclasses.replace(build_services(settings, platform), is_current=lambda: is_current)

    app = create_app(Settings(data_dir=tmp_path), build)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        app.router.lifespan_context(app),
    ):
        assert await app.state.supervisor.settled() is Phase.READY
        is_current = False
        assert await statuses(client) == [200, 200, 503, 503, 503]
        is_current = True
        assert await statuses(client) == [200, 200, 200, 200, 200]


async def test_a_failed_load_fails_the_process_once(tmp_path: Path) -> None:
    def broken(settings: Settings, platform: Platform) -> Services:
        del settings, platform
        raise ValueError("a damaged file")

    app, failures = create_app(Settings(data_dir=tmp_path), broken), list[str]()
    platform: Platform = app.state.platform
    platform.lifecycle.on_failure = lambda: failures.append("failed")
    async with app.router.lifespan_context(app):
        assert await app.state.supervisor.settled() is Phase.FAILED
        platform.lifecycle.fail(70)
    assert platform.lifecycle.exit_code == EXIT_START_FAILED
    assert failures == ["failed"]


async def test_a_failed_warm_up_fails_the_process(tmp_path: Path) -> None:
    stopped = list[str]()

    async def fail() -> None:
        raise RuntimeError("no kernel for this device")

    async def stop() -> None:
        stopped.append("stopped")

    def built(settings: Settings, platform: Platform) -> Services:
        services = build_services(settings, platform)
        return Services(
            bundle=services.bundle,
            is_alive=services.is_alive,
            tasks=services.tasks,
            on_start=[fail],
            on_stop=[*services.on_stop, stop],
        )

    app = create_app(Settings(data_dir=tmp_path), built)
    async with app.router.lifespan_context(app):
        assert await app.state.supervisor.settled() is Phase.FAILED
    assert stopped == ["stopped"]


async def test_version_and_contract(client: httpx.AsyncClient) -> None:
    version = (await client.get("/version")).json()
    assert version["name"] == "vermouth-perception"
    assert "torch" in version["libraries"]
    contract = (await client.get("/openapi.json")).json()
    assert {"/retrieve", "/segment", "/fewshot/episodes", "/bundle"} <= contract["paths"].keys()
    assert "HTTPValidationError" not in contract["components"]["schemas"]
    retrieve, livez = contract["paths"]["/retrieve"]["post"], contract["paths"]["/livez"]["get"]
    problems = {status for status in retrieve["responses"] if status >= "400"}
    assert {"400", "401", "413", "422", "429", "503", "504"} <= problems
    assert {retrieve["responses"][status]["$ref"] for status in problems} <= {
        f"#/components/responses/{name}"
        for name, response in contract["components"]["responses"].items()
        if "application/problem+json" in response["content"]
    }
    assert retrieve["security"]
    assert "security" not in livez
    assert contract == (await client.get("/openapi.json")).json()
    assert (await client.get("/docs")).status_code == 200
