"""Records on disk: one JSON file per measurement, with what made it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lewm_gym import provenance
from lewm_gym.results import write_json

SCHEMA = 1  # raise it when a field changes its meaning, appears or goes
KINDS = ("probe", "surprise", "decode", "latent map", "rollout error", "straightness", "curves")
#: Records of the other measurements that write in this form.
OTHER_KINDS = ("shift", "lambda", "ablation", "equal flops", "tradeoff")
_PREFIX = "lewm-gym "

Json = dict[str, Any]


class Record:
    """A record in the making; the clock starts when it is made.

    Args:
        kind: One of KINDS or OTHER_KINDS.
    """

    def __init__(self, kind: str) -> None:
        assert kind in KINDS + OTHER_KINDS
        self._kind = kind
        self._began = time.perf_counter()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    def save(self, path: Path, body: Json) -> Json:
        """Writes the record, whole or not at all, and returns it.

        Raises:
            OSError: If it cannot be written.
        """
        head = {"format": _PREFIX + self._kind, "schema": SCHEMA, **provenance.describe(), "started": self._started}
        record = {**head, "seconds": round(time.perf_counter() - self._began, 2), **rounded(body)}
        write_json(path, record)
        return record


def record_path(verb: str, runs: Sequence[str | Path]) -> Path:
    """Returns where a record of these runs goes by default, e.g. `results/probe-two_room-lewm-0.json`."""
    return Path("results", f"{verb}-{'+'.join(Path(run).resolve().name for run in runs)}.json")


def is_record(path: str | Path) -> bool:
    """Returns whether a JSON file is a record of any kind and schema; a file that is not JSON is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(data, dict) and str(data.get("format")).removeprefix(_PREFIX) in KINDS


def load_record(path: str | Path) -> Json:
    """Returns a record.

    Raises:
        ValueError: If the file is none, or of another schema.
        OSError: If it cannot be read.
    """
    path = Path(path)
    if not is_record(path):
        raise ValueError(f"{path} is not a record of `python -m benchmarks` ({', '.join(KINDS)})")
    record: Json = json.loads(path.read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {record.get('schema')}, this version reads {SCHEMA}: measure it again")
    return record


def rounded(value: Any, digits: int = 6) -> Any:
    """Returns JSON values with floats cut to so many significant digits, and null for what is no number."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
