"""The optional term of the loss: what it computes, and that it reaches the pixels."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from inversion.errors import InputError
from inversion.inverter import invert_shard
from inversion.job import Inversion
from inversion.teacher import Teacher
from inversion.terms import BatchNormPrior
from tests.elsewhere import There, elsewhere
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


def test_prior_keeps_nothing_on_the_cpu(teacher: Teacher, checkpoint: str) -> None:
    """On a GPU an update is one graph, which can fetch nothing."""
    with elsewhere() as device:
        there = replace(teacher, model=copy.deepcopy(teacher.model).to(device))
        prior = BatchNormPrior(there, "test_resnet", checkpoint, 1.0)
        assert {part.device for part in (prior.scale, prior.shift, *prior.cnn.state_dict().values())} == {device}
        canvas = torch.zeros(2, 3, 32 * 32, device=device)
        assert isinstance(prior.gradient(canvas, torch.zeros(3, dtype=torch.long, device=device)), There)


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
