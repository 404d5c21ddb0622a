"""The page: all numbers on it, true, with what made them, and nothing fetched from anywhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_results import make_result

from benchmarks.report import results as plots
from benchmarks.report.build import find_records, write_report
from benchmarks.report.published import published
from benchmarks.report.results import Entry, group_entries, overview
from lewm_gym.plots import Panel, Series, figure_of
from lewm_gym.results import Outcome, Record, Result, write_json

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Parses strictly enough to find unclosed tags; gathers text, addresses and anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in ("src", "href", "poster", "srcset", "data") if name in values]
        self.ids |= {values["id"] or ""} if "id" in values else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def save(folder: Path, name: str, result: Result) -> Path:
    result.save(folder / name)
    return folder / name


def with_seed(seed: int, successes: int, **changes: Any) -> Result:
    run = {
        "folder": f"runs/{seed}",
        "weights": str(seed) * 64,
        "description": {"preset": "laptop", "training": {"seed": seed}},
        "curves": {
            "prediction": {"step": [1, 300, 600], "value": [1.0, 0.2, 0.02]},
            "validation_prediction": {"step": [600], "value": [0.03]},
            "sigreg": {"step": [1, 300, 600], "value": [40.0, 2.0, 1.1]},
            "gradient_norm": {"step": [1], "value": [7.0]},
        },
    }
    outcomes = tuple(Outcome(i, i < successes, 9 if i < successes else None) for i in range(10))
    return make_result(run=run, outcomes=outcomes, **changes)


def test_page_holds_the_numbers_and_what_made_them(tmp_path: Path) -> None:
    path = save(tmp_path, "r.json", with_seed(0, 9))
    out = write_report([path], tmp_path / "page.html", title="The demo", intro="Made in 9 minutes.")
    page = Page(out.read_text())
    for text in ("The demo", "Made in 9 minutes.", "90.0", "59.6", "98.2", "10.0", "1.8 to 40.4"):
        assert text in page.text
    for text in (
        "LeWM, laptop, seed 0",
        "python -m benchmarks plan runs/x",
        "a" * 12,
        "abacus",
        "12.5 s",
        "0.5 s per plan",
    ):
        assert text in page.text
    assert "87" in page.text and "LeWorldModel, arXiv 2603.19312" in page.text and "50 episodes" in page.text
    assert "sigreg" in page.text and "gradient" not in page.text
    markdown = out.with_suffix(".md").read_text()
    assert "| LeWM, laptop, seed 0 | 10 held-out pairs, budget 50 steps | **90.0** | 59.6 to 98.2 |" in markdown
    assert "on the same pairs: success by chance | **10.0** | 1.8 to 40.4 |" in markdown
    assert "| *LeWM* | *87* |" in markdown


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    (tmp_path / "f.mp4").write_bytes(b"film")
    (tmp_path / "f.png").write_bytes(b"still")
    path = save(tmp_path, "r.json", with_seed(0, 9, film="f.mp4"))
    text = write_report([path], tmp_path / "page.html").read_text()
    page = Page(text)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.ids
    assert {"data:video/mp4;base64,ZmlsbQ==", "data:image/png;base64,c3RpbGw="} <= set(page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"@import|url\((?!#)|https?:", text)
    assert "prefers-color-scheme" in text and 'name="viewport"' in text


def test_film_given_by_the_caller_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").write_bytes(b"film")
    path = save(tmp_path, "r.json", with_seed(0, 9))
    out = write_report([path], tmp_path / "page.html", film=tmp_path / "mine.mp4")
    assert "data:video/mp4;base64,ZmlsbQ==" in out.read_text()
    assert "(mine.mp4)" in out.with_suffix(".md").read_text()
    with pytest.raises(ValueError, match="no film"):
        write_report([path], tmp_path / "page.html", film=tmp_path / "missing.mp4")


def test_seeds_are_averaged_and_distances_kept_apart(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{s}.json", with_seed(s, n)) for s, n in ((0, 10), (1, 9), (2, 8))]
    paths.append(save(tmp_path, "far.json", with_seed(0, 5, offset_steps=50, budget_steps=100)))
    out = write_report(paths, tmp_path / "page.html")
    markdown = out.with_suffix(".md").read_text()
    assert "| **LeWM, laptop, mean of 3 seeds** | standard deviation 10.0 points; " in markdown
    near, far = markdown.split("## Two-Room, goals 50 steps away")
    assert near.count("| random baseline |") == 1  # the same baseline once, not once per seed
    assert "(published," in near and "(published," not in far.split("## Provenance")[0]
    groups = group_entries([Entry(str(p), p, Result.load(p), None) for p in paths])
    (distance,) = plots.distance_panels(groups)
    assert [(line.label, list(line.x)) for line in distance.series] == [
        ("LeWM, laptop", [25, 50]),
        ("random baseline", [25, 50]),
    ]
    ((heading, panels),) = plots.training_panels([entry for group in groups for entry in group.entries])
    assert heading == "Two-Room: LeWM, laptop" and [panel.title for panel in panels] == ["prediction", "sigreg"]
    labels = [line.label for line in panels[0].series]  # a run is drawn once, however often it was measured
    assert labels == [f"seed {seed}{held}" for seed in range(3) for held in ("", ", held-out episodes")]


def test_every_run_has_a_label_of_its_own(tmp_path: Path) -> None:
    def entry(name: str, seed: int | None, steps: int, episodes: int, folder: str | None = None) -> Entry:
        description = {"training": {"seed": seed}, "dataset": {"episodes": episodes}}
        run = {"steps": steps, "description": description, "folder": folder}
        return Entry(name, tmp_path / f"{name}.json", make_result(run=run), None)

    short, long = entry("a", 0, 300, 1000), entry("b", 0, 7500, 1000)
    assert plots.run_labels([short, entry("c", 1, 300, 1000)]) == ["seed 0", "seed 1"]
    assert plots.run_labels([short, long]) == ["seed 0, 300 steps", "seed 0, 7,500 steps"]
    assert plots.run_labels([short, entry("d", 0, 300, 50)]) == ["seed 0, 1,000 episodes", "seed 0, 50 episodes"]
    again = [entry("e", 0, 300, 1000, "runs/demo"), entry("h", 0, 300, 1000, "runs/0")]
    assert plots.run_labels(again) == ["seed 0, runs/demo", "seed 0, runs/0"]
    assert plots.run_labels([short, long, entry("e", 0, 300, 1000)]) == [
        "seed 0, 300 steps, a",
        "seed 0, 7,500 steps",
        "seed 0, 300 steps, e",
    ]
    assert plots.run_labels([entry("f", None, 300, 50), entry("g", None, 300, 50)]) == [
        "300 steps, f",
        "300 steps, g",
    ]


def test_running_means_keep_a_straight_line_and_remove_noise() -> None:
    line = [2.0 * k + 1.0 for k in range(100)]
    steps, values = plots.smooth(range(100)), plots.smooth(line)
    assert values == pytest.approx([2.0 * step + 1.0 for step in steps])
    assert plots.smooth([(-1.0) ** k for k in range(100)])[10:90] == pytest.approx([0.0] * 80)
    assert plots.smooth([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]  # too few to average


def test_the_same_seed_twice_is_not_averaged(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{n}.json", with_seed(0, n)) for n in (10, 8)]
    assert "mean of" not in write_report(paths, tmp_path / "page.html").read_text()


def test_strings_from_files_are_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    result = with_seed(0, 9, command=bad, agent=f'"{bad}', hardware={"cpu": bad, "cores": 1, "system": "x | y"})
    result.run["folder"] = bad
    result.run["curves"][f'x"{bad}'] = {"step": [1, 2], "value": [1, 2]}
    path = save(tmp_path, "r.json", result)
    out = write_report([path], tmp_path / "page.html", title=bad, intro=bad)
    assert "script" not in Page(out.read_text()).tags
    markdown = out.with_suffix(".md").read_text()
    assert "<script" not in markdown and "x \\| y" in markdown


def test_film_of_a_result_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"film")
    path = save(tmp_path / "results", "r.json", with_seed(0, 9, film="../secret.mp4"))
    assert "video/mp4" not in write_report([path], tmp_path / "page.html").read_text()


def test_older_results_and_other_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "old.json", make_result())
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 2'))
    with pytest.raises(ValueError, match="old.json has an older schema"):
        write_report(find_records([tmp_path]), tmp_path / "page.html")
    path.unlink()
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="no results in"):
        find_records([tmp_path])
    with pytest.raises(ValueError, match="not a LeWM-Gym record"):
        write_report(find_records([tmp_path / "manifest.json"]), tmp_path / "page.html")
    with pytest.raises(ValueError, match="no results to report"):
        write_report([], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_result_without_baseline_curves_or_description_is_shown(tmp_path: Path) -> None:
    bare = replace(make_result(), random=(), run={}, commit=None, timing={}, task="chess", agent="mine")
    page = Page(write_report([save(tmp_path, "r.json", bare)], tmp_path / "page.html").read_text())
    assert "chess" in page.text and "not in a git checkout" in page.text


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-2.0, 5.0], [1e-6, 1e3], [0.97, 0.98, 0.99]])
def test_drawings_are_elements_for_a_page_and_pictures_for_a_folder(values: list[float], tmp_path: Path) -> None:
    panel = Panel("loss <b>", [Series("x & y", range(len(values)), values), Series("other", [0], [1.0], style="o")])
    figure = figure_of("What it shows.", [panel])
    assert panel.is_logarithmic == (min(values) > 0 and max(values) > 20 * min(values))
    svg = figure.svg()
    Page(svg)
    assert svg.startswith("<svg role=") and "loss &lt;b&gt;" in svg and "x &amp; y" in svg
    assert "var(--c0)" in svg and not re.search(r"https?:|<g id=|#0f766e", svg)
    figure.save(tmp_path / "deep" / "f.png")
    assert (tmp_path / "deep" / "f.png").read_bytes().startswith(b"\x89PNG")


def test_published_numbers_are_the_papers() -> None:
    tasks = ("two_room", "reacher", "pusht", "cube")
    assert [next(r.success for r in published(t) if r.agent == "lewm") for t in tasks] == [87, 86, 96, 74]
    assert all(row.protocol and row.source and row.block for task in tasks for row in published(task))
    assert not [row for row in published("reacher") if row.agent.startswith("gc")]  # the paper leaves them out
    assert not published("chess")


def judged(seed: int, successes: int, strict: int, **changes: Any) -> Result:
    """A result with strict success and action replay."""
    outcomes = tuple(Outcome(i, i < successes, 9 if i < successes else None, i < strict) for i in range(10))
    replay = tuple(Outcome(i, True, 25, i < 7) for i in range(10))
    return replace(with_seed(seed, successes, **changes), outcomes=outcomes, replay=replay)


def test_strict_success_and_action_replay_stand_beside_success(tmp_path: Path) -> None:
    path = save(tmp_path, "r.json", judged(0, 9, 4))
    out = write_report([path], tmp_path / "page.html")
    markdown = out.with_suffix(".md").read_text()
    assert "| LeWM, laptop, seed 0 | 10 held-out pairs, budget 50 steps | **90.0** | 59.6 to 98.2 | 40.0 |" in markdown
    assert "every goal is reachable | **100.0** | 72.2 to 100.0 | 70.0 |" in markdown
    assert "It held 40.0 % for 5 steps." in out.read_text()


def test_overview_has_agents_by_tasks_beside_the_papers_numbers(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{s}.json", judged(s, n, 3)) for s, n in ((0, 9), (1, 8))]
    paths.append(save(tmp_path, "gcbc.json", judged(0, 7, 3, agent="gcbc")))
    paths.append(save(tmp_path, "pusht.json", judged(0, 5, 3, task="pusht")))
    paths.append(save(tmp_path, "official.json", judged(0, 10, 3, task="pusht", protocol="official")))
    paths.append(save(tmp_path, "random.json", judged(0, 2, 1, agent="random")))  # as `compare` measures it too
    table = overview(group_entries([Entry(str(p), p, Result.load(p), None) for p in paths]))
    assert table is not None
    table = table.markdown().splitlines()
    assert table[0] == "| agent | Two-Room | Push-T |"
    assert table[2] == "| **LeWM, laptop** | **85.0** ± 7.1 *(87)* | **50.0** *(96)* |"  # the official one is not here
    assert table[3] == "| **GCBC, laptop** | **70.0** *(100)* |  |"
    assert table[4:] == ["| random baseline | 10.0 *(0)* | 10.0 *(2)* |"]


def test_overview_shows_the_result_with_the_fewest_changes_and_planners_in_rows_of_their_own(tmp_path: Path) -> None:
    evaluations = {
        "own": (6, "", "2026-01-01T00:00:00+00:00"),
        "more candidates, later": (9, "--planning n_samples=512", "2026-01-02T00:00:00+00:00"),
        "another planner": (7, "--planning planner=actor", "2026-01-03T00:00:00+00:00"),
        "told the steps left": (8, "--planning planner=actor --steps-left 25", "2026-01-04T00:00:00+00:00"),
    }
    entries = []
    for name, (successes, options, started) in evaluations.items():
        result = judged(0, successes, 3, command=f"python -m benchmarks plan RUN {options}", started=started)
        told = {"steps_left": 25} if "told" in name else {}
        entries.append(Entry(name, tmp_path, replace(result, metrics={**result.metrics, **told}), None))
    assert "told 25 steps left" in entries[-1].note
    table = overview(group_entries(entries))
    assert table is not None
    rows = table.markdown().splitlines()[2:]
    assert [row.split(" *(")[0] for row in rows[:2]] == [
        "| **LeWM, laptop** | **60.0**",
        "| **LeWM, laptop, actor** | **70.0**",
    ]


MADE = {"command": "python -m benchmarks x", "commit": {"hash": "c" * 40, "dirty": False}, "versions": {}}
MACHINE = {"cpu": "slide rule", "cores": 2, "memory_gib": 8.0, "system": "Linux", "gpu": None}
FIGURE = {"preset": "laptop", "how": "ours", "precision": "float32", "seconds": 0.25, "fastest": 0.2, "flops": 5e9}
SEARCH = {"what": "plan", "agent": "lewm", "planner": "cem", "candidates": 300, "iterations": 30, "measured": [300, 2]}
SEED = {
    "seed": 0,
    "episodes": 100,
    "rate": 0.9,
    "low": 0.8,
    "high": 0.95,
    "training_seconds": 600.0,
    "act_seconds_per_pair": 0.5,
}
SPEED = {"median": 54.2, "low": 53.0, "high": 55.1, "repeats": 5, "core_share": 1.0}
CLIPS = {"dataset": "d", "task": "pusht", "reader": "ours", "speed": SPEED, "episodes": 6, "bytes_per_frame": 9.0}
ROW = {
    "features": None,
    "task": "pusht",
    "agent": "gcbc",
    "steps": 900,
    "success_mean": 0.9,
    "success_std": None,
    "published": 75,
}
RECORDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "speed plan": (
        {"figures": [FIGURE | SEARCH | {"per": 1, "repeats": 3, "tokens_per_frame": 1}], "device": "cpu", "threads": 2},
        ("A plan", "250", "20", "NVIDIA L40S", "0.98 s"),
    ),
    "speed envs": (
        {
            "rows": [
                {"task": "cube", "what": "ours", "speed": SPEED, "why_not": None, "detail": "x"},
                {"task": "pusht", "what": "ours", "speed": None, "why_not": "no OpenGL", "detail": "x"},
            ],
        },
        ("OGBench-Cube", "54", "53 to 55", "not measured: no OpenGL"),
    ),
    "speed data": (
        {"threads": 2, "batch_size": 8, "rows": [CLIPS, CLIPS | {"reader": "png", "speed": SPEED | {"median": 27.0}}]},
        ("Loading training clips", "PNG files", "54", "27", "2.0x"),
    ),
    "compare": (
        {"options": {"preset": "laptop", "offset": 25}, "repeat": "again", "missing": 0, "diverged": {"x": "nan"},
         "rows": [ROW | {"seeds": [SEED]}]},
        ("Comparison of agents", "GCBC", "90.0 [80.0, 95.0]", "10.0 min", "0.5 s", "x diverged: nan"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_other_measurements_are_shown_with_what_made_them(tmp_path: Path, name: str) -> None:
    body, texts = RECORDS[name]
    Record(name, body, MADE | {"hardware": MACHINE}).save(tmp_path / "m.json")
    write_json(tmp_path / "other.json", {"format": "shopping list"})
    paths = find_records([tmp_path])
    assert [path.name for path in paths] == ["m.json"]
    out = write_report(paths, tmp_path / "page.html")
    page = Page(out.read_text())
    for text in (*texts, "python -m benchmarks x", "slide rule", "c" * 12):
        assert text in page.text, text
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.ids
    assert "slide rule" in out.with_suffix(".md").read_text()


def test_markdown_links_the_pictures_that_lie_beside_a_record(tmp_path: Path) -> None:
    body = {"task": "two_room", "points": 3, "models": [{"title": "LeWM"}], "method": "t-SNE"}
    body |= {"places": {"agent": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]}, "layout": [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]}
    path = tmp_path / "records" / "the map.json"
    Record("tsne", body, MADE | {"hardware": MACHINE}).save(path)
    out = write_report([path], tmp_path / "page.html")
    assert "![" not in out.with_suffix(".md").read_text()  # there is none yet
    path.with_suffix(".png").write_bytes(b"png")
    out = write_report([path], tmp_path / "page.html")
    assert "![Map of the latents: Two-Room](records/the%20map.png)" in out.with_suffix(".md").read_text()
    assert "preserve neighbourhoods (t-SNE does not preserve distances)" in Page(out.read_text()).text


def test_damaged_measurements_are_refused(tmp_path: Path) -> None:
    Record("speed plan", {}, MADE).save(tmp_path / "m.json")
    with pytest.raises(ValueError, match=r"m.json is damaged .*figures.*run the benchmark again"):
        write_report([tmp_path / "m.json"], tmp_path / "page.html")


@pytest.mark.parametrize("name", RECORDS)
def test_a_measurement_with_a_value_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    body, _ = RECORDS[name]
    refused = 0
    for field in body:
        for value in (None, [[]], -1):
            Record(name, body | {field: value}, MADE).save(tmp_path / "m.json")
            try:
                write_report([tmp_path / "m.json"], tmp_path / "page.html")
            except ValueError as error:
                refused += 1
                assert "m.json is damaged" in str(error) and "\n" not in str(error), error
    assert refused


def test_a_command_with_an_open_quotation_is_shown_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, "r.json", make_result(command="python -m benchmarks plan 'x --planning cost=sum"))
    assert "plan 'x --planning cost=sum" in Page(write_report([path], tmp_path / "page.html").read_text()).text
