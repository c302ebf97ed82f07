"""Work in several processes, its results in order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

_kept: tuple[Callable[..., Any], Any]


def in_processes(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """`function(shared, task)` of every task, in order.

    Args:
        function: of a module, so that processes can name it.
        shared: what all tasks read; forked processes share it, nothing is copied.
        tasks: their arguments.
        workers: processes; with one the work is done here.
    """
    if workers <= 1:
        for task in tasks:
            yield function(shared, task)
        return
    fork = get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork, initializer=_keep, initargs=(function, shared)) as pool:
        yield from pool.map(_call, tasks)


def _keep(function: Callable[..., Any], shared: Any) -> None:
    global _kept
    _kept = (function, shared)


def _call(task: Any) -> Any:
    function, shared = _kept
    return function(shared, task)
