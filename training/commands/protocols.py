"""The protocols run on bundles: rows of the tables of `vermouth eval`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

from models.bundle.build import LoadedBundle
from training.commands.embedding import segmenter, trained, untrained_of
from training.commands.report import Row
from training.data.dataset import DataSet
from training.data.scenes import seen_evaluation_pool, unseen_evaluation_pool
from training.evaluation import fewshot, retrieval, robustness, segmentation
from training.evaluation.cache import EvaluationCache
from training.evaluation.seeds import over_seeds

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
        for each in untrained_of(bundles[0], cache):
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
        for each in (*untrained_of(bundles[0], cache), *own):
            pool = pools[each.canonical]
            features = each.embed(pool.pixels)
            if each.centred:
                features = retrieval.centre(features)
            found = [fewshot.measure(pool, features, n_way=n, k_shot=k, episodes=episodes) for n, k in settings]
            measured.append([{"model": each.name, **asdict(figures)} for figures in found])
        rows += [row for part in measured[: -len(own)] for row in part]
        rows += over_seeds([[{**row, "model": own[0].name} for row in part] for part in measured[-len(own) :]])
    return rows


def scene_tallies(data: DataSet, bundle: LoadedBundle, scenes: int) -> dict[str, segmentation.SceneTally]:
    """scenes: seen names in the style kept out, and unseen names."""
    pools = {"scenes, seen": seen_evaluation_pool(data), "scenes, unseen": unseen_evaluation_pool(data)}
    return {name: segmentation.tally(pool, segmenter(bundle), scenes) for name, pool in pools.items()}


def segment_rows(
    bundles: Sequence[LoadedBundle], tallies: Sequence[Mapping[str, segmentation.SceneTally]]
) -> list[Row]:
    """The figures of each bundle's `scene_tallies`, over the bundles' seeds."""
    model = f"{bundles[0].info.name} (zero-shot heads)"
    return over_seeds(
        [[{"model": model, **asdict(tally.figures(name))} for name, tally in found.items()] for found in tallies]
    )


def robustness_rows(data: DataSet, bundles: Sequence[LoadedBundle], cache: EvaluationCache) -> list[Row]:
    """drawing-release by the way the drawings were made, and the difference to plain ones, over the bundles' seeds."""
    protocol = retrieval.drawing_release(data, cache.pictures)
    drawings = [drawing for drawing in data.drawings if drawing.hexcodes and drawing.validation]
    queries = {
        name: cache.canonical(partial(robustness.rasters, drawings, draw), f"{robustness.VERSION} {name}")
        for name, draw in robustness.variants().items()
    }
    tables: list[list[Row]] = []
    for bundle in bundles:
        embed = trained(bundle, cache, "retrieval", "release").embed
        gallery = embed(protocol.gallery)
        rows: list[Row] = []
        for name, drawn in queries.items():
            measured = asdict(retrieval.figures(protocol, embed(drawn) @ gallery.T))
            plain = rows[0]["r_10"] if rows else measured["r_10"]
            rows.append({"drawn": name, **measured, "r_10 less plain": measured["r_10"] - plain})
        tables.append(rows)
    return over_seeds(tables)
