"""Known properties of a pulled bundle, on photographs that scikit-image brings along: `make verify-sd15`.

Prints a table of what was checked; exit code 1 if one property does not hold. Random weights hold none of them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import find_bundle
from models.types import ImageBatch, ImageFeatures, to_unit_batch

Check = tuple[str, str, bool]

PHOTOGRAPHS = {
    "cat": data.chelsea,
    "cup of coffee": data.coffee,
    "astronaut": data.astronaut,
    "rocket": data.rocket,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
}


def main() -> int:
    """Check a bundle and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="A name such as sd15, or the folder of a bundle.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    loaded = load_bundle(find_bundle(options.bundle), device=options.device, dtype=options.dtype)
    table = Table("property", "found", "holds", box=None, header_style="bold")
    checks = list(checked(loaded))
    for what, found, holds in checks:
        table.add_row(what, found, "yes" if holds else "[red]NO[/red]")
    Console().print(table)
    return int(not all(holds for _, _, holds in checks))


def checked(loaded: LoadedBundle) -> Iterator[Check]:
    """Every property, whether it holds, and what was found."""
    names = list(PHOTOGRAPHS)
    photographs = [np.asarray(read()) for read in PHOTOGRAPHS.values()]
    texts = loaded.encoder.encode_texts([f"a photo of a {name}." for name in names]).pooled.numpy()
    seen = encoded(loaded, photographs, "retrieval")
    similarity = seen.pooled.numpy() @ texts.T
    for row, name in zip(similarity, names, strict=True):
        yield f"a photograph of a {name} is nearest to its name", *nearest(row, names, name)
    for column, name in zip(similarity.T, names, strict=True):
        yield f"'{name}' finds its photograph first", *nearest(column, names, name)
    mirrored = encoded(loaded, [photograph[:, ::-1] for photograph in photographs], "retrieval")
    for row, name in zip(mirrored.visual.numpy() @ seen.visual.numpy().T, names, strict=True):
        yield f"a mirrored {name} looks like the {name}", *nearest(row, names, name)
    yield from masks(loaded, photographs[0])


def masks(loaded: LoadedBundle, cat: NDArray[np.uint8]) -> Iterator[Check]:
    """On the photograph of a cat, which fills it, most cells are of a cat, whatever else is asked for."""
    names = ["cat", "motorcycle", "cup of coffee", "rocket"]
    template = loaded.info.tasks["segmentation"].templates[0]
    texts = loaded.encoder.encode_texts([template.replace("{}", name) for name in names]).pooled.numpy()
    dense = encoded(loaded, [cat], "segmentation").dense[0].numpy()
    best = loaded.segmentation_head.probabilities(dense, texts)[1:].argmax(axis=0)
    share = float((best == 0).mean())
    yield "most of the cat's photograph is a cat", f"{share:.0%} of the cells", share > 0.5


def nearest(scores: NDArray[np.float32], names: Sequence[str], name: str) -> tuple[str, bool]:
    """What scores highest, by how much, and whether that is right."""
    first, second = np.argsort(-scores)[:2]
    return f"{names[first]}, {scores[first]:.3f}; {names[second]}, {scores[second]:.3f}", names[first] == name


def encoded(loaded: LoadedBundle, photographs: Sequence[NDArray[np.uint8]], task: str) -> ImageFeatures:
    """Features of RGB images, squeezed into the square of a task's profile."""
    profile = loaded.info.tasks[task]
    side = profile.resolution
    squares = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in photographs]
    batch = ImageBatch(
        pixels=torch.from_numpy(to_unit_batch(squares)),
        timesteps=torch.full((len(squares),), profile.timestep),
        captions=[None] * len(squares),
    )
    return loaded.encoder.encode_images(batch)


if __name__ == "__main__":
    sys.exit(main())
