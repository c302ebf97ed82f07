"""Inputs that people sent to services of this field, each in ten variants of one seed (docs/results/cases.md).

`CASES_SEED=7 pytest tests/cases` makes ten others of each.
"""

import os

import numpy as np
import pytest

SEED = int(os.environ.get("CASES_SEED", "22"))
VARIANTS = 10


@pytest.fixture(params=range(VARIANTS))
def random(request: pytest.FixtureRequest) -> np.random.Generator:
    """The numbers that a variant is made of."""
    return np.random.default_rng([SEED, request.param])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
