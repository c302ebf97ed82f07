"""Pairs of views that show the same thing, drawn for the pooled stage."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from training.heads.views import ViewSet

NONE = -1  # fills up a row of `concept_numbers`
_IMAGES = ("picture", "photograph")


class PairSampler:
    """Draws (sketch, partner) rows that show the same thing; the partner is an image if there is one.

    Photographs take part as sketches where they have a share. A partner is as often a photograph as another image where
    there are both, and photographs of frequent names are drawn less often each.

    Args:
        views: all views.
        rows: those to draw from.
        shares: of every kind of sketch among pairs.
    """

    def __init__(self, views: ViewSet, rows: NDArray[np.int64], shares: Mapping[str, float]) -> None:
        kinds = np.array(views.kinds)[rows]
        self._sketches = {kind: rows[kinds == kind] for kind in shares if (kinds == kind).any()}
        self._odds = {kind: _even_odds(views, found) for kind, found in self._sketches.items() if kind == "photograph"}
        chances = np.array([shares[kind] for kind in self._sketches])
        self._shares = chances / chances.sum()
        pictured = {code for row in rows[np.isin(kinds, _IMAGES)] for code in views.concepts[row]}
        # Partners of each concept: first photographs, then everything else.
        partners: dict[str, tuple[list[int], list[int]]] = {}
        for row in rows:
            for code in views.concepts[row]:
                if views.kinds[row] in _IMAGES or code not in pictured:
                    partners.setdefault(code, ([], []))[views.kinds[row] != "photograph"].append(int(row))
        # Partners in one flat array, so that a whole batch is drawn without a loop.
        numbers = {code: number for number, code in enumerate(partners)}
        self._concepts = concept_numbers(views.concepts, numbers).numpy()
        self._counts = (self._concepts != NONE).sum(axis=1)
        self._sizes = np.array([[len(found) for found in both] for both in partners.values()])
        self._starts = np.concatenate([[0], self._sizes.ravel().cumsum()[:-1]]).reshape(-1, 2)
        self._partners = np.array([row for both in partners.values() for found in both for row in found])

    def draw(self, count: int, generator: torch.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[count] sketch rows and their [count] partner rows."""
        # One draw from torch's generator seeds NumPy's, so that a resumed run continues the same pairs.
        rng = np.random.default_rng(int(torch.randint(0, 2**62, (1,), generator=generator)))
        drawn = rng.multinomial(count, self._shares)
        sketches = np.concatenate(
            [
                rng.choice(rows, number, p=self._odds.get(kind))
                for (kind, rows), number in zip(self._sketches.items(), drawn, strict=True)
            ]
        )
        concepts = self._concepts[sketches, rng.integers(self._counts[sketches])]
        sizes = self._sizes[concepts]
        group = sizes.argmax(axis=1)
        if (has_both := sizes.all(axis=1)).any():
            group[has_both] = rng.integers(2, size=has_both.sum())
        partners = self._partners[self._starts[concepts, group] + rng.integers(self._sizes[concepts, group])]
        return sketches, partners


def _even_odds(views: ViewSet, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Odds of rows so that a name is drawn as often as the root of its number of rows."""
    _, numbers, counts = np.unique([views.names[row] for row in rows], return_inverse=True, return_counts=True)
    odds = 1 / np.sqrt(counts[numbers])
    return np.asarray(odds / odds.sum(), np.float64)


def concept_numbers(concepts: Sequence[tuple[str, ...]], vocabulary: Mapping[str, int]) -> torch.Tensor:
    """[N, C] int64: numbers of each entry's concepts, filled up with `NONE`; unknown concepts are left out."""
    known = [[vocabulary[code] for code in codes if code in vocabulary] for codes in concepts]
    found = np.full((len(known), max(map(len, known), default=0)), NONE)
    for row, numbers in enumerate(known):
        found[row, : len(numbers)] = numbers
    return torch.from_numpy(found)
