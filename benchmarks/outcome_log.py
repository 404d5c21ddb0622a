"""The file beside a result that makes a killed evaluation resume: one line for each finished outcome."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lewm_gym.files import atomic_file, make_folder
from lewm_gym.results import Outcome


class OutcomeLog:
    """Outcomes of an unfinished evaluation, appended as they come.

    The first line is the configuration that determines the outcomes. A log of another configuration is begun
    again; a last line that was cut off by the kill is dropped.

    Args:
        path: The log, e.g. `results/x.json.partial`.
        config: What the outcomes are a function of, ready for JSON.

    Raises:
        OSError: If the log cannot be written.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.started: str = config["started"]
        self.seconds = 0.0  # of the calls before this one
        self.timing: dict[str, float] = {}  # likewise, sums by name
        self._known: dict[str, dict[int, Outcome]] = {}
        lines = _complete_lines(path)
        if lines and _identity(lines[0]) == _identity(config):
            self._restore(lines)
        else:
            lines = [config]
        make_folder(path.parent)
        with atomic_file(path) as file:  # anew, without a cut-off last line, before anything is appended to it
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def _restore(self, lines: list[dict[str, Any]]) -> None:
        self.started = lines[0]["started"]
        calls: dict[str, dict[str, Any]] = {}  # the last line of each call has that call's total times
        for line in lines[1:]:
            outcome = Outcome(line["pair"], line["success"], line["steps"], line["strict"])
            self._known.setdefault(line["who"], {})[outcome.pair] = outcome
            calls[line["call"]] = line
        for line in calls.values():
            self.seconds += line["seconds"]
            for name, value in line["timing"].items():
                self.timing[name] = self.timing.get(name, 0.0) + value

    def known(self, who: str) -> dict[int, Outcome]:
        """Returns the outcomes of `who` ("agent", "floor" or "ceiling") by pair."""
        return dict(self._known.get(who, {}))

    def append(self, who: str, outcome: Outcome, call: str, seconds: float, timing: dict[str, float]) -> None:
        """Adds an outcome, with the times that this call has taken so far; it is on disk when this returns."""
        self._known.setdefault(who, {})[outcome.pair] = outcome
        line = {"who": who, **asdict(outcome), "call": call, "seconds": round(seconds, 3), "timing": timing}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        """Deletes the log, once the result is saved."""
        self.path.unlink(missing_ok=True)


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "started"}


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines if all(isinstance(line, dict) for line in lines) else []
