"""An app over a fake device, served by uvicorn on a port of its own."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from app.api.deps import Platform, Services
from app.api.transport.connections import ConnectionLimits
from app.composition import assemble_services
from app.main import create_app
from app.runtime.process import Phase
from app.server import configured
from app.settings import Settings
from tests.app.api.conftest import FakeSegmentationHead, bundle_info
from tests.app.fakes import FakeEncoder

LIMIT_S = 30


class Watched:
    """Events of an object's method: `wait` returns when it was called so often in all."""

    def __init__(self, owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls = asyncio.Semaphore(0)
        plain: Callable[..., None] = getattr(owner, name)

        def call(*arguments: object) -> None:
            plain(*arguments)
            self._calls.release()

        monkeypatch.setattr(owner, name, call)

    async def wait(self) -> None:
        await asyncio.wait_for(self._calls.acquire(), LIMIT_S)


def new_app(encoder: FakeEncoder, data_dir: Path, **settings: object) -> FastAPI:
    def build(settings: Settings, platform: Platform) -> Services:
        bundle = replace(bundle_info(), dimension=encoder.dimension)
        return assemble_services(
            settings, platform, encoder=encoder, bundle=bundle, segmentation_head=FakeSegmentationHead()
        )

    # One worker: a blocked pass blocks all later ones.
    found = Settings.model_validate({"data_dir": data_dir, "feature_cache_bytes": 0, "lanes": 1, **settings})
    return create_app(found, build)


class Server(uvicorn.Server):
    """uvicorn, and an event that says it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()


@contextlib.asynccontextmanager
async def served(app: FastAPI, limits: ConnectionLimits | None = None) -> AsyncIterator[int]:
    """A port that uvicorn serves the app on."""
    server = Server(configured(app, Settings(port=0, drain_timeout_s=5), limits))
    running = asyncio.create_task(server._serve())
    assert await app.state.supervisor.settled() is Phase.READY
    await asyncio.wait_for(server.is_listening.wait(), LIMIT_S)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await running


def set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)
