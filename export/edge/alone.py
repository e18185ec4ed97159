"""One model in a process of its own, timed there whenever it is told to. Runs without torch.

A model is as fast as its user finds it only where no other one's threads spin beside it, so each is opened by a process
that opens nothing else, with its runtime's own defaults. It takes a line of JSON for each of its turns, and gives one.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from export.edge.backend import Runtime
from export.edge.runtime import open_runtime, random_feeds
from inversion.errors import InputError, MachineError, PatchRebirthError

INPUT, MACHINE = "input", "machine"
SETTLE_S = 0.05
"""Seconds before a turn of several threads: those of the model before it spin on for 0.03, in its own process."""


@dataclass(frozen=True)
class Turn:
    """What a process does next: run the model on `batch` random pictures once, uncounted, and then `runs` times, with
    `threads` of the CPU, all where None."""

    batch: int
    runs: int
    threads: int | None = None


class Alone:
    """The model in `path` on the runtime of `provider`, in a process that ends with `close` or its `with`.

    `peak_bytes` is the most memory that the process has held after its last turn.
    """

    def __init__(self, path: Path | str, provider: str = "cpu") -> None:
        self.path, self.provider = Path(path), provider
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()", provider, str(path)]
        self.peak_bytes = 0
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, text=True)

    def take(self, turn: Turn) -> list[float]:
        """Milliseconds of each counted run. Raises `InputError` where the model cannot be opened or run so,
        `MachineError` where this machine cannot."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):  # it has ended: what it said last tells why
            stdin.write(json.dumps(asdict(turn)) + "\n")
            stdin.flush()
        if not (answer := stdout.readline()):
            raise MachineError(f"the process that timed {str(self.path)!r} ended: {self._last_words()}.")
        found = json.loads(answer)
        if "error" in found:
            raise (InputError if found["kind"] == INPUT else MachineError)(found["error"])
        self.peak_bytes = found["peak_bytes"]
        samples: list[float] = found["samples_ms"]
        return samples

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        return (self._said.read().strip().splitlines() or ["it said nothing"])[-1].rstrip(".")

    def close(self) -> None:
        """End the process; a second time does nothing."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(lines: TextIO = sys.stdin) -> None:
    """What the process runs: a turn for each of `lines`, as `Turn` has them, of the model that its arguments name."""
    provider, path = sys.argv[1:]
    with ExitStack() as stack:
        model = _Model(stack, Path(path), provider)
        for line in lines:
            try:
                samples = model.take(Turn(**json.loads(line)))
                found: dict[str, Any] = {"samples_ms": samples, "peak_bytes": _peak_bytes()}
            except PatchRebirthError as error:
                found = {"kind": MACHINE if isinstance(error, MachineError) else INPUT, "error": str(error)}
            print(json.dumps(found), flush=True)


class _Model:
    """The model, opened once for a number of threads, and fed once for a batch."""

    def __init__(self, stack: ExitStack, path: Path, provider: str) -> None:
        self.path, self.provider = path, provider
        self.opened, self.fed = stack.enter_context(ExitStack()), stack.enter_context(ExitStack())
        self.now: Turn | None = None

    def take(self, turn: Turn) -> list[float]:
        if self.now is None or self.now.threads != turn.threads:
            self.fed.close()
            self.opened.close()
            self.runtime: Runtime = self.opened.enter_context(open_runtime(self.path, self.provider, turn.threads))
        if self.now is None or (self.now.threads, self.now.batch) != (turn.threads, turn.batch):
            self.fed.close()
            feeds = random_feeds(self.runtime, turn.batch)
            self.run: Callable[[], object] = self.fed.enter_context(self.runtime.ready(feeds))
        self.now = turn
        if turn.threads != 1:
            time.sleep(SETTLE_S)
        self.run()
        return [_milliseconds(self.run) for _ in range(turn.runs)]


def _milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _peak_bytes() -> int:
    """A child's ru_maxrss starts at its parent's memory on Linux, VmHWM does not."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(kilobytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
