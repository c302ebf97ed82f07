"""CPU seconds and memory of a process and all below it, from /proc."""

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """The process and its descendants that are alive."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat(int(folder.name))
            if fields:
                parents[int(folder.name)] = int(fields[1])
    found, last = {root}, 0
    while len(found) > last:
        last = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return sorted(found & {*parents, root})


def cpu_s(root: int) -> float:
    """User and system time of the family, ended children included."""
    return sum(sum(map(int, fields[11:15])) * _TICK_S for pid in family(root) if (fields := _stat(pid)))


def rss_bytes(root: int) -> int:
    """Resident memory of the family; pages that are shared count for each."""
    return sum(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") for pid in family(root) if (fields := _stat(pid)))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
