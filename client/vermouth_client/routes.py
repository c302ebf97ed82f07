"""Every method of the clients that is a call, or some calls, of the service: written once for both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import httpx

from vermouth_client import models
from vermouth_client.bulk import NewItem, Part, body_of, part_of
from vermouth_client.calls import Call, call, given, json_of, route
from vermouth_client.images import ImageLike, file_name, several, wire, wires

Model = TypeVar("Model", bound=models.Answer)
_EPISODES = ("fewshot", "episodes")
Classes = Sequence[str | Mapping[str, Any]] | None
"""Names, or objects of `name`, `synonyms` and `templates`."""
Filter = Mapping[str, Any] | None
Method = Literal["prototype", "ridge", "cache"]
Ways = Mapping[str, Sequence[ImageLike]]


class SegmentOptions(TypedDict, total=False):
    """What all forms of segmentation take."""

    class_set: str
    background: bool
    threshold: float
    min_area: int
    caption: str
    reproducible: bool


class Routes:
    """The methods that both clients share; each documents what the service does not.

    Names are the service's. A change of an episode takes the `version` that it changes, and raises PreconditionFailed
    where the episode has another one.
    """

    # --- retrieval

    @route
    def retrieve(
        self,
        sketch: ImageLike | None = None,
        *,
        image: ImageLike | None = None,
        text: str | None = None,
        text_weight: float | None = None,
        like: Sequence[str] = (),
        unlike: Sequence[str] = (),
        gallery: str = "default",
        k: int = 10,
        offset: int | None = None,
        filter: Filter = None,
        min_score: float | None = None,
        caption: str | None = None,
        reproducible: bool | None = None,
    ) -> Call[models.RetrieveResponse]:
        """Search a gallery by sketch, image, text, liked items, or any of them together; best first."""
        liked = {"positive": several("like", like), "negative": several("unlike", unlike)}
        body = {
            "sketch": None if sketch is None else wire(sketch),
            "image": None if image is None else wire(image),
            "like": None if not (like or unlike) else liked,
            **{"text": text, "text_weight": text_weight, "gallery": gallery, "k": k, "offset": offset},
            **{"filter": filter, "min_score": min_score, "caption": caption, "reproducible": reproducible},
        }
        return call(_read(models.RetrieveResponse), "POST", "retrieve", body=body)

    @route
    def embed(
        self, images: Sequence[ImageLike] = (), texts: Sequence[str] = (), *, reproducible: bool | None = None
    ) -> Call[models.EmbedResponse]:
        """Unit vectors of the space that `retrieve` searches by sketch and text."""
        body = {"images": wires("images", images), "texts": several("texts", texts), "reproducible": reproducible}
        return call(_read(models.EmbedResponse), "POST", "embed", body=body)

    # --- segmentation

    @route
    def segment(
        self,
        image: ImageLike,
        classes: Classes = None,
        *,
        format: Literal["rle", "label_map", "polygons", "png"] = "rle",
        **options: Unpack[SegmentOptions],
    ) -> Call[models.SegmentResponse]:
        """Disjoint masks of named classes, or of those of a class set."""
        body = _segment(image, classes, format, options)
        source = body["image"].get("base64", "")  # of a drawing and of an item nothing

        def parse(response: httpx.Response) -> models.SegmentResponse:
            found = _read(models.SegmentResponse)(response)
            found._image = source
            return found

        return call(parse, "POST", "segment", body=body)

    @route
    def segment_coco(
        self, image: ImageLike, classes: Classes = None, **options: Unpack[SegmentOptions]
    ) -> Call[dict[str, Any]]:
        """The COCO document of `segment`, which pycocotools loads; it has the name of a file."""

        def parse(response: httpx.Response) -> dict[str, Any]:
            document: dict[str, Any] = response.json()
            document["images"][0]["file_name"] = file_name(image)
            return document

        return call(parse, "POST", "segment", body=_segment(image, classes, "coco", options))

    @route
    def segment_png(
        self, image: ImageLike, classes: Classes = None, *, overlay: bool = False, **options: Unpack[SegmentOptions]
    ) -> Call[bytes]:
        """The label map of `segment` as a palette PNG, or the image under coloured masks with a legend."""
        body = _segment(image, classes, "overlay" if overlay else None, options)
        return call(_content, "POST", "segment", body=body, accept="image/png")

    @route
    def class_sets(self) -> Call[models.ClassSetList]:
        """All class sets, by name."""
        return call(_read(models.ClassSetList), "GET", "class-sets")

    @route
    def class_set(self, name: str) -> Call[models.ClassSetReport]:
        """One class set."""
        return call(_read(models.ClassSetReport), "GET", "class-sets", name)

    @route
    def put_class_set(
        self, name: str, classes: Sequence[str | Mapping[str, Any]], *, version: int | None = None
    ) -> Call[models.ClassSetReport]:
        """Create or replace a class set; with `version`, only that one."""
        body = {"classes": several("classes", classes)}
        return call(_read(models.ClassSetReport), "PUT", "class-sets", name, body=body, version=version)

    @route
    def delete_class_set(self, name: str, *, version: int | None = None) -> Call[None]:
        """Delete a class set."""
        return call(_nothing, "DELETE", "class-sets", name, version=version)

    # --- galleries and items

    @route
    def galleries(self) -> Call[models.GalleryList]:
        """All galleries, by name."""
        return call(_read(models.GalleryList), "GET", "galleries")

    @route
    def gallery(self, name: str) -> Call[models.GalleryReport]:
        """One gallery and its index."""
        return call(_read(models.GalleryReport), "GET", "galleries", name)

    @route
    def put_gallery(self, name: str, *, description: str | None = None) -> Call[models.GalleryReport]:
        """Create a gallery, or change its description."""
        return call(_read(models.GalleryReport), "PUT", "galleries", name, body={"description": description})

    @route
    def delete_gallery(self, name: str, *, with_items: bool = False) -> Call[None]:
        """Delete a gallery; one that holds items only `with_items`."""
        return call(_nothing, "DELETE", "galleries", name, params={"confirm": name if with_items else None})

    @route
    def facets(self, gallery: str, field: str, *, limit: int | None = None) -> Call[models.FacetList]:
        """The values of a metadata field with their counts, the most frequent first."""
        params = {"field": field, "limit": limit}
        return call(_read(models.FacetList), "GET", "galleries", gallery, "facets", params=params)

    @route
    def add_items(self, gallery: str, items: Sequence[NewItem], *, wait: bool = True) -> Call[models.ItemsWritten]:
        """Add or replace up to 256 items; `import_items` takes any number of them."""
        return add_items(gallery, [*map(part_of, items)], wait=wait)

    @route
    def put_item(
        self,
        gallery: str,
        id: str,
        image: ImageLike | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        caption: str | None = None,
        wait: bool = True,
        version: int | None = None,
    ) -> Call[models.ItemReport]:
        """Create, replace or, without an image, relabel one item; `version` is the `seq` of the item it replaces."""
        body = {"image": None if image is None else wire(image), "metadata": metadata, "caption": caption}
        return call(
            _read(models.ItemReport), "PUT", *_items(gallery, id), params={"wait": wait}, body=body, version=version
        )

    @route
    def patch_item(
        self, gallery: str, id: str, metadata: Mapping[str, Any], *, version: int | None = None
    ) -> Call[models.ItemReport]:
        """Merge metadata into an item's (RFC 7396): None removes a member."""
        return call(
            _read(models.ItemReport), "PATCH", *_items(gallery, id), body={"metadata": dict(metadata)}, version=version
        )

    @route
    def items(
        self, gallery: str = "default", *, cursor: str | None = None, limit: int | None = None, filter: Filter = None
    ) -> Call[models.ItemPage]:
        """One page of items, by id; `next_cursor` begins the next."""
        params = {"cursor": cursor, "limit": limit, "filter": None if filter is None else json_of(filter).decode()}
        return call(_read(models.ItemPage), "GET", *_items(gallery), params=params)

    @route
    def item(self, gallery: str, id: str) -> Call[models.ItemReport]:
        """One item."""
        return call(_read(models.ItemReport), "GET", *_items(gallery, id))

    @route
    def item_image(self, gallery: str, id: str, *, size: int | None = None) -> Call[bytes]:
        """The stored image file, or a WebP thumbnail whose longest side is `size`."""
        return call(_content, "GET", *_items(gallery, id, "image"), params={"size": size}, accept="*/*")

    @route
    def delete_item(self, gallery: str, id: str, *, wait: bool = True, version: int | None = None) -> Call[None]:
        """Delete one item."""
        return call(_nothing, "DELETE", *_items(gallery, id), params={"wait": wait}, version=version)

    @route
    def delete_items(
        self, gallery: str, ids: Sequence[str] | None = None, *, filter: Filter = None, wait: bool = True
    ) -> Call[models.ItemsDeleted]:
        """Delete some items by id, or all that pass a filter."""
        body = {"ids": None if ids is None else several("ids", ids), "filter": filter}
        path, params = _items(gallery, "delete"), {"wait": wait}
        return call(_read(models.ItemsDeleted), "POST", *path, params=params, body=body, writes=True)

    @route
    def export(
        self, gallery: str, file: str | os.PathLike[str], *, format: Literal["ndjson", "webdataset"] = "ndjson"
    ) -> Call[int]:
        """Write all items to a file: lines of JSON with vectors, or a tar with images. Returns the export's `seq`."""
        params = {"format": format}
        return call(_seq, "GET", "galleries", gallery, "export", params=params, accept="*/*", target=Path(file))

    # --- few-shot classification

    @route
    def create_episode(
        self,
        ways: Ways,
        *,
        name: str | None = None,
        method: Method | None = None,
        queries: Sequence[ImageLike] = (),
        top_k: int | None = None,
        abstain_below: float | None = None,
        ttl_seconds: float | None = None,
    ) -> Call[models.EpisodeCreated]:
        """Teach classes from examples, images by label; `queries` are classified at once."""
        options = {"name": name, "method": method, "top_k": top_k, "abstain_below": abstain_below}
        body = {"ways": _ways(ways), "queries": wires("queries", queries), "ttl_seconds": ttl_seconds, **options}
        return call(_read(models.EpisodeCreated), "POST", *_EPISODES, body=body, writes=True)

    @route
    def classify(
        self,
        episode: str,
        queries: Sequence[ImageLike],
        *,
        top_k: int | None = None,
        abstain_below: float | None = None,
        reproducible: bool | None = None,
    ) -> Call[models.ClassifyResponse]:
        """Predictions, in the queries' order."""
        options = {"top_k": top_k, "abstain_below": abstain_below, "reproducible": reproducible}
        body = {"queries": wires("queries", queries), **options}
        return call(_read(models.ClassifyResponse), "POST", *_EPISODES, episode, "classify", body=body)

    @route
    def episodes(self, *, cursor: str | None = None, limit: int | None = None) -> Call[models.EpisodePage]:
        """One page of episodes, by id."""
        return call(_read(models.EpisodePage), "GET", *_EPISODES, params={"cursor": cursor, "limit": limit})

    @route
    def episode(self, episode: str) -> Call[models.EpisodeReport]:
        """One episode with its support images."""
        return call(_read(models.EpisodeReport), "GET", *_EPISODES, episode)

    @route
    def add_support(self, episode: str, ways: Ways, *, version: int) -> Call[models.EpisodeReport]:
        """Add examples; a new label adds a way."""
        path, body = (*_EPISODES, episode, "support"), {"ways": _ways(ways)}
        return call(_read(models.EpisodeReport), "POST", *path, body=body, version=version, writes=True)

    @route
    def remove_support(self, episode: str, support: str, *, version: int) -> Call[models.EpisodeReport]:
        """Remove one support image."""
        return call(_read(models.EpisodeReport), "DELETE", *_EPISODES, episode, "support", support, version=version)

    @route
    def remove_way(self, episode: str, label: str, *, version: int) -> Call[models.EpisodeReport]:
        """Remove a way with its support images. A label with a slash is no path: rename it first."""
        return call(_read(models.EpisodeReport), "DELETE", *_EPISODES, episode, "ways", label, version=version)

    @route
    def patch_episode(
        self,
        episode: str,
        *,
        version: int,
        name: str | EllipsisType | None = ...,
        method: Method | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Call[models.EpisodeReport]:
        """Change an episode's name (None takes it away) or method, or rename labels: old to new."""
        fields = given({"method": method, "labels": labels}) | ({} if name is ... else {"name": name})
        path, body = (*_EPISODES, episode), json_of(fields)
        return call(_read(models.EpisodeReport), "PATCH", *path, body=body, version=version)

    @route
    def support_image(self, episode: str, support: str) -> Call[bytes]:
        """A support image as it was stored."""
        return call(_content, "GET", *_EPISODES, episode, "support", support, "image", accept="*/*")

    @route
    def delete_episode(self, episode: str, *, version: int | None = None) -> Call[None]:
        """Delete an episode with its support images."""
        return call(_nothing, "DELETE", *_EPISODES, episode, version=version)

    # --- operation

    @route
    def ready(self) -> Call[models.Readiness]:
        """What the service offers, once it accepts requests: waits for a load within the budget of retries."""
        return call(_read(models.Readiness), "GET", "readyz")

    @route
    def version(self) -> Call[models.Version]:
        """The release of the service and of its libraries."""
        return call(_read(models.Version), "GET", "version")

    @route
    def bundle(self) -> Call[models.BundleView]:
        """The loaded bundle."""
        return call(_read(models.BundleView), "GET", "bundle")

    @route
    def job(self, job: str) -> Call[models.JobReport]:
        """The progress of a job."""
        return call(_read(models.JobReport), "GET", "jobs", job)

    @route
    def delete_job(self, job: str) -> Call[None]:
        """Cancel or delete a job."""
        # Sent again, it would delete the job that it has cancelled.
        return replace(call(_nothing, "DELETE", "jobs", job), is_repeatable=False)


def add_items(gallery: str, parts: Sequence[Part], *, wait: bool) -> Call[models.ItemsWritten]:
    """The call that adds items."""
    body, media_type = body_of(parts)
    path, params = _items(gallery), {"wait": wait}
    return call(_read(models.ItemsWritten), "POST", *path, params=params, body=body, media_type=media_type, writes=True)


def _items(gallery: str, *more: str) -> tuple[str, ...]:
    return ("galleries", gallery, "items", *more)


def _segment(image: ImageLike, classes: Classes, format: str | None, options: SegmentOptions) -> dict[str, Any]:
    named = None if classes is None else several("classes", classes)
    return {"image": wire(image), "classes": named, "format": format, **options}


def _ways(ways: Ways) -> list[dict[str, Any]]:
    return [{"label": label, "support": wires(f"ways[{label!r}]", support)} for label, support in ways.items()]


def _read(shape: type[Model]) -> Callable[[httpx.Response], Model]:
    return lambda response: shape.model_validate_json(response.content)


def _content(response: httpx.Response) -> bytes:
    return response.content


def _seq(response: httpx.Response) -> int:
    return int(response.headers["X-Seq"])


def _nothing(_: httpx.Response) -> None:
    return None
