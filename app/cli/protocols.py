"""The protocols run on bundles: rows of the tables of `vermouth eval`."""

from collections.abc import Sequence
from dataclasses import asdict

from app.cli.embedding import segmenter, trained, untrained
from app.cli.report import Row
from models.build import LoadedBundle
from models.data.dataset import DataSet
from models.data.scenes import seen_evaluation_pool, unseen_evaluation_pool
from models.evaluation import fewshot, retrieval, segmentation
from models.evaluation.cache import EvaluationCache
from models.evaluation.seeds import over_seeds

VENDOR_EPISODES = ((20, 1), (100, 1))
DRAWING_EPISODES = ((20, 1), (20, 5), (77, 1))


def retrieval_rows(
    data: DataSet, zero_shot: Sequence[LoadedBundle], released: Sequence[LoadedBundle], cache: EvaluationCache
) -> list[Row]:
    """outline-zs, drawing-zs and drawing-release: what needs no training, then the bundles, over their seeds."""
    rows: list[Row] = []
    for build in (retrieval.outline_zs, retrieval.drawing_zs, retrieval.drawing_release):
        bundles, heads = (released, "release") if build is retrieval.drawing_release else (zero_shot, "zero-shot")
        protocols = {True: build(data, cache.pictures), False: build(data, retrieval.rendered_pictures)}
        for each in untrained(bundles[0], cache):
            measured = retrieval.measure(protocols[each.canonical], each.embed, centred=each.centred)
            rows.append({"model": each.name, **asdict(measured)})
        own = [trained(bundle, cache, "retrieval", heads) for bundle in bundles]
        rows += over_seeds(
            [[{"model": own[0].name, **asdict(retrieval.measure(protocols[True], each.embed))}] for each in own]
        )
    return rows


def fewshot_rows(data: DataSet, bundles: Sequence[LoadedBundle], episodes: int, cache: EvaluationCache) -> list[Row]:
    """fewshot-vendors and fewshot-drawings: what needs no training, then the bundles, over their seeds."""
    drawn = fewshot.drawings(data)
    vendors = {
        True: fewshot.vendors(data, cache.pictures),
        False: fewshot.vendors(data, retrieval.rendered_pictures),
    }
    rows: list[Row] = []
    for pools, settings in ((vendors, VENDOR_EPISODES), ({True: drawn, False: drawn}, DRAWING_EPISODES)):
        own = [trained(bundle, cache, "fewshot", "zero-shot") for bundle in bundles]
        measured: list[list[Row]] = []
        for each in (*untrained(bundles[0], cache), *own):
            pool = pools[each.canonical]
            features = each.embed(pool.pixels)
            if each.centred:
                features = retrieval.centre(features)
            found = [fewshot.measure(pool, features, n_way=n, k_shot=k, episodes=episodes) for n, k in settings]
            measured.append([{"model": each.name, **asdict(figures)} for figures in found])
        rows += [row for part in measured[: -len(own)] for row in part]
        rows += over_seeds([[{**row, "model": own[0].name} for row in part] for part in measured[-len(own) :]])
    return rows


def segment_rows(data: DataSet, bundles: Sequence[LoadedBundle], scenes: int) -> list[Row]:
    """scenes: seen names in the style kept out, and unseen names, over the bundles' seeds."""
    pools = (("scenes, seen", seen_evaluation_pool(data)), ("scenes, unseen", unseen_evaluation_pool(data)))
    name = f"{bundles[0].info.name} (zero-shot heads)"
    return over_seeds(
        [
            [
                {"model": name, **asdict(segmentation.measure(pool, segmenter(bundle), name=kind, scenes=scenes))}
                for kind, pool in pools
            ]
            for bundle in bundles
        ]
    )
