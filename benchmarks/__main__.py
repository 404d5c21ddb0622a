"""Measures success, latents and speed of agents; `report` shows all results on one page."""

from __future__ import annotations

from benchmarks.registry import COMMANDS, load_command
from lewm_gym import cli
from lewm_gym.commands import dispatch


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    texts = {name: entry.text for name, entry in COMMANDS.items()}
    return dispatch("python -m benchmarks", __doc__, texts, load_command, arguments)


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
