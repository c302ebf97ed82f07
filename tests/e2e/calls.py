"""Requests over all routes, made up from seeds and the same each time."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

GALLERY = "/galleries/shapes"


@dataclass(frozen=True, slots=True)
class Call:
    """One request; `{name}` in its path is filled from what earlier answers were saved as."""

    method: str
    path: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    save: str | None = None


def drawn(seed: int, size: tuple[int, int] = (160, 120), mode: str = "RGB") -> Image.Image:
    """A made-up image of a few filled shapes, the same for a seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(180, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = (int(rng.integers(0, side * 3 // 4)) for side in size)
        box = (x, y, x + int(rng.integers(10, size[0] // 2)), y + int(rng.integers(10, size[1] // 2)))
        fill = tuple(int(v) for v in rng.integers(0, 200, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=fill)
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def strokes(seed: int, count: int = 4) -> dict[str, Any]:
    """A made-up drawing in the Quick, Draw! form."""
    rng = np.random.default_rng(seed)
    lines = [[rng.integers(0, 256, 9).tolist(), rng.integers(0, 256, 9).tolist()] for _ in range(count)]
    return {"strokes": lines, "width": 256, "height": 256}


def svg(seed: int) -> dict[str, str]:
    """A made-up SVG document of the subset."""
    rng = np.random.default_rng(seed)
    x, y, r = (int(v) for v in rng.integers(20, 60, 3))
    body = f'<circle cx="{x}" cy="{y}" r="{r}" fill="none" stroke="black" stroke-width="3"/><path d="M5 5 L90 {y} Z"/>'
    return {"svg": f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100"><g>{body}</g></svg>'}


def b64(data: bytes, prefix: str = "") -> dict[str, str]:
    """A file in JSON."""
    return {"base64": prefix + base64.b64encode(data).decode()}


def calls() -> list[Call]:
    """Every request, in order."""
    found = [*_galleries(), *_retrievals(), *_embeddings(), *_segments(), *_episodes(), *_reads(), *_errors()]
    return [*found, Call("DELETE", f"{GALLERY}?confirm=shapes"), Call("GET", "/galleries")]


def _galleries() -> Iterator[Call]:
    yield Call("PUT", GALLERY, {"json": {"description": "made-up shapes"}})
    for part in range(3):
        seeds = range(16 * part, 16 * part + 16)
        items = [{"id": f"shape-{n}", "metadata": {"kind": n % 3, "big": n % 2 == 0, "name": f"n{n}"}} for n in seeds]
        files = [("image", (f"{n}.png", encoded(drawn(n)), "image/png")) for n in seeds]
        yield Call("POST", f"{GALLERY}/items", {"data": {"items": json.dumps(items)}, "files": files})
    mixed = [
        {"id": "drawn", "image": strokes(900), "metadata": {"kind": "drawing"}},
        {"id": "vector", "image": svg(901)},
        {"id": "text", "image": b64(encoded(drawn(902), "JPEG"), "data:image/jpeg;base64,"), "caption": "shapes"},
        {"id": "bad", "image": b64(b"no image at all")},
        {"id": "drawn", "image": strokes(903)},
    ]
    yield Call("POST", f"{GALLERY}/items", {"json": mixed})
    yield Call("PUT", f"{GALLERY}/items/put-1", {"json": {"image": strokes(4), "metadata": {"a": 1}}})
    yield Call("PUT", f"{GALLERY}/items/put-1", {"json": {"metadata": {"b": [1, 2.5, None]}}})
    yield Call("PUT", f"{GALLERY}/items/put-2", {"json": {"metadata": {}}})
    yield Call("PATCH", f"{GALLERY}/items/put-1", {"json": {"metadata": {"b": None, "c": "x"}}})
    key = {"Idempotency-Key": "same-answers-1"}
    for _ in range(2):
        items = [{"id": "keyed", "image": strokes(77)}]
        yield Call("POST", f"{GALLERY}/items", {"json": items, "headers": key})


def _retrievals() -> Iterator[Call]:
    def post(**body: Any) -> Call:
        return Call("POST", "/retrieve", {"json": {"gallery": "shapes", **body}})

    for n in range(40):
        yield post(sketch=strokes(n), k=5)
    for n in range(8):
        yield post(sketch=svg(n), k=3)
    kinds = [
        ("PNG", "RGBA"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("PNG", "L"),
        ("PNG", "P"),
    ]
    for n, (kind, mode) in enumerate(kinds * 3):
        size = (60 + 31 * n, 300 - 11 * n)
        file = ("sketch", (f"x.{kind}", encoded(drawn(n, size, mode), kind), "application/octet-stream"))
        yield Call("POST", "/retrieve", {"data": {"gallery": "shapes", "k": "4"}, "files": [file]})
    for text in ("a circle", "star", "ein Fisch", "🐟", "a drawing of a house at night", "x" * 1500):
        yield post(text=text)
    for weight in (0, 0.2, 0.8, 1):
        yield post(text="a box", sketch=strokes(3), text_weight=weight)
    yield post(like={"positive": ["shape-1", "shape-2"]})
    yield post(like={"positive": ["shape-1"], "negative": ["shape-9"]}, sketch=strokes(2))
    yield post(like={"positive": ["nowhere"]})
    yield post(sketch={"item": {"gallery": "shapes", "id": "shape-7"}}, k=1000)
    yield post(sketch={"item": {"gallery": "shapes", "id": "nowhere"}})
    filters: list[Any] = [
        {"kind": 1},
        {"kind": {"in": [0, 2]}},
        {"big": True},
        {"big": 1},
        {"name": {"gte": "n3"}},
        {"missing": {"exists": False}},
        {"kind": {"ne": 1}},
        {"and": [{"kind": 1}, {"big": True}]},
        {"or": [{"name": "n3"}, {"name": "n4"}]},
        {"not": {"kind": 0}},
        {"b": {"any": [1]}},
        {"kind": {"like": 1}},
        {"and": {}},
    ]
    for where in filters:
        yield post(text="shape", filter=where, k=60)
    yield post(text="shape", min_score=0.2)
    yield post(sketch=strokes(5), caption="a drawing", reproducible=True)
    yield Call("POST", "/retrieve", {"json": {"text": "x", "gallery": "none"}})


def _embeddings() -> Iterator[Call]:
    for n in range(20):
        files = [
            ("image", (f"{i}.png", encoded(drawn(100 + 3 * n + i, (40 + 50 * i, 128))), "image/png")) for i in range(3)
        ]
        yield Call("POST", "/embed", {"files": files})
    yield Call("POST", "/embed", {"json": {"texts": ["a", "b c", "a"], "images": [strokes(1), svg(1)]}})
    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        image = b64(encoded(drawn(200 + turn, (90, 50)), "JPEG", exif=exif))
        yield Call("POST", "/embed", {"json": {"images": [image]}})


def _segments() -> Iterator[Call]:
    names = ["circle", "box", "sky"]
    for n, form in enumerate(["rle", "label_map", "png"] * 5):
        image = b64(encoded(drawn(300 + n, (100 + 40 * n, 300 - 10 * n)), "JPEG" if n % 2 else "PNG"))
        body = {"image": image, "classes": names, "format": form, "background": n % 4 != 0, "threshold": 0.05 * (n % 6)}
        yield Call("POST", "/segment", {"json": body})
    for n in range(4):
        files = [("image", ("a.png", encoded(drawn(n, (256, 256))), "image/png"))]
        headers = {"Accept": "image/png"} if n % 2 else {}
        yield Call("POST", "/segment", {"data": {"classes": names}, "files": files, "headers": headers})
    large = encoded(drawn(9, (1400, 700)), "JPEG")
    yield Call("POST", "/segment", {"json": {"image": b64(large), "classes": ["circle", "box"]}})
    objects = [
        {"name": "ball", "synonyms": ["circle", "disc"]},
        {"name": "box", "templates": ["a {}", "one {}"]},
        "sea",
    ]
    yield Call("POST", "/segment", {"json": {"image": strokes(8), "classes": objects}})
    yield Call("PUT", "/class-sets/things", {"json": {"classes": objects}})
    yield Call("PUT", "/class-sets/things", {"json": {"classes": ["ball", "box"]}})
    yield Call("POST", "/segment", {"json": {"image": svg(3), "class_set": "things"}})
    yield Call("GET", "/class-sets")
    yield Call("GET", "/class-sets/things")
    for bad in ([], ["a", "a"], ["a", " A "], [""], ["x" * 200], [{"name": "a", "templates": ["no braces"]}], "a"):
        yield Call("POST", "/segment", {"json": {"image": strokes(8), "classes": bad}})
    yield Call("POST", "/segment", {"json": {"image": strokes(8), "class_set": "nowhere"}})
    yield Call("POST", "/segment", {"json": {"image": strokes(8)}})
    yield Call("POST", "/segment", {"json": {"image": strokes(8), "classes": ["a"], "format": "jpg"}})
    yield Call("DELETE", "/class-sets/things")


def _episodes() -> Iterator[Call]:
    for number, method in enumerate(("prototype", "ridge", "cache")):
        ways = [{"label": f"l{w}", "support": [strokes(40 * w + s) for s in range(3)]} for w in range(4)]
        body = {"name": method, "ways": ways, "method": method, "queries": [strokes(500), strokes(501)], "top_k": 2}
        headers = {"Idempotency-Key": f"episode-{number}"}
        save = f"e{number}"
        yield Call("POST", "/fewshot/episodes", {"json": body, "headers": headers}, save=save)
        for n in range(4):
            queries = {"queries": [strokes(510 + n), b64(encoded(drawn(n)))], "abstain_below": 0.25 * n}
            yield Call("POST", f"/fewshot/episodes/{{{save}}}/classify", {"json": queries})
        files = [("query", ("q.png", encoded(drawn(n)), "image/png")) for n in range(3)]
        yield Call("POST", f"/fewshot/episodes/{{{save}}}/classify", {"files": files})
        yield Call("GET", f"/fewshot/episodes/{{{save}}}")
        more = {"ways": [{"label": "l0", "support": [strokes(600)]}, {"label": "new", "support": [strokes(601)]}]}
        path = f"/fewshot/episodes/{{{save}}}/support"
        yield Call("POST", path, {"json": more})
        yield Call("POST", path, {"json": more, "headers": {"If-Match": '"7"'}})
        yield Call("POST", path, {"json": more, "headers": {"If-Match": '"1"'}})
        yield Call("POST", f"/fewshot/episodes/{{{save}}}/classify", {"json": {"queries": [strokes(1)]}})
    files = [
        (f"support:{label}", ("s.png", encoded(drawn(n)), "image/png"))
        for n, label in enumerate(["caf%C3%A9", "b"] * 2)
    ]
    files += [("query", ("q.png", encoded(drawn(9)), "image/png"))]
    data = {"options": json.dumps({"method": "ridge"})}
    headers = {"Idempotency-Key": "episode-form"}
    kwargs = {"files": files, "data": data, "headers": headers}
    yield Call("POST", "/fewshot/episodes", kwargs, save="form")
    yield Call("GET", "/fewshot/episodes?limit=100")
    one: dict[str, Any] = {"label": "a", "support": [strokes(1)]}
    pairs: list[list[dict[str, Any]]] = [
        [one],
        [one, one],
        [one, {"label": "b", "support": []}],
        [one, {"label": "b\n", "support": [strokes(2)]}],
    ]
    for ways in pairs:
        yield Call("POST", "/fewshot/episodes", {"json": {"ways": ways}})
    yield Call("POST", "/fewshot/episodes", {"json": {"ways": [one], "method": "magic"}})
    yield Call("GET", "/fewshot/episodes/ep_0000")
    yield Call("POST", "/fewshot/episodes/ep_0000/classify", {"json": {"queries": [strokes(1)]}})
    yield Call("DELETE", "/fewshot/episodes/{form}")
    yield Call("GET", "/fewshot/episodes/{form}")


def _reads() -> Iterator[Call]:
    for path in ("/livez", "/readyz", "/startupz", "/healthz", "/health", "/version", "/bundle", "/galleries"):
        yield Call("GET", path)
    for path in (
        "",
        "/items?limit=70",
        "/items?limit=5&cursor=shape-20",
        "/items/shape-3",
        "/items/nowhere",
        "/items/drawn",
    ):
        yield Call("GET", GALLERY + path)
    for path in (
        "/items/shape-3/image",
        "/items/shape-3/image?size=64",
        "/items/drawn/image",
        "/items/x/image",
        "/export",
    ):
        yield Call("GET", GALLERY + path)
    yield Call("GET", f"{GALLERY}/items", {"params": {"filter": '{"kind": 1}', "limit": 100}})
    for code in ("not-found", "queue-full", "image-too-large", "nowhere"):
        yield Call("GET", f"/errors/{code}")
    yield Call("POST", f"{GALLERY}/items/delete", {"json": {"ids": ["shape-1", "nowhere"]}})
    yield Call("POST", f"{GALLERY}/items/delete", {"json": {"filter": {"kind": 2}}})
    yield Call("DELETE", f"{GALLERY}/items/shape-0")
    yield Call("DELETE", f"{GALLERY}/items/shape-0")
    yield Call("GET", GALLERY)
    yield Call("GET", "/jobs/job_none")


def _errors() -> Iterator[Call]:
    json_type = {"Content-Type": "application/json"}
    bodies = [b"", b"{", b"[]", b"null", b'{"text": NaN}', b'{"text": 1}', b'{"nothing": 1}', b'{"text":"a","k":0}']
    bodies += [b'{"text":"a","k":1000000}', b'{"text":"a","text_weight":2}', b'{"text":""}', b"\xff\xfe", b'{"k":1}']
    for body in bodies:
        yield Call("POST", "/retrieve", {"content": body, "headers": json_type})
    png = encoded(drawn(1))
    huge = encoded(Image.new("1", (9000, 9000)))
    for image in (b64(png[:60]), b64(png[:-40]), b64(b"GIF89a"), {"base64": "@@@"}, {"base64": "data:,x"}, b64(huge)):
        yield Call("POST", "/retrieve", {"json": {"sketch": image}})
    drawings: list[Any] = [
        {"strokes": [], "width": 1, "height": 1},
        {"strokes": [[[1, 2], [3]]], "width": 9, "height": 9},
        {"strokes": [[[1, 2], [3, 4]]], "width": 0, "height": 9},
        {"strokes": [[[1, 2], [3, 4]]], "width": 9000, "height": 9},
        {"svg": "<svg><script/></svg>"},
        {"svg": "<svg"},
        {"svg": '<!DOCTYPE x [<!ENTITY a "b">]><svg/>'},
        {"svg": "<svg/>", "base64": "AA=="},
        {},
        {"url": "http://127.0.0.1/x.png"},
    ]
    for drawing in drawings:
        yield Call("POST", "/embed", {"json": {"images": [drawing]}})
    yield Call("POST", "/retrieve", {"content": b"x", "headers": {"Content-Type": "text/plain"}})
    yield Call("POST", "/retrieve", {"data": {"text": "a", "surprise": "b"}, "files": {"sketch": png}})
    yield Call("POST", "/embed", {"files": {"photo": png}})
    for method, path in (("GET", "/retrieve"), ("PUT", "/segment"), ("GET", "/nowhere"), ("GET", "/galleries/Bad")):
        yield Call(method, path)
    for path in ("/galleries/default", f"{GALLERY}", "/galleries/none"):
        yield Call("DELETE", path)
    for path in ("/galleries//x", "/galleries/%2e%2e", "/galleries/a%2fb"):
        yield Call("GET", path)
    bad_items: list[Any] = [[], [{}], [{"id": "../x", "image": strokes(1)}], {"id": "a"}, [{"id": "a", "metadata": {}}]]
    for items in bad_items:
        yield Call("POST", f"{GALLERY}/items", {"json": items})
    yield Call("PATCH", f"{GALLERY}/items/shape-4", {"json": {"metadata": "x" * 20}})
    yield Call("PATCH", f"{GALLERY}/items/shape-4", {"json": {"metadata": {"a": "x" * 20_000}}})
    yield Call("GET", GALLERY, {"headers": {"X-Min-Seq": "soon"}})
