"""Where a request's time went; travels with the answer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timings:
    """Milliseconds a phase; phases add up when entered twice."""

    started_s: float = field(default_factory=time.perf_counter)
    phases_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a block."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - started_s) * 1e3)

    def add(self, name: str, duration_ms: float) -> None:
        """Count time that was measured elsewhere."""
        self.phases_ms[name] = self.phases_ms.get(name, 0.0) + duration_ms

    def add_longest(self, *others: "Timings") -> None:
        """Count phases that ran beside each other: of each the longest."""
        for name in dict.fromkeys(name for other in others for name in other.phases_ms):
            self.add(name, max(other.phases_ms.get(name, 0.0) for other in others))

    def left_s(self, timeout_s: float | None) -> float | None:
        """What is left of a timeout that began with these timings."""
        if timeout_s is None:
            return None
        return max(0.0, timeout_s - (time.perf_counter() - self.started_s))

    def totals_ms(self) -> dict[str, float]:
        """All phases and `total`, rounded to microseconds."""
        total = (time.perf_counter() - self.started_s) * 1e3
        return {name: round(value, 3) for name, value in {**self.phases_ms, "total": total}.items()}
