"""Heads with class posteriors learn from cached cells, from photographs as from sketches, and load as a bundle."""

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.bundle.build import LoadedBundle, load_bundle
from models.bundle.pack import MINI_DIMENSION, PHOTOGRAPH_SIDE, load_heads, mini_uhead_shape, write_manifest
from models.encoder import TrainedNetwork
from models.errors import DataError
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import UHead
from training.devices import to_input
from training.evaluation.features import plain_batch
from training.evaluation.photographs import served
from training.heads import dense, pooled
from training.heads.dense import split_maps
from training.heads.feature_store import CLASS_FEATURES, CLASS_MAP, EXPERT_CELLS, TAP_CELLS, DeviceStore
from training.heads.frozen import HeadData, ViewData
from training.heads.pairs import PairSampler
from training.heads.photograph_recipe import PHOTOGRAPHS, pooled_store, train_photograph_heads
from training.heads.pooled import MIRRORED, POOLED, all_cells
from training.heads.recipe import HeadPlan
from training.heads.views import ViewSet

from .test_recipe import random_store, scene_names, scene_views

MINI = Path(__file__).parents[3] / "weights" / "mini"
HEADS = MINI / "heads"
UNSEEING = MINI.with_name("mini-zeroshot") / "heads"


def views() -> ViewSet:
    """Ten photographs of a cat and two of a cup, sketches and emoji of both, and a background."""
    shown = [
        *[("photograph", "cat")] * 10,
        *[("photograph", "cup")] * 2,
        *[("sketch", "cat"), ("drawing", "cup"), ("picture", "cat"), ("picture", "cup")] * 2,
        ("photograph", ""),
    ]
    return ViewSet(
        kinds=tuple(kind for kind, _ in shown),
        concepts=tuple((name,) if name else () for _, name in shown),
        names=tuple(name for _, name in shown),
        is_unseen=np.array([name == "cup" for _, name in shown]),
    )


@pytest.fixture
def data() -> ViewData:
    shown = views()
    rows = len(shown.kinds)
    taps, expert = split_maps(random_store(rows, 0).read(torch.arange(rows)))
    shape = mini_uhead_shape()
    features = torch.rand((rows, 1280, 1, 1), generator=torch.Generator().manual_seed(1))
    cells = {
        TAP_CELLS: shape.tap_cells(taps).half(),
        EXPERT_CELLS: shape.expert_cells(expert).half(),
        CLASS_FEATURES: features.half(),
    }
    return ViewData(views=shown, store=DeviceStore(cells), pixels=None)


@pytest.fixture
def with_scenes(data: ViewData) -> HeadData:
    return HeadData(
        views=data.views,
        store=data.store,
        pixels=None,
        scenes=scene_views(),
        scene_names=scene_names(),
        scene_store=random_store(4, 1, **{CLASS_MAP: (320, 7, 7)}),
        scene_pixels=None,
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "PAIRS", 6)
    monkeypatch.setattr(dense, "SCENES", 2)


def test_trained_heads_load_as_a_bundle(with_scenes: HeadData, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    plan = HeadPlan(release=True, steps=12, dense_steps=4)
    steps: list[int] = []
    train_photograph_heads(
        bundle, with_scenes, plan, tmp_path / "runs", lambda step, _: steps.append(step), start=HEADS
    )
    for part in ("vae", "unet", "scheduler"):
        shutil.copytree(MINI / part, bundle / part)
    write_manifest(bundle, name="photographs", licence="", attribution="")
    loaded = load_bundle(bundle, device="cpu")
    assert loaded.info.tasks["retrieval"].resolution == PHOTOGRAPH_SIDE
    network = loaded.encoder.network
    assert isinstance(network, TrainedNetwork)
    posteriors = network.posteriors
    assert posteriors is not None
    assert posteriors.embeddings.norm(dim=1).mean().item() == pytest.approx(1, abs=1e-3)
    assert posteriors.linear.weight.abs().sum() > 0
    assert posteriors.dense_weight.item() != 0
    record = json.loads((bundle / "heads" / "training.json").read_text())
    assert (record["features"], record["release"]) == ("fused", True)
    before, after = (load_file(folder / "uhead.safetensors") for folder in (HEADS, bundle / "heads"))
    changed = {name.split(".")[0] for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert changed == {"adapters", "fuse", "lateral", "smooth"}  # the dense path, not the pool
    with (tmp_path / "runs" / f"photographs-{plan.folder}" / "pooled" / "curve.csv").open(newline="") as file:
        assert {"pairs", "names", "posteriors"} <= set(next(csv.DictReader(file)))
    _check_parts(loaded)


def _check_parts(loaded: LoadedBundle) -> None:
    """The evaluation takes the served features apart without changing them."""
    shown = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    parts = served(loaded).encode(shown)
    whole = loaded.encoder.encode_images(plain_batch(to_input(torch.from_numpy(shown)), 50))
    assert np.abs(parts["semantic"] - whole.pooled.numpy()).max() <= 1e-5
    assert np.abs(parts["visual"] - whole.visual.numpy()).max() <= 1e-5
    assert {"head", "posteriors"} < set(parts)


def test_heads_start_from_those_that_saw_the_same_maps(data: ViewData, tmp_path: Path) -> None:
    plan = HeadPlan(release=True, features="expert", steps=4, dense_steps=0)
    with pytest.raises(DataError, match="saw the maps 'fused', not 'expert'"):
        train_photograph_heads(tmp_path, data, plan, tmp_path / "runs", lambda _step, _loss: None, start=HEADS)


def test_a_pool_is_read_from_the_store_as_it_computes(data: ViewData) -> None:
    uhead = UHead(mini_uhead_shape(), MINI_DIMENSION).eval()
    load_heads(uhead, SegmentationHead(MINI_DIMENSION), HEADS)
    rows = torch.arange(len(data.store))
    cells, found = all_cells(data.store.read(rows)), pooled_store(uhead.pool, data.store, rows.numpy()).read(rows)
    with torch.inference_mode():
        assert (found[POOLED] - uhead.pool(cells)).abs().max() < 1e-3
        assert (found[MIRRORED] - uhead.pool(cells.flip(3))).abs().max() < 1e-3


def test_zero_shot_heads_do_not_start_from_release_heads(data: ViewData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="saw the unseen"):
        train_photograph_heads(tmp_path, data, HeadPlan(), tmp_path / "runs", lambda _step, _loss: None, start=HEADS)


def test_photographs_are_drawn_evenly_and_partners_are_of_both_kinds() -> None:
    shown = views()
    rows = np.flatnonzero([codes != () for codes in shown.concepts])
    sampler = PairSampler(shown, rows, PHOTOGRAPHS.shares)
    queries, partners = sampler.draw(3000, torch.Generator().manual_seed(0))
    kinds = np.array(shown.kinds)
    assert all(shown.names[query] == shown.names[other] != "" for query, other in zip(queries, partners, strict=True))
    assert set(kinds[partners]) == {"photograph", "picture"}
    assert (kinds[partners] == "photograph").mean() == pytest.approx(0.5, abs=0.05)
    photographed = [shown.names[query] for query in queries[kinds[queries] == "photograph"]]
    assert photographed.count("cat") / len(photographed) == pytest.approx(10**0.5 / (10**0.5 + 2**0.5), abs=0.05)


def test_zero_shot_heads_read_nothing_unseen(data: ViewData, tmp_path: Path) -> None:
    read: set[int] = set()

    class Watched(DeviceStore):
        def read(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            read.update(rows.tolist())
            return super().read(rows)

        def only(self, *names: str) -> "Watched":
            return Watched({name: self._maps[name] for name in names})

        def replaced(self, maps: Mapping[str, torch.Tensor]) -> "Watched":
            return Watched({**self._maps, **maps})

    watched = replace(data, store=Watched(data.store._maps))
    plan = HeadPlan(steps=4, dense_steps=0)
    train_photograph_heads(tmp_path, watched, plan, tmp_path / "runs", lambda _step, _loss: None, start=UNSEEING)
    assert read
    assert not any(data.views.is_unseen[row] for row in read)
