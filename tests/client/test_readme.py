"""The README's code runs as it stands, one block after the other."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.app.api.images import png
from vermouth_client import Client, NewItem, Svg

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
FISH = "1f41f"


@pytest.mark.parametrize("page", ["client/README.md", "docs/guides/python-client.md"])
def test_its_code_runs(page: str, service: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    (tmp_path / "photos").mkdir()
    for name in ("boat.png", "cat.png", "dog.png"):
        (tmp_path / "photos" / name).write_bytes(png(colour=(len(name), 80, 9)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("PIL.Image.Image.show", lambda _: None)  # no viewer on a test's machine
    with Client(**service) as client:
        circle = Svg('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="3"/></svg>')
        client.add_items("default", [NewItem(circle, FISH, {"name": "fish"})])
    names: dict[str, Any] = {}
    for block in blocks:
        code = block.replace("https://vermouth.example/api", service["base_url"]).replace("vm_…", service["key"])
        if "await " in code:
            asyncio.run(eval(compile(code, page, "exec", flags=0x2000), names))  # PyCF_ALLOW_TOP_LEVEL_AWAIT
        else:
            exec(compile(code, page, "exec"), names)
