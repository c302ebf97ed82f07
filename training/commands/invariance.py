"""`vermouth eval invariance`: how far a picture's features move with the company it is encoded in."""

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from app.cli.demo import demo_images
from models.bundle.build import load_bundle
from models.encoder import Encoder
from models.transforms import canonical_image, to_unit
from models.types import ImageBatch, ImageFeatures

BATCH = 8
LARGEST = 1e-4
"""Relative deviation that a released bundle may have."""


def invariance_command(
    bundle: Annotated[Path, typer.Option(help="Bundle to measure.")] = Path("weights/mini"),
    pictures: Annotated[int, typer.Option(min=BATCH, help="Pictures of the demo gallery, in batches of eight.")] = 64,
    threads: Annotated[int, typer.Option(help="Compute threads.")] = 2,
) -> None:
    """Encode pictures alone and in batches of eight; exit 1 when features differ by more than 1e-4 relative."""
    torch.set_num_threads(threads)
    loaded = load_bundle(bundle, device="cpu")
    timestep = loaded.info.tasks["retrieval"].timestep
    shown = demo_images()[:: max(1, len(demo_images()) // pictures)][: pictures // BATCH * BATCH]
    views = torch.from_numpy(np.stack([to_unit(_canonical(picture.render())) for picture in shown]))
    pooled, dense = 0.0, 0.0
    for start in range(0, len(views), BATCH):
        part = views[start : start + BATCH]
        together = _encode(loaded.encoder, part, timestep)
        for slot in range(BATCH):
            alone = _encode(loaded.encoder, part[slot : slot + 1], timestep)
            pooled = max(pooled, relative_deviation(together.pooled[slot], alone.pooled[0]))
            dense = max(dense, relative_deviation(together.dense[slot], alone.dense[0]))
    Console().print(
        f"{len(views)} pictures, alone against in a batch of {BATCH}: largest relative deviation "
        f"{pooled:.1e} (pooled), {dense:.1e} (dense)"
    )
    if max(pooled, dense) > LARGEST:
        raise typer.Exit(1)


def relative_deviation(features: torch.Tensor, reference: torch.Tensor) -> float:
    """‖features − reference‖ / ‖reference‖."""
    return float((features - reference).norm() / reference.norm())


def _encode(encoder: Encoder, views: torch.Tensor, timestep: int) -> ImageFeatures:
    with torch.inference_mode():
        batch = ImageBatch(pixels=views, timesteps=torch.full((len(views),), timestep), captions=[None] * len(views))
        return encoder.encode_images(batch)


def _canonical(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    return canonical_image(np.asarray(Image.alpha_composite(ground, picture).convert("RGB")))
