"""Baselines are what they say, whatever a bundle's expert learnt."""

import shutil
from pathlib import Path

import numpy as np
import torch

from models.bundle.build import load_bundle, load_expert
from models.bundle.pack import ADAPTERS, lite0_part, save_adapters, write_manifest
from models.expert import adapt
from training.commands.embedding import untrained_of
from training.evaluation.baselines import expert_embedding
from training.evaluation.cache import EvaluationCache

MINI = Path(__file__).parents[3] / "weights" / "mini"


def test_the_untrained_expert_is_the_one_before_it_learnt(tmp_path: Path) -> None:
    bundle = tmp_path / "adapted"
    shutil.copytree(MINI, bundle)
    expert = load_expert(lite0_part(), bundle).eval()
    with torch.no_grad():
        for weights in adapt(expert).parameters():
            weights.normal_(std=0.1)
    save_adapters(expert, bundle / "heads" / ADAPTERS)
    write_manifest(bundle, name="adapted", licence="", attribution="")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    loaded = load_bundle(bundle, device="cpu")
    baseline = untrained_of(loaded, EvaluationCache(tmp_path / "cache", "test"))[2]
    frozen = expert_embedding(load_expert(lite0_part(), bundle).eval())(pixels)
    assert np.allclose(baseline.embed(pixels), frozen, atol=1e-5)
    assert not np.allclose(expert_embedding(loaded.encoder.extractor.expert)(pixels), frozen, atol=1e-3)
