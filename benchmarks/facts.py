"""What made each number, in words: command, commit, seed, hardware and time, of results and of other records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.groups import Entry

#: Facts that are set in a fixed-width face.
CODE = ("command", "training command", "commit", "training commit", "pairs", "dataset", "weights")


def of_result(entry: Entry) -> list[tuple[str, str]]:
    """Returns what made a result as (name, text), what is unknown left out."""
    result = entry.result
    run = result.run
    description = _dictionary(run.get("description"))
    training = _dictionary(description.get("training"))
    dataset = _dictionary(description.get("dataset"))
    plan_seconds = result.timing.get("seconds_per_plan")
    per_plan = f", {plan_seconds:.3g} s per plan" if plan_seconds else ""
    steps = run.get("steps") or training.get("steps")
    seconds = description.get("training_seconds") or run.get("seconds")
    strict = result.rates()["strict_success"]
    ceiling = result.ceiling_success
    where = f"{result.offset_steps} steps apart" if result.offset_steps else "goals drawn uniformly"
    values = [
        ("command", result.command),
        ("commit", commit_text(result.commit)),
        ("seed", f"{result.seed} (evaluation)"),
        ("protocol", f"{result.protocol}, {where}, budget {result.budget_steps} steps"),
        ("pairs", f"{result.pairs.get('source')}, first {result.success.episodes} of {result.pairs.get('count')}, "
                  f"hash {str(result.pairs.get('hash'))[:16]}"),
        ("strict success", f"{strict}, held for 5 steps" if strict else "not judged"),
        ("replay", f"{ceiling}, the recorded actions on the same pairs" if ceiling else None),
        ("hardware", hardware_text(result.hardware)),
        ("time", f"{duration(result.seconds)}{per_plan}, begun {result.started}"),
        ("versions", versions_text(result.versions)),
        ("training", _training_text(description, training, steps, seconds)),
        ("training command", description.get("command")),
        ("training commit", commit_text(description["commit"]) if "commit" in description else None),
        ("training hardware", hardware_text(description["hardware"]) if description.get("hardware") else None),
        ("dataset", _dataset_text(dataset)),
        ("weights", str(run["weights"])[:16] if run.get("weights") else None),
        ("result file", entry.path.name),
    ]  # fmt: skip
    return [(name, str(text)) for name, text in values if text]


def of_record(record: Mapping[str, Any], path: Path) -> list[tuple[str, str]]:
    """Returns the same of any other JSON file of a measurement, as far as it says."""
    seconds, started = record.get("seconds"), record.get("started")
    timed = duration(seconds) if isinstance(seconds, int | float) else ""
    values = [
        ("command", record.get("command")),
        ("commit", commit_text(record["commit"]) if "commit" in record else None),
        ("seed", record.get("seed")),
        ("hardware", hardware_text(record["hardware"]) if isinstance(record.get("hardware"), dict) else None),
        ("device", record.get("device")),
        ("time", ", begun ".join(str(text) for text in (timed, started) if text)),
        ("versions", versions_text(_dictionary(record.get("versions")))),
        ("result file", path.name),
    ]
    return [(name, str(text)) for name, text in values if text not in (None, "")]


def commit_text(commit: Any) -> str:
    """Returns a commit in short, and whether the tree differed from it."""
    if not isinstance(commit, dict) or not commit.get("hash"):
        return "not in a git checkout"
    return str(commit["hash"])[:12] + (" with uncommitted changes" if commit.get("dirty") else "")


def hardware_text(machine: Mapping[str, Any]) -> str:
    """Returns a machine in words."""
    memory = f", {machine['memory_gib']} GiB" if machine.get("memory_gib") else ""
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ", no GPU"
    return f"{machine.get('cores')} cores of {machine.get('cpu')}{memory}{gpu}, {machine.get('system')}"


def versions_text(versions: Mapping[str, Any]) -> str:
    """Returns packages and versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def duration(seconds: float) -> str:
    """Returns seconds as s, min or h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _training_text(description: dict[str, Any], training: dict[str, Any], steps: Any, seconds: Any) -> str:
    parts = [
        f"preset {description['preset']}" if description.get("preset") else "",
        f"seed {training['seed']}" if "seed" in training else "",
        f"{steps} steps" if steps else "",
        f"of {training['batch_size']} clips" if training.get("batch_size") else "",
        duration(seconds) if isinstance(seconds, int | float) else "",
    ]
    return ", ".join(part for part in parts if part).replace(" steps, of ", " steps of ")


def _dataset_text(dataset: dict[str, Any]) -> str:
    names = (("folder", "{}"), ("episodes", "{} episodes"), ("frames", "{} frames"))
    parts = [form.format(dataset[name]) for name, form in names if dataset.get(name) is not None]
    if dataset.get("hash"):
        parts.append(f"hash {str(dataset['hash'])[:16]}")
    return ", ".join(parts)
