"""Damaged and forged input: a small draw of what benchmarks/fuzz.py gives by the thousand."""

import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_no_input_gives_more_than_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader and the command line take an input, or refuse it by a sentence of ours, in ten seconds."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "fuzz", raising=False)
    from fuzz import fuzz

    seed = time.time_ns()
    found = fuzz(150, seed)
    assert found["failures"] == [], f"seed {seed}"
    assert len(found["readers"]) == 10
    assert found["memory_grew_mb"] < 1000
    refused = sum(counts.get("refused", 0) for counts in found["readers"].values())
    assert refused > 50
