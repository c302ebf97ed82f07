"""Archives built in tests, and what is read from them."""

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from app.cli.importing.files import Importable, Skip, SourceOptions
from app.cli.importing.sources import find_sources, read_sources
from tests.app.api.images import png

PNG = png(width=8, height=8)


def read(*sources: Path | str, **options: object) -> list[Importable]:
    found = replace(SourceOptions(), **options)  # type: ignore[arg-type]  # named options
    return [*read_sources(find_sources([str(one) for one in sources]), found)]


def added(found: Sequence[Importable]) -> dict[str, Importable]:
    """Images that would be sent, by name."""
    return {one.name: one for one in found if one.fault is None and one.skip is None}


def faults(found: Sequence[Importable]) -> dict[str, str]:
    return {one.name: one.fault for one in found if one.fault is not None and one.skip is None}


def skips(found: Sequence[Importable]) -> Counter[Skip]:
    return Counter(one.skip for one in found if one.skip is not None)


def member(name: str, data: bytes = b"", *, link: str | None = None, kind: bytes | None = None) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    if link is not None:
        entry.type, entry.linkname = kind or tarfile.LNKTYPE, link
    return entry


def write_tar(
    path: Path, files: Sequence[tuple[str, bytes]], links: Sequence[tarfile.TarInfo] = (), mode: str = "w"
) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # one of its modes
        for name, data in files:
            archive.addfile(member(name, data), io.BytesIO(data))
        for link in links:
            archive.addfile(link)
    return path
