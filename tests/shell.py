"""`pipeline ...` as a person types it, in this process."""

from __future__ import annotations

import logging
import shlex
import sys

import pytest
import torch

from pipeline import cli


def run(line: str) -> int:
    """The exit code of `pipeline LINE`, on one thread: a second one waits for a busy core."""
    # with pytest's handler there, the exporter traces itself, at half of its time
    logging.getLogger("torch.__trace").handlers.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pipeline", *shlex.split(line)])
        # how long it is timed changes no promise
        patch.setattr("pipeline.judge.speed.LATENCY_SECONDS", 0.2)
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            torch.set_num_threads(threads)
    return 0
