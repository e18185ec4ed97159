"""The command line: exact exit codes, one sentence on stderr, nothing left behind that looks finished."""

import errno
import importlib.metadata
import inspect
import json
import pickle
import re
import shlex
import socket
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from export.edge.exactness import largest_products
from export.edge.registry import ENGINES, RUNTIMES
from inversion.teacher import DIGITS_WEIGHTS
from pipeline import cli
from pipeline.recipe.resolve import EFFORTS, READS, header, make_recipe
from pipeline.run.stages import invert
from pipeline.show import doctor
from pipeline.verbs.build import build
from pipeline.verbs.options import parse_archs
from tests.shell import run

VERBS = ("build", "invert", "shards", "quantize", "sensitivity", "distill", "export", "engine", "validate", "deploy",
         "inspect", "report", "gallery", "reproduce", "plan", "doctor", "bench")  # fmt: skip
HEAVY = {"torch", "timm", "onnx", "onnxruntime", "modelopt", "sklearn", "matplotlib"}
BUILD = "build --teacher digits_vit --bits w4a8 --out run"


class Malicious:
    """Unpickling it would create the file `owned`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("owned", "w")


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the command runs in, with one of each file that a user could get wrong."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread waits for a busy core far longer than these sums take
    monkeypatch.chdir(tmp_path)
    whole = DIGITS_WEIGHTS.read_bytes()
    Path("truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("malicious.pth").write_bytes(pickle.dumps(Malicious()))
    save_file({"blocks.0.attn.qkv.weight": torch.ones(3, 3)}, "foreign.safetensors")
    for name in ("empty", "no_pictures", "pictures/zebra", "broken_run"):
        Path(name).mkdir(parents=True)
    Path("no_pictures/notes.txt").write_text("none here")
    Image.new("L", (8, 8)).save("pictures/zebra/1.png")
    Path("classes.txt").write_text("".join(f"animal{number}\n" for number in range(10)))
    Path("in_the_way").write_text("a file")
    Path("not.onnx").write_bytes(b"not a model" * 9)
    Path("broken_run/manifest.json").write_text('{"schema": 2, "stages": []}')
    Path("wrong.toml").write_text("teacher = ")
    yield tmp_path
    torch.set_num_threads(threads)


REFUSALS = [
    ("build --bits w4a8", "--teacher"),
    ("build --teacher digits_vit", "--bits"),
    ("build --teacher digits_vti --bits w4a8", "'digits_vti': the nearest names are digits_vit"),
    ("build --teacher resnet50 --bits w4a8", "'resnet50' cannot be inverted: it is a ResNet; a plain Vision"),
    ("build --teacher digits_vit --bits w3q", "bits 'w3q' are not understood: write w4a8"),
    ("build --teacher digits_vit --bits w1a8", "weights of 1 bits are not supported"),
    (f"{BUILD} --checkpoint no.safetensors", "checkpoint 'no.safetensors' does not exist"),
    (f"{BUILD} --checkpoint truncated.safetensors", "'truncated.safetensors' is not a whole"),
    (f"{BUILD} --checkpoint foreign.safetensors", "checkpoint 'foreign.safetensors' does not fit"),
    (f"{BUILD} --checkpoint malicious.pth", "'malicious.pth' is truncated or holds more than plain"),
    ("build --teacher digits_vit --bits w4a8 --out in_the_way", "run folder 'in_the_way' is not writable"),
    ("build --teacher digits_vit --bits w4a8 --out in_the_way/run", "'in_the_way/run' is not writable"),
    (f"{BUILD} --val-data no_pictures", "folder 'no_pictures' holds no picture"),
    (f"{BUILD} --val-data nowhere", "validation data 'nowhere' does not exist"),
    (f"{BUILD} --val-data pictures --class-map classes.txt", "class folder 'zebra' is not in class map 'classes.txt'"),
    (f"{BUILD} --val-data pictures", "holds 1 class folders, the teacher has 10"),
    (f"{BUILD} --class-map classes.txt", "class map 'classes.txt' needs pictures: add --val-data"),
    (f"{BUILD} --arch sm999", "unknown architecture 'sm999'"),
    (f'{BUILD} --arch ""', "unknown architecture ''"),
    (f"{BUILD} --set engine.backend=onnx", "unknown engine.backend 'onnx'"),
    (f"{BUILD} --effort huge", "unknown effort 'huge': take one of quick, standard, paper"),
    (f"{BUILD} --from nowhere", "unknown stage 'nowhere' in --from: take one of invert"),
    (f"{BUILD} --dry-run --junit j.xml", "--dry-run comes to no verdict"),
    (f"{BUILD} --json nowhere/j.json", "--json 'nowhere/j.json' is no file"),
    (f"{BUILD} --summary-md empty", "--summary-md 'empty' is no file"),
    (f"{BUILD} --dry-run --out in_the_way", "run folder 'in_the_way' is not writable"),
    (f"{BUILD} --set inversion.imags=3", "unknown recipe key 'inversion.imags'"),
    (f"{BUILD} --set more", "override 'more' is not understood"),
    (f"{BUILD} --recipe no.toml", "recipe 'no.toml' cannot be read"),
    (f"{BUILD} --recipe wrong.toml", "recipe 'wrong.toml' is not TOML"),
    (f"{BUILD} --set inversion.division_factor=65 --set inversion.batch=65", "division factor 65 does not divide 64"),
    ("invert --teacher digits_vit --method smi --iterations 200 --out images", "200 iterations end before SMI's last"),
    (f"{BUILD} --set inversion.images=4", "inversion.images=4 makes one trajectory"),
    (f"{BUILD} --junit nowhere/j.xml", "--junit 'nowhere/j.xml' is no file in a folder that exists"),
    (f"{BUILD} --junit empty", "--junit 'empty' is no file"),
    ("engine not.onnx --out engines", "'not.onnx' is not an ONNX file"),
    ("engine no.onnx --out engines", "'no.onnx' does not exist"),
    ("engine not.onnx --arch none --out engines", "--arch none names no architecture"),
    ("engine not.onnx --out in_the_way", "'in_the_way' cannot be used (File exists)"),
    ("validate empty", "'empty' holds no manifest.json of schema 2"),
    ("validate broken_run", "'broken_run' holds no manifest.json of schema 2"),
    ("report empty", "'empty' holds no manifest.json of schema 2"),
    ("report broken_run", "'broken_run' holds no manifest.json of schema 2"),
    ("invert --teacher digits_vit --method gan --out images", "unknown inversion.method 'gan'"),
    ("invert --teacher digits_vit --out in_the_way", "run folder 'in_the_way' is not writable"),
    ("invert --teacher digits_vit --out images --shard 4", "--shard '4' is no part of a job: write 0/4"),
    ("invert --teacher digits_vit --out images --shard 1/0", "shards 1/0 are no part of a job"),
    ("invert --teacher digits_vit --out images --shard 0/4 --batch auto", "--shard 0/4 needs the same shards on every"),
    ("shards empty", "'empty' holds no job.json: give a folder that"),
    ("shards empty --of 4", "--of 4 is the number of parts that --missing tells of"),
    ("shards empty --missing --of 0", "--of 0 is the number of parts"),
    (
        "quantize --teacher digits_vit --bits w4a8 --out q.safetensors --images empty",
        "'empty' holds no shard-*.safetensors",
    ),
    ("quantize --teacher digits_vit --bits w4a8 --out empty --images empty", "--out 'empty' is a folder"),
    ("export --teacher digits_vit --quantized no --out o", "'no' is not a whole safetensors file"),
    (
        "export --teacher digits_vit --quantized foreign.safetensors --out o",
        "'foreign.safetensors' is not of the format",
    ),
]


@pytest.mark.parametrize(("line", "said"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_be_done_is_refused(
    line: str,
    said: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, one sentence on stderr that names the value, nothing on stdout, no new file."""

    def work(*_: Any) -> None:
        raise AssertionError("work began")

    if line.startswith("build"):
        monkeypatch.setattr(invert, "invert_into", work)
    before = sorted(path for path in desk.rglob("*") if path.is_file())
    assert run(line) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ")
    assert err.endswith(".\n")
    assert len(err.splitlines()) == 1
    assert said in err
    assert not out
    assert sorted(path for path in desk.rglob("*") if path.is_file()) == before


def test_images_of_another_teacher_are_refused(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`quantize` takes the images of its own teacher only: the same name with other weights is another teacher."""
    small = "--images 8 --iterations 8 --batch 8 --quiet"
    assert run(f"invert --teacher digits_vit {small} --out images") == 0
    save_file({key: value * 1.5 for key, value in load_file(DIGITS_WEIGHTS).items()}, desk / "other.safetensors")
    capfd.readouterr()
    line = (
        "quantize --teacher digits_vit --bits w4a8 --images images --checkpoint other.safetensors --out q.safetensors"
    )
    assert run(line) == 2
    assert capfd.readouterr().err == (
        "error: 'images' was made from another teacher than 'digits_vit': give its own checkpoint.\n"
    )
    assert not Path("q.safetensors").exists()


def test_without_a_network_the_mend_is_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pretrained weights that cannot be fetched: exit code 3, and --checkpoint is named."""
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        if pretrained:
            raise OSError("no route to host\nwhile fetching")
        return create(name.replace("base", "tiny"), **kwargs)

    def unresolved(*_: Any) -> None:
        raise socket.gaierror(-3, "name resolution failed")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert run("build --teacher deit_base --bits w4a8 --out run") == 3
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith("error: the pretrained weights of 'deit_base' cannot be fetched (no network)")
    assert "--checkpoint FILE" in err
    assert not Path("run").exists()


@pytest.mark.parametrize("verb", ["build", "quantize"])
def test_training_beyond_the_memory_is_refused_before_any_work(
    verb: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3, the batch to lower, and no run folder."""
    more = {"build": "--out run", "quantize": "--images empty --out q.safetensors"}[verb]
    monkeypatch.setattr("calib.memory.free_memory", lambda _: 1e6)
    assert (
        run(f"{verb} --teacher digits_vit --bits w4a8 {more} --set training.updates=1 --set training.batch=4096") == 3
    )
    err = capfd.readouterr().err
    assert err.startswith("error: training in batches of 4096 needs about ")
    assert err.endswith("take a smaller training.batch.\n")
    assert not Path("run").exists()


FAULTS = {
    "a GPU that disappears": (
        RuntimeError("CUDA error: unspecified launch failure\nMore"),
        3,
        "the GPU stopped answering (unspecified launch failure): look at it with nvidia-smi",
    ),
    "an unforeseen fault": (KeyError("patches"), 70, "the program itself is at fault (KeyError: 'patches')"),
    "several lines": (RuntimeError("one\n  two"), 70, "(RuntimeError: one two)"),
    "a path": (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "'/x' cannot be used (Permission denied)"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/x"), 3, "make room on the disk"),
    "memory": (MemoryError(), 3, "take smaller batches"),
    "GPU memory": (torch.OutOfMemoryError("CUDA out of memory"), 3, "take smaller batches"),
}


@pytest.mark.parametrize(("fault", "code", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_any_other_failure_is_one_sentence_too(
    fault: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And never exit code 1, which says that a gate failed."""

    def fails(*_: Any) -> None:
        raise fault

    monkeypatch.setattr("pipeline.recipe.resolve.make_recipe", fails)
    assert run(BUILD) == code
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert said in err


def _process(code: str, line: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", code, *shlex.split(line)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


MAIN = "from pipeline.cli import main; main()"
SPY = f"""import atexit, sys
atexit.register(lambda: print("heavy:", *sorted({HEAVY!r} & sys.modules.keys())))
{MAIN}"""


def test_debug_shows_the_traceback() -> None:
    """`--debug`, before or after the verb, gives the traceback that is hidden without it."""
    wrong = "build --teacher digits_vit --bits w3q"
    plain = _process(MAIN, wrong)
    assert (plain.returncode, plain.stderr.count("\n"), "Traceback" in plain.stderr) == (2, 1, False)
    for line in (f"--debug {wrong}", f"{wrong} --debug"):
        told = _process(MAIN, line).stderr
        assert told.startswith("Traceback")
        assert "inversion.errors.InputError: bits 'w3q' are not understood" in told


def test_the_version_is_said_whatever_the_command_is_called() -> None:
    """`pipeline --version`, `python -m pipeline --version`; both names of the command are one."""
    scripts = importlib.metadata.distribution("patch-rebirth").entry_points.select(group="console_scripts")
    assert {script.name: script.value for script in scripts} == dict.fromkeys(
        ("pipeline", "patch-rebirth"), "pipeline.__main__:main"
    )
    said = f"patch-rebirth {importlib.metadata.version('patch-rebirth')}\n"
    assert _process(MAIN, "--version").stdout == said
    module = [sys.executable, "-m", "pipeline", "--version"]
    assert subprocess.run(module, capture_output=True, text=True, check=True).stdout == said


def test_every_verb_on_a_teacher_takes_a_recipe() -> None:
    """A file that one verb takes, all take: none that reads a recipe's keys is without --recipe."""
    verbs = {verb.__name__.partition("_")[0]: verb for verb in (*cli.VERBS, cli.bench_inversion)}
    assert {name for name in READS if "recipe" not in inspect.signature(verbs[name]).parameters} == set()


def test_help_is_light_and_lists_every_verb() -> None:
    """`pipeline --help` imports nothing heavy and shows each verb with a whole sentence at 80 columns."""
    help_ = _process(SPY, "--help")
    assert help_.returncode == 0
    assert help_.stdout.splitlines()[-1].strip() == "heavy:"
    verbs = help_.stdout.split("Commands:\n")[1].split("\n\n")[0]
    assert tuple(line.split()[0] for line in verbs.splitlines()) == VERBS
    assert "..." not in verbs


def test_help_of_build_says_every_default(capfd: pytest.CaptureFixture[str]) -> None:
    """And what each effort takes and gives, in the words of its preset."""
    assert run("build --help") == 0
    out = " ".join(capfd.readouterr().out.split())
    for effort in EFFORTS:
        for line in header(effort):
            assert " ".join(line.split()) in out
    for parameter in inspect.signature(build).parameters.values():
        option = typing.get_args(typing.get_type_hints(build, include_extras=True)[parameter.name])[1]
        needed = parameter.name in ("teacher", "bits") or parameter.default in (False, "auto")
        assert needed or parameter.name == "uint8_input" or "default" in option.help, parameter.name


def test_headers_of_presets_say_what_is_in_them() -> None:
    """Images and iterations are those of the values below."""
    for effort in EFFORTS:
        inversion = make_recipe({"teacher": "t", "bits": "w4a8", "effort": effort}).inversion
        words = " ".join(header(effort)).replace(",", "")
        assert f"{inversion.trajectories} trajectories" in words
        assert effort == "standard" or f"{inversion.iterations} iterations" in words


@pytest.mark.parametrize(
    "wrong",
    [
        "build --teacher digits_vit",
        f"{BUILD} --effort huge",
        f"{BUILD} --set training.updates=x",
        "build --teacher digits_vit --bits w3q",
        "invert --teacher digits_vit --out o --method gan",
        "invert --teacher digits_vit --out o --shard 4",
        "invert --teacher digits_vit --out o --shard 0/4 --batch auto",
        "shards empty",
        "report empty",
        "validate empty",
    ],
)
def test_what_the_words_show_is_refused_at_once(wrong: str) -> None:
    """A wrong recipe, or a folder that is no run, is refused before torch is imported, which takes seconds."""
    done = _process(SPY, wrong)
    assert (done.returncode, done.stdout.strip()) == (2, "heavy:")


def test_usage_errors_are_typers(capfd: pytest.CaptureFixture[str]) -> None:
    """An unknown verb or option: exit code 2, and it is named."""
    assert run("bild") == 2
    assert "bild" in capfd.readouterr().err
    assert run("build --bit w4a8") == 2
    assert "--bit" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "the same command goes on"), (["--force"], "the same command without --force goes on"),
        (["--force", "--from=quantize"], "the same command without --force and --from goes on"),
    ],
)  # fmt: skip
def test_a_stopped_build_says_how_to_go_on(flags: list[str], said: str) -> None:
    """What began it anew is to be left out, or it would begin anew again."""
    assert cli._how_to_go_on(["build", "--bits", "w4a8", *flags]) == f": {said} from here"


def test_archs_are_read_once_each() -> None:
    """`none` builds nothing; blanks and repeats do not count."""
    assert parse_archs("sm86, sm89,sm86") == ("sm86", "sm89")
    assert parse_archs("none") == ()


def test_doctor_tells_what_there_is(capfd: pytest.CaptureFixture[str]) -> None:
    """A line of `what: state` each for packages, devices, memory, disk, every backend, and the built-in teacher."""
    assert run("doctor --json health.json") == 0
    lines = dict(line.split(": ", 1) for line in capfd.readouterr().out.splitlines())
    assert lines.keys() >= {
        "python", "torch", "onnxruntime", "GPU", "CPU", "8-bit integers", "bfloat16", "memory", "disk for runs",
        "disk for temporary files", "engines", "inversion, quantization", "built-in teacher",
        *(f"runtime {name}" for name in RUNTIMES), *(f"engine builder {name}" for name in ENGINES),
    }  # fmt: skip
    assert lines["torch"] == torch.__version__.split("+")[0]
    assert lines["built-in teacher"].startswith("digits_vit, 64 patches")
    assert lines["runtime cpu"] == f"onnxruntime {onnxruntime.__version__} runs"
    assert re.fullmatch(r"\d+\.\d GB free of \d+\.\d GB", lines["memory"])
    told = json.loads(Path("health.json").read_text())
    assert told["versions"]["torch"] == lines["torch"]
    assert {each["name"] for each in told["runtimes"] if each["works"]} >= {"runtime cpu"}
    assert told["free_memory_bytes"] > 1e6
    assert min(each["free_bytes"] for each in told["disks"]) > 0
    for each in told["missing"]:
        assert lines[each["package"]] == f"missing, it brings {each['brings']}; {each['install']}"


def test_doctor_tells_what_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime whose answers are wrong, one that is not there, a builder that is none: each in words of its own."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    model = Path("small.onnx")
    with monkeypatch.context() as patch:
        patch.setattr("export.edge.exactness.STEP", 1 / 256)  # another model than the one whose answer is known
        model.write_bytes(largest_products())
    wrong, absent = (doctor._run(name, model) for name in ("cpu", "tensorrt_rtx"))
    assert (wrong.works, absent.works) == (False, False)
    assert wrong.says.endswith("gives wrong products")
    assert "this ONNX Runtime has no provider 'tensorrt_rtx'" in absent.says
    assert doctor._parse("tensorrt", model).says == "tensorrt is missing"
    assert doctor._parse("tensorrt_rtx", Path("not.onnx")).works is False
