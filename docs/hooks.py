"""mkdocs: links from the pages to files of the repository outside docs/ become their paths, which must exist."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:\.\./)*[^):#\s]*)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replaces such links; the pages on a disk have no repository beside them."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if not link[2] or not target.exists() or not target.is_relative_to(ROOT):
            return link[0]  # mkdocs checks it
        path = target.relative_to(ROOT).as_posix()
        is_page = path.startswith("docs/") and target.is_file()
        return link[0] if is_page else f"{link[1]} (`{path}`)"

    return _LINK.sub(replaced, markdown)
