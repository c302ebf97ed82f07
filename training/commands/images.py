"""`vermouth eval pictures`: a running service's answers as PNGs for the documents; and the sheets they are drawn on.

Queries are validation drawings, evaluation scenes and the demo's photographs, which no training of the embedded default
uses.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.console import Console

from models.errors import DataError
from models.transforms import canonical_strokes
from training.data.dataset import DEFAULT_FOLDER, DataSet, DrawingRecord, load_dataset
from training.data.scenes import Scene, compose_evaluation_scene, seen_evaluation_pool

CANVAS_SIDE = 256  # side of the canvas of a person's drawing in the data set, px
SEARCHED = ("fish", "house", "star")
TAUGHT = ("umbrella", "butterfly", "bicycle")
SKETCHED = "bicycle"
SHOTS = 3
MAX_FILE_BYTES = 150_000

_PHOTOGRAPH = (240, 180)  # size of a photograph, px
_CELL = 104  # side of a cell's image, px
LINE = 15  # height of a line of text, px
_GAP = 8  # around and between cells, px
_COLOURS = np.array(
    [
        *((255, 255, 255), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
        *((140, 86, 75), (227, 119, 194), (188, 189, 34), (23, 190, 207), (0, 0, 0)),
    ],
    np.uint8,
)
"""[11, 3]: for no name and for up to ten names, none of them the grey of the background."""
_TEXT, _MUTED, RIGHT, WRONG = "#202020", "#707070", "#1a7f37", "#c62828"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """An image and lines of text below it: `colour` of the first line, grey for the rest."""

    image: Image.Image | None
    lines: Sequence[str]
    colour: str = _TEXT


def images_command(
    url: Annotated[str, typer.Option(envvar="VERMOUTH_URL", help="URL of the service.")] = "http://127.0.0.1:8000",
    gallery: Annotated[str, typer.Option(help="Gallery to search.")] = "default",
    data_set: Annotated[Path, typer.Option("--data-set", help="Folder of `vermouth data build`.")] = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(help="Folder of the PNGs.")] = Path("docs/pictures"),
    scene: Annotated[int, typer.Option(min=0, help="Number of the first of two evaluation scenes.")] = 0,
    key: Annotated[str | None, typer.Option(envvar="VERMOUTH_API_KEY", help="Key with the scope write.")] = None,
) -> None:
    """Draw a running service's answers as PNGs, and two inputs to send, sketch.png and scene.png."""
    data = load_dataset(data_set)
    out.mkdir(parents=True, exist_ok=True)
    headers = {"X-API-Key": key} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=120.0) as client:
            drawn = {
                "retrieve": retrieve_image(client, data, gallery),
                "segment": segment_image(client, data, (scene, scene + 1)),
                "fewshot": fewshot_image(client, data),
                "photographs": photographs_image(client, gallery),
                "sketch": _drawn(_validation(data, SKETCHED)[0]).resize((256, 256), Image.Resampling.LANCZOS),
                "scene": Image.fromarray(compose_evaluation_scene(seen_evaluation_pool(data), scene).pixels),
            }
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        raise DataError(f"the service at {url} gave no answer to draw: {err}") from err
    for name, image in drawn.items():
        file = out / f"{name}.png"
        file.write_bytes(png(image))
        Console(stderr=True).print(f"{file}: {file.stat().st_size // 1000} kB", markup=False)


def _send(client: httpx.Client, method: str, url: str, **request: Any) -> httpx.Response:
    return client.request(method, url, **request).raise_for_status()


def retrieve_image(client: httpx.Client, data: DataSet, gallery: str) -> Image.Image:
    """The first validation drawing of each searched word, and the gallery's first ten answers."""
    rows = []
    for word in SEARCHED:
        drawing = _validation(data, word)[0]
        body = {"sketch": _sketch(drawing), "gallery": gallery, "k": 10}
        results = _send(client, "POST", "/retrieve", json=body).json()["results"]
        row = [Cell(image=_drawn(drawing), lines=[f"drawn: {word}"])]
        for result in results:
            stored = _send(client, "GET", result["image_url"], params={"size": 128}).content
            name = str(result["metadata"].get("name", result["id"]))
            row.append(Cell(image=_opened(stored), lines=[name, f"{result['score']:.2f}"]))
        rows.append(row)
    return grid(rows)


def segment_image(client: httpx.Client, data: DataSet, numbers: Sequence[int]) -> Image.Image:
    """Evaluation scenes of seen classes, the service's masks, the true ones, and a legend."""
    pool = seen_evaluation_pool(data)
    rows = []
    for number in numbers:
        scene = compose_evaluation_scene(pool, number)
        labels = _labels(client, Image.fromarray(scene.pixels), scene.prompts)
        rows.append(scene_row(scene, labels, title="sent"))
    return below(rows)


def photographs_image(client: httpx.Client, gallery: str) -> Image.Image:
    """All photographs of the demo: the place of each by its name, and its masks by all their names."""
    only = {"kind": "photograph"}
    asked = {"filter": json.dumps(only), "limit": 10}
    items = _send(client, "GET", f"/galleries/{gallery}/items", params=asked).json()["items"]
    if not items:
        raise DataError(f"the gallery {gallery} has no photographs: fill it with `vermouth gallery demo`")
    names, columns = [item["metadata"]["name"] for item in items], []
    for name, item in zip(names, items, strict=True):
        stored = _opened(_send(client, "GET", item["image_url"]).content).convert("RGB")
        image = ImageOps.pad(stored, _PHOTOGRAPH, color="white")
        body = {"text": name, "gallery": gallery, "k": len(names), "filter": only}
        found = [one["id"] for one in _send(client, "POST", "/retrieve", json=body).json()["results"]]
        labels = _labels(client, image, names)
        shares = [(each, (labels == number).mean()) for number, each in enumerate(names, 1)]
        masks = ", ".join(f"{each} {share:.0%}" for each, share in shares if share) or "nothing"
        shown = [_titled(image, f"“{name}”: place {found.index(item['id']) + 1}")]
        shown.append(_titled(overlay(np.asarray(image), labels), masks))
        columns.append(np.asarray(ImageOps.expand(below(shown), _GAP, "white")))
    return Image.fromarray(np.hstack(columns))


def fewshot_image(client: httpx.Client, data: DataSet) -> Image.Image:
    """Three classes of three drawings each; queries are the fourth drawing and an image in a style not trained on."""
    drawings = {word: _validation(data, word) for word in TAUGHT}
    queries = [(word, _sketch(drawings[word][SHOTS]), _drawn(drawings[word][SHOTS])) for word in TAUGHT]
    for word in TAUGHT:
        flat = _flat_image(data, drawings[word][0])
        queries.append((word, {"base64": _base64(flat)}, flat))
    body = {
        "ways": [{"label": word, "support": [_sketch(d) for d in drawings[word][:SHOTS]]} for word in TAUGHT],
        "queries": [image for _, image, _ in queries],
        "ttl_seconds": 600,  # in case it cannot be deleted
    }
    answer = _send(client, "POST", "/fewshot/episodes", json=body).json()
    # The episode would be listed to users of the service until it expires.
    _send(client, "DELETE", f"/fewshot/episodes/{answer['id']}")
    predictions = answer["predictions"]
    rows = []
    for number, word in enumerate(TAUGHT):
        titles = (f"shown as {word}", *[""] * (SHOTS - 1))
        shown = [Cell(image=_drawn(d), lines=[title]) for d, title in zip(drawings[word], titles, strict=False)]
        # A word's drawing is among the first queries, its emoji among the last.
        asked = (number, number + len(TAUGHT))
        predicted = [_predicted(queries[query][2], word, predictions[query]) for query in asked]
        rows.append([*shown, Cell(image=None, lines=[]), *predicted])
    return grid(rows)


def _labels(client: httpx.Client, image: Image.Image, names: Sequence[str]) -> NDArray[np.uint8]:
    body = {"image": {"base64": _base64(image)}, "classes": list(names), "format": "label_map"}
    answer = _send(client, "POST", "/segment", json=body).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["label_map"]))) as label_map:
        return np.asarray(label_map, np.uint8)


def _validation(data: DataSet, word: str) -> list[DrawingRecord]:
    """The four validation drawings of a word, by id."""
    found = sorted((d for d in data.drawings if d.validation and d.word == word), key=lambda d: d.key_id)
    if len(found) <= SHOTS:
        raise DataError(f"the data set has {len(found)} validation drawings of {word!r}, not {SHOTS + 1}")
    return found


def _flat_image(data: DataSet, drawing: DrawingRecord) -> Image.Image:
    """An image of the same thing in Fluent's flat style, which no training uses."""
    for record in data.images:
        if record.source == "fluent-flat" and record.hexcode in drawing.hexcodes:
            return Image.fromarray(np.asarray(data.pixels[record.row]))
    raise DataError(f"the data set has no evaluation image of {drawing.word!r}")


def _sketch(drawing: DrawingRecord) -> dict[str, Any]:
    return {"strokes": drawing.strokes, "width": CANVAS_SIDE, "height": CANVAS_SIDE}


def _drawn(drawing: DrawingRecord) -> Image.Image:
    return Image.fromarray(canonical_strokes(drawing.strokes))


def _predicted(image: Image.Image, word: str, prediction: dict[str, Any]) -> Cell:
    line = f"{prediction['label']} {prediction['probability']:.2f}"
    verdict, colour = ("right", RIGHT) if prediction["label"] == word else (f"wrong: {word}", WRONG)
    return Cell(image=image, lines=[line, verdict], colour=colour)


def _opened(data: bytes) -> Image.Image:
    """A stored image on white."""
    with Image.open(io.BytesIO(data)) as stored:
        image = stored.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _base64(image: Image.Image) -> str:
    """A PNG of the image in base64."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def grid(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Cells in rows, each image over its lines."""
    columns = max(len(row) for row in rows)
    height = _CELL + 2 * LINE + _GAP
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, top = _GAP + x * (_CELL + _GAP), _GAP + y * height
            if cell.image is not None:
                fitted = cell.image.convert("RGB").resize((_CELL, _CELL), Image.Resampling.LANCZOS)
                sheet.paste(fitted, (left, top))
            for number, line in enumerate(cell.lines):
                text = _shortened(line, _CELL)
                draw.text((left, top + _CELL + number * LINE), text, cell.colour if not number else _MUTED, _font())
    return sheet


def png(image: Image.Image) -> bytes:
    """A palette PNG of at most `MAX_FILE_BYTES`, with as many colours as that allows."""
    # Documents hold dozens of them: few colours rather than many kilobytes.
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MAX_FILE_BYTES:
            break
    return out.getvalue()


def overlay(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Image.Image:
    """Masks [H, W] over the dimmed image [H, W, 3]; the background stays grey."""
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.5 + 110
    tinted = np.where(labels[..., None] > 0, 0.3 * grey + 0.7 * _COLOURS[labels], grey)
    return Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8))


def scene_row(scene: Scene, labels: NDArray[np.uint8], *, title: str) -> Image.Image:
    """A scene under its title, the answered `labels` [H, W] and the true ones as masks, and a legend, side by side."""
    images = [
        _titled(Image.fromarray(scene.pixels), title),
        _titled(overlay(scene.pixels, labels), "answered"),
        _titled(overlay(scene.pixels, scene.labels), "true"),
        _legend(scene, labels),
    ]
    padded = [np.asarray(ImageOps.expand(image, (0, _GAP, _GAP, _GAP), "white")) for image in images]
    return ImageOps.expand(Image.fromarray(np.hstack(padded)), (_GAP, 0, 0, 0), "white")


def _legend(scene: Scene, labels: NDArray[np.uint8]) -> Image.Image:
    sheet = Image.new("RGB", (250, len(labels) + LINE), "white")
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(scene.prompts):
        top, share = LINE + number * 21, (labels == number + 1).mean()
        draw.rectangle((0, top, 14, top + 14), fill=tuple(int(c) for c in _COLOURS[number + 1]))
        text = f"{name}: {share:.0%}" + (" (not there)" if name in scene.absent else "")
        draw.text((22, top), _shortened(text, 226), _MUTED if share == 0 else _TEXT, _font())
    return sheet


def _titled(image: Image.Image, title: str) -> Image.Image:
    sheet = ImageOps.expand(image, (0, LINE, 0, 0), "white")
    ImageDraw.Draw(sheet).text((0, 0), title, _TEXT, _font())
    return sheet


def below(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one width in a column."""
    return Image.fromarray(np.vstack([np.asarray(image) for image in images]))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(11)


def _shortened(text: str, width: int) -> str:
    shorter, font = text, _font()
    while text and font.getlength(shorter) > width:
        text = text[:-1]
        shorter = text + "…"
    return shorter
