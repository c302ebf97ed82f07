"""Contrastive losses against hand-computed cases."""

import math

import pytest
import torch

from training.heads.pooled import contrastive_loss, symmetric_contrastive_loss


def test_one_positive_is_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    assert contrastive_loss(logits, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(expected.item())


def test_several_positives_are_averaged_outside_the_log() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0]])
    normaliser = math.log(math.e + 2)
    loss = contrastive_loss(logits, torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx(((normaliser - 1) + normaliser) / 2)


def test_rows_without_a_positive_do_not_count() -> None:
    logits = torch.tensor([[1.0, 0.0], [5.0, -5.0]])
    positives = torch.tensor([[True, False], [False, False]])
    assert contrastive_loss(logits, positives).item() == pytest.approx(
        contrastive_loss(logits[:1], positives[:1]).item()
    )
    assert contrastive_loss(logits, torch.zeros(2, 2, dtype=torch.bool)).item() == 0


def test_symmetric_loss_is_the_same_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator)
    positives = torch.rand(5, 7, generator=generator) < 0.3
    forth = symmetric_contrastive_loss(logits, positives)
    assert forth.item() == pytest.approx(symmetric_contrastive_loss(logits.T, positives.T).item())
