"""The server's side of the decoder processes: whatever is untrusted is decoded and drawn there (docs/adr/0027).

Images of little work have processes of their own, so that they never wait for large ones, nor for one that hangs: it
is ended after a tenth of a second, and asked again beside the large ones, with seconds.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import Any, TypeVar

from app.domain import Limits
from app.errors import EngineUnavailable, InferenceFailed, ServiceError, TooMuchWork, UndecodableImage
from app.imaging.fork_server import ForkServer
from app.imaging.messages import (
    NO,
    QUICK_PIXELS,
    YES,
    Answer,
    DecodeRequest,
    DecoderProcess,
    Failure,
    Opened,
    Reply,
    open_limit_s,
    work_limit_s,
)
from app.runtime.telemetry import get_logger

RETRY_AFTER_S = 5.0
_OPEN_TURN_S = 0.05  # headers of one request are read for so long before the next request has a turn
T = TypeVar("T")
Charge = Callable[[int, int], None]


class _Ending(Enum):
    """Why a process gave no answer."""

    HEAVY = auto()  # asked, and not begun: too much work for a quick one
    OVERRUN = auto()
    CRASH = auto()


class DecoderProcesses:
    """Processes that handle one image each; `count` of them at once for quick images and as many for others.

    A process that dies is replaced behind the answer. Used by one event loop.
    """

    def __init__(self, count: int, *, limits: Limits, fork_server: ForkServer | None = None) -> None:
        self.count = count
        self._limits = limits
        self._fork_server = fork_server or ForkServer(limits=limits)
        self._quick, self._slow = asyncio.Semaphore(count), asyncio.Semaphore(count)
        self._orders = ThreadPoolExecutor(1, thread_name_prefix="fork")  # the default one may be busy for seconds
        self._is_stopped = False
        self._all: set[DecoderProcess] = set()
        self._idle: list[DecoderProcess] = []
        self._adding: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes."""
        return [process.pid for process in self._all]

    @property
    def has_room(self) -> bool:
        """Whether a quick image would be begun at once."""
        return not self._quick.locked()

    def start(self) -> None:
        """Start a process in the background, so that the first image does not wait for it."""
        self._spare()

    async def make(self, request: DecodeRequest, charge: Charge) -> Answer:
        """Decode or draw an image in a process; `charge` is called with its size before that, and may refuse it.

        Raises:
            ServiceError: the image's own, or that of `charge`; also for an image that kills or hangs its process.
            EngineUnavailable: no process starts.
        """
        is_charged = False

        def charge_once(opened: Opened) -> None:
            nonlocal is_charged
            if not is_charged:
                charge(opened.width, opened.height)
                is_charged = True

        async with self._quick:
            reply = await self._attempt(request, charge_once)
        if isinstance(reply, _Ending):
            reply = await self._asked_again(request, charge_once)
        if not isinstance(reply, Answer):
            raise _error_of(reply)
        return reply

    async def open_all(self, requests: Sequence[DecodeRequest], charge: Charge) -> list[ServiceError | None]:
        """Call `charge` with the sizes of images in order, from their headers; it may end that by raising.

        Returns:
            The error of each bad image, None for the others.
        """
        found: list[ServiceError | None] = []
        loop = asyncio.get_running_loop()
        while len(found) < len(requests):
            reply: Reply | _Ending | None = None
            async with self._quick:
                until_s = loop.time() + _OPEN_TURN_S
                while len(found) < len(requests) and loop.time() < until_s:
                    reply = await self._attempt(requests[len(found)], None)
                    if isinstance(reply, _Ending):
                        break
                    found.append(_charged(reply, charge))
            if isinstance(reply, _Ending):
                found.append(_charged(await self._asked_again(requests[len(found)], None), charge))
        return found

    async def stop(self) -> None:
        """Kill all processes; images that wait for one are refused."""
        self._is_stopped = True
        if self._adding is not None:  # its process is ended too
            await asyncio.wait([self._adding])
        for pid in self.pids:
            await self._ordered(partial(self._fork_server.end, pid))
        await self._ordered(self._fork_server.stop)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self._idle.copy():
            self._forget(process)

    async def _attempt(self, request: DecodeRequest, charge: Callable[[Opened], None] | None) -> Reply | _Ending:
        process = await self._take()
        is_reusable = False
        try:
            await process.send(request)
            reply = await process.receive(request, open_limit_s(request))
            if isinstance(reply, Opened) and charge is not None:
                try:
                    charge(reply)
                except ServiceError:
                    await process.tell(NO)
                    is_reusable = True
                    raise
                if request.is_quick and reply.work_pixels > QUICK_PIXELS:
                    await process.tell(NO)
                    is_reusable = True
                    return _Ending.HEAVY
                await process.tell(YES)
                reply = await process.receive(request, work_limit_s(reply.work_pixels, request))
            is_reusable = request.is_quick
            return reply
        except TimeoutError:
            return _Ending.OVERRUN
        except (EOFError, OSError, ValueError):
            return await self._ending_of(process)
        finally:
            if is_reusable:
                self._idle.append(process)
            elif process in self._all:
                self._forget(process)
                self._later(self._end(process))

    async def _asked_again(self, request: DecodeRequest, charge: Callable[[Opened], None] | None) -> Reply | _Ending:
        slow = replace(request, is_quick=False)
        async with self._slow:
            reply = await self._attempt(slow, charge)
            # A death may have other causes than the file, twice in a row too.
            return await self._attempt(slow, charge) if reply is _Ending.CRASH else reply

    async def _take(self) -> DecoderProcess:
        while True:
            if self._is_stopped:
                raise EngineUnavailable("No image can be decoded now.", retry_after_s=RETRY_AFTER_S)
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    if not self._idle:
                        self._spare()  # for the next image
                    return process
                self._forget(process)
                self._later(self._end(process))
            # Not cancelled with the caller: else the process belongs to nobody.
            await asyncio.shield(self._spare())

    def _spare(self) -> asyncio.Task[None]:
        if self._adding is None or self._adding.done():
            self._adding = self._later(self._add())
        return self._adding

    async def _add(self) -> None:
        try:
            pid, connection = await self._ordered(self._fork_server.fork)
        except OSError as err:
            get_logger().error("decoder_not_started", exc_info=err)
            raise EngineUnavailable("No image can be decoded now.", retry_after_s=RETRY_AFTER_S) from err
        process = DecoderProcess(pid, connection)
        self._all.add(process)
        self._idle.append(process)

    async def _end(self, process: DecoderProcess) -> int:
        return await self._ordered(partial(self._fork_server.end, process.pid))

    async def _ordered(self, order: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._orders, order)

    async def _ending_of(self, process: DecoderProcess) -> _Ending:
        self._forget(process)
        # Not cancelled with the caller: else nobody kills and reaps it.
        status = await asyncio.shield(self._later(self._end(process)))
        is_overrun = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        get_logger().warning("decoder_ended", status=status, is_overrun=is_overrun)
        return _Ending.OVERRUN if is_overrun else _Ending.CRASH

    def _forget(self, process: DecoderProcess) -> None:
        self._all.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        process.close()

    def _later(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # logged already, and raised where an image waits for it


def _charged(reply: Reply | _Ending, charge: Charge) -> ServiceError | None:
    if not isinstance(reply, Opened):
        return _error_of(reply)
    charge(reply.width, reply.height)
    return None


def _error_of(reply: Reply | _Ending) -> ServiceError:
    if isinstance(reply, ServiceError):
        return reply
    if isinstance(reply, Failure):
        get_logger().error("decoder_failed", traceback=reply.traceback)
        return InferenceFailed("The image could not be decoded, by a fault of the service.")
    if reply is _Ending.OVERRUN:
        return TooMuchWork("The image takes too long to decode; make it smaller or simpler.")
    return UndecodableImage("The image ends the process that decodes it.")
