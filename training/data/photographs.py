"""Photographs, TU-Berlin sketches and clothing masks, from archives or from folders of the same layout."""

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import DataError
from training.data.backgrounds import Family
from training.data.dataset import DataSet, Splits, named_like, stems, unseen_names

BACKGROUNDS = "backgrounds"  # the source whose photographs have no name
TU_BERLIN = "tu-berlin"
_TU_BERLIN_VALIDATION = 16  # sketches a class, the last by number
_PAREN = re.compile(r"\(.*?\)")
# Unseen by the data's rules: classes of TU-Berlin, and photographs whose name hides what they show.
_UNSEEN_SKETCHES = frozenset(
    "barn;bear (animal);beer-mug;book;brain;bridge;bush;butterfly;calculator;canoe;car (sedan);cigarette;cloud;"
    "computer-mouse;cow;crocodile;donut;ear;fire hydrant;flashlight;flying saucer;fork;giraffe;hand;hat;helicopter;"
    "house;key;keyboard;knife;lighter;lion;lobster;mouth;mug;owl;rabbit;race car;rollerblades;santa claus;scorpion;"
    "speed-boat;spider;suv;teacup;tire;toothbrush;traffic light;wheel;wrist-watch".split(";")
)
_UNSEEN_PHOTOGRAPHS = frozenset(("beach wagon", "convertible", "inline skate", "limousine", "watch"))
_SYNONYMS = {
    "grape": "grapes",
    "pant": "pants",
    "rhino": "rhinoceros",
    "teddy": "teddybear",
    "trousers": "pants",
    "trouser": "pants",
    "tv": "television",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedImage:
    """An image file and the name of what it shows."""

    file: str  # in its archive
    source: str  # data set
    name: str  # of the class; empty where there is none
    is_validation: bool  # excluded from all training
    is_unseen: bool  # zero-shot heads must not see it


class Archive:
    """Files of a ZIP archive, or of the folder of the same name without `.zip`; `names` are their paths, sorted.

    Raises:
        DataError: there is neither.
    """

    def __init__(self, file: Path) -> None:
        folder = file.with_suffix("")
        self._root: Path | zipfile.Path = folder
        if folder.is_dir():
            self.names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            return
        if not file.is_file():
            raise DataError(f"no {file} and no folder {folder}: name the data's folder with --data")
        # In memory: forked processes would share the position of an open file.
        archive = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
        self.names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        self._root = zipfile.Path(archive)

    def read(self, name: str) -> bytes:
        """Returns a file's bytes."""
        return (self._root / name).read_bytes()

    def pixels(self, name: str) -> NDArray[np.uint8]:
        """Returns an image, [H, W, 3] uint8 RGB."""
        with Image.open(io.BytesIO(self.read(name))) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """Images of one archive."""

    archive: Archive
    images: tuple[NamedImage, ...]


def load_photographs(folder: Path, unseen: Iterable[frozenset[str]] = ()) -> ImageFiles:
    """Reads the index of the photographs.

    Args:
        folder: holds `photographs.jsonl.gz`, and `photographs.zip` or `photographs/`.
        unseen: tokens of unseen names, see `unseen_of`; photographs named like one are unseen.

    Raises:
        DataError: one of them is missing.
    """
    index, hidden = folder / "photographs.jsonl.gz", list(unseen)
    if not index.is_file():
        raise DataError(f"no {index}: name the data's folder with --data")
    with gzip.open(index, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    flags = {name: bool(name) and shows_unseen(name, hidden) for name in {_name(row) for row in rows}}
    images = (
        NamedImage(
            file=row["file"],
            source=row["source"],
            name=_name(row),
            is_validation=row["split"] == "validation",
            is_unseen=flags[_name(row)],
        )
        for row in rows
    )
    return ImageFiles(archive=Archive(folder / "photographs.zip"), images=tuple(images))


def load_sketches(folder: Path) -> ImageFiles:
    """Reads the index of TU-Berlin, `<class>/<number>.png`.

    Raises:
        DataError: there is neither `tu-berlin.zip` nor `tu-berlin/`.
    """
    archive = Archive(folder / f"{TU_BERLIN}.zip")
    classes: dict[str, list[str]] = {}
    for file in archive.names:
        if file.endswith(".png"):
            classes.setdefault(Path(file).parent.name, []).append(file)
    images = []
    for name, files in sorted(classes.items()):
        ordered = sorted(files, key=lambda file: int(Path(file).stem))
        validation = set(ordered[-_TU_BERLIN_VALIDATION:])
        images += [
            NamedImage(
                file=file,
                source=TU_BERLIN,
                name=name,
                is_validation=file in validation,
                is_unseen=name in _UNSEEN_SKETCHES,
            )
            for file in ordered
        ]
    return ImageFiles(archive=archive, images=tuple(images))


def photographed_background(files: ImageFiles, *, is_validation: bool) -> Family:
    """Returns a family of backgrounds of scenes: parts of the photographs that show nothing in particular."""
    images = [i for i in files.images if i.source == BACKGROUNDS and i.is_validation == is_validation]

    def background(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
        pixels = files.archive.pixels(images[int(generator.integers(len(images)))].file)
        height, width = pixels.shape[:2]
        length = max(1, int(min(height, width) * generator.uniform(0.5, 1)))
        top, left = (int(generator.integers(size - length + 1)) for size in (height, width))
        part = Image.fromarray(pixels).crop((left, top, left + length, top + length))
        return np.asarray(part.resize((side, side), Image.Resampling.BICUBIC), np.float32)

    return background


def unseen_of(splits: Splits, data: DataSet) -> list[frozenset[str]]:
    """Returns the tokens of all unseen words and emoji, for `load_photographs`."""
    return unseen_names(splits, {r.name for r in data.images if r.split == "unseen" and r.hexcode is not None})


def _name(row: Mapping[str, str]) -> str:
    return "" if row["source"] == BACKGROUNDS else row["name"]


def shows_unseen(name: str, unseen: list[frozenset[str]]) -> bool:
    """Returns True if a photograph of this name counts as unseen, see `training.data.dataset.named_like`."""
    return name in _UNSEEN_PHOTOGRAPHS or named_like(name, unseen)


def imagenet_names() -> list[str]:
    """Returns the names of ImageNet-1k's classes in the order of its classifiers, as open_clip carries them."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES  # here: it imports much more

    return list(IMAGENET_CLASSNAMES)


def thing(name: str) -> str:
    """Returns what a name is called in all sources: `cell phone`, `cellphone` and `Cell-phones` are one thing."""
    words = re.findall(r"[a-z]+", _PAREN.sub("", name.lower()))
    joined = "".join(next(iter(stems(word)), word) for word in words)
    return _SYNONYMS.get(joined, joined)


def concepts_by_thing(data: DataSet) -> dict[str, tuple[str, ...]]:
    """Returns the concepts of every emoji's name and every drawing's word, by `thing`; those of words win."""
    found: dict[str, tuple[str, ...]] = {thing(r.name): (r.hexcode,) for r in data.images if r.hexcode is not None}
    found |= {thing(d.word): d.hexcodes or (f"word:{d.word}",) for d in data.drawings}
    return found


def concepts_of(name: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the concepts of a photograph's or sketch's name: those of the same thing, else one of its own."""
    if not name:
        return ()
    return known.get(thing(name), (f"thing:{thing(name)}",))
