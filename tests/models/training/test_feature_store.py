"""Frozen maps on disk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.training.feature_store import build_store


def pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    for number in range(count):
        yield np.full((4, 4, 3), number, dtype=np.uint8)


def extract(pixels: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    values = torch.from_numpy(pixels[:, :2, :2, 0].astype(np.float32))[:, None]
    return {"sd.mid": values, "expert.0": values.repeat(1, 3, 1, 1) / 2}


def test_rows_come_back_in_order_across_batches(tmp_path: Path) -> None:
    seen: list[int] = []
    store = build_store(tmp_path, pictures(70), 80, extract, lambda done, _loss: seen.append(done))
    assert seen == [32, 64, 70]
    maps = store.read(np.array([69, 0, 33]))
    assert maps["sd.mid"].shape == (3, 1, 2, 2)
    assert maps["sd.mid"][:, 0, 0, 0].tolist() == [69, 0, 33]
    assert maps["expert.0"].shape == (3, 3, 2, 2)
    assert maps["expert.0"].dtype == torch.float32


def test_a_finished_store_is_opened_and_an_unfinished_one_is_made_anew(tmp_path: Path) -> None:
    build_store(tmp_path, pictures(3), 3, extract, lambda _done, _loss: None)
    again = build_store(tmp_path, iter(()), 3, extract, lambda _done, _loss: None)
    assert again.read(np.array([2]))["sd.mid"][0, 0, 0, 0].item() == 2
    (tmp_path / "index.json").unlink()
    anew = build_store(tmp_path, pictures(2), 2, extract, lambda _done, _loss: None)
    assert anew.read(np.array([1]))["sd.mid"][0, 0, 0, 0].item() == 1
