"""The documentation builds without a warning, its pages ask no other host, and its lists are those of the code.

`python -m tests.test_docs` writes the lists of errors and of metrics.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from app.api.problems import catalogue
from app.runtime.telemetry import Telemetry

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- Written by `python -m tests.test_docs`; a test compares. -->\n"


def errors() -> Iterator[str]:
    """A table of the catalogue, by status."""
    yield "| status | `code` | title | cause, and what to do |"
    yield "|---|---|---|---|"
    for code, kind in sorted(catalogue().items(), key=lambda entry: entry[1].status):
        advice = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
        yield f"| {kind.status} | `{code}` | {kind.title} | {advice} |"


def metrics() -> Iterator[str]:
    """A table of all metrics but the library's own, by name."""
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    found = [one for one in vars(Telemetry()).values() if isinstance(one, MetricWrapperBase)]
    families = [(next(iter(one.describe())), one._labelnames) for one in found]
    for family, labels in sorted(families, key=lambda entry: entry[0].name):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        named = ", ".join(f"`{label}`" for label in labels) or "–"
        yield f"| `{name}` | {family.type} | {named} | {family.documentation} |"


LISTS = {"errors": errors, "metrics": metrics}


@pytest.mark.parametrize("page", LISTS)
def test_a_list_is_that_of_the_code(page: str) -> None:
    written = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").partition(BEGIN)[2]
    assert written.split("\n")[1:-1] == [*LISTS[page]()], "run `python -m tests.test_docs`"


def test_the_pages_build_and_need_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {"index.html", "quickstart.html", "command-line.html"} <= {page.name for page in pages}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?(https?:[^\"' >]+)", html)
        loaded += re.findall(r"<link[^>]* rel=[\"']?stylesheet[^>]* href=[\"']?(https?:[^\"' >]+)", html)
        assert not loaded, (page, loaded)


def main() -> None:
    """Write the lists below what people wrote."""
    for page, lines in LISTS.items():
        path = ROOT / "docs" / f"{page}.md"
        head = path.read_text(encoding="utf-8").partition(BEGIN)[0]
        path.write_text("\n".join([head + BEGIN, *lines(), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
