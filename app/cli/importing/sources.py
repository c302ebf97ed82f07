"""The sources of an import: patterns of shards, and the reader of each kind."""

import csv
import itertools
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from app.cli.importing.archives import read_folder, read_webdataset, read_zip
from app.cli.importing.files import Importable, SourceOptions, UnreadableSource, printable, status_of
from app.cli.importing.records import read_records
from app.cli.importing.tables import read_table

Reader = Callable[[Path, SourceOptions], Iterator[Importable]]
_READERS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    ((".zip",), read_zip),
    ((".csv", ".tsv", ".txt"), read_table),
    ((".ndjson", ".jsonl"), read_records),
    ((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), read_webdataset),
)
_UNREADABLE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, csv.Error),
    *(OSError, UnicodeDecodeError, NotImplementedError),
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_SHARDS = 100_000


def find_sources(arguments: Sequence[str]) -> list[tuple[Path, Reader]]:
    """Returns each source with its reader; `{000..003}` in a name that does not exist stands for each of the numbers.

    Raises:
        UnreadableSource: one does not exist, or is of another kind.
    """
    paths = [path for argument in arguments for path in _expanded(argument)]
    return [(path, _reader(path)) for path in paths]


def read_sources(sources: Sequence[tuple[Path, Reader]], options: SourceOptions) -> Iterator[Importable]:
    """Yields what the sources hold, in order; of several sources, names begin with theirs.

    Raises:
        UnreadableSource: a source is damaged.
    """
    for path, reader in sources:
        is_empty = True
        try:
            for one in reader(path, options):
                is_empty = False
                yield one if len(sources) == 1 else replace(one, name=f"{printable(path.name)}: {one.name}")
        except _UNREADABLE as err:
            raise UnreadableSource(f"{path} cannot be read: {err}") from err
        if is_empty:
            options.note(f"0 items found in {printable(str(path))}")


def _expanded(argument: str) -> Iterator[Path]:
    ranges = [(found[1], found[2]) for found in _RANGE.finditer(argument)]
    if not ranges or status_of(Path(argument)) is not None:
        yield Path(argument)
        return
    pieces = _RANGE.split(argument)[::3]
    numbers = [range(int(first), int(last) + 1) for first, last in ranges]
    if not 0 < _product(map(len, numbers)) <= _MAX_SHARDS:
        raise UnreadableSource(f"{argument} stands for no source, or for over {_MAX_SHARDS}.")
    for chosen in itertools.product(*numbers):
        filled = [f"{number:0{len(first)}}" for number, (first, _) in zip(chosen, ranges, strict=True)]
        yield Path("".join(part for pair in zip(pieces, [*filled, ""], strict=True) for part in pair))


def _reader(path: Path) -> Reader:
    status = status_of(path)
    if status is None:
        raise UnreadableSource(f"{path} does not exist.")
    if stat.S_ISDIR(status.st_mode):
        return read_folder
    if not stat.S_ISREG(status.st_mode):  # it would be read several times, and a pipe may never end
        raise UnreadableSource(f"{path} is a device, socket or pipe: write it to a file first.")
    name = path.name.lower()
    if name.endswith((".tar.zst", ".zst")):
        raise UnreadableSource(f"{path} is compressed with Zstandard: decompress it first (zstd -d).")
    for suffixes, reader in _READERS:
        if name.endswith(suffixes):
            return reader
    raise UnreadableSource(f"{path} is no folder, .zip, .csv, .ndjson or .tar.")


def _product(lengths: Iterator[int]) -> int:
    total = 1
    for length in lengths:
        total *= length
    return total
