"""Speeds: the arithmetic, plain implementations that compute the same, and each command from its line to its table."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from benchmarks.__main__ import main
from benchmarks.report.records import section_of
from benchmarks.speed import plan, reference, train
from benchmarks.speed.data import WRITERS
from benchmarks.speed.plan import Job
from benchmarks.speed.timing import Speed, measure
from collect import collect
from lewm_gym.data.dataset import Dataset
from lewm_gym.results import Record
from lewm_gym.types import Batch

FAST = {"median": 2_000.0, "low": 1_900.0, "high": 2_100.0, "repeats": 5, "core_share": 0.99}
SLOW = {"median": 500.0, "low": 400.0, "high": 600.0, "repeats": 5, "core_share": 0.5}


def test_a_step_of_ten_milliseconds_runs_a_hundred_times_a_second() -> None:
    speed = measure(lambda: time.sleep(0.01), seconds=0.3, repeats=3)
    assert speed.low <= speed.median <= speed.high and speed.repeats == 3
    assert 20 < speed.median < 101
    assert speed.disturbed and not Speed(**FAST).disturbed  # it slept most of the time
    assert measure(lambda: None, seconds=0.01, repeats=1, weight=1_000).median > 1e6


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, 3), (-1.0, 3), (1.0, 0)])
def test_no_time_is_refused(seconds: float, repeats: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        measure(lambda: None, seconds, repeats)


WRONG = [
    ["envs", "--tasks", "three_room"],
    ["envs", "--seconds", "0"],
    ["data", "x", "--batch-size", "0"],
    ["data", "x", "--plain-episodes", "-1"],
    ["train", "--presets", "huge"],
    ["plan", "--planners", "adam"],
    ["plan", "--precisions", "fp8"],
    ["plan", "--presets", "huge"],
    ["plan", "--agents", "random"],
    ["plan", "--n-envs", "0"],
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_options_are_refused_before_anything_is_measured(wrong: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected|at least|must not be negative|must be one of|unknown task"):
        main(["speed", *wrong, "--out", str(tmp_path / "speed.json")])
    assert not list(tmp_path.iterdir())


# Environments ------------------------------------------------------------------------------------------------


def test_environments_are_stepped_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    assert main(["speed", "envs", "--tasks", "two_room", "--seconds", "0.2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Two-Room" in printed and "steps of many at once, states only" in printed
    rows = {row["what"]: row for row in Record.load(out, "speed envs")["rows"]}
    assert rows["ours"]["speed"]["median"] > 100
    assert rows["batched"]["speed"]["median"] > 10 * rows["ours"]["speed"]["median"]
    assert (
        main(["speed", "envs", "--tasks", "two_room", "--seconds", "0.1", "--quality", "best", "--out", str(out)]) == 0
    )
    assert "render_quality" in Record.load(out)["rows"][0]["why_not"]


def test_the_table_compares_and_explains() -> None:
    def row(task: str, what: str, speed: object, why_not: str | None, detail: str) -> dict[str, object]:
        return {"task": task, "what": what, "speed": speed, "why_not": why_not, "detail": detail}

    rows = [
        row("pusht", "ours", FAST, None, "lewm/PushT-v0"),
        row("pusht", "reference", SLOW, None, "swm/PushT-v1"),
        row("reacher", "ours", None, "no OpenGL", "lewm/Reacher-v0"),
    ]
    text = section_of(Record("speed envs", {"rows": rows}, {})).markdown(Path())
    assert "| Push-T | step + picture | 2,000 | 1,900 to 2,100 | 4.0x |" in text
    for note in ("Reacher, step + picture: not measured: no OpenGL", "used 50 % of its core"):
        assert note in text


# Datasets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collect("two_room", tmp_path_factory.mktemp("data") / "two_room", 2, workers=1, pictures=False)


@pytest.mark.parametrize("name", WRITERS)
def test_every_plain_reader_gives_the_frames_that_were_written(name: str, dataset: Dataset, tmp_path: Path) -> None:
    if name == "hdf5":
        pytest.importorskip("h5py")
    frames, rows = dataset.frames(0, np.arange(20)), np.array([3, 8, 13, 18])
    with ExitStack() as stack:
        read, size = WRITERS[name](frames, tmp_path, stack)
        np.testing.assert_array_equal(read(rows), frames[rows])
    assert size > 0


def test_clips_are_drawn_by_every_reader(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "speed.json"
    options = ["--seconds", "0.05", "--batch-size", "2", "--plain-episodes", "1", "--out", str(out)]
    assert main(["speed", "data", str(dataset.folder), *options]) == 0
    assert "raw frames, memory-mapped" in capsys.readouterr().out
    rows = Record.load(out, "speed data")["rows"]
    assert [row["reader"] for row in rows] == ["ours", "raw", "hdf5", "png"]
    assert rows[0]["speed"]["median"] > 20 and rows[1]["bytes_per_frame"] > 224 * 224 * 3
    monkeypatch.setattr("benchmarks.speed.data.importlib.util.find_spec", lambda name: None)
    assert main(["speed", "data", str(dataset.folder), *options]) == 0
    assert "hdf5: not measured: h5py is not installed" in capsys.readouterr().out


# Training ----------------------------------------------------------------------------------------------------


def test_plain_loss_equals_ours() -> None:
    model = tiny.model()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 4, 56, 56, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(pixels, torch.rand(6, 3, 10, generator=generator) * 2 - 1)
    torch.manual_seed(3)
    ours = model.loss(batch)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(train.plain_loss(train.with_fused_attention(model), batch), ours, rtol=1e-4, atol=1e-5)


def test_a_training_step_is_timed_beside_a_plain_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    common = ["--presets", "laptop", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert main(["speed", "train", "--batch-size", "4", "--precisions", "float32", *common]) == 0
    assert "against plain" in capsys.readouterr().out
    figures = Record.load(out, "speed train")["figures"]
    assert [f["how"] for f in figures] == ["ours", "plain"]
    assert all(f["seconds"] > 0 and f["flops"] > 1e6 and f["peak"] > 1e8 for f in figures)
    assert set(figures[0]["parts"]) == {"loading", "encoder", "predictor", "sigreg", "optimizer"}


# Plans -------------------------------------------------------------------------------------------------------


def test_plain_rollout_equals_ours() -> None:
    model = tiny.model().eval()
    start, actions = torch.randn(2, 1, 8), torch.randn(2, 5, 4, 10)
    plain = plan.plain_rollout(model, start, actions)
    torch.testing.assert_close(plain, model.rollout(start, actions), rtol=1e-4, atol=1e-5)


def test_reference_rollout_predicts_as_many_latents() -> None:
    rollout = reference.reference_rollout(tiny.config(), "cpu")
    if rollout is None:
        pytest.skip("pip install --no-deps stable-worldmodel einops")
    assert rollout(None, torch.randn(2, 1, 8), torch.randn(2, 5, 4, 10)).shape == (2, 5, 4, 8)


def test_fewer_candidates_and_iterations_are_timed_as_asked() -> None:
    job = Job("lewm", "laptop", candidates=10, iterations=3)
    assert job.whole.budget == (300, 30) and job.timed.budget == (10, 3) and job.timed.n_elites == 4
    assert Job("lewm", "laptop", "gradient", candidates=4).timed.n_starts == 4
    assert Job("lewm", "laptop", "icem").timed == Job("lewm", "laptop", "icem").whole
    for wrong in ({"n_envs": 0}, {"candidates": 0}, {"iterations": -1}, {"planner": "icem", "iterations": 2}):
        with pytest.raises(ValueError, match="at least 1|icem"):
            Job("lewm", "laptop", **wrong)


def test_extrapolation_counts_all_the_work_of_the_whole() -> None:
    few, whole = (
        plan.measure(Job("lewm", "laptop", candidates=candidates, iterations=iterations), 1, "cpu")[0]
        for candidates, iterations in ((10, 1), (None, None))
    )
    assert few["measured"] == [10, 1] and whole["measured"] == [300, 30]
    assert few["flops"] == pytest.approx(whole["flops"], rel=1e-3)


def test_what_is_too_much_for_a_cpu_is_timed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("lewm", "laptop")  # 1 MFLOP for each of 9,000 candidates
    assert plan.affordable(job, "cpu") == job
    monkeypatch.setattr(plan, "MOST_FLOPS", 1e9)
    assert plan.affordable(job, "cpu") == Job("lewm", "laptop", iterations=3)
    monkeypatch.setattr(plan, "MOST_FLOPS", 1e8)
    assert plan.affordable(job, "cpu") == Job("lewm", "laptop", candidates=101, iterations=1)
    monkeypatch.setattr(plan, "MOST_FLOPS", 1e6)
    assert plan.affordable(job, "cpu") == Job("lewm", "laptop", candidates=8, iterations=1)
    for asked in (Job("lewm", "laptop", iterations=30), Job("lewm", "laptop", "icem")):
        assert plan.affordable(asked, "cpu") == asked
    assert plan.affordable(job, "cuda") == job


def test_plans_are_timed_beside_plain_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    command = ["speed", "plan", "--presets", "laptop", "--planners", "cem", "mppi", "--repeats", "1", "--n-envs", "2"]
    command += ["--precisions", "bf16", "--iterations", "1", "--candidates", "20", "--device", "cpu", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "mppi 300 x 10, * of 20 x 1" in printed and "extrapolated linearly" in printed
    figures = Record.load(out, "speed plan")["figures"]
    assert [f["how"] for f in figures] == ["ours", "plain"] * 2
    assert all(f["seconds"] > 0 and f["flops"] > 1e7 and f["tokens_per_frame"] == 1 for f in figures)
    assert figures[0]["flops"] < figures[1]["flops"]


def test_what_torch_compiles_is_timed_beside_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function.__name__) or function)
    common = ["--presets", "laptop", "--precisions", "bf16", "--compiled", "--repeats", "1", "--device", "cpu"]
    for verb, words in (("plan", ["--iterations", "1", "--candidates", "20"]), ("train", ["--batch-size", "4"])):
        out = tmp_path / f"{verb}.json"
        assert main(["speed", verb, *words, *common, "--out", str(out)]) == 0
        figures = Record.load(out, f"speed {verb}")["figures"]
        assert [f["how"] for f in figures if f["how"] != "reference"] == ["ours", "plain", "compiled"]
    assert compiled == ["_judge", "loss"]


def test_an_export_is_timed_beside_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    out = tmp_path / "speed.json"
    command = [
        "speed",
        "plan",
        "--presets",
        "laptop",
        "--precisions",
        "float32",
        "--iterations",
        "1",
        "--candidates",
        "20",
    ]
    assert main([*command, "--repeats", "1", "--device", "cpu", "--out", str(out)]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    figures = {f["how"]: f for f in Record.load(out, "speed plan")["figures"]}
    assert list(figures) == ["ours", "plain", "onnx"] and figures["onnx"]["flops"] == figures["ours"]["flops"]
