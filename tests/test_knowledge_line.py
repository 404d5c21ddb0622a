"""Every verb from its command line at toy size; runs and data that do not fit; what the report gets of the records."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SETTINGS, collect_two_room

from agents import agent_class
from agents.trainable import split_samplers
from benchmarks.__main__ import main
from benchmarks.analysis import elites
from benchmarks.analysis.decode import DecoderConfig, FrameDecoder, LatentFrames, Seen, _claim
from benchmarks.analysis.latent_map import laid_out, possible
from benchmarks.analysis.worlds import divide, load_worlds, open_dataset
from benchmarks.report.records import section_of
from benchmarks.report.tables import Mark, Picture, Section, Table, to_html
from collect.collector import collect
from collect.episodes import make_env
from lewm_gym import checkpoint
from lewm_gym.data.dataset import Dataset
from lewm_gym.nn.images import to_network
from lewm_gym.pairs import load_shipped
from lewm_gym.results import Record


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("knowledge")
    collect_two_room(folder / "data", episodes=8)
    settings = {**SETTINGS, "steps": 2, "validate_every_steps": 1}
    for name in ("lewm", "pldm"):
        agent_class(name).fit(folder / "data", folder / name, **settings)
    return folder


VERBS = {
    "probe": ["probe", "lewm", "pldm", "data", "--steps", "5", "--control"],
    "surprise": ["surprise", "lewm", "--trajectories", "2"],
    "rollout": ["rollout", "lewm", "pldm", "data", "--horizon", "3"],
    "decode": ["decode", "lewm", "data", "--steps", "2", "--frames", "32", "--episodes", "1", "--horizon", "3"],
    "tsne": ["tsne", "lewm", "--side", "4"],
    "elites": [
        *("elites", "lewm", "--n-pairs", "2", "--n-elites", "3"),
        *("--planning", "n_samples=8", "n_elites=4", "n_iterations=2"),
    ],
    "straightness": ["straightness", "lewm", "pldm"],
    "curves": ["curves", "lewm", "pldm"],
}


class Page(HTMLParser):
    """Counts open tags; gathers text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("img", "meta"):  # which are never closed
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("verb", VERBS)
def test_verb_writes_a_record_and_pictures_and_the_report_can_show_it(
    verb: str, line: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(line)
    assert main([*VERBS[verb], "--out", f"results/{verb}.json"]) == 0
    record = Record.load(Path("results", f"{verb}.json"), verb)
    assert record.head["commit"] is None or len(record.head["commit"]["hash"]) == 40
    assert record.head["seconds"] > 0 and record.head["hardware"]["cores"] >= 1
    section = section_of(record)
    assert section.title in capsys.readouterr().out
    assert "LeWM" in section.html() and not re.search(r"\bnan\b|None", section.text())
    assert Page(section.html()).text
    pictures = [block.path for block in section.blocks if isinstance(block, Picture)]
    assert section.figures or pictures
    for path in pictures or [Path("results", f"{verb}.png")]:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_an_elite_is_executed_as_it_was_planned(line: Path) -> None:
    """The recorded actions, as a plan, end in the picture of the goal and meet it."""
    agent = load_worlds([line / "lewm"])[0].agent
    env = make_env("two_room")
    pair = load_shipped("two_room", 25).pairs[0]
    reset = {"state": pair.start_state, "goal_state": pair.goal_state}
    goal = env.reset(options=reset)[0]["goal"]
    plan = agent.model.normalize_actions(torch.from_numpy(pair.actions.reshape(5, -1)))
    frame, reached = elites._executed(agent, env, reset, plan)
    np.testing.assert_array_equal(frame, goal)
    assert reached
    assert not elites._executed(agent, env, reset, -plan)[1]


def test_rank_correlation_of_costs() -> None:
    costs = np.array([0.1, 5.0, 2.0, 9.0])
    assert elites.rank_correlation(costs, costs**3) == pytest.approx(1.0)
    assert elites.rank_correlation(costs, -costs) == pytest.approx(-1.0)
    assert elites.rank_correlation(costs, np.ones(4)) == 0.0


@pytest.mark.parametrize("planner", ["actor", "arcem"])
def test_planners_without_candidates_of_actions_have_no_elites(planner: str, tmp_path: Path, line: Path) -> None:
    settings = {**SETTINGS, "steps": 2, "actor_steps": 1, "actor_width": 8, "actor_batch_size": 8}
    agent_class("lewm").fit(line / "data", tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="does not search|searches what is added"):
        elites.Elites(run=tmp_path / "run", planning={"planner": planner}, n_pairs=2).record()


def test_a_control_is_the_same_network_without_what_was_learned(line: Path) -> None:
    (world,) = load_worlds([line / "lewm"])
    control = world.control()
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    assert control.title == "LeWM, laptop, seed 0: untrained network"
    assert control.encode(frames).shape == world.encode(frames).shape
    assert (control.encode(frames) != world.encode(frames)).any()
    assert (control.encode(frames) == world.control().encode(frames)).all()
    assert control.describe()["weights"] is None and world.describe()["weights"]


def test_probes_and_decoders_are_judged_on_what_training_held_out(line: Path) -> None:
    dataset = Dataset.open(line / "data")
    worlds = load_worlds([line / "lewm"])
    parts = divide(dataset, worlds, 100, 100)

    class Sampler:
        def __init__(self, episodes: np.ndarray) -> None:
            self.episodes = episodes

        def preload(self, on_load: object) -> None:
            pass

    trained, held_out = split_samplers(dataset, Sampler, None)
    assert parts.test.tolist() == held_out.episodes.tolist()
    assert set(parts.fit.tolist()) == set(trained.episodes.tolist())
    assert not parts.fresh


def test_another_collection_is_fresh_and_a_larger_one_only_beyond_what_was_seen(line: Path, tmp_path: Path) -> None:
    worlds = load_worlds([line / "lewm"])
    collect("two_room", tmp_path / "other", 4, seed=1, workers=1, pictures=False)
    parts = divide(Dataset.open(tmp_path / "other"), worlds, 100, 100)
    assert parts.fresh and len(parts.test) == 2 and len(parts.fit) == 2
    collect("two_room", tmp_path / "larger", 10, workers=1, pictures=False)
    larger = divide(Dataset.open(tmp_path / "larger"), worlds, 100, 100)
    assert larger.test.tolist() == [8, 9] and not larger.fresh
    collect("two_room", tmp_path / "smaller", 4, workers=1, pictures=False)
    with pytest.raises(ValueError, match="never saw"):
        divide(Dataset.open(tmp_path / "smaller"), worlds, 100, 100)


def test_runs_and_data_that_do_not_fit_are_refused(line: Path, tmp_path: Path) -> None:
    collect("pusht", tmp_path / "pusht", 2, workers=1, pictures=False)
    worlds = load_worlds([line / "lewm"])
    with pytest.raises(ValueError, match="'pusht', but .* is of 'two_room'"):
        open_dataset(tmp_path / "pusht", worlds)
    collect("two_room", tmp_path / "states", 2, workers=1, states_only=True)
    with pytest.raises(ValueError, match="states only"):
        open_dataset(tmp_path / "states", worlds)
    worlds[0].description["dataset"]["render_quality"] = "reference"
    with pytest.raises(ValueError, match="--render-quality reference"):
        open_dataset(line / "data", worlds)
    description = json.loads((line / "lewm" / "run.json").read_text())
    for name, changes, message in (
        ("unfinished", {"finished": False}, "not finished"),
        ("policy", {"agent": "gcbc"}, "no world model"),
    ):
        (tmp_path / name).mkdir()
        checkpoint.save_description(tmp_path / name, {**description, **changes})
        with pytest.raises(ValueError, match=message):
            load_worlds([tmp_path / name])


@pytest.mark.parametrize(
    "arguments", [["surprise", "lewm", "--trajectories", "two"], ["probe", "lewm"], ["tsne", "a", "b"], ["speed", "x"]]
)
def test_a_wrong_option_ends_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_record_is_json_and_of_a_kind_that_a_command_leaves(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.json"):
        main(["curves", "lewm", "--out", "x.png"])
    with pytest.raises(ValueError, match="--episodes must be at least 1, got 0"):
        main(["probe", "lewm", "data", "--episodes", "0"])
    record = Record("astrology", {}, {}).save(tmp_path / "r.json")
    with pytest.raises(ValueError, match="'astrology', which no command here leaves"):
        section_of(record)


def test_decoder_begins_as_the_mean_frame_and_learns_what_latents_say() -> None:
    torch.manual_seed(0)
    latents = torch.eye(2).repeat(8, 1)
    frames = torch.full((16, 224, 224, 3), 255, dtype=torch.uint8)
    frames[::2, :112], frames[1::2, 112:] = 0, 0
    images = to_network(frames, 224)
    mean = images.mean(dim=0)
    config = DecoderConfig(width=12, depth=1, heads=1)
    decoder = FrameDecoder(2, mean, (images - mean).square().mean(), config)
    batch = LatentFrames(Seen(latents, frames)).batch(0, 8)
    assert decoder.loss(batch)[0].item() == pytest.approx(1.0, abs=1e-4)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = decoder.loss(batch)[0]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    upper, lower = decoder.frames(torch.eye(2))[:, [50, 170], 100].astype(int).mean(axis=-1)
    assert upper[0] < 60 < 195 < upper[1] and lower[1] < 60 < 195 < lower[0]


def test_a_decoder_is_begun_again_for_other_weights(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    _claim(folder, {"weights": "a"})
    (folder / "checkpoint.safetensors").write_bytes(b"x")
    _claim(folder, {"weights": "a"})
    assert (folder / "checkpoint.safetensors").exists()
    _claim(folder, {"weights": "b"})
    assert not (folder / "checkpoint.safetensors").exists()


def test_principal_components_keep_a_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(30, 2)) * (3.0, 1.0)
    axes = np.linalg.qr(rng.normal(size=(8, 2)))[0]
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    method, layout = laid_out(torch.from_numpy(plane @ axes.T + 5.0))
    assert "principal components" in method
    distances = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (plane, layout)]
    assert distances[1] == pytest.approx(distances[0], abs=1e-6)


def test_tsne_keeps_two_clusters_apart() -> None:
    pytest.importorskip("sklearn")
    centres = np.repeat([[0.0] * 6, [50.0] * 6], 20, axis=0)
    method, layout = laid_out(torch.from_numpy(centres + np.random.default_rng(0).normal(size=(40, 6))))
    assert method == "t-SNE"
    gaps = [np.linalg.norm(layout[i] - layout[:20].mean(0)) for i in range(40)]
    assert max(gaps[:20]) < min(gaps[20:])


@pytest.mark.parametrize("task", ["two_room", "pusht"])
def test_grids_are_mostly_possible_states_in_different_places(task: str) -> None:
    env = make_env(task)
    points = list(env.placed_states(6))  # type: ignore[attr-defined]
    assert len(list(possible(env, points))) > 0.6 * len(points)
    assert len({tuple(point.state) for point in points}) == len(points)


def test_what_comes_from_outside_is_no_markup() -> None:
    outside = "<b>|*x*"
    table = Table(["a", "b"], [["1", outside]])
    section = Section("t", [("An ", Mark("italic", "theirs"), " word: ", outside), table])
    page = Page(section.html())
    assert page.text.startswith("An italic word: <b>|*x*") and page.text.endswith("<b>|*x*")
    assert "<i>italic</i>" in to_html(section.blocks[0]) and "<td>&lt;b&gt;|*x*</td>" in table.html()
    assert table.markdown().splitlines()[-1] == "| 1 | &lt;b&gt;\\|\\*x\\* |" and outside in table.text()
