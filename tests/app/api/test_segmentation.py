"""`/segment` over HTTP."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from tests.app.api.images import SQUARE, base64_image, encoded

pytestmark = [
    pytest.mark.anyio,
    # pycocotools 2.0.11 decodes through NumPy's old copy protocol.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
HEIGHT, WIDTH = 90, 150


def half_dark() -> NDArray[np.uint8]:
    """Left half black, right half white."""
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    pixels[:, : WIDTH // 2] = 0
    return pixels


def request(**fields: object) -> dict[str, object]:
    return {"image": base64_image(encoded(half_dark())), "classes": ["house", "tree"], **fields}


async def test_masks_are_disjoint_and_of_the_inputs_size(client: httpx.AsyncClient) -> None:
    answer = await client.post("/segment", json=request())
    assert answer.status_code == 200
    body = answer.json()
    assert (body["width"], body["height"]) == (WIDTH, HEIGHT)
    house, tree = body["classes"]
    mask = coco.decode({"size": house["mask"]["size"], "counts": house["mask"]["counts"].encode()})
    assert mask.shape == (HEIGHT, WIDTH)
    assert house["area"] == int(mask.sum())
    assert house["fraction"] == pytest.approx(0.5, abs=0.06)
    assert house["bbox"][0] == 0
    assert mask[:, : WIDTH // 2 - 6].all()
    assert house["score"] > 0.8
    assert tree == {
        "index": 2, "name": "tree", "area": 0, "fraction": 0.0, "score": 0.0, "bbox": None, "mask": None
    }  # fmt: skip
    assert "label_map" not in body


async def test_the_label_map_is_the_same_in_every_form(client: httpx.AsyncClient) -> None:
    rle = (await client.post("/segment", json=request())).json()["classes"][0]["mask"]
    mask = coco.decode({"size": rle["size"], "counts": rle["counts"].encode()})
    inline = (await client.post("/segment", json=request(format="label_map"))).json()["label_map"]
    raw = await client.post("/segment", json=request(), headers={"accept": "image/png"})
    assert raw.headers["content-type"] == "image/png"
    bits = (await client.post("/segment", json=request(format="png"))).json()["classes"][0]["mask"]
    assert raw.content == base64.b64decode(inline)
    image = Image.open(io.BytesIO(raw.content))
    image.load()
    assert json.loads(image.info["classes"]) == {"1": "house", "2": "tree"}
    assert np.array_equal(np.asarray(image) == 1, mask == 1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(bits)))), mask == 1)


async def test_without_background_every_pixel_has_a_class_or_is_unlabelled(client: httpx.AsyncClient) -> None:
    body = (await client.post("/segment", json=request(background=False))).json()
    assert sum(entry["area"] for entry in body["classes"]) == HEIGHT * WIDTH
    strict = request(background=False, threshold=1.0)
    raw = await client.post("/segment", json=strict, headers={"accept": "image/png"})
    assert set(np.unique(np.asarray(Image.open(io.BytesIO(raw.content))))) == {255}


async def test_multipart_classes_may_be_names_or_objects(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/segment",
        files={"image": ("x.png", encoded(half_dark()))},
        data={"classes": ["house", json.dumps({"name": "tree", "synonyms": ["oak"], "templates": ["a {}"]})]},
    )
    assert answer.status_code == 200
    assert answer.json()["classes"] == (await client.post("/segment", json=request())).json()["classes"]


async def test_the_classes_of_a_form_share_one_limit_of_values(client: httpx.AsyncClient) -> None:
    half = '{"name": "tree", "synonyms": [' + "0," * 130_000 + "0]}"
    answer = await client.post(
        "/segment", files={"image": ("x.png", encoded(half_dark()))}, data={"classes": [half, "house", half]}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too-much-work")


async def test_a_drawing_is_segmented_on_its_canvas(client: httpx.AsyncClient) -> None:
    body = (await client.post("/segment", json={"image": SQUARE, "classes": ["house"], "threshold": 0.0})).json()
    assert (body["width"], body["height"]) == (128, 128)


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": []},
        {"classes": ["Cat", " cat "]},
        {"classes": [" "]},
        {"classes": [{"name": "cat", "templates": ["no place"]}]},
        {"classes": ["x"] * 256},
        {"threshold": 1.5},
        {"format": "svg"},
        {"class_set": "pets"},
    ],
    ids=["none", "equal", "blank", "template", "too-many", "threshold", "format", "not-built"],
)
async def test_values_out_of_bounds_are_422(client: httpx.AsyncClient, fields: dict[str, object]) -> None:
    answer = await client.post("/segment", json=request(**fields))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_an_accept_that_fits_nothing_is_406(client: httpx.AsyncClient) -> None:
    answer = await client.post("/segment", json=request(), headers={"accept": "text/html"})
    assert answer.status_code == 406
