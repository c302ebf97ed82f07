"""Rows of the tables of `vermouth eval`: the protocols on bundles, and on heads of one kind of frozen features."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.build import LoadedBundle, load_extractor
from models.bundle.manifest import Manifest
from models.bundle.pack import MINI_DIMENSION, load_heads, mini_uhead_shape, prior_manifest
from models.encoder import FrozenExtractor
from models.errors import DataError
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.transforms import plan_views, to_unit
from training.commands.reports import Row
from training.data.dataset import SIDE, DataSet
from training.data.scenes import ScenePool, compose_evaluation_scene, seen_evaluation_pool, unseen_evaluation_pool
from training.evaluation import fewshot, retrieval, segmentation
from training.evaluation.features import Contender, EvaluationCache, trained, untrained, untrained_of
from training.evaluation.metrics import interval
from training.heads.frozen import FEATURES, visible
from training.heads.recipe import HeadRecord, read_record

Form = TypeVar("Form", retrieval.Protocol, fewshot.ShotPool)

VENDOR_EPISODES = ((20, 1), (100, 1))
DRAWING_EPISODES = ((20, 1), (20, 5), (77, 1))  # (n_way, k_shot) of the few-shot protocols
_BATCH = 32
_NAMES = {"fused": "fused", "expert": "expert alone", "diffusion": "diffusion alone"}


def over_seeds(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Merge tables of the same lines, one a seed, into one.

    Every float becomes its mean, with half its 95 % interval as `… ±` beside it and `seeds` at the end; other values
    are the first table's. A single table stays as it is.
    """
    if len(tables) == 1:
        return [dict(row) for row in tables[0]]
    merged = []
    for rows in zip(*tables, strict=True):
        row: Row = {}
        for key, value in rows[0].items():
            row[key] = value
            if isinstance(value, float):
                row[key], row[f"{key} ±"] = interval([other[key] for other in rows])
        merged.append({**row, "seeds": len(tables)})
    return merged


def retrieval_rows(
    data: DataSet, zero_shot: Sequence[LoadedBundle], released: Sequence[LoadedBundle], cache: EvaluationCache
) -> list[Row]:
    """outline-zs, drawing-zs and drawing-release: untrained contenders, then the bundles, over their seeds."""
    rows: list[Row] = []
    for build in (retrieval.outline_zs, retrieval.drawing_zs, retrieval.drawing_release):
        bundles, heads = (released, "release") if build is retrieval.drawing_release else (zero_shot, "zero-shot")
        measure = partial(figures_of, forms(build, data, cache, side_of(bundles[0])))
        rows += [{"model": each.name, **asdict(measure(each))} for each in untrained_of(bundles[0], cache)]
        own = [trained(bundle, cache, "retrieval", heads) for bundle in bundles]
        rows += over_seeds([[{"model": each.name, **asdict(measure(each))}] for each in own])
    return rows


def forms(
    build: Callable[[DataSet, retrieval.Images], Form], data: DataSet, cache: EvaluationCache, side: int
) -> dict[tuple[bool, int], Form]:
    """A protocol on canonical images (True) of `SIDE` and of a bundle's side, and on images as rendered (False)."""
    canonical = {(True, each): build(data, partial(cache.images, side=each)) for each in {SIDE, side}}
    return {**canonical, (False, SIDE): build(data, retrieval.rendered_images)}


def side_of(bundle: LoadedBundle) -> int:
    """Side of the images that a bundle sees, px."""
    return bundle.info.tasks["retrieval"].resolution


def figures_of(protocols: Mapping[tuple[bool, int], retrieval.Protocol], each: Contender) -> retrieval.RetrievalFigures:
    """A contender's figures on the form of a protocol that it sees."""
    protocol = protocols[each.canonical, each.side]
    return retrieval.figures(protocol, retrieval.scores(protocol, each.embed, centred=each.centred))


def fewshot_rows(data: DataSet, bundles: Sequence[LoadedBundle], episodes: int, cache: EvaluationCache) -> list[Row]:
    """fewshot-vendors and fewshot-drawings: untrained contenders, then the bundles, over their seeds."""
    vendors = forms(fewshot.vendors, data, cache, side_of(bundles[0]))
    sides = {side: fewshot.drawings(data, side) for _, side in vendors}
    drawn = {form: sides[form[1]] for form in vendors}  # drawings are canonical for every contender
    rows: list[Row] = []
    for pools, settings in ((vendors, VENDOR_EPISODES), (drawn, DRAWING_EPISODES)):
        measure = partial(_episode_rows, pools, settings=settings, episodes=episodes)
        for each in untrained_of(bundles[0], cache):
            rows += measure(each)
        rows += over_seeds([measure(trained(bundle, cache, "fewshot", "zero-shot")) for bundle in bundles])
    return rows


def _episode_rows(
    pools: Mapping[tuple[bool, int], fewshot.ShotPool],
    each: Contender,
    *,
    settings: Iterable[tuple[int, int]],
    episodes: int,
) -> list[Row]:
    pool = pools[each.canonical, each.side]
    features = each.embed(pool.pixels)
    if each.centred:
        features = retrieval.centre(features)
    found = [fewshot.measure(pool, features, n_way=n, k_shot=k, episodes=episodes) for n, k in settings]
    return [{"model": each.name, **asdict(figures)} for figures in found]


def scene_pools(data: DataSet) -> dict[str, ScenePool]:
    """Pools of the scenes protocol: seen names in a style that no training uses, and unseen names."""
    return {"seen": seen_evaluation_pool(data), "unseen": unseen_evaluation_pool(data)}


def scene_tallies(data: DataSet, bundle: LoadedBundle, scenes: int) -> dict[str, segmentation.SceneTally]:
    """A bundle's answers to the scenes of both pools."""
    segment = segmentation.segmenter(bundle)
    return {f"scenes, {name}": segmentation.tally(pool, segment, scenes) for name, pool in scene_pools(data).items()}


def segment_rows(
    bundles: Sequence[LoadedBundle], tallies: Sequence[Mapping[str, segmentation.SceneTally]]
) -> list[Row]:
    """The figures of each bundle's `scene_tallies`, over the bundles' seeds."""
    model = f"{bundles[0].info.name} (zero-shot heads)"
    return over_seeds(
        [[{"model": model, **asdict(tally.figures(name))} for name, tally in found.items()] for found in tallies]
    )


def robustness_rows(data: DataSet, bundles: Sequence[LoadedBundle], cache: EvaluationCache) -> list[Row]:
    """drawing-release by way of drawing, and the difference to plain drawings, over the bundles' seeds."""
    side = side_of(bundles[0])
    protocol = retrieval.drawing_release(data, partial(cache.images, side=side))
    drawings = [drawing for drawing in data.drawings if drawing.hexcodes and drawing.validation]
    queries = {
        name: cache.canonical(partial(retrieval.rasters, drawings, draw), f"{retrieval.RASTER_VERSION} {name}", side)
        for name, draw in retrieval.variants().items()
    }
    tables: list[list[Row]] = []
    for bundle in bundles:
        embed = trained(bundle, cache, "retrieval", "release").embed
        gallery = embed(protocol.gallery)
        rows: list[Row] = []
        for name, drawn in queries.items():
            measured = asdict(retrieval.figures(protocol, embed(drawn) @ gallery.T))
            plain = rows[0]["r_10"] if rows else measured["r_10"]  # variants() begins with plain drawings
            rows.append({"drawn": name, **measured, "r_10 less plain": measured["r_10"] - plain})
        tables.append(rows)
    return over_seeds(tables)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenParts:
    """A prior and the expert, loaded, and the manifest with their tasks."""

    extractor: FrozenExtractor
    manifest: Manifest

    def maps(self, views: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Taps by name and expert levels of [B, 3, 128, 128] views, at the time step that serves."""
        timesteps = torch.full((len(views),), self.manifest.tasks["retrieval"].timestep)
        pixels = views.contiguous(memory_format=torch.channels_last)
        found = self.extractor(pixels, timesteps, [None] * len(views))
        return found.taps, found.expert


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedHeads:
    """Heads of a folder, and how they were trained."""

    uhead: UHead
    segmentation: SegmentationHead
    record: HeadRecord

    @property
    def name(self) -> str:
        """Of their features, in tables."""
        return _NAMES[self.record.features]


def frozen_parts(prior: Path) -> FrozenParts:
    """Load a folder of vae/, unet/ and scheduler/, with or without a bundle's manifest and heads."""
    manifest = prior_manifest(prior)
    extractor = load_extractor(prior, manifest, device=torch.device("cpu"), dtype=torch.float32)
    return FrozenParts(extractor=extractor, manifest=manifest)


def trained_heads(folder: Path) -> TrainedHeads:
    """Load the heads of a folder.

    Raises:
        BundleError: a file is missing.
        DataError: there is no record of their training, or they read an adapted expert.
    """
    record = read_record(folder)
    if record.adapted:
        raise DataError(f"the heads in {folder} read an adapted expert: ablation compares heads on frozen maps")
    uhead, head = UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    load_heads(uhead, head, folder)
    uhead.to(memory_format=torch.channels_last)
    return TrainedHeads(uhead=uhead.eval(), segmentation=head.eval(), record=record)


def ablation_rows(
    data: DataSet, frozen: FrozenParts, heads: Sequence[TrainedHeads], cache: EvaluationCache, *, scenes: int
) -> list[Row]:
    """Zero-shot protocols by features: without training, then fused, expert and diffusion alone.

    Heads of the same features are seeds of one line. The scenes protocol is left out when `scenes` is 0.
    """
    rows: list[Row] = []
    for build in (retrieval.outline_zs, retrieval.drawing_zs):
        protocols = forms(build, data, cache, SIDE)
        for each in untrained(frozen.extractor.expert, frozen.manifest.components.expert, cache):
            rows.append({"features": each.name, **_retrieval_row(figures_of(protocols, each))})
    retrieved, shot = _retrieval_tables(data, frozen, heads, cache), _fewshot_tables(data, frozen, heads, cache)
    segmented: list[list[Row]] = _scene_tables(data, frozen, heads, scenes) if scenes else [[] for _ in heads]
    tables = [[*first, *second, *third] for first, second, third in zip(retrieved, shot, segmented, strict=True)]
    for features in FEATURES:
        same = [table for table, each in zip(tables, heads, strict=True) if each.record.features == features]
        rows += over_seeds(same) if same else []
    return rows


def _retrieval_row(measured: retrieval.RetrievalFigures) -> Row:
    return {name: getattr(measured, name) for name in ("protocol", "map_all", "p_1", "r_10")}


def _retrieval_tables(
    data: DataSet, frozen: FrozenParts, heads: Sequence[TrainedHeads], cache: EvaluationCache
) -> list[list[Row]]:
    outlines, drawn = retrieval.outline_zs(data, cache.images), retrieval.drawing_zs(data, cache.images)
    galleries = _pooled(frozen, heads, outlines.gallery)  # drawing-zs has the same
    tables: list[list[Row]] = [[] for _ in heads]
    for protocol in (outlines, drawn):
        queries = _pooled(frozen, heads, protocol.queries)
        for table, each, query, gallery in zip(tables, heads, queries, galleries, strict=True):
            measured = retrieval.figures(protocol, query @ gallery.T)
            table.append({"features": each.name, **_retrieval_row(measured)})
    return tables


def _fewshot_tables(
    data: DataSet, frozen: FrozenParts, heads: Sequence[TrainedHeads], cache: EvaluationCache
) -> list[list[Row]]:
    tables: list[list[Row]] = [[] for _ in heads]
    pools = (fewshot.vendors(data, cache.images), VENDOR_EPISODES), (fewshot.drawings(data), DRAWING_EPISODES)
    for pool, settings in pools:
        for table, each, features in zip(tables, heads, _pooled(frozen, heads, pool.pixels), strict=True):
            for n, k in settings:
                shots = fewshot.measure(pool, features, n_way=n, k_shot=k)
                name = f"{shots.protocol} {n}w{k}s"
                table.append({"features": each.name, "protocol": name, "accuracy": shots.accuracy})
    return tables


@torch.inference_mode()
def _scene_tables(data: DataSet, frozen: FrozenParts, heads: Sequence[TrainedHeads], scenes: int) -> list[list[Row]]:
    profile = frozen.manifest.tasks["segmentation"]
    tables: list[list[Row]] = [[] for _ in heads]
    for name, pool in scene_pools(data).items():
        tallies = [segmentation.SceneTally() for _ in heads]
        for index in range(scenes):
            scene = compose_evaluation_scene(pool, index)
            height, width = scene.pixels.shape[:2]
            boxes = plan_views(height, width, profile.tile or profile.resolution, max_tiles=profile.max_tiles)
            maps = frozen.maps(segmentation.views_of(scene.pixels, boxes, profile.resolution))
            embed = frozen.extractor.text.embeddings
            texts = segmentation.class_embeddings(embed, scene.prompts, profile.templates)
            for tally, each in zip(tallies, heads, strict=True):
                _, dense = each.uhead(*visible(*maps, each.record.features))
                answer = segmentation.stitched(
                    each.segmentation, boxes, dense.numpy(), texts=texts, size=(height, width)
                )
                tally.add(scene, *answer)
        for table, tally, each in zip(tables, tallies, heads, strict=True):
            table.append({"features": each.name, **asdict(tally.figures(f"scenes, {name}"))})
    return tables


@torch.inference_mode()
def _pooled(frozen: FrozenParts, heads: Sequence[TrainedHeads], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """[N, 128, 128, 3] uint8 → [N, D] float32 of each heads."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    for start in range(0, len(pixels), _BATCH):
        # The frozen networks take most of the time, so all heads share their maps.
        maps = frozen.maps(torch.from_numpy(np.stack([to_unit(image) for image in pixels[start : start + _BATCH]])))
        for parts, each in zip(found, heads, strict=True):
            parts.append(each.uhead.pooled(*visible(*maps, each.record.features)).numpy())
    return [np.concatenate(parts) for parts in found]
