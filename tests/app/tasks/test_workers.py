import pytest

from app.errors import QueueFull
from app.tasks.workers import Workers


def test_cells_are_bounded_and_come_back() -> None:
    workers = Workers(max_cells=100)
    with workers.room(90):
        with pytest.raises(QueueFull) as caught, workers.room(11):
            pass
        assert caught.value.retry_after_s is not None
        with workers.room(10):
            pass
    with workers.room(100):
        pass
    workers.close()


def test_one_request_alone_is_never_too_much() -> None:
    workers = Workers(max_cells=100)
    with workers.room(1000):
        pass
    workers.close()
