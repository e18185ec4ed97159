"""`pipeline plan`: figures that follow from formulas, and a simulation that keeps to what claims do."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from inversion.cost import Geometry, iteration_flops
from inversion.errors import InputError
from inversion.inverter import invert_into
from inversion.inverter import plan as stages_of
from inversion.job import Inversion
from inversion.schedule import schedule
from inversion.shards import read_header
from pipeline.reproduce import paper
from pipeline.reproduce.fleet import Rate, check_fleet, in_words, plan_fleet, rate_of
from pipeline.reproduce.simulation import Trouble, simulate
from tests.shell import run
from tests.small import small_teacher

TEACHER = small_teacher()
GEOMETRY = Geometry.of(TEACHER.model)
NO_TROUBLE = Trouble(math.inf, spread=0)
MUCH_TROUBLE = Trouble(hours_to_failure=1, spread=0.3)
JOB = Inversion(images=1000, batch=8, iterations=100, division_factor=4)


def test_a_plan_is_the_formulas() -> None:
    """FLOPs are those of each stage's iterations, hours those FLOPs at the rate; the last round counts as a whole."""
    plan = plan_fleet(GEOMETRY, stages_of(TEACHER, JOB), JOB, gpus=3, rate=Rate(1e9, "given"))
    assert (plan.shards, plan.images_per_shard) == (125, 8)
    shard = sum(25 * iteration_flops(GEOMETRY, active, 2, lean=True).total for active in (16, 12, 8, 4))
    assert plan.seconds_per_shard == pytest.approx(shard / 1e9)
    assert plan.flops == pytest.approx(125 * shard)
    assert plan.gpu_hours == pytest.approx(125 * shard / 1e9 / 3600)
    assert plan.hours == pytest.approx(42 * shard / 1e9 / 3600)


@pytest.mark.parametrize("change", [{}, {"division_factor": 3, "batch": 6}, {"method": "dmi"}])
def test_bytes_are_those_of_shards(tmp_path: Path, change: dict[str, object]) -> None:
    """What really lies on the disk, but for each file's header."""
    job = replace(JOB, images=12, iterations=6, **change)  # type: ignore[arg-type]
    plan = plan_fleet(GEOMETRY, stages_of(TEACHER, job), job, gpus=1, rate=Rate(1e9, "given"))
    paths = invert_into(TEACHER, job, tmp_path)
    pixels = []
    for path in paths:
        assert read_header(path)
        pixels.append(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little"))
    assert pixels[0] == plan.bytes_per_shard
    assert sum(pixels) == plan.bytes


def test_the_rate_says_where_it_is_from(tmp_path: Path) -> None:
    """Given, measured, or what the paper's GPU reached with this teacher and method; what is none is refused."""
    assert rate_of("deit_base", JOB, 50, None) == Rate(50e12, "given")
    published = (paper.efficiency("deit_base") or {})["pri_v4"]
    by_paper = rate_of("deit_base", JOB, None, None)
    assert by_paper.flops_per_s == published.iterations_per_s * published.flops
    assert "6.4 iterations/s of 2090 GFLOP" in by_paper.source
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"rows": [{"name": "pri_v4", "flops_per_s": 7e13}]}))
    assert rate_of("deit_base", JOB, None, bench) == Rate(7e13, "pri_v4 as measured in bench.json")
    with pytest.raises(InputError, match="has no row 'dmi'"):
        rate_of("deit_base", replace(JOB, method="dmi"), None, bench)
    for content in ("", "[]", '{"rows": [{"name": "pri_v4"}]}'):
        bench.write_text(content)
        with pytest.raises(InputError, match="is no record of a bench"):
            rate_of("deit_base", JOB, None, bench)


@given(st.integers(1, 60), st.integers(1, 20))
def test_without_trouble_it_takes_what_the_plan_says(shards: int, workers: int) -> None:
    """Full rounds of equal shards, each made once."""
    found = simulate(shards, 60.0, workers, NO_TROUBLE)
    assert found.hours == pytest.approx(math.ceil(shards / workers) / 60)
    assert (found.failures, found.made_twice, found.made_most, found.lost_gpu_hours) == (0, 0, 1, 0)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 999))
def test_whatever_fails_all_is_made(shards: int, workers: int, seed: int) -> None:
    """Every shard is there in the end, no earlier than without failures; only a worker that woke up makes one twice."""
    found = simulate(shards, 900.0, workers, replace(MUCH_TROUBLE, spread=0), seed)
    assert found.hours >= math.ceil(shards / workers) * 0.25 - 1e-9
    assert found.made_most >= 1
    assert found.made_twice <= found.failures
    assert found == simulate(shards, 900.0, workers, replace(MUCH_TROUBLE, spread=0), seed)


def test_failures_cost_what_they_should() -> None:
    """At one failure in ten shards' times there are about as many as that, some shards are made twice, and a failure
    that is no stall loses less than a shard."""
    found = simulate(2000, 360.0, 10, Trouble(hours_to_failure=1, spread=0))
    assert 170 < found.failures < 270
    assert 0 < found.made_twice < found.failures / 3
    assert 0 < found.lost_gpu_hours < 0.1 * found.failures
    assert found.made_most == 2


def test_too_much_is_refused() -> None:
    """More shards than can be simulated, GPUs that end none, and a batch that only a GPU could tell."""
    stages = stages_of(TEACHER, JOB)
    plan = plan_fleet(GEOMETRY, stages, replace(JOB, images=4_000_000), 64, Rate(1e9, "given"))
    with pytest.raises(InputError, match="are too many to simulate: take a larger"):
        check_fleet(plan, NO_TROUBLE)
    slow = plan_fleet(GEOMETRY, stages, JOB, 64, Rate(1e6, "given"))
    with pytest.raises(InputError, match=r"^GPUs that fail every 0\.001 hours end hardly a shard of \d"):
        check_fleet(slow, Trouble(hours_to_failure=0.001))
    with pytest.raises(InputError, match="as a number, not auto"):
        plan_fleet(GEOMETRY, stages, replace(JOB, batch=0), 64, Rate(1e9, "given"))


def test_the_command_tells_and_writes_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Assumptions stand beside what follows from them; --json holds all figures; two speeds are refused."""
    monkeypatch.chdir(tmp_path)
    line = "plan --images 4096 --gpus 8 --teacher digits_vit --iterations 400"
    assert run(f"{line} --tflops 0.5 --json plan.json") == 0
    said = capfd.readouterr().out
    assert "32 shards of 128 images" in said
    assert "assumed: 0.5 TFLOP/s a GPU, given" in said
    told = json.loads(Path("plan.json").read_text())
    assert (told["shards"], told["gpus"], len(told["simulated"])) == (32, 8, 5)
    assert f"{told['hours']:.2f} hours on 8 GPUs" in said
    for words, wrong in (
        ("--tflops 1 --bench b", "both tell"),
        ("--tflops 0", "is no speed"),
        ("--batch auto", "auto"),
    ):
        assert run(f"{line} {words}") == 2
        assert wrong in capfd.readouterr().err


def test_the_plan_on_the_page_is_the_commands() -> None:
    """docs/scale.md shows what `pipeline plan` says of DeiT-Base, whose sizes are known without weights."""
    with torch.device("meta"):
        model = timm.create_model("deit_base_patch16_224")
    job = Inversion(images=1_281_167, batch=128, iterations=4000)
    plan = plan_fleet(Geometry.of(model), schedule(job, 196), job, 64, rate_of("deit_base", job, None, None))
    said = in_words(plan, check_fleet(plan, Trouble()), Trouble())
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
    assert " ".join(" ".join(said).split()) in " ".join(page.split())
