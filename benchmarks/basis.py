"""Which basis do real pictures like best? Objectives of the rotations, and folds beyond rotations, each by seeds.

    python benchmarks/basis.py --teacher deit_tiny --checkpoint FILE --images RUN/images --bits w4a8 --seeds 3 \
        --setting weights --setting gptq=1 --setting columns=0.5,layers=0.5 --val-data DIR --class-map FILE

A setting is keys of `Setting`, parted by commas, on top of what `pipeline build --effort quick` takes; `weights` is
what it takes. Real pictures judge, and choose nothing. Two seeds of one setting differ in KL by up to 0.01, so a
setting is judged by the mean over its seeds; `weights:3` takes three of them, whatever `--seeds` says. With `--cache` a
row that lies there is not measured again. Four minutes a setting and seed of DeiT-Tiny on one core, half of them for
the rotations.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from image_quality import Exam, add_json_argument, open_pictures, save, split
from recording import add_teacher_arguments, commit
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Generator, Tensor

from calib.basis import Rotations, centre, fold, rotate, value_attentions
from calib.fisher import answer_gradients
from calib.gptq import DAMPING, block_linears, layer_hessians
from calib.layers import quantized_layers
from calib.qat import Trainer
from calib.quantization import material, round_weights, set_ranges
from calib.ranges import insert_quantizers
from calib.rotation import RATE, Rounded, Rounder, cayley, learn_rotations, relative_error, rounding_error
from calib.saliency import token_saliency
from calib.views import Views
from inversion.errors import InputError
from inversion.images import load_images
from inversion.sparse import embed
from inversion.teacher import load_teacher
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.resolve import make_recipe

PLAIN = "weights"
MOMENT_IMAGES = 48
"""Views whose inputs and gradients weigh the errors."""


@dataclass(frozen=True)
class Setting:
    """`columns`: share, beside equal weights, of the inputs' second moments, the diagonal in the basis as it is.
    `full`: the same of all second moments, so that errors of a row may cancel. `rows`: share of the Fisher information
    of the outputs. `layers`: power of a layer's importance, the product of both times its size. `gptq`: power of what
    GPTQ is to leave of an error by the inputs' second moments.

    `folds` beyond rotations, learned behind them: `qk`, `values` or `both` by an invertible matrix a head. `centre`:
    what norms give has mean 0. `updates` of training on mosaics and leaves, as presets once had it, behind all that:
    what unseen leaves like best is kept."""

    columns: float = 0.0
    full: float = 0.0
    rows: float = 0.0
    layers: float = 0.0
    gptq: float = 0.0
    folds: str = ""
    centre: bool = False
    updates: int = 0

    @classmethod
    def parse(cls, text: str) -> Setting:
        pairs = dict(part.split("=", 1) for part in text.split(",") if part != PLAIN)
        known: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        if unknown := pairs.keys() - known:
            raise InputError(f"--setting {text!r} has no key {min(unknown)!r}: take some of {', '.join(known)}.")
        values: dict[str, Any] = {
            key: value if isinstance(known[key], str) else type(known[key])(float(value))
            for key, value in pairs.items()
        }
        return cls(**values)

    @property
    def objective(self) -> dict[str, float]:
        """What of it the rotations depend on."""
        return {name: getattr(self, name) for name in ("columns", "full", "rows", "layers", "gptq")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_teacher_arguments(parser)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--setting", action="append", required=True, metavar="KEY=VALUE,...[:SEEDS]")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=500, help="pictures that judge")
    parser.add_argument("--cache", type=Path, help="folder of rows and rotations; they are kept by setting and seed")
    add_json_argument(parser)
    args = parser.parse_args()
    wanted = [text.partition(":") for text in args.setting]
    settings = {text: (Setting.parse(text), int(seeds or args.seeds)) for text, _, seeds in wanted}
    bench = Bench(args)
    found = {
        text: [bench.row(text, chosen, seed) for seed in range(seeds)] for text, (chosen, seeds) in settings.items()
    }
    summary = [summed(text, rows) for text, rows in found.items()]
    rows = [row for each in found.values() for row in each]
    for each in summary:
        print(each)
    results = {"bits": args.bits, "images": len(bench.images), "most_pictures": args.limit, "summary": summary}
    save(f"basis_{args.teacher}_{args.bits}", results | {"rows": rows}, args.json)


def summed(text: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; the standard error is that of the draws."""
    divergences = [row["kl"] for row in rows]
    spread = statistics.stdev(divergences) / math.sqrt(len(rows)) if len(rows) > 1 else None
    means = {key: statistics.fmean(row[key] for row in rows) for key in ("kl", "agreement", "top1_drop", "error")}
    return {"setting": text, "seeds": len(rows), **means, "standard_error_of_kl": spread}


class Bench:
    """What settings share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cache = args, args.cache
        self.recipe: Recipe = make_recipe({"teacher": args.teacher, "bits": args.bits, "effort": "quick"})
        self.scheme = self.recipe.quant_scheme()
        self.teacher, self.images = load_teacher(args.teacher, args.checkpoint), load_images(args.images)
        self.show, self.held_out = material(self.teacher, self.images, self.recipe.calibration)
        self.folded, _ = fold(self.teacher.model)
        self.bits = {name: self.scheme.layer(name).weight for name in quantized_layers(self.folded)}

    @cached_property
    def exam(self) -> Exam:
        pictures = split(open_pictures(self.args, self.teacher.spec), self.args.limit, 0)[0]
        return Exam(self.teacher, pictures)

    @cached_property
    def moments(self) -> Moments:
        return Moments(self.folded, self.show("mixed").first(MOMENT_IMAGES))

    def row(self, text: str, setting: Setting, seed: int) -> dict[str, Any]:
        path = self.cache and self.cache / f"{text}.{seed}.json"
        if path and path.exists():
            return dict(json.loads(path.read_text()))
        row = {"setting": text, "seed": seed, "commit": commit(), **self.measure(setting, seed)}
        print(row, flush=True)
        if path:
            path.write_text(json.dumps(row))
        return row

    def measure(self, setting: Setting, seed: int) -> dict[str, Any]:
        model = rotate(self.folded, self.rotations(setting, seed))
        if setting.folds:
            model = fold_heads(model, self.bits, setting.folds, self.recipe.basis.updates, seed)
        calibration, rounding = self.recipe.calibration, self.recipe.rounding
        views = self.show(calibration.views)
        student = insert_quantizers(centre(model, views) if setting.centre else model, self.scheme)
        set_ranges(student, model, views, self.held_out, calibration)
        round_weights(student, model, self.scheme, self.show(rounding.views), rounding, calibration.seed)
        start, _ = self.exam.judge(student)
        history = self.train(student, model, setting.updates) if setting.updates else []
        real = self.exam.judge(student)[0] if history else start

        return {
            "kl": real["kl"],
            "agreement": real["agreement"],
            "top1_drop": 100 * real["top1_drop"],
            "error": rounding_error(model, self.bits),
            "training": [{"update": 0, "real_kl": start["kl"]}, *history] if history else [],
        }

    def train(self, student: VisionTransformer, model: VisionTransformer, updates: int) -> list[dict[str, Any]]:
        """Leaves `student` at its best; what it was half way and at the end, and the held-out KL of all checks."""
        settings = dataclasses.replace(self.recipe.training, updates=updates, checks=2)
        trainer = Trainer(student, model, self.show(settings.views), self.held_out, settings)
        trainer.best.check(student, None, 0)
        found = []
        while trainer.goes_on():
            trainer.update()
            if trainer.done % (updates // 2) == 0:
                real, _ = self.exam.judge(student)
                found.append({"update": trainer.done, "real_kl": real["kl"], "real_agreement": real["agreement"]})
        outcome = trainer.conclude()
        checks = [(update, fidelity.kl) for update, fidelity in outcome.history]
        return [*found, {"kept": outcome.best_update, "averaged": outcome.averaged, "held_out_kl": checks}]

    def rotations(self, setting: Setting, seed: int) -> Rotations:
        """Learned, or from the cache."""
        plain = not any(setting.objective.values())
        name = "_".join(f"{key}{value:g}" for key, value in setting.objective.items() if value) or PLAIN
        path = self.cache and self.cache / f"rotations_{name}.{seed}.safetensors"
        if path and path.exists():
            return Rotations.from_tensors(load_file(path))
        objective = relative_error if plain else Weighted(self.folded, setting, self.moments)
        found = learn_rotations(self.folded, self.bits, self.recipe.basis.updates, seed, objective=objective)
        if path:
            save_file({name: value.contiguous() for name, value in found.tensors().items()}, path)
        return found


class Moments:
    """By layer of the blocks: second moments of the inputs `inputs` [in, in], tokens weighed by their saliency, and of
    the gradients at the outputs `outputs` [out, out], both of a folded model."""

    def __init__(self, model: VisionTransformer, views: Views) -> None:
        layers = block_linears(model)
        saliency = token_saliency(model, views, layers)
        tokens = list(_blocks_inputs(model, views))
        self.inputs: dict[str, Tensor] = {}
        for number, block in enumerate(model.blocks):
            for part, layer in quantized_layers(block).items():
                name = f"blocks.{number}.{part}"
                hessians = layer_hessians(layer, block, tokens, [batch[name] for batch in saliency])
                self.inputs[name] = hessians.mean(0).float()
            tokens = [block(batch) for batch in tokens]
        self.outputs = {name: torch.zeros(layer.out_features, layer.out_features) for name, layer in layers.items()}
        for found in answer_gradients(model, views, layers, "outputs", Generator().manual_seed(0)):
            for name, (_, gradients) in found.items():
                flat = gradients.flatten(0, -2)
                self.outputs[name] += flat.T @ flat


@torch.no_grad()
def _blocks_inputs(model: VisionTransformer, views: Views) -> Iterator[Tensor]:
    """What the first block gets, batch by batch [B, T, D]."""
    for patches, kept in views.batches():
        yield embed(model, patches, kept)


class Weighted:
    """The objective of a `Setting`. Layers outside the blocks have 8 bits at least, and keep the plain one."""

    def __init__(self, model: VisionTransformer, setting: Setting, moments: Moments) -> None:
        self.setting, self.heads = setting, model.blocks[0].attn.num_heads
        self.inputs = {name: _unit(value) for name, value in moments.inputs.items()}
        self.outputs = {name: _unit(value) for name, value in moments.outputs.items()}
        layers = quantized_layers(model)
        importance = {
            name: float(value.diagonal().mean() * moments.outputs[name].diagonal().mean())
            * float(layers[name].weight.square().sum())
            for name, value in moments.inputs.items()
        }
        mean = statistics.fmean(importance.values())
        self.importance = {name: (value / mean) ** setting.layers for name, value in importance.items()}

    def __call__(self, rounded: Rounded) -> Tensor:
        if rounded.layer not in self.inputs:
            return relative_error(rounded)
        chosen = self.setting
        moments = _turned_inputs(rounded, self.inputs[rounded.layer])
        weights = 1 - chosen.columns - chosen.full + chosen.columns * moments.diagonal()
        errors = (rounded.error.square() * weights).sum(-1)
        if chosen.full:
            errors = errors + chosen.full * (rounded.error @ moments * rounded.error).sum(-1)
        if chosen.rows:
            errors = errors * (1 - chosen.rows + chosen.rows * _turned_outputs(rounded, self.outputs[rounded.layer]))
        cost = errors.sum() / rounded.size * self.importance[rounded.layer]
        return cost * _left_by_gptq(moments) ** chosen.gptq if chosen.gptq else cost


def _unit(moments: Tensor) -> Tensor:
    """Of mean 1 on the diagonal."""
    return moments / moments.diagonal().mean()


def _turned_inputs(rounded: Rounded, moments: Tensor) -> Tensor:
    """`moments` [in, in] of a layer's inputs in the basis as it is."""
    if rounded.layer.endswith((".attn.qkv", ".mlp.fc1")):
        return rounded.stream.T @ moments @ rounded.stream
    if rounded.layer.endswith(".attn.proj") and rounded.values is not None:
        turn = torch.block_diag(*rounded.values)
        return turn.T @ moments @ turn
    return moments


def _turned_outputs(rounded: Rounded, moments: Tensor) -> Tensor:
    """The diagonal of `moments` [out, out] in the basis as it is, of the rows of `rounded`."""
    if rounded.layer.endswith((".attn.proj", ".mlp.fc2")):
        return (moments @ rounded.stream * rounded.stream).sum(0)[rounded.chosen]
    if rounded.error.dim() == 3 and rounded.values is not None:
        heads, size, _ = rounded.values.shape
        own = moments[2 * heads * size :, 2 * heads * size :].view(heads, size, heads, size)
        own = own.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [heads, s, s]
        return (own @ rounded.values * rounded.values).sum(1)[:, rounded.chosen]
    return moments.diagonal()[rounded.chosen]


def _left_by_gptq(moments: Tensor) -> Tensor:
    """Share of a row's squared output error that is left when later columns make good what they can: the mean of what
    each input varies by where those behind it are known, in order, of `moments` with GPTQ's damping."""
    damped = moments + DAMPING * torch.eye(len(moments))
    return torch.linalg.cholesky(damped.flip(0, 1)).diagonal().square().mean()


@dataclass(frozen=True)
class _Heads:
    """Weights of one attention: `q`, `k`, `v` [heads, s, D], `out` [heads, D, s]."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


def fold_heads(
    model: VisionTransformer, bits: dict[str, int], which: str, updates: int, seed: int
) -> VisionTransformer:
    """A copy of `model` that computes the same, q and k, or values and attn.proj, being mixed within each head by an
    invertible A and its inverse: that of least rounding error in the products q^T k and proj v."""
    model, generator = copy.deepcopy(model), Generator().manual_seed(seed)
    for name, attention in value_attentions(model).items():
        if which in ("qk", "both"):
            _fold_pair(attention, bits[f"{name}.qkv"], bits[f"{name}.qkv"], "qk", updates, generator)
        if which in ("values", "both"):
            _fold_pair(attention, bits[f"{name}.qkv"], bits[f"{name}.proj"], "values", updates, generator)
    return model


def _fold_pair(attention: Any, first: int, second: int, which: str, updates: int, generator: Generator) -> None:
    heads, size = attention.num_heads, attention.head_dim
    q, k, v = (part.view(heads, size, -1) for part in attention.qkv.weight.detach().chunk(3))
    out = attention.proj.weight.detach().unflatten(1, (heads, size))  # [D, heads, s]
    one, other = (q, k) if which == "qk" else (v, out.permute(1, 2, 0))  # [heads, s, D]
    skew = torch.zeros(heads, size, size, requires_grad=True)
    stretch = torch.zeros(heads, size, size, requires_grad=True)
    optimizer = torch.optim.Adam([skew, stretch], lr=RATE)
    rounders = Rounder(first, (heads, size), one), Rounder(second, (heads, size) if which == "qk" else (len(out),), one)
    everything = [torch.arange(rounder.steps.shape[-1]) for rounder in rounders]
    whole = (one.mT @ other).square().sum() if which == "qk" else (other.mT @ one).square().sum()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * update / updates))
        mix, back = _mixes(skew, stretch)
        ours, theirs = mix.mT @ one, back @ other
        error = ours - rounders[0].round(ours, everything[0], generator)
        if which == "qk":
            counter = theirs - rounders[1].round(theirs, everything[1], generator)
        else:  # its steps are those of the rows of attn.proj, all heads together
            rows = theirs.permute(2, 0, 1).flatten(1)
            counter = (rows - rounders[1].round(rows, everything[1], generator)).unflatten(1, (heads, size))
            counter = counter.permute(1, 2, 0)
        cost = _product(error, theirs) + _product(counter, ours)
        optimizer.zero_grad()
        (cost / whole).backward()
        optimizer.step()
    mix, back = (part.detach().double() for part in _mixes(skew, stretch))
    rows = slice(0, heads * size) if which == "qk" else slice(2 * heads * size, None)
    _mix_rows(attention.qkv, rows, mix.mT)
    if which == "qk":
        _mix_rows(attention.qkv, slice(heads * size, 2 * heads * size), back)
    else:
        attention.proj.weight.copy_(torch.einsum("hts,ohs->oht", back, out.double()).flatten(1))


def _mixes(skew: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
    """A and its inverse, [heads, s, s]: a rotation times the exponential of a symmetric matrix."""
    turn, symmetric = cayley(skew), (stretch + stretch.mT) / 2
    return turn @ torch.linalg.matrix_exp(symmetric), torch.linalg.matrix_exp(-symmetric) @ turn.mT


def _product(error: Tensor, other: Tensor) -> Tensor:
    """What errors [heads, s, D] do to products with `other` [heads, s, D], if those of different rows are unlike."""
    return (error.square().sum(-1) * other.square().sum(-1)).sum()


def _mix_rows(linear: Any, rows: slice, mix: Tensor) -> None:
    """`rows` of weight and bias, heads * s of them, times `mix` [heads, s, s] from the left."""
    weight = linear.weight.data[rows]
    weight.copy_((mix @ weight.double().view(*mix.shape[:2], -1)).flatten(0, 1))
    if linear.bias is not None:
        bias = linear.bias.data[rows]
        bias.copy_((mix @ bias.double().view(*mix.shape[:2], 1)).flatten())


if __name__ == "__main__":
    main()
