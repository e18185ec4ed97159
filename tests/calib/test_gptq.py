"""GPTQ: integers that answer a layer's inputs better than those nearest to the weights."""

import copy
import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor

from calib.gptq import BLOCK, CELL, DAMPING, block_linears, gptq_round, layer_hessians, round_model
from calib.scheme import integer_range
from calib.views import Views
from inversion.errors import InputError
from inversion.teacher import Teacher
from tests.small import inserted, small_teacher, views

PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return small_teacher()


def scales(student: VisionTransformer, bits: int) -> dict[str, Tensor]:
    """Of each block linear, from its quantizer."""
    _, high = integer_range(bits)
    return {name: layer.weight_quantizer.amax.flatten() / high for name, layer in block_linears(student).items()}


def problem(seed: int, rows: int = 24, columns: int = 40, samples: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """`weight`, `scale` (a fifth of the weights clip at 4 bits), and the Hessian of correlated, uneven inputs."""
    generator = Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mix
    inputs *= torch.rand(columns, generator=generator, dtype=torch.float64) * 3
    return weight, weight.abs().quantile(0.8, dim=1) / 7, inputs.T @ inputs


def nearest(weight: Tensor, scale: Tensor, low: int = -8, high: int = 7) -> Tensor:
    return (weight / scale.unsqueeze(1)).round().clamp(low, high).to(torch.int8)


def output_error(weight: Tensor, integers: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """(w - wq) H (w - wq)^T of each row."""
    difference = weight - integers * scale.unsqueeze(1)
    return (difference @ hessian * difference).sum(1)


def rounded(weight: Tensor, scale: Tensor, hessian: Tensor, low: int, high: int, damping: float = DAMPING) -> Tensor:
    """The integers of `gptq_round`."""
    return gptq_round(weight, scale, hessian, low, high, damping)[0]


def four_bits(student: VisionTransformer) -> dict[str, int]:
    return dict.fromkeys(block_linears(student), 4)


def textbook(weight: Tensor, scale: Tensor, hessian: Tensor, low: int, high: int) -> Tensor:
    """Optimal brain quantization in a fixed order: Eq. 2 for each column, with the inverse made anew each time."""
    weight, hessian = weight.clone(), hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        rounded = (weight[:, column] / scale).round().clamp(low, high) * scale
        weight[:, column:] -= (weight[:, column] - rounded).outer(inverse[0] / inverse[0, 0])
    return (weight / scale.unsqueeze(1)).round().to(torch.int8)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unrelated_inputs_give_rounding_to_nearest(bits: int) -> None:
    """Where no input can make good another's error, there is nothing to gain."""
    weight, scale, _ = problem(0)
    low, high = integer_range(bits)
    for hessian in (torch.eye(40), torch.diag(torch.arange(1.0, 41))):
        assert torch.equal(rounded(weight, scale, hessian, low, high), nearest(weight, scale, low, high))


@pytest.mark.parametrize("columns", [1, 40, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_it_is_optimal_brain_quantization(columns: int) -> None:
    """The blocks and the Cholesky factor only save time: the integers are those of the paper's Eq. 2."""
    weight, scale, hessian = problem(1, 6, columns, 2 * columns)
    want = textbook(weight, scale, hessian, -8, 7)
    error, at_most = (output_error(weight, part, scale, hessian) for part in (want, nearest(weight, scale)))
    better = error <= at_most
    assert int(better.sum()) >= 3
    assert torch.equal(rounded(weight, scale, hessian, -8, 7)[better], want[better])


@pytest.mark.parametrize("seed", range(5))
def test_outputs_err_less_than_by_rounding_to_nearest(seed: int) -> None:
    """No row's output error is above that of rounding to nearest, clipped weights or not, and the sum is far below."""
    weight, scale, hessian = problem(seed)
    for step in (scale, 2 * scale):
        ours = output_error(weight, rounded(weight, step, hessian, -8, 7), step, hessian)
        plain = output_error(weight, nearest(weight, step), step, hessian)
        assert bool((ours <= plain).all())
        assert float(ours.sum()) < 0.75 * float(plain.sum())


def test_integers_fit_their_bits() -> None:
    """int8 in [-8, 7] for 4 bits, both ends taken, whatever the errors add up to."""
    weight, scale, hessian = problem(3)
    found = rounded(weight, scale, hessian, -8, 7)
    assert (found.dtype, found.shape) == (torch.int8, weight.shape)
    assert (int(found.min()), int(found.max())) == (-8, 7)


def test_more_than_eight_bits_are_refused() -> None:
    """Their integers would wrap."""
    weight, scale, hessian = problem(0)
    with pytest.raises(InputError, match=r"^integers from -256 to 255 do not fit 8 bits: take 2 to 8 bits\.$"):
        rounded(weight, scale, hessian, -256, 255)


def test_dead_inputs_do_no_harm() -> None:
    """Inputs that are always 0 round to nearest and leave the other columns as they would be without them."""
    weight, scale, hessian = problem(4)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[0, 7, 39]] = True
    hessian[dead] = 0
    hessian[:, dead] = 0
    found = rounded(weight, scale, hessian, -8, 7)
    assert torch.equal(found[:, dead], nearest(weight, scale)[:, dead])
    # the mean of the diagonal has the zeros in it
    alone = rounded(weight[:, ~dead], scale, hessian[~dead][:, ~dead], -8, 7, DAMPING * 37 / 40)
    assert torch.equal(found[:, ~dead], alone)
    assert torch.equal(rounded(weight, scale, torch.zeros(40, 40), -8, 7), nearest(weight, scale))


def test_fewer_inputs_than_columns_will_do() -> None:
    """Damping makes up for a Hessian that has no inverse."""
    weight, scale, hessian = problem(5, samples=3)
    ours = output_error(weight, rounded(weight, scale, hessian, -8, 7), scale, hessian)
    assert float(ours.sum()) < 0.1 * float(output_error(weight, nearest(weight, scale), scale, hessian).sum())


def test_the_constant_of_the_hessian_is_free() -> None:
    """A sum over inputs and a mean give the same integers; the arguments are left as they were."""
    weight, scale, hessian = problem(6)
    before = [part.clone() for part in (weight, scale, hessian)]
    found = rounded(weight, scale, hessian, -8, 7)
    assert torch.equal(found, rounded(weight, scale, hessian / 1024, -8, 7))
    assert torch.equal(found, rounded(weight, scale, hessian, -8, 7))
    assert all(torch.equal(was, now) for was, now in zip(before, (weight, scale, hessian), strict=True))


def test_more_damping_trusts_the_hessian_less() -> None:
    """Much damping ends at rounding to nearest."""
    weight, scale, hessian = problem(7)
    assert torch.equal(rounded(weight, scale, hessian, -8, 7, damping=1e9), nearest(weight, scale))
    assert not torch.equal(rounded(weight, scale, hessian, -8, 7), nearest(weight, scale))


@pytest.mark.parametrize("strip", [384, 7])
@pytest.mark.parametrize("kind", ["mosaic", "sparse"])
def test_hessian_is_the_sum_over_all_tokens(
    teacher: Teacher, kind: str, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x x^T over every token of every image, prefix tokens too, whatever the images hold, in strips or at once."""
    monkeypatch.setattr("calib.gptq.STRIP", strip)
    model, images = teacher.model, views(5, kind)
    seen: list[Tensor] = []
    tokens: list[Tensor] = []
    layer = model.blocks[0].mlp.fc1
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double())),
        model.blocks[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0])),
    ]
    images.logits(model)
    for hook in hooks:
        hook.remove()
    x = torch.cat(seen)
    assert len(x) == sum(len(kept) * (1 + kept.shape[1]) for _, kept in images.groups)
    # products are summed in float32
    torch.testing.assert_close(layer_hessians(layer, model.blocks[0], tokens)[0], x.T @ x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["mosaic", "sparse"])
def test_each_layer_sees_what_the_rounded_ones_before_it_pass_on(teacher: Teacher, kind: str) -> None:
    """The integers are those of rounding layer after layer by hand, with a whole forward pass before each."""
    images = views(4, kind)
    student, by_hand = inserted(teacher, "w4a16"), inserted(teacher, "w4a16")
    steps = scales(student, 4)
    found = round_model(student, images, steps, four_bits(student))
    assert list(found) == [f"blocks.{block}.{part}" for block in (0, 1) for part in PARTS]
    for name, layer in block_linears(by_hand).items():
        inputs: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].flatten(0, 1)))
        images.logits(by_hand)
        hook.remove()
        hessian = sum(x.T @ x for x in inputs).double()
        want = rounded(layer.weight, steps[name], hessian, -8, 7)
        assert float((found[name] == want).double().mean()) > 0.999, name  # groups are added in float64 there
        layer.weight.data.copy_(found[name] * steps[name].unsqueeze(1))


def test_quantizers_round_latent_weights_to_the_integers(teacher: Teacher) -> None:
    """ModelOpt's fake quantization of what is left in each layer is integer * scale; edges and biases are untouched."""
    student = inserted(teacher, "w4a8")
    before = copy.deepcopy(student.state_dict())
    steps = scales(student, 4)
    found = round_model(student, views(4), steps, four_bits(student))
    for name, layer in block_linears(student).items():
        want = found[name] * steps[name].unsqueeze(1)
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), want, rtol=1e-6, atol=0)
    touched = {f"{name}.weight" for name in found}
    assert all(torch.equal(student.state_dict()[key], was) for key, was in before.items() if key not in touched)


def test_latent_weights_lie_in_their_cells_and_away_from_the_middle() -> None:
    """They round to the integers; where nothing clips, they hold what was rounded, so small changes flip some."""
    weight, scale, hessian = problem(8)
    for clipping in (False, True):
        step = scale if clipping else 3 * scale
        integers, latent = gptq_round(weight, step, hessian, -8, 7)
        places = latent / step.unsqueeze(1) - integers
        assert float(places.abs().max()) <= CELL + 1e-9
        assert torch.equal(nearest(latent, step), integers)
        assert float((places.abs() > 0.4).double().mean()) > 0.1


def test_only_named_layers_are_rounded(teacher: Teacher) -> None:
    """Each to its own bits; the others keep their weights, and the rounded ones see what they pass on."""
    student = inserted(teacher, "w4a16")
    before = copy.deepcopy(student.state_dict())
    names = list(block_linears(student))[2:4]
    found = round_model(student, views(4), scales(student, 4), {names[0]: 4, names[1]: 3})
    assert list(found) == names
    assert int(found[names[0]].min()) < -4
    assert (int(found[names[1]].min()), int(found[names[1]].max())) == (-4, 3)
    changed = {key for key, was in before.items() if not torch.equal(student.state_dict()[key], was)}
    assert changed == {f"{name}.weight" for name in names}


def test_answers_come_closer_to_the_teacher(teacher: Teacher) -> None:
    """On the images that it saw, the rounded model errs less than with the nearest integers."""
    images = views(24)
    plain, ours = inserted(teacher, "w4a16"), inserted(teacher, "w4a16")
    round_model(ours, images, scales(ours, 4), four_bits(ours), damping=0.01)
    (want,), (near,), (found,) = (images.logits(model) for model in (teacher.model, plain, ours))
    assert float((found - want).norm()) < 0.8 * float((near - want).norm())


def test_it_is_deterministic_and_leaves_no_hook(teacher: Teacher) -> None:
    """The same images give the same integers; each layer is reported."""
    one, twin, done = inserted(teacher, "w4a16"), inserted(teacher, "w4a16"), []
    steps = scales(one, 4)
    found = round_model(one, views(4), steps, four_bits(one), progress=lambda *told: done.append(told[:3]))
    again = round_model(twin, views(4), steps, four_bits(twin))
    assert all(torch.equal(found[name], again[name]) for name in steps)
    assert done == [("rounding", number, 8) for number in range(1, 9)]
    assert not any(module._forward_pre_hooks for module in one.modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused(teacher: Teacher, bad: float) -> None:
    """The error names the first layer that sees them, and no hook stays behind."""
    patches, kept = views(4).groups[0]
    patches = patches.clone()
    patches[1, 2, 3] = bad
    model = copy.deepcopy(teacher.model)
    with pytest.raises(InputError, match=r"^the inputs of blocks\.0\.attn\.qkv are not finite numbers: the teacher or"):
        round_model(model, Views(((patches, kept),)), scales(inserted(teacher, "w4a16"), 4), four_bits(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_damping_reaches_every_layer(teacher: Teacher) -> None:
    """With so much of it that no layer's inputs count, the whole model is rounded to nearest."""
    student = inserted(teacher, "w4a16")
    steps = scales(student, 4)
    want = {name: nearest(layer.weight, steps[name]) for name, layer in block_linears(student).items()}
    found = round_model(student, views(4), steps, four_bits(student), damping=1e9)
    assert all(torch.equal(found[name], want[name]) for name in want)
