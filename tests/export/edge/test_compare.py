from __future__ import annotations

import json
import math

import numpy as np
import pytest

from export.edge.compare import compare, wilson_interval
from inversion.errors import InputError

LOG3 = math.log(3)
# softmax 3/4, 1/4 and its mirror
LEFT, RIGHT = [LOG3, 0.0], [0.0, LOG3]


def test_equal_logits_are_perfect() -> None:
    """A model against itself: full agreement, no divergence, infinite SQNR, cosine 1; JSON has no infinity."""
    logits = np.random.default_rng(0).standard_normal((20, 10))
    found = compare(logits, logits)
    assert (found.n, found.agreement, found.kl, found.sqnr_db) == (20, 1.0, 0.0, math.inf)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.kl_interval == (0.0, 0.0)
    assert found.to_dict()["sqnr_db"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_agreement_and_kl_by_hand() -> None:
    """KL(teacher || candidate) in nats: 3/4 ln(3) + 1/4 ln(1/3) = ln(3) / 2 where the classes swap."""
    found = compare([LEFT, LEFT, LEFT, RIGHT], [LEFT, RIGHT, LEFT, RIGHT])
    assert found.agreement == 0.75
    assert found.kl == pytest.approx(LOG3 / 8, rel=1e-12)
    # one of four numbers is ln(3)/2 = a: sample variance a^2 / 4, half-width 1.96 a / 4
    assert found.kl_interval[0] == 0.0
    assert found.kl_interval[1] == pytest.approx(LOG3 / 8 + 1.959964 * LOG3 / 8, rel=1e-6)


def test_kl_is_from_teacher_to_candidate() -> None:
    """The direction is the teacher's expectation, and the shift of a row's logits does not matter."""
    teacher, candidate = np.array([[math.log(9), 0.0]]), np.array([[0.0, 0.0]])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert compare(teacher, candidate).kl == pytest.approx(expected, rel=1e-12)
    assert compare(teacher + 1000, candidate - 1000).kl == pytest.approx(expected, rel=1e-9)


def test_sqnr_and_cosine_by_hand() -> None:
    """SQNR is the logits' energy over the difference's: 25 / 1 is 13.98 dB; cosine is a mean over pictures."""
    found = compare([[3.0, 4.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 1.0]])
    assert found.sqnr_db == pytest.approx(10 * math.log10(25), rel=1e-12)
    assert found.cosine == pytest.approx(0.5)
    assert compare([[3.0, 4.0]], [[4.0, 3.0]]).cosine == pytest.approx(24 / 25)


@pytest.mark.parametrize("n", [1, 2, 37, 400, 50_000])
def test_wilson_interval_is_the_formula(n: int) -> None:
    """Centre and half-width of Wilson (1927), kept within 0 and 1."""
    z = 1.959963984540054
    for successes in {0, 1, n // 3, n - 1, n}:
        rate = successes / n
        centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
        expected = (max(centre - half, 0), min(centre + half, 1))
        assert wilson_interval(successes, n) == pytest.approx(expected, abs=1e-12)


def test_wilson_interval_by_hand() -> None:
    """Wilson's 95% interval of 8 in 10 is 0.490 to 0.943, of 10 in 10 it is 0.722 to 1."""
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert compare([LEFT] * 10, [LEFT] * 8 + [RIGHT] * 2).agreement_interval == wilson_interval(8, 10)


def test_accuracy_by_hand() -> None:
    """Of 5 pictures the teacher gets 4, the candidate 3 (2 lost, 1 won): the drop is 1/5."""
    eye = 10 * np.eye(8)
    labels = [0, 1, 2, 3, 4]
    found = compare(eye[[0, 1, 2, 3, 5]], eye[[0, 1, 3, 4, 4]], labels)
    assert (found.teacher_top1, found.top1, found.top1_drop) == (0.8, 0.6, pytest.approx(0.2))
    # Bonett and Price: p = 3/7, q = 2/7, sd = sqrt((5/7 - 1/49) / 7)
    half = 1.959964 * math.sqrt((5 / 7 - 1 / 49) / 7)
    assert found.top1_drop_interval == pytest.approx((1 / 7 - half, 1 / 7 + half), abs=1e-6)


def test_top5_counts_the_label_among_five() -> None:
    """A label of rank 5 is found and one of rank 6 is not; equal logits rank by class, as argmax does."""
    logits = np.arange(8.0)[::-1].reshape(1, -1).repeat(2, 0)
    assert compare(logits, logits, [4, 5]).top5 == 0.5
    flat = np.zeros((2, 8))
    found = compare(flat, flat, [0, 5])
    assert (found.top1, found.top5) == (0.5, 0.5)


def test_without_labels_there_is_no_accuracy() -> None:
    """Accuracy stays None, in the dataclass and in JSON."""
    found = compare([LEFT], [RIGHT])
    assert found.top1 is None
    assert found.to_dict()["top1_drop_interval"] is None


def test_one_picture_bounds_no_mean() -> None:
    """The KL interval of a single picture is open to infinity, None in JSON."""
    found = compare([LEFT], [RIGHT])
    assert found.kl_interval == (0.0, math.inf)
    assert found.to_dict()["kl_interval"] == [0.0, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    """The message says whose logits, and of how many pictures."""
    with pytest.raises(InputError, match="candidate logits of 1 of 2 pictures are not finite"):
        compare([LEFT, LEFT], [LEFT, [bad, 0.0]])
    with pytest.raises(InputError, match="teacher logits of 2 of 2 pictures are not finite"):
        compare([[bad, 0.0]] * 2, [LEFT, LEFT])


def test_shapes_that_differ_are_refused() -> None:
    """Other pictures, other classes, no pictures and flat logits are refused with their shapes."""
    with pytest.raises(InputError, match=r"teacher logits \(2, 2\) and candidate logits \(1, 2\) differ in shape"):
        compare([LEFT, LEFT], [LEFT])
    with pytest.raises(InputError, match=r"teacher logits have the shape \(2,\)"):
        compare(LEFT, LEFT)
    with pytest.raises(InputError, match=r"candidate logits have the shape \(0, 2\)"):
        compare(np.zeros((1, 2)), np.zeros((0, 2)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], r"labels span 0\.\.2 but the teacher has classes 0\.\.1"),
        ([-1, 0], r"labels span -1\.\.0 but"),
        ([0], r"labels are int64 \(1,\) for 2 pictures"),
        ([0.0, 1.0], r"labels are float64 \(2,\) for 2 pictures"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[float], message: str) -> None:
    """Labels are whole numbers, one a picture, each a class of the teacher."""
    with pytest.raises(InputError, match=message):
        compare([LEFT, LEFT], [LEFT, LEFT], labels)
