"""What pyproject.toml promises is there: code behind every extra, files behind all package data."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
MODULES = {"scikit-learn": "sklearn", "faiss-cpu": "faiss", "faiss-gpu": "faiss", "psycopg": r"postgresql\+psycopg"}


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"dev"}))
def test_code_of_ours_uses_each_package_of_an_extra(extra: str) -> None:
    files = [file for folder in ("app", "models", "training", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    sources = "\n".join(file.read_text() for file in files)
    for requirement in EXTRAS[extra]:
        package = re.split(r"[\[>=<; ]", requirement)[0]
        module = MODULES.get(package, package.replace("-", "_"))
        assert re.search(rf"^\s*(import|from) {module}\b|{module}://|\"{module}\"", sources, re.MULTILINE), requirement


def test_package_data_names_files_that_are_there() -> None:
    for package, patterns in PROJECT["tool"]["setuptools"].get("package-data", {}).items():
        for pattern in patterns:
            assert list((ROOT / package).glob(pattern)), f"{package}/{pattern}"


def test_every_extra_is_locked_by_make_lock() -> None:
    assert set(re.findall(r"--extra (\w+)", (ROOT / "Makefile").read_text())) == set(EXTRAS)
