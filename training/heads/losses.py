"""Losses of the heads."""

import torch
from torch.nn import functional as F


def contrastive_loss(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """InfoNCE with any number of positives a row (SupCon, Khosla et al. 2020, eq. 2: the mean outside the log).

    Args:
        logits: [A, B] similarities, scaled.
        positives: [A, B] bool; rows without one are left out.

    Returns:
        Scalar; zero when no row has a positive.
    """
    counts = positives.sum(dim=1)
    log_probabilities = F.log_softmax(logits, dim=1).masked_fill(~positives, 0.0)
    rows = -log_probabilities.sum(dim=1) / counts.clamp(min=1)
    return (rows * (counts > 0)).sum() / (counts > 0).sum().clamp(min=1)


def symmetric_contrastive_loss(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """The mean of `contrastive_loss` both ways: rows find columns and columns find rows."""
    return 0.5 * (contrastive_loss(logits, positives) + contrastive_loss(logits.T, positives.T))
