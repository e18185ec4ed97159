"""How faithful a candidate's logits are to the teacher's. Runs without torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inversion.errors import InputError

Z95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution

Interval = tuple[float, float]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A candidate against its teacher on `n` pictures; every interval is of 95%, every rate in 0..1.

    - `agreement`  share of pictures with the same top-1 class, with Wilson's interval
    - `kl`         mean KL(teacher || candidate) of the softmaxes, in nats, with the normal interval
    - `sqnr_db`    10 log10 of the teacher's logit energy over the difference's; infinite where they are equal
    - `cosine`     mean cosine between the two logit vectors of a picture
    - `teacher_confidence`  mean probability that the teacher gives its own answer

    With labels also `teacher_top1` with Wilson's interval, `top1`, `top5`, and `top1_drop` = teacher_top1 - top1, with
    the paired interval of Bonett and Price (2012), which keeps a width where no picture differs; and `chance`, the
    top-1 of guesses among the classes that the labels name, two at least.
    """

    n: int
    agreement: float
    agreement_interval: Interval
    kl: float
    kl_interval: Interval
    sqnr_db: float
    cosine: float
    teacher_confidence: float
    teacher_top1: float | None = None
    teacher_top1_interval: Interval | None = None
    chance: float | None = None
    top1: float | None = None
    top5: float | None = None
    top1_drop: float | None = None
    top1_drop_interval: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is infinite, or needs labels and had none, is None."""
        return {key: _json_value(value) for key, value in asdict(self).items()}


def compare(
    teacher_logits: npt.ArrayLike, candidate_logits: npt.ArrayLike, labels: npt.ArrayLike | None = None
) -> Comparison:
    """Compare logits [M, classes], both of the same pictures; `labels` [M] are class indices.

    Raises `InputError` for shapes that differ, numbers that are not finite, or labels out of range.

        found = compare(teacher.logits(images), answer(runtime, images))
        print(found.agreement, found.kl)
    """
    teacher, candidate = _logits(teacher_logits, "teacher"), _logits(candidate_logits, "candidate")
    if teacher.shape != candidate.shape:
        raise InputError(
            f"teacher logits {teacher.shape} and candidate logits {candidate.shape} differ in shape: "
            "compare the same pictures and classes."
        )
    same = teacher.argmax(1) == candidate.argmax(1)
    divergence = _kl(teacher, candidate)
    return Comparison(
        n=len(teacher),
        agreement=float(same.mean()),
        agreement_interval=wilson_interval(int(same.sum()), len(same)),
        kl=float(divergence.mean()),
        kl_interval=_mean_interval(divergence),
        sqnr_db=_sqnr_db(teacher, candidate),
        cosine=float(_cosine(teacher, candidate).mean()),
        teacher_confidence=float(np.exp(_log_softmax(teacher).max(1)).mean()),
        **({} if labels is None else _accuracy(teacher, candidate, _labels(labels, *teacher.shape))),
    )


def kl_of_each(teacher_logits: npt.ArrayLike, candidate_logits: npt.ArrayLike) -> Array:
    """KL(teacher || candidate) of each of M pictures, in nats: logits [M, classes] of both give [M]."""
    return _kl(_logits(teacher_logits, "teacher"), _logits(candidate_logits, "candidate"))


def confidences(logits: npt.ArrayLike) -> Array:
    """Probability [M] of each picture's own answer, of logits [M, classes]."""
    found: Array = np.exp(_log_softmax(_logits(logits, "given")).max(1))
    return found


def wilson_interval(successes: int, n: int) -> Interval:
    """95% interval of a rate (Wilson, 1927): its formula, as SciPy, which has it too, is 113 MB on a device."""
    rate, squared = successes / n, Z95**2
    middle = (2 * n * rate + squared) / (2 * (n + squared))
    half = Z95 / (2 * (n + squared)) * math.sqrt(4 * n * rate * (1 - rate) + squared)
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half


def _logits(values: npt.ArrayLike, whose: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{whose} logits have the shape {array.shape}: give [pictures, classes], none of them 0.")
    bad = int((~np.isfinite(array)).any(1).sum())
    if bad:
        raise InputError(f"{whose} logits of {bad} of {len(array)} pictures are not finite: that model is broken.")
    return array


def _labels(values: npt.ArrayLike, n: int, classes: int) -> npt.NDArray[np.int64]:
    labels = np.asarray(values)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels are {labels.dtype} {labels.shape} for {n} pictures: give one whole number each.")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels span {labels.min()}..{labels.max()} but the teacher has classes 0..{classes - 1}.")
    return labels.astype(np.int64)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _kl(teacher: Array, candidate: Array) -> Array:
    """KL(teacher || candidate) of each picture [M], nats; rounding may not make it negative."""
    p, q = _log_softmax(teacher), _log_softmax(candidate)
    return np.maximum((np.exp(p) * (p - q)).sum(1), 0.0)


def _mean_interval(values: Array) -> Interval:
    """Normal interval of the mean of numbers that are never negative; one number alone bounds nothing."""
    if len(values) < 2:
        return 0.0, math.inf
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(float(values.mean()) - half, 0.0), float(values.mean()) + half


def _sqnr_db(teacher: Array, candidate: Array) -> float:
    signal, noise = float((teacher**2).sum()), float(((teacher - candidate) ** 2).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _cosine(teacher: Array, candidate: Array) -> Array:
    """[M]; a vector of zeros has cosine 1 with another of zeros and 0 with anything else."""
    norms = np.linalg.norm(teacher, axis=1) * np.linalg.norm(candidate, axis=1)
    equal = (teacher == candidate).all(1)
    return np.where(norms > 0, (teacher * candidate).sum(1) / np.where(norms > 0, norms, 1), equal.astype(float))


def _accuracy(teacher: Array, candidate: Array, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    was_right, rank = _rank(teacher, labels) == 0, _rank(candidate, labels)
    right = rank == 0
    lost, won = int((was_right & ~right).sum()), int((right & ~was_right).sum())
    return {
        "teacher_top1": float(was_right.mean()),
        "teacher_top1_interval": wilson_interval(int(was_right.sum()), len(labels)),
        "chance": 1 / max(2, len(np.unique(labels))),
        "top1": float(right.mean()),
        "top5": float((rank < 5).mean()),
        "top1_drop": (lost - won) / len(labels),
        "top1_drop_interval": _paired_interval(lost, won, len(labels)),
    }


def _rank(logits: Array, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many classes [M] come before the label; of equal logits the lower class is first, as argmax has it."""
    own = np.take_along_axis(logits, labels[:, None], 1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def _paired_interval(lost: int, won: int, n: int) -> Interval:
    """95% interval of (lost - won) / n for pairs (Bonett and Price, 2012): Wald's with one more pair of each kind."""
    p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(p - q - half, -1.0), min(p - q + half, 1.0)


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
