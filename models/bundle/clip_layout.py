"""Writing a CLIP text model of random weights the way Stable Diffusion's repositories lay it out."""

import json
from pathlib import Path

import open_clip
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from models.bundle.files import sha256
from models.bundle.key_maps import CLIP_TEXT_PREFIX, stored_name
from models.bundle.manifest import PathSource, TextPart

_START, _END = "<|startoftext|>", "<|endoftext|>"
_TOKENS = 77


def write_clip_text(folder: Path, *, width: int, layers: int, heads: int) -> TextPart:
    """Writes `text_encoder/` and `tokenizer/` below a bundle.

    The vocabulary is CLIP's own, taken from open_clip's package; weights are random, in half precision.

    Args:
        folder: the bundle.
        width: C of the conditioning states.
        layers, heads: of the transformer.

    Returns:
        The component for the manifest.
    """
    _write_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_TOKENS,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    model = CLIPTextModel(config)
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(folder / "text_encoder")
    tensors = model.state_dict().items()
    save_file(
        {stored_name(CLIP_TEXT_PREFIX, name): tensor.half().contiguous() for name, tensor in tensors},
        folder / "text_encoder" / "model.safetensors",
    )
    written = [file for name in ("text_encoder", "tokenizer") for file in sorted((folder / name).iterdir())]
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in written}
    return TextPart(source=PathSource(path=".", files=files), max_length=_TOKENS, key_map=CLIP_TEXT_PREFIX)


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = open_clip.tokenizer.SimpleTokenizer()
    renamed = {"<start_of_text>": _START, "<end_of_text>": _END}
    vocabulary = {renamed.get(token, token): number for token, number in source.encoder.items()}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in source.bpe_ranks)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": _START,
                "eos_token": _END,
                "pad_token": _END,
                "unk_token": _END,
                "model_max_length": _TOKENS,
            }
        )
    )
