"""The seen/unseen split of shared/data, and the names that count as an unseen class's own."""

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal

from models.errors import DataError

Split = Literal["seen", "unseen", "none", "evaluation"]

# Words that say how something is shown, not what it is; they never make a name unseen.
_GENERIC_TOKENS = frozenset(
    "a an and the of with without on in at for to by or no not is as from up down left right big small large "
    "little black white red blue green yellow orange brown purple pink grey gray dark light face person man woman "
    "men women people sign symbol button mark old new front back side open closed two three one top over under "
    "circle square simple line fill half full plus minus x outline medium heavy hand eyes mouth smiling".split()
)


_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "minus": "minus",
    "scarves": "scarf",
    "teeth": "tooth",
    "wolves": "wolf",
    "women": "woman",
}
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
class Splits:
    """The contents of splits.json and concepts.json.

    Attributes:
        seen, unseen: OpenMoji hexcodes.
        unseen_words: drawing words kept out of everything behind a zero-shot figure.
        validation_drawings: `key_id`s kept out of all training.
        concepts: drawing word → hexcodes that show the same thing.
    """

    seen: frozenset[str]
    unseen: frozenset[str]
    unseen_words: frozenset[str]
    validation_drawings: frozenset[str]
    concepts: dict[str, tuple[str, ...]]

    def of_class(self, hexcode: str) -> Split:
        """The split of an emoji class; `none` for one outside the protocol."""
        if hexcode in self.unseen:
            return "unseen"
        return "seen" if hexcode in self.seen else "none"

    def of_word(self, word: str) -> Split:
        """The split of a drawing word."""
        return "unseen" if word in self.unseen_words else "seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One person's drawing: strokes of ([x…], [y…]) in 0–255."""

    word: str
    key_id: str
    strokes: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


def load_splits(folder: Path) -> Splits:
    """Reads splits.json and concepts.json. Raises DataError when one is missing."""
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


def load_drawings(folder: Path) -> list[Drawing]:
    """Reads every `*.ndjson` and `*.ndjson.gz` of a folder, Quick, Draw!'s own raw or simplified form.

    Raises:
        DataError: there is no such file.
    """
    files = sorted([*folder.glob("*.ndjson"), *folder.glob("*.ndjson.gz")])
    if not files:
        raise DataError(f"no *.ndjson drawings in {folder}")
    drawings = []
    for file in files:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            for line in lines:
                record = json.loads(line)
                drawings.append(
                    Drawing(
                        word=record["word"],
                        key_id=str(record["key_id"]),
                        strokes=tuple((tuple(s[0]), tuple(s[1])) for s in record["drawing"]),
                    )
                )
    return drawings


def tokens(name: str) -> frozenset[str]:
    """The words that tell an unseen name from others: stems without generic words, or all of them when all are."""
    words = stems(name)
    return words - _GENERIC_TOKENS or words


def unseen_names(splits: Splits, annotations: Iterable[str]) -> list[frozenset[str]]:
    """What makes a file's name that of an unseen class or word.

    Args:
        splits: the split.
        annotations: names of the unseen emoji classes.
    """
    names = [*annotations, *splits.unseen_words]
    names += [other for word in splits.unseen_words for other in _OTHER_NAMES.get(word, ())]
    return [tokens(name) for name in names]


def stems(name: str) -> frozenset[str]:
    """Lower-case words of a name or file name, singular and in one spelling."""
    return frozenset(
        _singular(_SPELLINGS.get(word, word)) for word in re.findall(r"[a-z]+", _POSSESSIVE.sub("", name.lower()))
    )


def named_like(name: str, unseen: Iterable[frozenset[str]]) -> bool:
    """Whether a file's name holds all the words of some unseen name: such a picture counts as unseen.

    Words of four letters and more also count inside others and across spaces ("bluewhale", "fire truck"), so that
    some pictures are left out for nothing ("train" holds "rain"), but none is let in.
    """
    own = stems(name)
    joined = re.sub(r"[^a-z]", "", name.lower())
    return any(_holds(own, joined, words) for words in unseen if words)


def _holds(own: frozenset[str], joined: str, words: frozenset[str]) -> bool:
    if all(word in own or (len(word) > 3 and word in joined) for word in words):
        return True
    return 1 < len(words) < 4 and any("".join(order) in joined for order in permutations(words))


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses", "zzes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
