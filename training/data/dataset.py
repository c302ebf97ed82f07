"""The data set of the embedded default: its records, its split into seen and unseen, and its reader.

On disk: `pictures.npy` [N, 128, 128, 3] uint8 on white, `alpha.npy` [N, 128, 128] uint8, `pictures.jsonl` with one
record a row, `drawings.jsonl.gz`, and `manifest.json`.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError

DEFAULT_FOLDER = Path("~/.cache/vermouth/data")
PIXELS, ALPHA, RECORDS = "pictures.npy", "alpha.npy", "pictures.jsonl"
DRAWINGS, MANIFEST = "drawings.jsonl.gz", "manifest.json"
SIDE = 128  # of every image, px

Split = Literal["seen", "unseen", "none", "evaluation"]
Strokes = list[list[list[float]]]

# Words that describe how something is shown, not what it is: they never make a name unseen.
_GENERIC_TOKENS = frozenset(
    "a an and the of with without on in at for to by or no not is as from up down left right big small large "
    "little black white red blue green yellow orange brown purple pink grey gray dark light face person man woman "
    "men women people sign symbol button mark old new front back side open closed two three one top over under "
    "circle square simple line fill half full plus minus x outline medium heavy hand eyes mouth smiling".split()
)
_IRREGULAR = dict(
    pair.split(":")
    for pair in "children:child feet:foot geese:goose knives:knife leaves:leaf loaves:loaf men:man mice:mouse "
    "minus:minus scarves:scarf teeth:tooth wolves:wolf women:woman".split()
)
_OTHER_NAMES = {
    "car": ("automobile",),
    "coffee cup": ("coffee",),
    "hat": ("tophat",),
    "house": ("home", "cottage"),
    "moustache": ("whiskers",),
    "rabbit": ("bunny",),
    "speedboat": ("motorboat",),
}
_POSSESSIVE = re.compile(r"[’']s?\b")
_SPELLINGS = {"doughnut": "donut", "doughnuts": "donuts", "grey": "gray", "mustache": "moustache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """Source, name and split of one row of the pixels."""

    row: int  # of `DataSet.pixels`
    source: str  # package or style, such as `noto` or `phosphor-bold`
    kind: str  # `picture`, `outline`, `icon` or `clipart`
    hexcode: str | None  # of the OpenMoji class, or None
    name: str  # of the class or the file
    split: str  # see `Split`


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingRecord:
    """One person's drawing."""

    word: str  # that the person was asked to draw
    key_id: str  # of Quick, Draw!
    hexcodes: tuple[str, ...]  # OpenMoji classes that show the same thing
    split: str  # of the word
    validation: bool  # excluded from all training
    strokes: Strokes  # `[[x…], [y…]]` in 0–255


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Images, their transparency, and people's drawings."""

    pixels: NDArray[np.uint8]  # [N, 128, 128, 3] uint8 RGB on white, memory-mapped
    alpha: NDArray[np.uint8]  # [N, 128, 128] uint8, memory-mapped
    images: tuple[ImageRecord, ...]  # N records, row by row
    drawings: tuple[DrawingRecord, ...]  # strokes of all drawings

    def rows(self, condition: Callable[[ImageRecord], bool]) -> list[ImageRecord]:
        """The image records that meet a condition, in order."""
        return [record for record in self.images if condition(record)]


def load_dataset(folder: Path) -> DataSet:
    """Open a data set.

    Raises:
        DataError: it is missing or unfinished.
    """
    folder = folder.expanduser()
    if not (folder / MANIFEST).is_file():
        raise DataError(f"no finished data set in {folder}: run `vermouth data build`")
    with gzip.open(folder / DRAWINGS, "rt") as lines:
        drawings = [json.loads(line) for line in lines]
    return DataSet(
        pixels=np.load(folder / PIXELS, mmap_mode="r"),
        alpha=np.load(folder / ALPHA, mmap_mode="r"),
        images=tuple(ImageRecord(**json.loads(line)) for line in (folder / RECORDS).read_text().splitlines()),
        drawings=tuple(
            DrawingRecord(strokes=fields.pop("drawing"), hexcodes=tuple(fields.pop("hexcodes")), **fields)
            for fields in drawings
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The contents of splits.json and concepts.json."""

    seen: frozenset[str]  # OpenMoji hexcodes
    unseen: frozenset[str]  # OpenMoji hexcodes
    unseen_words: frozenset[str]  # drawing words excluded from everything behind a zero-shot figure
    validation_drawings: frozenset[str]  # `key_id`s excluded from all training
    concepts: dict[str, tuple[str, ...]]  # drawing word → hexcodes that show the same thing

    def of_class(self, hexcode: str) -> Split:
        """The split of an emoji class; `none` for one outside the protocol."""
        if hexcode in self.unseen:
            return "unseen"
        return "seen" if hexcode in self.seen else "none"

    def of_word(self, word: str) -> Split:
        """The split of a drawing word."""
        return "unseen" if word in self.unseen_words else "seen"


def load_splits(folder: Path) -> Splits:
    """Read splits.json and concepts.json.

    Raises:
        DataError: one of them is missing.
    """
    try:
        splits = json.loads((folder / "splits.json").read_text())
        concepts = json.loads((folder / "concepts.json").read_text())
    except FileNotFoundError as err:
        raise DataError(f"no {Path(err.filename).name} in {folder}: point --drawings at the shared data") from err
    return Splits(
        seen=frozenset(splits["seen"]),
        unseen=frozenset(splits["unseen"]),
        unseen_words=frozenset(splits["unseen_words"]),
        validation_drawings=frozenset(str(key) for key in splits["validation_drawings"]),
        concepts={word: tuple(codes) for word, codes in concepts.items()},
    )


def load_drawings(folder: Path, splits: Splits) -> Iterator[DrawingRecord]:
    """Yield the drawings of every `*.ndjson` and `*.ndjson.gz` of a folder, in Quick, Draw!'s own form.

    Raises:
        DataError: there is no such file.
    """
    files = sorted([*folder.glob("*.ndjson"), *folder.glob("*.ndjson.gz")])
    if not files:
        raise DataError(f"no *.ndjson drawings in {folder}")
    for file in files:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            for line in lines:
                row = json.loads(line)
                yield DrawingRecord(
                    word=row["word"],
                    key_id=str(row["key_id"]),
                    hexcodes=splits.concepts.get(row["word"], ()),
                    split=splits.of_word(row["word"]),
                    validation=str(row["key_id"]) in splits.validation_drawings,
                    strokes=[[stroke[0], stroke[1]] for stroke in row["drawing"]],  # the raw form adds times
                )


def tokens(name: str) -> frozenset[str]:
    """The words that identify an unseen name: its stems without generic words, or all stems if all are generic."""
    words = stems(name)
    return words - _GENERIC_TOKENS or words


def unseen_names(splits: Splits, annotations: Iterable[str]) -> list[frozenset[str]]:
    """The tokens of every unseen word, and of the unseen emoji classes of these annotations, for `named_like`."""
    names = [*annotations, *splits.unseen_words]
    names += [other for word in splits.unseen_words for other in _OTHER_NAMES.get(word, ())]
    return [tokens(name) for name in names]


def stems(name: str) -> frozenset[str]:
    """Lower-case words of a name or file name, singular and in one spelling."""
    return frozenset(
        _singular(_SPELLINGS.get(word, word)) for word in re.findall(r"[a-z]+", _POSSESSIVE.sub("", name.lower()))
    )


def named_like(name: str, unseen: Iterable[frozenset[str]]) -> bool:
    """Returns True if a file's name contains all the words of some unseen name; its image then counts as unseen.

    Words of four letters and more also count inside others and across spaces ("bluewhale", "fire truck"). This
    excludes some images without need ("train" contains "rain") and admits no unseen one.
    """
    own = stems(name)
    joined = re.sub(r"[^a-z]", "", name.lower())
    return any(_contains(own, joined, words) for words in unseen if words)


def _contains(own: frozenset[str], joined: str, words: frozenset[str]) -> bool:
    if all(word in own or (len(word) > 3 and word in joined) for word in words):
        return True
    # Orders of four words and more are too many to try for every file.
    return 1 < len(words) < 4 and any("".join(order) in joined for order in permutations(words))


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses", "zzes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
