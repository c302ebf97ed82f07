"""Results as a program or a person reads them."""

import csv
import io
import json

import pytest

from app.cli.output import Rows

RECORD = {"source": "рыба.png", "metadata": {"name": "рыба"}, "synonyms": ["猫"]}


@pytest.mark.parametrize("form", ["csv", "json", "plain"])
def test_letters_of_every_script_stay_readable(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Rows(as_csv=form == "csv", as_json=form == "json") as rows:
        rows.add(RECORD)
    text = capsys.readouterr().out
    assert text.count("рыба") == 2
    assert "猫" in text
    if form == "csv":
        (row,) = csv.DictReader(io.StringIO(text))
        assert json.loads(row["metadata"]) == RECORD["metadata"]
