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
from pycocotools.coco import COCO

from app.api.routers.segmentation import negotiated
from app.errors import NotAcceptable
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


async def test_a_coco_document_is_loaded_by_pycocotools(client: httpx.AsyncClient) -> None:
    rle = (await client.post("/segment", json=request())).json()["classes"][0]
    answer = await client.post("/segment", json=request(format="coco"))
    assert answer.headers["content-type"] == "application/json"
    document = COCO()
    document.dataset = answer.json()
    document.createIndex()
    assert [one["name"] for one in document.loadCats(document.getCatIds())] == ["house", "tree"]
    (annotation,) = document.loadAnns(document.getAnnIds(imgIds=[1]))
    assert (annotation["area"], annotation["bbox"], annotation["score"]) == (rle["area"], rle["bbox"], rle["score"])
    assert int(document.annToMask(annotation).sum()) == rle["area"]
    assert answer.json()["images"][0]["file_name"] == ""
    fields = {"classes": "house", "format": "coco"}
    named = await client.post("/segment", files={"image": ("Häuser 1.png", encoded(half_dark()))}, data=fields)
    assert named.json()["images"][0]["file_name"] == "Häuser 1.png"


async def test_polygons_and_the_overlay_show_the_same_mask(client: httpx.AsyncClient) -> None:
    house = (await client.post("/segment", json=request())).json()["classes"][0]
    house_polygons, tree = (await client.post("/segment", json=request(format="polygons"))).json()["classes"]
    merged = coco.merge(coco.frPyObjects(house_polygons["mask"], HEIGHT, WIDTH))
    assert int(coco.area(merged)) == house["area"]
    assert tree["mask"] is None
    for accept in ("*/*", "image/png", "image/*;q=0.1", "application/json, */*"):
        overlay = await client.post("/segment", json=request(format="overlay"), headers={"accept": accept})
        assert overlay.headers["content-type"] == "image/png", overlay.text
        assert Image.open(io.BytesIO(overlay.content)).size == (200, HEIGHT + 22)
    refused = await client.post("/segment", json=request(format="overlay"), headers={"accept": "application/json"})
    assert refused.status_code == 406


async def test_islands_under_min_area_are_dropped(client: httpx.AsyncClient) -> None:
    area = (await client.post("/segment", json=request())).json()["classes"][0]["area"]
    same = (await client.post("/segment", json=request(min_area=area))).json()["classes"][0]
    none = (await client.post("/segment", json=request(min_area=area + 1))).json()["classes"][0]
    assert same["area"] == area
    assert (none["area"], none["score"], none["bbox"], none["mask"]) == (0, 0.0, None, None)
    bare = await client.post("/segment", json=request(min_area=10**6, background=False, format="label_map"))
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(bare.json()["label_map"]))))
    assert (labels == 255).all()


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["house", "tree"], ["house", "tree"]),
        (["house, tree ,a big cat"], ["house", "tree", "a big cat"]),
        (['["house", "tree, or bush"]'], ["house", "tree, or bush"]),
        (['[{"name": "house", "synonyms": ["hut"]}, "tree"]'], ["house", "tree"]),
        (['{"name": "house, or hut"}'], ["house, or hut"]),
        (["a, b", "c"], ["a, b", "c"]),
        (["house"], ["house"]),
    ],
)
async def test_classes_of_a_form_come_repeated_with_commas_or_as_json(
    client: httpx.AsyncClient, classes: list[str], names: list[str]
) -> None:
    files = {"image": encoded(half_dark())}
    answer = await client.post("/segment", files=files, data={"classes": classes})
    assert [one["name"] for one in answer.json()["classes"]] == names, answer.text


@pytest.mark.parametrize("classes", ["house,,tree", "[", "[3]", "house,house", "[]"])
async def test_lists_with_a_fault_are_refused(client: httpx.AsyncClient, classes: str) -> None:
    answer = await client.post("/segment", files={"image": encoded(half_dark())}, data={"classes": classes})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("text/html, */*;q=0.8", "application/json"),
        ("image/avif,image/webp,image/*,*/*;q=0.8", "image/png"),
        ("application/json;q=0.5, image/png;q=0.6", "image/png"),
        ("image/png, application/json", "application/json"),
        ("*/*;q=0.5, application/json;q=0", "image/png"),
        ("APPLICATION/JSON", "application/json"),
        ("application/*;q=0.001", "application/json"),
        ("text/html", None),
        ("application/json;q=0", None),
        ("image/png;q=2", None),
        ("", None),
    ],
)
def test_accept_is_negotiated(accept: str, kind: str | None) -> None:
    if kind is not None:
        assert negotiated(accept, "application/json", "image/png") == kind
        return
    with pytest.raises(NotAcceptable):
        negotiated(accept, "application/json", "image/png")
