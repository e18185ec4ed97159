"""On which versions of ONNX Runtime does a deploy folder run, and does OpenVINO answer as it does?

    python benchmarks/deployed.py RUN --versions 1.17.3 1.18.1 1.19.2 latest --openvino

RUN is a finished run of `digits_vit`. Each version gets an environment of its own with numpy, Pillow and that ONNX
Runtime alone, and classifies the 500 held-out digits with the folder's classify.py: with model.onnx, and with
model.ort.onnx and model.int4.onnx where the run has them. Half a minute a version.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from recording import write_record

from pipeline.deploy.folder import deploy
from pipeline.pictures.valdata import digits_split
from pipeline.record.manifest import load_finished

OTHERS = ("model.ort.onnx", "model.int4.onnx")
OLD_NUMPY = "1.18.1"
"""The last ONNX Runtime that was built for numpy 1."""
WITH_OPENVINO = """
import json, sys
import numpy as np, openvino
from pathlib import Path
from PIL import Image
from classify import prepare
steps = json.loads(Path("preprocess.json").read_text())
pictures = [prepare(Image.open(path), steps) for path in sorted(Path(sys.argv[1]).iterdir())]
model = openvino.Core().compile_model(sys.argv[2], "CPU")
for start in range(0, len(pictures), 25):
    logits = model(np.stack(pictures[start : start + 25]))[0]
    for number in logits.argmax(1):
        print(json.dumps({"top": [{"class": int(number)}]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--versions", nargs="+", default=["1.17.3", "1.18.1", "1.19.2", "1.22.0", "latest"])
    parser.add_argument("--openvino", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device, pictures, labels = folder / "deploy", folder / "pictures", write_pictures(folder / "pictures")
        deploy(args.run, device, "onnxruntime")
        models = ["model.onnx", *(name for name in OTHERS if (args.run / name).is_file())]
        for model in models:
            (device / model).write_bytes((args.run / model).read_bytes())
        wanted = [("onnxruntime", version) for version in args.versions]
        wanted += [("openvino", "latest")] if args.openvino else []
        rows = [row for runtime, version in wanted for row in tried(folder, runtime, version, models, pictures, labels)]
    top1 = load_finished(args.run).verdict.real
    write_record("deployed", {"top1_of_the_manifest": top1.top1 if top1 else None, "rows": rows})


def write_pictures(folder: Path) -> list[int]:
    """The held-out digits as PNG files; returns their labels."""
    folder.mkdir()
    _, _, pictures, labels = digits_split()
    for row, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{row:03}.png")
    return [int(label) for label in labels]


def tried(
    folder: Path, runtime: str, version: str, models: list[str], pictures: Path, labels: list[int]
) -> list[dict[str, Any]]:
    """A row a model: how many digits it names rightly, or what went wrong."""
    place = folder / f"{runtime}-{version}"
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    packages = [runtime if version == "latest" else f"{runtime}=={version}", "pillow"]
    numpy = "numpy<2" if runtime == "onnxruntime" and version <= OLD_NUMPY else "numpy"
    subprocess.run([python, "-m", "pip", "-q", "install", *packages, numpy], check=True)
    found = f"from importlib.metadata import version; print(version({runtime!r}))"
    exact = subprocess.run([python, "-c", found], capture_output=True, text=True, check=True).stdout.strip()
    rows = []
    for model in models:
        program = ["classify.py", "--json", "--top", "1", "--model", model, str(pictures)]
        line = program if runtime == "onnxruntime" else ["-c", WITH_OPENVINO, str(pictures), model]
        done = subprocess.run([python, *line], capture_output=True, text=True, cwd=folder / "deploy")
        answers = [json.loads(line)["top"][0]["class"] for line in done.stdout.splitlines()]
        whole = len(answers) == len(labels)
        right = int(np.equal(answers, labels).sum()) if whole else None
        said = "" if whole else done.stderr.strip().splitlines()[-1][:200]
        rows.append(
            {"runtime": runtime, "version": exact, "model": model, "right": right, "of": len(labels), "error": said}
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
