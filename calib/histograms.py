"""ModelOpt's histograms of activations, filled by several workers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from calib.parallel import Workers, part_of
from calib.views import Views
from inversion.plainvit import PlainViT


def collect(model: PlainViT, calibrators: Sequence[Any], images: Views, workers: Workers) -> None:
    """Show `images` to the `calibrators` of `model`, each of `workers` its share; all end with the same counts.

    What is added up must have bins of one width, which the first inputs decide that are not all 0: so everyone sees
    these, and forgets their counts.
    """
    if workers.size == 1:
        images.logits(model)
        return
    for batch in images.batches():
        Views((batch,)).logits(model)
        if all(calibrator._calib_hist is not None for calibrator in calibrators):
            break
    filled = [calibrator for calibrator in calibrators if calibrator._calib_hist is not None]
    for calibrator in filled:
        calibrator._calib_hist = torch.zeros_like(calibrator._calib_hist)
    part_of(images, workers).logits(model)
    for calibrator in filled:
        _join(calibrator, workers)


def _join(calibrator: Any, workers: Workers) -> None:
    """Add up the counts of all workers, whose bins reach unequally far."""
    counts, edges = calibrator._calib_hist, calibrator._calib_bin_edges
    lengths = workers.largest(torch.tensor([len(counts), len(edges)], device=counts.device)).tolist()
    all_counts, all_edges = counts.new_zeros(lengths[0]), edges.new_zeros(lengths[1])
    all_counts[: len(counts)] = counts
    all_edges[: len(edges)] = edges  # the same of everyone who reaches so far
    # ModelOpt makes edges on the CPU, where the counts may not be
    calibrator._calib_hist = workers.total(all_counts)
    calibrator._calib_bin_edges = workers.largest(all_edges.to(counts.device)).to(edges.device)
