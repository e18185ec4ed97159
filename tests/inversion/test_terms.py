"""Optional terms of the loss: what each computes, and that it reaches the pixels."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from inversion.errors import InputError
from inversion.inverter import Inverter, invert_shard
from inversion.job import Inversion
from inversion.sparse import importance
from inversion.teacher import Teacher
from inversion.terms import BatchNormPrior, low_pass, soft_targets
from tests.inversion.test_inverter import tiny_teacher

JOB = Inversion(method="dmi", images=3, batch=3, iterations=30, learning_rate=0.05, precision="float32")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher(channels=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small CNN of random weights whose batch norms have seen some noise."""
    torch.manual_seed(0)
    cnn = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    cnn.train()(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("prior") / "cnn.safetensors"
    save_file(cnn.state_dict(), path)
    return str(path)


def test_soft_targets_leave_the_rest_to_the_others() -> None:
    """The label's probability is drawn from [confidence, 1]; all others share what remains evenly."""
    targets = soft_targets(torch.tensor([2, 0] * 200), 5, 0.6, Generator().manual_seed(0))
    sure = targets.amax(1)
    assert targets.argmax(1).tolist() == [2, 0] * 200
    assert 0.6 <= float(sure.min()) < 0.61
    assert 0.99 < float(sure.max()) <= 1
    torch.testing.assert_close(targets.sum(1), torch.ones(400))
    assert torch.equal(targets[0, [0, 1, 3, 4]], targets[0, 0].expand(4))


def test_hard_targets_draw_nothing() -> None:
    """With confidence 1 targets are one-hot and the generator is left as it was."""
    generator = Generator().manual_seed(0)
    before = generator.get_state()
    assert soft_targets(torch.tensor([1]), 3, 1.0, generator).tolist() == [[0, 1, 0]]
    assert torch.equal(generator.get_state(), before)


def test_low_pass_keeps_low_waves_and_drops_high_ones() -> None:
    """A wave below the cutoff passes unchanged in any direction, one above vanishes, a mean stays."""
    x = torch.arange(32, dtype=torch.float64)

    def wave(rows: int, columns: int) -> Tensor:
        return torch.cos(2 * torch.pi * (rows * x.view(-1, 1) + columns * x) / 32)

    for rows, columns in ((3, 2), (0, 8), (8, 0)):  # at most half of Nyquist, 16
        torch.testing.assert_close(low_pass(wave(rows, columns) + 4, 0.5), wave(rows, columns) + 4)
    for rows, columns in ((0, 9), (9, 0), (7, 6)):
        torch.testing.assert_close(low_pass(wave(rows, columns) + 4, 0.5), torch.full((32, 32), 4.0).double())


def test_low_pass_is_applied_on_time(teacher: Teacher) -> None:
    """Right after every `low_pass_every` updates there is no more in the picture's corners of frequency than clipping
    puts there."""

    def high(every: int) -> float:
        loop = Inverter(teacher, replace(JOB, low_pass=0.5, low_pass_every=every, learning_rate=1e-3)).loop(0)
        loop.run(30, lambda: None)
        return float((loop.pictures() - low_pass(loop.pictures(), 0.5)).norm())

    assert high(15) < 0.5 * high(31)


def test_attention_entropy_spreads_attention(teacher: Teacher) -> None:
    """Its weight raises the entropy of the attention that scores patches."""

    def entropy(weight: float) -> float:
        images = invert_shard(teacher, replace(JOB, attention_entropy=weight), 0)
        share = importance(teacher.model, images.patches, images.kept.long())
        return float(torch.special.entr(share / share.sum(1, keepdim=True)).sum())

    assert entropy(10.0) > entropy(0.0) + 0.01


def test_no_hook_stays(teacher: Teacher) -> None:
    """After an inversion with every term, the teacher has no hook."""
    invert_shard(teacher, replace(JOB, iterations=2, attention_entropy=1.0), 0)
    assert not any(module._forward_hooks for module in teacher.model.modules())


def test_prior_is_zero_at_its_own_statistics(teacher: Teacher, checkpoint: str) -> None:
    """Pictures whose statistics are those of the batch norms cost nothing; the first layer weighs ten times."""
    prior = BatchNormPrior(teacher, "test_resnet", checkpoint, 1.0)
    pictures = torch.randn(4, 3, 32, 32, generator=Generator().manual_seed(1))
    seen: list[Tensor] = []
    handles = [norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for norm in prior.norms]
    far = float(prior(pictures))
    for handle in handles:
        handle.remove()
    distances = [
        (x.var((0, 2, 3), correction=0) - norm.running_var).norm() + (x.mean((0, 2, 3)) - norm.running_mean).norm()
        for x, norm in zip(seen, prior.norms, strict=True)
    ]
    assert far == pytest.approx(float(10 * distances[0] + sum(distances[1:])), rel=1e-4)


def test_prior_sees_what_the_cnn_was_trained_on(teacher: Teacher, checkpoint: str) -> None:
    """Pixels go from the teacher's normalisation to the CNN's own."""
    prior = BatchNormPrior(teacher, "test_resnet", checkpoint, 1.0)
    grey = torch.full((1, 3, 1, 1), 0.7)
    ours = (grey - torch.tensor(teacher.spec.mean).view(-1, 1, 1)) / torch.tensor(teacher.spec.std).view(-1, 1, 1)
    cfg = prior.cnn.pretrained_cfg
    want = (grey - torch.tensor(cfg["mean"]).view(-1, 1, 1)) / torch.tensor(cfg["std"]).view(-1, 1, 1)
    torch.testing.assert_close(ours * prior.scale + prior.shift, want)


def test_prior_reaches_the_pixels(teacher: Teacher, checkpoint: str) -> None:
    """The gradient is that of the weighted prior on the shifted pictures, times B, carried back in place."""
    prior = BatchNormPrior(teacher, "test_resnet", checkpoint, 0.3)
    pictures = torch.randn(4, 3, 32, 32, generator=Generator().manual_seed(1)).requires_grad_()
    (want,) = torch.autograd.grad(4 * 0.3 * prior(pictures.roll((3, -2), (2, 3)).flip(3)), pictures)
    found = prior.gradient(pictures.detach().flatten(2), torch.tensor([3, -2, 1]))
    torch.testing.assert_close(found.unflatten(2, (32, 32)), want)


def test_prior_draws_pictures_to_its_statistics(teacher: Teacher, checkpoint: str) -> None:
    """Inversion with the prior ends nearer to the CNN's statistics than without."""
    prior = BatchNormPrior(teacher, "test_resnet", checkpoint, 1.0)
    drawn = replace(JOB, prior="test_resnet", prior_checkpoint=checkpoint, prior_weight=10.0)
    apart = [float(prior(invert_shard(teacher, job, 0).dense())) for job in (JOB, drawn)]
    assert apart[1] < 0.97 * apart[0]


def test_priors_that_cannot_be_used_are_refused(teacher: Teacher, checkpoint: str) -> None:
    """An unknown name, a model without batch norm, and weights of another model each get their sentence."""
    for name, message in (
        ("resnet1", "unknown prior 'resnet1': take a timm CNN"),
        ("resnet18", "is not one of 'resnet18': "),
    ):
        with pytest.raises(InputError, match=message):
            BatchNormPrior(teacher, name, checkpoint, 1.0)


def test_a_prior_without_batch_norm_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    """A ConvNeXt has layer norms only."""
    path = tmp_path / "convnext.safetensors"
    save_file(timm.create_model("test_convnext", pretrained=False).state_dict(), path)
    with pytest.raises(InputError, match="has no batch norm to compare with: take a CNN such as resnet50"):
        BatchNormPrior(teacher, "test_convnext", str(path), 1.0)
