"""The dense stage: what the dense path learns from the views of `training.heads.scene_views`.

The cells of a view are matched with its names or the background, and an object's cells together with its name among
all names.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from models.heads.posteriors import ClassPosteriors, ExpertClassifier
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from training.heads.feature_store import CLASS_MAP, DeviceStore
from training.heads.pairs import NONE, concept_numbers
from training.heads.scene_views import UNKNOWN, SceneViews

SCENES = 24  # scene views a step
DENSE_WEIGHT, REGION_WEIGHT, AREA_WEIGHT = 0.7, 0.5, 0.3
WITHHELD_SHARE = 0.1  # share of present names that a scene is not asked for
LEAST_CELLS = 8  # objects that fill fewer cells do not count as regions
LEAST_SHARE = 0.2  # of a view whose cells are unknown that its name fills at least
_NO_TARGET = -100


class DenseStage(nn.Module):
    """Modules trained for `dense`: all of the U-head that the pool does not read, and the segmentation head.

    Of class posteriors only the weights in the dense map are trained.
    """

    def __init__(
        self,
        uhead: UHead,
        segmentation: SegmentationHead,
        joined: tuple[ClassPosteriors, ExpertClassifier] | None = None,
    ) -> None:
        super().__init__()
        self.uhead = uhead
        self.segmentation = segmentation
        self.weights = nn.ParameterList([joined[0].dense_weight, joined[0].image_weight] if joined else [])
        self._joined = joined  # in a tuple, so that its other weights are no weights of this module

    def train(self, mode: bool = True) -> Self:
        """As `Module.train`; the pool is trained already."""
        super().train(mode)
        self.uhead.pool.eval()
        return self

    def dense(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns `dense` of a store's maps, [B, D, h, w]."""
        taps, levels = split_maps(maps)
        dense = self.uhead.dense(taps, levels)
        if self._joined is None:
            return dense
        posteriors, classifier = self._joined
        with torch.no_grad():
            features = classifier.features(maps[CLASS_MAP])
            logits, mean = classifier.logits(features.permute(0, 2, 3, 1).flatten(0, 2)), features.mean(dim=(2, 3))
            semantic = posteriors.semantic(self.uhead.pooled(taps, levels), mean, classifier.logits(mean))
        return posteriors.dense(dense, features, logits, semantic)


class DenseLoss:
    """Losses of the cells of composed scenes.

    Args:
        stage: on the device that trains.
        scenes: N views.
        maps: their frozen maps, row by row.
        embeddings: name → [D] unit embedding of every prompt.
        with_unseen: also unseen scenes and names, for release heads.
    """

    def __init__(
        self,
        stage: DenseStage,
        scenes: SceneViews,
        maps: DeviceStore,
        embeddings: Mapping[str, torch.Tensor],
        *,
        with_unseen: bool,
    ) -> None:
        device = stage.segmentation.log_scale.device
        names = scenes.names(with_unseen)
        numbers = {name: number for number, name in enumerate(embeddings)}
        self._stage = stage
        self._scenes = scenes
        self._maps = maps
        self._with_unseen = with_unseen
        self._labels = torch.from_numpy(scenes.labels).to(device)
        self._has_unknown = bool((scenes.labels == UNKNOWN).any())
        self._present = concept_numbers(scenes.present, numbers).to(device)
        self._absent = concept_numbers(scenes.absent, numbers).to(device)
        self._embeddings = torch.stack(list(embeddings.values())).to(device)
        self._named = torch.tensor([numbers[name] for name in names], device=device)
        # The last entry answers for NONE, which indexes from the end.
        self._targets = torch.full((len(numbers) + 1,), _NO_TARGET, device=device)
        self._targets[self._named] = torch.arange(len(names), device=device)

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """[`SCENES`] rows, and [`SCENES`, P] random numbers that withhold names."""
        rows = torch.from_numpy(self._scenes.draw(SCENES, self._with_unseen, generator))
        chances = torch.rand((SCENES, self._present.shape[1]), generator=generator)
        return rows.to(self._present.device), chances.to(self._present.device)

    def losses(self, rows: torch.Tensor, chances: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns two scalars, or three with views of `UNKNOWN` cells.

        `dense`: cross-entropy of every cell over background and prompts, with some present names withheld and absent
        ones added. `regions`: cross-entropy of every object's mean cell over all names. `areas`: cross-entropy of the
        areas that names fill, where cells are unknown, with more for a name that fills next to nothing.
        """
        dense = self._stage.dense(self._maps.read(rows))
        labels, present = self._labels[rows].long(), self._present[rows]
        is_unknown = labels == UNKNOWN
        labels = labels.masked_fill(is_unknown, 0)
        is_asked = (chances >= WITHHELD_SHARE) & (present != NONE)
        is_asked[:, 0] |= ~is_asked.any(dim=1)  # at least one name
        prompts = torch.cat([present.masked_fill(~is_asked, NONE), self._absent[rows]], dim=1)
        logits = self._stage.segmentation.logits(dense, self._embeddings[prompts])
        # Prompts that fill up a row can win no cell.
        logits[:, 1:].masked_fill_((prompts == NONE)[..., None, None], float("-inf"))
        # Cells of a withheld name count as background.
        counts = F.pad(is_asked, (1, 0), value=True).gather(1, labels.flatten(1)).view_as(labels)
        wanted = (labels * counts).masked_fill(is_unknown, _NO_TARGET)
        cells = F.cross_entropy(logits, wanted, ignore_index=_NO_TARGET, reduction="sum")
        found = {
            "dense": DENSE_WEIGHT * cells / (~is_unknown).sum().clamp(min=1),
            "regions": REGION_WEIGHT * self._regions(dense, labels, present),
        }
        if self._has_unknown:
            found["areas"] = AREA_WEIGHT * _area_loss(logits, is_unknown.flatten(1).all(dim=1))
        return found

    def _regions(self, dense: torch.Tensor, labels: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the objects' mean directions over all names, without objects of few cells."""
        numbers = torch.arange(1, present.shape[1] + 1, device=labels.device)
        masks = (labels.flatten(1)[:, None] == numbers[:, None]).float()
        sizes = masks.sum(dim=2)
        means = torch.einsum("bnp,bdp->bnd", masks, F.normalize(dense, dim=1).flatten(2))
        scale = self._stage.segmentation.log_scale.exp().clamp(max=100)
        logits = scale * F.normalize(means, dim=2) @ self._embeddings[self._named].T
        wanted = self._targets[present].masked_fill(sizes < LEAST_CELLS, _NO_TARGET)
        total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=_NO_TARGET, reduction="sum")
        return total / (wanted != _NO_TARGET).sum().clamp(min=1)


def _area_loss(logits: torch.Tensor, is_unknown: torch.Tensor) -> torch.Tensor:
    """Of maps [B, N + 1, h, w] whose first name is all that is known, where `is_unknown` [B] says so."""
    areas = logits.softmax(dim=1).mean(dim=(2, 3))[:, 1:]
    right = areas[:, 0].clamp(min=1e-6)
    losses = areas.sum(dim=1).clamp(min=1e-6).log() - right.log() - (right / LEAST_SHARE).clamp(max=1).log()
    return (losses * is_unknown).sum() / is_unknown.sum().clamp(min=1)


def split_maps(maps: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A store's maps as the U-head takes them: taps by name, expert levels in order."""
    taps = {name.removeprefix("sd."): values for name, values in maps.items() if name.startswith("sd.")}
    levels = sorted(name for name in maps if name.startswith("expert."))
    return taps, [maps[name] for name in levels]
