"""The retrieval protocols hold what the protocol table says."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from models.transforms import canonical_image, canonical_strokes
from training.data.dataset import DataSet, DrawingRecord, Strokes
from training.evaluation import retrieval
from training.evaluation.retrieval import (
    GALLERY_STYLES,
    Protocol,
    drawing_release,
    drawing_zs,
    drawn,
    outline_zs,
    rasters,
    rendered_images,
    variants,
)


def _protocol() -> Protocol:
    """Class a twice and b once in the gallery; two queries of group 0 and one of group 1, grey by what they show."""

    def greys(*values: int) -> NDArray[np.uint8]:
        return np.stack([np.full((4, 4, 3), value, np.uint8) for value in values])

    return Protocol(
        name="toy",
        queries=greys(0, 1, 2),
        wanted=[("a",), ("a",), ("b", "c")],
        groups=np.array([0, 0, 1]),
        group_names=["first", "second"],
        gallery=greys(0, 1, 2),
        classes=["a", "b", "a"],
    )


def test_figures_are_means_over_groups_by_hand() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [0.9, 0.5, 0.1]], np.float32)
    found = retrieval.figures(_protocol(), scores)
    first, second, third = (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, 1 / 2
    assert found.map_all == pytest.approx(((first + second) / 2 + third) / 2)
    assert found.map_voc == pytest.approx(((first + 2 / 3) / 2 + 1 / 2) / 2)
    assert (found.p_1, found.r_10) == (0.25, 1.0)
    assert (found.queries, found.gallery) == (3, 3)


def test_measure_ranks_by_cosine_whatever_the_batches() -> None:
    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.eye(3, dtype=np.float32)[pixels[:, 0, 0, 0]]

    protocol = _protocol()
    assert retrieval.figures(protocol, retrieval.scores(protocol, embed)).p_1 == pytest.approx(((1 + 0) / 2 + 0) / 2)
    assert np.array_equal(retrieval.in_batches(embed, protocol.gallery, size=2), embed(protocol.gallery))


def test_centring_undoes_a_shift_of_one_side() -> None:
    """All queries are shifted the same way; without the shift each finds its own image."""
    shift = np.array([0.0, 0.0, 50.0], np.float32)

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        shown = np.eye(3, dtype=np.float32)[pixels[:, 0, 0, 0]]
        return shown if pixels.shape[1] == 4 else shown + shift

    protocol = dataclasses.replace(_protocol(), queries=_protocol().queries[:, :2], wanted=[("x",), ("y",), ("z",)])
    protocol = dataclasses.replace(protocol, classes=["x", "y", "z"], groups=np.arange(3))
    assert retrieval.figures(protocol, retrieval.scores(protocol, embed, centred=True)).p_1 == 1
    assert retrieval.figures(protocol, retrieval.scores(protocol, embed)).p_1 == pytest.approx(1 / 3)


def test_centred_features_have_unit_length_and_no_mean_direction() -> None:
    features = retrieval.centre(np.array([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0]], np.float32))
    assert np.linalg.norm(features[:2], axis=1) == pytest.approx([1, 1])
    assert features[2] == pytest.approx([0, 0])


@pytest.mark.usefixtures("plain")
def test_plain_images_are_as_rendered(data: DataSet) -> None:
    protocol = outline_zs(data, rendered_images)
    row = next(r.row for r in data.images if r.hexcode == protocol.wanted[0][0] and r.kind == "outline")
    assert np.array_equal(protocol.queries[0], data.pixels[row])
    assert protocol.gallery.shape == (889, 128, 128, 3)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols without the tracing of thousands of images, which these tests do not read."""
    monkeypatch.setattr(retrieval, "canonical_image", lambda pixels: pixels[:2, :2])
    monkeypatch.setattr(retrieval, "canonical_strokes", lambda _, _side: np.zeros((2, 2, 3), np.uint8))


@pytest.mark.usefixtures("plain")
def test_zero_shot_galleries_hold_the_unseen_alone(data: DataSet) -> None:
    split = {r.hexcode: r.split for r in data.images if r.kind == "picture" and r.source in GALLERY_STYLES}
    unseen = {hexcode for hexcode, of in split.items() if of == "unseen"}
    assert len(split) == 1636
    outlines, drawings = outline_zs(data), drawing_zs(data)
    for protocol in (outlines, drawings):
        assert len(protocol.gallery) == len(protocol.classes) == 889
        assert set(protocol.classes) == unseen
        assert {hexcode for wanted in protocol.wanted for hexcode in wanted} <= unseen
    assert len(outlines.queries) == len(set(outlines.wanted)) == 322
    assert len(np.unique(outlines.groups)) == 322


@pytest.mark.usefixtures("plain")
def test_drawings_of_59_unseen_words_are_queries(data: DataSet) -> None:
    protocol = drawing_zs(data)
    chosen = [d for d in data.drawings if d.split == "unseen" and d.hexcodes]
    assert len(np.unique(protocol.groups)) == len({d.word for d in chosen}) == 59
    assert len(protocol.queries) == len(chosen)


@pytest.mark.usefixtures("plain")
def test_release_takes_four_validation_drawings_a_word_and_the_whole_gallery(data: DataSet) -> None:
    protocol = drawing_release(data)
    assert len(protocol.gallery) == 4531
    assert len(set(protocol.classes)) == 1636
    assert set(Counter(protocol.groups.tolist()).values()) == {4}
    assert len(np.unique(protocol.groups)) == 255
    assert len({d.key_id for d in data.drawings if d.validation}) == 1380


@pytest.mark.usefixtures("plain")
def test_every_query_has_something_to_find(data: DataSet) -> None:
    for protocol in (outline_zs(data), drawing_zs(data), drawing_release(data)):
        classes = set(protocol.classes)
        assert all(classes & set(wanted) for wanted in protocol.wanted)


KITE: Strokes = [[[0, 128, 255, 128, 0], [100, 0, 100, 255, 100]], [[128, 128], [0, 255]], [[0, 255], [100, 100]]]


@pytest.mark.parametrize("name", list(variants()))
def test_the_canonical_form_of_a_raster_is_near_that_of_its_strokes(name: str) -> None:
    record = DrawingRecord(word="kite", key_id="1", hexcodes=(), split="seen", validation=True, strokes=KITE)
    raster = rasters([record], variants()[name])[0]
    assert raster.dtype == np.uint8
    assert raster.shape == ((768, 768, 3) if name == "in a corner" else (256, 256, 3))
    found, wanted = canonical_image(raster)[..., 0] < 128, canonical_strokes(KITE)[..., 0] < 128
    for one, other in ((found, wanted), (wanted, found)):
        assert (ndimage.distance_transform_edt(~other)[one] > 4).mean() < 0.03


def test_lines_are_as_wide_as_asked() -> None:
    coverage = drawn([[[0, 255], [128, 128]]], box=(0, 0, 256), width=6)
    assert coverage[:, 128].sum() == pytest.approx(6, abs=0.5)


def test_the_same_drawing_is_drawn_the_same_every_time() -> None:
    record = DrawingRecord(word="kite", key_id="1", hexcodes=(), split="seen", validation=True, strokes=KITE)
    first, again = (rasters([record], variants()["photographed"])[0] for _ in range(2))
    assert np.array_equal(first, again)
