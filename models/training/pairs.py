"""Which views show the same thing, and pairs of them to learn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from models.training.views import ViewSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Every name training uses.

    Attributes:
        names: G distinct names.
        embeddings: [G, D] float32, unit length.
        concepts: [G, K] 0 or 1, sparse: the concepts a name stands for.
    """

    names: tuple[str, ...]
    embeddings: torch.Tensor
    concepts: csr_array


def concept_matrix(concepts: Sequence[tuple[str, ...]], vocabulary: dict[str, int]) -> csr_array:
    """[N, K] 0 or 1, sparse: which concepts of the vocabulary each entry names; others are left out."""
    known = [[vocabulary[code] for code in codes if code in vocabulary] for codes in concepts]
    starts = np.cumsum([0, *map(len, known)])
    columns = np.array([column for row in known for column in row], dtype=np.int64)
    return csr_array((np.ones(len(columns), np.float32), columns, starts), shape=(len(concepts), len(vocabulary)))


def sharing(left: csr_array, right: csr_array) -> torch.Tensor:
    """[A, B] bool: which rows of two concept matrices name a concept in common."""
    return torch.from_numpy((left @ right.T).toarray() > 0)


def collect_names(
    views: ViewSet, rows: NDArray[np.int64], vocabulary: dict[str, int], embed: Callable[[list[str]], torch.Tensor]
) -> Names:
    """The distinct names of some views, with all the concepts each is used for."""
    concepts: dict[str, set[str]] = {}
    for row in rows:
        if views.names[row]:
            concepts.setdefault(views.names[row], set()).update(views.concepts[row])
    names = tuple(sorted(concepts))
    return Names(
        names=names,
        embeddings=embed(list(names)),
        concepts=concept_matrix([tuple(concepts[name]) for name in names], vocabulary),
    )


class PairSampler:
    """Draws (sketch, partner) rows that show the same thing; the partner is a picture where there is one.

    Args:
        views: all views.
        rows: those to draw from.
        shares: of every kind of sketch among pairs.
    """

    def __init__(self, views: ViewSet, rows: NDArray[np.int64], shares: Mapping[str, float]) -> None:
        self._views = views
        self._shares = dict(shares)
        self._sketches = {
            kind: np.array([row for row in rows if views.kinds[row] == kind], dtype=np.int64) for kind in shares
        }
        self._partners: dict[str, list[int]] = {}
        pictured = {code for row in rows if views.kinds[row] == "picture" for code in views.concepts[row]}
        for row in rows:
            for code in views.concepts[row]:
                if views.kinds[row] == "picture" or code not in pictured:
                    self._partners.setdefault(code, []).append(int(row))

    def draw(self, count: int, generator: torch.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`count` sketch rows and their partner rows."""
        rng = np.random.default_rng(int(torch.randint(0, 2**62, (1,), generator=generator)))
        kinds = [kind for kind, rows in self._sketches.items() if len(rows)]
        shares = np.array([self._shares[kind] for kind in kinds])
        chosen = rng.choice(len(kinds), size=count, p=shares / shares.sum())
        sketches = np.array([rng.choice(self._sketches[kinds[kind]]) for kind in chosen])
        partners = [rng.choice(self._partners[rng.choice(list(self._views.concepts[row]))]) for row in sketches]
        return sketches, np.array(partners)
