"""Reads the data set that `vermouth data build` wrote."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError

DEFAULT_FOLDER = Path("~/.cache/vermouth/data")

Strokes = list[list[list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRecord:
    """One row of pictures.npy; see `training.data.build` for the fields."""

    row: int
    source: str
    kind: str
    hexcode: str | None
    name: str
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingRecord:
    """One person's drawing and the emoji classes that show the same thing."""

    word: str
    key_id: str
    hexcodes: tuple[str, ...]
    split: str
    validation: bool
    strokes: Strokes


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Pictures, their transparency, and drawings.

    Attributes:
        pixels: [N, 128, 128, 3] uint8 RGB on white, memory-mapped.
        alpha: [N, 128, 128] uint8, memory-mapped.
        pictures: N records, row by row.
        drawings: all drawings.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    pictures: tuple[PictureRecord, ...]
    drawings: tuple[DrawingRecord, ...]

    def rows(self, keep: Callable[[PictureRecord], bool]) -> list[PictureRecord]:
        """The picture records for which `keep` holds, in order."""
        return [record for record in self.pictures if keep(record)]


def load_dataset(folder: Path) -> DataSet:
    """Opens a data set. Raises DataError when it is missing or was not finished."""
    folder = folder.expanduser()
    if not (folder / "manifest.json").is_file():
        raise DataError(f"no finished data set in {folder}: run `vermouth data build`")
    lines = (folder / "pictures.jsonl").read_text().splitlines()
    with gzip.open(folder / "drawings.jsonl.gz", "rt") as drawings:
        parsed = [json.loads(line) for line in drawings]
    return DataSet(
        pixels=np.load(folder / "pictures.npy", mmap_mode="r"),
        alpha=np.load(folder / "alpha.npy", mmap_mode="r"),
        pictures=tuple(PictureRecord(**json.loads(line)) for line in lines),
        drawings=tuple(
            DrawingRecord(
                word=d["word"],
                key_id=d["key_id"],
                hexcodes=tuple(d["hexcodes"]),
                split=d["split"],
                validation=d["validation"],
                strokes=d["drawing"],
            )
            for d in parsed
        ),
    )
