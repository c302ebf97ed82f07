"""Text encoders: conditioning states, embeddings of names, Stable Diffusion's layout, open_clip's tower."""

from pathlib import Path

import open_clip
import pytest
import torch
from transformers import CLIPTokenizer

from models.bundle.manifest import TextPart
from models.bundle.parts import load_text
from models.bundle.random import write_clip_text
from models.errors import BundleError
from models.text import TextEncoder, load_minilm, package_folder


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_minilm()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def clip_part(clip_folder: Path) -> TextPart:
    return write_clip_text(clip_folder, width=64, layers=2, heads=2)


def test_states_are_padded_with_zeros(minilm: TextEncoder) -> None:
    states = minilm.states(["", "a fish in the sea", "word " * 40])
    assert states.shape == (3, 16, 384)
    used = (states != 0).any(dim=2).sum(dim=1).tolist()
    assert used == [2, 7, 16]


def test_states_do_not_depend_on_the_batch(minilm: TextEncoder) -> None:
    together = minilm.states(["a fish", "a very long caption about a house by the sea"])
    assert torch.allclose(together[:1], minilm.states(["a fish"]), atol=1e-5)


def test_embeddings_are_the_masked_mean_of_unit_length(minilm: TextEncoder) -> None:
    texts = ["a fish", "a very long caption about a house by the sea"]
    embeddings = minilm.embeddings(texts)
    states = minilm.states(texts[:1])[0]
    used = states[(states != 0).any(dim=1)].mean(dim=0)
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(embeddings[0], used / used.norm(), atol=1e-5)


def test_embeddings_know_meaning(minilm: TextEncoder) -> None:
    dog, puppy, car = minilm.embeddings(["dog", "puppy", "car"])
    assert dog @ puppy > dog @ car + 0.2


def test_a_clip_text_model_in_stable_diffusions_layout(clip_folder: Path, clip_part: TextPart) -> None:
    text = load_text(clip_part, clip_folder)
    states = text.states(["", "a photo of a fish"])
    assert states.shape == (2, 77, 64)
    assert torch.isfinite(states).all()
    assert (states[0, 10:] != 0).any(), "Stable Diffusion keeps the states at padding"


def test_the_written_tokenizer_is_clips_own(clip_folder: Path, clip_part: TextPart) -> None:
    assert "tokenizer/vocab.json" in clip_part.source.files
    text = "A photo of a Fish, don't look! 123"
    ours = CLIPTokenizer.from_pretrained(clip_folder / "tokenizer", local_files_only=True)(text)["input_ids"]
    expected = open_clip.tokenizer.SimpleTokenizer().encode(text)
    assert ours == [49406, *expected, 49407]


def test_a_tokenizer_that_is_not_listed_is_not_read(clip_folder: Path, clip_part: TextPart) -> None:
    files = {name: digest for name, digest in clip_part.source.files.items() if "tokenizer" not in name}
    source = clip_part.source.model_copy(update={"files": files})
    with pytest.raises(BundleError, match="tokenizer_config"):
        load_text(clip_part.model_copy(update={"source": source}), clip_folder)


def test_the_wrong_key_map_names_a_tensor(clip_folder: Path, clip_part: TextPart) -> None:
    with pytest.raises(BundleError, match=r"lacks the tensor 'embeddings\."):
        load_text(clip_part.model_copy(update={"key_map": None}), clip_folder)


def test_an_absent_package_is_named() -> None:
    with pytest.raises(BundleError, match="no_such_package"):
        package_folder("no_such_package")
