"""The playground: static files of the package, the page at `/` and its modules below `/playground`."""

import gzip
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.responses import FileResponse, Response

from app.api.auth import Scope, ScopedRoute, requires
from app.errors import NotFound
from app.imaging.demo import PHOTOGRAPHS, demo_by_id
from app.imaging.formats import media_type

router = APIRouter(include_in_schema=False, route_class=ScopedRoute)

FOLDER = Path(__file__).parents[2] / "web"
FILES = {file.name: file for file in FOLDER.iterdir() if file.is_file()}
# To try masks on.
FILES |= {f"sample-{name.split()[-1]}{file.suffix}": file for name, file in PHOTOGRAPHS.items()}
_TEXT = frozenset({".html", ".js", ".css", ".svg"})
# Nothing but the service's own files; blob: and data: are images that the page makes itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DemoItem(BaseModel):
    """An image of the demo gallery, without the image."""

    id: str
    metadata: dict[str, object]


@router.get("/")
@requires(Scope.OPEN)
async def page(request: Request) -> Response:
    """The page."""
    return _file("index.html", request)


@router.get("/playground/demo")
@requires(Scope.READ)
def demo() -> list[DemoItem]:
    """The items of the demo gallery, for a page that adds them."""
    return [DemoItem(id=one.id, metadata=one.metadata) for one in demo_by_id().values()]


@router.get("/playground/{name}")
@requires(Scope.OPEN)
async def asset(name: Annotated[str, PathParameter(max_length=100)], request: Request) -> Response:
    """A module, style or icon of the page. Raises NotFound."""
    return _file(name, request)


@router.get("/playground/demo/{item}", response_class=Response)
@requires(Scope.READ)
def demo_image(item: Annotated[str, PathParameter(max_length=100)]) -> Response:
    """The file of one item. Raises NotFound."""
    image = demo_by_id().get(item)
    if image is None:
        raise NotFound("The demo has no such image.")
    return Response(data := image.render(), media_type=media_type(data))


def _file(name: str, request: Request) -> Response:
    if name not in FILES:  # names from the folder's own list: no path leaves it
        raise NotFound("The playground has no such file.")
    file = FILES[name]
    response: Response = FileResponse(file, stat_result=file.stat(), headers={"Cache-Control": "no-cache"})
    if file.suffix in _TEXT:
        response.headers["Vary"] = "Accept-Encoding"
        if "gzip" in request.headers.get("accept-encoding", ""):
            etag = f'{response.headers["etag"][:-1]}-gzip"'  # other bytes need another tag
            headers = {**response.headers, "etag": etag, "content-encoding": "gzip"}
            del headers["content-length"]
            response = Response(_compressed(file, response.headers["etag"]), headers=headers)
    if name.endswith(".html"):
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
    return response


@cache
def _compressed(file: Path, version: str) -> bytes:
    """The file as gzip; `version` makes an edited file another entry."""
    del version
    return gzip.compress(file.read_bytes(), mtime=0)
