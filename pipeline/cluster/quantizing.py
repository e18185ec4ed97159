"""A quantization by the workers of a cluster, through Ray Train: they share images and batches (`calib.parallel`).

What interrupted training goes on from lies on the driver's disk, in the file that it has without Ray, and comes and
goes through an actor beside the driver: Ray Train's own checkpoints would need a disk that all machines share.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.settings import Basis, Calibration, Rounding, Training
from inversion.errors import PatchRebirthError
from inversion.images import SparseImages
from inversion.machine import settle_sums
from inversion.progress import Progress, quiet
from inversion.publish import publish
from inversion.teacher import Teacher
from pipeline.cluster.connect import Cluster, cause_of, load_ray
from pipeline.cluster.shipping import packed, unpacked

if TYPE_CHECKING:
    from calib.quantization import Quantized
    from calib.scheme import QuantScheme

FAILURES = 3
"""Of workers, in one training, after each of which all begin again from what was saved."""
POLL_S = 0.2
WHAT = "the quantization"


@dataclass(frozen=True)
class Work:
    """What is to be quantized, and how."""

    teacher: Teacher
    images: SparseImages
    scheme: QuantScheme
    basis: Basis = field(default_factory=Basis)
    calibration: Calibration = field(default_factory=Calibration)
    rounding: Rounding = field(default_factory=Rounding)
    training: Training = field(default_factory=Training)


@dataclass
class News:
    """What the workers told since it was asked for last: a step, something to save, an error, the result."""

    told: tuple[str, int, int, float] | None = None
    saved: bytes | None = None
    error: Exception | None = None
    result: Quantized | None = None


class Keeper:
    """Beside the driver, which cannot be called: it takes what workers tell, and gives them what was saved."""

    def __init__(self, saved: bytes | None) -> None:
        self.saved, self.fresh = saved, News()

    def last_saved(self) -> bytes | None:
        return self.saved

    def tell(self, news: News) -> None:
        if news.saved is not None:
            self.saved = news.saved
        for name, value in vars(news).items():
            if value is not None:
                setattr(self.fresh, name, value)

    def news(self) -> News:
        fresh, self.fresh = self.fresh, News()
        return fresh


def quantize(
    cluster: Cluster, work: Work, threads: int, checkpoint: Path, progress: Progress = quiet
) -> tuple[Quantized, int]:
    """What `calib.quantization.quantize` gives, and by how many workers: one gives the same bytes, several the same
    within rounding. Raises what a worker raised.

    A worker that dies takes nothing with it: all go on from what was saved, and so does the same call with the same
    `checkpoint`, as without a cluster.
    """
    ray, team = load_ray(), cluster.team(threads)
    here = _beside_the_driver(ray)
    with tempfile.TemporaryDirectory() as storage:
        keeper = ray.remote(**here)(Keeper).remote(checkpoint.read_bytes() if checkpoint.is_file() else None)
        shared = [ray.put(Work(**{**vars(work), "teacher": packed(work.teacher)}))]
        config = {"keeper": keeper, "work": shared, "threads": threads}
        fitting = ray.remote(max_retries=0, **here)(fit).remote(cluster, threads, team, storage, config)
        try:
            return _followed(ray, keeper, fitting, checkpoint, progress), team
        finally:  # nothing may go on when Ray is left: by an error, or by Ctrl-C
            ray.cancel(fitting, force=True)
            ray.kill(keeper)


def _beside_the_driver(ray: Any) -> dict[str, Any]:
    """Where what serves the driver runs: on its machine, whatever else works there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "scheduling_strategy": here}


def _followed(ray: Any, keeper: Any, fitting: Any, checkpoint: Path, progress: Progress) -> Quantized:
    """The result of the training `fitting`. Meanwhile its steps are told, and what it saved is put at `checkpoint`."""
    result: Quantized | None = None
    while True:
        over, _ = ray.wait([fitting], timeout=POLL_S)
        news: News = ray.get(keeper.news.remote())
        result = result or news.result
        if news.told:
            progress(*news.told)
        if news.saved is not None:
            publish(checkpoint, news.saved)
        if news.error:
            raise news.error
        if over:
            if error := ray.get(fitting):
                raise cause_of(error, WHAT)
            assert result, "Ray Train ended without an error and without a result"
            return result


def fit(cluster: Cluster, threads: int, team: int, storage: str, config: dict[str, Any]) -> Exception | None:
    """In a process of its own, so that Ray Train neither takes Ctrl-C for itself nor outlives the driver's connection:
    let the training run. Returns what ended it, where it did not end well: of what workers raised, that one is gone
    before that others miss it."""
    try:
        _trainer(cluster, threads, team, storage, config).fit()
    except Exception as error:
        failures = [*getattr(error, "worker_failures", {}).values()]
        lost = [failure for failure in failures if isinstance(failure, load_ray().exceptions.RayError)]
        return next(iter(lost + failures), error)
    return None


def _trainer(cluster: Cluster, threads: int, team: int, storage: str, config: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    each = {"GPU": 1, "CPU": 1} if cluster.gpu else {"CPU": threads}
    return TorchTrainer(
        take_part,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=team, use_gpu=cluster.gpu, resources_per_worker=each),
        run_config=RunConfig(
            name="quantize", storage_path=storage, failure_config=FailureConfig(max_failures=FAILURES)
        ),
    )


def take_part(config: dict[str, Any]) -> None:
    """In a worker: quantize with the others. Worker 0 tells the keeper what there is to tell."""
    from ray.train.torch import get_device

    from calib.parallel import ALONE, Together
    from calib.quantization import quantize as quantize_here

    ray, keeper = load_ray(), config["keeper"]
    settle_sums(config["threads"])
    workers = Together.of_process_group()
    work: Work = ray.get(config["work"][0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        if saved := ray.get(keeper.last_saved.remote()):
            path.write_bytes(saved)
        try:
            result = quantize_here(
                unpacked(work.teacher, get_device()), work.images, work.scheme, work.basis, work.calibration,
                work.rounding, work.training, _told_to(keeper, path) if workers.rank == 0 else quiet, path,
                ALONE if workers.size == 1 else workers,
            )  # fmt: skip
        except PatchRebirthError as error:  # it would come again; whatever else may be another worker's death
            ray.get(keeper.tell.remote(News(error=error)))
            raise
    if workers.rank == 0:
        ray.get(keeper.tell.remote(News(result=result)))


def _told_to(keeper: Any, path: Path) -> Progress:
    """A progress that the keeper hears, and with it what was saved at `path` since."""
    seen = path.stat().st_mtime_ns if path.exists() else 0

    def told(what: str, done: int, total: int, value: float) -> None:
        nonlocal seen
        now = path.stat().st_mtime_ns if path.exists() else 0
        saved = path.read_bytes() if now != seen else None
        seen = now
        keeper.tell.remote(News(told=(what, done, total, value), saved=saved))

    return told
