"""Session settings that make 8-bit products exact, set only on CPUs that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from export.edge import exactness
from export.edge.exactness import exact_settings, products_saturate

CPUINFO = Path("/proc/cpuinfo")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    products_saturate.cache_clear()
    yield
    products_saturate.cache_clear()


@pytest.mark.skipif(
    not CPUINFO.exists() or "avx2" not in CPUINFO.read_text(), reason="tells only about x86 with AVX2, under Linux"
)
def test_the_probe_finds_what_the_cpu_says() -> None:
    """Products saturate on x86 without VNNI, and only there."""
    flags = CPUINFO.read_text()
    assert products_saturate() == ("avx512_vnni" not in flags and "avx_vnni" not in flags)


@pytest.mark.parametrize("saturate", [False, True])
def test_slow_exact_products_are_asked_for_where_needed(saturate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsigned weights only where products saturate; float inputs are never rounded to 8 bits."""
    monkeypatch.setattr(exactness, "products_saturate", lambda: saturate)
    settings = exact_settings()
    assert settings["session.qdq_matmulnbits_accuracy_level"] == "1"
    assert ("session.x64quantprecision" in settings) == saturate


def test_the_probe_notices_saturation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is cut off, as 16-bit sums cut it, is called wrong."""

    class Saturating:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: object, feeds: dict[str, object]) -> list[object]:
            return [feeds["x"] * 0 + 2**15 * (exactness.SIDE / 2) * exactness.STEP**2]

    monkeypatch.setattr(exactness.onnxruntime, "InferenceSession", Saturating)
    assert products_saturate()
