"""What the CPU and the memory of this machine are, as its kernel tells. Needs neither torch nor NumPy."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPUINFO, MEMINFO, GROUP = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")
X86, ARM = ("x86_64", "amd64", "i686"), ("aarch64", "arm64")
FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX512-VNNI", "amx_int8": "AMX-INT8",
    "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "asimddp": "dot product", "i8mm": "I8MM", "bf16": "BF16",
}  # fmt: skip
"""What matters to integers and to bfloat16, by the kernel's names: of x86 first, then of ARM."""
BY_SPEED = {
    "AMX-INT8": "AMX, the fastest",
    "AVX512-VNNI": "AVX512-VNNI",
    "AVX-VNNI": "AVX-VNNI",
    "I8MM": "I8MM",
    "dot product": "ARM's dot product",
}
"""What multiplies 8-bit integers natively, the fastest first."""
BFLOAT16 = ("AMX-BF16", "AVX512-BF16", "BF16")


@dataclass(frozen=True)
class Cpu:
    """A CPU: its `name`, the `cores` that this process may use, and which of `FEATURES` it has, in words. `known` is
    whether the kernel told."""

    name: str
    machine: str
    cores: int
    features: tuple[str, ...]
    known: bool

    @property
    def integers(self) -> str | None:
        """What multiplies 8-bit integers natively; None where nothing does, or nobody tells."""
        return next((words for feature, words in BY_SPEED.items() if feature in self.features), None)

    @property
    def bfloat16(self) -> str | None:
        """What multiplies bfloat16 natively; the same."""
        return next((feature for feature in BFLOAT16 if feature in self.features), None)


def cpu() -> Cpu:
    """This machine's."""
    text = ""
    with suppress(OSError):
        text = CPUINFO.read_text()
    told = _fields(text.splitlines())
    flags = set(f"{told.get('flags', '')} {told.get('Features', '')}".split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cpu(
        name=told.get("model name") or platform.processor() or "a CPU without a name",
        machine=platform.machine(),
        cores=cores,
        features=tuple(words for flag, words in FEATURES.items() if flag in flags),
        known=bool(flags),
    )


def free_memory() -> float:
    """Bytes that this process may still take, by the kernel and by its control group; infinite where nobody tells."""
    found = [math.inf]
    with suppress(OSError, ValueError, IndexError):
        lines = MEMINFO.read_text().splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError, IndexError):
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (GROUP / "memory.stat").read_text().splitlines()
        reclaimable = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
        found.append(float(limit - used + sum(reclaimable)))
    return min(found)


def all_memory() -> float:
    """Bytes that the machine has, or those that its control group may take; infinite where nobody tells."""
    found = [math.inf]
    with suppress(OSError, ValueError, IndexError):
        lines = MEMINFO.read_text().splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")]
    with suppress(OSError, ValueError):
        found.append(float((GROUP / "memory.max").read_text()))
    return min(found)


def _fields(lines: Iterable[str]) -> dict[str, str]:
    """Of the first core."""
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found
