"""WebSocket connections: uvicorn's protocol with the bound on the pace of a client that reads."""

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.api.transport.connections import Config, SendPace


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket connection; a client that does not read is closed as over HTTP."""

    config: Config

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._sending = SendPace(self.config.connections.limits)
        self.config.connections.adopt(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.connections.remove(self)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._sending.drained()
        super().resume_writing()

    def check(self, elapsed_s: float) -> None:
        """As in `Connection`."""
        if self._sending.is_stuck(self.transport, elapsed_s):
            self.config.connections.count_refused("slow_reader")
            self.abort()

    def abort(self) -> None:
        """As in `Connection`."""
        self.transport.abort()
