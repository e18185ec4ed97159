"""What each layer's bits cost, as table, plot and JSON, and a recipe with the fewest bits within a limit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TypedDict

from rich.table import Table

from calib.damage import (
    LayerDamage,
    Mixed,
    Probe,
    estimated_drop,
    judging_material,
    mean_weight_bits,
    mixed_scheme,
)
from calib.fidelity import Fidelity
from calib.layers import require_layers
from calib.scheme import QuantScheme
from inversion.errors import InputError
from inversion.images import load_images, require_images_of
from inversion.plainvit import Module
from inversion.publish import publish
from inversion.teacher import Teacher
from pipeline.judge.answers import Judge, Model, Pictures, of_module
from pipeline.pictures.valdata import BATCH, ValData
from pipeline.recipe.recipe import Recipe
from pipeline.record.manifest import Facts
from pipeline.show.display import Display

SCHEMA = 1
PICTURES = 128
"""That an estimated drop rests on, at least: one changed answer is 0.8 points."""


class LayerRow(TypedDict):
    """A `LayerDamage` on disk."""

    name: str
    bits: str
    parameters: int
    weight_kl: float
    input_kl: float | None


class Candidate(TypedDict):
    """A scheme, by the layers that it raises above the one given, and what the whole model gives with it; `real` is a
    `Comparison` on real pictures, where some judge."""

    raised: list[str]
    mean_weight_bits: float
    estimated_drop: float
    kl: float
    real: Facts | None


class MixedRow(TypedDict):
    """The scheme with the fewest bits within `max_drop` points, beside the one given."""

    max_drop: float
    met: bool
    pictures: int
    given: Candidate
    mixed: Candidate


class Sensitivity(TypedDict):
    """sensitivity.json."""

    schema: int
    teacher: dict[str, str]
    scheme: Facts
    pictures: int
    layers: list[LayerRow]
    mixed: MixedRow | None


def sensitivity(
    teacher: Teacher, images: Path, recipe: Recipe, max_drop: float | None, val_data: ValData | None, out: Path,
    display: Display,
) -> Sensitivity:  # fmt: skip
    """Measure every layer by itself on synthetic pictures; write sensitivity.json and .png into `out`, and, where
    `max_drop` asks for a mixed scheme, recipe.toml. Returns what the JSON says.

    `val_data` judges the scheme as given and the mixed one, and decides nothing.
    """
    if max_drop is not None and not 0 < max_drop < math.inf:
        raise InputError(f"--max-drop {max_drop} is no positive number of points: write 1.0 or the like.")
    scheme = recipe.quant_scheme()
    require_layers(teacher.model, scheme)
    found = load_images(images)
    require_images_of(teacher, found, images)
    out.mkdir(parents=True, exist_ok=True)
    shown, judge, many = judging_material(teacher, found, PICTURES, recipe.calibration)
    with display.progress() as progress:
        probe = Probe(teacher, scheme, shown, judge, recipe.basis, recipe.calibration, progress)
        damages = probe.damage(judge, progress)
        mixed = None
        if max_drop is not None:
            measured = mixed_scheme(probe, damages, many, max_drop, progress)
            mixed = _describe(probe, damages, max_drop, *measured, val_data, len(many))
            publish(out / "recipe.toml", _recipe(measured[1]).encode())
    results: Sensitivity = {
        "schema": SCHEMA,
        "teacher": {"name": teacher.name, "sha256": teacher.sha256},
        "scheme": {"bits": scheme.bits, **scheme.overrides()},
        "pictures": len(judge),
        "layers": [_row(each) for each in damages],
        "mixed": mixed,
    }
    publish(out / "sensitivity.json", (json.dumps(results, indent=1) + "\n").encode())
    _plot(damages, str(scheme), out / "sensitivity.png")
    return results


def _row(damage: LayerDamage) -> LayerRow:
    return {
        "name": damage.name,
        "bits": str(damage.bits),
        "parameters": damage.parameters,
        "weight_kl": damage.weight_kl,
        "input_kl": damage.input_kl,
    }


def layers_table(results: Sensitivity) -> Table:
    """A row a layer, the most damaging weight first."""
    table = Table(
        "layer", "bits", "parameters", "KL, weight alone", "KL, input alone", title=str(results["scheme"]["bits"])
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in sorted(results["layers"], key=lambda layer: -layer["weight_kl"]):
        of_input = "" if layer["input_kl"] is None else f"{layer['input_kl']:.5f}"
        parameters = f"{layer['parameters']:,}"
        table.add_row(layer["name"], layer["bits"], parameters, f"{layer['weight_kl']:.5f}", of_input)
    return table


def mixed_sentence(mixed: MixedRow) -> str:
    """What the mixed scheme is and gives, in one line."""
    raised, given = mixed["mixed"], mixed["given"]
    if not raised["raised"]:
        what = "as it is" if mixed["met"] else "with no weight below 8 bits to raise"
    else:
        what = (
            f"with {len(raised['raised'])} layers raised to 8-bit weights, {raised['mean_weight_bits']:.2f} on average"
        )
    verdict = "within" if mixed["met"] else "NOT within"
    return (
        f"{what}: estimated drop {raised['estimated_drop']:.1f} points ({given['estimated_drop']:.1f} as given), "
        f"{verdict} {mixed['max_drop']:g}, from {mixed['pictures']} synthetic pictures"
    )


def _describe(
    probe: Probe, damages: tuple[LayerDamage, ...], max_drop: float, given: Fidelity, mixed: Mixed,
    val_data: ValData | None, pictures: int,
) -> MixedRow:  # fmt: skip
    def answers(model: Module) -> Model:
        return of_module(model, device)

    device = next(probe.teacher.parameters()).device
    judge = Judge(answers(probe.teacher), Pictures.real(val_data, BATCH)) if val_data else None

    def facts(scheme: QuantScheme, raised: tuple[str, ...], found: Fidelity) -> Candidate:
        return {
            "raised": list(raised),
            "mean_weight_bits": mean_weight_bits(scheme, damages),
            "estimated_drop": estimated_drop(found),
            "kl": found.kl,
            "real": judge(answers(probe.model(raised))).to_dict() if judge else None,
        }

    return {
        "max_drop": max_drop,
        "met": mixed.met,
        "pictures": pictures,
        "given": facts(probe.scheme, (), given),
        "mixed": facts(mixed.scheme, mixed.raised, mixed.fidelity),
    }


def _recipe(mixed: Mixed) -> str:
    """TOML that `pipeline build --recipe` takes."""
    said = mixed.scheme.overrides()
    lines = [f'bits = "{mixed.scheme.bits}"', "", "[scheme]", f'attention = "{said["attention"]}"']
    lines += [f'edges = "{said["edges"]}"'] if said["edges"] else []
    lines += ["", "[scheme.layers]", *(f'{json.dumps(name)} = "{bits}"' for name, bits in said["layers"].items())]
    return "\n".join(lines) + "\n"


def _plot(damages: tuple[LayerDamage, ...], scheme: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.16 * len(damages)), layout="constrained")
    axes = figure.subplots()
    places = range(len(damages))
    axes.barh([place - 0.2 for place in places], [each.weight_kl for each in damages], 0.4, label="weight alone")
    axes.barh([place + 0.2 for place in places], [each.input_kl or 0.0 for each in damages], 0.4, label="input alone")
    axes.set(yticks=list(places), yticklabels=[each.name for each in damages], xscale="log")
    axes.set(xlabel="KL to the teacher, nats, on synthetic pictures", title=scheme)
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))
