"""What waits for the device: bounded in cost, formed into batches as late as possible."""

from collections import deque

from app.engine.work import VIEW_COST, Group, Work


class WorkQueue:
    """Samples in order of arrival, a line for each group.

    Attributes:
        cost: of everything that waits and is still wanted.
    """

    def __init__(self) -> None:
        self.cost = 0
        self._lines: dict[Group, deque[Work]] = {}

    def __len__(self) -> int:
        return sum(not work.has_left_queue for line in self._lines.values() for work in line)

    def put(self, work: Work) -> None:
        """Add a sample at the end of its group's line."""
        self._lines.setdefault(work.key.group, deque()).append(work)
        self.cost += work.cost

    def drop(self, work: Work) -> None:
        """Take a sample out of its line: for a batch, or because nobody waits for it any more."""
        if not work.has_left_queue:
            work.has_left_queue = True
            self.cost -= work.cost

    def take(self, max_batch: dict[Group, int], default: int) -> list[Work]:
        """The next batch: from the line whose head is oldest, oldest first; empty when nothing waits.

        Args:
            max_batch: the most samples of a group where a cap was learnt.
            default: the most views of any other; strings cost less and more of them go together.
        """
        for line in self._lines.values():
            while line and line[0].has_left_queue:
                line.popleft()
        self._lines = {group: line for group, line in self._lines.items() if line}
        if not self._lines:
            return []
        group = min(self._lines, key=lambda found: self._lines[found][0].arrived_s)
        line, batch = self._lines[group], list[Work]()
        most = max_batch.get(group, default * VIEW_COST // line[0].cost)
        while line and len(batch) < most:
            work = line.popleft()
            if not work.has_left_queue:
                self.drop(work)
                batch.append(work)
        return batch

    def take_all(self) -> list[Work]:
        """Everything that waits; for the end."""
        everything = [work for line in self._lines.values() for work in line if not work.has_left_queue]
        for work in everything:
            self.drop(work)
        self._lines.clear()
        return everything


class DrainRate:
    """Cost a second that the device gets through, smoothed over batches."""

    def __init__(self, *, smoothing: float = 0.2) -> None:
        self._smoothing = smoothing
        self._cost_per_s: float | None = None

    def observe(self, cost: int, duration_s: float) -> None:
        """Learn from one batch."""
        seen = cost / max(duration_s, 1e-6)
        known = self._cost_per_s
        self._cost_per_s = seen if known is None else known + self._smoothing * (seen - known)

    def seconds_for(self, cost: int) -> float | None:
        """How long this cost will take; None before anything was measured."""
        return None if self._cost_per_s is None else cost / self._cost_per_s
