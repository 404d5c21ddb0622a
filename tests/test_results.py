"""Results on disk, the interval of a rate, and what is written down about the command, source and machine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lewm_gym import provenance
from lewm_gym.results import METRICS, Metric, Outcome, Rate, Result, is_record, wilson_interval, write_json


def make_result(**changes: Any) -> Result:
    outcomes = tuple(Outcome(i, i != 3, 10 + i if i != 3 else None) for i in range(10))
    random = tuple(Outcome(i, i == 7, 44 if i == 7 else None) for i in range(10))
    values: dict[str, Any] = {
        "command": "python -m benchmarks plan runs/x",
        "commit": {"hash": "a" * 40, "dirty": False},
        "versions": {"python": "3.11.7"},
        "hardware": {"cpu": "abacus", "cores": 2, "memory_gib": 8.0, "system": "Linux x86_64", "gpu": None},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 12.5,
        "task": "two_room",
        "agent": "lewm",
        "run": {"folder": "runs/x", "weights": "b" * 64, "description": {"preset": "laptop", "training": {"seed": 0}}},
        "seed": 0,
        "protocol": "heldout",
        "offset_steps": 25,
        "budget_steps": 50,
        "pairs": {"hash": "c" * 32, "source": "shipped", "count": 200, "seed": 1},
        "outcomes": outcomes,
        "random": random,
        "replay": (),
        "timing": {"act_seconds": 9.0, "plans": 18, "seconds_per_plan": 0.5},
    }
    return Result(**(values | changes))


def on_disk(folder: Path) -> dict[str, Any]:
    make_result().save(folder / "made.json")
    return json.loads((folder / "made.json").read_text())


@pytest.mark.parametrize(("successes", "n"), [(0, 50), (1, 50), (43, 50), (50, 50), (98, 100), (7, 11), (1, 1)])
@pytest.mark.parametrize("z", [1.6448536269514722, 1.959963984540054])
def test_wilson_ends_are_where_the_score_test_just_fails_to_reject(successes: int, n: int, z: float) -> None:
    """The interval holds the rates p with |rate - p| <= z sqrt(p (1 - p) / n): found here by bisection."""
    rate = successes / n

    def boundary(inside: float, outside: float) -> float:
        for _ in range(200):
            p = (inside + outside) / 2
            if abs(rate - p) <= z * math.sqrt(p * (1 - p) / n) + 1e-15:
                inside = p
            else:
                outside = p
        return inside

    expected = (0.0 if successes == 0 else boundary(rate, 0.0), 1.0 if successes == n else boundary(rate, 1.0))
    confidence = 0.95 if z > 1.9 else 0.90
    assert wilson_interval(successes, n, confidence) == pytest.approx(expected, abs=1e-7)


def test_wilson_gives_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148, score method
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0)])
def test_wilson_refuses_impossible_counts(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="got"):
        wilson_interval(*arguments)


def test_result_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    result = make_result()
    result.save(tmp_path / "deep" / "r.json")
    assert Result.load(tmp_path / "deep" / "r.json") == result
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]  # no temporary file stays
    data = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert data["rates"]["agent"]["success"]["successes"] == 9
    assert data["rates"]["random"]["success"]["rate"] == 0.1


@pytest.mark.parametrize(
    ("schema", "message"), [(2, "older.*run the benchmark again"), (4, "newer.*update"), (None, "older")]
)
def test_result_of_another_schema_is_refused(tmp_path: Path, schema: Any, message: str) -> None:
    write_json(tmp_path / "r.json", on_disk(tmp_path) | {"schema": schema})
    with pytest.raises(ValueError, match=message):
        Result.load(tmp_path / "r.json")
    assert is_record(tmp_path / "r.json")


def test_result_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    data = on_disk(tmp_path)
    data["rates"]["agent"]["success"]["rate"] = 0.99
    write_json(tmp_path / "r.json", data)
    with pytest.raises(ValueError, match="contradicts itself"):
        Result.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": ...}, "lacks seed"),
        ({"surprise": 1}, "unknown fields surprise"),
        ({"outcomes": [{"pair": 0, "success": True, "steps": None}]}, "damaged"),
        ({"outcomes": []}, "damaged.*at least one"),
        ({"kind": "dance"}, "a record of 'dance', not of 'plan'"),
        ({"format": "something else"}, "not a LeWM-Gym record"),
        ({"seed": "x"}, r"made.json is damaged: .*`int`.*`\$.seed`"),
        ({"task": None}, r"`\$.task`"),
        ({"versions": {"python": 3}}, r"`\$.versions"),
        ({"outcomes": [{"pair": [], "success": False}]}, r"`\$.outcomes\[0\].pair`"),
        ({"run": []}, r"`\$.run`"),
        ({"run": {"weights": 3}}, r"`\$.run.weights`"),
        ({"run": {"description": {"training": {"seed": []}}}}, r"`\$.run.description.training.seed`"),
        ({"run": {"curves": {"loss": {"step": [1], "value": []}}}}, "more steps than values"),
        ({"pairs": {"hash": []}}, r"`\$.pairs.hash`"),
        ({"timing": {"act_seconds": "x"}}, r"`\$.timing.act_seconds`"),
    ],
)
def test_damaged_result_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = on_disk(tmp_path) | change
    write_json(tmp_path / "made.json", {key: value for key, value in data.items() if value is not ...})
    with pytest.raises(ValueError, match=message):
        Result.load(tmp_path / "made.json")


def test_cut_off_result_is_refused(tmp_path: Path) -> None:
    make_result().save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text[: len(text) // 2])
    for read in (Result.load, is_record):
        with pytest.raises(ValueError, match="not valid JSON"):
            read(tmp_path / "r.json")


def test_failed_save_leaves_the_old_result(tmp_path: Path) -> None:
    make_result().save(tmp_path / "r.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        make_result(seconds=math.nan).save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == make_result()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_random_baseline_must_be_of_the_same_pairs() -> None:
    result = make_result()
    with pytest.raises(ValueError, match="same pairs"):
        replace(result, random=result.random[:-1])


def test_metrics_may_come_and_go_without_a_new_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Metric("quick", "within 12 steps", lambda outcome: outcome.success and outcome.steps <= 12)
    before = on_disk(tmp_path)
    monkeypatch.setitem(METRICS, "quick", quick)
    write_json(tmp_path / "old.json", before)
    assert Result.load(tmp_path / "old.json").rates()["agent"]["quick"].successes == 3
    with_it = on_disk(tmp_path)
    assert with_it["rates"]["agent"]["quick"]["successes"] == 3
    monkeypatch.delitem(METRICS, "quick")
    write_json(tmp_path / "new.json", with_it)
    assert set(Result.load(tmp_path / "new.json").rates()["agent"]) == {"success"}


def test_rate_reads_as_percent_with_interval() -> None:
    assert str(Rate.of(tuple(Outcome(i, True, 1) for i in range(50)))) == "100.0 % [92.9, 100.0]"


def test_command_is_what_the_user_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    main = SimpleNamespace(__spec__=SimpleNamespace(name="benchmarks.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/__main__.py", "plan", "runs/my run", "--film"])
    assert provenance.command() == "python -m benchmarks plan 'runs/my run' --film"
    main.__spec__ = None
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "1"])
    assert provenance.command() == "python train.py --seed 1"


def test_commit_is_that_of_the_source_tree() -> None:
    root = Path(provenance.__file__).parent.parent
    commit = provenance.commit()
    if not (root / ".git").exists():
        assert commit is None
    else:
        assert commit is not None and isinstance(commit["dirty"], bool)
        known = subprocess.run(
            ["git", "-C", str(root), "cat-file", "-t", commit["hash"]], capture_output=True, text=True
        )
        assert known.stdout.strip() == "commit"


def test_machine_and_versions_are_described_without_importing_torch() -> None:
    code = (
        "import json, sys, lewm_gym.provenance as p; d = p.describe(); assert 'torch' not in sys.modules; "
        "print(json.dumps(d))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    described = json.loads(done.stdout)
    assert described["hardware"]["cores"] >= 1 and described["hardware"]["memory_gib"] > 0.1
    assert described["hardware"]["cpu"] and described["hardware"]["gpu"] is None
    assert {"python", "torch", "numpy", "gymnasium"} <= set(described["versions"])


def test_saving_reaches_the_disk_and_a_file_in_the_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    make_result().save(tmp_path / "r.json")
    assert len(synced) == 1
    with pytest.raises(OSError, match="cannot write to .*r.json .a file of that name is in the way.: choose another"):
        make_result().save(tmp_path / "r.json" / "r.json")
