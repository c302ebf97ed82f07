"""The two device operations: pictures to features, strings to embeddings."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from models.acceleration.cuda_graphs import GraphedPass
from models.acceleration.tracing import Pass, recorded
from models.backbone import StableDiffusionBackbone
from models.captioner import Captioner
from models.heads.uhead import UHead
from models.text import TextEncoder
from models.types import ImageBatch, ImageFeatures, TextFeatures

_CAPTION_CACHE = 1024


class NameEncoder(Protocol):
    """What embeds class names and queries."""

    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """B strings → [B, D] float32, unit length."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenMaps:
    """What the U-head reads: tap name → [B, C, h, w], and the expert's maps, high to low resolution."""

    taps: dict[str, torch.Tensor]
    expert: list[torch.Tensor]


class FrozenExtractor(nn.Module):
    """Everything before the heads: backbone, conditioning and expert; shared by serving and head training."""

    def __init__(
        self, backbone: StableDiffusionBackbone, text: TextEncoder, captioner: Captioner, expert: nn.Module | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        self.captioner = captioner
        self.expert = expert
        self._states: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor, timesteps: torch.Tensor, captions: Sequence[str | None]) -> FrozenMaps:
        """One pass over [B, 3, H, W] in [-1, 1] with B time steps and B captions (None: the captioner's)."""
        states = self.conditioning(pixels, captions)
        taps = self.backbone(pixels, timesteps, states)
        return FrozenMaps(taps=taps, expert=self.expert(pixels) if self.expert is not None else [])

    def conditioning(self, pixels: torch.Tensor, captions: Sequence[str | None]) -> torch.Tensor:
        """[B, T, C] text states, computed once a caption."""
        resolved = list(captions)
        silent = [slot for slot, caption in enumerate(resolved) if caption is None]
        if silent:
            for slot, caption in zip(silent, self.captioner.captions(pixels[silent]), strict=True):
                resolved[slot] = caption
        words = [caption or "" for caption in resolved]
        for caption in dict.fromkeys(words):
            if caption not in self._states:
                # One at a time: the last bits of a caption's states must not depend on who else brought a new one.
                self._states[caption] = self.text.states([caption]).to(pixels.dtype)[0]
        for caption in words:
            self._states.move_to_end(caption)
        batch = torch.stack([self._states[caption] for caption in words])
        while len(self._states) > _CAPTION_CACHE:
            self._states.popitem(last=False)
        return batch


class _Network(nn.Module):
    """All that a pass computes: pixels, time steps and text states in, `pooled` and `dense` out."""

    def __init__(self, extractor: FrozenExtractor, uhead: UHead) -> None:
        super().__init__()
        self.backbone, self.expert, self.uhead = extractor.backbone, extractor.expert, uhead

    def forward(
        self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        taps = self.backbone(pixels, timesteps, states)
        found: tuple[torch.Tensor, torch.Tensor] = self.uhead(taps, self.expert(pixels) if self.expert else [])
        return found


class Encoder:
    """A loaded bundle's encoder; implements `app.domain.Encoder`. Safe from several threads.

    Graphs run side by side. All else takes turns: the network keeps its taps in itself, a tokenizer its padding, and a
    recording is made once.

    Args:
        is_recorded: whether passes run as graphs, recorded at the first pass: on the CPU one a picture size
            (docs/adr/0022), on a GPU one a picture size and number of pictures.
    """

    def __init__(
        self,
        extractor: FrozenExtractor,
        uhead: UHead,
        names: NameEncoder,
        *,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype,
        is_recorded: bool = False,
    ) -> None:
        self.extractor = extractor
        self._uhead = uhead
        self._names = names
        self._fingerprint = fingerprint
        self._device = device
        self._dtype = dtype
        self._network = _Network(extractor, uhead).eval()
        self._is_recorded = is_recorded
        self._graphs: dict[torch.Size, Pass] = {}
        self._turn = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that shapes a feature."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """D, the length of `pooled`."""
        return self._uhead.config.dimension

    @torch.inference_mode()
    def encode_images(self, batch: ImageBatch) -> ImageFeatures:
        """One pass over B pictures."""
        # First there, then converted: in one step the processor would convert, in the device's thread.
        pixels = batch.pixels.to(self._device).to(dtype=self._dtype, memory_format=torch.channels_last)
        timesteps = batch.timesteps.to(self._device)
        with self._turn:
            states = self.extractor.conditioning(pixels, batch.captions)
            run = self._pass(pixels, timesteps, states)
        # A CUDA graph's answer lies in its own memory until its next pass.
        with nullcontext() if isinstance(run, torch.jit.ScriptModule) else self._turn:
            pooled, dense = run(pixels, timesteps, states)
            return ImageFeatures(pooled=_fetched(pooled), dense=_fetched(dense))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embeddings of B strings."""
        with self._turn:
            return TextFeatures(pooled=self._names.embeddings(texts).float().cpu())

    def _pass(self, pixels: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> Pass:
        if not self._is_recorded:
            return self._network
        size = pixels.shape[2:]
        if size not in self._graphs:
            is_cuda = pixels.device.type == "cuda"
            self._graphs[size] = (
                GraphedPass(self._network) if is_cuda else recorded(self._network, pixels, timesteps, states)
            )
        return self._graphs[size]


def _fetched(features: torch.Tensor) -> torch.Tensor:
    """In main memory, float32.

    A picture's dense map is 1.5 MB, so from a GPU the way matters: ordered there, not by the thread that takes the
    batch apart, and into pinned pages, which torch keeps and hands out again.
    """
    if features.device.type != "cuda":
        return features.float().cpu()
    return torch.empty(features.shape, dtype=torch.float32, pin_memory=True).copy_(features.float().contiguous())
