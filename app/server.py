"""The process: listens before it loads, drains before it stops, and tells by its exit code how it ended."""

import asyncio
import gc
import os
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.composition import build_services as build_default_services
from app.composition import read_keys
from app.main import BuildServices, create_app
from app.runtime.lifecycle import EXIT_START_FAILED, Lifecycle
from app.runtime.logging import configure_logging, logs_in_background
from app.runtime.process import keep_freed_memory
from app.runtime.telemetry import get_logger
from app.settings import Settings, unknown_variables

MAX_MESSAGE_BYTES = 1 << 20
"""Of a WebSocket; a larger one ends its connection with 1009."""


class Server(uvicorn.Server):
    """uvicorn, but it keeps listening for a while after SIGTERM and ends when the service failed.

    Its parent closes the listeners first on a signal, so that a load balancer which still sends requests
    would have them refused.
    """

    def __init__(self, config: uvicorn.Config, *, lifecycle: Lifecycle, drain_delay_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_delay_s = drain_delay_s
        lifecycle.on_ready = _keep_what_is_loaded
        lifecycle.on_failure = self._end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that we drain, go on accepting for the delay, then do as the parent does."""
        self._lifecycle.drain()
        if self._lifecycle.exit_code == 0 and not self.force_exit:
            get_logger().info("draining", delay_s=self._drain_delay_s)
            await asyncio.sleep(self._drain_delay_s)
        await super().shutdown(sockets)

    def _end(self) -> None:
        self.should_exit = True


def serve(settings: Settings, build_services: BuildServices = build_default_services) -> int:
    """Run the service until it is told to end.

    Returns:
        The exit code: 0 after a signal, 3 when the start failed, 70 after a fatal device error.
    """
    keep_freed_memory()
    configure_logging(level=settings.log_level, as_json=settings.log_json)
    with logs_in_background():
        return _serve(settings, build_services)


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=int(settings.drain_timeout_s),
    )


def _serve(settings: Settings, build_services: BuildServices) -> int:
    for name in unknown_variables(os.environ):
        get_logger().warning("unknown_setting", name=name)
    try:
        if not settings.is_loopback and not settings.insecure and not read_keys(settings):
            get_logger().error("refused", reason="no API keys beyond loopback; set them or say --insecure")
            return EXIT_START_FAILED
        app = create_app(settings, build_services)
    except (ValueError, OSError) as err:
        get_logger().error("refused", reason=str(err))
        return EXIT_START_FAILED
    lifecycle: Lifecycle = app.state.platform.lifecycle
    server = Server(configured(app, settings), lifecycle=lifecycle, drain_delay_s=settings.drain_delay_s)
    # uvicorn raises a captured signal again after a graceful stop, which would end us with -15.
    previous = signal.signal(signal.SIGTERM, _ignore)
    try:
        server.run()
    except KeyboardInterrupt:
        get_logger().info("interrupted")
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else EXIT_START_FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)
        # Else what is frozen outlives its modules, and a library that counts what it lent calls that leaks, at length.
        gc.unfreeze()
    return lifecycle.exit_code


def _keep_what_is_loaded() -> None:
    """Take modules and models out of the garbage collector's rounds: one of them stops every thread for .25 s."""
    gc.collect()
    gc.freeze()


def _ignore(number: int, frame: FrameType | None) -> None:
    del number, frame
