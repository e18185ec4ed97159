"""Inversion on CUDA: graphs, waiting, memory. Skipped, and so not passed, on a machine without a GPU."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from inversion.inverter import Inverter, invert_shard
from inversion.job import Inversion
from inversion.teacher import Teacher, load_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
JOB = Inversion(images=16, batch=16, iterations=40, learning_rate=0.05)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit", device="cuda")


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_a_graph_makes_the_pixels_of_single_steps(teacher: Teacher) -> None:
    """A replayed stage equals the same updates launched one by one."""
    graph, single = (Inverter(teacher, JOB).loop(0) for _ in range(2))
    graph.run(10, lambda: None)
    for _ in range(10):
        single.step()
    assert int(graph.clock) == int(single.clock) == 10
    assert torch.equal(graph.pixels, single.pixels)


@pytest.mark.usefixtures("no_waiting")
def test_a_step_does_not_wait(teacher: Teacher) -> None:
    """No update asks the device for a value."""
    loop = Inverter(teacher, JOB).loop(0)
    for _ in range(3):
        loop.step()


def test_same_seed_gives_the_same_images(teacher: Teacher) -> None:
    """Two inversions on the same GPU agree in every bit."""
    one, other = (invert_shard(teacher, JOB, 0) for _ in range(2))
    assert torch.equal(one.patches, other.patches)
    assert torch.equal(one.kept, other.kept)


def test_the_gpu_does_what_the_cpu_does(teacher: Teacher) -> None:
    """A first update in float32 moves the same pixels the same way."""
    job = replace(JOB, precision="float32")
    loops = [Inverter(each, job).loop(0) for each in (load_teacher("digits_vit"), teacher)]
    for loop in loops:
        loop.step()
    cpu, cuda = (loop.pixels.cpu() for loop in loops)
    # Adam's first step is the gradient's sign: only gradients that round to either side of zero may differ
    assert float(((cpu - cuda).abs() > 1e-3).float().mean()) < 0.01


def test_automatic_batch_fits(teacher: Teacher) -> None:
    """As many images as fit run without an out-of-memory error."""
    job = replace(JOB, images=1024, batch=0, iterations=8)
    inverter = Inverter(teacher, job)
    assert inverter.job.batch > 0
    inverter.shard(0)
