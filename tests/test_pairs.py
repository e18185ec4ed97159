"""Options are combined, not only tried one by one; the whole array is benchmarks/pairs.py."""

from __future__ import annotations

import itertools

from pairs import BUILD, LATER, covering_rows, pairs

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
