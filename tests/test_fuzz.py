"""Damaged and forged input: a small draw of what benchmarks/fuzz.py gives by the thousand."""

from fuzz import fuzz

SEED = 16
"""The same inputs at every run: the benchmark draws others."""


def test_no_input_gives_more_than_a_sentence() -> None:
    """Every reader and the command line take an input, or refuse it by a sentence of ours, in ten seconds."""
    found = fuzz(150, SEED)
    assert found["failures"] == []
    assert len(found["readers"]) == 10
    assert found["memory_grew_mb"] < 1000
    refused = sum(counts.get("refused", 0) for counts in found["readers"].values())
    assert refused > 50
