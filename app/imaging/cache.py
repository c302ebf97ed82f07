"""What was made of files seen lately: decoding is shared by the tasks that look at one picture, as the pass is."""

import contextlib
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from app.domain import Picture, PixelsAway
from app.runtime.lru import BoundedLru


class Kept(Protocol):
    """Something made of a picture."""

    @property
    def height(self) -> int:
        """Of the oriented picture, px."""
        ...

    @property
    def width(self) -> int:
        """Of the oriented picture, px."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory it takes besides the file."""
        ...


M = TypeVar("M", bound=Kept)


@dataclass(slots=True, kw_only=True)
class _File:
    """One file's forms and what was made of them; `lock` is held while either is worked out."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    picture: Picture | None = None
    made: dict[Hashable, Kept] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        picture = self.picture.size_bytes if self.picture is not None else 0
        return picture + sum(value.size_bytes for value in list(self.made.values()))


class PictureCache:
    """Files by their bytes, the least recently used dropped first; used by several threads.

    Who asks for a file that is being decoded waits for that, so that equal requests at once decode once.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._files = BoundedLru(_File, max_bytes=max_bytes)

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._files.max_bytes

    @property
    def size_bytes(self) -> int:
        """Memory held now."""
        return self._files.size_bytes

    def known(self, data: bytes, what: Hashable, make: Callable[[Picture], M]) -> M | None:
        """As `made`, where it needs no pixels: it was made before, or `make` asks for forms alone that were.

        Waits for nobody, and takes no longer than what `make` does with forms. Raises as `make`.
        """
        file = self._files.known(data)
        if file is None:
            return None
        found = file.made.get(what)
        if found is None and file.picture is not None:
            with contextlib.suppress(PixelsAway):
                found = file.made[what] = make(file.picture.remembered())
                self._files.weigh(data, file, file.size_bytes + len(data))
        return found  # type: ignore[return-value]  # `what` says which type it has

    def made(self, data: bytes, what: Hashable, decode: Callable[[], Picture], make: Callable[[Picture], M]) -> M:
        """What `make` made of the file, now or before.

        Args:
            data: the file.
            what: tells apart what different calls make of one file; equal ones must make the same.

        Raises:
            Whatever `decode` and `make` raise; the next to ask tries again.
        """
        file = self._files.entry(data)
        with file.lock:
            known = file.made.get(what)
            if known is not None:
                return known  # type: ignore[return-value]  # `what` says which type it has
            try:
                if file.picture is None:
                    file.picture = decode()
                value = make(file.picture)
                file.made[what] = value
            finally:
                if file.picture is not None:
                    # Megabytes that another task needs only to cut tiles; what was made takes a sixtieth of them.
                    file.picture.let_pixels_go()
                self._files.weigh(data, file, file.size_bytes + len(data))
        return value
