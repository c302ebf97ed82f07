"""Frozen maps on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.heads import feature_store
from training.heads.feature_store import Arrays, DeviceStore, build_store

CPU = torch.device("cpu")


def images(count: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))


def extract(pixels: NDArray[Any]) -> dict[str, torch.Tensor]:
    values = torch.from_numpy(pixels[:, :2, :2, 0].astype(np.float32))[:, None]
    return {"latents": values, "expert.0": values.repeat(1, 3, 1, 1) / 2}


def store_of(
    folder: Path, inputs: NDArray[Any], encode: Callable[[NDArray[Any]], Mapping[str, torch.Tensor]] = extract
) -> Arrays:
    return build_store(folder, inputs, size=8, extract=encode, progress=lambda _done, _loss: None)


def test_rows_come_back_in_order_across_batches(tmp_path: Path) -> None:
    seen: list[int] = []
    store = build_store(tmp_path, images(70), size=8, extract=extract, progress=lambda done, _loss: seen.append(done))
    assert seen[-1] == 70
    assert len(seen) > 2
    assert len(store["latents"]) == 70
    maps = DeviceStore.joined([store], CPU).read(torch.tensor([69, 0, 33]))
    assert maps["latents"].shape == (3, 1, 2, 2)
    assert maps["latents"][:, 0, 0, 0].tolist() == [69, 0, 33]
    assert maps["expert.0"].shape == (3, 3, 2, 2)
    assert maps["expert.0"].dtype == torch.float32


def test_a_second_step_reads_one_map_and_joins_the_rest(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a", images(40))

    def tap(latents: NDArray[Any]) -> dict[str, torch.Tensor]:
        return {"sd.mid": torch.from_numpy(latents.astype(np.float32)) * 2}

    taps = store_of(tmp_path / "b", store["latents"], tap)
    maps = DeviceStore.joined([{"expert.0": store["expert.0"], **taps}], CPU).read(torch.tensor([35]))
    assert set(maps) == {"expert.0", "sd.mid"}
    assert maps["sd.mid"][0, 0, 0, 0].item() == 70


def test_a_finished_store_is_opened_and_an_unfinished_one_is_made_again(tmp_path: Path) -> None:
    store_of(tmp_path, images(3))
    again = store_of(tmp_path, images(0))
    assert DeviceStore.joined([again], CPU).read(torch.tensor([2]))["latents"][0, 0, 0, 0].item() == 2
    (tmp_path / "index.json").unlink()
    remade = store_of(tmp_path, images(2))
    assert DeviceStore.joined([remade], CPU).read(torch.tensor([1]))["latents"][0, 0, 0, 0].item() == 1


def test_blank_maps_read_as_zeros_of_their_shape(tmp_path: Path) -> None:
    store = DeviceStore.joined([store_of(tmp_path, images(6))], CPU)
    rows = torch.tensor([5, 2])
    maps = store.blank("expert.").read(rows)
    assert maps["expert.0"].shape == (2, 3, 2, 2)
    assert not maps["expert.0"].any()
    assert torch.equal(maps["latents"], store.read(rows)["latents"])


def test_joined_stores_read_as_one_in_the_order_asked(tmp_path: Path) -> None:
    stores = [store_of(tmp_path / str(count), images(count)) for count in (5, 40, 3)]
    joined = DeviceStore.joined(stores, CPU)
    assert len(joined) == 48
    rows = torch.tensor([47, 4, 5, 0, 44, 46])
    assert joined.read(rows)["latents"][:, 0, 0, 0].tolist() == [2, 4, 0, 0, 39, 1]
    assert joined.blank("latents").read(rows)["latents"].abs().sum() == 0
    assert joined.read(torch.tensor([6]))["expert.0"].shape == (1, 3, 2, 2)


def test_some_maps_remain_or_are_replaced(tmp_path: Path) -> None:
    store = DeviceStore.joined([store_of(tmp_path, images(6))], CPU)
    assert set(store.only("latents").read(torch.tensor([0]))) == {"latents"}
    other = store.replaced({"latents": torch.ones(6, 1, 2, 2, dtype=torch.float16)})
    assert (other.read(torch.tensor([5]))["latents"] == 1).all()
    assert torch.equal(other.read(torch.tensor([5]))["expert.0"], store.read(torch.tensor([5]))["expert.0"])


def test_encoding_continues_after_the_last_saved_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "_SAVED_ROWS", 16)
    encoded: list[int] = []

    def halting(pixels: NDArray[Any]) -> dict[str, torch.Tensor]:
        if int(pixels[0, 0, 0, 0]) == 24 and 24 not in encoded:
            encoded.append(24)
            raise KeyboardInterrupt
        encoded.append(int(pixels[0, 0, 0, 0]))
        return extract(pixels)

    with pytest.raises(KeyboardInterrupt):
        store_of(tmp_path, images(40), halting)
    store = store_of(tmp_path, images(40), halting)
    assert encoded == [0, 8, 16, 24, 16, 24, 32]  # 16 was encoded but not saved
    assert store["latents"][:, 0, 0, 0].tolist() == list(range(40))


def test_a_store_with_room_takes_further_rows(tmp_path: Path) -> None:
    encoded: list[int] = []

    def counted(pixels: NDArray[Any]) -> dict[str, torch.Tensor]:
        encoded.append(len(pixels))
        return extract(pixels)

    for count in (10, 30):
        store = build_store(
            tmp_path, images(count), size=8, extract=counted, progress=lambda _done, _loss: None, room=50
        )
        assert store["latents"][:, 0, 0, 0].tolist() == list(range(count))
    assert sum(encoded) == 30
