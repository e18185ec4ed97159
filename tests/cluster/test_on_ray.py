"""On a real Ray cluster of several raylets: `make cluster`. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="the extra [ray] is not installed")

from calib.quantization import quantize
from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Rounding, Training
from inversion.errors import NumericalError
from inversion.inverter import invert_into
from inversion.job import Inversion
from inversion.machine import settle_sums
from inversion.teacher import Teacher, load_teacher
from pipeline.cluster import inverting, quantizing
from pipeline.cluster.connect import Cluster, connected, load_ray
from pipeline.cluster.quantizing import Work
from tests.shell import run
from tests.small import small_teacher, sparse_images

JOB = Inversion(images=80, iterations=300, batch=8, learning_rate=0.05)
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


@pytest.fixture(scope="module")
def raylets() -> Iterator[Any]:
    """A head that works on nothing, and two machines with a CPU each."""
    load_ray()
    from ray.cluster_utils import Cluster as Raylets

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
        found = Raylets(initialize_head=True, head_node_args=head)
        for _ in range(2):
            found.add_node(num_cpus=1)
        yield found
        found.shutdown()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    settle_sums(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


def processes(word: str) -> dict[int, int]:
    """Processes of this machine whose command line has `word`, with their parents."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and word in (entry / "cmdline").read_text():
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def test_a_raylet_is_killed(raylets: Any, teacher: Teacher, tmp_path: Path) -> None:
    """Its shards are made elsewhere, and all files have the bytes of one process; so have those of a machine that
    joins."""
    invert_into(teacher, JOB, tmp_path / "alone")
    doomed = sorted(raylets.worker_nodes, key=lambda node: node.node_id)[0]
    killed: list[int] = []

    def kill_at_the_third(_what: str, done: int, _total: int, _value: float) -> None:
        if done >= 3 * JOB.iterations and not killed:
            killed.append(done)
            raylets.remove_node(doomed, allow_graceful=False)

    try:
        with connected(raylets.address) as cluster:
            assert cluster is not None
            assert cluster.slots(1) == 2
            inverting.invert_into(cluster, teacher, JOB, 1, tmp_path / "ray", kill_at_the_third)
            assert cluster.slots(1) == 1
    finally:
        raylets.add_node(num_cpus=1)
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "ray").iterdir()} == names
    assert all((tmp_path / "ray" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in names)


def work(updates: int = 40) -> Work:
    training = Training(updates=updates, batch=5, learning_rate=1e-4, precision="float32")
    return Work(
        small_teacher(), sparse_images(8), QuantScheme.parse("w4a8"), Basis(updates=3), Calibration(leaves=6),
        Rounding(), training,
    )  # fmt: skip


def alone(one: Work) -> Any:
    return quantize(one.teacher, one.images, one.scheme, one.basis, one.calibration, one.rounding, one.training)


def test_one_worker_gives_the_bytes_of_none(raylets: Any, tmp_path: Path) -> None:
    """Weights and learning curve, to the last bit."""
    want = alone(work(4))
    with connected(raylets.address) as cluster:
        assert cluster is not None
        found, workers = quantizing.quantize(cluster, work(4), 1, tmp_path / "training.safetensors")
    assert workers == 1
    assert found.training == want.training
    assert all(torch.equal(value, found.weights.tensors[name]) for name, value in want.weights.tensors.items())


def test_a_worker_that_dies_in_training_goes_on(raylets: Any, tmp_path: Path) -> None:
    """Killed in the middle, two workers take up what was saved: nothing before training is done again, and the weights
    are those of two workers whom nothing happened to, which are those of one within rounding."""
    want = alone(work())

    def trained(name: str, kill: bool) -> tuple[Any, list[str]]:
        parts: list[str] = []
        killed: list[int] = []

        def see(what: str, done: int, _total: int, _value: float) -> None:
            parts.extend([what] if parts[-1:] != [what] else [])
            if kill and not killed and what == "training" and done >= 3:
                victims = [pid for pid in processes("RayTrainWorker") if mine(pid)]
                assert len(victims) == 2
                os.kill(victims[0], signal.SIGKILL)
                killed.append(victims[0])

        with connected(raylets.address, 2) as cluster:
            assert cluster is not None
            found, workers = quantizing.quantize(cluster, work(), 1, tmp_path / name, see)
        assert (workers, bool(killed)) == (2, kill)
        return found, parts

    def mine(pid: int) -> bool:
        mothers = {node.all_processes["raylet"][0].process.pid for node in raylets.list_all_nodes()}
        return processes("RayTrainWorker").get(pid) in mothers

    whole, parts = trained("whole", kill=False)
    again, parts_again = trained("killed", kill=True)
    assert (parts.count("training"), parts_again.count("training"), parts_again[-1]) == (1, 1, "training")
    assert again.training == whole.training
    assert again.training.best.kl == pytest.approx(want.training.best.kl, rel=1e-3)
    assert all(torch.equal(value, again.weights.tensors[name]) for name, value in whole.weights.tensors.items())


def test_errors_of_workers_are_the_commands(raylets: Any, tmp_path: Path) -> None:
    """In training too: at once, as what they are."""
    one = work()
    wild = Work(**{**vars(one), "training": Training(updates=9, batch=5, learning_rate=1e30, step_learning_rate=1e30)})
    started = time.monotonic()
    with connected(raylets.address) as cluster:
        assert cluster is not None
        with pytest.raises(NumericalError, match=r"^the training loss is not finite at update \d+: lower the"):
            quantizing.quantize(cluster, wild, 1, tmp_path / "training.safetensors")
        assert time.monotonic() - started < 120


@pytest.mark.usefixtures("few_digits")
def test_a_build_is_the_same(raylets: Any, tmp_path: Path) -> None:
    """The whole command, on a cluster and without one: stages have the same digests, files the same bytes."""
    line = "build --teacher digits_vit --bits w4a8 --effort quick --arch none --threads 1 --quiet"
    sizes = "--set inversion.images=16 --set inversion.iterations=20 --set calibration.leaves=8"
    runs = []
    for name, flags in (("alone", ""), ("ray", f"--ray {raylets.address}")):
        assert run(f"{line} {sizes} {flags} --out {tmp_path / name}") in (0, 1)
        stages = json.loads((tmp_path / name / "manifest.json").read_text())["stages"]
        runs.append([(stage["name"], stage["digest"], stage["outputs"]) for stage in stages][:3])
    assert runs[0] == runs[1]


@pytest.mark.usefixtures("few_digits")
def test_a_student_is_the_same(raylets: Any, tmp_path: Path) -> None:
    """Taught by batches that a cluster makes ahead of it."""
    line = "distill --teacher digits_vit --student teacher --batches 6 --batch 8 --iterations 4 --checks 2 --quiet"
    for name, flags in (("alone", ""), ("ray", f"--ray {raylets.address}")):
        assert run(f"{line} --set threads=1 {flags} --out {tmp_path / name}") == 0
    first, second = ((tmp_path / name / "student.safetensors").read_bytes() for name in ("alone", "ray"))
    assert first == second


def test_commands_exit_as_without_a_cluster(raylets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too many workers are wrong input, too few CPUs a lack of the machine's; nothing listens at port 1."""
    build = f"build --teacher digits_vit --bits w4a8 --effort quick --out {tmp_path / 'run'} --quiet"
    for flags, code, sentence in [
        (
            f"--threads 1 --ray {raylets.address} --ray-workers 9",
            2,
            "--ray-workers 9 need 1 CPUs each, the cluster has",
        ),
        (f"--threads 64 --ray {raylets.address}", 3, f"no machine of the Ray cluster '{raylets.address}' has 64 CPUs"),
        ("--ray 127.0.0.1:1", 3, "no Ray cluster answers at '127.0.0.1:1' (Connection refused)"),
    ]:
        assert run(f"{build} {flags}") == code
        assert f"error: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_cluster_of_this_machine_alone(teacher: Teacher, tmp_path: Path) -> None:
    """`local` starts one and ends it; Ctrl-C and SIGTERM stay the command's own."""
    before = signal.getsignal(signal.SIGTERM)
    with connected("local") as cluster:
        assert signal.getsignal(signal.SIGTERM) is before
        assert isinstance(cluster, Cluster)
        inverting.invert_into(cluster, teacher, Inversion(images=8, iterations=4, batch=4), 1, tmp_path)
    assert not load_ray().is_initialized()
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 2
