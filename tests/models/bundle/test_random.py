"""Bundles of random weights with the paper's heads, and the shapes at full size."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from models.bundle.architectures import ARCHITECTURES, SD15
from models.bundle.build import load_bundle
from models.bundle.pack import write_random
from models.bundle.random import paper_uhead
from models.errors import BundleError
from models.heads.uhead import UHead
from models.types import ImageBatch


def test_the_papers_uhead_has_its_number_of_parameters() -> None:
    shape = paper_uhead(SD15.unet["block_out_channels"], SD15.widths, expert=0)
    with torch.device("meta"):
        head = UHead(shape, 768)
    assert sum(p.numel() for part in (head.fuse, head.pool) for p in part.parameters()) == 8_464_128


@pytest.mark.parametrize(("arch", "count"), [("sd15", 859_520_964), ("sd21", 865_910_724)])
def test_the_unets_have_their_published_number_of_parameters(arch: str, count: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(ARCHITECTURES[arch].unet)
    assert sum(parameter.numel() for parameter in unet.parameters()) == count


def test_a_bundle_with_an_expert_and_heads_is_served(tmp_path: Path) -> None:
    write_random(tmp_path / "bundle", arch="tiny-sd-heads", seed=0)
    loaded = load_bundle(tmp_path / "bundle", device="cpu")
    pixels = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = ImageBatch(pixels=pixels, timesteps=torch.tensor([10, 200]), captions=[None, "a fish"])
    features = loaded.encoder.encode_images(batch)
    assert features.pooled.shape == (2, 48)
    assert features.visual.shape == (2, 64)
    assert features.dense.shape == (2, 48, 16, 16), "128 px at the finest stride of 8, not the expert's 8 cells of 16"
    assert loaded.encoder.encode_texts(["a fish"]).pooled.shape == (1, 48)
    assert not loaded.info.is_training_free


def test_a_folder_with_contents_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(BundleError, match="exists already"):
        write_random(tmp_path, arch="tiny-sd", seed=0)
