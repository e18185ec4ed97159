"""Give damaged and forged files to every reader, and nonsense to the command line.

python benchmarks/fuzz.py --inputs 10000 --name fuzz

Each input must be accepted, or refused by one sentence of ours, within ten seconds. The record counts both by reader.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from recording import write_record
from safetensors.torch import save_file

import pipeline.show.doctor  # before load_teacher is replaced: whoever imports it later would keep the other
import pipeline.show.gallery  # noqa: F401
from calib.freeze import freeze
from calib.layers import quantized_layers
from calib.lsq import learn_steps
from calib.ranges import insert_quantizers, some_ranges
from calib.scheme import QuantScheme
from calib.weights import QuantizedWeights
from export.edge.compare import compare
from export.edge.files import read_onnx
from export.edge.kernels import require_quantized
from export.edge.runtime import open_runtime
from export.graph import export_quantized
from export.qdq import qdq_module
from inversion.errors import PatchRebirthError
from inversion.images import load_images
from inversion.inverter import invert_shard
from inversion.job import Inversion
from inversion.teacher import Teacher, load_teacher
from pipeline import cli
from pipeline.pictures.valdata import open_val_data
from pipeline.recipe.resolve import make_recipe
from pipeline.record.manifest import (
    MANIFEST,
    Manifest,
    Output,
    StageRecord,
    TeacherRecord,
    load_manifest,
    write_manifest,
)
from pipeline.record.proof import (
    Counts,
    Disputed,
    Fidelity,
    FloatProduct,
    Gate,
    Kernels,
    LatencyRow,
    ModelFile,
    OnKinds,
    OnnxRuntime,
    Runtimes,
    Times,
    Verdict,
)
from pipeline.run.build import NAMES

SLOWEST_S = 10
ODD: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    1e308,
    float("nan"),
    "",
    "x" * 300,
    "../..",
    "\x00",
    None,
    True,
    [],
    {},
    [[]],
)
"""Values that a field did not expect."""
TEXT = """build invert quantize sensitivity distill export engine validate report gallery reproduce doctor bench
inversion --teacher digits_vit deit_tiny resnet50 --bits w4a8 w1a8 w99a99 --effort quick --set inversion.images=1e9 a=b
scheme.layers={} --out --val-data --class-map --arch sm89 sm1 none --seed -1 99999999999999999999 --method pri smi
--images 0 --batch 0 1,2 --json --quiet --verbose --force --from invert nowhere . / --help --junit --recipe
--checkpoint model.onnx --against --iterations 0 --division-factor 0 65 --sparsity 1 --student teacher --scale -x"""
WORDS = [*TEXT.split(), "\0", "\udcff", "a b", ""]


DEEP = b"[" * 100_000


class TooSlowError(Exception):
    """An input took longer than `SLOWEST_S`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    args = parser.parse_args()
    start = time.monotonic()
    found = fuzz(args.inputs, args.seed)
    for name, counts in found["readers"].items():
        print(f"{name:<12} {counts}")
    for failure in found["failures"]:
        print(failure)
    if args.name:
        write_record(args.name, {**found, "seed": args.seed, "seconds": round(time.monotonic() - start)})
    sys.exit(bool(found["failures"]))


def fuzz(inputs: int, seed: int) -> dict[str, Any]:
    """`inputs` in turn to all readers: how many each accepted and refused, what failed, and the memory that grew."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    readers: dict[str, Counter[str]] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        targets = make_targets(folder)
        for target in targets:
            if (outcome := target.attempt(None, folder / "case")) != "accepted":
                raise AssertionError(f"{target.name} does not take a whole input: {outcome}")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(inputs):
            target = targets[number % len(targets)]
            outcome = target.attempt(random.Random(chance.getrandbits(64)), folder / "case")
            kind = outcome.split(":", maxsplit=1)[0]
            readers.setdefault(target.name, Counter())[kind] += 1
            if kind not in ("accepted", "refused"):
                failures.append(f"input {number}, {target.name}, {outcome}")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    counts = {name: dict(counter) for name, counter in sorted(readers.items())}
    return {"inputs": inputs, "readers": counts, "failures": failures, "memory_grew_mb": grown // 1024}


class Target:
    """A reader and a whole input for it; `attempt` gives it a damaged one and says what came of that."""

    def __init__(
        self, name: str, file: str, whole: bytes, damages: list[Callable[..., bytes]], read: Callable[[Path], object]
    ) -> None:
        self.name, self.file, self.whole, self.damages, self.read = name, file, whole, damages, read

    def attempt(self, chance: random.Random | None, folder: Path) -> str:
        """`accepted`, `refused`, or what else happened, with its message; without `chance` nothing is damaged."""
        shutil.rmtree(folder, ignore_errors=True)
        path = folder / self.file
        path.parent.mkdir(parents=True)
        path.write_bytes(chance.choice(self.damages)(self.whole, chance) if chance else self.whole)
        try:
            with within(SLOWEST_S):
                self.read(path)
        except PatchRebirthError as error:
            sentence = str(error)
            return "refused" if 20 < len(sentence) < 1500 else f"no sentence: {sentence[:200]!r}"
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        return "accepted"


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlowError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def make_targets(folder: Path) -> list[Target]:
    """Every reader with a whole file of the built-in teacher."""
    teacher = load_teacher("digits_vit")
    images = invert_shard(teacher, Inversion(images=4, batch=4, iterations=4), 0)
    images.save(folder / "shard")
    weights = some_weights(teacher)
    weights.save(folder / "quantized")
    export_quantized(qdq_module(teacher.model, weights), teacher.spec, folder / "model.onnx", {})
    torch.save(teacher.model.state_dict(), folder / "teacher.pth")
    save_file(teacher.model.state_dict(), folder / "teacher.safetensors")
    shard, quantized, model, pth, safe = (
        (folder / name).read_bytes()
        for name in ("shard", "quantized", "model.onnx", "teacher.pth", "teacher.safetensors")
    )
    recipe = json.dumps(make_recipe({"teacher": "digits_vit", "bits": "w4a8"}).to_dict())

    def load_shard(path: Path) -> None:
        found = load_images(path.parent)
        found.mosaics()
        for rows in found.by_count():
            found[rows].trimmed()

    def load_quantized(path: Path) -> None:
        qdq_module(teacher.model, QuantizedWeights.load(path))

    def load_onnx(path: Path) -> None:
        require_quantized(path)
        read_onnx(path)
        with open_runtime(path):
            pass

    def report(path: Path) -> None:
        command(["report", str(path.parent)])

    def load_checkpoint(path: Path) -> None:
        load_teacher("digits_vit", path)

    def load_pictures(path: Path) -> None:
        list(open_val_data(path, teacher.spec))

    def words(_: bytes, chance: random.Random) -> bytes:
        return "\n".join(chance.choices(WORDS, k=chance.randint(1, 8))).encode(errors="surrogateescape")

    def use_words(path: Path) -> None:
        command(path.read_bytes().decode(errors="surrogateescape").split("\n"))

    tensors = [flip, cut, forge_header]
    manifest = some_manifest(recipe)
    return [
        Target("recipe", "r.toml", toml(json.loads(recipe)).encode(), [flip, cut, forge_toml], load_recipe),
        Target("manifest", MANIFEST, manifest, [flip, cut, forge_json], lambda path: load_manifest(path.parent)),
        Target("report", MANIFEST, manifest, [forge_json], report),
        Target("shard", "shard-00000.safetensors", shard, tensors, load_shard),
        Target("quantized", "quantized.safetensors", quantized, tensors, load_quantized),
        Target("onnx", "model.onnx", model, [flip, cut, forge_onnx], load_onnx),
        Target("checkpoint", "t.safetensors", safe, tensors, load_checkpoint),
        Target("pth", "t.pth", pth, [flip, cut], load_checkpoint),
        Target("pictures", "p.parquet", some_parquet(folder), [flip, cut], load_pictures),
        Target("command", "words", b"doctor", [words], use_words),
    ]


def load_recipe(path: Path) -> None:
    make_recipe({"teacher": "digits_vit", "bits": "w4a8"}, path)


def command(words: list[str]) -> None:
    """Raises `AssertionError` for an exit code or an error that no user should see; work ends where it would begin."""
    said = io.StringIO()

    def begin(*_: object, **__: object) -> None:
        raise SystemExit(0)

    with contextlib.ExitStack() as stack:
        for name in ("inversion.teacher.load_teacher", "pipeline.run.preflight.load_teacher"):
            stack.enter_context(mock.patch(name, begin))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.chdir(tempfile.gettempdir()))
        stack.enter_context(
            mock.patch.object(sys, "argv", ["pipeline", *[word for word in words if word != "--debug"]])
        )
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
            assert code in (0, 1, 2, 3), f"exit code {code!r}"
    text = said.getvalue()
    assert "Traceback" not in text, text
    assert "the program itself" not in text, text


def some_weights(teacher: Teacher) -> QuantizedWeights:
    scheme = QuantScheme.parse("w4a8")
    student = insert_quantizers(teacher.model, scheme)
    some_ranges(student)
    learn_steps(student)
    assert quantized_layers(student)
    return freeze(student, teacher, scheme)


def some_manifest(recipe: str) -> bytes:
    """Of a finished run whose files are not there."""
    output = Output("model.onnx", "0" * 64, 3)
    product = FloatProduct("head", True, True, "MatMul", False, "none")
    kernels = Kernels("some", "its graph", 0.5, {"MatMul": 1}, Counts(1, 2), Counts(0, 0), (product,))
    model, times = ModelFile(9, 9), Times(1.0, 1.0)
    runtime = OnnxRuntime(
        "1", "cpu", True, model, model, (LatencyRow(1, times, times, 1.0),), 1.0, kernels
    )  # fmt: skip
    found = compare(torch.eye(6), torch.eye(6), torch.arange(6))
    verdict = Verdict(
        passed=True,
        gates=(Gate("synthetic_kl", 0.1, 0.2, True),),
        synthetic=OnKinds.all_of(found, {"leaves": found}),
        real=Fidelity.of(found),
        runtimes=Runtimes(runtime, None),
        engine_graph=None,
        onnx_against_torch=None,
        layers=None,
        disputed=(Disputed("leaves", 70, 0.5, 1, 0.7, 2, 0.6), Disputed("mosaics", 1, 0.5, 3, 0.7, 3, 0.6)),
    )
    held = {"update": 0, "kl": 0.1, "agreement": 0.9}
    metrics: dict[str, Any] = {
        "engines": [], "warnings": [],
        "images": 4, "confidence": [0.1, 0.9], "between": [[0.0, 0.2], [0.8, 1.0]],
        "shown": [{"trajectory": 0, "label": 1, "confidence": [0.1, 0.9], "mosaic": 0.5}],
        "range_method": "fisher", "ranges_tried": {"max": held, "fisher": held},
        "history": [held, {**held, "update": 9}],
        "basis": {"method": "learned", "error_before": 0.2, "error": 0.1},
    }  # fmt: skip
    manifest = Manifest(
        recipe=json.loads(recipe),
        teacher=TeacherRecord("digits_vit", "0" * 64, 10, (1, 32, 32)),
        versions={"torch": "2"},
        stages=tuple(StageRecord(name, "0" * 64, 1.0, False, (output,), metrics) for name in NAMES),
        validation=verdict,
    )
    return write_manifest(manifest)


def some_parquet(folder: Path) -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 8), 99).save(data, "PNG")
    rows = [{"bytes": data.getvalue(), "path": None}] * 4
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 2, 9]}), folder / "p.parquet")
    return (folder / "p.parquet").read_bytes()


def toml(values: dict[str, Any], section: str = "") -> str:
    """Flat values first, then each table under its name."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict) and value is not None}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    return "\n".join(lines) + "".join(
        f"\n[{section}{key}]\n{toml(value, f'{section}{key}.')}" for key, value in tables.items()
    )


def flip(data: bytes, chance: random.Random) -> bytes:
    """One to twenty bytes become others, more often near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 20)):
        changed[min(int(chance.expovariate(8 / len(data))), len(data) - 1)] = chance.randrange(256)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing, or something else stands there."""
    return data[: chance.randrange(len(data))] + chance.randbytes(chance.choice((0, 0, 8, 200)))


def forge(value: Any, chance: random.Random) -> Any:
    """`value` with one part of it, at any depth, replaced, dropped or doubled."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(ODD)
    copied = value.copy()
    key = chance.choice(list(copied)) if isinstance(copied, dict) else chance.randrange(len(copied))
    how = chance.random()
    if how < 0.1:
        del copied[key]
    elif how < 0.15 and isinstance(copied, dict):
        copied[f"{key}_"] = copied[key]
    else:
        copied[key] = forge(copied[key], chance)
    return copied


def forge_json(data: bytes, chance: random.Random) -> bytes:
    """The same values but for one, or brackets deeper than any reader goes."""
    if chance.random() < 0.02:
        return DEEP
    return json.dumps(forge(json.loads(data), chance)).encode()


def forge_toml(data: bytes, chance: random.Random) -> bytes:
    """One value of one line becomes another."""
    lines = data.decode().split("\n")
    row = chance.randrange(len(lines))
    key = lines[row].partition(" = ")[0]
    value = chance.choice([value for value in ODD if value is not None and value == value])
    lines[row] = f"{key} = {DEEP.decode() if chance.random() < 0.02 else json.dumps(value)}"
    return "\n".join(lines).encode()


def forge_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header is another."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(forge(json.loads(data[8 : 8 + length]), chance)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def forge_onnx(data: bytes, chance: random.Random) -> bytes:
    """A whole model of which one node or weight is another."""
    model = onnx.ModelProto.FromString(data)
    node, tensor = chance.choice(model.graph.node), chance.choice(model.graph.initializer)
    odd = chance.choice((0, -1, 7, 2**31, 2**62))
    changes: list[Callable[[], object]] = [
        lambda: setattr(node, "op_type", chance.choice(("Relu", "Nothing", "Loop", "MatMul"))),
        lambda: node.input.pop() if node.input else None,
        lambda: node.input.append("nothing"),
        lambda: tensor.dims.append(odd),
        lambda: tensor.dims.__setitem__(0, odd) if tensor.dims else None,
        lambda: setattr(tensor, "data_type", chance.randrange(30)),
        lambda: setattr(tensor, "data_location", 1),
        lambda: tensor.external_data.add(key="location", value=chance.choice(("../x", "/etc/passwd", "x"))),
        lambda: model.graph.node.remove(node),
        lambda: model.opset_import.__getitem__(0).__setattr__("version", chance.choice((0, 9, 99))),
        lambda: model.graph.input.pop(),
        lambda: setattr(model, "ir_version", 99),
    ]
    chance.choice(changes)()
    return model.SerializeToString()


if __name__ == "__main__":
    main()
