"""`python -m pipeline`, and where the command `pipeline` begins: a package that is missing is a sentence here too."""

from __future__ import annotations

import sys

from pipeline.show.packages import missing_sentence


def main() -> None:
    """Run the command."""
    try:
        from pipeline.cli import main as command
    except ModuleNotFoundError as error:
        if (sentence := missing_sentence(error.name or "")) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(3)
    command()


if __name__ == "__main__":
    main()
