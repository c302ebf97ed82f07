"""`vermouth eval`: the protocols of the embedded default, on the encoder that serves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from app.cli.embedding import batch_of, embedder
from app.cli.invariance import invariance_command
from app.cli.pictures import pictures_command
from app.cli.prior import prior_command
from app.cli.report import Row, report
from app.cli.robustness import robustness_command
from app.tasks.stitching import ViewProbabilities, blend
from models.build import LoadedBundle, load_bundle
from models.data.dataset import DEFAULT_FOLDER, load_dataset
from models.data.scenes import seen_evaluation_pool, unseen_evaluation_pool
from models.evaluation import baselines, fewshot, retrieval, segmentation
from models.transforms import cut_view, plan_views, to_unit

eval_app = typer.Typer(no_args_is_help=True, help="Measure a bundle by protocol.")
eval_app.command("pictures")(pictures_command)
eval_app.command("invariance")(invariance_command)
eval_app.command("prior")(prior_command)
eval_app.command("robustness")(robustness_command)

ZeroShotOption = Annotated[Path, typer.Option("--bundle", help="Bundle with zero-shot heads.")]
ReleaseOption = Annotated[Path, typer.Option("--release-bundle", help="Bundle with release heads.")]
DataSetOption = Annotated[Path, typer.Option("--data-set", help="Folder written by `vermouth data build`.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the JSON and Markdown.")]
ThreadsOption = Annotated[int, typer.Option(help="Compute threads.")]

ZERO_SHOT = Path("weights/mini-zeroshot")
RELEASE = Path("weights/mini")
OUT = Path("docs/results")
VENDOR_EPISODES = ((20, 1), (100, 1))
DRAWING_EPISODES = ((20, 1), (20, 5), (77, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of a table.

    Attributes:
        name: what the table calls it.
        embed: pictures to features.
        canonical: sees pictures in the service's canonical form, else as rendered.
        centred: its features lose their mean, see `retrieval.measure`.
    """

    name: str
    embed: retrieval.Embed
    canonical: bool = True
    centred: bool = False


@eval_app.command("retrieval")
def retrieval_command(
    bundle: ZeroShotOption = ZERO_SHOT,
    release_bundle: ReleaseOption = RELEASE,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    threads: ThreadsOption = 2,
) -> None:
    """outline-zs, drawing-zs and drawing-release, beside HOG and the expert without training."""
    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    zero_shot = load_bundle(bundle, device="cpu")
    released = load_bundle(release_bundle, device="cpu")
    rows: list[Row] = []
    for build in (retrieval.outline_zs, retrieval.drawing_zs, retrieval.drawing_release):
        loaded, heads = (released, "release") if build is retrieval.drawing_release else (zero_shot, "zero-shot")
        own = Contender(name=f"{loaded.info.name} ({heads} heads)", embed=embedder(loaded, "retrieval"))
        protocols = {canonical: build(data, canonical=canonical) for canonical in (True, False)}
        for each in (*untrained(loaded), own):
            measured = retrieval.measure(protocols[each.canonical], each.embed, centred=each.centred)
            rows.append({"model": each.name, **asdict(measured)})
    report("retrieval", rows, [zero_shot, released], out)


@eval_app.command("fewshot")
def fewshot_command(
    bundle: ZeroShotOption = ZERO_SHOT,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    episodes: Annotated[int, typer.Option(help="Episodes a setting.")] = fewshot.EPISODES,
    threads: ThreadsOption = 2,
) -> None:
    """fewshot-vendors and fewshot-drawings, beside HOG and the expert without training."""
    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    loaded = load_bundle(bundle, device="cpu")
    own = Contender(name=f"{loaded.info.name} (zero-shot heads)", embed=embedder(loaded, "fewshot"))
    drawn = fewshot.drawings(data)
    vendors = {canonical: fewshot.vendors(data, canonical=canonical) for canonical in (True, False)}
    rows: list[Row] = []
    for pools, settings in ((vendors, VENDOR_EPISODES), ({True: drawn, False: drawn}, DRAWING_EPISODES)):
        for each in (*untrained(loaded), own):
            pool = pools[each.canonical]
            features = retrieval.in_batches(each.embed, pool.pixels)
            if each.centred:
                features = retrieval.centre(features)
            rows += [
                {"model": each.name, **asdict(fewshot.measure(pool, features, n_way=n, k_shot=k, episodes=episodes))}
                for n, k in settings
            ]
    report("fewshot", rows, [loaded], out)


@eval_app.command("segment")
def segment_command(
    bundle: ZeroShotOption = ZERO_SHOT,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    scenes: Annotated[int, typer.Option(help="Scenes a pool.")] = 100,
    threads: ThreadsOption = 2,
) -> None:
    """scenes: seen names in the style kept out, and unseen names."""
    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    loaded = load_bundle(bundle, device="cpu")
    rows: list[Row] = []
    for name, pool in (("scenes, seen", seen_evaluation_pool(data)), ("scenes, unseen", unseen_evaluation_pool(data))):
        measured = segmentation.measure(pool, segmenter(loaded), name=name, scenes=scenes)
        rows.append({"model": f"{loaded.info.name} (zero-shot heads)", **asdict(measured)})
    report("segment", rows, [loaded], out)


def untrained(loaded: LoadedBundle) -> tuple[Contender, ...]:
    """HOG and the bundle's expert without training, as they are and in the form that suits each best.

    The last is the floor that the protocols' authors measured.
    """
    expert = baselines.expert_embedding(loaded.encoder.extractor)
    return (
        Contender(name="HOG", embed=baselines.hog_embedding),
        Contender(name="HOG, centred", embed=baselines.hog_embedding, centred=True),
        Contender(name="expert, no training", embed=expert),
        Contender(name="expert, no training, plain, centred", embed=expert, canonical=False, centred=True),
    )


def segmenter(loaded: LoadedBundle) -> segmentation.Segment:
    """Pictures and names to labels, through the views and the stitching that serve `/segment`."""
    profile = loaded.info.tasks["segmentation"]

    def segment(pixels: NDArray[np.uint8], names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        height, width = pixels.shape[:2]
        boxes = plan_views(height, width, profile.resolution)
        views = torch.from_numpy(np.stack([to_unit(cut_view(pixels, box, profile.resolution)) for box in boxes]))
        dense = loaded.encoder.encode_images(batch_of(views, profile.timestep)).dense.numpy()
        texts = _class_embeddings(loaded, names, profile.templates or ("{}",))
        probabilities = [
            ViewProbabilities(box=box, values=loaded.segmentation_head.probabilities(values, texts))
            for box, values in zip(boxes, dense, strict=True)
        ]
        blended = blend(probabilities, 0, height, width)
        return blended.argmax(axis=0).astype(np.uint8), blended.max(axis=0).astype(np.float64)

    return segment


def _class_embeddings(loaded: LoadedBundle, names: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
    """[N, D] float32, unit length: the mean over the templates, as served."""
    strings = [template.replace("{}", name) for name in names for template in templates]
    means = loaded.encoder.encode_texts(strings).pooled.numpy().reshape(len(names), len(templates), -1).mean(axis=1)
    return np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12), dtype=np.float32)
