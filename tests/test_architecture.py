"""docs/architecture.md names only what is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:app|models|training)/[\w/]*\.py)`", TEXT)))
NAMES = re.findall(r"^\| \d \| `([\w/]+\.py)` \| `(\w+)` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize("file", FILES)
def test_a_file_it_names_exists(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_a_name_of_its_table_is_defined_in_that_file(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, definitions)}


def test_it_names_enough_to_follow_a_request() -> None:
    assert len(NAMES) >= 12
