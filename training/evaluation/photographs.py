"""The protocols on photographs: by name, by sketch, from a few examples, and named among all names.

Every query and every image is of a validation split, so that release heads have seen none of them; the names they have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from models.bundle.build import LoadedBundle
from models.bundle.pack import lite0_part, mini_posteriors_shape
from models.bundle.parts import load_classifier, load_expert
from models.encoder import TrainedNetwork
from models.heads.posteriors import ClassPosteriors
from models.transforms import canonical_image, canonical_strokes
from training.data.dataset import DrawingRecord
from training.data.photographs import BACKGROUNDS, ImageFiles, NamedImage, imagenet_names, thing
from training.devices import to_input
from training.evaluation.features import EvaluationCache, plain_batch
from training.evaluation.fewshot import ShotPool, measure
from training.evaluation.metrics import average_precision, hit_at, macro_mean, precision_at, ranked_relevance
from training.evaluation.retrieval import centre, unit_length

EPISODES = ((20, 1), (20, 5))  # (n_way, k_shot)
ALL_SOURCES = "all"
CENTRED = "features, centred"  # kind of vector that loses its mean over the gallery
_NOWHERE = Path()  # folder of a part that lies in a package

Vectors = Mapping[str, NDArray[np.float32]]  # kind of vector → [N, D], unit length


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The validation photographs that have a name."""

    files: ImageFiles
    images: tuple[NamedImage, ...]  # N of them
    things: NDArray[np.str_]  # [N] what each shows, see `training.data.photographs.thing`

    def pixels(self, side: int) -> NDArray[np.uint8]:
        """[N, side, side, 3] uint8, as the service sees them."""
        return np.stack([canonical_image(self.files.archive.pixels(image.file), side) for image in self.images])


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchQueries:
    """Validation sketches of things that the gallery shows."""

    name: str  # of their data set
    things: NDArray[np.str_]  # [Q] what each shows
    is_unseen: NDArray[np.bool_]  # [Q] no zero-shot head has seen such a sketch
    draw: Callable[[int], NDArray[np.uint8]]  # side → [Q, side, side, 3] uint8, canonical


def gallery_of(photographs: ImageFiles) -> Gallery:
    """Returns the gallery of all protocols."""
    images = tuple(i for i in photographs.images if i.is_validation and i.source != BACKGROUNDS)
    return Gallery(files=photographs, images=images, things=np.array([thing(image.name) for image in images]))


def sketch_queries(
    gallery: Gallery, sketches: ImageFiles, drawings: Sequence[DrawingRecord]
) -> tuple[SketchQueries, SketchQueries]:
    """Returns the queries from TU-Berlin and those from Quick, Draw!."""
    shown = set(gallery.things.tolist())
    files = [image for image in sketches.images if image.is_validation and thing(image.name) in shown]
    drawn = [drawing for drawing in drawings if drawing.validation and thing(drawing.word) in shown]
    return (
        SketchQueries(
            name="TU-Berlin",
            things=np.array([thing(image.name) for image in files]),
            is_unseen=np.array([image.is_unseen for image in files]),
            draw=lambda side: np.stack([canonical_image(sketches.archive.pixels(i.file), side) for i in files]),
        ),
        SketchQueries(
            name="Quick, Draw!",
            things=np.array([thing(drawing.word) for drawing in drawn]),
            is_unseen=np.array([drawing.split == "unseen" for drawing in drawn]),
            draw=lambda side: np.stack([canonical_strokes(drawing.strokes, side) for drawing in drawn]),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One model of the tables.

    Attributes:
        name: in tables.
        model: identifies everything that the vectors depend on.
        side: of the views it takes, px.
        encode: [B, side, side, 3] uint8 → vectors by kind.
        embed: names → [N, D] unit embeddings.
        semantic: kinds that names and sketches are compared with.
        shots: kinds that few-shot classification compares; of several the similarities are averaged.
    """

    name: str
    model: str
    side: int
    encode: Callable[[NDArray[np.uint8]], Vectors]
    embed: Callable[[Sequence[str]], torch.Tensor]
    semantic: tuple[str, ...]
    shots: tuple[tuple[str, ...], ...]

    def vectors(self, pixels: NDArray[np.uint8], cache: EvaluationCache) -> dict[str, NDArray[np.float32]]:
        """Returns the vectors of all images by kind, computed once."""
        kinds = sorted({*self.semantic, *(kind for kinds in self.shots for kind in kinds)})

        def joined(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            found = self.encode(batch)
            return np.concatenate([found[kind] for kind in kinds], axis=1)

        sizes = {kind: values.shape[1] for kind, values in self.encode(pixels[:1]).items()}
        whole = cache.features(f"{self.model} {kinds}", joined, pixels)
        ends = np.cumsum([sizes[kind] for kind in kinds])
        parts = dict(zip(kinds, np.split(whole, ends[:-1], axis=1), strict=True))
        return {kind: centre(values) if kind == CENTRED else values for kind, values in parts.items()}


def served(loaded: LoadedBundle) -> Contender:
    """A bundle as served; one with class posteriors also without them, and with nothing else."""
    network, profile = loaded.encoder.network, loaded.info.tasks["retrieval"]
    has_posteriors = isinstance(network, TrainedNetwork) and network.posteriors is not None

    @torch.inference_mode()
    def encode(pixels: NDArray[np.uint8]) -> Vectors:
        batch = plain_batch(to_input(torch.from_numpy(np.ascontiguousarray(pixels))), profile.timestep)
        if isinstance(network, TrainedNetwork) and network.expert and network.classifier and network.posteriors:
            small = network.backbone.view(batch.pixels)
            maps = loaded.encoder.extractor(small, batch.timesteps, batch.captions)
            features = network.classifier.features(network.expert(batch.pixels)[-1]).mean(dim=(2, 3))
            pooled = network.uhead.pooled(maps.taps, maps.expert)
            return _parts(pooled, features, network.classifier.logits(features), network.posteriors)
        found = loaded.encoder.encode_images(batch)
        return {"semantic": found.pooled.numpy(), "visual": found.visual.numpy()}

    return Contender(
        name=loaded.info.name,
        model=f"{loaded.info.fingerprint} at {profile.timestep}, parts",
        side=profile.resolution,
        encode=encode,
        embed=lambda names: loaded.encoder.encode_texts(names).pooled,
        semantic=("semantic", "head", "posteriors") if has_posteriors else ("semantic",),
        shots=(("semantic",), ("visual",), ("semantic", "visual")),
    )


def _parts(pooled: torch.Tensor, features: torch.Tensor, logits: torch.Tensor, posteriors: ClassPosteriors) -> Vectors:
    """Both features as the whole pass gives them, and what the semantic one is made of."""
    found = {
        "semantic": posteriors.semantic(pooled, features, logits),
        "visual": posteriors.visual(features),
        "head": F.normalize(posteriors.own(pooled, features), dim=1),
        "posteriors": posteriors.vectors(logits),
    }
    return {kind: values.float().numpy() for kind, values in found.items()}


def untrained_expert(embed: Callable[[Sequence[str]], torch.Tensor], side: int) -> Contender:
    """The expert without training, on views of `side` px: its posteriors, and its features, centred."""
    expert, classifier = load_expert(lite0_part(), _NOWHERE).eval(), load_classifier(lite0_part(), _NOWHERE)
    names = embed(imagenet_names())
    posteriors = ClassPosteriors(mini_posteriors_shape(), names.shape[1]).eval()
    posteriors.embeddings.copy_(names)

    @torch.inference_mode()
    def encode(pixels: NDArray[np.uint8]) -> Vectors:
        features = classifier.features(expert(to_input(torch.from_numpy(np.ascontiguousarray(pixels))))[-1])
        mean = features.mean(dim=(2, 3))
        return {"posteriors": posteriors.vectors(classifier.logits(mean)).numpy(), CENTRED: mean.numpy()}

    return Contender(
        name=f"expert, no training, {side} px",
        model=f"{lite0_part()!r}, {mini_posteriors_shape()!r}",
        side=side,
        encode=encode,
        embed=embed,
        semantic=("posteriors",),
        shots=((CENTRED,),),
    )


def text_rows(
    gallery: Gallery, vectors: NDArray[np.float32], embed: Callable[[Sequence[str]], torch.Tensor]
) -> list[dict[str, Any]]:
    """photos-text: every name against the validation photographs of its source, and of all sources together."""
    sources = np.array([image.source for image in gallery.images])
    rows = []
    for source in (ALL_SOURCES, *sorted(set(sources))):
        inside = np.ones(len(sources), bool) if source == ALL_SOURCES else sources == source
        names = sorted({image.name for image, is_in in zip(gallery.images, inside, strict=True) if is_in})
        scores = embed(names).numpy() @ vectors[inside].T
        relevant = np.array([thing(name) for name in names])[:, None] == gallery.things[inside]
        rows.append({"source": source, "queries": len(names), **_figures(scores, relevant)})
    return rows


def sketch_rows(
    gallery: Gallery, queries: SketchQueries, sketches: NDArray[np.float32], photographs: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """photos-sketch: sketches against all validation photographs; seen and unseen things apart, means over things."""
    rows = []
    for name, chosen in (("seen", ~queries.is_unseen), ("unseen", queries.is_unseen)):
        things = queries.things[chosen]
        scores, groups = sketches[chosen] @ photographs.T, np.unique(things, return_inverse=True)[1]
        figures = _figures(scores, things[:, None] == gallery.things, groups)
        rows.append({"sketches": queries.name, "names": name, "queries": len(things), **figures})
    return rows


def shot_row(gallery: Gallery, vectors: Sequence[NDArray[np.float32]], episodes: int) -> dict[str, float]:
    """photos-fewshot: episodes over the names of all sources; the similarities of several vectors are averaged."""
    names = np.array([f"{image.source}/{image.name}" for image in gallery.images])
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    pool = ShotPool(name="photos-fewshot", pixels=np.zeros((0, 0, 0, 3), np.uint8), rows=rows)
    joined = unit_length(np.concatenate(vectors, axis=1))
    found = [measure(pool, joined, n_way=n, k_shot=k, episodes=episodes) for n, k in EPISODES]
    accuracies = {f"{f.n_way}w{f.k_shot}s": f.accuracy for f in found}
    return accuracies | {"±": found[0].ci95, "wrong of p > .95": max(f.sure_and_wrong for f in found)}


def naming(gallery: Gallery, vectors: NDArray[np.float32], embed: Callable[[Sequence[str]], torch.Tensor]) -> float:
    """photos-naming: share of photographs whose nearest of all names is right, mean over names."""
    names = sorted({image.name for image in gallery.images})
    nearest = np.array([thing(name) for name in names])[(vectors @ embed(names).numpy().T).argmax(axis=1)]
    groups = np.unique(gallery.things, return_inverse=True)[1]
    return macro_mean((nearest == gallery.things).astype(np.float64), groups)


def _figures(
    scores: NDArray[np.float32], relevant: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> dict[str, float]:
    ranked = ranked_relevance(scores, relevant)
    groups = np.arange(len(scores)) if groups is None else groups
    found = {"map_all": average_precision(ranked), "p_1": precision_at(ranked, 1), "r_10": hit_at(ranked, 10)}
    return {name: macro_mean(values, groups) for name, values in found.items()}
