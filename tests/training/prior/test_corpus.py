"""Images that the prior may see."""

import numpy as np
import torch

from training.data.dataset import DataSet
from training.prior.corpus import load_corpus, to_tensor


def test_nothing_unseen_no_evaluation_style_and_no_validation_drawing_enters(dataset: DataSet) -> None:
    corpus = load_corpus(dataset)
    assert len(corpus.pixels) == len(corpus.captions) == len(corpus.weights)
    allowed = [r.row for r in dataset.images if r.split in ("seen", "none")]
    assert np.array_equal(corpus.pixels[: len(allowed)], dataset.pixels[allowed])
    assert corpus.captions[len(allowed) :] == ("a drawing by hand of cat", "a drawing by hand of zigzag")
    assert not any("owl" in caption or "hand" in caption.split()[-1:] for caption in corpus.captions)


def test_every_style_has_its_caption(dataset: DataSet) -> None:
    captions = load_corpus(dataset).captions
    assert {
        "a flat picture of cat",
        "a black outline drawing of cat",
        "a glossy emoji of cat",
        "a 3D picture of cat",
        "a regular icon of bed",
        "clip art of a boat",
    } <= set(captions)


def test_rows_are_drawn_by_weight_and_by_seed(dataset: DataSet) -> None:
    corpus = load_corpus(dataset)
    drawn = corpus.draw(4000, torch.Generator().manual_seed(0))
    assert np.array_equal(drawn, corpus.draw(4000, torch.Generator().manual_seed(0)))
    shares = np.bincount(drawn, minlength=len(corpus.weights)) / 4000
    assert np.allclose(shares, corpus.weights / corpus.weights.sum(), atol=0.03)


def test_pixels_become_unit_tensors() -> None:
    pixels = np.array([[[[0, 255, 51]]]], dtype=np.uint8)
    tensor = to_tensor(pixels)
    assert tensor.shape == (1, 3, 1, 1)
    assert torch.allclose(tensor.flatten(), torch.tensor([-1.0, 1.0, -0.6]))
