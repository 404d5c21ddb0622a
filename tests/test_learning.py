"""LeWM learns: a minute of training from pixels plans better than chance, with room to spare."""

import pytest

from agents.lewm import LeWMAgent
from agents.run import train_run
from benchmarks.evaluation.evaluate import evaluate
from collect.collector import collect
from lewm_gym.pairs import load_shipped
from lewm_gym.results import Rate


@pytest.mark.timeout(900)
def test_a_minute_of_training_beats_the_random_policys_upper_bound(tmp_path):
    collect("two_room", tmp_path / "data", 60, workers=1, pictures=False)
    overrides = {"steps": 150, "batch_size": 96}  # about 60 s on one core
    agent = train_run(LeWMAgent, tmp_path / "data", tmp_path / "run", "laptop", overrides, "cpu")
    pairs = load_shipped("two_room", 25).pairs[:50]

    from agents.random import RandomAgent

    success = Rate.of(evaluate(agent, "two_room", pairs))
    chance = Rate.of(evaluate(RandomAgent(2), "two_room", pairs))
    print(f"LeWM {success}, random {chance}")
    assert success.rate > chance.high
