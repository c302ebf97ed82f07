"""The segmentation head."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.heads.segmentation import DISTANCE_SCALE, SIMILARITY_SCALE, SegmentationHead


@pytest.fixture
def head() -> SegmentationHead:
    head = SegmentationHead(4)
    torch.nn.init.zeros_(head.background.weight)
    torch.nn.init.zeros_(head.background.bias)  # type: ignore[arg-type]  # built with a bias
    return head.eval()


def test_logits_are_scaled_cosines_after_the_background(head: SegmentationHead) -> None:
    texts = torch.eye(4)[:2]
    dense = torch.zeros((1, 4, 1, 3))
    dense[0, 0, 0, 0], dense[0, 1, 0, 1], dense[0, 2, 0, 2] = 5.0, 0.1, -3.0
    with torch.no_grad():
        logits = head.logits(dense, texts[None])[0, :, 0]
    assert logits.T.tolist() == [
        pytest.approx([0, 20, 0], abs=1e-4),
        pytest.approx([0, 0, 20], abs=1e-4),
        pytest.approx([0, 0, 0], abs=1e-4),
    ]


def test_the_background_reads_the_cell_itself() -> None:
    head = SegmentationHead(4)
    dense = torch.randn((2, 4, 3, 3))
    with torch.no_grad():
        texts = torch.eye(4).expand(2, -1, -1)
        one, two = head.logits(dense, texts[:, :1]), head.logits(dense, texts[:, 1:3])
    assert torch.equal(one[:, 0], two[:, 0])


@pytest.mark.parametrize("names", [1, 2, 255])
def test_probabilities_sum_to_one(head: SegmentationHead, names: int) -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(4, 8, 8)).astype(np.float32)
    texts = rng.normal(size=(names, 4)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    probabilities = head.probabilities(dense, texts)
    assert probabilities.shape == (names + 1, 8, 8)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)


def test_names_in_another_order_give_the_same_masks(head: SegmentationHead) -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(4, 8, 8)).astype(np.float32)
    texts = np.eye(4, dtype=np.float32)
    forward, backward = head.probabilities(dense, texts), head.probabilities(dense, texts[::-1].copy())
    assert np.allclose(forward[1:], backward[1:][::-1], atol=1e-6)


@pytest.mark.parametrize("side", [8, 12, 32], ids=["one cell each", "uneven grid", "even grid"])
def test_names_are_read_from_unit_directions_by_nearness_and_similarity(side: int) -> None:
    """The formula of ADR 19 written out, cell by cell."""
    head, rng = SegmentationHead(4), np.random.default_rng(side)
    dense = rng.normal(size=(4, side, side)).astype(np.float32)
    dense[:, 0, 0] = 0
    texts = np.eye(4, dtype=np.float32)[:3]
    with torch.inference_mode():
        cells = torch.from_numpy(dense)[None]
        directions = functional.normalize(cells, dim=1)
        grid = functional.normalize(functional.adaptive_avg_pool2d(directions, 8), dim=1)[0].flatten(1)
        at, to = (torch.cartesian_prod(*[(torch.arange(n) + 0.5) / n] * 2) for n in (side, 8))
        near = torch.cdist(at, to).square() / (2 * DISTANCE_SCALE**2)
        weights = (directions[0].flatten(1).T @ grid / SIMILARITY_SCALE - near).softmax(dim=1)
        around = functional.normalize(weights @ grid.T, dim=1)
        alone = torch.cat([head.background(cells)[0].flatten(1), 20 * directions[0, :3].flatten(1)]).softmax(dim=0)
        names = (20 * around[:, :3].T).softmax(dim=0)
        expected = torch.cat([alone[:1], (1 - alone[:1]) * names]).reshape(4, side, side).numpy()
    assert np.allclose(head.probabilities(dense, texts), expected, atol=2e-6)
