"""`vermouth eval pictures` draws the service's answers, and leaves nothing behind."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import app as vermouth_app
from models.errors import DataError
from training.commands.images import (
    MAX_FILE_BYTES,
    SEARCHED,
    TAUGHT,
    Cell,
    fewshot_image,
    grid,
    png,
    retrieve_image,
    segment_image,
)
from training.data.dataset import DataSet, DrawingRecord, ImageRecord


@pytest.fixture(scope="module")
def data() -> DataSet:
    """Ten seen images in the evaluation style, one a word for the first, and four drawings a word."""
    words = (*TAUGHT, *(f"thing {i}" for i in range(7)))
    images = [
        ImageRecord(row=row, source=source, kind="picture", hexcode=f"{row % 10}", name=words[row % 10], split=split)
        for row, (source, split) in enumerate([("fluent-flat", "evaluation")] * 10 + [("noto", "seen")] * 10)
    ]
    drawings = [
        DrawingRecord(
            word=word,
            key_id=f"{word} {number}",
            hexcodes=(str(words.index(word)),) if word in words else (),
            split="seen",
            validation=True,
            strokes=[[[0, 50 + number, 90], [0, 70, 10]]],
        )
        for word in {*SEARCHED, *TAUGHT}
        for number in range(4)
    ]
    alpha = np.zeros((20, 128, 128), np.uint8)
    alpha[:, 30:100, 30:100] = 255
    pixels = np.where(alpha[..., None] > 0, 90, 255).astype(np.uint8).repeat(3, axis=-1)
    return DataSet(pixels=pixels, alpha=alpha, images=tuple(images), drawings=tuple(drawings))


class FakeService:
    """Answers in the wire format, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.bodies: list[dict[str, object]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.path))
        if request.method == "POST":
            self.bodies.append(json.loads(request.content))
        match request.method, request.url.path:
            case "POST", "/retrieve":
                found = {"id": "1f41f", "score": 0.5, "metadata": {"name": "fish"}, "image_url": "/photo"}
                return httpx.Response(200, json={"results": [found] * 10})
            case "POST", "/segment":
                names = self.bodies[-1]["classes"]
                assert isinstance(names, list)
                classes = [
                    {"index": i, "name": n, "area": 9, "fraction": 0.1, "score": 0.5} for i, n in enumerate(names, 1)
                ]
                label_map = base64.b64encode(_png((256, 256), "L")).decode()
                return httpx.Response(200, json={"classes": classes, "label_map": label_map})
            case "POST", "/fewshot/episodes":
                predictions = [{"label": TAUGHT[0], "probability": 0.8}] * 6
                return httpx.Response(201, json={"id": "ep_1", "predictions": predictions})
            case "DELETE", _:
                return httpx.Response(204)
        return httpx.Response(200, content=_png((128, 128), "RGBA"))


def _png(size: tuple[int, int], mode: str) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, "PNG")
    return out.getvalue()


def _client(service: FakeService) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(service), base_url="http://service")


def test_three_drawn_words_are_searched_for_ten_each(data: DataSet) -> None:
    service = FakeService()
    with _client(service) as client:
        image = retrieve_image(client, data, "default")
    assert [body["k"] for body in service.bodies] == [10, 10, 10]
    assert service.asked.count(("GET", "/photo")) == 30
    assert image.width > image.height


def test_scenes_are_asked_for_present_and_absent_names(data: DataSet) -> None:
    service = FakeService()
    with _client(service) as client:
        segment_image(client, data, (0, 1))
    assert [path for _, path in service.asked] == ["/segment", "/segment"]
    for body in service.bodies:
        names = body["classes"]
        assert isinstance(names, list)
        assert len(names) in (6, 8, 10)


def test_the_episode_of_three_by_three_is_deleted(data: DataSet) -> None:
    service = FakeService()
    with _client(service) as client:
        fewshot_image(client, data)
    (body,) = service.bodies
    ways, queries = body["ways"], body["queries"]
    assert isinstance(ways, list)
    assert isinstance(queries, list)
    assert [len(way["support"]) for way in ways] == [3, 3, 3]
    assert len(queries) == 6
    assert not [query for query in queries if any(query in way["support"] for way in ways)]
    assert service.asked[-1] == ("DELETE", "/fewshot/episodes/ep_1")


def test_a_data_set_without_the_drawings_is_refused(data: DataSet) -> None:
    poor = DataSet(pixels=data.pixels, alpha=data.alpha, images=data.images, drawings=())
    with _client(FakeService()) as client, pytest.raises(DataError, match="0 validation drawings of 'fish'"):
        retrieve_image(client, poor, "default")


def test_grid_shortens_long_names_and_takes_uneven_rows() -> None:
    cell = Cell(image=Image.new("RGB", (30, 30), "red"), lines=["a name far too long to fit below an image", "0.5"])
    assert grid([[cell, cell], [cell]]).height == 2 * grid([[cell]]).height - 8


def test_files_stay_small_even_for_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    assert len(png(Image.fromarray(noise))) <= MAX_FILE_BYTES


def test_the_command_is_mounted_and_says_why_it_fails(tmp_path: object) -> None:
    arguments = ["eval", "pictures", "--data-set", f"{tmp_path}/absent", "--out", f"{tmp_path}/out"]
    found = CliRunner().invoke(vermouth_app, arguments)
    assert found.exit_code == 1
    assert "no finished data set" in found.output
