"""The playground: static files of the package, the page at `/` and its modules below `/playground`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.responses import FileResponse, Response

from app.api.auth import Scope, ScopedRoute, requires
from app.errors import NotFound

router = APIRouter(include_in_schema=False, route_class=ScopedRoute)

FOLDER = Path(__file__).parents[2] / "web"
_PACKAGE = find_spec("skimage")  # not imported: that takes long
_PHOTOGRAPHS = Path(_PACKAGE.origin or "").parent / "data" if _PACKAGE is not None else FOLDER
# Free photographs of scikit-image's package, to try masks on.
SAMPLES = {
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "astronaut": "astronaut.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
}
FILES = {file.name: file for file in FOLDER.iterdir() if file.is_file()}
FILES |= {f"sample-{name}{Path(file).suffix}": _PHOTOGRAPHS / file for name, file in SAMPLES.items()}
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
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/playground/demo")
@requires(Scope.READ)
def demo() -> list[DemoItem]:
    """The items of the demo gallery, for a page that adds them."""
    from app.imaging.demo import demo_by_id  # here: the names of all emoji take a while to read, and few ask

    return [DemoItem(id=one.id, metadata=one.metadata) for one in demo_by_id().values()]


@router.get("/playground/{name}")
@requires(Scope.OPEN)
async def asset(name: Annotated[str, PathParameter(max_length=100)]) -> Response:
    """A module, style or icon of the page. Raises NotFound."""
    return _file(name)


@router.get("/playground/demo/{item}", response_class=Response)
@requires(Scope.READ)
def demo_image(item: Annotated[str, PathParameter(max_length=100)]) -> Response:
    """The PNG of one item. Raises NotFound."""
    from app.imaging.demo import demo_by_id

    image = demo_by_id().get(item)
    if image is None:
        raise NotFound("The demo has no such image.")
    return Response(image.render(), media_type="image/png")


def _file(name: str) -> Response:
    if name not in FILES:  # names from the folder's own list: no path leaves it
        raise NotFound("The playground has no such file.")
    file = FILES[name]
    response = FileResponse(file, stat_result=file.stat(), headers={"Cache-Control": "no-cache"})
    if name.endswith(".html"):
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
    return response
