"""Several workers share the images and end as one alone would, within rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Generator

from calib import training_checkpoint
from calib.fisher import answer_gradients
from calib.lessons import Lessons
from calib.parallel import ALONE, Alone, Workers, part_of, parts_of
from calib.quantization import Quantized, _identity, quantize
from calib.scheme import QuantScheme
from calib.settings import Basis, Calibration, Training
from inversion.errors import InputError
from inversion.progress import Progress, quiet
from tests.small import small_teacher, sparse_images, views
from tests.team import as_team

SHORT = Training(updates=6, batch=5, learning_rate=1e-4, precision="float32")
SPARSE = replace(SHORT, views="sparse", crops=False, feature_weight=0.0, learning_rate=5e-4)


def result(
    workers: Workers,
    bits: str = "w4a8",
    method: str = "fisher",
    training: Training = SHORT,
    at: Path | None = None,
    progress: Progress = quiet,
) -> Quantized:
    calibration = Calibration(method=method, leaves=6)  # type: ignore[arg-type] # one of its names
    return quantize(
        small_teacher(), sparse_images(8), bits, Basis(updates=3), calibration, training=training, progress=progress,
        checkpoint=at, workers=workers,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "bits", "method", "training"), [(2, "w4a8", "fisher", SHORT), (3, "w4a4", "auto", SPARSE)]
)
def test_several_workers_end_as_one(tmp_path: Path, size: int, bits: str, method: str, training: Training) -> None:
    """Ranges, rounding and training give one worker's integers and steps, and its learning curve; what all workers have
    is equal to the last bit. Sums in another order are all that differs: 1e-4 is far above them, and far below what a
    forgotten part of the images does."""
    one = result(ALONE, bits, method, training)
    first, *others = as_team(size, tmp_path, lambda workers: result(workers, bits, method, training))
    assert first.training.best_update > 0
    assert (first.method, list(first.tried)) == (one.method, list(one.tried))
    compared = [
        *zip(first.tried.values(), one.tried.values(), strict=True),
        *((ours, theirs) for (_, ours), (_, theirs) in zip(first.training.history, one.training.history, strict=True)),
    ]
    assert all(ours.kl == pytest.approx(theirs.kl, rel=1e-4) for ours, theirs in compared)
    for name, value in one.weights.tensors.items():
        torch.testing.assert_close(first.weights.tensors[name], value, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(other.weights.tensors[name], first.weights.tensors[name]) for other in others), name


def test_training_of_several_workers_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, the team takes up what worker 0 saved, and ends with the bytes that it would have had."""
    monkeypatch.setattr(training_checkpoint, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(training_checkpoint, "LARGEST_SHARE", 1e9)

    def updates(workers: Workers, last: int, path: Path) -> tuple[list[int], Quantized | None]:
        done: list[int] = []

        def see(what: str, count: int, _total: int, _value: float) -> None:
            done.extend([count] if what == "training" else [])
            if done and done[-1] == last:
                raise KeyboardInterrupt

        try:
            return done, result(workers, at=path, progress=see)
        except KeyboardInterrupt:
            return done, None

    whole, _ = as_team(2, tmp_path, result)
    stopped = as_team(2, tmp_path, lambda workers: updates(workers, 4, tmp_path / str(workers.rank)))
    assert [done for done, _ in stopped] == [[1, 2, 3, 4]] * 2
    assert not (tmp_path / "1").exists()
    (done, again), _ = as_team(2, tmp_path, lambda workers: updates(workers, 0, tmp_path / "0"))
    assert done == [4, 5, 6]
    assert again is not None
    assert again.training == whole.training
    assert all(torch.equal(value, again.weights.tensors[name]) for name, value in whole.weights.tensors.items())
    one, two = (_identity(small_teacher(), sparse_images(2), QuantScheme.parse("w4a8"), n, SHORT) for n in (1, 2))
    assert one != two  # another number of workers rounds otherwise: what these saved is not taken up


@dataclass(frozen=True)
class Member(Alone):
    """Of a team whose others are silent."""


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_image_is_one_workers(size: int) -> None:
    """Shares follow each other, cover each group, and differ by an image at most."""
    seen = views(5, "sparse")  # groups of 5 and of 10
    parts = [list(parts_of(seen, Member(rank, size))) for rank in range(size)]
    for number, (patches, kept) in enumerate(seen.groups):
        mine = [part[number] for part in parts]
        assert torch.equal(torch.cat([own.groups[0][0] for _, own, _ in mine if own.groups]), patches)
        assert all(before + len(own) + behind == len(kept) for before, own, behind in mine)
        counts = [len(own) for _, own, _ in mine]
        assert max(counts) - min(counts) <= 1


def test_each_worker_draws_the_answers_that_one_would() -> None:
    """The gradients of an image are those of the same drawn answers, whoever sees it."""
    model, images = small_teacher().model, views(5, "sparse")
    module = {"head": model.head}

    def gradients(workers: Workers) -> torch.Tensor:
        found = answer_gradients(model, images, module, "outputs", Generator().manual_seed(3), workers)
        return torch.cat([part["head"][1] for part in found], 1)

    alone = gradients(ALONE)
    first, second = (gradients(Member(rank, 2)) for rank in range(2))
    # of each of the two groups the first worker sees the first half
    small, large = len(images.groups[0][1]), len(images.groups[1][1])
    halves = [-(-small // 2), -(-large // 2)]
    together = torch.cat([first[:, : halves[0]], second[:, : small - halves[0]], first[:, halves[0] :],
                          second[:, small - halves[0] :]], 1)  # fmt: skip
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_too_many_workers_are_refused() -> None:
    """No worker is left without an image: the sentence says how many there are."""
    with pytest.raises(InputError, match=r"^4 workers share 3 images: take fewer workers, or more images\.$"):
        part_of(views(3), Member(0, 4))
    with pytest.raises(InputError, match=r"^4 workers share batches of 3 images: take fewer workers\.$"):
        Lessons(small_teacher().model, views(3), SHORT, Member(0, 4))
    Lessons(small_teacher().model, views(3), replace(SHORT, updates=0), Member(0, 4))  # nothing is trained
