"""`python -m lewm_gym`: `demo` (default) and `watch`, short for `python -m benchmarks demo` and `watch`."""

from __future__ import annotations

import importlib
import sys

from lewm_gym import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo, or shows an agent."""
    words = sys.argv[1:] if arguments is None else arguments
    benchmarks = importlib.import_module("benchmarks.__main__")
    return int(benchmarks.main(words if words[:1] in (["demo"], ["watch"]) else ["demo", *words]))


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
