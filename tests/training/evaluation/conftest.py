"""The real data set, where it is built."""

import pytest

from training.data.dataset import DEFAULT_FOLDER, DataSet, load_dataset


@pytest.fixture(scope="session")
def data() -> DataSet:
    if not (DEFAULT_FOLDER.expanduser() / "manifest.json").is_file():
        pytest.skip("the data set is not built (vermouth data build)")
    return load_dataset(DEFAULT_FOLDER)
