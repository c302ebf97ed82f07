"""`vermouth eval pictures`: what a running service answers, as pictures for the documents.

Queries are what no training of the embedded default uses: validation drawings and evaluation scenes.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image
from rich.console import Console

from app.cli.service_calls import ServiceRefused, open_client, send, wait_until_ready
from models.errors import DataError
from models.transforms import canonical_strokes
from training.commands.sheets import LINE, RIGHT, WRONG, Cell, Share, below, beside, grid, legend, overlay, png, titled
from training.data.dataset import DEFAULT_FOLDER, DataSet, DrawingRecord, load_dataset
from training.data.scenes import compose_evaluation_scene, seen_evaluation_pool

CANVAS_SIDE = 256
"""Side of the canvas of a person's drawing in the data set, px."""
SEARCHED = ("fish", "house", "star")
TAUGHT = ("umbrella", "butterfly", "bicycle")
SKETCHED = "bicycle"
SHOTS = 3


def pictures_command(
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    gallery: Annotated[str, typer.Option(help="Gallery to search.")] = "default",
    data_set: Annotated[Path, typer.Option("--data-set", help="Folder of `vermouth data build`.")] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(help="Folder of the PNGs.")] = Path("docs/pictures"),
    scene: Annotated[int, typer.Option(min=0, help="Number of the first of two evaluation scenes.")] = 0,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for the service to be ready.")] = 60.0,
    api_key: Annotated[str | None, typer.Option(envvar="VERMOUTH_API_KEY", help="Key with the scope write.")] = None,
) -> None:
    """Draw what a running service answers as PNGs; and two to send, sketch.png and scene.png."""
    console = Console(stderr=True)
    try:
        data = load_dataset(data_set)
        out.mkdir(parents=True, exist_ok=True)
        with open_client(url, api_key) as client:
            wait_until_ready(client, wait_s)
            drawn = {
                "retrieve": retrieve_picture(client, data, gallery),
                "segment": segment_picture(client, data, (scene, scene + 1)),
                "fewshot": fewshot_picture(client, data),
                "sketch": _drawn(_validation(data, SKETCHED)[0]).resize((256, 256), Image.Resampling.LANCZOS),
                "scene": Image.fromarray(compose_evaluation_scene(seen_evaluation_pool(data), scene).pixels),
            }
    except (ServiceRefused, DataError, httpx.HTTPError) as err:
        console.print(f"error: {err}", style="red", markup=False)
        raise typer.Exit(1) from err
    for name, image in drawn.items():
        file = out / f"{name}.png"
        file.write_bytes(png(image))
        console.print(f"{file}: {file.stat().st_size // 1000} kB", markup=False)


def retrieve_picture(client: httpx.Client, data: DataSet, gallery: str) -> Image.Image:
    """The first validation drawing of each searched word, and the gallery's first ten for it."""
    rows = []
    for word in SEARCHED:
        drawing = _validation(data, word)[0]
        body = {"sketch": _sketch(drawing), "gallery": gallery, "k": 10}
        results = send(client, "POST", "/retrieve", json=body).json()["results"]
        row = [Cell(image=_drawn(drawing), lines=[f"drawn: {word}"])]
        for result in results:
            stored = send(client, "GET", result["image_url"], params={"size": 128}).content
            name = str(result["metadata"].get("name", result["id"]))
            row.append(Cell(image=_opened(stored), lines=[name, f"{result['score']:.2f}"]))
        rows.append(row)
    return grid(rows)


def segment_picture(client: httpx.Client, data: DataSet, numbers: Sequence[int]) -> Image.Image:
    """Evaluation scenes of seen classes, the masks the service gives, the truth, and a legend."""
    pool = seen_evaluation_pool(data)
    rows = []
    for number in numbers:
        scene = compose_evaluation_scene(pool, number)
        image = base64.b64encode(_encoded(Image.fromarray(scene.pixels))).decode()
        body = {"image": {"base64": image}, "classes": list(scene.prompts), "format": "label_map"}
        answer = send(client, "POST", "/segment", json=body).json()
        with Image.open(io.BytesIO(base64.b64decode(answer["label_map"]))) as label_map:
            labels = np.asarray(label_map)
        shares = [Share(index=c["index"], name=c["name"], fraction=c["fraction"]) for c in answer["classes"]]
        row = [
            titled(Image.fromarray(scene.pixels), "sent"),
            titled(overlay(scene.pixels, labels), "answered"),
            titled(overlay(scene.pixels, scene.labels), "true"),
            legend(shares, scene.absent, height=scene.pixels.shape[0] + LINE),
        ]
        rows.append(beside(row))
    return below(rows)


def fewshot_picture(client: httpx.Client, data: DataSet) -> Image.Image:
    """Three classes of three drawings each; queries are the fourth drawing and a picture in a style kept out."""
    drawings = {word: _validation(data, word) for word in TAUGHT}
    queries = [(word, _sketch(drawings[word][SHOTS]), _drawn(drawings[word][SHOTS])) for word in TAUGHT]
    for word in TAUGHT:
        picture = _flat_picture(data, drawings[word][0])
        queries.append((word, {"base64": base64.b64encode(_encoded(picture)).decode()}, picture))
    body = {
        "ways": [{"label": word, "support": [_sketch(d) for d in drawings[word][:SHOTS]]} for word in TAUGHT],
        "queries": [image for _, image, _ in queries],
        "ttl_seconds": 600,
    }
    answer = send(client, "POST", "/fewshot/episodes", accepted=(201,), json=body).json()
    send(client, "DELETE", f"/fewshot/episodes/{answer['id']}", accepted=(204,))
    predictions = answer["predictions"]
    rows = []
    for number, word in enumerate(TAUGHT):
        row = [
            Cell(image=_drawn(d), lines=[f"shown as {word}" if not n else ""])
            for n, d in enumerate(drawings[word][:SHOTS])
        ]
        row.append(Cell(image=None, lines=[]))
        for place in (number, number + len(TAUGHT)):
            row.append(_predicted(queries[place][2], word, predictions[place]))
        rows.append(row)
    return grid(rows)


def _validation(data: DataSet, word: str) -> list[DrawingRecord]:
    """The four validation drawings of a word, by id: no heads are trained on them."""
    found = sorted((d for d in data.drawings if d.validation and d.word == word), key=lambda d: d.key_id)
    if len(found) <= SHOTS:
        raise DataError(f"the data set has {len(found)} validation drawings of {word!r}, not {SHOTS + 1}")
    return found


def _flat_picture(data: DataSet, drawing: DrawingRecord) -> Image.Image:
    """The same thing in Fluent's flat style, which no training uses."""
    for record in data.pictures:
        if record.source == "fluent-flat" and record.hexcode in drawing.hexcodes:
            return Image.fromarray(np.asarray(data.pixels[record.row]))
    raise DataError(f"the data set has no evaluation picture of {drawing.word!r}")


def _sketch(drawing: DrawingRecord) -> dict[str, Any]:
    return {"strokes": drawing.strokes, "width": CANVAS_SIDE, "height": CANVAS_SIDE}


def _drawn(drawing: DrawingRecord) -> Image.Image:
    return Image.fromarray(canonical_strokes(drawing.strokes))


def _predicted(image: Image.Image, word: str, prediction: dict[str, Any]) -> Cell:
    is_right = prediction["label"] == word
    line = f"{prediction['label']} {prediction['probability']:.2f}"
    return Cell(
        image=image, lines=[line, "right" if is_right else f"wrong: {word}"], colour=RIGHT if is_right else WRONG
    )


def _opened(data: bytes) -> Image.Image:
    """A stored picture on white."""
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
