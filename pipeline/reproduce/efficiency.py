"""Tables 2 and A1, and Theorem 1: what inversion costs."""

from __future__ import annotations

from inversion.cost import (
    Geometry,
    Workload,
    dmi_cost,
    mean_iteration_flops,
    paper_iteration_flops,
    patch_bound,
    pri_cost,
    pri_ffn_ratio,
    smi_cost,
)
from inversion.job import Inversion
from inversion.schedule import schedule
from pipeline.reproduce import paper
from pipeline.reproduce.bench import measure_inversion
from pipeline.reproduce.laboratory import Laboratory
from pipeline.reproduce.result import Cell, Result

ROUNDS = 1
DIVISION_FACTORS = (2, 4, 7)
T = 4000


def table_a1(laboratory: Laboratory) -> Result:
    """Iterations a second, FLOPs and memory of every method."""
    batch = laboratory.scale.batch
    with laboratory.display.progress() as progress:
        measured = measure_inversion(laboratory.teacher, batch, ROUNDS, "auto", progress)
    published = paper.efficiency(laboratory.teacher.name) or {}
    rows = {}
    for row in measured["rows"]:
        printed = published.get(row["name"])
        rows[row["name"]] = {
            "iterations/s": Cell((row["iterations_per_s"],), printed.iterations_per_s if printed else None),
            "times DMI": Cell((row["speedup_over_dmi"],), row["paper_speedup_over_dmi"]),
            "GFLOP": Cell((row["flops_per_iteration"] / 1e9,), printed.flops / 1e9 if printed else None),
            "peak, GB": Cell((row["peak_bytes"] / 1e9,), printed.memory_bytes / 1e9 if printed else None),
        }
    notes = [
        f"{batch} images an iteration, {measured['precision']}, {measured['device']}. The paper: 128 images, an A6000, "
        "and its FLOPs count a backward pass to the weights too, which inversion does not need.",
    ]
    return Result("tableA1", f"Tables 2 and A1: {laboratory.teacher.name}", rows, notes=notes, details=measured)


def theorem1(laboratory: Laboratory) -> Result:
    """PRI against SMI* and DMI by the theorem, and by the FLOPs of the schedules that really run."""
    model, geometry = laboratory.teacher.model, Geometry.of(laboratory.teacher.model)
    work = Workload(geometry.patches, geometry.width, layers=len(model.blocks), iterations=T)
    rows = {}
    for v in DIVISION_FACTORS:
        dmi, smi, pri = dmi_cost(work), smi_cost(work, v), pri_cost(work, v)
        sparsity = {2: 50, 4: 76, 7: 86}[v]
        jobs = [
            Inversion(method, iterations=T, division_factor=v, sparsity=sparsity) for method in ("dmi", "smi", "pri")
        ]
        stages = [schedule(job, geometry.patches) for job in jobs]
        ours = [mean_iteration_flops(geometry, each) / count for each, count in zip(stages, (1, 1, v), strict=True)]
        theirs = [paper_iteration_flops(geometry, each) / count for each, count in zip(stages, (1, 1, v), strict=True)]
        published = paper.efficiency(laboratory.teacher.name) or {}
        printed = [published[name].flops for name in (f"smi_{sparsity}", f"pri_v{v}")] if published else []
        rows[f"v = {v}"] = {
            "attention, PRI/SMI*": Cell((float(pri.attention / smi.attention),)),
            "FFN, PRI/SMI*": Cell((float(pri.ffn / smi.ffn),), float(pri_ffn_ratio(v))),
            "PRI/DMI": Cell((float((pri.attention + pri.ffn) / (dmi.attention + dmi.ffn)),)),
            "N/d must be below": Cell((float(patch_bound(v)),)),
            "scheduled FLOPs, PRI/SMI": Cell((ours[2] / ours[1],)),
            "as the paper counts, PRI/SMI": Cell(
                (theirs[2] / theirs[1],), printed[1] / printed[0] if printed else None
            ),
        }
    ratio = geometry.patches / geometry.width
    notes = [
        f"N/d is {ratio:.3f} here. SMI* is SMI with N/v patches from the first iteration on; by schedule it prunes in "
        "the first 300. The last column's paper figure is from its Table A1.",
    ]
    return Result("theorem1", f"Theorem 1: {laboratory.teacher.name}", rows, 4, notes)
