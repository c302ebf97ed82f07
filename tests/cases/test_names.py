"""Class names that look alike, numbers of metadata, run lengths of small masks, and odd episodes."""

import json
import unicodedata

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from pycocotools import mask as coco

from app.api.strict_json import check_metadata, parse_json
from app.domain import Limits, exact_metadata, label_key
from app.errors import Invalid, ServiceError
from app.stores.filters import filter_condition, matches, parse_filter
from app.stores.records.class_sets import ClassPrompt
from app.tasks.masks import regions
from app.tasks.segmentation import _check_read_apart, normalised_name
from models.heads.fewshot import CLASSIFIERS, METHODS, Method, leave_one_out

Random = np.random.Generator
ALIKE = [
    ("Straße", "STRASSE"),
    ("café", unicodedata.normalize("NFD", "café")),
    ("ﬁsh", "fish"),
    ("ｃａｔ", "cat"),
    ("\u2764", "\u2764\ufe0f"),
    ("dog", "d\u200bog"),
    ("dog", "dog\u200d"),
    ("dog", "\u2060dog\ufeff"),
    ("a b", " a\u00a0 \u3000b\t"),
    ("soft", "so\u00adft"),
    ("right", "\u202eright\u202c"),
]
APART = [
    ("AT&T", "AT&amp;T"),
    ("{0}", "{}"),
    ("%s", "%d"),
    ("a,b", "a b"),
    ("\U0001f468\u200d\U0001f692", "\U0001f468\u200d\U0001f33e"),  # a firefighter and a farmer
    (
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e007f",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e007f",
    ),  # flags
    ("café", "cafe"),
    ("猫", "犬"),
    ("न", "नि"),
]
INVISIBLE = "\u200b\u200c\u200d\u200e\u2060\ufeff\ufe0f\u00ad\u115f\u3164\uffa0\u2800\U000e0041\U000e0100\u180e\u2063"
BLANK = " \u00a0\u3000\t"


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_35_names_that_look_alike_are_one(random: Random, one: str, other: str) -> None:
    places = sorted(random.integers(0, len(one) + 1, 2).tolist(), reverse=True)
    assert normalised_name(one) == normalised_name(other)
    for at in places:
        spread = one[:at] + random.choice(list("\u200b\u2060\u00ad\ufeff")) + one[at:]
        assert normalised_name(spread) == normalised_name(other)
    assert normalised_name(f" {one}\u2003") == normalised_name(other.upper() if one.isascii() else other)


@pytest.mark.parametrize(("one", "other"), APART)
def test_35_names_that_differ_stay_two(one: str, other: str) -> None:
    assert normalised_name(one) != normalised_name(other)


def test_35_names_of_invisible_letters_are_blank(random: Random) -> None:
    letters = random.choice([*INVISIBLE, *BLANK], int(random.integers(1, 9)))
    assert normalised_name("".join(letters)) == ""
    assert normalised_name("".join(letters) + "x") == "x"


def test_35_long_names_that_the_encoder_cuts_are_refused(random: Random) -> None:
    start = "".join(chr(int(code)) for code in random.integers(0x4E00, 0x9000, 127))
    vectors = random.standard_normal((3, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [start + "猫", "cat", start + "犬"]
    prompts = [ClassPrompt(name=name) for name in names]
    _check_read_apart(prompts, vectors)
    vectors[2] = vectors[0]
    with pytest.raises(Invalid, match="shorten them"):
        _check_read_apart(prompts, vectors)


def found_in_sqlite(metadata: dict[str, object], where: object) -> bool:
    documents = sa.Table("documents", sa.MetaData(), sa.Column("metadata", sa.JSON))
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        documents.create(connection)
        connection.execute(sa.insert(documents), [{"metadata": metadata}])
        condition = filter_condition(parse_filter(where), documents.c.metadata, "sqlite")
        found = connection.execute(sa.select(documents).where(condition)).all()
    engine.dispose()
    return len(found) == 1


def check(metadata: dict[str, object], where: object, *, is_found: bool) -> None:
    stored = exact_metadata(metadata)
    check_metadata(metadata, "metadata", Limits())
    assert matches(parse_filter(where), stored) is is_found
    assert found_in_sqlite(stored, where) is is_found


def test_28_integers_are_exact_to_64_bits(random: Random) -> None:
    for value in (
        *random.integers(-(2**63), 2**63 - 1, 3).tolist(),
        1768907725507217522,
        -7511938592390393428,
        -(2**63),
        2**63 - 1,
    ):
        sent = parse_json(json.dumps({"t": value}))
        assert sent == {"t": value}
        other = value - 1 if value > 0 else value + 1
        check(sent, {"t": value}, is_found=True)
        check(sent, {"t": other}, is_found=False)
        check(sent, {"t": {"gt" if other < value else "lt": other}}, is_found=True)
        check(sent, {"t": {"in": [other]}}, is_found=False)
        check({"t": [value]}, {"t": {"any": [value]}}, is_found=True)
        check({"t": [value]}, {"t": {"any": [other]}}, is_found=False)
    for value in (2**63, -(2**63) - 1, 10**30):
        with pytest.raises(Invalid, match="64 bits"):
            check_metadata({"a": [value]}, "metadata", Limits())
        with pytest.raises(Invalid, match="64 bits"):
            parse_filter({"a": value})


def test_28_a_number_is_one_number_in_every_form(random: Random) -> None:
    small, large = int(random.integers(-1000, 1000)), int(random.integers(2**53, 2**62))
    for one, other in ((float(small), small), (small, float(small)), (-0.0, 0), (float(large), int(float(large)))):
        check({"a": one}, {"a": other}, is_found=True)
        check({"a": other}, {"a": one}, is_found=True)
        check({"a": [one]}, {"a": {"all": [other]}}, is_found=True)
    check({"a": float(large)}, {"a": int(float(large)) + 1}, is_found=False)


@pytest.mark.parametrize(
    ("metadata", "where", "is_found"),
    [
        ({"exif": {"iso": 100}}, {"exif.iso": 100}, False),  # a name is literal, with its dots
        ({"exif.iso": 100}, {"exif.iso": 100}, True),
        ({"a": "x"}, {"a": {"ne": "y"}}, True),
        ({"a": 50}, {"a": {"ne": "y"}}, True),
        ({}, {"a": {"ne": "y"}}, True),
        ({"tags": ["a"]}, {"tags": "a"}, False),
        ({"tags": ["a"]}, {"tags": {"in": ["a"]}}, False),
        ({"tags": ["a"]}, {"tags": {"any": ["a", "b"]}}, True),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, False),
        ({"a": True}, {"a": 1}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": "é"}, {"a": unicodedata.normalize("NFD", "é")}, False),  # texts are compared as they were sent
    ],
)
def test_28_what_a_filter_finds(metadata: dict[str, object], where: dict[str, object], is_found: bool) -> None:
    check(metadata, where, is_found=is_found)


@pytest.mark.parametrize("text", ['{"a": 1e400}', '{"a": NaN}', '{"a": -Infinity}'])
def test_28_numbers_that_are_not_finite_are_refused(text: str) -> None:
    with pytest.raises(ServiceError) as caught:
        check_metadata(parse_json(text), "metadata", Limits())
    assert caught.value.status == 422


def test_28_an_object_as_a_value_is_named() -> None:
    with pytest.raises(Invalid, match=r"filter\.exif"):
        parse_filter({"exif": {"iso": 100}})


def small_masks(random: Random) -> dict[str, NDArray[np.uint8]]:
    height, width = 7, 5
    found = {
        name: np.zeros((height, width), np.uint8) for name in ("first", "last", "column", "two columns", "ring", "one")
    }
    found["first"][0, 0] = found["last"][-1, -1] = 1
    column = int(random.integers(width))
    found["column"][:, column] = 1
    start = int(random.integers(height, height * (width - 1)))
    flat = found["two columns"].T.copy().reshape(-1)
    flat[start : start + int(random.integers(2, height))] = 1
    found["two columns"] = flat.reshape(width, height).T.copy()
    found["ring"][1:6, 1:4], found["ring"][2:5, 2] = 1, 0
    found["one"][int(random.integers(height)), int(random.integers(width))] = 1
    return found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_33_run_lengths_of_small_masks_are_cocos(random: Random) -> None:
    for name, mask in small_masks(random).items():
        index = int(random.integers(1, 255))
        around = random.choice([0, 255])
        labels = np.where(mask == 1, index, around).astype(np.uint8)
        region = regions(labels, 254)[index - 1]
        assert region is not None, name
        rle = {"size": [7, 5], "counts": region.rle_counts.encode()}
        np.testing.assert_array_equal(coco.decode(rle), mask)
        assert region.area == int(coco.area(rle)) == int(mask.sum())
        assert list(region.bbox) == coco.toBbox(rle).astype(int).tolist()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_33_random_label_maps_of_255_classes(random: Random) -> None:
    labels = random.integers(0, 256, random.integers(1, 30, 2)).astype(np.uint8)
    for index, region in enumerate(regions(labels, 255), start=1):
        mask = labels == index
        assert (region is None) == (not mask.any())
        if region is not None:
            rle = {"size": list(labels.shape), "counts": region.rle_counts.encode()}
            np.testing.assert_array_equal(coco.decode(rle), mask)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shots", [[1, 1], [1] * 512, [1, 64], [64, 1, 2], [2, 2]], ids=lambda shots: f"{len(shots)} ways"
)
def test_38_probabilities_of_odd_episodes(random: Random, method: Method, shots: list[int]) -> None:
    support = [unit(random.standard_normal((count, 16))) for count in shots]
    answers = CLASSIFIERS[method](support, unit(random.standard_normal((5, 16))))
    assert np.isfinite(answers).all()
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    left_out = leave_one_out(method, [str(way) for way in range(len(shots))], support)
    assert (left_out is None) == (max(shots) == 1)
    assert left_out is None or 0 <= left_out.ci95[0] <= left_out.accuracy <= left_out.ci95[1] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_38_one_image_in_two_ways_is_half_each(random: Random, method: Method) -> None:
    row = unit(random.standard_normal((1, 16)))
    np.testing.assert_allclose(CLASSIFIERS[method]([row, row], row), 0.5, atol=1e-4)
    repeated = np.repeat(row, int(random.integers(2, 9)), axis=0)
    np.testing.assert_allclose(CLASSIFIERS[method]([repeated, repeated], row), 0.5, atol=1e-4)
    answers = CLASSIFIERS[method]([repeated, unit(random.standard_normal((3, 16)))], row)
    assert np.isfinite(answers).all()
    assert leave_one_out(method, ["a", "b"], [repeated, row]) is not None


def test_38_labels_are_one_in_every_form_and_two_where_letters_differ(random: Random) -> None:
    words = ["café", "Ångström", "пёс", "が", "각", "ệ", "ñandú", "Ἀθῆναι", "\u212b", "naïve"]
    word, space = random.choice(words), random.choice(list(" \t\u00a0\u3000\u2003"))
    for form in ("NFC", "NFD"):
        assert label_key(f"{space}{unicodedata.normalize(form, word)}{space}") == label_key(word)
    for other in (word.swapcase() if word.swapcase() != word else "x", f"{word} {word}", f"{word}2", f"{word}²"):
        assert label_key(other) != label_key(word)
