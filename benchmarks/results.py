"""Put what `pipeline reproduce` and `pipeline distill` wrote on record.

python benchmarks/results.py reproduced/tableA3.json --name reproduce_digits_tableA3
python benchmarks/results.py students/pri/distillation.json students/dmi/distillation.json --name distill_cifar10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recording import write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    found = {path: json.loads(path.read_text()) for path in args.results}
    if all(path.name == "distillation.json" for path in found):
        write_record(args.name, {"runs": {path.parent.name: run for path, run in found.items()}})
        return
    for path, result in found.items():
        result = {key: value for key, value in result.items() if key not in ("name", "versions")}
        write_record(args.name, {**result, "experiment": path.stem, "markdown": _markdown(path)})


def _markdown(path: Path) -> str:
    """The table and its notes, without the title."""
    return path.with_suffix(".md").read_text().partition("\n\n")[2].strip()


if __name__ == "__main__":
    main()
