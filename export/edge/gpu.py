"""Which GPU is here, asked from its driver alone. Runs without torch."""

from __future__ import annotations

import ctypes

MAJOR, MINOR = 75, 76  # cuDeviceGetAttribute: compute capability


def local_arch() -> str | None:
    """Architecture of the first GPU, as sm89, or None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    status = status or cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    status = status or cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    return None if status else f"sm{major.value}{minor.value}"
