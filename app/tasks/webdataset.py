"""Export of a gallery as a webdataset: a tar whose files with one key are one item."""

import json
import tarfile
from collections.abc import AsyncIterable, AsyncIterator

from app.stores.records.exports import Exported

TAR = "application/x-tar"
_BLOCK_BYTES = 512
_SUFFIXES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif", "image/bmp": "bmp"}


async def webdataset(images: AsyncIterable[tuple[Exported, bytes]]) -> AsyncIterator[bytes]:
    """Yields the tar. A key is a running number, since a key ends at its first dot and ids may have dots."""
    number = 0
    async for one, data in images:
        files = {
            _SUFFIXES.get(one.media_type, one.media_type.rpartition("/")[2]): data,
            "json": json.dumps(dict(one.metadata), ensure_ascii=False).encode(),
            "id": one.id.encode(),
        }
        if one.caption is not None:
            files["txt"] = one.caption.encode()
        yield b"".join(_member(f"{number:08}.{suffix}", content) for suffix, content in files.items())
        number += 1
    yield bytes(2 * _BLOCK_BYTES)  # the end marker: a tar without it was cut short


def _member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK_BYTES)
