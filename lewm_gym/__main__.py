"""`python -m lewm_gym`: the demo, by its other name `python -m benchmarks demo`."""

from __future__ import annotations

import importlib
import sys

from lewm_gym import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo."""
    words = sys.argv[1:] if arguments is None else arguments
    benchmarks = importlib.import_module("benchmarks.__main__")
    return int(benchmarks.main(["demo", *(words[1:] if words[:1] == ["demo"] else words)]))


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
