"""Measures success, latents and speed of agents; `report` shows all results on one page."""

from __future__ import annotations

import sys

from benchmarks.registry import COMMANDS, load_command
from lewm_gym import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    for count in (2, 1):  # some names have two words
        name = " ".join(words[:count])
        if name in COMMANDS:
            command = load_command(name).parse(words[count:], f"python -m benchmarks {name}")
            return int(command())
    listed = "\n".join(f"  {name:16} {entry.text}" for name, entry in COMMANDS.items())
    parser = cli.Parser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"commands:\n{listed}\n\nDetails: python -m benchmarks COMMAND --help",
        formatter_class=cli.RawText,
    )
    parser.add_argument("command", metavar="COMMAND", choices=tuple(COMMANDS), help="one of the commands below")
    parser.parse_args(words[:1])
    return 0


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
