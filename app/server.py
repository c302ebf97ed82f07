"""The server process: it listens before it loads, drains before it stops, and reports its end by an exit code."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from app.api.deps import Platform
from app.api.transport.connections import Config, ConnectionLimits, Connections, connection_limit
from app.api.transport.forwarded import ForwardedHeaders
from app.api.transport.protocol import HttpProtocol
from app.api.transport.websocket import WebSocketProtocol
from app.composition import build_services as build_default_services
from app.main import BuildServices, create_app
from app.runtime.logging import configure_logging, logs_in_background
from app.runtime.process import EXIT_START_FAILED, Lifecycle, keep_freed_memory
from app.runtime.telemetry import get_logger
from app.settings import Settings, unknown_variables

MAX_MESSAGE_BYTES = 1 << 20
"""Of one WebSocket message; a larger one closes the connection with 1009."""
SWITCH_S = 0.001
"""How long a thread may hold the interpreter while the event loop waits for it; 5 ms by default."""
BACKLOG = 128
"""Connections that the kernel holds until they are accepted, which may be all at once: before any is counted."""


class Server(uvicorn.Server):
    """uvicorn's server, except that it keeps accepting for a while after SIGTERM, and stops when the service fails.

    uvicorn closes the listeners first on a signal, and refuses the requests that a load balancer still sends.
    """

    def __init__(self, config: uvicorn.Config, *, lifecycle: Lifecycle, drain_delay_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_delay_s = drain_delay_s
        lifecycle.on_ready = _freeze_heap
        lifecycle.on_failure = self.end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Enter the draining phase, accept requests for the delay, then shut down as uvicorn does."""
        self._lifecycle.drain()
        if self._lifecycle.exit_code == 0 and not self.force_exit:
            get_logger().info("draining", delay_s=self._drain_delay_s)
            await asyncio.sleep(self._drain_delay_s)
        await super().shutdown(sockets)

    def end(self) -> None:
        """Stop soon, as after a signal."""
        self.should_exit = True


def serve(settings: Settings, build_services: BuildServices = build_default_services) -> int:
    """Run the service until a signal or a failure stops it.

    Returns:
        The exit code: 0 after a signal, 3 when the start failed, 70 after a fatal device error.
    """
    keep_freed_memory()
    _ensure_temporary_folder(settings.data_dir)
    sys.setswitchinterval(SWITCH_S)
    configure_logging(level=settings.log_level, as_json=settings.log_json)
    with logs_in_background():
        exit_code, reason = _serve(settings, build_services)
    if reason:  # below the log, where a person looks
        sys.stderr.write(f"error: the service did not start: {reason}\n")
    return exit_code


def _ensure_temporary_folder(data_dir: Path) -> None:
    """Use a folder of the data where the system offers none, as in a container that is read-only: torch needs one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        folder = data_dir.resolve() / "tmp"
        with contextlib.suppress(OSError):  # the stores report a data folder that cannot be written
            folder.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(folder)  # of child processes too


def configured(app: FastAPI, settings: Settings, limits: ConnectionLimits | None = None) -> Config:
    """How uvicorn serves the app; `limits` replace those of the settings."""
    chosen = limits or ConnectionLimits(
        max_connections=connection_limit(settings.max_connections), keep_alive_s=settings.keep_alive_s
    )
    return Config(
        ForwardedHeaders(app, root_path=settings.root_path, trusted_proxies=settings.trusted_proxies),
        proxy_headers=False,  # read by the app that is given here
        connections=Connections(chosen, app.state.platform.telemetry),
        http=HttpProtocol,
        ws=WebSocketProtocol,
        backlog=BACKLOG,
        host=settings.host,
        port=settings.port,
        log_config=None,  # configured by `configure_logging`
        access_log=False,  # the middleware logs requests
        server_header=False,
        ws_max_size=MAX_MESSAGE_BYTES,
        timeout_graceful_shutdown=int(settings.drain_timeout_s),
    )


def _serve(settings: Settings, build_services: BuildServices) -> tuple[int, str]:
    """Run the service; returns the exit code, and what to do where it could not start."""
    for name in unknown_variables(os.environ):
        get_logger().warning("unknown_setting", name=name)
    try:
        app = create_app(settings, build_services)
    except (ValueError, OSError) as err:
        get_logger().error("refused", reason=str(err))
        return EXIT_START_FAILED, f"{err}."
    platform: Platform = app.state.platform
    # Keys that open metrics alone leave every other route open.
    if not settings.is_loopback and not settings.insecure and not platform.keys.are_on:
        get_logger().error("refused", reason="no API keys beyond loopback: set API keys or pass --insecure")
        advice = "make one with `vermouth keys create NAME` and set VERMOUTH_API_KEYS_FILE, or pass --insecure"
        return EXIT_START_FAILED, f"it wants an API key to listen at {settings.host}: {advice}."
    lifecycle = platform.lifecycle
    server = Server(configured(app, settings), lifecycle=lifecycle, drain_delay_s=settings.drain_delay_s)
    # Uvicorn handles signals while it runs. After a graceful stop it raises the captured one again, which would kill
    # this process with -15; one that comes before must stop it too.
    previous = signal.signal(signal.SIGTERM, lambda _number, _frame: server.end())
    try:
        server.run()
    except KeyboardInterrupt:
        get_logger().info("interrupted")
    except SystemExit as err:
        reason = f"it cannot listen at {settings.host}:{settings.port}: choose another --port or --host."
        return (err.code if isinstance(err.code, int) else EXIT_START_FAILED), reason
    finally:
        signal.signal(signal.SIGTERM, previous)
        # Unfreeze, or a library reports false leaks at exit.
        gc.unfreeze()
    return lifecycle.exit_code, lifecycle.reason


def _freeze_heap() -> None:
    """Exempt modules and models from garbage collection: a full collection stops every thread for 0.25 s."""
    gc.collect()
    gc.freeze()
