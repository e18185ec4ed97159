"""LSQ is the paper's: forward, both gradients and their scale, in exact numbers."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from calib.layers import quantized_layers
from calib.lsq import SMALLEST_STEP, LSQFunction, LSQQuantizer, keep_positive, learn_steps
from calib.scheme import integer_range
from tests.small import inserted, small_teacher


def paper_forward(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """Eqs. 1 and 2: v_bar = round(clip(v / s, -Qn, Qp)), v_hat = v_bar * s."""
    return torch.round(torch.clip(x / step, low, high)) * step


def paper_gradients(x: Tensor, step: Tensor, low: int, high: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. 3 and 5 for each element: d v_hat / d s, and d v_hat / d v, each times `upstream`."""
    ratio = x / step
    to_step = torch.where(ratio <= low, low, torch.where(ratio >= high, high, -ratio + torch.round(ratio)))
    to_x = torch.where((low < ratio) & (ratio < high), 1.0, 0.0)
    return to_step * upstream, to_x * upstream


def ours(x: Tensor, step: Tensor, low: int, high: int, scale: float, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    out = LSQFunction.apply(x, step, low, high, scale)
    to_x, to_step = torch.autograd.grad(out, (x, step), upstream)
    return out.detach(), to_x, to_step


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("step", [1.0, 0.25, 8.0])
def test_per_tensor_formulas_hold_exactly(bits: int, step: float) -> None:
    """Inside, outside, on both bounds and on ties: all products are exact in float64, so equality is too."""
    low, high = integer_range(bits)
    ratios = torch.arange(16 * (low - 2), 16 * (high + 2) + 1, dtype=torch.float64) / 16
    assert {low, low - 0.5, low + 0.5, high, high + 0.5, high - 0.5, 0.0} <= set(ratios.tolist())
    x, s = ratios * step, torch.tensor(step, dtype=torch.float64)
    upstream = torch.randint(-4, 5, x.shape, generator=Generator().manual_seed(0)).double() / 2
    out, to_x, to_step = ours(x, s, low, high, 1.0, upstream)
    want_step, want_x = paper_gradients(x, s, low, high, upstream)
    assert torch.equal(out, paper_forward(x, s, low, high))
    assert torch.equal(to_x, want_x)
    assert torch.equal(to_step, want_step.sum())


@pytest.mark.parametrize("shape", [(6, 40), (6, 2, 4, 5)])
def test_per_channel_formulas_hold_exactly(shape: tuple[int, ...]) -> None:
    """Each output channel's step gets the sum over its own elements alone."""
    x = torch.randint(-200, 200, shape, generator=Generator().manual_seed(1)).double() / 16
    step = 2.0 ** torch.arange(-3, 3, dtype=torch.float64).view(6, *[1] * (len(shape) - 1))
    upstream = torch.randint(-8, 9, shape, generator=Generator().manual_seed(2)).double() / 4
    out, to_x, to_step = ours(x, step, -8, 7, 1.0, upstream)
    want_step, want_x = paper_gradients(x, step, -8, 7, upstream)
    assert torch.equal(out, paper_forward(x, step, -8, 7))
    assert torch.equal(to_x, want_x)
    assert to_step.shape == step.shape
    assert torch.equal(to_step, want_step.flatten(1).sum(1).view_as(step))


def test_formulas_hold_for_any_step() -> None:
    """With steps that are no powers of two, the formulas hold to float64's rounding."""
    generator = Generator().manual_seed(3)
    x = torch.randn(5, 300, generator=generator, dtype=torch.float64)
    step = 0.01 + torch.rand(5, 1, generator=generator, dtype=torch.float64)
    upstream = torch.randn(5, 300, generator=generator, dtype=torch.float64)
    out, to_x, to_step = ours(x, step, -8, 7, 1.0, upstream)
    want_step, want_x = paper_gradients(x, step, -8, 7, upstream)
    assert torch.equal(out, paper_forward(x, step, -8, 7))
    assert torch.equal(to_x, want_x)
    # 300 float64 terms, summed in another order
    torch.testing.assert_close(to_step, want_step.sum(1, keepdim=True), rtol=1e-12, atol=1e-12)


def test_gradient_scale_changes_only_the_steps_gradient() -> None:
    """The scale of section 2.2 multiplies the step's gradient, and nothing else."""
    x = torch.linspace(-3, 3, 64, dtype=torch.float64)
    step, upstream = torch.tensor(0.5, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
    plain, scaled = (ours(x, step, -4, 3, scale, upstream) for scale in (1.0, 0.125))
    assert torch.equal(plain[0], scaled[0])
    assert torch.equal(plain[1], scaled[1])
    assert torch.equal(plain[2] * 0.125, scaled[2])


def learning(bits: str) -> tuple[nn.Module, nn.Linear]:
    """A student whose quantizers learn, and its first MLP layer."""
    student = inserted(small_teacher(), bits)
    for layer in quantized_layers(student).values():
        if not layer.input_quantizer._disabled:
            layer.input_quantizer.amax = torch.tensor(2.0)
            layer.input_quantizer.enable_quant()
    learn_steps(student)
    return student, student.blocks[0].mlp.fc1


@pytest.mark.parametrize(("part", "qp"), [("weight_quantizer", 7), ("input_quantizer", 127)])
def test_gradient_scale_is_one_over_root_n_qp(part: str, qp: int) -> None:
    """n is the weights that share a step, or the features of one image, whatever the batch (section 2.2)."""
    _, layer = learning("w4a8")
    quantizer = getattr(layer, part)
    for batch in (2, 5):
        x = layer.weight.detach() if part == "weight_quantizer" else torch.randn(batch, 17, 32)
        n = 32 if part == "weight_quantizer" else 17 * 32
        (got,) = torch.autograd.grad(quantizer(x).sum(), quantizer.step)
        upstream = torch.ones_like(x)
        low, high = integer_range(4 if part == "weight_quantizer" else 8)
        _, _, plain = ours(x, quantizer.step.detach(), low, high, 1.0, upstream)
        # one multiplication in float32
        torch.testing.assert_close(got, plain / math.sqrt(n * qp), rtol=1e-6, atol=0)


def test_layer_equals_integer_arithmetic_on_dequantized_values() -> None:
    """A layer's answer is exactly that of integers x steps, on both sides."""
    _, layer = learning("w4a8")
    x = torch.randn(3, 17, 32, generator=Generator().manual_seed(0))
    input_step, weight_step = layer.input_quantizer.step.detach(), layer.weight_quantizer.step.detach()
    x_int = (x / input_step).round().clamp(-128, 127).to(torch.int8)
    w_int = (layer.weight / weight_step).round().clamp(-8, 7).to(torch.int8)
    want = nn.functional.linear(x_int.float() * input_step, w_int.float() * weight_step, layer.bias)
    assert torch.equal(layer(x), want)
    assert int(w_int.min()) == -8 or int(w_int.max()) == 7


def test_steps_start_where_calibration_ended() -> None:
    """step = amax / Qp, one a tensor for inputs, one an output channel for weights; the answers stay the same."""
    student = inserted(small_teacher(), "w4a8")
    for layer in quantized_layers(student).values():
        layer.input_quantizer.amax = torch.tensor(2.0)
        layer.input_quantizer.enable_quant()
    amax = {name: layer.weight_quantizer.amax.clone() for name, layer in quantized_layers(student).items()}
    images = torch.randn(2, 1, 32, 32, generator=Generator().manual_seed(0))
    before = student(images)
    steps = learn_steps(student)
    assert len(steps) == 2 * len(amax) == 20
    for name, layer in quantized_layers(student).items():
        qp = 127 if name in ("patch_embed.proj", "head") else 7
        assert torch.equal(layer.weight_quantizer.step, amax[name] / qp)
        assert layer.weight_quantizer.step.numel() == layer.weight.shape[0]
        assert layer.input_quantizer.step.shape == ()
        assert float(layer.input_quantizer.step.detach()) == pytest.approx(2 / 127)
    # the library's own fake quantization divides by the step in another way: a tie may round elsewhere
    torch.testing.assert_close(student(images), before, rtol=0.02, atol=0.02)


def test_float_inputs_have_no_step() -> None:
    """At 16 bits of activation only weights learn steps."""
    student, layer = learning("w4a16")
    assert isinstance(layer.weight_quantizer, LSQQuantizer)
    assert not isinstance(layer.input_quantizer, LSQQuantizer)
    assert sum(name.endswith(".step") for name, _ in student.named_parameters()) == 10


def test_steps_stay_positive() -> None:
    """A step that an update took to 0 or below comes back; the others are not touched."""
    steps = [nn.Parameter(torch.tensor([[0.0], [-3.0], [0.5]])), nn.Parameter(torch.tensor(-1.0))]
    keep_positive(steps)
    tiny = float(torch.tensor(SMALLEST_STEP))
    assert steps[0].flatten().tolist() == [tiny, tiny, 0.5]
    assert float(steps[1].detach()) == tiny > 0
