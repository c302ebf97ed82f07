"""Which views show the same thing, and pairs of them to learn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.heads.views import ViewSet

NONE = -1
"""Where a row of `concept_numbers` ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Every name training uses.

    Attributes:
        names: G distinct names.
        embeddings: [G, D] float32, unit length.
        stands_for: [K + 1, G] bool: which names are used for a concept; the last row is of `NONE`, which has none.
    """

    names: tuple[str, ...]
    embeddings: torch.Tensor
    stands_for: torch.Tensor

    def of(self, concepts: torch.Tensor) -> torch.Tensor:
        """[B, C] concept numbers → [B, G] bool: which names each row may be called by."""
        return self.stands_for[concepts].any(dim=1)


def concept_numbers(concepts: Sequence[tuple[str, ...]], vocabulary: Mapping[str, int]) -> torch.Tensor:
    """[N, C] int64: the concepts each entry names, filled up with `NONE`; those not in the vocabulary are left out."""
    known = [[vocabulary[code] for code in codes if code in vocabulary] for codes in concepts]
    found = np.full((len(known), max(map(len, known), default=0)), NONE)
    for row, numbers in enumerate(known):
        found[row, : len(numbers)] = numbers
    return torch.from_numpy(found)


def sharing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[A, B] bool: which rows of [A, C] and [B, C'] concept numbers have one in common."""
    found = torch.zeros((len(left), len(right)), dtype=torch.bool, device=left.device)
    for one in left.T:
        for other in right.T:
            found |= (one[:, None] == other[None]) & (one[:, None] != NONE)
    return found


def collect_names(
    views: ViewSet, rows: NDArray[np.int64], vocabulary: dict[str, int], embed: Callable[[list[str]], torch.Tensor]
) -> Names:
    """The distinct names of some views, with all the concepts each is used for."""
    concepts: dict[str, set[str]] = {}
    for row in rows:
        if views.names[row]:
            concepts.setdefault(views.names[row], set()).update(views.concepts[row])
    names = tuple(sorted(concepts))
    stands_for = torch.zeros((len(vocabulary) + 1, len(names)), dtype=torch.bool)
    for column, name in enumerate(names):
        stands_for[[vocabulary[code] for code in concepts[name]], column] = True
    return Names(names=names, embeddings=embed(list(names)), stands_for=stands_for)


class PairSampler:
    """Draws (sketch, partner) rows that show the same thing; the partner is a picture where there is one.

    Args:
        views: all views.
        rows: those to draw from.
        shares: of every kind of sketch among pairs.
    """

    def __init__(self, views: ViewSet, rows: NDArray[np.int64], shares: Mapping[str, float]) -> None:
        kinds = np.array(views.kinds)[rows]
        self._sketches = {kind: rows[kinds == kind] for kind in shares if (kinds == kind).any()}
        chances = np.array([shares[kind] for kind in self._sketches])
        self._shares = chances / chances.sum()
        pictured = {code for row in rows[kinds == "picture"] for code in views.concepts[row]}
        partners: dict[str, list[int]] = {}
        for row in rows:
            for code in views.concepts[row]:
                if views.kinds[row] == "picture" or code not in pictured:
                    partners.setdefault(code, []).append(int(row))
        numbers = {code: number for number, code in enumerate(partners)}
        self._concepts = concept_numbers(views.concepts, numbers).numpy()
        self._counts = (self._concepts != NONE).sum(axis=1)
        self._sizes = np.array([len(found) for found in partners.values()])
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        self._partners = np.array([row for found in partners.values() for row in found])

    def draw(self, count: int, generator: torch.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`count` sketch rows and their partner rows."""
        rng = np.random.default_rng(int(torch.randint(0, 2**62, (1,), generator=generator)))
        drawn = rng.multinomial(count, self._shares)
        sketches = np.concatenate(
            [rng.choice(rows, number) for rows, number in zip(self._sketches.values(), drawn, strict=True)]
        )
        concepts = self._concepts[sketches, rng.integers(self._counts[sketches])]
        partners = self._partners[self._starts[concepts] + rng.integers(self._sizes[concepts])]
        return sketches, partners
