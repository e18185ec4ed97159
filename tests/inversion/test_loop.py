"""One batch under optimisation: gradients, memory, and steps that wait for nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from inversion import loop as inversion_loop
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.loop import Loop
from inversion.sparse import patchify, unpatchify
from inversion.teacher import Teacher
from inversion.variation import variation
from tests.inversion.test_inverter import tiny_teacher

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"
JOB = Inversion(method="dmi", images=3, batch=3, iterations=8, tv_weight=0.02, precision="float32")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher(channels=3)


def started(teacher: Teacher, job: Inversion) -> Loop:
    return Inverter(teacher, job).loop(0)


def test_gradient_is_the_dense_one_when_nothing_is_removed(teacher: Teacher) -> None:
    """With all patches active, pixels get the gradient of timm's own forward on the rolled and flipped picture."""
    loop = started(teacher, JOB)
    for _ in range(4):
        down, right, flip = loop.offsets[int(loop.clock)].tolist()
        # what whole patches become of a shift by fractions is not a roll: round to whole ones
        down, right = 8 * round(down / 8), 8 * round(right / 8)
        loop.offsets[int(loop.clock)] = torch.tensor([down, right, flip])
        picture = loop.pictures().clone().requires_grad_()
        seen = picture.roll((down, right), (2, 3))
        loss = F.cross_entropy(teacher.model(seen.flip(3) if flip else seen), loop.labels, reduction="sum")
        (want,) = torch.autograd.grad(loss, picture)
        want += JOB.tv_weight * variation(picture.detach())[1]
        loop.step()
        found = unpatchify(loop.of_strip(cast(Tensor, loop.pixels.grad)), (4, 4), (8, 8))
        # float32 sums in another order, through two layers
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))


def test_gradient_of_fractional_shifts_reaches_the_neighbours(teacher: Teacher) -> None:
    """After a shift by 3 pixels, a pixel gets its gradient through whichever active patch then holds it."""
    loop = started(teacher, replace(JOB, tv_weight=0.0))
    loop.offsets[0] = torch.tensor([3, -2, 1])
    picture = loop.pictures().clone().requires_grad_()
    logits = teacher.model(picture.roll((3, -2), (2, 3)).flip(3))
    (want,) = torch.autograd.grad(F.cross_entropy(logits, loop.labels, reduction="sum"), picture)
    loop.step()
    # float32 sums in another order, through two layers
    found = unpatchify(loop.of_strip(cast(Tensor, loop.pixels.grad)), (4, 4), (8, 8))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))


def test_adams_state_is_that_of_active_patches_only(teacher: Teacher) -> None:
    """After a detachment, moments are packed: those of the patches that stay, unchanged."""
    loop = started(teacher, replace(JOB, method="pri", images=6, batch=6, division_factor=2))
    loop.step()
    before = {key: loop.of_strip(loop.optimizer.state[loop.pixels][key]) for key in ("exp_avg", "exp_avg_sq")}
    loop.detach(8)
    after = loop.optimizer.state[loop.pixels]
    for key, moments in before.items():
        assert after[key].shape == loop.pixels.shape == (3, 3, 8 * 64)
        stayed = moments.gather(1, loop.kept.unsqueeze(-1).expand(-1, -1, 192))
        assert torch.equal(loop.of_strip(after[key]), stayed)


def test_what_stays_is_written_back(teacher: Teacher) -> None:
    """The picture always holds the active patches' pixels at their places."""
    loop = started(teacher, replace(JOB, method="pri", images=6, batch=6, division_factor=2))
    loop.step()
    loop.detach(8)
    loop.step()
    patches, kept = loop.remaining()
    whole = patchify(loop.pictures(), (8, 8))
    assert torch.equal(whole.gather(1, kept.unsqueeze(-1).expand_as(patches)), patches)


@pytest.mark.parametrize("extra", [{}, {"tv_norm": "batch"}])
def test_a_step_never_waits_for_the_device(teacher: Teacher, extra: dict[str, Any]) -> None:
    """No value of a tensor is asked for: a step runs on tensors that have none, as a CUDA graph needs it."""
    loop = started(teacher, replace(JOB, **extra))
    loop.step()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, value in vars(loop).items():
            if isinstance(value, torch.Tensor):
                setattr(loop, name, mode.from_tensor(value))
        loop.track(loop.kept)
        loop.step()


def test_a_bad_loss_is_dated(teacher: Teacher) -> None:
    """The first update whose loss is not finite stays on record while later ones go on."""
    loop = started(teacher, JOB)
    loop.step()
    assert int(loop.first_bad) == -1
    loop.canvas[0, 0, 0] = torch.nan
    loop.step()
    loop.step()
    assert int(loop.first_bad) == 2


def test_few_images_pass_a_cpu_at_once(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks hold a number of tokens that caches hold, so more images as patches leave, and cover each image once."""
    monkeypatch.setattr("inversion.loop.CPU_TOKENS", 40)
    loop = started(teacher, replace(JOB, method="pri", images=10, batch=10, division_factor=2))
    sizes = []
    for _ in range(2):
        rows = [list(range(5))[chunk] for chunk in loop.chunks()]
        assert [index for chunk in rows for index in chunk] == list(range(5))
        sizes.append([len(chunk) for chunk in rows])
        loop.step()
        loop.detach(8)
    assert sizes == [[3, 2], [5]]


def test_the_header_says_what_the_record_says() -> None:
    """Its figures are those of the record that it names, which is the newest."""
    said = str(inversion_loop.__doc__)
    (named,) = re.findall(r"benchmarks/records/(\S+\.json)", said)
    assert named == max(path.name for path in RECORDS.glob("*_inversion_deit_tiny.json"))
    told = json.loads((RECORDS / named).read_text())
    speed = {row["name"]: f"{row['iterations_per_s']:.2f}" for row in told["rows"]}
    assert all(speed[name] in said for name in ("dmi", "smi_76", "pri_v4", "pri_v7"))
    assert f"300 iterations take {300 / float(speed['pri_v4']) / 60:.1f} minutes" in said
    assert all(part in said for part in (told["versions"]["torch"], f"n = {told['rounds']}", told["precision"]))
