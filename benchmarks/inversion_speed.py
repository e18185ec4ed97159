"""The bench of inversion on record: `pipeline bench inversion` with its command, commit and machine.

python benchmarks/inversion_speed.py --teacher deit_tiny --random-weights --name inversion_deit_tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recording import write_record
from rich.console import Console

from inversion.machine import choose_device
from inversion.teacher import load_teacher
from pipeline.reproduce.bench import measure_inversion, results_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    device = str(choose_device(args.device))
    teacher = load_teacher(args.teacher, args.checkpoint, random_weights=args.random_weights, device=device)
    results = measure_inversion(teacher, args.batch, args.rounds, args.precision)
    Console(width=160).print(results_table(results))
    write_record(args.name, results)


if __name__ == "__main__":
    main()
