"""Trains the U-head and the segmentation head on frozen features: what a sketch, a picture, a word and a pixel mean.

Losses on one batch: sketches find pictures of the same thing and back; both find their names; the cells of composed
scenes find theirs, or the background; and an object's cells together find its name among all names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional as F

from models.heads.places import PlacesPool, Standard
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.training.feature_store import EXPERT_CELLS, TAP_CELLS, MapReader
from models.training.loop import Schedule, fit
from models.training.losses import contrastive_loss, symmetric_contrastive_loss
from models.training.scene_views import SceneViews
from models.training.views import ViewSet

PAIRS = 512
"""Drawings find pictures among so many: with 128, twice the steps reach half as far (docs/adr/0018)."""
SCENES = 24
STANDARD_VIEWS, STANDARD_SCENES = 4096, 256
"""Rows that means and deviations are measured on."""
SKETCH_SHARES = {"drawing": 0.46, "outline": 0.26, "edges": 0.22, "icon": 0.06}
DENSE_WEIGHT = 0.7
REGION_WEIGHT = 0.2
TEXT_WEIGHT = 0.5
CHANNEL_DROPOUT = 0.15
"""Share of a map's channels that go missing at random in training, so that none is relied on alone."""
LEAST_CELLS = 8
"""Objects that fill fewer cells do not count as regions."""


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


class HeadsModule(nn.Module):
    """What is trained together: both heads and the logit scales of the two contrastive losses."""

    def __init__(self, uhead: UHead, segmentation: SegmentationHead) -> None:
        super().__init__()
        self.uhead = uhead
        self.segmentation = segmentation
        self.log_pair_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.log_name_scale = nn.Parameter(torch.tensor(20.0).log())


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
    """Draws (sketch, partner) rows that show the same thing; the partner is a picture where there is one."""

    def __init__(self, views: ViewSet, rows: NDArray[np.int64]) -> None:
        self._views = views
        self._sketches = {
            kind: np.array([row for row in rows if views.kinds[row] == kind], dtype=np.int64) for kind in SKETCH_SHARES
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
        shares = np.array([SKETCH_SHARES[kind] for kind in kinds])
        chosen = rng.choice(len(kinds), size=count, p=shares / shares.sum())
        sketches = np.array([rng.choice(self._sketches[kinds[kind]]) for kind in chosen])
        partners = [rng.choice(self._partners[rng.choice(list(self._views.concepts[row]))]) for row in sketches]
        return sketches, np.array(partners)


class HeadLoss:
    """What one batch of pairs and scenes asks of both heads."""

    def __init__(
        self,
        module: HeadsModule,
        views: ViewSet,
        maps: MapReader,
        scenes: SceneViews,
        scene_maps: MapReader,
        embed: Callable[[list[str]], torch.Tensor],
        *,
        with_unseen: bool,
    ) -> None:
        rows = np.arange(len(views.kinds)) if with_unseen else np.flatnonzero(~views.is_unseen)
        rows = rows[[views.concepts[row] != () for row in rows]]
        codes = sorted({code for row in rows for code in views.concepts[row]})
        self._vocabulary = {code: number for number, code in enumerate(codes)}
        names = collect_names(views, rows, self._vocabulary, embed)
        self._names = names
        self._shown = concept_matrix(views.concepts, self._vocabulary)
        self._module = module
        self._maps = maps
        self._sampler = PairSampler(views, rows)
        self._dense = DenseLoss(module, scenes, scene_maps, with_unseen)

    def __call__(self, generator: torch.Generator, *, pairs: int, scenes: int) -> dict[str, torch.Tensor]:
        """Four scalars: `pairs`, `names`, and those of `DenseLoss`."""
        sketches, partners = self._sampler.draw(pairs, generator)
        both = np.concatenate([sketches, partners])
        pooled = self._module.uhead.pool(all_cells(self._maps.read(both)))
        pair_logits = self._module.log_pair_scale.exp().clamp(max=100) * pooled[:pairs] @ pooled[pairs:].T
        name_logits = self._module.log_name_scale.exp().clamp(max=100) * pooled @ self._names.embeddings.T
        same = sharing(self._shown[sketches], self._shown[partners])
        named = sharing(self._shown[both], self._names.concepts)
        return {
            "pairs": symmetric_contrastive_loss(pair_logits, same),
            "names": TEXT_WEIGHT * contrastive_loss(name_logits, named),
            **self._dense(generator, scenes),
        }


def train_heads(
    module: HeadsModule,
    views: ViewSet,
    store: MapReader,
    scenes: SceneViews,
    scene_store: MapReader,
    embed: Callable[[list[str]], torch.Tensor],
    schedule: Schedule,
    *,
    with_unseen: bool,
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None],
) -> HeadsModule:
    """Trains or goes on training; returns the module with averaged weights.

    Args:
        views: all training views; `store` holds the cells of their frozen maps row by row.
        scenes: composed scenes, `scene_store` their frozen maps; those of unseen classes are used only `with_unseen`.
        embed: names → [G, D] unit embeddings, as served.
        with_unseen: release heads (True) or zero-shot heads (False).
    """
    for part in module.modules():
        if isinstance(part, Standard):
            part.dropout.p = CHANNEL_DROPOUT
    loss = HeadLoss(module, views, store, scenes, scene_store, embed, with_unseen=with_unseen)
    torch.manual_seed(seed)
    module.to(memory_format=torch.channels_last)
    averaged = fit(
        module,
        lambda generator: loss(generator, pairs=PAIRS, scenes=SCENES),
        schedule,
        folder=folder,
        seed=seed,
        progress=progress,
    )
    module.load_state_dict(averaged)
    return module.eval().requires_grad_(False)


def split_maps(maps: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A store's maps as the U-head takes them: taps by name, expert levels in order."""
    taps = {name.removeprefix("sd."): values for name, values in maps.items() if name.startswith("sd.")}
    levels = sorted(name for name in maps if name.startswith("expert."))
    return taps, [maps[name] for name in levels]


def all_cells(cells: dict[str, torch.Tensor]) -> torch.Tensor:
    """A store's cells as the U-head's pool takes them, [B, C, side, side]."""
    return torch.cat([cells[TAP_CELLS], cells[EXPERT_CELLS]], dim=1)


def measure_standards(uhead: UHead, views: MapReader, scenes: MapReader) -> None:
    """Mean and deviation of every channel: of the views' cells for `pooled`, of the scenes' maps for `dense`."""
    if isinstance(uhead.pool, PlacesPool):
        uhead.pool.standard.measure(all_cells(views.read(_spread(len(views), STANDARD_VIEWS))))
    uhead.measure(*split_maps(scenes.read(_spread(len(scenes), STANDARD_SCENES))))


def _spread(rows: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, rows - 1, min(rows, count)).astype(np.int64)


class DenseLoss:
    """What the cells of composed scenes are asked; unseen scenes and names only `with_unseen`."""

    def __init__(self, module: HeadsModule, scenes: SceneViews, maps: MapReader, with_unseen: bool) -> None:
        self._module = module
        self._scenes = scenes
        self._maps = maps
        self._with_unseen = with_unseen
        names = scenes.names(with_unseen)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._embeddings = torch.stack([scenes.embeddings[name] for name in names])

    def __call__(self, generator: torch.Generator, count: int) -> dict[str, torch.Tensor]:
        """Two scalars, from `count` scenes.

        `dense`: cross-entropy of every cell over background and prompts, some present names withheld, absent ones
        among them. `regions`: cross-entropy of every object's mean cell over all names.
        """
        rows = self._scenes.draw(count, self._with_unseen, generator)
        dense = self._module.uhead.dense(*split_maps(self._maps.read(rows)))
        cells: torch.Tensor = dense.new_zeros(())
        regions: list[torch.Tensor] = []
        wanted: list[int] = []
        for row, features in zip(rows, dense, strict=True):
            prompts, targets = self._scenes.targets(int(row), generator)
            logits = self._module.segmentation.logits(features[None], prompts)
            cells = cells + F.cross_entropy(logits, targets[None]) / len(rows)
            directions = F.normalize(features, dim=0).flatten(1)
            labels = torch.from_numpy(self._scenes.labels[row].astype(np.int64)).flatten()
            for label, name in enumerate(self._scenes.present[row], 1):
                mask = labels == label
                if int(mask.sum()) >= LEAST_CELLS:
                    regions.append(directions[:, mask].mean(dim=1))
                    wanted.append(self._numbers[name])
        named: torch.Tensor = dense.new_zeros(())
        if regions:
            scale = self._module.segmentation.log_scale.exp().clamp(max=100)
            logits = scale * F.normalize(torch.stack(regions), dim=1) @ self._embeddings.T
            named = F.cross_entropy(logits, torch.tensor(wanted))
        return {"dense": DENSE_WEIGHT * cells, "regions": REGION_WEIGHT * named}
