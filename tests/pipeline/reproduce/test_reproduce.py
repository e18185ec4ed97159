"""`pipeline reproduce`: every name runs at the smallest scale, and tables say what they hold and what they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from inversion.errors import InputError
from inversion.teacher import load_teacher
from pipeline.reproduce import paper
from pipeline.reproduce.bench import METHODS
from pipeline.reproduce.experiments import EXPERIMENTS, find_experiment
from pipeline.reproduce.laboratory import Laboratory
from pipeline.reproduce.result import Cell, Result
from pipeline.reproduce.scale import SCALES, choose_scale
from pipeline.reproduce.sheets import _histograms
from pipeline.show.display import Display
from tests.shell import run

TINY = "--set images=28 --set iterations=14 --set batch=28 --set batches=1 --set epochs=1 --set updates=1 --set few=7"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduced")


pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods are enough to see that a table is filled as it should be."""
    some = {name: METHODS[name] for name in ("smi_76", "pri_v4")}
    for module in ("students", "quantized"):
        monkeypatch.setattr(f"pipeline.reproduce.{module}.METHODS", some)


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"table2", "figure4", "tableA3", "tableA1"}))
def test_every_name_gives_a_table(name: str, out: Path) -> None:
    """JSON with a value a seed, Markdown with the paper's column where the paper has numbers, pictures of figures."""
    assert run(f"reproduce {name} --teacher digits_vit --out {out} {TINY} --quiet") == 0
    found = json.loads((out / f"{name}.json").read_text())
    assert found["teacher"]["name"] == "digits_vit"
    assert found["scale"]["iterations"] == 14
    assert found["rows"]
    for row in found["rows"].values():
        for cell in row.values():
            assert cell["mean"] is not None
            assert set(cell) == {"ours", "mean", "spread", "paper"}
    text = (out / f"{name}.md").read_text()
    assert all(f"| {label} |" in text for label in found["rows"])
    assert all(note in text for note in found["notes"])
    printed = [cell["paper"] for row in found["rows"].values() for cell in row.values()]
    assert ("| paper" in text) == any(value is not None for value in printed)
    if name.startswith("figure"):
        assert (out / f"{name}.png").stat().st_size > 3000


def test_the_papers_numbers_stand_beside_ours(out: Path) -> None:
    """Table A3, in the order of the methods."""
    assert run(f"reproduce tableA3 --teacher digits_vit --out {out} {TINY} --quiet") == 0
    rows = json.loads((out / "tableA3.json").read_text())["rows"]
    published = paper.distillation("cifar10", "deit_tiny")
    assert published is not None
    assert {method: row["top-1, %"]["paper"] for method, row in rows.items()} == {
        method: published[method] for method in ("smi_76", "pri_v4")
    }


def test_images_are_inverted_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figure 5's sets serve figure A1."""
    line = f"--teacher digits_vit --out {out} {TINY} --quiet"
    assert run(f"reproduce figure5 {line}") == 0
    monkeypatch.setattr("inversion.inverter.Inverter.shard", lambda *_: pytest.fail("it inverts again"))
    assert run(f"reproduce figureA1 {line}") == 0


def test_histograms_are_labelled_and_have_scales_of_their_own() -> None:
    """A title, both axes, and in each panel the height of its own fullest bin, in percent of its own images."""
    sets = {"even": torch.linspace(0, 1, 100), "one spike": torch.full((7,), 0.97)}
    figure = _histograms("Figure 5: something", sets)
    assert figure.get_suptitle() == "Figure 5: something"
    assert figure.get_supxlabel() == "largest probability of the teacher"
    assert figure.get_supylabel().startswith("images, %")
    tallest = [max(bar.get_height() for bar in axes.patches) for axes in cast(Any, figure.axes)]
    assert tallest == [pytest.approx(5, abs=1), pytest.approx(100)]
    assert [axes.get_ylim()[1] for axes in figure.axes] == pytest.approx([1.05 * height for height in tallest])
    assert [axes.get_title() for axes in figure.axes] == ["even, n = 100", "one spike, n = 7"]


def test_smi_prunes_at_the_same_shares_of_any_length(tmp_path: Path) -> None:
    """50, 100, 200 and 300 of the paper's 4,000, and never twice at one iteration."""
    teacher = load_teacher("digits_vit")
    for iterations, expected in ((4000, (50, 100, 200, 300)), (160, (2, 4, 8, 12)), (14, (1, 2, 3, 4))):
        scale = choose_scale("paper", [f"iterations={iterations}"])
        laboratory = Laboratory(teacher, lambda _: pytest.fail("no student"), scale, tmp_path, Display(quiet=True))
        assert laboratory.inversion("smi_76", 0, 128).prune_at == expected


def test_the_papers_scale_is_the_papers() -> None:
    """Section 5 and appendix D."""
    scale = SCALES["paper"]
    assert (scale.images, scale.iterations, scale.batch, scale.batches, scale.learning_rate, scale.tv_weight) == (
        10_000, 4000, 128, 120, 0.1, 1e-4,
    )  # fmt: skip
    assert (scale.few, scale.epochs, scale.clip_norm) == (32, 120, 0)


def test_spread_is_over_seeds() -> None:
    """Mean and standard deviation; one seed has none; what was not run says so."""
    result = Result("t", "T", {"a": {"x": Cell((1.0, 3.0), 5.0)}, "b": {"x": Cell((2.0,))}, "c": {"x": Cell()}})
    assert result.markdown().splitlines()[2:] == [
        "|  | x | paper |", "| --- | ---: | ---: |", "| a | 2.00 ± 1.41 | 5.00 |", "| b | 2.00 | none |",
        "| c | not run | none |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("table9 --teacher digits_vit", "unknown table or figure 'table9': take one of table1, table2, tableA1"),
        ("table1 --teacher digits_vit --scale huge", "unknown scale 'huge': take one of smoke, small, paper"),
        ("table1 --teacher digits_vit --set images=many", "size 'images' of a scale is int, not 'many'"),
        ("table1 --teacher digits_vit --set colour=3", "unknown size 'colour' of a scale"),
        ("table1 --teacher digits_vit --set seeds=0", "size 'seeds' of a scale is too small: 0"),
    ],
)
def test_what_is_not_there_is_refused(line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence with what there is."""
    assert run(f"reproduce {line} --out {tmp_path}") == 2
    assert said in capsys.readouterr().err


def test_an_experiment_that_needs_pictures_says_so(tmp_path: Path) -> None:
    """Without real pictures nothing judges a student."""
    teacher = load_teacher("digits_vit")
    laboratory = Laboratory(
        teacher, lambda _: pytest.fail("no student"), SCALES["smoke"], tmp_path, Display(quiet=True)
    )
    with pytest.raises(InputError, match="real pictures judge this experiment: add --val-data"):
        find_experiment("tableA2")(laboratory)
