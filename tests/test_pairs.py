"""Options are combined, not only tried one by one; the whole array is benchmarks/pairs.py."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from pairs import BUILD, LATER, attempt, covering_rows, lay_out, pairs

OPTIONS = BUILD | LATER


def test_rows_cover_every_pair() -> None:
    """Each two values of two options stand together in a row, in far fewer rows than there are pairs."""
    rows = covering_rows(OPTIONS)
    covered = {pair for row in rows for pair in pairs(row, list(OPTIONS))}
    wanted = {
        ((a, x), (b, y)) for a, b in itertools.combinations(OPTIONS, 2) for x in OPTIONS[a] for y in OPTIONS[b]
    }  # fmt: skip
    assert covered == wanted
    assert len(wanted) > 200
    assert len(rows) < 50


@pytest.mark.parametrize("number", [0, 1])
def test_a_row_works(number: int, tmp_path: Path) -> None:
    """Build, export, engine and validate by the row's options: no refusal, no crash, no gate."""
    threads = torch.get_num_threads()
    lay_out(tmp_path)
    try:
        assert attempt(covering_rows(OPTIONS)[number], tmp_path) == []
    finally:
        torch.set_num_threads(threads)
