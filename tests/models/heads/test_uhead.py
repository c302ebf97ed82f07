"""The U-head: its contract over shapes, the paper's own shape, and what training relies on."""

import pytest
import torch

from models.heads.uhead import Adapter, UHead, UHeadConfig, UHeadScale

MINI = UHeadConfig(
    scales=(
        UHeadScale(stride=4, taps={}, expert=24, width=64),
        UHeadScale(stride=8, taps={"up_2": 64, "up_3": 32}, expert=40, width=128),
        UHeadScale(stride=16, taps={"up_1": 96}, expert=112, width=192),
        UHeadScale(stride=32, taps={"up_0": 128, "mid": 128}, expert=320, width=256),
    ),
    pooling="places",
)
PAPER = UHeadConfig(
    scales=(
        UHeadScale(stride=8, taps={"up_2": 640, "up_3": 320}, expert=0, width=256),
        UHeadScale(stride=16, taps={"up_1": 1280}, expert=0, width=512),
        UHeadScale(stride=32, taps={"up_0": 1280}, expert=0, width=768),
        UHeadScale(stride=64, taps={"mid": 1280}, expert=0, width=1024),
    ),
    groups=32,
)
TAPS_ONLY = UHeadConfig(scales=(UHeadScale(stride=8, taps={"up_1": 16}, expert=0, width=16),), groups=4)
CONFIGS = pytest.mark.parametrize("config", [MINI, PAPER, TAPS_ONLY], ids=["mini", "paper", "one scale, no expert"])


def _inputs(config: UHeadConfig, batch: int, side: int = 32) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    taps: dict[str, torch.Tensor] = {}
    expert: list[torch.Tensor] = []
    for number, scale in enumerate(config.scales):
        size = max(1, side >> number)
        for name, channels in scale.taps.items():
            taps[name] = torch.randn((batch, channels, size, size), generator=draw)
        if scale.expert:
            expert.append(torch.randn((batch, scale.expert, size, size), generator=draw))
    return taps, expert


def _dimension(config: UHeadConfig) -> int:
    return 768 if config is PAPER else 384


def _new_head(config: UHeadConfig) -> UHead:
    return UHead(config, _dimension(config))


def _head(config: UHeadConfig) -> UHead:
    torch.manual_seed(0)
    return _new_head(config).eval()


@CONFIGS
def test_pooled_is_of_unit_length_and_dense_is_at_the_highest_scale(config: UHeadConfig) -> None:
    with torch.no_grad():
        pooled, dense = _head(config)(*_inputs(config, 3))
    assert pooled.shape == (3, _dimension(config))
    assert torch.allclose(pooled.norm(dim=1), torch.ones(3), atol=1e-5)
    assert dense.shape == (3, _dimension(config), 32, 32)


@pytest.mark.parametrize("has_taps", [True, False], ids=["taps at the finest scale", "expert alone"])
def test_small_maps_of_a_transformer_do_not_shrink_the_dense_map(has_taps: bool) -> None:
    finest = {"up_3": 32} if has_taps else {}
    scales = (
        UHeadScale(stride=8, taps=finest, expert=24, width=32),
        UHeadScale(stride=16, taps={"up_1": 32}, expert=24, width=32),
    )
    head = _head(UHeadConfig(scales=scales, dense_width=32))
    taps = {name: torch.randn(1, 32, side, side) for name, side in (("up_3", 32), ("up_1", 16))}
    expert = [torch.randn(1, 24, 16, 16)] * 2  # of a patch of 16 px, at every scale
    with torch.no_grad():
        assert head(taps, expert, (256, 256))[1].shape == (1, 384, 32, 32)
        if has_taps:
            assert torch.equal(head.dense(taps, expert), head(taps, expert, (256, 256))[1])


@CONFIGS
def test_pooled_alone_is_the_same(config: UHeadConfig) -> None:
    head, inputs = _head(config), _inputs(config, 2)
    with torch.no_grad():
        assert torch.equal(head.pooled(*inputs), head(*inputs)[0])


@CONFIGS
def test_every_weight_is_trained(config: UHeadConfig) -> None:
    head = _new_head(config)
    for adapter in head.adapters:
        if isinstance(adapter, Adapter):
            torch.nn.init.normal_(adapter.up.weight)
    pooled, dense = head(*_inputs(config, 2))
    (pooled[:, 0].sum() + dense.square().sum()).backward()
    assert not [name for name, weight in head.named_parameters() if weight.grad is None]


def test_the_papers_shape_has_its_number_of_parameters() -> None:
    head = _new_head(PAPER)
    fused = [*head.fuse.parameters(), *head.pool.parameters()]
    assert sum(p.numel() for p in fused) / 1e6 == pytest.approx(8.46, abs=0.02)


def test_the_mini_shape_is_small() -> None:
    assert sum(p.numel() for p in _new_head(MINI).parameters()) < 2_300_000


def test_cells_hold_means_and_of_fine_maps_maxima_too() -> None:
    taps, expert = _inputs(MINI, 2)
    cells = _new_head(MINI).cells(taps, expert)
    assert cells.shape == (2, 1312, 4, 4)
    assert torch.equal(cells, torch.cat([MINI.tap_cells(taps), MINI.expert_cells(expert)], dim=1))
    up_2 = taps["up_2"]
    assert cells[1, 3, 2, 1] == pytest.approx(up_2[1, 3, 8:12, 4:8].mean().item(), abs=1e-6)
    assert cells[1, 64 + 3, 2, 1] == up_2[1, 3, 8:12, 4:8].max()
    assert torch.equal(cells[:, -320:], expert[3])


def test_pooled_knows_what_is_where() -> None:
    head, (taps, expert) = _head(MINI), _inputs(MINI, 1)
    mirrored = {name: tap.flip(3) for name, tap in taps.items()}, [level.flip(3) for level in expert]
    with torch.no_grad():
        assert (head.pooled(taps, expert) * head.pooled(*mirrored)).sum() < 0.9


def test_a_fresh_adapter_hands_the_expert_on() -> None:
    features = torch.randn((1, 24, 4, 4))
    assert torch.equal(_new_head(MINI).adapters[0](features), features)


def test_odd_sizes_pass() -> None:
    head = _head(MINI)
    taps = {
        "mid": torch.zeros((1, 128, 2, 3)),
        "up_0": torch.zeros((1, 128, 3, 5)),
        "up_1": torch.zeros((1, 96, 6, 9)),
        "up_2": torch.zeros((1, 64, 12, 18)),
        "up_3": torch.zeros((1, 32, 12, 18)),
    }
    expert = [torch.zeros((1, c, h, w)) for c, h, w in ((24, 25, 37), (40, 13, 19), (112, 7, 10), (320, 4, 5))]
    with torch.no_grad():
        pooled, dense = head(taps, expert)
    assert pooled.shape == (1, 384)
    assert dense.shape == (1, 384, 25, 37)
