"""Heads that see less: which maps are zero, and how it is told."""

from pathlib import Path

import pytest
import torch

from models.errors import DataError
from training.heads.ablation import FEATURES, Features, HeadRecord, read_record, visible, write_record


@pytest.mark.parametrize(
    ("features", "sees_taps", "sees_expert"),
    [
        pytest.param("fused", True, True, id="fused"),
        pytest.param("expert", False, True, id="expert"),
        pytest.param("diffusion", True, False, id="diffusion"),
    ],
)
def test_the_other_maps_are_zero(features: Features, sees_taps: bool, sees_expert: bool) -> None:
    taps, expert = visible({"mid": torch.ones(1, 2, 4, 4)}, [torch.ones(1, 3, 8, 8)], features)
    assert (bool(taps["mid"].all()), bool(expert[0].all())) == (sees_taps, sees_expert)
    assert (taps["mid"].shape, expert[0].shape) == ((1, 2, 4, 4), (1, 3, 8, 8))


@pytest.mark.parametrize("features", FEATURES)
def test_a_record_comes_back(features: Features, tmp_path: Path) -> None:
    record = HeadRecord(features=features, release=True, seed=3, steps=7)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_heads_without_a_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training\.json"):
        read_record(tmp_path)
    (tmp_path / "training.json").write_text('{"features": "both", "release": false, "seed": 0, "steps": 1}')
    with pytest.raises(DataError, match="both"):
        read_record(tmp_path)
