"""The shipped command with the shipped model over a socket: every endpoint, on real images."""

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from app.domain import HOUSE
from app.imaging.demo import PHOTOGRAPHS

pytestmark = [
    pytest.mark.server,
    # pycocotools 2.0.11 decodes through NumPy's old copy protocol.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
WANTED = {"fish": ("1f41f", "1f420", "1f421"), "house": ("1f3e0", "1f3e1", "1f3da"), "star": ("2b50", "1f31f")}
"""Items that show what is drawn below."""
FISH = {
    "strokes": [
        [[30, 60, 110, 160, 185, 160, 110, 60, 30], [128, 95, 82, 95, 128, 160, 175, 162, 128]],
        [[185, 230, 230, 185], [128, 85, 172, 128]],
        [[70, 74, 70, 66, 70], [115, 119, 123, 119, 115]],
    ],
    "width": 256,
    "height": 256,
}
STAR = {
    "strokes": [
        [[128, 155, 240, 172, 198, 128, 58, 84, 16, 101, 128], [20, 95, 98, 150, 236, 185, 236, 150, 98, 95, 20]]
    ],
    "width": 256,
    "height": 256,
}
SKETCHES: dict[str, dict[str, Any]] = {"fish": FISH, "house": HOUSE, "star": STAR}


def test_it_tells_what_runs(client: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/startupz", "/healthz", "/health"):
        assert client.get(path).status_code == 200
    bundle = client.get("/bundle").json()
    assert bundle["name"] == "mini"
    assert len(bundle["fingerprint"]) == 64
    assert client.get("/version").status_code == 200
    assert "vermouth_bundle_info" in client.get("/metrics").text
    assert "/retrieve" in client.get("/openapi.json").json()["paths"]
    assert client.get("/errors/not-found").status_code == 200


@pytest.mark.parametrize("kind", list(SKETCHES))
def test_a_drawing_finds_its_kind(client: httpx.Client, kind: str) -> None:
    answer = client.post("/retrieve", json={"sketch": SKETCHES[kind], "k": 10})
    assert answer.status_code == 200
    body = answer.json()
    found = [result["id"] for result in body["results"]]
    assert len(found) == 10
    assert set(found) & set(WANTED[kind]), [result["metadata"]["name"] for result in body["results"]]
    scores = [result["score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert -1 <= min(scores) <= max(scores) <= 1
    assert "inference" in answer.headers["server-timing"]


def test_words_find_images(client: httpx.Client) -> None:
    found = client.post("/retrieve", json={"text": "star", "k": 10}).json()["results"]
    assert {result["id"] for result in found} & set(WANTED["star"])


@pytest.mark.parametrize("name", [name for name in PHOTOGRAPHS if name != "astronaut"])  # people are guesses
def test_a_photograph_that_no_training_saw_is_found_and_marked_by_its_name(client: httpx.Client, name: str) -> None:
    asked = {"text": name, "k": 1, "filter": {"kind": "photograph"}}
    (found,) = client.post("/retrieve", json=asked).json()["results"]
    assert found["metadata"]["name"] == name
    image = {"item": {"gallery": "default", "id": found["id"]}}
    answer = client.post("/segment", json={"image": image, "classes": [*PHOTOGRAPHS, "house", "tree", "fish"]})
    areas = {one["name"]: one["area"] for one in answer.json()["classes"]}
    assert max(areas, key=areas.__getitem__) == name


def test_sketch_and_words_together_lie_between(client: httpx.Client) -> None:
    vectors = client.post("/embed", json={"images": [HOUSE], "texts": ["fish"]}).json()
    sketch, text = np.array(vectors["images"][0]), np.array(vectors["texts"][0])
    np.testing.assert_allclose([np.linalg.norm(sketch), np.linalg.norm(text)], 1.0, atol=1e-4)
    both = 0.7 * sketch + 0.3 * text
    body = {"sketch": HOUSE, "text": "fish", "text_weight": 0.3, "k": 3}
    for result in client.post("/retrieve", json=body).json()["results"]:
        item = client.post("/embed", json={"images": [{"item": {"gallery": "default", "id": result["id"]}}]}).json()
        expected = float(np.array(item["images"][0]) @ both / np.linalg.norm(both))
        assert result["score"] == pytest.approx(expected, abs=2e-3)


def test_an_image_finds_itself(client: httpx.Client) -> None:
    image = client.get("/galleries/default/items/1f41f/image")
    assert image.headers["content-type"].startswith("image/")
    found = client.post("/retrieve", files={"sketch": ("fish.png", image.content, "image/png")}).json()["results"]
    assert found[0]["id"] == "1f41f"
    assert found[0]["score"] == pytest.approx(1.0, abs=1e-3)


def test_items_come_and_go(client: httpx.Client) -> None:
    assert client.put("/galleries/shelf", json={"description": "a test"}).status_code in (200, 201)
    item = {"id": "a-house", "image": HOUSE, "metadata": {"name": "house"}}
    added = client.post("/galleries/shelf/items", json=[item])
    assert added.json()["results"] == [{"id": "a-house", "status": "created", "problem": None}] or (
        added.json()["results"][0]["status"] == "created"
    )
    assert int(added.headers["x-seq"]) == added.json()["seq"]
    found = client.post("/retrieve", json={"sketch": HOUSE, "gallery": "shelf"}).json()["results"]
    assert [result["id"] for result in found] == ["a-house"]
    assert client.delete("/galleries/shelf/items/a-house").is_success
    assert client.post("/retrieve", json={"sketch": HOUSE, "gallery": "shelf"}).json()["results"] == []
    assert client.delete("/galleries/shelf").is_success
    assert client.get("/galleries/shelf").status_code == 404


def test_segmentation_names_the_parts_of_a_scene(client: httpx.Client) -> None:
    scene = Image.new("RGB", (256, 256), (222, 235, 214))
    truth = np.zeros((256, 256), dtype=bool)
    fish = client.get("/galleries/default/items/1f41f/image").content
    with Image.open(io.BytesIO(fish)) as opened:
        cutout = opened.convert("RGBA").resize((140, 140))
    scene.paste(cutout, (20, 60), cutout)
    truth[60:200, 20:160] = np.asarray(cutout)[..., 3] > 128
    data = io.BytesIO()
    scene.save(data, "PNG")
    files = {"image": ("scene.png", data.getvalue(), "image/png")}
    answer = client.post("/segment", files=files, data={"classes": ["fish", "locomotive"]})
    assert answer.status_code == 200
    classes = {found["name"]: found for found in answer.json()["classes"]}
    assert classes["fish"]["area"] > classes["locomotive"]["area"]
    mask = coco.decode(
        {"size": classes["fish"]["mask"]["size"], "counts": classes["fish"]["mask"]["counts"].encode()}
    ).astype(bool)
    overlap = (mask & truth).sum() / (mask | truth).sum()
    assert overlap > 0.65
    png = client.post("/segment", files=files, data={"classes": ["fish"]}, headers={"Accept": "image/png"})
    with Image.open(io.BytesIO(png.content)) as opened:
        assert (opened.mode, opened.size) == ("P", (256, 256))
    body = {"image": {"base64": base64.b64encode(data.getvalue()).decode()}, "classes": ["fish"], "format": "label_map"}
    label_map = base64.b64decode(client.post("/segment", json=body).json()["label_map"])
    with Image.open(io.BytesIO(label_map)) as opened:
        assert set(np.unique(np.asarray(opened))) <= {0, 1}


def test_three_classes_are_learnt_from_examples(client: httpx.Client) -> None:
    ways = [{"label": kind, "support": [SKETCHES[kind]]} for kind in SKETCHES]
    created = client.post("/fewshot/episodes", json={"name": "three", "ways": ways})
    assert created.status_code == 201
    location = created.headers["location"]
    assert created.headers["etag"]
    queries = [{"item": {"gallery": "default", "id": WANTED[kind][0]}} for kind in SKETCHES]
    answer = client.post(f"{location}/classify", json={"queries": queries, "top_k": 3})
    assert [prediction["label"] for prediction in answer.json()["predictions"]] == list(SKETCHES)
    assert client.get(location).json()["name"] == "three"
    assert client.delete(location).is_success
    assert client.get(location).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/retrieve", {}, 422),
        ("/retrieve", {"sketch": HOUSE, "k": 0}, 422),
        ("/retrieve", {"sketch": HOUSE, "gallery": "nowhere"}, 404),
        ("/retrieve", {"sketch": HOUSE, "colour": "red"}, 422),
        ("/segment", {"image": HOUSE, "classes": []}, 422),
        ("/embed", {"images": [{"base64": base64.b64encode(b"no image file").decode()}]}, 400),
    ],
    ids=["nothing asked", "k of zero", "unknown gallery", "unknown field", "no class", "text as an image"],
)
def test_bad_input_is_refused_clearly(client: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
