"""`python -m lewm_gym`: `demo` (default) and `watch`, short for `python -m benchmarks demo` and `watch`."""

from __future__ import annotations

import importlib
import sys

from lewm_gym import cli

HELP = """commands:
  lewm-gym demo           collect, train, plan and film on Two-Room; the default, with the options below
  lewm-gym watch AGENT    film a pretrained agent or that of a run folder; options: lewm-gym watch --help
Datasets: lewm-collect; training: lewm-agents; evaluation and analysis: lewm-benchmarks.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo, or shows an agent."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in (["-h"], ["--help"]):
        print(HELP)
    benchmarks = importlib.import_module("benchmarks.__main__")
    return int(benchmarks.main(words if words[:1] in (["demo"], ["watch"]) else ["demo", *words]))


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
