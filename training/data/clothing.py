"""Street photographs whose clothes are marked pixel by pixel (Clothing Co-Parsing, Yang et al. 2014)."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import label

from training.data.photographs import Archive

_VALIDATION_STEP = 6  # every sixth photograph by number is of the validation split
_LEAST_SHARE = 1 / 1024  # of a photograph that an area of one name fills; smaller islands are mistakes of the marking


@dataclass(frozen=True, slots=True, kw_only=True)
class ClothingMasks:
    """Street photographs with a name for every pixel."""

    archive: Archive
    numbers: tuple[str, ...]  # of the photographs: `N.webp` and `N.png`
    names: tuple[str, ...]  # 58, without the background

    def pixels(self, number: str) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 RGB."""
        return self.archive.pixels(f"{number}.webp")

    def labels(self, number: str) -> NDArray[np.uint8]:
        """[H, W] uint8: 0 is the background, i + 1 the i-th name."""
        with Image.open(io.BytesIO(self.archive.read(f"{number}.png"))) as image:
            return np.asarray(image, dtype=np.uint8)

    def cleaned(self, number: str) -> NDArray[np.uint8]:
        """As `labels`, without islands that are smaller than a cell of a dense map: they become background."""
        labels = self.labels(number)
        islands, count = label(labels, background=0, return_num=True, connectivity=1)
        sizes = np.bincount(islands.ravel(), minlength=count + 1)
        return np.where(sizes[islands] < _LEAST_SHARE * labels.size, 0, labels).astype(np.uint8)


def load_clothing(folder: Path, *, is_validation: bool) -> ClothingMasks:
    """Reads the index of `clothing-masks.zip`, or of the folder of that name.

    Raises:
        DataError: there is neither.
    """
    archive = Archive(folder / "clothing-masks.zip")
    _, *names = json.loads(archive.read("labels.json"))
    numbers = [file.removesuffix(".png") for file in archive.names if file.endswith(".png")]
    chosen = [n for n in numbers if (int(n) % _VALIDATION_STEP == 0) == is_validation]
    return ClothingMasks(archive=archive, numbers=tuple(chosen), names=tuple(names))
