"""Layers that cancel a request's handler: at its deadline, or when its client disconnects."""

import asyncio

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware.context import HttpLayer
from app.errors import DeadlineExceeded, Malformed


class RequestDeadline(HttpLayer):
    """Answers 504 to a request whose response has not begun at its deadline.

    The deadline is the setting, or `X-Request-Timeout-Ms` where that is less. Endpoints read it as
    `state.deadline_at_s`, a time of the event loop's clock.
    """

    def __init__(self, app: ASGIApp, *, deadline_s: float) -> None:
        super().__init__(app)
        self._deadline_s = deadline_s

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed_s = self._allowed_s(HTTPConnection(scope).headers.get("x-request-timeout-ms"))
        if allowed_s is None:
            error = Malformed("X-Request-Timeout-Ms must be a whole number of milliseconds above zero.")
            await self.refuse(error, scope, receive, send)
            return
        scope["state"]["deadline_at_s"] = asyncio.get_running_loop().time() + allowed_s
        try:
            async with asyncio.timeout(allowed_s) as timeout:

                async def send_and_lift(message: Message) -> None:
                    # A response that has begun, such as an export, may take as long as it needs.
                    if message["type"] == "http.response.start":
                        timeout.reschedule(None)
                    await send(message)

                await self.app(scope, receive, send_and_lift)
        except TimeoutError:
            if not timeout.expired():
                raise
            late = DeadlineExceeded("The request took longer than its deadline.")
            await self.refuse(late, scope, receive, send)

    def _allowed_s(self, header: str | None) -> float | None:
        if header is None:
            return self._deadline_s
        if not (header.isascii() and header.isdigit() and 0 < len(header) < 10) or int(header) == 0:
            return None
        return min(self._deadline_s, int(header) / 1000)


class DisconnectWatch(HttpLayer):
    """Cancels the handler of a request whose client disconnects before the response begins."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        worker = asyncio.current_task()
        has_begun, is_gone = False, asyncio.Event()
        watch: asyncio.Task[None] | None = None

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            is_gone.set()
            if not has_begun and worker is not None:
                worker.cancel()

        async def receive_and_watch() -> Message:
            nonlocal watch
            if watch is not None:
                await is_gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            # Only one task may call `receive`: the watch takes over after the last part of the body.
            if message["type"] == "http.request" and not message.get("more_body", False):
                watch = asyncio.create_task(wait_for_disconnect())
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive_and_watch, send_and_note)
        except asyncio.CancelledError:
            # Swallow the watch's own cancellation only; one from outside, such as a shutdown, goes on.
            if not is_gone.is_set() or worker is None or worker.uncancel() > 0:
                raise
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
