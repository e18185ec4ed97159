"""What the kernel tells of CPU and memory, in words; nothing where it tells nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from inversion import host

INTEL = (
    "processor\t: 0\nmodel name\t: A Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16\n\n"
)
OLD = "processor\t: 0\nmodel name\t: An EPYC\nflags\t\t: fpu sse2 avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd4f\n"


@pytest.mark.parametrize(
    ("text", "integers", "bfloat16", "features"),
    [
        (INTEL, "AMX, the fastest", "AMX-BF16", {"AVX2", "AVX512-VNNI"}),
        (INTEL.replace("amx_int8 amx_bf16", ""), "AVX512-VNNI", "AVX512-BF16", {"AVX-512"}),
        (OLD.replace("avx2", "avx2 avx_vnni"), "AVX-VNNI", None, {"AVX2"}),
        (OLD, None, None, {"AVX2"}),
        (ARM, "I8MM", "BF16", {"dot product"}),
    ],
)
def test_what_multiplies_integers(
    text: str,
    integers: str | None,
    bfloat16: str | None,
    features: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fastest of what the kernel lists; Intel's and AMD's names, and ARM's."""
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    found = host.cpu()
    assert (found.integers, found.bfloat16, found.known) == (integers, bfloat16, True)
    assert features <= set(found.features)
    assert found.cores >= 1


def test_memory_is_the_groups_where_that_has_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its files could give back counts as free; without a limit, and where nothing is told, the machine's."""
    (tmp_path / "meminfo").write_text("MemTotal: 3000 kB\nMemFree: 1 kB\nMemAvailable: 2000 kB\n")
    for name, text in (
        ("memory.max", "1000000"),
        ("memory.current", "700000"),
        ("memory.stat", "inactive_file 50000\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "GROUP", tmp_path)
    assert (host.free_memory(), host.all_memory()) == (350_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert (host.free_memory(), host.all_memory()) == (2_048_000, 3_072_000)
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "no")
    assert (host.free_memory(), host.all_memory()) == (math.inf, math.inf)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS: no features, and no claim that there are none."""
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "no")
    found = host.cpu()
    assert (found.features, found.integers, found.known) == ((), None, False)
