"""The two device operations: images to features, strings to embeddings."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.acceleration.recording import GraphedPass, Pass, traced
from models.backbone import StableDiffusionBackbone
from models.heads.posteriors import ClassPosteriors, ExpertClassifier
from models.heads.uhead import UHead
from models.text import BlipCaptioner, OpenClipNames, TextEncoder
from models.training_free import TrainingFreeNetwork
from models.types import ImageBatch, ImageFeatures, TextFeatures

_CAPTION_CACHE = 1024  # captions whose text states are cached
_CAPTIONED_IMAGES = 16_384  # whose captions are cached: a kilobyte at most each


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenMaps:
    """Input of the U-head: taps by name, and the expert's maps from high to low resolution; [B, C, h, w] each."""

    taps: dict[str, torch.Tensor]
    expert: list[torch.Tensor]


class FrozenExtractor(nn.Module):
    """Everything before the heads, shared by serving and head training. Not thread-safe."""

    def __init__(
        self,
        backbone: StableDiffusionBackbone,
        text: TextEncoder,
        captioner: BlipCaptioner | None,
        expert: nn.Module | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        self.captioner = captioner
        self.expert = expert
        self._states: OrderedDict[str, torch.Tensor] = OrderedDict()  # caption → [T, C], least recently used first
        self._captions: OrderedDict[bytes, str] = OrderedDict()  # by SHA-256 of the pixels, as above

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor, timesteps: torch.Tensor, captions: Sequence[str | None]) -> FrozenMaps:
        """Runs one pass.

        Args:
            pixels: [B, 3, H, W] in [-1, 1], RGB.
            timesteps: [B] int64.
            captions: B captions; None asks the captioner, or is the empty prompt if there is none.
        """
        states = self.conditioning(pixels, captions)
        taps = self.backbone(pixels, timesteps, states)
        return FrozenMaps(taps=taps, expert=self.expert(pixels) if self.expert is not None else [])

    def conditioning(
        self, pixels: torch.Tensor, captions: Sequence[str | None], *, is_reproducible: bool = False
    ) -> torch.Tensor:
        """Returns the text states of B captions, [B, T, C], from an LRU cache; arguments as for `forward`.

        Args:
            is_reproducible: whether the captioner sees the whole batch, whatever it saw before.
        """
        words = [caption or "" for caption in captions]
        missing = [slot for slot, caption in enumerate(captions) if caption is None]
        if missing and self.captioner is not None:
            captioned = self.captioner.captions if is_reproducible else self._captioned
            for slot, caption in zip(missing, captioned(pixels[missing]), strict=True):
                words[slot] = caption
        for caption in dict.fromkeys(words):
            if caption not in self._states:
                # One at a time: the last bits of a caption's states must not depend on the rest of its batch.
                self._states[caption] = self.text.states([caption]).to(pixels.dtype)[0]
        for caption in words:
            self._states.move_to_end(caption)
        batch = torch.stack([self._states[caption] for caption in words])
        # Evicts after the batch is built, so that a batch may hold more captions than the cache.
        while len(self._states) > _CAPTION_CACHE:
            self._states.popitem(last=False)
        return batch

    def _captioned(self, pixels: torch.Tensor) -> list[str]:
        """The captions of B images; those that are not cached are computed in one batch."""
        keys = [hashlib.sha256(image).digest() for image in pixels.float().cpu().contiguous().numpy()]
        new = {
            key: slot for slot, key in enumerate(keys) if key not in self._captions
        }  # an image twice is captioned once
        if new and self.captioner is not None:
            self._captions.update(zip(new, self.captioner.captions(pixels[list(new.values())]), strict=True))
        captions = [self._captions[key] for key in keys]
        for key in keys:
            self._captions.move_to_end(key)
        while len(self._captions) > _CAPTIONED_IMAGES:
            self._captions.popitem(last=False)
        return captions


class TrainedNetwork(nn.Module):
    """One whole pass with a trained U-head.

    `visual` is the mean of the expert's last map, or without an expert of the lowest tap: neither is trained to the
    text space, which few-shot classification of photographs pays for (docs/adr/0048). With `classifier` and
    `posteriors` it is the compressed features that the classifier reads (docs/adr/0050).
    """

    def __init__(
        self,
        extractor: FrozenExtractor,
        uhead: UHead,
        classifier: ExpertClassifier | None = None,
        posteriors: ClassPosteriors | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.expert, self.uhead = extractor.backbone, extractor.expert, uhead
        self.classifier, self.posteriors = classifier, posteriors

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""
        return self.uhead.dimension

    @property
    def visual_dimension(self) -> int:
        """V, the length of `visual`."""
        if self.posteriors is not None:
            return self.posteriors.config.visual
        config = self.uhead.config
        lowest = max(config.scales, key=lambda scale: scale.stride)
        return config.expert_shapes[-1].channels if self.expert else lowest.taps[self._lowest_tap]

    def without_dense(self) -> nn.Module:
        """Returns the pass for batches that do not need `dense`: the same one, of which it costs next to nothing."""
        return self

    def forward(self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the pass; arguments as `StableDiffusionBackbone.forward`.

        Returns:
            `pooled`, `visual` and `dense` of `ImageFeatures`, on the device.
        """
        # Class posteriors alone need the whole view: the U-head then sees what the backbone sees (docs/adr/0055).
        seen_small = pixels if self.posteriors is None else self.backbone.view(pixels)
        taps = self.backbone(seen_small, timesteps, states)
        expert = self.expert(seen_small) if self.expert else []
        pooled, dense = self.uhead(taps, expert, (int(seen_small.shape[2]), int(seen_small.shape[3])))
        if self.expert is not None and self.classifier is not None and self.posteriors is not None:
            return _with_posteriors(pooled, dense, self.expert(pixels)[-1], self.classifier, self.posteriors)
        seen = expert[-1] if expert else taps[self._lowest_tap]
        return pooled, F.normalize(seen.float().mean(dim=(2, 3)), dim=1), dense

    @property
    def _lowest_tap(self) -> str:
        return next(iter(self.uhead.config.scales[-1].taps))


def _with_posteriors(
    pooled: torch.Tensor,
    dense: torch.Tensor,
    last: torch.Tensor,
    classifier: ExpertClassifier,
    posteriors: ClassPosteriors,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three features, from those of the U-head and the expert's last map."""
    features = classifier.features(last)
    mean = features.mean(dim=(2, 3))
    of_cells = classifier.logits(features.permute(0, 2, 3, 1).flatten(0, 2))
    semantic = posteriors.semantic(pooled, mean, classifier.logits(mean))
    return semantic, posteriors.visual(mean), posteriors.dense(dense, features, of_cells, semantic)


class Encoder:
    """A loaded bundle's encoder; implements `app.domain.Encoder`. Thread-safe.

    TorchScript graphs and strings on a CPU run in parallel. Everything else holds a lock: the network stores its taps
    in itself, and each graph is recorded once.

    Args:
        extractor: conditions passes; on `device`, in `dtype`.
        network: computes them; on `device`, in `dtype`, in eval mode.
        names: embeds class names and queries.
        fingerprint: hex digest of everything that shapes a feature.
        is_recorded: whether passes run as recorded graphs: on a CPU one per image size (docs/adr/0022), on a GPU one
            per image size and number of images (docs/adr/0025); each again for batches without `dense`.
    """

    def __init__(
        self,
        extractor: FrozenExtractor,
        network: TrainedNetwork | TrainingFreeNetwork,
        names: TextEncoder | OpenClipNames,
        *,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype,
        is_recorded: bool = False,
    ) -> None:
        self.extractor = extractor
        self.fingerprint = fingerprint
        self.network = network
        self._without_dense = network.without_dense()
        self._names = names
        self._device = device
        self._dtype = dtype
        self._is_recorded = is_recorded
        self._graphs: dict[tuple[torch.Size, nn.Module], Pass] = {}
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""
        return self.network.dimension

    @property
    def visual_dimension(self) -> int:
        """V, the length of `visual`."""
        return self.network.visual_dimension

    @torch.inference_mode()
    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        """Runs one pass over B images and returns its features in main memory."""
        # Copied, then converted: one step would convert on the CPU, in the device's thread.
        pixels = batch.pixels.to(self._device).to(dtype=self._dtype, memory_format=torch.channels_last)
        timesteps = batch.timesteps.to(self._device)
        with self._lock:
            states = self.extractor.conditioning(pixels, batch.captions, is_reproducible=batch.is_reproducible)
            network = self.network if batch.needs_dense else self._without_dense
            run = self._pass(network, pixels, timesteps, states)
        # A CUDA graph returns its own memory, which its next pass overwrites.
        with nullcontext() if isinstance(run, torch.jit.ScriptModule) else self._lock:
            pooled, visual, *dense = run(pixels, timesteps, states)
            return ImageFeatures(
                pooled=_fetched(pooled),
                visual=_fetched(visual),
                dense=_fetched(dense[0]) if batch.needs_dense else torch.empty((*pooled.shape, 0, 0)),
            )

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Returns the embeddings of B strings."""
        with nullcontext() if self._device.type == "cpu" else self._lock:
            return TextFeatures(pooled=self._names.embeddings(texts).float().cpu())

    def _pass(self, network: nn.Module, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Pass:
        if not self._is_recorded:
            return network
        key = (pixels.shape[2:], network)
        if key not in self._graphs:
            is_cuda = pixels.device.type == "cuda"
            self._graphs[key] = GraphedPass(network) if is_cuda else traced(network, pixels, timesteps, states)
        return self._graphs[key]


def _fetched(features: torch.Tensor) -> torch.Tensor:
    """Returns features in main memory, float32."""
    if features.device.type != "cuda":
        return features.float().cpu()
    # A dense map is 1.5 MB per image: reordered on the GPU, and copied to pinned pages, which torch reuses.
    return torch.empty(features.shape, dtype=torch.float32, pin_memory=True).copy_(features.float().contiguous())
