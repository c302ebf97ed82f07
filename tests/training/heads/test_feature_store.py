"""Frozen maps on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.heads.feature_store import DeviceStore, build_store, in_batches

CPU = torch.device("cpu")


def pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
    yield from in_batches(np.broadcast_to(numbers, (count, 4, 4, 3)), 8)


def extract(pixels: NDArray[Any]) -> dict[str, torch.Tensor]:
    values = torch.from_numpy(pixels[:, :2, :2, 0].astype(np.float32))[:, None]
    return {"latents": values, "expert.0": values.repeat(1, 3, 1, 1) / 2}


def test_rows_come_back_in_order_across_batches(tmp_path: Path) -> None:
    seen: list[int] = []
    store = build_store(tmp_path, pictures(70), 80, extract, lambda done, _loss: seen.append(done))
    assert seen[-1] == 70
    assert len(seen) > 2
    assert len(store) == 70
    maps = store.on(CPU).read(torch.tensor([69, 0, 33]))
    assert maps["latents"].shape == (3, 1, 2, 2)
    assert maps["latents"][:, 0, 0, 0].tolist() == [69, 0, 33]
    assert maps["expert.0"].shape == (3, 3, 2, 2)
    assert maps["expert.0"].dtype == torch.float32


def test_a_second_step_reads_one_map_and_joins_the_rest(tmp_path: Path) -> None:
    store = build_store(tmp_path / "a", pictures(40), 40, extract, lambda _done, _loss: None)

    def tap(latents: NDArray[Any]) -> dict[str, torch.Tensor]:
        return {"sd.mid": torch.from_numpy(latents.astype(np.float32)) * 2}

    taps = build_store(tmp_path / "b", store.batches("latents", 8), len(store), tap, lambda _done, _loss: None)
    maps = (store.without("latents") | taps).on(CPU).read(torch.tensor([35]))
    assert set(maps) == {"expert.0", "sd.mid"}
    assert maps["sd.mid"][0, 0, 0, 0].item() == 70


def test_a_finished_store_is_opened_and_an_unfinished_one_is_made_anew(tmp_path: Path) -> None:
    build_store(tmp_path, pictures(3), 3, extract, lambda _done, _loss: None)
    again = build_store(tmp_path, iter(()), 3, extract, lambda _done, _loss: None)
    assert again.on(CPU).read(torch.tensor([2]))["latents"][0, 0, 0, 0].item() == 2
    (tmp_path / "index.json").unlink()
    anew = build_store(tmp_path, pictures(2), 2, extract, lambda _done, _loss: None)
    assert anew.on(CPU).read(torch.tensor([1]))["latents"][0, 0, 0, 0].item() == 1


def test_blank_maps_read_as_zeros_of_their_shape(tmp_path: Path) -> None:
    store = build_store(tmp_path, pictures(6), 6, extract, lambda _done, _loss: None).on(CPU)
    rows = torch.tensor([5, 2])
    maps = store.blank("expert.").read(rows)
    assert maps["expert.0"].shape == (2, 3, 2, 2)
    assert not maps["expert.0"].any()
    assert torch.equal(maps["latents"], store.read(rows)["latents"])


def test_joined_stores_read_as_one_in_the_order_asked(tmp_path: Path) -> None:
    stores = [
        build_store(tmp_path / str(count), pictures(count), count, extract, lambda _done, _loss: None)
        for count in (5, 40, 3)
    ]
    joined = DeviceStore.joined(stores, CPU)
    assert len(joined) == 48
    rows = torch.tensor([47, 4, 5, 0, 44, 46])
    assert joined.read(rows)["latents"][:, 0, 0, 0].tolist() == [2, 4, 0, 0, 39, 1]
    assert joined.blank("latents").read(rows)["latents"].abs().sum() == 0
    assert joined.read(torch.tensor([6]))["expert.0"].shape == (1, 3, 2, 2)


def test_some_maps_are_kept_or_replaced(tmp_path: Path) -> None:
    store = build_store(tmp_path, pictures(6), 6, extract, lambda _done, _loss: None).on(CPU)
    assert set(store.only("latents").read(torch.tensor([0]))) == {"latents"}
    other = store.replaced({"latents": torch.ones(6, 1, 2, 2, dtype=torch.float16)})
    assert (other.read(torch.tensor([5]))["latents"] == 1).all()
    assert torch.equal(other.read(torch.tensor([5]))["expert.0"], store.read(torch.tensor([5]))["expert.0"])
