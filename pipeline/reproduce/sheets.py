"""Figures 5, 6, A1 and A2: what the teacher makes of the images that it was inverted into."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from inversion.confidence import target_confidence
from inversion.folder import PROGRESS_FORMAT
from inversion.images import SparseImages
from inversion.job import Inversion
from inversion.shards import PROGRESS
from inversion.tensorfile import read_tensors
from pipeline.reproduce.laboratory import Laboratory, answers, features
from pipeline.reproduce.result import Cell, Result
from pipeline.show.gallery import rebirth_sheet, rebirths

METHODS = ("dmi", "smi_76", "pri_v4")
SURE = 0.9
MEAN, SPREAD, ABOVE = "mean confidence", "standard deviation", f"share above {SURE}"


def figure5(laboratory: Laboratory) -> Result:
    """The teacher's largest probability, by method and on real pictures."""
    sets = {
        method: torch.cat([_sureness(laboratory, laboratory.images(job)) for job in _jobs(laboratory, method)])
        for method in METHODS
    }
    notes = ["The paper prints histograms without numbers: PRI's spread as real ones', DMI's and SMI's near 1."]
    if laboratory.real is not None:
        sets["real"] = _sureness(laboratory, laboratory.real)
    else:
        notes.append("Real pictures: not run, they need --val-data.")
    rows = {name: _moments(values, laboratory) for name, values in sets.items()}
    title = "Figure 5: the teacher's confidence"
    return Result("figure5", title, rows, 3, notes, figures={"figure5": _histograms(title, sets)})


def figure6(laboratory: Laboratory) -> Result:
    """The same by PRI's detachment point."""
    stages: dict[str, list[Tensor]] = {}
    for job in _jobs(laboratory, "pri_v4"):
        images = laboratory.images(job)
        sure = _sureness(laboratory, images)
        for stage in images.stage.unique().tolist():
            stages.setdefault(f"t{stage}", []).append(sure[images.stage == stage])
    sets = {name: torch.cat(parts) for name, parts in stages.items()}
    rows = {name: _moments(values, laboratory) for name, values in sets.items()}
    notes = ["The paper prints histograms without numbers: broad at t1, sharp near 1 at t4."]
    title = "Figure 6: confidence by detachment point"
    return Result("figure6", title, rows, 3, notes, figures={"figure6": _histograms(title, sets)})


def figure_a1(laboratory: Laboratory) -> Result:
    """t-SNE of what the classifier reads, coloured by the teacher's answer; the silhouette says how far they part."""
    sets: dict[str, SparseImages] = {}
    for method in METHODS:
        images = laboratory.images(_jobs(laboratory, method)[0])
        if method == "pri_v4":
            sets |= {f"PRI t{stage}": images[images.stage == stage] for stage in images.stage.unique().tolist()}
        else:
            sets[method] = images
    if laboratory.real is not None:
        sets["real"] = laboratory.real
    least = min(map(len, sets.values()))
    rows, points, colours = {}, {}, {}
    for name, images in sets.items():
        some = images[torch.arange(least)]
        read = features(laboratory.teacher, some).numpy()
        answer = answers(laboratory.teacher, some).argmax(1).numpy()
        rows[name] = {"silhouette": Cell((_silhouette(read, answer),)), "classes": Cell((len(np.unique(answer)),))}
        perplexity = min(30.0, (least - 1) / 3)
        points[name] = TSNE(2, perplexity=perplexity, random_state=laboratory.seeds[0]).fit_transform(read)
        colours[name] = answer
    notes = [
        f"{least} images of each, labelled by the teacher's answer, first seed. The silhouette is of the features "
        "themselves, not of the map. The paper prints maps alone: entangled at t1, clustered as DMI and SMI at t4.",
    ]
    title = "Figure A1: features by class"
    return Result("figureA1", title, rows, 3, notes, figures={"figureA1": _maps(title, points, colours)})


def figure_a2(laboratory: Laboratory) -> Result:
    """Patches that were passed over at t_(k-1), and what became of them at t_k."""
    job = _jobs(laboratory, "pri_v4")[0]
    images = laboratory.images(job)
    tensors, _ = read_tensors(laboratory.folder(job) / PROGRESS, PROGRESS_FORMAT, "make it again.")
    before, after = rebirths(images, tensors["canvas"], tensors["trajectory"])
    sure = [target_confidence(laboratory.teacher, part) for part in (before, after)]
    rows = {
        f"set of t{stage}": {
            "confidence before": Cell((float(sure[0][before.stage == stage].mean()),)),
            "confidence after": Cell((float(sure[1][after.stage == stage].mean()),)),
        }
        for stage in after.stage.unique().tolist()
    }
    notes = ["Confidence in the target class of the same patches, one stage earlier and when they leave; first seed. "
             "The paper prints pictures alone."]  # fmt: skip
    figure = rebirth_sheet(before, after, *sure)
    return Result("figureA2", "Figure A2: re-birth", rows, 3, notes, figures={"figureA2": figure})


def _jobs(laboratory: Laboratory, method: str) -> list[Inversion]:
    return [laboratory.inversion(method, seed, laboratory.scale.images) for seed in laboratory.seeds]


def _sureness(laboratory: Laboratory, images: SparseImages) -> Tensor:
    """The teacher's largest probability [M] of each image's patches."""
    return answers(laboratory.teacher, images).softmax(1).amax(1)


def _moments(values: Tensor, laboratory: Laboratory) -> dict[str, Cell]:
    """A value a seed, of equal parts of `values`; of real pictures, which have no seed, one."""
    count = laboratory.scale.images * len(laboratory.seeds)
    parts = values.chunk(len(laboratory.seeds)) if len(values) >= count // 4 and len(laboratory.seeds) > 1 else [values]
    return {
        MEAN: Cell(tuple(float(part.mean()) for part in parts)),
        SPREAD: Cell(tuple(float(part.std()) for part in parts)),
        ABOVE: Cell(tuple(float((part > SURE).float().mean()) for part in parts)),
    }


def _silhouette(read: np.ndarray, answer: np.ndarray) -> float:
    """From -1 to 1; 0 where the teacher gives all the same answer, or each its own."""
    kinds = len(np.unique(answer))
    return float(silhouette_score(read, answer)) if 1 < kinds < len(answer) else 0.0


def _histograms(title: str, sets: dict[str, Tensor]) -> Figure:
    """Of probabilities; each panel has a height of its own, or one spike would flatten the others."""
    figure = Figure(figsize=(2.4 * len(sets), 2.8), layout="constrained")
    for panel, (name, values) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        share = np.full(len(values), 100 / len(values))
        panel.hist(values.numpy(), bins=np.linspace(0, 1, 21).tolist(), weights=share)
        panel.set_title(f"{name}, n = {len(values)}", fontsize=8)
        panel.set_xlim(0, 1)
        panel.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("largest probability of the teacher", fontsize=8)
    figure.supylabel("images, % (each panel on its own scale)", fontsize=8)
    return figure


def _maps(title: str, points: dict[str, np.ndarray], colours: dict[str, np.ndarray]) -> Figure:
    """Places of t-SNE, which have no unit."""
    figure = Figure(figsize=(2.4 * len(points), 3.0), layout="constrained")
    for panel, (name, place) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        panel.scatter(*place.T, c=colours[name], cmap="tab20", s=6)
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"{name}, n = {len(place)}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("t-SNE of the features, each panel on its own scale; coloured by the teacher's answer", fontsize=8)
    return figure
