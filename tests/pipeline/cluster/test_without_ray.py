"""What the room of the cluster does by itself, with a Ray of one process; tests/cluster has the real one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calib.distillation.distiller import Streamed
from inversion.errors import InputError, MachineError, NumericalError
from inversion.inverter import Inverter, invert_into
from inversion.job import Inversion
from inversion.teacher import Teacher, load_teacher
from pipeline.cli import Stopped
from pipeline.cluster import connect, inverting
from pipeline.cluster.connect import Cluster, cause_of, connected
from pipeline.cluster.inverting import Ahead
from pipeline.cluster.quantizing import Keeper, News
from tests.shell import run

JOB = Inversion(images=80, iterations=4, batch=8, learning_rate=0.05)
LINE = "invert --teacher digits_vit --images 8 --iterations 2 --out images"


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback of another machine")
        self.cause = cause


class Ray:
    """Runs a task when it is waited for, the latest first: tasks end in any order."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, cpus: float = 2) -> None:
        self.cpus, self.most, self.tasks, self.options = cpus, 0, {}, {}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": False, "Resources": {"CPU": 99}}]

    def put(self, value: Any) -> Any:
        return SimpleNamespace(value=value)

    def remote(self, **options: Any) -> Any:
        self.options = options

        def begin(function: Any, *given: Any) -> object:
            task = object()
            self.tasks[task] = lambda: function(*given)
            self.most = max(self.most, len(self.tasks))
            return task

        return lambda function: SimpleNamespace(remote=lambda *given: begin(function, *given))

    def shutdown(self) -> None:
        pass

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1
        return tasks[-1:], tasks[:-1]

    def get(self, what: Any) -> Any:
        if isinstance(what, SimpleNamespace):
            return what.value
        try:
            return self.tasks.pop(what)()
        except Exception as error:
            raise RayTaskError(error) from error


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    fake = Ray()
    for module in (connect, inverting):
        monkeypatch.setattr(module, "load_ray", lambda: fake)
    yield fake
    inverting._ready.clear()


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


CLUSTER = Cluster("local", gpu=False)


def test_shards_have_the_bytes_of_one_process(ray: Ray, teacher: Teacher, tmp_path: Path) -> None:
    """Whoever makes them, in whatever order; at most twice as many are under way as run at once; what is there is not
    made again."""
    invert_into(teacher, JOB, tmp_path / "alone")
    told: list[int] = []
    paths = inverting.invert_into(
        CLUSTER, teacher, JOB, 1, tmp_path / "ray", lambda _what, done, _total, _value: told.append(done)
    )
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "ray").iterdir()} == names
    assert len(paths) == 10
    assert all((tmp_path / "ray" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in names)
    assert told == [4 * number for number in range(1, 11)]
    assert ray.most == 4
    environment = {"env_vars": inverting.ENVIRONMENT}
    assert ray.options == {"num_cpus": 1, "max_retries": inverting.RETRIES, "runtime_env": environment}
    ray.most = 0
    paths[3].unlink()
    inverting.invert_into(CLUSTER, teacher, JOB, 1, tmp_path / "ray")
    assert ray.most == 1
    assert paths[3].read_bytes() == (tmp_path / "alone" / paths[3].name).read_bytes()


@pytest.mark.parametrize("keep", [False, True])
def test_batches_come_in_order_and_ahead(ray: Ray, teacher: Teacher, tmp_path: Path, keep: bool) -> None:
    """A learner gets what it would get without a cluster, from any batch on, while so many of the next are under way
    as are allowed."""
    ahead = Ahead(CLUSTER, teacher, JOB, 1, tmp_path / "ahead" if keep else None)
    streamed = Streamed(Inverter(teacher, JOB), tmp_path / "streamed" if keep else None)
    assert len(ahead) == len(streamed)
    for number in range(3, len(streamed)):
        assert ahead.batch(number).sha256() == streamed.batch(number).sha256()
        assert len(ray.tasks) == min(4, len(streamed) - number - 1)
    assert ray.most == 4
    if keep:
        again = Ahead(CLUSTER, teacher, JOB, 1, tmp_path / "ahead")
        assert again.batch(5).sha256() == streamed.batch(5).sha256()
        assert not ray.tasks


@pytest.mark.usefixtures("ray")
def test_an_error_of_a_worker_is_the_commands(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back as what it was, with its sentence and exit code, and its claim is released."""

    def fail(*_: object) -> None:
        raise NumericalError("the loss of shard 3 is not finite.")

    monkeypatch.setattr(Inverter, "shard", fail)
    with pytest.raises(NumericalError, match=r"^the loss of shard 3 is not finite\.$"):
        inverting.invert_into(CLUSTER, teacher, JOB, 1, tmp_path)
    assert not list(tmp_path.glob("*.claim"))


@pytest.mark.usefixtures("ray")
def test_a_lost_machine_is_said_in_a_sentence() -> None:
    """Only where Ray gave up, and also behind an error of a task."""
    for error in (RayError(), RayTaskError(RayError())):
        found = cause_of(error, "shard 3")
        assert isinstance(found, MachineError)
        assert str(found).startswith("shard 3 came to no end on the cluster (RayError): ")
    assert isinstance(cause_of(KeyError("x"), "shard 3"), KeyError)


@pytest.mark.usefixtures("ray")
def test_a_signal_within_ray_is_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its handler raised while Ray's compiled code ran comes out as it was, and not as a fault of the program."""
    broken = SystemError("returned a result with an exception set")
    broken.__cause__ = Stopped(signal.SIGTERM)
    assert cause_of(broken, "shard 3") is broken.__cause__
    monkeypatch.setattr(connect, "_join", lambda *_: None)
    with pytest.raises(Stopped), connected("local", device="cpu"):
        raise broken
    alone = SystemError("of another kind")
    assert cause_of(alone, "shard 3") is alone


@pytest.mark.usefixtures("ray")
def test_work_that_would_wait_for_ever_is_refused() -> None:
    """What no machine has room for, and more workers than the machines that are alive have."""
    with pytest.raises(MachineError, match=r"^no machine of the Ray cluster 'local' has 3 CPUs: take a smaller"):
        CLUSTER.require_room(3)
    with pytest.raises(MachineError, match="has a GPU: add one that has, or take --device cpu"):
        Cluster("local", gpu=True).team(1)
    with pytest.raises(InputError, match=r"^--ray-workers 3 need 1 CPUs each, the cluster has room for 2: take at"):
        Cluster("local", gpu=False, trainers=3).team(1)
    assert (CLUSTER.team(1), Cluster("local", gpu=False, trainers=2).team(1), CLUSTER.slots(2)) == (1, 2, 1)


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ("--ray local", 3, "Ray is not installed here (ray is missing): pip install 'patch-rebirth[ray]'."),
        ("--ray ray://head:10001", 2, "--ray ray://head:10001 is a Ray Client's address: run the command on a machine"),
        ("--ray local --shard 0/4", 2, "--ray local makes all shards, --shard 0/4 some of them: give one of both."),
    ],
)
def test_refusals(
    flags: str, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Before any work, in one sentence; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(f"{LINE} {flags}") == code
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not list(tmp_path.iterdir())


def test_workers_need_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--ray-workers without --ray, and none of them."""
    line = f"quantize --images {tmp_path} --teacher digits_vit --bits w4a8 --out {tmp_path / 'file'}"
    for flags, sentence in (("--ray-workers 2", "add --ray local"), ("--ray-workers 0 --ray local", "at least 1")):
        assert run(f"{line} {flags}") == 2
        assert sentence in capsys.readouterr().err


def test_the_keeper_gives_news_once_and_what_was_saved_always() -> None:
    """A step that was told later stands for those before it; nothing else that was told is lost."""
    keeper = Keeper(b"before")
    assert keeper.last_saved() == b"before"
    assert keeper.news() == News()
    keeper.tell(News(told=("ranges", 1, 2, 0.0), saved=b"now"))
    keeper.tell(News(told=("ranges", 2, 2, 0.0)))
    assert keeper.news() == News(told=("ranges", 2, 2, 0.0), saved=b"now")
    assert (keeper.news(), keeper.last_saved()) == (News(), b"now")
