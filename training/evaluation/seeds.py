"""Figures of several training seeds as one: mean and 95 % interval of the mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t at 97.5 % by the number of seeds; few seeds deserve wide intervals."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of the mean by Student's t.

    Raises:
        ValueError: fewer than two values, or more than ten.
    """
    count = len(values)
    if count not in _T_95:
        raise ValueError(f"an interval takes 2 to 10 seeds, not {count}")
    return float(np.mean(values)), float(_T_95[count] * np.std(values, ddof=1) / np.sqrt(count))


def over_seeds(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Tables of the same lines, one a seed, as one table.

    Every float becomes its mean, with `… ±` beside it and `seeds` at the end; what is no float stays as the first
    table has it. A single table stays as it is.
    """
    if len(tables) == 1:
        return [dict(row) for row in tables[0]]
    merged = []
    for rows in zip(*tables, strict=True):
        row: dict[str, Any] = {}
        for key, value in rows[0].items():
            row[key] = value
            if isinstance(value, float):
                row[key], row[f"{key} ±"] = interval([other[key] for other in rows])
        merged.append({**row, "seeds": len(tables)})
    return merged
