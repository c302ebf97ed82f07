"""What routers work with once the bundle is loaded; built by `build_services` in `app/main.py`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from app.domain import BundleInfo, FeatureEngine
from app.tasks.assemble import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that exists only after the load.

    Attributes:
        is_alive: whether the device makes progress; False ends the process's life.
        is_current: whether the stores follow what is written; False makes the process unready.
        tasks: stores and tasks (`app.tasks.assemble.open_tasks`); None only where no route needs them.
        on_start: awaited in order on the loop after the load (engine start, warm-up, stores).
        on_stop: awaited in order after the last request was answered.
    """

    bundle: BundleInfo
    engine: FeatureEngine
    is_alive: Callable[[], bool]
    is_current: Callable[[], bool] = lambda: True
    tasks: Tasks | None = None
    on_start: Sequence[Callable[[], Awaitable[None]]] = ()
    on_stop: Sequence[Callable[[], Awaitable[None]]] = ()
