"""What this machine can do, and how to mend what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from export.edge.registry import available_backend
from inversion.machine import choose_device, choose_precision
from inversion.teacher import DIGITS_VIT, load_teacher
from pipeline.record.versions import versions


def examine() -> Iterator[str]:
    """Lines of `what: state; mend`."""
    for package, version in versions().items():
        if package != "tensorrt":  # an extra: spoken of below
            yield f"{package}: {version or 'missing; pip install -c constraints.txt patch-rebirth'}"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        yield f"GPU: {torch.cuda.get_device_name()}, sm{major}{minor}"
    else:
        yield "GPU: none that torch sees; everything runs on the CPU, engines are built but not executed"
    yield f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    device = choose_device()
    yield f"inversion, quantization: on {device} in {str(choose_precision('auto', device)).removeprefix('torch.')}"
    yield f"engines: {available_backend() or 'no backend; pip install tensorrt-rtx-cu13, or patch-rebirth[tensorrt]'}"
    teacher = load_teacher(DIGITS_VIT)
    yield f"built-in teacher: {teacher.name}, {teacher.num_patches} patches, sha256 {teacher.sha256[:12]}"
