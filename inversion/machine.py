"""Where all of it runs and in which number format: device, memory, precision, and the teacher's copy for them."""

from __future__ import annotations

import copy
import math

import torch

from inversion import host
from inversion.errors import InputError, MachineError
from inversion.job import Inversion
from inversion.plainvit import PlainViT

DEVICES = "auto, cpu, cuda, or cuda:1 and the like"
DEFAULT_IMAGES, MOST_IMAGES = 128, 1024
MEMORY_SHARE = 0.6
CPU = torch.device("cpu")
BYTES_PER_TOKEN_WIDTH, BYTES_PER_PIXEL = 2 * 24, 4 * 16
"""What a block saves for its backward pass (24 vectors of the token's width in bfloat16), and the copies of a pixel
that an update holds; estimates."""


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is some; `cuda` is its first device. Raises `InputError` for a name that is none, and
    `MachineError` for CUDA that is asked for and missing."""
    kind, _, number = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdecimal()):
        raise InputError(f"unknown device {name!r}: take one of {DEVICES}.")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise MachineError("this machine shows torch no CUDA device: take --device cpu, or mend its driver.")
    if int(number or 0) >= (count := torch.cuda.device_count()):
        raise MachineError(f"there is no {name!r}, torch sees {count} CUDA devices: take cuda:0 to cuda:{count - 1}.")
    return torch.device("cuda", int(number or 0))


def settle_sums(threads: int = 0) -> int:
    """Let equal work give equal bytes: on so many CPU `threads`, or torch's own number where it is 0, and with no sum
    whose order is left to chance. Returns the number.

    How threads share a sum decides how it rounds, so that their number belongs to what a result depends on. By default
    torch adds gradients of picked rows as they come: two runs of one command then differ in the last bits.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # on CUDA, convolutions of float32 would drop 13 of its 24 bits, and the patch embedding is one
    torch.backends.cudnn.allow_tf32 = False
    # nothing here reads what it did not write
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a property of the module
    return torch.get_num_threads()


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively: GPUs, and CPUs with AMX or AVX512-BF16."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_multiplies_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def cpu_multiplies_bfloat16() -> bool:
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not found:  # torch before 2.11
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def working_copy(model: PlainViT, dtype: torch.dtype) -> PlainViT:
    """`model` itself if it is in `dtype` already, else a frozen copy that is."""
    if model.pos_embed.dtype == dtype:
        return model
    copied = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    if dtype == torch.bfloat16:
        prefer_plain_attention(copied)
    return copied


def prefer_plain_attention(model: PlainViT) -> None:
    """For gradients in bfloat16 on a CPU, attention as plain products: twice as fast there as torch's fused kernel
    (docs/decisions/0007), which stays elsewhere."""
    if model.pos_embed.device.type == "cpu":
        for block in model.blocks:
            block.attn.fused_attn = False


def require_memory(model: PlainViT, job: Inversion, device: torch.device) -> None:
    """Raises `MachineError` where a shard would not fit the free memory of `device`, before anything is made.

    What passes the model at once does not grow with the batch on a CPU, and on CUDA it is halved until it fits: so it
    is the pixels with their gradient and Adam's state that must, and on CUDA a trajectory's activations.
    """
    free = free_memory(device)
    need = _pixel_bytes(model) * max(map(len, job.shards()))
    need += _activation_bytes(model) if device.type == "cuda" else 0
    if need > free:
        raise MachineError(
            f"a shard of {job.batch} images needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            f"{on(device)}: take a smaller inversion.batch."
        )


def on(device: torch.device) -> str:
    """` on cuda:0`; nothing where it goes without saying."""
    return "" if device.type == "cpu" else f" on {device}"


def free_memory(device: torch.device) -> float:
    """Bytes of `device` that this process may still take: on CUDA with what torch holds in reserve, on a CPU by the
    kernel and by its control group; infinite where nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return math.inf
    return host.free_memory()


def fitting_batch(model: PlainViT, job: Inversion, device: torch.device) -> int:
    """Sparse images of a shard whose trajectories fit the device at once; on a CPU, the paper's 128.

    It follows from the size of the device's memory, not from what is free, so that a machine always makes the same
    shards. Should it be too many, fewer pass the model at once (`Inverter.shard`).
    """
    if device.type == "cpu":
        return max(DEFAULT_IMAGES, job.images_per_trajectory)
    memory = torch.cuda.get_device_properties(device).total_memory
    trajectories = max(1, int(MEMORY_SHARE * memory / (_activation_bytes(model) + _pixel_bytes(model))))
    return max(job.images_per_trajectory, min(trajectories * job.images_per_trajectory, MOST_IMAGES))


def _activation_bytes(model: PlainViT) -> int:
    """Of a trajectory whose patches are all there."""
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    return BYTES_PER_TOKEN_WIDTH * tokens * model.embed_dim * len(model.blocks)


def _pixel_bytes(model: PlainViT) -> int:
    """The same, for its pixels."""
    height, width = model.patch_embed.img_size
    return BYTES_PER_PIXEL * 3 * height * width
