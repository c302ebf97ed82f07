"""Class posteriors: what the expert's own classifier knows, as vectors of the text space, joined by a learned gate.

The vector of an image is the sum of the text embeddings of its most probable classes, weighted by their probabilities
(ConSE, Norouzi et al. 2014, arXiv 1312.5650, eq. 4). For images the classifier was not trained on, such as drawings,
that is noise: the gate decides per image, and per cell of the dense map, how much it weighs.
"""

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.nn import functional as F

from models.heads.uhead import Standardize

_GROUPS = 16  # of the hidden layer's GroupNorm
_MOST_TRUST = 4.0  # bound of the gate: a posterior weighs at most this much beside the U-head's vector of length 1


class PosteriorsConfig(BaseModel, extra="forbid", frozen=True):
    """Shape of class posteriors, as a bundle's manifest gives it.

    Attributes:
        classes: of the expert's classifier.
        features: that the classifier reads.
        top_k: classes that enter the vector.
        temperature: of the softmax over classes.
        visual: V, length of the compressed features.
        hidden: channels between the features with the U-head's vector and what is added to that vector.
    """

    classes: int = Field(default=1000, ge=1)
    features: int = Field(default=1280, ge=1)
    top_k: int = Field(default=10, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    visual: int = Field(default=256, ge=1)
    hidden: int = Field(default=1536, ge=16, multiple_of=16)


class ExpertClassifier(nn.Module):
    """The end of a frozen classification network: its last map to features, and their mean to logits.

    Args:
        embed: [B, C, h, w] → [B, F, h, w].
        linear: from F features to N classes.
    """

    def __init__(self, embed: nn.Module, linear: nn.Linear) -> None:
        super().__init__()
        self.embed = embed
        self.linear = linear

    def features(self, last: torch.Tensor) -> torch.Tensor:
        """Returns the features of each cell of the expert's last map, [B, F, h, w]."""
        features: torch.Tensor = self.embed(last)
        return features

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the classes' logits, [B, N], of mean features or of a cell's [B, F]."""
        logits: torch.Tensor = self.linear(features)
        return logits


class ClassPosteriors(nn.Module):
    """Joins class posteriors to the U-head's features; starts with an even gate and changes `dense` only once trained.

    `measure` sets the buffers: mean and deviation of the features, their principal components, the names' embeddings.
    """

    embeddings: torch.Tensor
    components: torch.Tensor

    def __init__(self, config: PosteriorsConfig, dimension: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("embeddings", torch.zeros(config.classes, dimension))
        self.register_buffer("components", torch.zeros(config.visual, config.features))
        self.standard = Standardize(config.features)
        self.linear = nn.Linear(config.features, dimension, bias=False)
        self.mixed = nn.Sequential(
            nn.Linear(config.features + dimension, config.hidden, bias=False),
            nn.GroupNorm(_GROUPS, config.hidden),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Linear(config.hidden, dimension, bias=False),
        )
        self.gate = nn.Linear(config.features + 2, 1)
        self.dense_weight = nn.Parameter(torch.zeros(1))
        self.image_weight = nn.Parameter(torch.zeros(1))
        for last in (self.linear, self.mixed[-1]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]  # a layer's weight, typed as of any module
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    @torch.no_grad()
    def measure(self, features: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Sets the buffers.

        Args:
            features: [N, F] float32 mean features of photographs.
            embeddings: [classes, D] unit embeddings of the classes' names.
        """
        self.standard.measure(features[:, :, None, None])
        self.embeddings.copy_(embeddings)
        centred = features - features.mean(dim=0)
        covariance = centred.T @ centred / len(features)
        _, vectors = torch.linalg.eigh(covariance)  # ascending
        self.components.copy_(vectors.flip(1)[:, : self.config.visual].T)

    def visual(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the compressed features, [B, V], unit length, of mean features [B, F]."""
        centred = features - self.standard.mean.flatten()
        return F.normalize((centred @ self.components.T).float(), dim=1)

    def vectors(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the most probable classes' mean embedding, [B, D], unit length, of logits [B, N]."""
        probabilities = (logits.float() / self.config.temperature).softmax(dim=1)
        top = probabilities.topk(min(self.config.top_k, self.config.classes), dim=1)
        weights = torch.zeros_like(probabilities).scatter(1, top.indices, top.values)
        return F.normalize(weights @ self.embeddings.float(), dim=1)

    def trust(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each posterior beside a vector of length 1, [B, 1], of features and logits."""
        log_probabilities = (logits.float() / self.config.temperature).log_softmax(dim=1)
        surest = log_probabilities.max(dim=1, keepdim=True).values
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1, keepdim=True)
        known = torch.cat([self._standard(features), torch.cat([surest, entropy], dim=1).to(features.dtype)], dim=1)
        return _MOST_TRUST * torch.sigmoid(self.gate(known).float())

    def semantic(self, pooled: torch.Tensor, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Returns the semantic feature, [B, D], unit length.

        Args:
            pooled: [B, D], unit length, of the U-head.
            features, logits: [B, F] and [B, N], of the classifier's mean features.
        """
        return F.normalize(self.own(pooled, features) + self.trust(features, logits) * self.vectors(logits), dim=1)

    def own(self, pooled: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns what posteriors are added to, [B, D], not normalised; arguments as for `semantic`."""
        known = self._standard(features)
        both = torch.cat([known, (pooled * pooled.shape[1] ** 0.5).to(known.dtype)], dim=1)  # all of deviation 1
        own: torch.Tensor = pooled + (self.linear(known) + self.mixed(both)).float()
        return own

    def dense(
        self, dense: torch.Tensor, features: torch.Tensor, logits: torch.Tensor, semantic: torch.Tensor
    ) -> torch.Tensor:
        """Returns the dense map, [B, D, H, W]: each cell also knows what the whole image shows.

        Args:
            dense: [B, D, H, W], of the U-head.
            features: [B, F, h, w] of the expert's last map.
            logits: [B · h · w, N] of its cells, row by row.
            semantic: [B, D] of the image.
        """
        count, _, height, width = features.shape
        cells = features.permute(0, 2, 3, 1).flatten(0, 2)
        vectors = self.dense_weight * self.trust(cells, logits) * self.vectors(logits)
        maps = vectors.view(count, height, width, -1).permute(0, 3, 1, 2).to(dense.dtype)
        size = (int(dense.shape[2]), int(dense.shape[3]))
        whole = (self.image_weight * semantic).to(dense.dtype)[:, :, None, None]
        return dense + whole + F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def _standard(self, features: torch.Tensor) -> torch.Tensor:
        standard: torch.Tensor = self.standard(features[:, :, None, None])
        return standard.flatten(1)
