"""The Ray cluster of a command: reached, looked at, and left."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inversion.errors import InputError, MachineError, PatchRebirthError

if TYPE_CHECKING:
    import torch

LOCAL = "local"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to Ray's makers
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # by itself it asks 20 times, 40 s each, for a cluster that is gone
}
"""What Ray reads when it is loaded, where nothing else was said."""
KNOCK_S = 5.0


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. Work takes a GPU each with `gpu`, else so many CPUs as it has
    threads. `trainers` is how many workers train one model together: 0 leaves it to the cluster."""

    address: str
    gpu: bool
    trainers: int = 0

    def slots(self, threads: int) -> int:
        """How many pieces of work of so many `threads` run at once, on the machines that are there now."""
        machines = [node["Resources"] for node in load_ray().nodes() if node["Alive"]]
        if self.gpu:
            return sum(int(machine.get("GPU", 0)) for machine in machines)
        return sum(int(machine.get("CPU", 0)) // threads for machine in machines)

    def require_room(self, threads: int) -> None:
        """Raises `MachineError` where no machine has room for a piece of work: it would wait for ever."""
        if not self.slots(threads):
            wanted, mend = f"{threads} CPUs", "take a smaller --threads, or add a larger machine"
            if self.gpu:
                wanted, mend = "a GPU", "add one that has, or take --device cpu"
            raise MachineError(f"no machine of the Ray cluster {self.address!r} has {wanted}: {mend}.")

    def needs(self, threads: int) -> dict[str, Any]:
        """What Ray is to keep free for a piece of work."""
        return {"num_gpus": 1} if self.gpu else {"num_cpus": threads}

    def team(self, threads: int) -> int:
        """How many workers train together: a GPU each, or one where there are none. Raises `InputError` where more were
        asked for than the cluster has room for."""
        self.require_room(threads)
        slots = self.slots(threads)
        if self.trainers > slots:
            each = "a GPU each" if self.gpu else f"{threads} CPUs each"
            raise InputError(
                f"--ray-workers {self.trainers} need {each}, the cluster has room for {slots}: take at most {slots}."
            )
        return self.trainers or (slots if self.gpu else 1)


@contextmanager
def connected(address: str | None, trainers: int | None = None, device: str = "auto") -> Iterator[Cluster | None]:
    """The cluster at `address` while the context lasts; `local` is one on this machine alone, started and ended here.
    Without an address there is none.

    Raises `MachineError` where Ray is not installed or no cluster answers.
    """
    if trainers is not None and trainers < 1:
        raise InputError(f"--ray-workers must be at least 1, not {trainers}.")
    if address is None:
        if trainers is not None:
            raise InputError(f"--ray-workers {trainers} are workers of a Ray cluster: add --ray local, or its address.")
        yield None
        return
    if address.startswith("ray://"):
        raise InputError(
            f"--ray {address} is a Ray Client's address: run the command on a machine of the cluster, with --ray auto."
        )
    ray = load_ray()
    _join(ray, address)
    try:
        gpu = device.startswith("cuda") or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
        yield Cluster(address, gpu, trainers or 0)
    except SystemError as error:
        raise cause_of(error, "the command") from None
    finally:
        ray.shutdown()


def place_of(device: str, cluster: Cluster | None) -> torch.device:
    """Where this process works: with a cluster, `cuda` is asked of that, and here is taken what there is."""
    from inversion.machine import choose_device

    return choose_device("auto" if cluster and cluster.gpu else device)


def load_ray() -> Any:
    """The package. Raises `MachineError` where it is missing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MachineError(
            f"Ray is not installed here ({error.name} is missing): pip install 'patch-rebirth[ray]'."
        ) from None
    return ray


def _join(ray: Any, address: str) -> None:
    """Connect, and leave signals as they were: Ray takes SIGTERM for itself where it starts a machine."""
    _require_open(address)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    here = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
        # what it says of lost workers would go to stdout, which is the command's; Ray has no public switch for it
        ray._private.worker._worker_logs_enabled = False
    except Exception as error:  # Ray raises it by that name where a machine is slow to start
        raise _no_cluster(address, str(error).strip().split("\n")[0].rstrip(". ")) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_open(address: str) -> None:
    """Raises `MachineError` where nothing listens at HOST:PORT: Ray itself would ask for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    if not port.isdecimal():
        raise InputError(f"--ray {address!r} is no address: write auto, local, or HOST:PORT as in 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from None


def _no_cluster(address: str, why: str) -> MachineError:
    return MachineError(
        f"no Ray cluster answers at {address!r} ({why}): start one with `ray start --head`, or take --ray local."
    )


def cause_of(error: BaseException, what: str) -> BaseException:
    """What to raise for an error that Ray reports of `what`: the worker's own error, without Ray's wrapping, or where
    its machine was lost too often, a sentence; what a signal raised while Ray's compiled code ran."""
    if isinstance(error, SystemError) and error.__cause__:
        return error.__cause__
    ray = load_ray()
    if isinstance(error, ray.exceptions.RayTaskError):
        cause: BaseException = error.cause
        return cause_of(cause, what) if isinstance(cause, ray.exceptions.RayError) else cause
    if isinstance(error, PatchRebirthError) or not isinstance(error, ray.exceptions.RayError):
        return error
    kind = type(error).__name__
    return MachineError(
        f"{what} came to no end on the cluster ({kind}): look at its machines and their memory, then run the same "
        "command again."
    )
