"""The bench of inversion: its rows, what it counts, and what it refuses."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inversion.cost import Geometry, forward_products, mean_iteration_flops
from inversion.errors import InputError
from inversion.inverter import Inverter
from inversion.job import Inversion
from inversion.teacher import Teacher, load_teacher
from pipeline import cli
from pipeline.reproduce.bench import METHODS, Bench, PeakMemory, measure_inversion, results_table
from pipeline.reproduce.paper import efficiency

ROW = {
    "name", "iterations_per_s", "spread", "speedup_over_dmi", "trajectories", "images", "flops_per_iteration",
    "flops_per_s", "share_of_matmul_rate", "peak_bytes", "stages", "paper_iterations_per_s", "paper_speedup_over_dmi",
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher("digits_vit")


@pytest.fixture(scope="module")
def results(teacher: Teacher) -> Bench:
    """One round with 15 images, in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.reproduce.bench.UPDATES", {"cpu": (1, 1)})
        patch.setattr("pipeline.reproduce.bench.PRODUCT_SIDE", {"cpu": 64})
        return measure_inversion(teacher, 15, rounds=1, precision="float32")


def test_a_row_for_each_method(results: Bench) -> None:
    """Names, keys and counts are those that scripts rely on; images come in whole trajectories."""
    assert [row["name"] for row in results["rows"]] == list(METHODS)
    assert all(row.keys() == ROW for row in results["rows"])
    counts = {row["name"]: (row["trajectories"], row["images"]) for row in results["rows"]}
    assert counts["dmi"] == counts["smi_76"] == (15, 15)
    assert counts["pri_v2"] == (7, 14)
    assert counts["pri_v4"] == (3, 12)
    assert counts["pri_v7"] == (2, 14)
    assert all(row["iterations_per_s"] > 0 and row["peak_bytes"] > 0 for row in results["rows"])
    assert json.loads(json.dumps(results)) == results


def test_an_iteration_costs_two_forward_passes(teacher: Teacher, results: Bench) -> None:
    """Never above twice the forward pass of the active patches by 3%, all of its matrix products counted.

    Attention's backward is twice its forward, and the last of six blocks is computed for the class token alone.
    """
    geometry = Geometry.of(teacher.model)
    for row in results["rows"]:
        each = [stage["iterations"] * forward_products(geometry, stage["active"]).total for stage in row["stages"]]
        ratio = row["flops_per_iteration"] / (sum(each) / 4000 * row["trajectories"])
        assert 1.7 < ratio < 2.06, row["name"]


def test_flops_are_those_of_the_real_update(teacher: Teacher) -> None:
    """What a row says, torch counts in an update of the loop: its attention in bfloat16 is of plain products."""
    job = Inversion(images=12, batch=12, iterations=4000, precision="bfloat16")
    inverter = Inverter(teacher, job)
    loop, counted = inverter.loop(0), 0.0
    for stage in inverter.stages:
        with FlopCounterMode(display=False) as counter:
            loop.step()
        counted += counter.get_total_flops() * stage.iterations / 4000
        loop.detach(stage.leave) if stage is not inverter.stages[-1] else None
    assert counted == mean_iteration_flops(Geometry.of(teacher.model), inverter.stages, 3, lean=True)


def test_stages_are_those_of_the_schedule(results: Bench) -> None:
    """Each stage is timed, and counts by its share of the paper's 4,000 iterations."""
    rows = {row["name"]: row for row in results["rows"]}
    assert [(stage["active"], stage["iterations"]) for stage in rows["smi_76"]["stages"]] == [
        (64, 50), (44, 50), (30, 100), (21, 100), (14, 3700),
    ]  # fmt: skip
    pri = rows["pri_v4"]
    assert [stage["active"] for stage in pri["stages"]] == [64, 48, 32, 16]
    seconds = sum(stage["iterations"] * stage["ms"] for stage in pri["stages"]) / 4000 / 1000
    assert pri["iterations_per_s"] == pytest.approx(1 / seconds)


def test_sparse_images_need_less_memory(results: Bench) -> None:
    """PRI holds fewer trajectories at once than DMI."""
    peak = {row["name"]: row["peak_bytes"] for row in results["rows"]}
    assert peak["pri_v7"] < peak["pri_v4"] < peak["pri_v2"] < peak["dmi"]


def test_paper_figures_stand_beside_its_models() -> None:
    """For a model of Table A1 the rows carry the paper's throughput and its own ratio to DMI."""
    tiny = efficiency("deit_tiny")
    assert (tiny["dmi"].iterations_per_s, tiny["pri_v7"].iterations_per_s) == (6.49, 40.92)
    assert not efficiency("digits_vit")


def test_table_shows_every_row(results: Bench) -> None:
    """A line for each method."""
    assert results_table(results).row_count == 7


def test_peak_memory_is_what_lives_at_once() -> None:
    """Tensors that are gone no longer count, views count once, and gradients' saved tensors count while they live."""
    with PeakMemory() as memory:
        one = torch.zeros(1000)
        del one
        two = torch.ones(500)
        two.view(5, 100).add_(1)
    assert memory.peak == 4000
    assert memory.live == 2000
    del two
    assert memory.live == 0


def test_counting_does_not_change_the_update(teacher: Teacher) -> None:
    """Under both counters the loop makes the same pixels as without."""
    job = Inversion(method="dmi", images=2, batch=2, iterations=3, precision="float32")
    plain, counted = (Inverter(teacher, job).loop(0) for _ in range(2))
    plain.step()
    with PeakMemory(), FlopCounterMode(display=False):
        counted.step()
    assert torch.equal(plain.pixels, counted.pixels)


@pytest.mark.parametrize(("batch", "rounds", "message"), [(6, 1, "--batch 6 is less"), (7, 0, "--rounds 0 times")])
def test_nothing_to_time_is_refused(teacher: Teacher, batch: int, rounds: int, message: str) -> None:
    """A batch below v=7's trajectory and zero rounds each get a sentence."""
    with pytest.raises(InputError, match=f"^{message}"):
        measure_inversion(teacher, batch, rounds)


def test_the_command_writes_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`pipeline bench inversion --random-weights --json F`: exit code 0, a table, and all rows in F."""
    monkeypatch.setattr("pipeline.reproduce.bench.UPDATES", {"cpu": (1, 1)})
    monkeypatch.setattr("pipeline.reproduce.bench.PRODUCT_SIDE", {"cpu": 64})
    file = tmp_path / "bench.json"
    line = f"pipeline bench inversion --teacher digits_vit --random-weights --batch 7 --rounds 1 --quiet --json {file}"
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == list(METHODS)
    assert "pri_v7" in capfd.readouterr().out
