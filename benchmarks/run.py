"""Put the figures of a finished run folder on record.

python benchmarks/run.py RUN --name demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recording import write_record

from pipeline.record.manifest import load_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--note", help="What a reader must know beside the figures.")
    args = parser.parse_args()
    manifest = load_manifest(args.run)
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    recipe = {
        key: value for key, value in manifest["recipe"].items() if key not in ("checkpoint", "val_data", "class_map")
    }
    write_record(
        args.name,
        {
            "recipe": recipe,
            "teacher": manifest["teacher"],
            "seconds": {name: stage["seconds"] for name, stage in stages.items()},
            "quantize": stages["quantize"]["metrics"],
            "confidence_by_stage": stages["invert"]["metrics"]["confidence"],
            "validation": manifest["validation"],
            **({"note": args.note} if args.note else {}),
        },
    )


if __name__ == "__main__":
    main()
