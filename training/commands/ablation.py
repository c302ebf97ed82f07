"""`vermouth eval ablation`: what each kind of frozen features brings, by heads trained on it alone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from models.bundle.build import load_extractor
from models.bundle.manifest import Manifest
from models.bundle.pack import MINI_DIMENSION, load_heads, mini_uhead_shape, prior_manifest
from models.encoder import FrozenExtractor
from models.errors import DataError
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.transforms import plan_views, to_unit
from training.commands.embedding import class_embeddings, stitched, untrained, views_of
from training.commands.protocols import DRAWING_EPISODES, VENDOR_EPISODES
from training.commands.report import Row, report
from training.data.dataset import DEFAULT_FOLDER, DataSet, load_dataset
from training.data.scenes import compose_evaluation_scene, seen_evaluation_pool, unseen_evaluation_pool
from training.evaluation import fewshot, retrieval, segmentation
from training.evaluation.cache import DEFAULT_CACHE, EvaluationCache, open_cache
from training.evaluation.seeds import over_seeds
from training.heads.ablation import FEATURES, HeadRecord, read_record, visible

PRIOR = Path("weights/mini")
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenParts:
    """A prior and the expert, ready, and the manifest that tells their tasks."""

    extractor: FrozenExtractor
    manifest: Manifest

    @property
    def timestep(self) -> int:
        """At which training and serving read features."""
        return self.manifest.tasks["retrieval"].timestep


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedHeads:
    """Heads and how they were trained."""

    uhead: UHead
    segmentation: SegmentationHead
    record: HeadRecord


def ablation_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `vermouth train heads` wrote, any features.")],
    prior: Annotated[Path, typer.Option(help="Folder of the vae/, unet/, scheduler/ they were trained on.")] = PRIOR,
    data_set: Annotated[Path, typer.Option("--data-set", help="Folder of `vermouth data build`.")] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    cache: Annotated[Path, typer.Option(help="Folder of canonical pictures and features.")] = DEFAULT_CACHE,
    scenes: Annotated[int, typer.Option(min=0, help="Scenes a pool; 0 for none.")] = 50,
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
) -> None:
    """Zero-shot protocols by features: fused, expert alone, diffusion alone, and without training; over seeds."""
    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    frozen = frozen_parts(prior)
    heads = [trained_heads(folder / "heads") for folder in folders]
    kept = open_cache(data_set, cache)
    rows = _untrained_rows(data, frozen, kept)
    tables = [[*global_rows] for global_rows in _global_rows(data, frozen, heads, kept)]
    if scenes:
        for table, found in zip(tables, _scene_rows(data, frozen, heads, scenes), strict=True):
            table += found
    for features in FEATURES:
        same = [table for table, each in zip(tables, heads, strict=True) if each.record.features == features]
        rows += over_seeds(same) if same else []
    report("ablation", rows, [], out, prior=frozen.manifest)


def frozen_parts(prior: Path) -> FrozenParts:
    """What a folder of vae/, unet/ and scheduler/ gives, with or without a bundle's manifest and heads."""
    manifest = prior_manifest(prior)
    extractor = load_extractor(prior, manifest, device=torch.device("cpu"), dtype=torch.float32, taps=manifest.taps)
    return FrozenParts(extractor=extractor, manifest=manifest)


def trained_heads(folder: Path) -> TrainedHeads:
    """Heads of a folder. Raises BundleError or DataError when they are missing, or read an expert that learnt."""
    record = read_record(folder)
    if record.adapted:
        raise DataError(f"the heads in {folder} read an expert that learnt; this compares heads on frozen maps")
    uhead, head = UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    load_heads(uhead, head, folder)
    uhead.to(memory_format=torch.channels_last)
    return TrainedHeads(uhead=uhead.eval(), segmentation=head.eval(), record=record)


@torch.inference_mode()
def features_of(
    frozen: FrozenParts, heads: Sequence[TrainedHeads], pixels: NDArray[np.uint8]
) -> list[NDArray[np.float32]]:
    """[N, 128, 128, 3] uint8 → for each heads [N, D] float32; the frozen networks see each picture once."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    for start in range(0, len(pixels), _BATCH):
        views = torch.from_numpy(np.stack([to_unit(picture) for picture in pixels[start : start + _BATCH]]))
        maps = _maps(frozen, views)
        for parts, each in zip(found, heads, strict=True):
            parts.append(each.uhead.pooled(*visible(*maps, each.record.features)).numpy())
    return [np.concatenate(parts) for parts in found]


def _untrained_rows(data: DataSet, frozen: FrozenParts, cache: EvaluationCache) -> list[Row]:
    rows: list[Row] = []
    for build in (retrieval.outline_zs, retrieval.drawing_zs):
        protocols = {True: build(data, cache.pictures), False: build(data, retrieval.rendered_pictures)}
        for each in untrained(frozen.extractor.expert, frozen.manifest.components.expert, cache):
            measured = retrieval.measure(protocols[each.canonical], each.embed, centred=each.centred)
            rows.append({"features": each.name, **_retrieval_row(measured)})
    return rows


def _global_rows(
    data: DataSet, frozen: FrozenParts, heads: Sequence[TrainedHeads], cache: EvaluationCache
) -> list[list[Row]]:
    """For each heads: the retrieval and few-shot protocols."""
    tables: list[list[Row]] = [[] for _ in heads]
    outlines, drawn = retrieval.outline_zs(data, cache.pictures), retrieval.drawing_zs(data, cache.pictures)
    gallery = features_of(frozen, heads, outlines.gallery)
    for protocol in (outlines, drawn):
        queries = features_of(frozen, heads, protocol.queries)
        for number, each in enumerate(heads):
            measured = retrieval.figures(protocol, queries[number] @ gallery[number].T)
            tables[number].append({"features": _named(each), **_retrieval_row(measured)})
    pools = (fewshot.vendors(data, cache.pictures), VENDOR_EPISODES), (fewshot.drawings(data), DRAWING_EPISODES)
    for pool, settings in pools:
        features = features_of(frozen, heads, pool.pixels)
        for number, each in enumerate(heads):
            for n_way, k_shot in settings:
                shots = fewshot.measure(pool, features[number], n_way=n_way, k_shot=k_shot)
                name = f"{shots.protocol} {n_way}w{k_shot}s"
                tables[number].append({"features": _named(each), "protocol": name, "accuracy": shots.accuracy})
    return tables


@torch.inference_mode()
def _scene_rows(data: DataSet, frozen: FrozenParts, heads: Sequence[TrainedHeads], scenes: int) -> list[list[Row]]:
    """For each heads: the scenes protocol, seen and unseen."""
    profile = frozen.manifest.tasks["segmentation"]
    tables: list[list[Row]] = [[] for _ in heads]
    for name, pool in (("scenes, seen", seen_evaluation_pool(data)), ("scenes, unseen", unseen_evaluation_pool(data))):
        tallies = [segmentation.SceneTally() for _ in heads]
        for index in range(scenes):
            scene = compose_evaluation_scene(pool, index)
            height, width = scene.pixels.shape[:2]
            boxes = plan_views(height, width, profile.resolution)
            maps = _maps(frozen, views_of(scene.pixels, boxes, profile.resolution))
            texts = class_embeddings(frozen.extractor.text.embeddings, scene.prompts, profile.templates)
            for tally, each in zip(tallies, heads, strict=True):
                _, dense = each.uhead(*visible(*maps, each.record.features))
                tally.add(scene, *stitched(each.segmentation, boxes, dense.numpy(), texts, (height, width)))
        for table, tally, each in zip(tables, tallies, heads, strict=True):
            table.append({"features": _named(each), **asdict(tally.figures(name))})
    return tables


def _maps(frozen: FrozenParts, views: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    pixels = views.contiguous(memory_format=torch.channels_last)
    maps = frozen.extractor(pixels, torch.full((len(views),), frozen.timestep), [None] * len(views))
    return maps.taps, maps.expert


def _named(heads: TrainedHeads) -> str:
    return {"fused": "fused", "expert": "expert alone", "diffusion": "diffusion alone"}[heads.record.features]


def _retrieval_row(measured: retrieval.RetrievalFigures) -> Row:
    return {
        "protocol": measured.protocol,
        "map_all": measured.map_all,
        "p_1": measured.p_1,
        "r_10": measured.r_10,
    }
