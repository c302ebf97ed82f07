"""The pooled stage: sketches find images of the same thing and back, and both find their names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from models.heads.posteriors import ClassPosteriors, ExpertClassifier
from models.heads.uhead import UHead
from training.devices import CPU
from training.heads.feature_store import CLASS_FEATURES, EXPERT_CELLS, TAP_CELLS, AdaptedCells, DeviceStore
from training.heads.views import ViewSet

PAIRS = 512  # pairs a step: with 128, twice the steps reach half as far (docs/adr/0018)
TEXT_WEIGHT = 0.5
DISTILLATION_WEIGHT = 0.5
_IMAGES = ("picture", "photograph")
_FILES = ("photograph", "sketch")  # kinds that were not mirrored when their views were drawn
NONE = -1  # fills up a row of `concept_numbers`

Embed = Callable[[list[str]], torch.Tensor]  # names → [G, D] unit embeddings, as served


class PooledStage(nn.Module):
    """Modules trained for `pooled`: the U-head's pool, the expert's adapters, what joins posteriors, and two scales."""

    def __init__(
        self, uhead: UHead, adapters: nn.ModuleList | None = None, posteriors: ClassPosteriors | None = None
    ) -> None:
        super().__init__()
        self.pool = uhead.pool
        self.adapters = adapters if adapters is not None else nn.ModuleList()
        self.posteriors = posteriors
        self.log_pair_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # as CLIP starts
        self.log_name_scale = nn.Parameter(torch.tensor(20.0).log())


class PairLoss:
    """Losses of a batch of pairs.

    Args:
        stage: on the device that trains.
        views: all training views.
        cells: cells of their maps that the pool reads, row by row.
        embed: of their names.
        with_unseen: release heads (True) or zero-shot heads (False).
        shares: of every kind of sketch among pairs.
        classifier: the expert's, for a stage with posteriors.
        memory: batches before the present one that pairs are also compared with.
    """

    def __init__(
        self,
        stage: PooledStage,
        views: ViewSet,
        cells: DeviceStore | AdaptedCells,
        embed: Embed,
        *,
        with_unseen: bool,
        shares: Mapping[str, float],
        classifier: ExpertClassifier | None = None,
        memory: int = 0,
    ) -> None:
        rows = trained_rows(views, with_unseen)
        codes = sorted({code for row in rows for code in views.concepts[row]})
        vocabulary = {code: number for number, code in enumerate(codes)}
        device = stage.log_pair_scale.device
        self._names = collect_names(views, rows, vocabulary, embed, device=device)
        self._shown = concept_numbers(views.concepts, vocabulary).to(device)
        self._stage = stage
        self._cells = cells
        self._classifier = classifier
        self._is_photograph = torch.tensor([kind == "photograph" for kind in views.kinds], device=device)
        self._is_file = torch.tensor([kind in _FILES for kind in views.kinds], device=device)
        self._has_files = not set(_FILES).isdisjoint(views.kinds)
        self._sampler = PairSampler(views, rows, shares)
        size = (self._shown.shape[1], self._names.embeddings.shape[1])
        self._memory = _Memory(memory, *size, device=device) if memory else None

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """[2 `PAIRS`] rows: sketches, then their partners; and which of them are mirrored."""
        rows = torch.from_numpy(np.concatenate(self._sampler.draw(PAIRS, generator))).to(self._shown.device)
        is_file = self._is_file[rows]
        if not self._has_files:
            return rows, is_file
        return rows, is_file & (torch.rand(len(rows), generator=generator) < 0.5).to(rows.device)

    def losses(self, both: torch.Tensor, is_mirrored: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns two or three scalars.

        `pairs`: sketches and images find each other. `names`: both find names. `posteriors`: what photographs have
        without posteriors is near to them.
        """
        shown, maps = self._shown[both], self._cells.read(both)
        cells = all_cells(maps)
        # The cells of a mirrored file are nearly the mirrored cells.
        own = self._stage.pool(torch.where(is_mirrored[:, None, None, None], cells.flip(3), cells))
        pooled, distilled = self._joined(own, maps, self._is_photograph[both])
        name_logits = _bounded(self._stage.log_name_scale) * pooled @ self._names.embeddings.T
        return {
            "pairs": self._pairs(pooled, shown),
            "names": TEXT_WEIGHT * contrastive_loss(name_logits, self._names.of(shown)),
            **distilled,
        }

    def _pairs(self, pooled: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        scale = _bounded(self._stage.log_pair_scale)
        sketches, images, drawn, imaged = pooled[:PAIRS], pooled[PAIRS:], shown[:PAIRS], shown[PAIRS:]
        if self._memory is None:
            return symmetric_contrastive_loss(scale * sketches @ images.T, sharing(drawn, imaged))
        old_sketches, old_drawn, old_images, old_imaged = self._memory.halves()
        self._memory.write(pooled, shown)
        found = contrastive_loss(
            scale * sketches @ torch.cat([images, old_images]).T, sharing(drawn, torch.cat([imaged, old_imaged]))
        )
        back = contrastive_loss(
            scale * images @ torch.cat([sketches, old_sketches]).T, sharing(imaged, torch.cat([drawn, old_drawn]))
        )
        return 0.5 * (found + back)

    def _joined(
        self, own: torch.Tensor, maps: Mapping[str, torch.Tensor], is_photograph: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The semantic feature, and the loss of posteriors, if there are any."""
        posteriors = self._stage.posteriors
        if posteriors is None or self._classifier is None:
            return own, {}
        features = maps[CLASS_FEATURES].flatten(1)
        logits = self._classifier.logits(features)
        without = F.normalize(posteriors.own(own, features), dim=1)
        distance = 1 - (without * posteriors.vectors(logits)).sum(dim=1)
        mean = (distance * is_photograph).sum() / is_photograph.sum().clamp(min=1)
        return posteriors.semantic(own, features, logits), {"posteriors": DISTILLATION_WEIGHT * mean}


class _Memory:
    """Vectors of the last batches and what they show (cross-batch memory, Wang et al. 2020, arXiv 1912.06798).

    Written in place, so that a GPU can record it. Until it is full it holds vectors of zeros, no one's positives; in no
    checkpoint, so that a run that is continued fills it anew.
    """

    def __init__(self, batches: int, concepts: int, dimension: int, *, device: torch.device) -> None:
        self._vectors = torch.zeros((batches, 2 * PAIRS, dimension), device=device)
        self._shown = torch.full((batches, 2 * PAIRS, concepts), NONE, device=device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)

    def halves(self) -> tuple[torch.Tensor, ...]:
        """Returns vectors [N, D] and concepts [N, C] of sketches, then those of their partners."""
        # Copies: a gradient needs the vectors as they were.
        first, second = slice(PAIRS), slice(PAIRS, None)
        return tuple(
            values[:, half].flatten(0, 1).clone() for half in (first, second) for values in (self._vectors, self._shown)
        )

    def write(self, vectors: torch.Tensor, shown: torch.Tensor) -> None:
        """Replaces the oldest batch."""
        self._vectors.index_copy_(0, self._next, vectors.detach()[None])
        self._shown.index_copy_(0, self._next, shown[None])
        self._next.add_(1).remainder_(len(self._vectors))


def _bounded(log_scale: torch.Tensor) -> torch.Tensor:
    """Returns the scale, at most 100, as CLIP's (Radford et al. 2021, section 2.5)."""
    return log_scale.exp().clamp(max=100)


def trained_rows(views: ViewSet, with_unseen: bool) -> NDArray[np.int64]:
    """Rows of the views that show something, without unseen ones for zero-shot heads."""
    rows = np.arange(len(views.kinds)) if with_unseen else np.flatnonzero(~views.is_unseen)
    return rows[[views.concepts[row] != () for row in rows]]


def contrastive_loss(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """InfoNCE with any number of positives a row (SupCon, Khosla et al. 2020, eq. 2: the mean outside the log).

    Args:
        logits: [A, B] similarities, scaled.
        positives: [A, B] bool; rows without one are left out, and without any row the loss is zero.
    """
    counts = positives.sum(dim=1)
    log_probabilities = F.log_softmax(logits, dim=1).masked_fill(~positives, 0.0)
    rows = -log_probabilities.sum(dim=1) / counts.clamp(min=1)
    return (rows * (counts > 0)).sum() / (counts > 0).sum().clamp(min=1)


def symmetric_contrastive_loss(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """The mean of `contrastive_loss` both ways: rows find columns and columns find rows."""
    return 0.5 * (contrastive_loss(logits, positives) + contrastive_loss(logits.T, positives.T))


def all_cells(cells: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A store's cells as the U-head's pool takes them, [B, C, side, side]."""
    return torch.cat([cells[TAP_CELLS], cells[EXPERT_CELLS]], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Every name that training uses."""

    names: tuple[str, ...]  # G distinct names
    embeddings: torch.Tensor  # [G, D] float32, unit length
    stands_for: torch.Tensor  # [K + 1, G] bool: names used for a concept; the last row, of `NONE`, is False

    def of(self, concepts: torch.Tensor) -> torch.Tensor:
        """[B, C] concept numbers → [B, G] bool: names of each row."""
        return self.stands_for[concepts].any(dim=1)


def collect_names(
    views: ViewSet, rows: NDArray[np.int64], vocabulary: Mapping[str, int], embed: Embed, *, device: torch.device = CPU
) -> Names:
    """The distinct names of some views, with all the concepts each is used for, on `device`."""
    concepts: dict[str, set[str]] = {}
    for row in rows:
        if views.names[row]:
            concepts.setdefault(views.names[row], set()).update(views.concepts[row])
    names = tuple(sorted(concepts))
    stands_for = torch.zeros((len(vocabulary) + 1, len(names)), dtype=torch.bool)
    for column, name in enumerate(names):
        stands_for[[vocabulary[code] for code in concepts[name]], column] = True
    return Names(names=names, embeddings=embed(list(names)).to(device), stands_for=stands_for.to(device))


def concept_numbers(concepts: Sequence[tuple[str, ...]], vocabulary: Mapping[str, int]) -> torch.Tensor:
    """[N, C] int64: numbers of each entry's concepts, filled up with `NONE`; unknown concepts are left out."""
    known = [[vocabulary[code] for code in codes if code in vocabulary] for codes in concepts]
    found = np.full((len(known), max(map(len, known), default=0)), NONE)
    for row, numbers in enumerate(known):
        found[row, : len(numbers)] = numbers
    return torch.from_numpy(found)


def sharing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[A, B] bool: rows of [A, C] and [B, C'] concept numbers that have one in common."""
    found = torch.zeros((len(left), len(right)), dtype=torch.bool, device=left.device)
    # Column by column: a row has a handful of concepts, and [A, B, C, C'] would not fit.
    for one in left.T:
        for other in right.T:
            found |= (one[:, None] == other[None]) & (one[:, None] != NONE)
    return found


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
