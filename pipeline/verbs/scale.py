"""Work on more than one machine: what a folder of shards lacks, and what a large job takes."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from inversion.errors import InputError
from pipeline.verbs.options import (
    DivisionFactor,
    Effort,
    Iterations,
    Method,
    Overrides,
    RecipeFile,
    Seed,
    Sparsity,
    Teacher,
    batch_of,
    flags_of,
    require_place,
)


def shards(
    folder: Annotated[Path, typer.Argument(help="A folder of shards, or a run folder.")],
    missing: Annotated[
        bool, typer.Option("--missing", help="Only the numbers of what is to be made, as 3,7-9; nothing where all is.")
    ] = False,
    of: Annotated[int | None, typer.Option(help="With --missing, the parts of so many that lack something.")] = None,
) -> None:
    """What a folder of shards holds, and what it lacks.

    A shard that a process is at counts as missing until it is there.
    """
    if of is not None and (of < 1 or not missing):
        raise InputError(f"--of {of} is the number of parts that --missing tells of: give both, and at least 1.")

    from inversion.census import take_census
    from inversion.shards import compact

    census = take_census(folder)
    if not missing:
        typer.echo("\n".join(census.lines()))
    elif numbers := census.missing if of is None else census.parts(of):
        typer.echo(compact(numbers))


def plan(
    images: Annotated[int, typer.Option(help="How many sparse images.")],
    gpus: Annotated[int, typer.Option(help="How many equal GPUs.")],
    teacher: Teacher = None,
    method: Method = None,
    division_factor: DivisionFactor = None,
    sparsity: Sparsity = None,
    iterations: Iterations = None,
    batch: Annotated[str | None, typer.Option(help="Sparse images per shard; 128 by default.")] = "128",
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s of a GPU; by default what the paper's reached.")] = None,
    bench: Annotated[Path | None, typer.Option(help="What `pipeline bench inversion --json` measured.")] = None,
    hours_to_failure: Annotated[float, typer.Option(help="Of one GPU, assumed.")] = 1000.0,
    effort: Effort = None,
    seed: Seed = None,
    json: Annotated[Path | None, typer.Option(help="File for all figures.")] = None,
    recipe: RecipeFile = None,
    overrides: Overrides = None,
) -> None:
    """A large inversion on paper, checked by simulation.

    FLOPs, bytes and hours follow by formula; workers that fail and claims that are taken over are simulated.
    """
    if json:
        require_place(json, "--json")
    if tflops is not None and bench is not None:
        raise InputError(f"--tflops {tflops} and --bench {str(bench)!r} both tell of a GPU's speed: give one of both.")
    if gpus < 1 or not hours_to_failure > 0:
        raise InputError(f"{gpus} GPUs that last {hours_to_failure:g} hours do nothing: take more of both.")
    flags = flags_of(
        teacher=teacher, effort=effort, seed=seed,
        inversion={
            "method": method, "division_factor": division_factor, "sparsity": sparsity, "images": images,
            "iterations": iterations, "batch": batch_of(batch),
        },
    )  # fmt: skip

    from pipeline.recipe.resolve import make_recipe

    chosen = make_recipe(flags, recipe, overrides or (), "plan")

    from inversion.cost import Geometry
    from inversion.inverter import plan as stages_of
    from inversion.teacher import load_teacher
    from pipeline.reproduce import fleet
    from pipeline.reproduce.simulation import Trouble

    job, trouble = chosen.inversion, Trouble(hours_to_failure)
    rate = fleet.rate_of(chosen.teacher, job, tflops, bench)
    loaded = load_teacher(chosen.teacher, random_weights=True)  # sizes are all that is asked of it
    made = fleet.plan_fleet(Geometry.of(loaded.model), stages_of(loaded, job), job, gpus, rate)
    outcomes = fleet.check_fleet(made, trouble, chosen.seed)
    if json:
        json.write_text(dumps(fleet.to_json(made, outcomes, trouble), indent=2) + "\n")
    typer.echo("\n".join(fleet.in_words(made, outcomes, trouble)))
