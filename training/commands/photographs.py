"""`vermouth eval photographs`: the protocols on photographs."""

import hashlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.pack import PHOTOGRAPH_SIDE
from models.text import load_minilm
from models.transforms import PREPROCESSING_VERSION
from training.commands.reports import Row, report
from training.commands.train import MINI, SharedOption, ThreadsOption
from training.data.clothing import load_clothing
from training.data.dataset import load_drawings, load_splits
from training.data.photographs import load_photographs, load_sketches
from training.evaluation import clothing, photographs
from training.evaluation.features import DEFAULT_CACHE, EvaluationCache
from training.evaluation.segmentation import segmenter


def photographs_command(
    bundle: Annotated[list[Path], typer.Option(help="Bundle to measure.")] = [MINI],  # noqa: B006 - typer copies it
    data: SharedOption = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="Folder of the JSON and Markdown.")] = Path("docs/results"),
    cache: Annotated[Path, typer.Option(help="Folder of features, each computed once.")] = DEFAULT_CACHE,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes a setting.")] = 600,
    side: Annotated[
        list[int], typer.Option(min=32, help="Side of the views of the expert without training, px; repeatable.")
    ] = [PHOTOGRAPH_SIDE],  # noqa: B006 - typer copies it
    masks: Annotated[int, typer.Option(min=0, help="Photographs asked for ten names; 0 leaves masks out.")] = 200,
    threads: ThreadsOption = 1,
) -> None:
    """By name, by sketch, from a few examples, named and segmented: bundles beside the expert without training."""
    torch.set_num_threads(threads)
    loaded = [load_bundle(one, device="cpu") for one in bundle]
    protocols = _Protocols(data, cache.expanduser(), episodes)
    embed = load_minilm().embeddings
    contenders = [*(photographs.untrained_expert(embed, one) for one in side), *map(photographs.served, loaded)]
    text: list[Row] = []
    sketch: list[Row] = []
    shots: list[Row] = []
    for each in contenders:
        rows = protocols.rows(each)
        text, sketch, shots = [*text, *rows[0]], [*sketch, *rows[1]], [*shots, *rows[2]]
    report("photos-text", text, loaded, out)
    report("photos-sketch", sketch, loaded, out)
    report("photos-fewshot", shots, loaded, out)
    if masks:
        report("photos-segment", [protocols.masks(each, masks) for each in loaded], loaded, out)


class _Protocols:
    """The protocols' images and the cache of their features."""

    def __init__(self, data: Path, cache: Path, episodes: int) -> None:
        splits = load_splits(data)
        self._gallery = photographs.gallery_of(load_photographs(data))
        drawings = list(load_drawings(data, splits))
        self._queries = photographs.sketch_queries(self._gallery, load_sketches(data), drawings)
        index = hashlib.sha256((data / "photographs.jsonl.gz").read_bytes()).hexdigest()[:12]
        self._cache, self._episodes = EvaluationCache(cache, f"{index}-v{PREPROCESSING_VERSION}"), episodes
        self._clothing = load_clothing(data, is_validation=True)
        self._pixels: dict[int, list[NDArray[np.uint8]]] = {}

    def rows(self, each: photographs.Contender) -> tuple[list[Row], list[Row], list[Row]]:
        """Rows of photos-text with photos-naming, of photos-sketch and of photos-fewshot."""
        images, *sketches = [each.vectors(pixels, self._cache) for pixels in self._drawn(each.side)]
        text: list[Row] = []
        sketch: list[Row] = []
        for kind in each.semantic:
            model = {"model": each.name, "vectors": kind}
            named = photographs.naming(self._gallery, images[kind], each.embed)
            found = photographs.text_rows(self._gallery, images[kind], each.embed)
            text += [{**model, **row} for row in found]
            text[-len(found)]["naming"] = named  # the row of all sources
            for queries, vectors in zip(self._queries, sketches, strict=True):
                found = photographs.sketch_rows(self._gallery, queries, vectors[kind], images[kind])
                sketch += [{**model, **row} for row in found]
        shots = [
            {"model": each.name, "vectors": " + ".join(kinds)}
            | photographs.shot_row(self._gallery, [images[kind] for kind in kinds], self._episodes)
            for kinds in each.shots
        ]
        return text, sketch, shots

    def masks(self, loaded: LoadedBundle, count: int) -> Row:
        """The row of photos-segment."""
        segment = segmenter(loaded)
        largest = clothing.largest_area(self._gallery, segment, count)
        return {"model": loaded.info.name, "largest area": largest, **clothing.clothing_iou(self._clothing, segment)}

    def _drawn(self, side: int) -> list[NDArray[np.uint8]]:
        """Photographs, then sketches of each data set, at a side."""
        if side not in self._pixels:
            drawn = {"photographs": self._gallery.pixels} | {queries.name: queries.draw for queries in self._queries}
            self._pixels[side] = [self._cache.drawn(name, side, draw) for name, draw in drawn.items()]
        return self._pixels[side]
