"""Means and intervals over seeds, by hand."""

import pytest

from training.evaluation.seeds import interval, over_seeds


def test_three_seeds_by_hand() -> None:
    """Mean .5, deviation .1: 4.303 × .1 / √3."""
    mean, half = interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert half == pytest.approx(0.24843, abs=1e-4)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="2 to 10 seeds"):
        interval([0.5])


def test_tables_merge_line_by_line() -> None:
    tables = [[{"model": "a", "queries": 7, "map": value}] for value in (0.1, 0.3)]
    (row,) = over_seeds(tables)
    assert list(row) == ["model", "queries", "map", "map ±", "seeds"]
    assert (row["model"], row["queries"], row["map"], row["seeds"]) == ("a", 7, pytest.approx(0.2), 2)


def test_a_single_table_stays() -> None:
    assert over_seeds([[{"model": "a", "map": 0.1}]]) == [{"model": "a", "map": 0.1}]
