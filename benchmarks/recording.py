"""One dated JSON a result: what ran, where, at which commit, and what came out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.record.versions import versions

RECORDS = Path(__file__).parent / "records"


def write_record(name: str, results: Mapping[str, Any], folder: Path = RECORDS) -> Path:
    """Write `<date>_<name>.json` with the command that is running; returns its path."""
    record = {
        "name": name,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folder, sys.argv[1:])]),
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores of {platform.machine()}",
        "versions": versions(),
        **results,
    }
    path = folder / f"{datetime.now(UTC):%Y-%m-%d}_{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    return path


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """--teacher, --checkpoint, --val-data and --class-map, as `pipeline build` takes them."""
    parser.add_argument("--teacher", required=True)
    for name in ("--checkpoint", "--val-data", "--class-map"):
        parser.add_argument(name, type=Path)


def commit() -> str:
    """The commit that the code stands at, with "-dirty" where files differ from it."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(git, cwd=RECORDS, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def processor() -> str:
    """The CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _without_folder(argument: str) -> str:
    """A record names files, not where they lay on one machine."""
    return Path(argument).name if os.sep in argument else argument
