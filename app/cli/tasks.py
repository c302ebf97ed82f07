"""`vermouth retrieve`, `segment`, `classify` and `embed`: the service's tasks on files, folders and drawings."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.classset import classes_of
from app.cli.episode import episode_id
from app.cli.output import AsCsv, AsJson, Rows, Show
from app.cli.service import DEFAULT_URL, Key, Url, ask, connect
from app.cli.sources import HELP, file_for, find_images, write_whole

if TYPE_CHECKING:
    from vermouth_client import ImageLike
    from vermouth_client.models import RetrieveResponse, SegmentResponse

retrieve_app = typer.Typer(add_completion=False)
segment_app = typer.Typer(add_completion=False)
classify_app = typer.Typer(add_completion=False)
embed_app = typer.Typer(add_completion=False)
_Sources = Annotated[list[str], typer.Argument(metavar="SOURCE", help=HELP)]
_MaybeSources = Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help=HELP)]
_Reproducible = Annotated[bool, typer.Option(help="Bit-equal answers whatever the load, a little slower.")]


@retrieve_app.command()
def retrieve(
    sources: _MaybeSources = None,
    text: Annotated[str | None, typer.Option("--text", "-t", help="Words to search for, alone or beside.")] = None,
    image: Annotated[bool, typer.Option("--image", help="Search for images that look like the sources.")] = False,
    like: Annotated[list[str] | None, typer.Option(help="Id of an item to be near; repeatable.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="Id of an item to be far from; repeatable.")] = None,
    gallery: Annotated[str, typer.Option("--gallery", "-g", help="Gallery to search.")] = "default",
    k: Annotated[int, typer.Option("-k", min=1, help="Results a source.")] = 10,
    where: Annotated[str | None, typer.Option("--filter", help="Condition on metadata: '{\"year\": 2020}'.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out results below.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG of the results; a folder of them if there are several sources.")
    ] = None,
    show: Show = False,
    reproducible: _Reproducible = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Search a gallery by drawings, images, words, or any of them together."""
    if not (sources or text or like):
        raise typer.BadParameter("Give a source, --text or --like to search for.")
    options: dict[str, Any] = {"text": text, "like": like or (), "unlike": unlike or (), "gallery": gallery, "k": k}
    options |= {"filter": _json_object(where), "min_score": min_score, "reproducible": reproducible or None}
    queries = find_images(sources or [])

    def add(name: str, answer: "RetrieveResponse", out: Path | None) -> None:
        for rank, one in enumerate(answer.results, start=1):
            record = {"source": name, "rank": rank, "score": one.score, "id": one.id, "metadata": one.metadata}
            rows.add(record, image_url=one.image_url)
        if out is None and not show:
            return
        sheet_png = io.BytesIO()
        answer.sheet().save(sheet_png, format="PNG")
        if out is not None:
            write_whole(out, sheet_png.getvalue())
        if show:
            rows.add_image(name, sheet_png.getvalue())

    with Rows(as_json=as_json, as_csv=as_csv, show=show) as rows, connect(url, key) as client:
        if not queries:
            add(text or "like", client.retrieve(**options), sheet)

        def call(one: "ImageLike") -> "RetrieveResponse":
            return client.retrieve(image=one, **options) if image else client.retrieve(one, **options)

        for source, answer in ask(queries, call, "searching"):
            add(source.name, answer, sheet and file_for(sheet, source, queries, ".png"))


@segment_app.command()
def segment(
    sources: _Sources,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "-c", help="Class name, or name=synonym,synonym; repeatable. One alone may list names: cat,dog."
        ),
    ] = None,
    class_set: Annotated[str | None, typer.Option(help="Stored class set, instead of --class.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Least confidence of a pixel.")] = None,
    min_area: Annotated[int | None, typer.Option(min=0, help="Leave out smaller areas, in pixels.")] = None,
    background: Annotated[bool, typer.Option(help="Leave pixels of no class out.")] = True,
    overlay: Annotated[
        Path | None, typer.Option(help="Write a PNG of the image under its masks; a folder for several sources.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Write a PNG of class indexes; a folder as above.")] = None,
    coco: Annotated[Path | None, typer.Option(help="Write a COCO document; a folder as above.")] = None,
    show: Show = False,
    reproducible: _Reproducible = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Find named classes in images: a line for each class found; --json has the masks as COCO run lengths."""
    if bool(classes) == bool(class_set):
        raise typer.BadParameter("Give class names with --class, or one --class-set.")
    options: dict[str, Any] = {"classes": classes_of(classes or ()) or None, "class_set": class_set}
    chosen = {"threshold": threshold, "min_area": min_area, "reproducible": reproducible or None}
    options |= {"background": background, **{name: value for name, value in chosen.items() if value is not None}}
    images = find_images(sources)

    def call(image: "ImageLike") -> tuple["SegmentResponse", list[tuple[Path | None, str, bytes]]]:
        """The answer, and what to write, or to show; the service has the pass of the first call in its cache."""
        found, files = client.segment(image, **options), []
        if overlay is not None or show:
            files.append((overlay, ".png", client.segment_png(image, overlay=True, **options)))
        if labels is not None:
            files.append((labels, ".labels.png", client.segment_png(image, **options)))
        if coco is not None:
            files.append((coco, ".json", json.dumps(client.segment_coco(image, **options)).encode()))
        return found, files

    with Rows(as_json=as_json, as_csv=as_csv, show=show) as rows, connect(url, key) as client:
        for source, (answer, files) in ask(images, call, "segmenting"):
            absent = [one.name for one in answer.classes if not one.area]
            if absent and len(images) == 1:
                typer.echo(f"not found: {', '.join(absent)}", err=True)
            _add_classes(rows, source.name, answer, is_complete=as_json)
            for out, suffix, content in files:
                if out is not None:
                    write_whole(file_for(out, source, images, suffix), content)
                if show and suffix == ".png":
                    rows.add_image(source.name, content)


@classify_app.command()
def classify(
    episode: Annotated[str, typer.Argument(help="Id or name of an episode: `vermouth episode create`.")],
    sources: _Sources,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many labels with their probabilities.")] = None,
    abstain_below: Annotated[float | None, typer.Option(min=0, max=1, help="Least probability of a label.")] = None,
    reproducible: _Reproducible = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Classify images by an episode, which was taught from a few examples of each class."""
    images = find_images(sources)
    options: dict[str, Any] = {"abstain_below": abstain_below, "reproducible": reproducible or None, "top_k": top}
    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        known = episode_id(client, episode)
        for source, answer in ask(images, lambda one: client.classify(known, [one], **options), "classifying"):
            (found,) = answer.predictions
            scores = {one.label: one.probability for one in found.scores}
            record = {"source": source.name, "label": found.label, "probability": found.probability}
            shown = record if top is None else record | {"scores": scores}
            rows.add(shown, scores=scores, abstained=found.abstained)


@embed_app.command()
def embed(
    sources: _MaybeSources = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="Words to embed; repeatable.")] = None,
    npy: Annotated[
        Path | None, typer.Option(help="Write the vectors as a NumPy array [N, D] float32; print only their sources.")
    ] = None,
    reproducible: _Reproducible = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Print the unit vectors of images and words, in the space that `retrieve` searches."""
    if not (sources or text):
        raise typer.BadParameter("Give a source or --text to embed.")
    images = find_images(sources or [])
    options: dict[str, Any] = {"reproducible": reproducible or None}
    vectors: list[list[float]] = []

    def add(name: str, vector: list[float]) -> None:
        if npy is None:
            rows.add({"source": name, "vector": vector})
        else:
            rows.add({"source": name})  # in the order of the array
            vectors.append(vector)

    with Rows(as_json=as_json, as_csv=as_csv) as rows, connect(url, key) as client:
        for source, answer in ask(images, lambda one: client.embed([one], **options), "embedding"):
            add(source.name, answer.images[0])
        if text:
            for word, vector in zip(text, client.embed(texts=text, **options).texts, strict=True):
                add(word, vector)
    if npy is not None:
        import numpy as np

        array = io.BytesIO()
        np.save(array, np.asarray(vectors, dtype=np.float32))
        write_whole(npy, array.getvalue())


def _add_classes(rows: Rows, name: str, answer: "SegmentResponse", *, is_complete: bool) -> None:
    """A record for each class found; if complete, one of class None where there is none."""
    found = [one for one in answer.classes if one.area]
    for one in found:
        record = {"source": name, "class": one.name, "score": one.score, "fraction": one.fraction}
        mask = one.model_dump(by_alias=True)["mask"]
        rows.add(record | {"bbox": one.bbox and list(one.bbox)}, area=one.area, mask=mask)
    if is_complete and not found:
        record = {"source": name, "class": None, "score": None, "fraction": 0.0}
        rows.add(record | {"bbox": None}, area=0, mask=None)


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise typer.BadParameter(f"--filter is no JSON: {err}.") from err
    if not isinstance(found, dict):
        raise typer.BadParameter("--filter is no JSON object: write it as '{\"year\": 2020}'.")
    return found
