"""Heads written by training are read back to train on from there."""

from pathlib import Path

import pytest
import torch

from models.build import new_uhead
from models.errors import BundleError
from models.heads.segmentation import SegmentationHead
from models.pack import MINI_DIMENSION, load_heads, mini_uhead_shape, save_heads


def test_heads_come_back_as_written(tmp_path: Path) -> None:
    shape = mini_uhead_shape()
    written = new_uhead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    save_heads(*written, tmp_path)
    read = new_uhead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    load_heads(*read, tmp_path)
    for before, after in zip(written, read, strict=True):
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor.half().float(), after.state_dict()[name])


def test_heads_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load_heads(new_uhead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION), tmp_path)
