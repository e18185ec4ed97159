"""Sensitivity: what one layer costs alone, and the fewest raised layers within a limit."""

import copy

import pytest
import torch

from calib.damage import (
    LayerDamage,
    Probe,
    estimated_drop,
    fewest,
    judging_material,
    mean_weight_bits,
    mixed_scheme,
    most_measurements,
    raised_scheme,
)
from calib.fidelity import Fidelity, kl_to_teacher
from calib.layers import quantized_layers
from calib.quantization import change_basis
from calib.scheme import LayerBits, QuantScheme
from calib.settings import Basis, Calibration
from tests.small import small_teacher, sparse_images

W3A8 = QuantScheme.parse("w3a8")


@pytest.fixture(scope="module")
def measured() -> tuple[Probe, tuple[LayerDamage, ...], object]:
    teacher = small_teacher()
    shown, judge, many = judging_material(teacher, sparse_images(8), 64, Calibration())
    probe = Probe(teacher, W3A8, shown, judge, Basis(), Calibration())
    return probe, probe.damage(judge), (judge, many)


def test_weight_damage_is_that_of_one_rounded_weight(measured: tuple) -> None:
    """KL of the teacher, in a build's basis, where only this layer's weight is on its grid; edges have 8 bits."""
    probe, damages, (judge, _) = measured
    assert [each.name for each in damages] == list(quantized_layers(probe.teacher))
    rebased, *_ = change_basis(small_teacher().model, W3A8, Basis())
    for each in damages:
        twin = copy.deepcopy(rebased)
        layer = quantized_layers(twin)[each.name]
        quantizer = quantized_layers(probe.student)[each.name].weight_quantizer
        layer.weight.data = quantizer(layer.weight).data
        want = kl_to_teacher(torch.cat(judge.logits(twin)).double(), torch.cat(judge.logits(probe.teacher)).double())
        assert each.weight_kl == pytest.approx(float(want), rel=1e-3, abs=1e-9)
        assert each.parameters == layer.weight.numel()
        assert each.bits == (LayerBits(8, 8) if each.name in ("patch_embed.proj", "head") else LayerBits(3, 8))


def test_measuring_leaves_every_quantizer_on(measured: tuple) -> None:
    """After it the whole model is quantized again."""
    probe, _, _ = measured
    for layer in quantized_layers(probe.student).values():
        assert layer.weight_quantizer.is_enabled
        assert layer.input_quantizer.is_enabled


def test_the_mixture_is_the_fewest_that_fit(measured: tuple) -> None:
    """Within the limit, one raised layer less is not; its figures are those of a model made with its scheme."""
    probe, damages, (_, many) = measured
    given, _ = mixed_scheme(probe, damages, many, 99.0)
    limit = estimated_drop(given) / 2
    assert limit > 0
    _, mixed = mixed_scheme(probe, damages, many, limit)
    assert mixed.met
    assert estimated_drop(mixed.fidelity) <= limit
    logits = many.logits(probe.teacher)
    from calib.fidelity import fidelity

    assert estimated_drop(fidelity(probe.model(mixed.raised[:-1]), many, logits)) > limit
    assert fidelity(probe.model(mixed.raised), many, logits) == mixed.fidelity
    assert {name for name in quantized_layers(probe.teacher) if mixed.scheme.layer(name).weight == 8} == {
        *mixed.raised, "patch_embed.proj", "head"
    }  # fmt: skip
    assert 3 < mean_weight_bits(mixed.scheme, damages) < 8


def test_a_limit_that_holds_already_raises_nothing(measured: tuple) -> None:
    """And one that cannot be met raises every layer and says so."""
    probe, damages, (_, many) = measured
    _, mixed = mixed_scheme(probe, damages, many, 100.0)
    assert (mixed.raised, mixed.met, mixed.scheme) == ((), True, W3A8)
    _, mixed = mixed_scheme(probe, damages, many, -1.0)
    assert (len(mixed.raised), mixed.met) == (8, False)


@pytest.mark.parametrize("total", [0, 1, 2, 7, 48])
def test_bisection_finds_the_fewest(total: int) -> None:
    """For every threshold, in no more questions than announced."""
    for threshold in range(total + 2):
        asked: list[int] = []

        def fits(count: int, threshold: int = threshold, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= threshold

        assert fewest(total, fits) == (threshold if threshold <= total else None)
        assert len(set(asked)) <= most_measurements(total)


def test_raised_layers_replace_their_overrides() -> None:
    """8-bit weights, inputs as they were, whatever the scheme said of them before; others keep theirs."""
    scheme = QuantScheme.parse("w4a4", layers={"blocks.0.mlp.fc1": "w3a6", "blocks.1.*": "w5a8"})
    raised = raised_scheme(scheme, ("blocks.0.mlp.fc1", "blocks.1.mlp.fc2"))
    assert raised.layer("blocks.0.mlp.fc1") == LayerBits(8, 6)
    assert raised.layer("blocks.1.mlp.fc2") == LayerBits(8, 8)
    assert raised.layer("blocks.1.mlp.fc1") == LayerBits(5, 8)
    assert raised.layer("blocks.0.mlp.fc2") == LayerBits(4, 4)


def test_drop_is_the_share_of_changed_answers() -> None:
    """In points, without the noise of float64."""
    assert estimated_drop(Fidelity(0.1, 0.99)) == 1.0
    assert estimated_drop(Fidelity(0.0, 1.0)) == 0.0
