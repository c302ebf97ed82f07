"""What waits for the device, formed into batches as late as possible."""

import math
from collections import deque

from app.engine.work import VIEW_COST, Group, Kind, Work


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

    def take(
        self, now_s: float, caps: dict[Group, int], default: int, *, lanes: int = 1, is_short: bool = False
    ) -> tuple[list[Work], list[Work]]:
        """The next batch: from the line whose head is oldest, oldest first; empty when nothing waits.

        Args:
            now_s: of the engine's clock.
            caps: the most samples of a group where a cap was learnt.
            default: the most views of any other; strings cost less and more of them go together.
            lanes: that are free; pictures leave the others their share of what waits.
            is_short: whether pictures go in half of the largest batch at most.

        Returns:
            The batch, and the samples before and among it whose time had passed, which leave the queue too.
        """
        expired: list[Work] = []
        for line in self._lines.values():
            while line and (line[0].has_left_queue or not line[0].is_live(now_s)):
                self._shed(line.popleft(), expired)
        self._lines = {group: line for group, line in self._lines.items() if line}
        if not self._lines:
            return [], expired
        group = min(self._lines, key=lambda found: self._lines[found][0].arrived_s)
        line, batch = self._lines[group], list[Work]()
        most = caps.get(group, default * VIEW_COST // line[0].cost)
        if group.bucket:
            most = min(most, group.bucket)
        elif group.kind is Kind.IMAGES:
            # On a CPU half the pictures take half the time. A bucket takes its time whatever it holds.
            most = min(math.ceil(most / 2) if is_short else most, math.ceil(self.cost / (lanes * VIEW_COST)))
        while line and len(batch) < most:
            work = line.popleft()
            if work.has_left_queue or not work.is_live(now_s):
                self._shed(work, expired)
                continue
            self.drop(work)
            batch.append(work)
        return batch, expired

    def take_all(self) -> list[Work]:
        """Everything that waits; for the end."""
        everything = [work for line in self._lines.values() for work in line if not work.has_left_queue]
        for work in everything:
            self.drop(work)
        self._lines.clear()
        return everything

    def _shed(self, work: Work, expired: list[Work]) -> None:
        if not work.has_left_queue:
            self.drop(work)
            expired.append(work)
