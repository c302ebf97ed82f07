"""Heads written by training are read back to train on from there."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.files import sha256
from models.bundle.manifest import MANIFEST
from models.bundle.pack import (
    ADAPTERS,
    MINI_DIMENSION,
    lite0_part,
    load_heads,
    mini_uhead_shape,
    save_adapters,
    save_heads,
)
from models.bundle.parts import load_expert
from models.errors import BundleError, ChecksumError
from models.expert import adapt
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from models.types import ImageBatch


def test_heads_come_back_as_written(tmp_path: Path) -> None:
    shape = mini_uhead_shape()
    written = UHead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    save_heads(*written, tmp_path)
    read = UHead(shape, MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    load_heads(*read, tmp_path)
    for before, after in zip(written, read, strict=True):
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor.half().float(), after.state_dict()[name])


def test_heads_that_are_not_there_are_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load_heads(UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION), tmp_path)


def test_an_expert_that_learnt_is_served_as_it_was_trained(
    tiny: LoadedBundle, tiny_copy: Path, batch: ImageBatch
) -> None:
    expert = load_expert(lite0_part(), tiny_copy).eval()
    for number, adapter in enumerate(adapt(expert)):
        nn.init.normal_(adapter.up, std=0.02, generator=torch.Generator().manual_seed(number))  # type: ignore[arg-type]
    save_adapters(expert, tiny_copy / "heads" / ADAPTERS)
    with_adapters = json.loads((tiny_copy / MANIFEST).read_text())
    file = tiny_copy / "heads" / ADAPTERS
    source = {"kind": "path", "path": "heads", "files": {ADAPTERS: sha256(file)}}
    with_adapters["components"]["expert_adapters"] = {"source": source}
    (tiny_copy / MANIFEST).write_text(json.dumps(with_adapters))
    loaded = load_bundle(tiny_copy)
    assert loaded.info.fingerprint != tiny.info.fingerprint
    served = loaded.encoder.extractor.expert
    assert served is not None
    with torch.no_grad():
        for found, wanted in zip(served(batch.pixels), expert(batch.pixels), strict=True):
            assert (found - wanted).abs().max() < 0.01 * wanted.abs().max()  # stored in half precision
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ChecksumError):
        load_bundle(tiny_copy)
