"""The pooled stage: sketches find images of the same thing and back, and both find their names."""

from collections.abc import Callable, Mapping
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
from training.heads.pairs import NONE, PairSampler, concept_numbers
from training.heads.views import ViewSet

PAIRS = 512  # pairs a step: with 128, twice the steps reach half as far (docs/adr/0018)
POOLED, MIRRORED = "pooled", "pooled.mirrored"  # vectors of a trained pool, in place of cells
TEXT_WEIGHT = 0.5
DISTILLATION_WEIGHT = 0.5
_FILES = ("photograph", "sketch")  # kinds that were not mirrored when their views were drawn

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
        self._count = len(codes)
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
        pooled, distilled = self._joined(self._own(maps, is_mirrored), maps, self._is_photograph[both])
        name_logits = _bounded(self._stage.log_name_scale) * pooled @ self._names.embeddings.T
        return {
            "pairs": self._pairs(pooled, shown),
            "names": TEXT_WEIGHT * contrastive_loss(name_logits, self._names.of(shown)),
            **distilled,
        }

    def _own(self, maps: Mapping[str, torch.Tensor], is_mirrored: torch.Tensor) -> torch.Tensor:
        """The pool's vectors, or those that a pool made before where the store has them."""
        if POOLED in maps:
            return torch.where(is_mirrored[:, None], maps[MIRRORED], maps[POOLED])
        own: torch.Tensor = self._stage.pool(all_cells(maps))
        return own

    def _pairs(self, pooled: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        scale = _bounded(self._stage.log_pair_scale)
        sketches, images, drawn, imaged = pooled[:PAIRS], pooled[PAIRS:], shown[:PAIRS], shown[PAIRS:]
        if self._memory is None:
            return symmetric_contrastive_loss(scale * sketches @ images.T, sharing(drawn, imaged, self._count))
        old_sketches, old_drawn, old_images, old_imaged = self._memory.halves()
        self._memory.write(pooled, shown)
        found = contrastive_loss(
            scale * sketches @ torch.cat([images, old_images]).T,
            sharing(drawn, torch.cat([imaged, old_imaged]), self._count),
        )
        back = contrastive_loss(
            scale * images @ torch.cat([sketches, old_sketches]).T,
            sharing(imaged, torch.cat([drawn, old_drawn]), self._count),
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
    checkpoint, so that a run that is continued fills it again.
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


def sharing(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """[A, B] bool: rows of [A, C] and [B, C'] numbers of `count` concepts that have one in common."""
    has = torch.zeros((count + 1, len(right)), dtype=torch.bool, device=left.device)
    has[right, torch.arange(len(right), device=left.device)[:, None]] = True
    has[NONE] = False  # the last row
    return has[left].any(dim=1)
