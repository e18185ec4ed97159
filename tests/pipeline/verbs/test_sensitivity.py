"""`pipeline sensitivity`: files that other commands take, and one sentence for what it cannot do."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.pictures.valdata import digits_split
from pipeline.recipe.resolve import make_recipe
from tests.shell import run
from tests.small import thin_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of two blocks: ten layers are enough."""
    return thin_teacher(tmp_path_factory.mktemp("teacher") / "thin")


@pytest.fixture(scope="module")
def images(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    settings = "--images 8 --batch 8 --iterations 8 --division-factor 2 --quiet"
    assert run(f"invert --teacher {teacher} {settings} --out {folder}") == 0
    return folder


def test_json_plot_and_recipe(teacher: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every layer, a picture, and a recipe that `build` and `quantize` read; real pictures judge both schemes."""
    _, _, pictures, labels = digits_split()
    for number in range(0, 500, 13):
        path = tmp_path / "real" / str(labels[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[number]).save(path)
    line = f"sensitivity --teacher {teacher} --images {images} --bits w2a8 --max-drop 5 --out {tmp_path} --quiet"
    assert run(f"{line} --set calibration.leaves=8 --val-data {tmp_path / 'real'}") == 0
    found = json.loads((tmp_path / "sensitivity.json").read_text())
    assert found["schema"] == 1
    assert len(found["layers"]) == 10
    assert all(layer["weight_kl"] >= 0 and layer["input_kl"] >= 0 for layer in found["layers"])
    mixed = found["mixed"]
    assert mixed["met"] == (mixed["mixed"]["estimated_drop"] <= 5)
    assert mixed["given"]["estimated_drop"] >= mixed["mixed"]["estimated_drop"]
    assert mixed["mixed"]["real"]["n"] == mixed["given"]["real"]["n"] == 39
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    scheme = make_recipe({"teacher": teacher}, tmp_path / "recipe.toml").quant_scheme()
    raised = {layer["name"] for layer in found["layers"] if scheme.layer(layer["name"]).weight == 8}
    assert raised == {*mixed["mixed"]["raised"], "patch_embed.proj", "head"}
    assert "estimated drop" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--max-drop 0", "--max-drop 0.0 is no positive number of points"),
        ("--max-drop nan", "--max-drop nan is no positive number of points"),
        ("--set 'scheme.layers={nope=\"w8a8\"}'", "no layer is called 'nope'"),
        ("--images /nowhere", "'/nowhere'"),
        ("--std 0", "std 0 is not above 0"),
        ("--mean 0.5,0.5,0.5", "takes 1 channels and has 3 numbers of mean"),
        ("--interpolation nearest", "unknown input.interpolation 'nearest': take one of"),
        ("--checkpoint-key ema", "'ema'"),
    ],
)
def test_bad_input_is_one_sentence(
    more: str, said: str, teacher: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and nothing is written."""
    out = tmp_path / "out"
    line = f"sensitivity --teacher {teacher} --images {images} --bits w4a8 --out {out} {more}"
    assert run(line) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()
