"""A data set of coloured discs with every split and kind."""

import numpy as np
import pytest

from training.data.dataset import DataSet, DrawingRecord, ImageRecord

SEEN, UNSEEN = "1F431", "1F989"


@pytest.fixture(scope="session")
def dataset() -> DataSet:
    rows = [
        ("openmoji", "picture", SEEN, "cat", "seen"),
        ("openmoji", "outline", SEEN, "cat", "seen"),
        ("noto", "picture", SEEN, "cat", "seen"),
        ("fluent", "picture", SEEN, "cat", "seen"),
        ("fluent-contrast", "outline", SEEN, "cat", "seen"),
        ("fluent-flat", "picture", SEEN, "cat", "evaluation"),
        ("openmoji", "picture", UNSEEN, "owl", "unseen"),
        ("openmoji", "outline", UNSEEN, "owl", "unseen"),
        ("noto", "picture", UNSEEN, "owl", "unseen"),
        ("phosphor-regular", "icon", None, "bed", "none"),
        ("phosphor-thin", "icon", None, "bed", "none"),
        ("phosphor-fill", "icon", None, "hand", "unseen"),
        ("openclipart", "clipart", None, "a boat", "none"),
        ("openclipart", "clipart", None, "an owl", "unseen"),
    ]
    y, x = np.mgrid[:128, :128]
    pixels = np.full((len(rows), 128, 128, 3), 255, dtype=np.uint8)
    alpha = np.zeros((len(rows), 128, 128), dtype=np.uint8)
    for row, (_, kind, *_) in enumerate(rows):
        radius = np.hypot(x - 64, y - 64)
        disc = np.abs(radius - 45) < 2 if kind == "outline" else radius < 30 + row
        pixels[row][disc] = 0 if kind == "outline" else (250 - 15 * row, 15 * row, 80)
        alpha[row][disc] = 255
    drawings = [
        ("cat", "1", (SEEN,), "seen", False),
        ("cat", "2", (SEEN,), "seen", True),
        ("owl", "3", (UNSEEN,), "unseen", False),
        ("zigzag", "4", (), "seen", False),
    ]
    return DataSet(
        pixels=pixels,
        alpha=alpha,
        images=tuple(
            ImageRecord(row=n, source=r[0], kind=r[1], hexcode=r[2], name=r[3], split=r[4]) for n, r in enumerate(rows)
        ),
        drawings=tuple(
            DrawingRecord(
                word=d[0],
                key_id=d[1],
                hexcodes=d[2],
                split=d[3],
                validation=d[4],
                strokes=[[[0, 50 + 10 * n, 100], [0, 90, 10]]],
            )
            for n, d in enumerate(drawings)
        ),
    )
