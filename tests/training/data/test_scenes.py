"""Composed scenes keep the promises of the protocol."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import DataError
from training.data.backgrounds import HELD_OUT_FAMILIES, TEXTURES, TRAINING_FAMILIES, Family, render_background
from training.data.dataset import DEFAULT_FOLDER, DataSet, load_dataset
from training.data.scenes import (
    EVALUATION_SEED,
    TRAINING_SEED,
    VALIDATION_SEED,
    ObjectClass,
    ScenePool,
    build_pool,
    compose_evaluation_scene,
    compose_training_scene,
    seen_evaluation_pool,
    seen_training_pool,
    unseen_evaluation_pool,
)


@pytest.fixture(scope="module")
def pool() -> ScenePool:
    """Twelve classes of plain discs and bars, each of one colour."""
    y, x = np.mgrid[:128, :128]
    pixels = np.full((12, 128, 128, 3), 255, dtype=np.uint8)
    alpha = np.zeros((12, 128, 128), dtype=np.uint8)
    for i in range(12):
        shape: NDArray[np.bool_] = np.hypot(x - 64, y - 64) < 40 + i if i % 2 else np.abs(x - 64) < 10 + i
        alpha[i][shape] = 255
        pixels[i][shape] = (20 * i, 255 - 20 * i, 128)
    classes = tuple(ObjectClass(name=f"thing {i}", rows=(i,)) for i in range(12))
    return ScenePool(pixels=pixels, alpha=alpha, classes=classes)


@pytest.fixture(scope="module")
def data() -> DataSet:
    if not (Path(DEFAULT_FOLDER).expanduser() / "manifest.json").is_file():
        pytest.skip("the data set is not built (vermouth data build)")
    return load_dataset(DEFAULT_FOLDER)


def test_same_index_gives_the_same_scene_and_another_gives_another(pool: ScenePool) -> None:
    first, again, other = (compose_evaluation_scene(pool, i) for i in (3, 3, 4))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.prompts == again.prompts
    assert not np.array_equal(first.pixels, other.pixels)


def test_training_validation_and_evaluation_never_share_a_scene(pool: ScenePool) -> None:
    assert len({TRAINING_SEED, VALIDATION_SEED, EVALUATION_SEED}) == 3
    assert not set(TRAINING_FAMILIES) & set(HELD_OUT_FAMILIES)
    training = compose_training_scene(pool, 0)
    assert not np.array_equal(training.pixels, compose_training_scene(pool, 0, seed=VALIDATION_SEED).pixels)
    assert not np.array_equal(training.pixels, compose_evaluation_scene(pool, 0).pixels)


def test_scenes_hold_what_the_protocol_says(pool: ScenePool) -> None:
    counts = set()
    for index in range(40):
        scene = compose_evaluation_scene(pool, index)
        counts.add(len(scene.present))
        assert scene.pixels.shape == (256, 256, 3)
        assert scene.pixels.dtype == scene.labels.dtype == np.uint8
        assert len(scene.absent) == len(scene.present)
        assert len(set(scene.prompts)) == len(scene.prompts)
        assert set(np.unique(scene.labels)) == set(range(len(scene.present) + 1))
    assert counts == {3, 4, 5}


def test_objects_are_of_the_stated_size_and_visible(pool: ScenePool) -> None:
    for index in range(20):
        scene = compose_evaluation_scene(pool, index)
        for label, name in enumerate(scene.present, 1):
            ys, xs = np.nonzero(scene.labels == label)
            assert max(np.ptp(xs), np.ptp(ys)) + 1 <= 0.6 * 256 + 2
            number = int(name.split()[1])
            whole = (pool.alpha[number] == 255).sum()
            extent = max(np.ptp(np.nonzero(pool.alpha[number])[0]), np.ptp(np.nonzero(pool.alpha[number])[1])) + 1
            smallest_area = whole * (0.35 * 256 / extent) ** 2
            assert len(ys) >= 0.3 * smallest_area * 0.95


def test_opaque_pixels_carry_the_object_and_others_the_background(pool: ScenePool) -> None:
    scene = compose_training_scene(pool, 1)
    for label, name in enumerate(scene.present, 1):
        number = int(name.split()[1])
        inside = np.median(scene.pixels[scene.labels == label], axis=0)
        assert np.abs(inside - np.array([20 * number, 255 - 20 * number, 128])).max() <= 2


def test_training_scenes_may_hold_a_single_object_on_one_colour(pool: ScenePool) -> None:
    scenes = [compose_training_scene(pool, index) for index in range(40)]
    assert {len(scene.present) for scene in scenes} == {1, 2, 3, 4, 5}
    assert any(float(scene.pixels[scene.labels == 0].std(axis=0).max()) < 7 for scene in scenes)


@pytest.mark.parametrize("family", [*TEXTURES, *HELD_OUT_FAMILIES], ids=lambda f: f.__name__.strip("_"))
def test_every_family_is_deterministic_and_textured(family: Family) -> None:
    first = render_background(np.random.default_rng(7), 64, (family,))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, render_background(np.random.default_rng(7), 64, (family,)))
    assert float(first.std(axis=(0, 1)).max()) > 1


def test_too_few_names_are_refused(data: DataSet) -> None:
    with pytest.raises(DataError, match="at least 10 names"):
        build_pool(data, data.images[:2])


def test_pools_of_the_data_set_share_nothing(data: DataSet) -> None:
    training, flat, unseen = seen_training_pool(data), seen_evaluation_pool(data), unseen_evaluation_pool(data)
    rows = [{row for c in pool.classes for row in c.rows} for pool in (training, flat, unseen)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert {data.images[row].source for row in rows[1]} == {"fluent-flat"}
    assert not {c.name for c in training.classes} & {c.name for c in unseen.classes}
    compose_evaluation_scene(unseen, 0)
