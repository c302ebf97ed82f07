"""Stored images as responses."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.stores.blobs import OpenBlob

ReadPart = Callable[[OpenBlob], Awaitable[bytes]]


REVALIDATED = {"Cache-Control": "private, no-cache"}
"""Headers of an image that another may replace under its address: browsers ask each time, and get a 304."""
UNCHANGING = {"Cache-Control": "private, max-age=31536000, immutable"}


def image_response(
    blob: OpenBlob, read_part: ReadPart, *, media_type: str, tag: str, caching: Mapping[str, str]
) -> Response:
    """The response of a stored image, which closes it.

    Args:
        tag: the content names its own version: images never change under a digest.
        caching: `REVALIDATED` or `UNCHANGING`.
    """
    headers = {"ETag": f'"{tag}"', "Content-Length": str(blob.size), **caching}
    if not blob.is_whole:
        return _ImageStream(blob, read_part, media_type, headers)
    data = blob.read()
    blob.close()
    return Response(data, media_type=media_type, headers=headers)


class _ImageStream(StreamingResponse):
    """A large image, read as the client takes it."""

    def __init__(self, blob: OpenBlob, read_part: ReadPart, media_type: str, headers: dict[str, str]) -> None:
        super().__init__(self._parts(), media_type=media_type, headers=headers)
        self._blob = blob
        self._read_part = read_part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._blob.close()

    async def _parts(self) -> AsyncIterator[bytes]:
        while part := await self._read_part(self._blob):
            yield part
