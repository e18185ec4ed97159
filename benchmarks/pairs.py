"""Do options work together? Every pair of values of two options of build, export, engine and validate, on `digits_vit`.

    python benchmarks/pairs.py --json F [--rows 3]

A covering array, made greedily from a seed: each row is one value of every option, and builds, exports, makes engines
and judges by them. A row fails where a command's exit code is not 0: a crash, a refusal, or a gate. With the same F it
goes on from the rows that are done, which take hours together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_quality import add_json_argument, save
from PIL import Image

BUILD = {
    "bits": ("--bits w8a8", "--bits w4a8", "--bits w8a16", "--bits w4a4"),
    "input": ("", "--uint8-input"),
    "arch": ("--arch sm89", "--arch none", "--arch sm86,sm120"),
    "precision": ("", "--set engine.precision=bfloat16", "--set engine.precision=float32"),
    "batch": ("", "--set engine.batch=[4,4,4]", "--set engine.batch=[1,1,1]"),
    "pictures": ("", "--val-data {data}/folder", "--val-data {data}/folder --class-map {data}/map.txt",
                 "--val-data {data}/a.parquet", "--val-data {data}/shards --image-column img --label-column number"),
    "attention": ("", "--set scheme.attention=int8"),
    "layers": ("", '--set scheme.edges=w8a16', "--set 'scheme.layers={\"blocks.*.mlp.fc1\" = \"w8a8\"}'"),
    "basis": ("--set basis.updates=10", "--set basis.method=none", "--set basis.method=random"),
    "ranges": ("", "--set calibration.method=max", "--set calibration.method=auto", "--set calibration.method=mse"),
    "views": ("", "--set calibration.views=mosaic", "--set calibration.views=leaves --set rounding.views=leaves"),
    "rounding": ("", "--set rounding.method=nearest", "--set rounding.saliency=false"),
    "training": ("", "--set training.updates=3 --set training.batch=4",
                 "--set training.updates=3 --set training.batch=4 --set training.optimizer=sgd --set training.ema=0"),
    "inversion": ("", "--set inversion.method=smi --set inversion.prune_at=[3,6,12,18]", "--set inversion.method=dmi",
                  "--set inversion.division_factor=7"),
    "threads": ("", "--threads 2"),
}  # fmt: skip
LATER = {
    "export": ("", "--uint8-input", "--class-map {data}/map.txt"),
    "engine": ("", "--batch 1 --precision float32", "--batch 2,4,8 --precision bfloat16", "--arch sm89,sm120"),
    "target": ("{run}", "{run}/model.onnx --teacher digits_vit --bits w4a4", "{out}/model.onnx --teacher digits_vit "
               "--bits w4a4", "{out}/model.onnx --against {out}/model.fp32.onnx --bits w4a4"),
    "judges": ("", "--val-data {data}/folder", "--val-data {data}/a.parquet", "--set validation.pictures=120"),
    "written": ("", "--json {run}/v.json --junit {run}/v.xml", "--json - --summary-md {run}/s.md"),
}  # fmt: skip
SMALL = (
    "--teacher digits_vit --effort quick --quiet --set inversion.images=56 --set inversion.iterations=24 "
    "--set inversion.batch=28 --set calibration.leaves=24 --set validation.pictures=100"
)
STOPPED = (130, 143)
Row = dict[str, str]


def covering_rows(options: dict[str, tuple[str, ...]], seed: int = 0, tries: int = 60) -> list[Row]:
    """Rows in which every pair of values of two options stands together at least once."""
    random_ = random.Random(seed)
    names = list(options)
    missing = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in options[a] for y in options[b]
    }  # fmt: skip
    rows = []
    while missing:
        candidates = []
        for _ in range(tries):
            (a, x), (b, y) = random_.choice(sorted(missing))
            row = {name: random_.choice(values) for name, values in options.items()} | {a: x, b: y}
            candidates.append((len(missing & set(pairs(row, names))), row))
        best = max(candidates, key=lambda pair: pair[0])[1]
        missing -= set(pairs(best, names))
        rows.append(best)
    return rows


def pairs(row: Row, names: list[str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    for a, b in itertools.combinations(names, 2):
        yield (a, row[a]), (b, row[b])


def commands(row: Row, data: Path, folder: Path) -> Iterator[str]:
    """The commands of a row: what the build would do, the build, and what comes after it."""
    run, out = folder / "run", folder / "out"
    places = {"data": data, "run": run, "out": out}

    def chosen(names: tuple[str, ...] | dict[str, tuple[str, ...]]) -> str:
        # the braces of a TOML table are none of ours
        words = " ".join(row[name] for name in names if row[name])
        for name, path in places.items():
            words = words.replace(f"{{{name}}}", str(path))
        return words

    yield f"build {SMALL} {chosen(BUILD)} --out {run} --dry-run --json {folder}/plan.json"
    yield f"build {SMALL} {chosen(BUILD)} --out {run}"
    yield (
        f"export --teacher digits_vit --quantized {run}/quantized.safetensors --out {out} --quiet {chosen(('export',))}"
    )
    yield f"engine {out}/model.onnx --out {out} {chosen(('engine',))}"
    yield f"validate {chosen(('target', 'judges', 'written'))} --quiet"


def lay_out(data: Path) -> None:
    """The held-out digits as a folder a class, with a class map, and as Parquet files."""
    from pipeline.pictures.valdata import digits_split

    _, _, pictures, labels = digits_split()
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = data / "folder" / str(label) / f"{number}.{'webp' if number % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, lossless=bool(number % 2))
    (data / "map.txt").write_text("".join(f"{digit}\n" for digit in range(10)), encoding="utf-8-sig")
    rows = [{"bytes": path.read_bytes(), "path": None} for path in sorted(data.glob("folder/*/*"))]
    numbers = [int(path.parent.name) for path in sorted(data.glob("folder/*/*"))]
    pq.write_table(pa.table({"image": rows, "label": numbers}), data / "a.parquet")
    (data / "shards").mkdir()
    for shard in range(2):
        part = slice(250 * shard, 250 * (shard + 1))
        table = pa.table({"img": rows[part], "number": numbers[part]})
        pq.write_table(table, data / "shards" / f"test-0000{shard}-of-00002.parquet")


def exit_code(line: str) -> int:
    """Of `pipeline LINE`, in this process."""
    from pipeline import cli

    before, sys.argv = sys.argv, ["pipeline", *shlex.split(line)]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def attempt(row: Row, data: Path) -> list[dict[str, object]]:
    """What went wrong in a row: commands and their exit codes; the first that fails ends it."""
    with tempfile.TemporaryDirectory() as folder:
        for line in commands(row, data, Path(folder)):
            if code := exit_code(line):
                return [{"command": line.replace(folder, "X").replace(str(data), "DATA"), "exit_code": code}]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="only the first so many")
    add_json_argument(parser)
    args = parser.parse_args()
    rows = covering_rows(BUILD | LATER)
    done: list[dict[str, Any]] = json.loads(args.json.read_text())["done"] if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        lay_out(data)
        for number, row in enumerate(rows[len(done) : args.rows], start=len(done) + 1):
            started = time.perf_counter()
            failures = attempt(row, data)
            if failures and failures[-1]["exit_code"] in STOPPED:
                raise SystemExit(1)
            done.append({"seconds": round(time.perf_counter() - started), "failures": failures})
            print(f"row {number} of {len(rows)}: {'failed' if failures else 'passed'}", flush=True)
            save("pairs", summary(rows, done), args.json)


def summary(rows: list[Row], done: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known after the first rows."""
    names = list(rows[0])
    return {
        "options": len(names),
        "rows": len(rows),
        "pairs": len({pair for row in rows for pair in pairs(row, names)}),
        "pairs_done": len({pair for row in rows[: len(done)] for pair in pairs(row, names)}),
        "failures": [failure for row in done for failure in row["failures"]],
        "done": done,
    }


if __name__ == "__main__":
    main()
