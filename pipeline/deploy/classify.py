"""Classify pictures with the model beside this file.

    python classify.py picture.jpg folder/

Needs numpy, Pillow and onnxruntime; nothing of patch-rebirth. A TensorRT or TensorRT-RTX engine (`--model engine.plan`)
needs its runtime and cuda-bindings instead of onnxruntime. Pictures are prepared as `preprocess.json` says.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
BITS_PER_SAMPLE = 258
"""TIFF's tag of how many bits a sample has."""
Run = Callable[[Any], Any]
"""A batch of prepared pictures -> logits [batch, classes]."""


def prepare(picture: Image.Image, steps: dict[str, Any]) -> np.ndarray[Any, Any]:
    """One picture of any mode and size as the model takes it, without the batch: the steps of preprocess.json.

    Raises `ValueError` for pixels whose white is not known.
    """
    picture = resize(eight_bits(picture, steps["colour"]["mode"]), steps["resize"])
    height, width = steps["crop"]["height"], steps["crop"]["width"]
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)))
    pixels = pixels.reshape(height, width, -1)
    if "normalise" not in steps:  # the model takes bytes [height, width, channels], and normalises them itself
        return pixels
    mean, std = (np.array(steps["normalise"][key], np.float32) for key in ("mean", "std"))
    scaled = pixels.astype(np.float32) / np.float32(steps["scale"]["divide_by"])
    return ((scaled - mean) / std).transpose(2, 0, 1)


def eight_bits(picture: Image.Image, mode: str) -> Image.Image:
    """In Pillow's `mode`, L or RGB; deeper pixels are scaled by the picture's own depth. EXIF's orientation is ignored,
    as it was in training and in the model's validation."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(BITS_PER_SAMPLE, (16,))
        white = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
        deep = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray(np.rint(deep * (255 / white)).clip(0, 255).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError("has pixels whose white is not known: save it with 8 or 16 bits a channel")
    if picture.mode in PREMULTIPLIED:
        picture = picture.convert(PREMULTIPLIED[picture.mode])
    return picture.convert(mode)


def resize(picture: Image.Image, step: dict[str, Any]) -> Image.Image:
    """The shorter side to its length, the longer one in proportion, rounded down: across first, then down, by two
    calls, as Pillow 13 may take them in the other order."""
    shorter, (width, height) = step["shorter_side"], picture.size
    longer = int(shorter * max(width, height) / min(width, height))
    wide, high = (shorter, longer) if width <= height else (longer, shorter)
    kernel = RESAMPLING[step["interpolation"]]
    return picture.resize((wide, height), kernel).resize((wide, high), kernel)


def open_model(path: Path, steps: dict[str, Any], threads: int | None, provider: str) -> tuple[Run, int, int]:
    """(what runs it, its smallest batch, its largest or 0): ONNX Runtime for an .onnx file, TensorRT for an engine."""
    return open_onnx(path, steps, threads, provider) if path.suffix == ".onnx" else open_engine(path)


def open_onnx(path: Path, steps: dict[str, Any], threads: int | None, provider: str) -> tuple[Run, int, int]:
    """On ONNX Runtime, with the settings that preprocess.json names."""
    import onnxruntime

    settings = steps.get("onnxruntime", {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are exceptions
    if threads:
        options.intra_op_num_threads = threads
    for key, value in settings.get("session_config", {}).items():
        options.add_session_config_entry(key, value)
    if products_may_saturate():
        for key, value in settings.get("session_config_on_x86_without_vnni", {}).items():
            options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    given, answer = session.get_inputs()[0], session.get_outputs()[0].name
    fixed = given.shape[0] if isinstance(given.shape[0], int) else 0
    return (lambda batch: session.run([answer], {given.name: batch})[0]), fixed or 1, fixed


def products_may_saturate() -> bool:
    """An x86 CPU without VNNI adds two 8-bit products in 16 bits; where it cannot be told, the slower way is exact."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def open_engine(path: Path) -> tuple[Run, int, int]:
    """On the TensorRT that the sidecar names, on the first GPU."""
    spec = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    trt = importlib.import_module(spec["backend"])
    cuda = importlib.import_module("cuda.bindings.runtime")
    if trt.__version__ != spec["version"]:
        raise SystemExit(f"{path.name} is of {spec['backend']} {spec['version']}, this is {trt.__version__}: {BUILD}")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise SystemExit(f"{path.name} is for a GPU of {spec['arch']} and does not load here: {BUILD}")
    context, stream = engine.create_execution_context(), checked(cuda.cudaStreamCreate())
    given, answer = spec["inputs"][0], spec["outputs"][0]

    def run(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        batch = np.ascontiguousarray(batch)
        context.set_input_shape(given["name"], batch.shape)
        logits = np.empty(tuple(context.get_tensor_shape(answer["name"])), answer["dtype"])
        pointers = [int(checked(cuda.cudaMalloc(array.nbytes))) for array in (batch, logits)]
        try:
            to, back = (getattr(cuda.cudaMemcpyKind, f"cudaMemcpy{way}") for way in ("HostToDevice", "DeviceToHost"))
            checked(cuda.cudaMemcpy(pointers[0], batch.ctypes.data, batch.nbytes, to))
            for name, pointer in zip((given["name"], answer["name"]), pointers, strict=True):
                context.set_tensor_address(name, pointer)
            if not context.execute_async_v3(int(stream)):
                raise SystemExit("the GPU did not run the engine: look at its memory")
            checked(cuda.cudaStreamSynchronize(stream))
            checked(cuda.cudaMemcpy(logits.ctypes.data, pointers[1], logits.nbytes, back))
        finally:
            for pointer in pointers:
                checked(cuda.cudaFree(pointer))
        return logits

    return run, given["min"][0], given["max"][0]


BUILD = "build it again here, with the build_command of its .json"


def checked(answer: tuple[Any, ...]) -> Any:
    """What a CUDA call returned, without its status."""
    status, *values = answer
    if int(status):
        raise SystemExit(f"the GPU answered {status!r}: look at its memory and its driver")
    return values[0] if values else None


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are given; of a folder all that Pillow knows by its name, in order."""
    known = Image.registered_extensions()
    for path in paths:
        if path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.suffix.lower() in known and each.is_file())
        else:
            yield path


def batches(paths: Iterable[Path], size: int, steps: dict[str, Any]) -> Iterator[tuple[list[Path], Any]]:
    """(paths, prepared pictures [B, ...]); a picture that cannot be read is said and left out."""
    names, prepared = [], []
    for path in paths:
        try:  # Pillow's codecs raise many classes for a broken file
            with Image.open(path) as picture:
                prepared.append(prepare(picture, steps))
            names.append(path)
        except Exception as error:
            print(f"{path}: left out, {error}", file=sys.stderr)
        if len(names) == size:
            yield names, np.stack(prepared)
            names, prepared = [], []
    if names:
        yield names, np.stack(prepared)


def answers(run: Run, pictures: np.ndarray[Any, Any], smallest: int) -> np.ndarray[Any, Any]:
    """Logits; a batch that is too small for the model is filled up with its last picture."""
    missing = max(0, smallest - len(pictures))
    filled = np.concatenate([pictures, pictures[-1:].repeat(missing, 0)]) if missing else pictures
    return np.asarray(run(filled))[: len(pictures)]


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The model gives logits: softmax is not applied in it."""
    powers = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64))
    return powers / powers.sum(-1, keepdims=True)


def read_labels(folder: Path, count: int) -> list[str]:
    """A name for each class: labels.txt, one a line, or numbers where there is none."""
    path = folder / "labels.txt"
    names = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [names[number] if number < len(names) and names[number] else f"class {number}" for number in range(count)]


def main() -> int:
    """0 where every picture was classified, 1 where some could not be read, 2 where the model does not open, 3 where
    its runtime is not installed."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("pictures", nargs="+", type=Path, help="files, or folders of files")
    parser.add_argument("--model", type=Path, help="model.ort.onnx, model.onnx or an engine; the first that is here")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name (5)")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once (1)")
    parser.add_argument("--threads", type=int, help="of the CPU; all by default")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of ONNX Runtime (CPUExecutionProvider)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each picture")
    given = parser.parse_args()
    # of another provider than the CPU model.onnx is the one
    mine = ("model.ort.onnx", "model.onnx") if given.provider == "CPUExecutionProvider" else ("model.onnx",)
    here = [HERE / name for name in mine if (HERE / name).is_file()] + sorted(HERE.glob("engine.*.plan"))
    model = given.model or next(iter(here), HERE / "model.onnx")
    steps = json.loads((model.resolve().parent / "preprocess.json").read_text(encoding="utf-8"))
    try:
        run, smallest, largest = open_model(model, steps, given.threads, given.provider)
    except ImportError as error:
        print(f"{error}: pip install it, see README.md", file=sys.stderr)
        return 3
    except Exception as error:  # each runtime has classes of its own
        print(f"{model} does not open here, see README.md for what runs where: {error}", file=sys.stderr)
        return 2
    size = min(max(given.batch, 1), largest or sys.maxsize)
    paths = list(find_pictures(given.pictures))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a label may have letters that a terminal has not
    done = 0
    for names, pictures in batches(paths, size, steps):
        logits = answers(run, pictures, smallest)
        labels = read_labels(model.resolve().parent, logits.shape[-1])
        for name, chances in zip(names, softmax(logits), strict=True):
            best = [(int(number), float(chances[number])) for number in np.argsort(-chances)[: given.top]]
            done += 1
            if given.json:
                told = [{"class": number, "label": labels[number], "probability": chance} for number, chance in best]
                print(json.dumps({"picture": str(name), "top": told}))
            else:
                print(f"{name}: {', '.join(f'{labels[number]} {100 * chance:.1f}%' for number, chance in best)}")
    return 0 if done == len(paths) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever reads has enough
        os._exit(0)
