"""The files through which one `POST /retrieve` passes, printed and counted: what a newcomer has to read."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import httpx
import pytest

from app.main import create_app
from app.runtime.process import Phase
from app.settings import Settings

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
MAX_FILES = 30
WALLS, ROOF = [[40, 40, 210, 210, 40], [120, 230, 230, 120, 120]], [[25, 125, 225], [120, 30, 120]]


def drawing(*strokes: list[list[int]]) -> dict[str, object]:
    return {"strokes": strokes, "width": 256, "height": 256}


class Recorder:
    """Collects the files of `app/` and `models/` whose functions are called, in any thread, while it is on."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        del argument
        code = frame.f_code
        if self.is_on and event == "call" and code.co_name != "<module>":
            path = Path(code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("app", "models"):
                self.files.add(path.relative_to(ROOT).as_posix())


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Set before any thread of the app starts."""
    found = Recorder()
    before = sys.getprofile()
    threading.setprofile(found)
    sys.setprofile(found)
    yield found
    sys.setprofile(before)
    threading.setprofile(None)


async def test_a_retrieve_request_passes_through_few_files(recorder: Recorder, tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, bundle=ROOT / "weights" / "mini"))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
    ):
        assert await app.state.supervisor.settled() is Phase.READY
        answer = await client.post("/galleries/default/items", json=[{"id": "house", "image": drawing(WALLS, ROOF)}])
        assert answer.status_code == 200, answer.text
        # The first request warms what later ones find; the second has a new drawing and text, so that it takes a pass.
        for sketch, text in ((drawing(WALLS, ROOF), "a house"), (drawing(ROOF), "a roof")):
            recorder.is_on = text == "a roof"
            answer = await client.post("/retrieve", json={"sketch": sketch, "text": text, "k": 5})
        recorder.is_on = False
        assert answer.json()["results"][0]["id"] == "house"
    files = sorted(recorder.files)
    print(f"{len(files)} files:", *files, sep="\n")  # noqa: T201 - the list is the output
    assert len(files) <= MAX_FILES, files
