"""Films of episodes: every frame is there, and the ending is told truly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from test_benchmarks_plan import a_run
from tiny import measure

from agents.random import RandomAgent
from benchmarks.evaluation import film
from benchmarks.evaluation.envs import Settings
from benchmarks.evaluation.evaluate import evaluate, record
from lewm_gym.files import is_whole
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.results import Outcome, Result

PAIRS = load_shipped("two_room", 25).pairs[:12]
BUDGET = 150  # long enough for the random policy to stumble upon a goal


@pytest.fixture(scope="module")
def outcomes() -> tuple[Outcome, ...]:
    return evaluate(RandomAgent(2), "two_room", PAIRS, budget_steps=BUDGET)


def test_choice_takes_the_first_of_each_kind() -> None:
    outcomes = [Outcome(i, i not in (1, 8, 9, 10), 5 if i not in (1, 8, 9, 10) else None) for i in range(12)]
    assert film.choose(outcomes) == [0, 1, 2, 3, 4, 8]
    assert film.choose(list(reversed(outcomes))) == [0, 1, 2, 3, 4, 8]
    assert film.choose([Outcome(i, True, 3) for i in range(9)]) == [0, 1, 2, 3, 4, 5]
    assert film.choose([Outcome(i, False) for i in range(9)]) == [0, 1, 2, 3, 4, 5]
    assert film.choose([Outcome(0, True, 3)]) == [0]


def test_film_shows_the_same_episodes_frame_by_frame(tmp_path: Path, outcomes: tuple[Outcome, ...]) -> None:
    solved = next(o for o in outcomes if o.success)
    failed = next(o for o in outcomes if not o.success)
    episodes = record(RandomAgent(2), "two_room", PAIRS, [solved.pair, failed.pair], Settings(BUDGET))
    assert [episode.outcome for episode in episodes] == [replace(o, strict=None) for o in (solved, failed)]
    assert solved.steps is not None
    assert [len(episode.frames) for episode in episodes] == [solved.steps + 1, BUDGET + 1]

    path = film.write_film(tmp_path / "films" / "f.mp4", episodes, "two_room")
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    expected = solved.steps + 1 + BUDGET + 1 + 2 * film.HOLD_FRAMES
    assert count == expected and seconds == pytest.approx(expected / film.FPS, abs=0.2)
    assert {file.name for file in path.parent.iterdir()} == {"f.mp4", "f.png"}
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # browsers can begin before the whole file is there
    sheet = Image.open(path.with_suffix(".png"))
    assert sheet.width > 4 * film.STILL_VIEW and sheet.height > 2 * film.STILL_VIEW


def test_ending_is_marked_and_held(outcomes: tuple[Outcome, ...]) -> None:
    first = outcomes[0].pair
    (episode,) = record(RandomAgent(2), "two_room", PAIRS, [first], Settings(4))
    frames = film.film_frames([episode], "Two-Room")
    assert len(frames) == 5 + film.HOLD_FRAMES
    border = film.HEAD + film.VIEW // 2, film.GAP - 3
    assert [tuple(frame[border]) for frame in frames[:4]] == [film.RUNNING] * 4
    assert {tuple(frame[border]) for frame in frames[4:]} == {film.FAILURE}
    assert episode.label == "not reached in 4 steps"
    episode.outcome = Outcome(first, True, 4)
    assert tuple(film.film_frames([episode], "Two-Room")[-1][border]) == film.SUCCESS
    assert episode.label == "reached after 4 steps"


def test_views_are_the_agents_own(outcomes: tuple[Outcome, ...]) -> None:
    (episode,) = record(RandomAgent(2), "two_room", PAIRS, [3], Settings(2))
    frame = film.film_frames([episode], "Two-Room")[1].astype(float)
    rows = slice(film.HEAD, film.HEAD + film.VIEW)
    left, right = frame[rows, film.GAP :][:, : film.VIEW], frame[rows, 2 * film.GAP + film.VIEW :][:, : film.VIEW]
    for view, shown in ((episode.frames[1], left), (episode.goal, right)):
        small = np.asarray(Image.fromarray(shown.astype(np.uint8)).resize(view.shape[:2]))
        assert np.abs(small.astype(float) - view).mean() < 4
    assert np.abs(left - right).mean() > 1


def test_no_episodes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episodes"):
        film.write_film(tmp_path / "f.mp4", [], "two_room")


def test_a_lost_film_is_made_again_without_measuring(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "r.json"
    asked = {"n_pairs": 3, "budget": BUDGET, "out": out, "film": True, "overwrite": False}
    result = measure(run, **asked)
    film_bytes = out.with_suffix(".mp4").read_bytes()
    for suffix in (".mp4", ".png"):
        out.with_suffix(suffix).unlink()
    stages = []
    again = measure(run, progress=lambda *stage: stages.append(stage), **asked)
    assert again == result == Result.load(out)
    assert out.with_suffix(".mp4").read_bytes() == film_bytes and out.with_suffix(".png").is_file()
    assert {stage for stage, _, _ in stages} == {"film"}
    for suffix, damage in ((".mp4", film_bytes[:-1]), (".mp4", b""), (".png", b"\x89PNG")):
        out.with_suffix(suffix).write_bytes(damage)
        measure(run, **asked)
        assert out.with_suffix(".mp4").read_bytes() == film_bytes and is_whole(out.with_suffix(".png"))
    assert not list(tmp_path.glob(".*"))


def test_a_result_without_a_film_gets_one(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "r.json"
    given = PairSet("two_room", 25, tuple(PAIRS[:2]), seed=123, policy="test")
    asked = {"pairs": given, "budget": BUDGET, "out": out, "overwrite": False}
    before = measure(run, **asked)
    with pytest.raises(ValueError, match="another question"):
        measure(run, **asked | {"pairs": load_shipped("two_room", 25), "film": True})
    assert measure(run, **asked, film=True).film == "r.mp4" == Result.load(out).film
    assert Result.load(out).outcomes == before.outcomes
    (run / "run.json").write_text((run / "run.json").read_text() + " ")
    with pytest.raises(ValueError, match="another question"):
        measure(run, **asked)
