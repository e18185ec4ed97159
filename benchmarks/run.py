"""Put the figures of a finished run folder on record.

python benchmarks/run.py RUN --name demo
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from recording import write_record

from pipeline.record.manifest import load_finished, to_json

PATHS = ("checkpoint", "val_data", "class_map")
"""Of a recipe: a record names no places of one machine."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--note", help="What a reader must know beside the figures.")
    args = parser.parse_args()
    manifest = load_finished(args.run)
    recipe = {key: value for key, value in manifest.recipe.items() if key not in PATHS}
    write_record(
        args.name,
        {
            "recipe": recipe,
            "teacher": asdict(manifest.teacher),
            "seconds": {stage.name: stage.seconds for stage in manifest.stages},
            "quantize": manifest.stage("quantize").metrics,
            "confidence_by_stage": manifest.stage("invert").metrics["confidence"],
            "validation": to_json(manifest.verdict),
            **({"note": args.note} if args.note else {}),
        },
    )


if __name__ == "__main__":
    main()
