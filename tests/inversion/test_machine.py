"""Device, precision and the teacher's copy for them."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from inversion import machine
from inversion.errors import InputError, MachineError
from inversion.job import Inversion
from inversion.machine import (
    choose_device,
    choose_precision,
    fitting_batch,
    require_memory,
    settle_sums,
    working_copy,
)

CPU = torch.device("cpu")


def small() -> VisionTransformer:
    model = VisionTransformer(32, 8, 3, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    return model.eval().requires_grad_(False)


def test_unknown_devices_are_refused() -> None:
    """The sentence names the device and those there are."""
    with pytest.raises(InputError, match=r"^unknown device 'tpu': take one of auto, cpu, cuda, or cuda:1 and"):
        choose_device("tpu")


def test_cuda_that_is_missing_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name it is an error that says how to go on; `auto` takes the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match=r"no CUDA device: take --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_one_of_several_devices_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is chosen has a number, so that tensors of two devices are told apart; one too high is refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(MachineError, match=r"^there is no 'cuda:2', torch sees 2 CUDA devices: take cuda:0 to cuda:1"):
        choose_device("cuda:2")
    for name in ("cpu:0", "cuda:", "cuda:x", "auto:1"):
        with pytest.raises(InputError, match=f"^unknown device '{name}'"):
            choose_device(name)


@pytest.mark.parametrize(("found", "dtype"), [
    ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
    ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
])  # fmt: skip
def test_bfloat16_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], dtype: torch.dtype
) -> None:
    """`auto` follows the processor; what is asked for by name is taken."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision("auto", CPU) == dtype
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


def test_the_teacher_itself_is_never_changed() -> None:
    """A copy in bfloat16 is frozen, and the original keeps its format and its fused attention."""
    model = small()
    copied = working_copy(model, torch.bfloat16)
    assert all(weight.dtype == torch.bfloat16 and not weight.requires_grad for weight in copied.parameters())
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert [block.attn.fused_attn for block in (*model.blocks, *copied.blocks)] == [True, True, False, False]
    assert working_copy(model, torch.float32) is model


def test_the_copy_computes_the_same_to_bfloat16s_precision() -> None:
    """Logits differ by no more than rounding to 8 bits of mantissa explains."""
    model, images = small(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want, found = model(images), working_copy(model, torch.bfloat16)(images.bfloat16()).float()
    assert float((want - found).norm() / want.norm()) < 0.03


def test_automatic_batch_follows_the_devices_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 images on a CPU; on a GPU whole trajectories, more of them the more memory there is, up to a limit."""
    model = small()
    assert fitting_batch(model, Inversion(batch=0), CPU) == 128
    assert fitting_batch(model, Inversion(batch=0, division_factor=196), CPU) == 196  # one trajectory is the least

    def images(gigabytes: float, v: int = 3) -> int:
        properties = type("Properties", (), {"total_memory": int(gigabytes * 2**30)})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        return fitting_batch(model, Inversion(batch=0, division_factor=v), torch.device("cuda"))

    assert images(0.0001) == 3
    assert images(0.02) % 3 == 0
    assert 3 < images(0.01) < images(0.02) < images(80) == machine.MOST_IMAGES


def test_a_shard_beyond_the_memory_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the batch, both sizes and the GPU; what fits is let through."""
    job, gpu = Inversion(images=4000, batch=4000, iterations=4), torch.device("cuda", 1)
    free = {CPU: 100e6, gpu: 100e6}
    monkeypatch.setattr(machine, "free_memory", lambda device: free[device])
    with pytest.raises(MachineError, match=r"a shard of 4000 images needs about 0\.2 GB, 0\.1 GB are free: take"):
        require_memory(small(), job, CPU)
    with pytest.raises(MachineError, match=r"needs about 0\.2 GB, 0\.1 GB are free on cuda:1: take a smaller inv"):
        require_memory(small(), job, gpu)
    free[gpu] = free[CPU] = 200e6
    require_memory(small(), job, CPU)
    require_memory(small(), job, gpu)


def test_a_gpu_needs_room_for_one_trajectory_beside_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pixels stay on it; what passes the model at once is halved until it fits."""
    job, gpu = Inversion(images=4, batch=4, iterations=4), torch.device("cuda", 0)
    pixels, tokens = 64 * 3 * 32 * 32, 2 * 24 * 17 * 32 * 2
    monkeypatch.setattr(machine, "free_memory", lambda _: pixels + tokens)
    require_memory(small(), job, gpu)
    monkeypatch.setattr(machine, "free_memory", lambda _: pixels + tokens - 1)
    require_memory(small(), job, CPU)
    with pytest.raises(MachineError, match="on cuda:0"):
        require_memory(small(), job, gpu)


def test_free_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CPU more than nothing and less than a petabyte, or unknown; of a GPU what the driver has, and what torch
    keeps from earlier tensors; of anything else nobody knows."""
    assert machine.free_memory(CPU) > 1e6
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 + device.index, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10)
    assert machine.free_memory(torch.device("cuda", 1)) == 101 + 20
    assert machine.free_memory(torch.device("meta")) == float("inf")


def test_sums_of_picked_rows_are_the_same_every_time() -> None:
    """Gradients of rows that several threads add to: torch's own way gives other bits at nearly every call."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    rows = torch.randn(1, 197, 96, requires_grad=True)
    picked = torch.arange(197).expand(128, -1)
    factors = torch.sin(torch.arange(128 * 197 * 96.0)).view(128, 197, 96)

    def gradient() -> torch.Tensor:
        (found,) = torch.autograd.grad((rows[0][picked] * factors).sum(), rows)
        return found

    try:
        assert settle_sums(2) == torch.get_num_threads() == 2
        assert settle_sums() == 2
        once = gradient()
        assert all(torch.equal(gradient(), once) for _ in range(4))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
