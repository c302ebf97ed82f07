"""Both heads learn from frozen maps, and zero-shot heads never draw unseen views."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle.pack import ADAPTERS, MINI_DIMENSION, lite0_part, mini_uhead_shape
from models.bundle.parts import load_adapters, load_expert
from models.errors import DataError
from models.heads.segmentation import SegmentationHead
from models.heads.uhead import GridPool, UHead
from training.data.dataset import DataSet
from training.heads import dense, pooled
from training.heads.dense import DenseLoss, DenseStage, split_maps
from training.heads.feature_store import EXPERT_CELLS, TAP_CELLS, DeviceStore
from training.heads.frozen import FEATURES, Features, HeadData, adapted_scenes, visible
from training.heads.pairs import NONE, PairSampler, concept_numbers
from training.heads.pooled import PairLoss, PooledStage, all_cells, collect_names, contrastive_loss, sharing
from training.heads.recipe import (
    ZEROSHOT,
    HeadPlan,
    HeadRecord,
    Run,
    read_record,
    train_dense,
    train_heads,
    train_pooled,
)
from training.heads.scene_views import UNKNOWN, SceneViews
from training.heads.standards import measure_dense, measure_pool
from training.heads.views import TrainingView, ViewSet, training_views
from training.loop import Schedule

SHAPES = {
    "sd.mid": (128, 2, 2),
    "sd.up_0": (128, 4, 4),
    "sd.up_1": (96, 8, 8),
    "sd.up_2": (64, 16, 16),
    "sd.up_3": (32, 16, 16),
    "expert.0": (24, 32, 32),
    "expert.1": (40, 16, 16),
    "expert.2": (112, 8, 8),
    "expert.3": (320, 4, 4),
}


@pytest.fixture(scope="module")
def views(dataset: DataSet) -> ViewSet:
    return view_set(list(training_views(dataset, 0)))


def view_set(found: list[TrainingView]) -> ViewSet:
    return ViewSet(
        kinds=tuple(view.kind for view in found),
        concepts=tuple(view.concepts for view in found),
        names=tuple(view.name for view in found),
        is_unseen=np.array([view.is_unseen for view in found]),
    )


def random_store(rows: int, seed: int, **more: tuple[int, int, int]) -> DeviceStore:
    generator = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, **more}
    return DeviceStore(
        {name: torch.randn((rows, *shape), generator=generator).half() for name, shape in shapes.items()}
    )


def random_cells(rows: int, seed: int) -> DeviceStore:
    """Cells of random maps, as a view store holds them."""
    taps, expert = split_maps(random_store(rows, seed).read(torch.arange(rows)))
    shape = mini_uhead_shape()
    cells = {TAP_CELLS: shape.tap_cells(taps), EXPERT_CELLS: shape.expert_cells(expert)}
    return DeviceStore({name: values.half() for name, values in cells.items()})


def embed(names: list[str]) -> torch.Tensor:
    rows = [torch.randn(MINI_DIMENSION, generator=torch.Generator().manual_seed(sum(map(ord, name)))) for name in names]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def scene_views() -> SceneViews:
    labels = np.zeros((4, 32, 32), dtype=np.uint8)
    labels[:, :16], labels[:, 16:, 16:] = 1, 2
    return SceneViews(
        labels=labels,
        present=(("cat", "bed"),) * 3 + (("owl", "boat"),),
        absent=(("boat",),) * 4,
        is_unseen=np.array([False, False, False, True]),
    )


def scene_names() -> dict[str, torch.Tensor]:
    names = scene_views().prompts()
    return dict(zip(names, embed(names), strict=True))


def test_the_losses_fall_together(views: ViewSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "PAIRS", 4)
    monkeypatch.setattr(dense, "SCENES", 2)
    torch.manual_seed(0)
    uhead, segmentation = UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)
    data = HeadData(
        views=views,
        store=random_cells(len(views.kinds), 0),
        pixels=None,
        scenes=scene_views(),
        scene_names=scene_names(),
        scene_store=random_store(4, 1),
        scene_pixels=np.zeros((4, 128, 128, 3), np.uint8),
    )
    schedule = Schedule(steps=20, minutes=60, learning_rate=2e-3, warmup_steps=5, decay=False)
    before = {name: weight.clone() for name, weight in uhead.state_dict().items()}

    def changed() -> set[bool]:
        """True in the set if weights of the pool changed, False if others did."""
        now = uhead.state_dict()
        return {name.startswith("pool.") for name, weight in before.items() if not torch.equal(now[name], weight)}

    run = Run(schedule=schedule, with_unseen=False, folder=tmp_path, seed=0, progress=lambda _step, _loss: None)
    train_pooled(uhead, data, run, ZEROSHOT, embed=embed)
    assert changed() == {True}
    pool = {name: weight.clone() for name, weight in uhead.pool.state_dict().items()}
    train_dense(uhead, segmentation, data, run)
    assert changed() == {True, False}
    assert all(torch.equal(weight, pool[name]) for name, weight in uhead.pool.state_dict().items())
    assert not uhead.training
    for stage, losses in (("pooled", ["names"]), ("dense", ["dense", "regions"])):
        with (tmp_path / stage / "curve.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name in losses:
            assert float(rows[-1][name]) < float(rows[0][name])


def test_pairs_show_the_same_thing_and_partners_are_images_where_there_are_any(views: ViewSet) -> None:
    rows = np.flatnonzero(~views.is_unseen)
    sampler = PairSampler(views, rows, ZEROSHOT.shares)
    sketches, partners = sampler.draw(200, torch.Generator().manual_seed(0))
    allowed = set(rows.tolist())
    for sketch, partner in zip(sketches.tolist(), partners.tolist(), strict=True):
        assert {sketch, partner} <= allowed
        assert views.kinds[sketch] != "picture"
        assert set(views.concepts[sketch]) & set(views.concepts[partner])
        if views.names[sketch] == "cat":
            assert views.kinds[partner] == "picture"


def test_pairs_are_also_compared_with_the_last_batches(views: ViewSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "PAIRS", 4)
    torch.manual_seed(0)
    stage = PooledStage(UHead(mini_uhead_shape(), MINI_DIMENSION)).eval()
    cells = random_cells(len(views.kinds), 0)
    plain = PairLoss(stage, views, cells, embed, with_unseen=True, shares=ZEROSHOT.shares)
    loss = PairLoss(stage, views, cells, embed, with_unseen=True, shares=ZEROSHOT.shares, memory=2)
    batches = [plain.draw(torch.Generator().manual_seed(seed)) for seed in range(3)]
    found = [loss.losses(*batch)["pairs"].item() for batch in batches]
    rows = torch.cat([batch[0].view(2, 4) for batch in (batches[2], *batches[:2])], dim=1)  # those before, once more
    vectors, shown = stage.pool(all_cells(cells.read(rows.flatten()))).view(2, 12, -1), plain._shown[rows]
    scale = stage.log_pair_scale.exp()
    sides = [
        contrastive_loss(
            scale * vectors[own, :4] @ vectors[1 - own].T, sharing(shown[own, :4], shown[1 - own], plain._count)
        )
        for own in (0, 1)
    ]
    assert found[2] == pytest.approx(torch.stack(sides).mean().item(), rel=1e-4)


def test_a_name_stands_for_all_the_concepts_it_is_used_for(views: ViewSet) -> None:
    vocabulary = {code: n for n, code in enumerate(sorted({c for codes in views.concepts for c in codes}))}
    names = collect_names(views, np.arange(len(views.kinds)), vocabulary, embed)
    assert len(names.names) == len(set(views.names))
    column = names.names.index("cat")
    assert names.stands_for[:, column].nonzero().flatten().tolist() == [vocabulary["1F431"]]
    called = names.of(torch.tensor([[vocabulary["1F431"], NONE], [NONE, NONE]]))
    assert [names.names[number] for number in called[0].nonzero().flatten()] == ["cat"]
    assert not called[1].any()


def test_what_shares_a_concept_is_the_same_thing() -> None:
    vocabulary = {"cat": 0, "owl": 1, "bed": 2}
    left = concept_numbers([("cat", "owl"), ("bed",), ("unknown",)], vocabulary)
    right = concept_numbers([("owl",), ("bed", "cat"), ()], vocabulary)
    assert left.tolist() == [[0, 1], [2, NONE], [NONE, NONE]]
    assert sharing(left, right, len(vocabulary)).tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, False],
    ]


def test_standards_are_those_of_the_stores_and_a_blank_map_reads_as_zero() -> None:
    uhead = UHead(mini_uhead_shape(), MINI_DIMENSION)
    views, scenes = random_cells(40, 0), random_store(8, 1)
    measure_pool(uhead, views.blank("sd."))
    measure_dense(uhead, scenes)
    assert isinstance(uhead.pool, GridPool)
    cells = all_cells(views.read(torch.arange(40)))
    taps = sum(shape.cell_channels for shape in uhead.config.tap_shapes.values())
    standard = uhead.pool.standard(cells)[:, taps:]
    assert standard.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (standard.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    assert uhead.pool.standard(all_cells(views.blank("sd.").read(torch.arange(4))))[:, :taps].abs().max() == 0
    level = scenes.read(torch.arange(8))["expert.3"]
    assert uhead.expert_standards[3](level).std() == pytest.approx(1, abs=0.02)


def test_scenes_and_names_of_the_unseen_are_drawn_only_on_request() -> None:
    scenes = scene_views()
    generator = torch.Generator().manual_seed(0)
    assert set(scenes.draw(100, False, generator).tolist()) == {0, 1, 2}
    assert 3 in scenes.draw(100, True, generator).tolist()
    assert scenes.names(with_unseen=False) == ("bed", "cat")
    assert scenes.names(with_unseen=True) == ("bed", "boat", "cat", "owl")


def test_a_withheld_name_is_background_and_one_name_is_always_asked_for() -> None:
    torch.manual_seed(0)
    stage = DenseStage(UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION)).eval()
    scenes = scene_views()
    loss = DenseLoss(stage, scenes, random_store(4, 1), scene_names(), with_unseen=False)
    row, labels = torch.tensor([0]), torch.from_numpy(scenes.labels[:1].astype(np.int64))
    cells = stage.uhead.dense(*split_maps(random_store(4, 1).read(row)))
    prompts = torch.stack([scene_names()[name] for name in ("cat", "bed", "boat")])
    asked = stage.segmentation.logits(cells, prompts[None])
    without_bed = stage.segmentation.logits(cells, prompts[None, [0, 2]])

    def wanted(logits: torch.Tensor, targets: torch.Tensor) -> float:
        return dense.DENSE_WEIGHT * torch.nn.functional.cross_entropy(logits, targets).item()

    for chances, value in (
        ([1.0, 1.0], wanted(asked, labels)),
        ([1.0, 0.0], wanted(without_bed, labels * (labels == 1))),
        ([0.0, 0.0], wanted(without_bed, labels * (labels == 1))),  # the first stays
    ):
        assert loss.losses(row, torch.tensor([chances]))["dense"].item() == pytest.approx(value, rel=1e-5)


def test_where_cells_are_unknown_the_name_learns_to_fill_most() -> None:
    torch.manual_seed(0)
    stage = DenseStage(UHead(mini_uhead_shape(), MINI_DIMENSION), SegmentationHead(MINI_DIMENSION))
    views = scene_views()
    labels = np.full_like(views.labels, UNKNOWN)
    labels[1] = views.labels[1]
    loss = DenseLoss(
        stage, dataclasses.replace(views, labels=labels), random_store(4, 1), scene_names(), with_unseen=False
    )
    rows, chances = torch.tensor([0, 1]), torch.ones((2, 2))
    before = {name: value.item() for name, value in loss.losses(rows, chances).items()}
    known = {name: value.item() for name, value in loss.losses(torch.tensor([1]), torch.ones((1, 2))).items()}
    assert before["dense"] == pytest.approx(known["dense"], rel=1e-5), "unknown cells do not count"
    assert known["areas"] == 0
    optimizer = torch.optim.Adam(stage.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss.losses(rows, chances)["areas"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.losses(rows, chances)["areas"].item() < 0.5 * before["areas"]


def test_adapters_learn_with_the_pool_from_pixels(
    dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled, "PAIRS", 4)
    found = list(training_views(dataset, 0))
    data = HeadData(
        views=view_set(found),
        store=random_cells(len(found), 0),
        pixels=torch.from_numpy(np.stack([view.pixels for view in found])),
        scenes=scene_views(),
        scene_names=scene_names(),
        scene_store=random_store(4, 1),
        scene_pixels=np.stack([view.pixels for view in found[:4]]),
    )
    plan = HeadPlan(adapt=True, steps=3, dense_steps=0)
    train_heads(tmp_path / "bundle", data, plan, tmp_path / "runs", lambda _step, _loss: None)
    expert = load_expert(lite0_part(), tmp_path).eval()
    pixels = data.scene_store.read(torch.arange(1))["expert.3"]
    before = expert(torch.zeros(1, 3, 64, 64))
    load_adapters(expert, tmp_path / "bundle" / "heads" / ADAPTERS)
    after = expert(torch.zeros(1, 3, 64, 64))
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    scenes = adapted_scenes(expert, data).read(torch.arange(1))
    assert scenes["expert.3"].shape == pixels.shape
    assert not torch.equal(scenes["expert.3"], pixels)
    assert torch.equal(scenes["sd.mid"], data.scene_store.read(torch.arange(1))["sd.mid"])
    assert read_record(tmp_path / "bundle" / "heads").adapted
    with pytest.raises(DataError, match="add --adapt"):
        train_heads(tmp_path / "bundle", data, HeadPlan(finish=True), tmp_path / "runs", lambda _step, _loss: None)
    train_heads(tmp_path / "bundle", data, HeadPlan(steps=1, dense_steps=0), tmp_path / "runs", lambda _s, _l: None)
    assert not (tmp_path / "bundle" / "heads" / ADAPTERS).exists()
    assert not read_record(tmp_path / "bundle" / "heads").adapted


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
    record.write(tmp_path)
    assert read_record(tmp_path) == record


def test_heads_without_a_record_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training\.json"):
        read_record(tmp_path)
    (tmp_path / "training.json").write_text('{"features": "both", "release": false, "seed": 0, "steps": 1}')
    with pytest.raises(DataError, match="both"):
        read_record(tmp_path)
