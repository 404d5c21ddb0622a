"""Settings of planning, changed one by one."""

from __future__ import annotations

import json

import pytest
import tiny

from agents.planning import PlanningConfig
from benchmarks.__main__ import main
from lewm_gym.planning import CEMConfig, ICEMConfig
from lewm_gym.results import Result


def test_settings_of_the_search_and_of_planning_are_changed_and_the_rest_is_kept():
    before = PlanningConfig(CEMConfig(n_iterations=10), warm_start=True)
    after = before.changed({"cost": "sum", "execute_blocks": 1, "n_samples": 64})
    assert after == PlanningConfig(
        CEMConfig(n_samples=64, n_iterations=10), execute_blocks=1, cost="sum", warm_start=True
    )
    assert before.changed({}) == before


def test_another_planner_begins_with_its_own_defaults():
    before = PlanningConfig(CEMConfig(n_iterations=7))
    assert before.changed({"planner": "icem", "n_samples": 64}).search == ICEMConfig(n_samples=64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": 1}, "unknown planning settings colour; expected some of: .*n_samples"),
        ({"search": None}, "unknown planning settings search"),
        ({"planner": "magic"}, "unknown planner 'magic'"),
        ({"cost": "max"}, "cost must be one of"),
        ({"n_samples": "many"}, "a planning setting has the wrong type"),
        ({"execute_blocks": 9}, "execute_blocks must be within 1..horizon_blocks"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PlanningConfig().changed(settings)


def test_an_evaluation_plans_as_it_is_told_and_says_so(tmp_path):
    run, out = tmp_path / "run", tmp_path / "r.json"
    tiny.agent().save(run)
    command = ["plan", str(run), "--n-pairs", "2", "--budget", "10", "--workers", "1", "--film", "--out", str(out)]
    command += ["--planning", "cost=sum", "execute_blocks=1"]
    assert main(command) == 0
    result = Result.load(out)
    planning = result.run["description"]["planning"]
    assert (planning["cost"], planning["execute_blocks"], planning["search"]["n_samples"]) == ("sum", 1, 16)
    assert result.timing["plans"] >= 4  # one every 5 steps, not every 25
    film = out.with_suffix(".mp4").read_bytes()
    out.with_suffix(".mp4").unlink()
    assert main(command) == 0
    assert Result.load(out) == result and out.with_suffix(".mp4").read_bytes() == film
    assert json.loads((run / "run.json").read_text())["planning"]["cost"] == "terminal"
