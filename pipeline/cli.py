"""The command line: a thin shell over the verbs, one `except`, one exit; nothing heavy is imported early."""

from __future__ import annotations

import errno
import importlib.metadata
import signal
import sys
from typing import Annotated, Any

import typer

from inversion.errors import PatchRebirthError
from pipeline.show.packages import missing_sentence
from pipeline.verbs.build import BuildCommand, build
from pipeline.verbs.research import bench_inversion, distill, reproduce, sensitivity
from pipeline.verbs.scale import plan, shards
from pipeline.verbs.show import deploy, doctor, gallery, inspect, report
from pipeline.verbs.stages import engine, export, invert, quantize, validate

DEBUG = "--debug"
GO_ON = {"build", "invert", "quantize", "distill", "reproduce"}
"""Verbs that, called again, take up what they left."""
UNFORESEEN = 70
"""Of sysexits, EX_SOFTWARE: 1 is a failed gate and nothing else."""

app = typer.Typer(
    epilog=f"{DEBUG}, anywhere, shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bench = typer.Typer(help="How fast this machine is.", no_args_is_help=True)
app.add_typer(bench, name="bench")
bench.command("inversion")(bench_inversion)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"patch-rebirth {importlib.metadata.version('patch-rebirth')}")
        raise typer.Exit


@app.callback()
def command(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Data-free compression of Vision Transformers: a trained ViT in, a quantized ONNX and an INT8 engine out."""


VERBS = (
    build, invert, shards, quantize, sensitivity, distill, export, engine, validate, deploy, inspect, report, gallery,
    reproduce, plan, doctor,
)  # fmt: skip
for verb in VERBS:
    app.command(cls=BuildCommand if verb is build else None)(verb)


def main() -> None:
    """Run the command; an error is one sentence on stderr and its exit code."""
    import logging
    import warnings

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # speaks of compilers that we never call
    warnings.simplefilter("ignore")
    debug = DEBUG in sys.argv
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app([argument for argument in sys.argv[1:] if argument != DEBUG])
    except Stopped as stopped:
        print(f"stopped by {stopped.signal.name}{_how_to_go_on(sys.argv[1:])}.", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except Exception as error:
        if debug:
            raise
        sentence, code = _explain(error)
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
        sys.exit(code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(BaseException):
    """A signal asked the command to end; no `except Exception` on the way takes it for an error."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def _stop(number: int, _frame: Any) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # who asks twice is not kept waiting: no file can be half written
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)


def _how_to_go_on(words: list[str]) -> str:
    """What a stopped command leaves for the next; nothing where it begins anew."""
    if not GO_ON & set(words[:1]):
        return ""
    anew = " and ".join(flag for flag in ("--force", "--from") if flag in {word.partition("=")[0] for word in words})
    return f": the same command without {anew} goes on from here" if anew else ": the same command goes on from here"


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    if isinstance(error, PatchRebirthError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (sentence := missing_sentence(error.name or "")):
        return sentence, 3
    if isinstance(error, OSError) and error.filename is not None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "make room on the disk" if full else "give another path, or the right to use it"
        return f"{str(error.filename)!r} cannot be used ({error.strerror}): {mend}.", 3 if full else 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return "the memory of this machine or its GPU is not enough: take smaller batches.", 3
    if isinstance(error, RuntimeError) and "CUDA error" in str(error):
        why = str(error).splitlines()[0].removeprefix("CUDA error: ").rstrip(". ")
        return f"the GPU stopped answering ({why}): look at it with nvidia-smi, then run the same command again.", 3
    if isinstance(error, RuntimeError) and str(error).startswith("operator torchvision::"):
        return "torchvision does not go with this torch: install both from one place, as docs/install.md says.", 3
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"the program itself is at fault ({what}): run it with {DEBUG} and report what it prints.", UNFORESEEN
